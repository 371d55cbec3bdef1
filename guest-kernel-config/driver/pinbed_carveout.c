// SPDX-License-Identifier: GPL-2.0-only
/*
 * A range of memory that the kernel does not manage, so that it has no struct
 * pages: what a board's firmware or its device tree keeps aside for devices.
 */
#include <linux/bitmap.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/string.h>

#include "pinbed_export.h"

static char *carveout;
module_param(carveout, charp, 0444);
MODULE_PARM_DESC(carveout, "SIZE@START of memory that memmap=SIZE$START keeps from the kernel");

/* Freed memory is filled with this, so that a late reader is seen. */
#define PINBED_CARVEOUT_STALE 0xdb

static phys_addr_t pinbed_carveout_start;
static void *pinbed_carveout_vaddr;
static unsigned long pinbed_carveout_pages;
static unsigned long *pinbed_carveout_map;
/* Protects the map. */
static DEFINE_MUTEX(pinbed_carveout_lock);

static int pinbed_carveout_parse(phys_addr_t *start, u64 *size)
{
	char *end;

	*size = memparse(carveout, &end);
	if (*end != '@')
		return -EINVAL;
	*start = memparse(end + 1, &end);
	if (*end || !*size || !PAGE_ALIGNED(*size) || !PAGE_ALIGNED(*start))
		return -EINVAL;
	/* Its pages must be nobody else's. */
	if (region_intersects(*start, *size, IORESOURCE_SYSTEM_RAM,
			      IORES_DESC_NONE) != REGION_DISJOINT)
		return -EBUSY;
	return 0;
}

/* Without the parameter there is no carveout to allocate from. */
int pinbed_carveout_init(void)
{
	phys_addr_t start;
	u64 size;
	int ret;

	if (!carveout)
		return 0;
	ret = pinbed_carveout_parse(&start, &size);
	if (ret) {
		pr_err("carveout=%s: %s; boot with memmap=SIZE$START\n", carveout,
		       ret == -EBUSY ? "is memory that the kernel uses" :
				       "is not SIZE@START in whole pages");
		return ret;
	}
	pinbed_carveout_map = bitmap_zalloc(size >> PAGE_SHIFT, GFP_KERNEL);
	if (!pinbed_carveout_map)
		return -ENOMEM;
	pinbed_carveout_vaddr = memremap(start, size, MEMREMAP_WB);
	if (!pinbed_carveout_vaddr) {
		bitmap_free(pinbed_carveout_map);
		return -ENOMEM;
	}
	pinbed_carveout_start = start;
	pinbed_carveout_pages = size >> PAGE_SHIFT;
	return 0;
}

void pinbed_carveout_exit(void)
{
	if (!pinbed_carveout_pages)
		return;
	memunmap(pinbed_carveout_vaddr);
	bitmap_free(pinbed_carveout_map);
}

void *pinbed_carveout_cpu(phys_addr_t address)
{
	return pinbed_carveout_vaddr + (address - pinbed_carveout_start);
}

/*
 * Allocates whole pages, which are zero; @length is a multiple of the page size.
 * -ENODEV stands for no carveout at all.
 */
int pinbed_carveout_alloc(size_t length, phys_addr_t *address)
{
	unsigned long first, count = length >> PAGE_SHIFT;
	int ret = -ENOMEM;

	if (!pinbed_carveout_pages)
		return -ENODEV;
	/* The bitmap's functions take fewer than that many bits. */
	if (count > pinbed_carveout_pages)
		return -ENOMEM;
	mutex_lock(&pinbed_carveout_lock);
	first = bitmap_find_next_zero_area(pinbed_carveout_map,
					   pinbed_carveout_pages, 0, count, 0);
	if (first < pinbed_carveout_pages) {
		bitmap_set(pinbed_carveout_map, first, count);
		*address = pinbed_carveout_start + PFN_PHYS(first);
		memset(pinbed_carveout_cpu(*address), 0, length);
		ret = 0;
	}
	mutex_unlock(&pinbed_carveout_lock);
	return ret;
}

void pinbed_carveout_free(phys_addr_t address, size_t length)
{
	memset(pinbed_carveout_cpu(address), PINBED_CARVEOUT_STALE, length);
	mutex_lock(&pinbed_carveout_lock);
	bitmap_clear(pinbed_carveout_map,
		     PHYS_PFN(address - pinbed_carveout_start),
		     length >> PAGE_SHIFT);
	mutex_unlock(&pinbed_carveout_lock);
}
