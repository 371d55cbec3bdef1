/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the TEE device share: pinbed_tee.c has clients and their
 * calls, pinbed_tee_shm.c the memory that they share with the device, and
 * pinbed_tee_heap.c memory that they do not get to see.
 */
#ifndef PINBED_TEE_H
#define PINBED_TEE_H

#include <linux/xarray.h>

#include "pinbed.h"
#include "pinbed_compat_tee.h"

/**
 * struct pinbed_tee - The TEE device.
 * @pdev: The device behind it.
 * @teedev: What the TEE subsystem makes of it.
 * @manager: Allocates for @pool.
 * @pool: Where the subsystem has memory from that clients do not bring along.
 * @contexts: How many clients there were, which is the last one's number.
 * @memories: What pinbed_tee_shm.c has for each struct tee_shm, by its address:
 * older kernels have no room for that in it.
 * @heap: Protected memory for the kernel's heap, on kernels that have one.
 * @protected: The heap's buffers by their first page frame.
 */
struct pinbed_tee {
	struct pinbed_device *pdev;
	struct tee_device *teedev;
	struct pinbed_tee_pool manager;
	struct tee_shm_pool *pool;
	atomic64_t contexts;
	struct xarray memories;
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
int pinbed_tee_heap_handle(struct pinbed_tee *tee, struct tee_shm *shm,
			   u64 *handle);
#else
static inline int pinbed_tee_heap_register(struct pinbed_tee *tee)
{
	return 0;
}

static inline int pinbed_tee_heap_handle(struct pinbed_tee *tee,
					 struct tee_shm *shm, u64 *handle)
{
	return -EINVAL;
}
#endif

#endif /* PINBED_TEE_H */
