/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The interfaces of the newest kernel's memory management and scatterlists for
 * those from 5.10 on.
 */
#ifndef PINBED_COMPAT_MM_H
#define PINBED_COMPAT_MM_H

#include <linux/err.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

/* Memory for an object like this one, zeroed. May sleep. */
#ifdef PINBED_HAVE_KZALLOC_OBJ
#define pinbed_zalloc_obj(obj) kzalloc_obj(obj)
#else
#define pinbed_zalloc_obj(obj) kzalloc(sizeof(obj), GFP_KERNEL)
#endif

#ifndef PINBED_HAVE_VM_FLAGS_SET
static inline void vm_flags_set(struct vm_area_struct *vma, unsigned long flags)
{
	vma->vm_flags |= flags;
}
#endif

/* Always a special entry, where the architecture has these. */
#ifdef PINBED_HAVE_PFN_T
#include <linux/pfn_t.h>

static inline vm_fault_t pinbed_insert_mixed(struct vm_area_struct *vma,
					     unsigned long address,
					     unsigned long pfn)
{
	return vmf_insert_mixed(vma, address, __pfn_to_pfn_t(pfn, PFN_DEV));
}
#else
static inline vm_fault_t pinbed_insert_mixed(struct vm_area_struct *vma,
					     unsigned long address,
					     unsigned long pfn)
{
	return vmf_insert_mixed(vma, address, pfn);
}
#endif

static inline bool pinbed_page_is_pinned(struct page *page)
{
#ifdef PINBED_HAVE_FOLIO_PINNED
	return folio_maybe_dma_pinned(page_folio(page));
#else
	return page_maybe_dma_pinned(page);
#endif
}

/* As sg_alloc_table_from_pages_segment(). */
static inline int pinbed_sg_from_pages(struct sg_table *sgt,
				       struct page **pages, unsigned int count,
				       unsigned int offset, unsigned long size,
				       unsigned int max_segment)
{
#ifdef PINBED_HAVE_SG_SEGMENT
	return sg_alloc_table_from_pages_segment(sgt, pages, count, offset, size,
						 max_segment, GFP_KERNEL);
#else
	return PTR_ERR_OR_ZERO(__sg_alloc_table_from_pages(sgt, pages, count,
							   offset, size,
							   max_segment, NULL, 0,
							   GFP_KERNEL));
#endif
}

#endif /* PINBED_COMPAT_MM_H */
