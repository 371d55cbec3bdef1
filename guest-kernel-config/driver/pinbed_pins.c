// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pages behind a hold have to stay pinned until the device has let go of
 * them. Whoever holds memory that others pin says so with pinbed_hold_expect_pins();
 * pinbed_hold_end() then looks at each page that was pinned at the beginning.
 */
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "pinbed.h"
#include "pinbed_compat_mm.h"

/**
 * struct pinbed_pins - Pages that were pinned when a hold began.
 * @count: How many.
 * @frames: Their page frame numbers.
 */
struct pinbed_pins {
	unsigned int count;
	unsigned long frames[];
};

/* Not of the zero page, whose pins are not counted, nor of other reserved ones. */
static bool pinbed_is_pinned(unsigned long frame)
{
	struct page *page;

	if (!pfn_valid(frame))
		return false;
	page = pfn_to_page(frame);
	return !PageReserved(page) && pinbed_page_is_pinned(page);
}

static struct pinbed_pins *pinbed_pins_new(size_t pages)
{
	return kvmalloc(struct_size((struct pinbed_pins *)NULL, frames, pages),
			GFP_KERNEL | __GFP_ZERO);
}

static void pinbed_pins_add(struct pinbed_pins *pins, unsigned long frame)
{
	if (pinbed_is_pinned(frame))
		pins->frames[pins->count++] = frame;
}

/*
 * The pages of a scatterlist, which somebody has pinned for the hold. Where there
 * is no memory to remember them the hold ends without a look at them.
 */
void pinbed_hold_expect_pins(struct pinbed_hold *hold, struct sg_table *sgt)
{
	struct pinbed_pins *pins;
	struct sg_page_iter iter;
	size_t pages = 0;

	for_each_sgtable_page(sgt, &iter, 0)
		pages++;
	pins = pinbed_pins_new(pages);
	if (!pins)
		return;
	for_each_sgtable_page(sgt, &iter, 0)
		pinbed_pins_add(pins, page_to_pfn(sg_page_iter_page(&iter)));
	hold->pins = pins;
}

/* As pinbed_hold_expect_pins(), of contiguous pages. */
void pinbed_hold_expect_pins_at(struct pinbed_hold *hold, phys_addr_t address,
				size_t length)
{
	unsigned long frame = PHYS_PFN(address);
	unsigned long end = PHYS_PFN(address + length - 1) + 1;
	struct pinbed_pins *pins = pinbed_pins_new(end - frame);

	if (!pins)
		return;
	for (; frame < end; frame++)
		pinbed_pins_add(pins, frame);
	hold->pins = pins;
}

/* As pinbed_hold_expect_pins(), of pages that are mapped at a kernel address. */
void pinbed_hold_expect_pins_mapped(struct pinbed_hold *hold, const void *vaddr,
				    size_t length)
{
	size_t i, pages = DIV_ROUND_UP(offset_in_page(vaddr) + length, PAGE_SIZE);
	struct pinbed_pins *pins = pinbed_pins_new(pages);

	if (!pins)
		return;
	vaddr -= offset_in_page(vaddr);
	for (i = 0; i < pages; i++)
		pinbed_pins_add(pins, vmalloc_to_pfn(vaddr + i * PAGE_SIZE));
	hold->pins = pins;
}

/* The device has just let go of them, and nobody may have unpinned them yet. */
void pinbed_hold_check_pins(struct pinbed_hold *hold)
{
	unsigned int i, lost = 0;
	unsigned long first = 0;

	if (!hold->pins)
		return;
	for (i = 0; i < hold->pins->count; i++) {
		if (pinbed_is_pinned(hold->pins->frames[i]))
			continue;
		if (!lost++)
			first = hold->pins->frames[i];
	}
	if (lost)
		pr_warn("WARNING: pinbed: %u of %u pages were unpinned while the device held them, the first is frame %#lx\n",
			lost, hold->pins->count, first);
	kvfree(hold->pins);
	hold->pins = NULL;
}
