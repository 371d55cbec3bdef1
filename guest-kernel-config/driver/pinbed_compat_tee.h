/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * As pinbed_compat.h, for the TEE subsystem.
 */
#ifndef PINBED_COMPAT_TEE_H
#define PINBED_COMPAT_TEE_H

#include <linux/tee_drv.h>

#ifdef PINBED_HAVE_TEE_CORE
#include <linux/tee_core.h>
#endif

#ifdef PINBED_HAVE_TEE_POOL_MGR
/* A pool is made of two managers, for private and for shared memory. */
#define pinbed_tee_pool tee_shm_pool_mgr
#define pinbed_tee_pool_ops tee_shm_pool_mgr_ops
#define PINBED_TEE_POOL_SIZE size_t size
#define PINBED_TEE_POOL_DESTROY destroy_poolmgr

static inline struct tee_shm_pool *
pinbed_tee_pool_new(struct tee_shm_pool_mgr *manager)
{
	return tee_shm_pool_alloc(manager, manager);
}
#else
#define pinbed_tee_pool tee_shm_pool
#define pinbed_tee_pool_ops tee_shm_pool_ops
#define PINBED_TEE_POOL_SIZE size_t size, size_t align
#define PINBED_TEE_POOL_DESTROY destroy_pool

static inline struct tee_shm_pool *
pinbed_tee_pool_new(struct tee_shm_pool *manager)
{
	return manager;
}
#endif

/* Older kernels tell of a closed file only when its memory is gone, too. */
#ifdef PINBED_HAVE_TEE_CLOSE_CONTEXT
#define PINBED_TEE_CLOSE_CONTEXT_OPS			\
	.close_context = pinbed_tee_close_context,
#else
#define PINBED_TEE_CLOSE_CONTEXT_OPS
#endif

#endif /* PINBED_COMPAT_TEE_H */
