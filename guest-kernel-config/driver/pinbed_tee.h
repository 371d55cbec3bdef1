/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the TEE device share: pinbed_tee.c has clients and their
 * calls, pinbed_tee_shm.c memory that they share with the TEE, and
 * pinbed_tee_heap.c protected memory.
 */
#ifndef PINBED_TEE_H
#define PINBED_TEE_H

#include <linux/xarray.h>

#include "pinbed.h"
#include "pinbed_compat_tee.h"

/**
 * struct pinbed_tee - The TEE device.
 * @pdev: The device, referenced.
 * @dma: Does the DMA of its memory, referenced.
 * @teedev: The TEE subsystem's device.
 * @manager: Allocates for @pool.
 * @pool: Memory that the subsystem allocates for clients.
 * @contexts: Number of the last client.
 * @memories: Memory shared with the TEE, by the address of its struct tee_shm:
 * older kernels have no room for it there.
 * @unregister: Waits for the last user.
 * @heap: Protected memory for the kernel's heap, on kernels that have one.
 * @protected: The heap's buffers by their first page frame.
 */
struct pinbed_tee {
	struct pinbed_device *pdev;
	struct device *dma;
	struct tee_device *teedev;
	struct pinbed_tee_pool manager;
	struct tee_shm_pool *pool;
	atomic64_t contexts;
	struct xarray memories;
	struct work_struct unregister;
#if IS_ENABLED(CONFIG_TEE_DMABUF_HEAPS)
	struct tee_protmem_pool heap;
	struct xarray protected;
#endif
};

static inline struct pinbed_tee *pinbed_tee_of(struct tee_context *ctx)
{
	return tee_get_drvdata(ctx->teedev);
}

/* pinbed_tee_shm.c */

extern const struct pinbed_tee_pool_ops pinbed_tee_pool_ops;

int pinbed_tee_shm_register(struct tee_context *ctx, struct tee_shm *shm,
			    struct page **pages, size_t num_pages,
			    unsigned long start);
int pinbed_tee_shm_unregister(struct tee_context *ctx, struct tee_shm *shm);
int pinbed_tee_shm_handle(struct pinbed_tee *tee, struct tee_shm *shm,
			  u64 *handle);

/* pinbed_tee_heap.c */

#if IS_ENABLED(CONFIG_TEE_DMABUF_HEAPS)
int pinbed_tee_heap_register(struct pinbed_tee *tee);
void pinbed_tee_heap_forget(struct pinbed_tee *tee);
int pinbed_tee_heap_handle(struct pinbed_tee *tee, struct tee_shm *shm,
			   u64 *handle);
#else
static inline int pinbed_tee_heap_register(struct pinbed_tee *tee)
{
	return 0;
}

static inline void pinbed_tee_heap_forget(struct pinbed_tee *tee)
{
}

static inline int pinbed_tee_heap_handle(struct pinbed_tee *tee,
					 struct tee_shm *shm, u64 *handle)
{
	return -EINVAL;
}
#endif

#endif /* PINBED_TEE_H */
