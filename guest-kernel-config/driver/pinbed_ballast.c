// SPDX-License-Identifier: GPL-2.0-only
/*
 * Ballast: unmovable memory that is allocated to leave little free outside CMA, so
 * that movable pages come from CMA.
 */
#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/sched/signal.h>
#include <linux/vmstat.h>

#include "pinbed.h"

/* 2 MiB with pages of 4 KiB: few steps, and every kernel has it. */
#define PINBED_BALLAST_ORDER 9

/* Free pages that GFP_KERNEL may use. */
static unsigned long pinbed_free_pages(void)
{
	unsigned long pages = 0;
	int nid, i;

	for_each_online_node(nid) {
		for (i = 0; i < MAX_NR_ZONES; i++) {
			struct zone *zone = &NODE_DATA(nid)->node_zones[i];
			unsigned long free, cma;

			if (i == ZONE_MOVABLE || !populated_zone(zone))
				continue;
			free = zone_page_state_snapshot(zone, NR_FREE_PAGES);
			cma = zone_page_state_snapshot(zone, NR_FREE_CMA_PAGES);
			if (free > cma)
				pages += free - cma;
		}
	}
	return pages;
}

/*
 * Allocates until @leave bytes outside CMA are free, or the allocator's reserves
 * are reached.
 */
int pinbed_ballast_take(struct pinbed_ballast_pages *ballast, u64 leave)
{
	const gfp_t gfp = GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN;
	unsigned long leave_pages = min_t(u64, leave >> PAGE_SHIFT, ULONG_MAX);
	unsigned int order = PINBED_BALLAST_ORDER;

	for (;;) {
		unsigned long free = pinbed_free_pages();
		struct page *page;

		if (fatal_signal_pending(current))
			return -EINTR;
		if (free <= leave_pages)
			return 0;
		while (order && free - leave_pages < 1UL << order)
			order--;
		page = alloc_pages(gfp, order);
		if (page) {
			set_page_private(page, order);
			list_add(&page->lru, &ballast->pages);
			ballast->bytes += (u64)PAGE_SIZE << order;
		} else if (!order--) {
			return 0;
		}
		cond_resched();
	}
}

void pinbed_ballast_drop(struct pinbed_ballast_pages *ballast)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &ballast->pages, lru) {
		unsigned int order = page_private(page);

		list_del(&page->lru);
		set_page_private(page, 0);
		__free_pages(page, order);
		cond_resched();
	}
	ballast->bytes = 0;
}
