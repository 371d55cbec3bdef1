/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dma-bufs of the driver's own: pinbed_carveout.c is their memory,
 * pinbed_export.c makes them of it and pinbed_import.c follows one that moves.
 * Those of protected memory are pinbed_protected.c's.
 */
#ifndef PINBED_EXPORT_H
#define PINBED_EXPORT_H

#include <linux/dma-buf.h>
#include <linux/types.h>

#include "pinbed.h"

/* pinbed_carveout.c */

int pinbed_carveout_init(void);
void pinbed_carveout_exit(void);
int pinbed_carveout_take(size_t length, phys_addr_t *address);
void pinbed_carveout_give(phys_addr_t address, size_t length);
void *pinbed_carveout_cpu(phys_addr_t address);

/* pinbed_export.c */

long pinbed_ioctl_export(struct pinbed_device *pdev,
			 struct pinbed_export __user *arg);
long pinbed_ioctl_move(struct pinbed_move __user *arg);

/* pinbed_import.c */

/**
 * struct pinbed_importer - Follows at most one dma-buf.
 * @pdev: The device that the dma-buf is attached to.
 * @lock: Lets one caller at a time use this; taken before the dma-buf's
 * reservation.
 * @attach: The import, or NULL; protected by @lock.
 * @direction: Of the device's access; protected by @lock.
 * @sgt: Where the dma-buf is now, or NULL since it moved; protected by the
 * dma-buf's reservation.
 * @att: What the device holds, or NULL; protected as @sgt.
 */
struct pinbed_importer {
	struct pinbed_device *pdev;
	struct mutex lock;
	struct dma_buf_attachment *attach;
	u32 direction;
	struct sg_table *sgt;
	struct pinbed_attachment *att;
};

void pinbed_importer_init(struct pinbed_importer *importer,
			  struct pinbed_device *pdev);
void pinbed_importer_drop(struct pinbed_importer *importer);
long pinbed_ioctl_import(struct pinbed_importer *importer,
			 struct pinbed_import __user *arg);

#endif /* PINBED_EXPORT_H */
