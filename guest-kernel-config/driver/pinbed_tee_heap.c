// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's heap of protected memory, /dev/dma_heap/protected,secure-video.
 * Its dma-bufs can be registered with the TEE and imported by the video nodes.
 */
#include <linux/atomic.h>
#include <linux/err.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pfn.h>
#include <linux/virtio_config.h>

#include "pinbed_protected.h"
#include "pinbed_tee.h"

static struct pinbed_tee *pinbed_tee_of_heap(struct tee_protmem_pool *pool)
{
	return container_of(pool, struct pinbed_tee, heap);
}

static unsigned long pinbed_heap_key(struct sg_table *sgt)
{
	return PHYS_PFN(sg_phys(sgt->sgl));
}

static int pinbed_heap_alloc(struct tee_protmem_pool *pool,
			     struct sg_table *sgt, size_t size, size_t *offs)
{
	struct pinbed_tee *tee = pinbed_tee_of_heap(pool);
	struct pinbed_protected *protected;
	int ret;

	/* The dma-buf is the subsystem's, so it does not pin this module. */
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;
	protected = pinbed_protected_new(tee->pdev, tee->dma, size);
	if (IS_ERR(protected)) {
		ret = PTR_ERR(protected);
		goto put_module;
	}
	ret = sg_alloc_table(sgt, 1, GFP_KERNEL);
	if (ret)
		goto free;
	sg_set_page(sgt->sgl, protected->page, size, 0);
	ret = xa_err(xa_store(&tee->protected, pinbed_heap_key(sgt), protected,
			      GFP_KERNEL));
	if (ret)
		goto free_table;
	*offs = 0;
	return 0;

free_table:
	sg_free_table(sgt);
free:
	pinbed_protected_free(protected);
put_module:
	module_put(THIS_MODULE);
	return ret;
}

static void pinbed_heap_free(struct tee_protmem_pool *pool,
			     struct sg_table *sgt)
{
	struct pinbed_tee *tee = pinbed_tee_of_heap(pool);

	pinbed_protected_free(xa_erase(&tee->protected, pinbed_heap_key(sgt)));
	sg_free_table(sgt);
	/* Module exit waits for the heap's last buffer, and this is one. */
	module_put(THIS_MODULE);
}

/* No buffer is part of a larger one. */
static int pinbed_heap_update_shm(struct tee_protmem_pool *pool,
				  struct sg_table *sgt, size_t offs,
				  struct tee_shm *shm,
				  struct tee_shm **parent_shm)
{
	shm->paddr = sg_phys(sgt->sgl);
	*parent_shm = NULL;
	return 0;
}

static void pinbed_heap_destroy(struct tee_protmem_pool *pool)
{
}

static const struct tee_protmem_pool_ops pinbed_heap_ops = {
	.alloc = pinbed_heap_alloc,
	.free = pinbed_heap_free,
	.update_shm = pinbed_heap_update_shm,
	.destroy_pool = pinbed_heap_destroy,
};

/* Whose the heap is: the kernel has one of them, whatever the number of TEEs. */
static struct pinbed_tee *pinbed_heap_owner;

/*
 * No error if the heap is another device's, of a former binding that is still
 * used, or of another driver.
 */
int pinbed_tee_heap_register(struct pinbed_tee *tee)
{
	int ret;

	if (!tee->pdev->can_protect)
		return 0;
	tee->heap.ops = &pinbed_heap_ops;
	xa_init(&tee->protected);
	if (cmpxchg(&pinbed_heap_owner, NULL, tee))
		return 0;
	ret = tee_device_register_dma_heap(tee->teedev,
					   TEE_DMA_HEAP_SECURE_VIDEO_PLAY,
					   &tee->heap);
	if (ret)
		pinbed_tee_heap_forget(tee);
	return ret == -EBUSY ? 0 : ret;
}

/* The TEE subsystem has taken the heap back, if it was this one's. */
void pinbed_tee_heap_forget(struct pinbed_tee *tee)
{
	cmpxchg(&pinbed_heap_owner, tee, NULL);
}

/* The device's name for a registered dma-buf, which the caller holds on to. */
int pinbed_tee_heap_handle(struct pinbed_tee *tee, struct tee_shm *shm,
			   u64 *handle)
{
	const struct pinbed_protected *protected;

	if (!(shm->flags & TEE_SHM_DMA_BUF))
		return -EINVAL;
	protected = xa_load(&tee->protected, PHYS_PFN(shm->paddr));
	if (!protected)
		return -EINVAL;
	*handle = protected->hold->handle;
	return 0;
}
