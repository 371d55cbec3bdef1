// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory of the driver's own that the device holds in place of memory that only
 * the CPU can access.
 */
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "pinbed.h"
#include "pinbed_compat_mm.h"

static int pinbed_bounce_pages(struct pinbed_bounce *bounce)
{
	unsigned int i, count = DIV_ROUND_UP(bounce->length, PAGE_SIZE);
	struct page **pages;
	int ret;

	pages = kvmalloc_array(count, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		pages[i] = vmalloc_to_page(bounce->vaddr +
					   (size_t)i * PAGE_SIZE);
	ret = pinbed_sg_from_pages(&bounce->sgt, pages, count, 0, bounce->length,
				   pinbed_max_segment(bounce->dev));
	kvfree(pages);
	return ret;
}

/*
 * @dev must live until pinbed_bounce_free(). @length is in bytes, not zero, and
 * of no more pages than an unsigned int counts. The memory is zero.
 */
struct pinbed_bounce *pinbed_bounce_new(struct pinbed_device *pdev,
					struct device *dev, size_t length,
					u32 direction)
{
	struct pinbed_bounce *bounce = pinbed_zalloc_obj(*bounce);
	int ret = -ENOMEM;

	if (!bounce)
		return ERR_PTR(-ENOMEM);
	bounce->dev = dev;
	bounce->direction = pinbed_dma_direction(direction);
	bounce->length = length;
	bounce->vaddr = vzalloc(length);
	if (!bounce->vaddr)
		goto free;
	ret = pinbed_bounce_pages(bounce);
	if (ret)
		goto vfree;
	bounce->hold = pinbed_hold_map(pdev, dev, &bounce->sgt, length,
				       direction, 0);
	if (IS_ERR(bounce->hold)) {
		ret = PTR_ERR(bounce->hold);
		goto free_table;
	}
	return bounce;

free_table:
	sg_free_table(&bounce->sgt);
vfree:
	vfree(bounce->vaddr);
free:
	kfree(bounce);
	return ERR_PTR(ret);
}

void pinbed_bounce_free(struct pinbed_bounce *bounce)
{
	pinbed_hold_end(bounce->hold);
	sg_free_table(&bounce->sgt);
	vfree(bounce->vaddr);
	kfree(bounce);
}

/* The CPU copies in what the device is to read. */
void pinbed_bounce_fill(struct pinbed_bounce *bounce, const void *from,
			size_t length)
{
	dma_sync_sgtable_for_cpu(bounce->dev, &bounce->sgt, bounce->direction);
	memcpy(bounce->vaddr, from, min(length, bounce->length));
	dma_sync_sgtable_for_device(bounce->dev, &bounce->sgt, bounce->direction);
}

/*
 * The CPU copies out what the device has written: of each @stride bytes the
 * first @line.
 */
void pinbed_bounce_drain(struct pinbed_bounce *bounce, void *to, size_t length,
			 size_t line, size_t stride)
{
	size_t at;

	length = min(length, bounce->length);
	dma_sync_sgtable_for_cpu(bounce->dev, &bounce->sgt, bounce->direction);
	for (at = 0; at < length; at += stride)
		memcpy(to + at, bounce->vaddr + at, min(line, length - at));
	dma_sync_sgtable_for_device(bounce->dev, &bounce->sgt, bounce->direction);
}
