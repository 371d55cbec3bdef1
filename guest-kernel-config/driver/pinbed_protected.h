/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Protected memory: pinbed_protected.c allocates it and makes dma-bufs of it,
 * pinbed_tee_heap.c has the kernel's heap make them.
 */
#ifndef PINBED_PROTECTED_H
#define PINBED_PROTECTED_H

#include <linux/dma-buf.h>

#include "pinbed.h"

/**
 * struct pinbed_protected - Protected memory.
 * @dev: Does the DMA, referenced.
 * @page: The first of its pages, which are contiguous.
 * @address: DMA address.
 * @length: In bytes, whole pages.
 * @hold: The device's hold on it, which is what protects it.
 */
struct pinbed_protected {
	struct device *dev;
	struct page *page;
	dma_addr_t address;
	size_t length;
	struct pinbed_hold *hold;
};

struct pinbed_protected *pinbed_protected_new(struct pinbed_device *pdev,
					      struct device *dev, u64 length);
void pinbed_protected_free(struct pinbed_protected *protected);
struct dma_buf *pinbed_protected_export(struct pinbed_device *pdev,
					struct pinbed_export *export);

#endif /* PINBED_PROTECTED_H */
