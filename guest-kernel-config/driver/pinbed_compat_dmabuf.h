/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The dma-buf interfaces of the newest kernel for those from 5.10 on.
 */
#ifndef PINBED_COMPAT_DMABUF_H
#define PINBED_COMPAT_DMABUF_H

#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/module.h>

#ifdef PINBED_HAVE_IMPORT_NS_STRING
#define PINBED_IMPORT_NS_DMA_BUF MODULE_IMPORT_NS("DMA_BUF")
#else
#define PINBED_IMPORT_NS_DMA_BUF MODULE_IMPORT_NS(DMA_BUF)
#endif

/* For the initializer of a struct dma_buf_attach_ops. */
#ifdef PINBED_HAVE_INVALIDATE_MAPPINGS
#define PINBED_INVALIDATE_OP(function) .invalidate_mappings = (function)
#else
#define PINBED_INVALIDATE_OP(function) .move_notify = (function)
#endif

static inline void pinbed_invalidate_mappings(struct dma_buf *dmabuf)
{
#ifdef PINBED_HAVE_INVALIDATE_MAPPINGS
	dma_buf_invalidate_mappings(dmabuf);
#else
	dma_buf_move_notify(dmabuf);
#endif
}

/* Before 6.2, map and unmap are called without the lock for static importers. */
static inline void pinbed_assert_map_locked(struct dma_buf_attachment *attach)
{
#ifdef PINBED_HAVE_MAP_UNLOCKED
	dma_resv_assert_held(attach->dmabuf->resv);
#endif
}

/*
 * Waits for those who still fill or move the memory, or for all who use it.
 * Returns -ERESTARTSYS when interrupted.
 */
static inline int pinbed_resv_wait(struct dma_resv *resv, bool all)
{
	long ret;

#if defined(PINBED_HAVE_RESV_USAGE)
	ret = dma_resv_wait_timeout(resv, all ? DMA_RESV_USAGE_BOOKKEEP :
						DMA_RESV_USAGE_KERNEL,
				    true, MAX_SCHEDULE_TIMEOUT);
#elif defined(PINBED_HAVE_RESV_WAIT_RCU)
	ret = dma_resv_wait_timeout_rcu(resv, all, true, MAX_SCHEDULE_TIMEOUT);
#else
	ret = dma_resv_wait_timeout(resv, all, true, MAX_SCHEDULE_TIMEOUT);
#endif
	return ret < 0 ? ret : 0;
}

/* Adds the fence of a move. Caller must hold the reservation. */
static inline int pinbed_resv_add_move(struct dma_resv *resv,
				       struct dma_fence *fence)
{
#ifdef PINBED_HAVE_RESV_USAGE
	int ret = dma_resv_reserve_fences(resv, 1);

	if (ret)
		return ret;
	dma_resv_add_fence(resv, fence, DMA_RESV_USAGE_KERNEL);
#else
	dma_resv_add_excl_fence(resv, fence);
#endif
	return 0;
}

#endif /* PINBED_COMPAT_DMABUF_H */
