/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dma-bufs of the driver's own: pinbed_carveout.c has their memory,
 * pinbed_export.c makes them, pinbed_move.c moves their memory and
 * pinbed_import.c imports one without pinning it. Those of protected memory are
 * in pinbed_protected.c.
 */
#ifndef PINBED_EXPORT_H
#define PINBED_EXPORT_H

#include <linux/dma-buf.h>
#include <linux/types.h>

#include "pinbed.h"

/* pinbed_carveout.c */

int pinbed_carveout_init(void);
void pinbed_carveout_exit(void);
int pinbed_carveout_alloc(size_t length, phys_addr_t *address);
void pinbed_carveout_free(phys_addr_t address, size_t length);
void *pinbed_carveout_cpu(phys_addr_t address);

/* pinbed_export.c */

/**
 * struct pinbed_object - Memory of a dma-buf. Protected by the dma-buf's
 * reservation, but for the fields that never change: @size and @any_importer,
 * and @address if it cannot move.
 * @size: In bytes, a multiple of the page size.
 * @any_importer: Importers need not say that they can do without struct pages.
 * @address: Where it is.
 * @revoked: It is nowhere.
 * @pins: Importers that need it where it is.
 */
struct pinbed_object {
	size_t size;
	bool any_importer;
	phys_addr_t address;
	bool revoked;
	unsigned int pins;
};

extern const struct dma_buf_ops pinbed_moving_ops;

long pinbed_ioctl_export(struct pinbed_device *pdev,
			 struct pinbed_export __user *arg);

/* pinbed_move.c */

long pinbed_ioctl_move(struct pinbed_move __user *arg);

/* pinbed_import.c */

/**
 * struct pinbed_importer - Imports at most one dma-buf, and follows its moves.
 * @pdev: The device.
 * @lock: See below.
 * @attach: The import, or NULL.
 * @direction: PINBED_DIRECTION_* of the device's access.
 * @sgt: Where the dma-buf is now, or NULL since it moved; protected by the
 * dma-buf's reservation.
 * @hold: What the device holds, or NULL; protected as @sgt.
 */
struct pinbed_importer {
	struct pinbed_device *pdev;
	/* Protects @attach and @direction; taken before the reservation. */
	struct mutex lock;
	struct dma_buf_attachment *attach;
	u32 direction;
	struct sg_table *sgt;
	struct pinbed_hold *hold;
};

void pinbed_importer_init(struct pinbed_importer *importer,
			  struct pinbed_device *pdev);
void pinbed_importer_exit(struct pinbed_importer *importer);
long pinbed_ioctl_import(struct pinbed_importer *importer,
			 struct pinbed_import __user *arg);

#endif /* PINBED_EXPORT_H */
