// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that the TEE's clients share with it: the device holds it for exactly
 * as long as the kernel does.
 */
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/slab.h>

#include "pinbed_tee.h"

/*
 * Shared memory is coherent: trusted applications use it at any time between
 * attaching and detaching, and it may be registered more than once.
 */
#define PINBED_TEE_DMA_ATTRS DMA_ATTR_SKIP_CPU_SYNC

/**
 * struct pinbed_tee_memory - Memory shared with the TEE.
 * @sgt: Its pages, mapped for the device.
 * @att: The device's hold on it.
 */
struct pinbed_tee_memory {
	struct sg_table sgt;
	struct pinbed_attachment *att;
};

/* Maps what is in @memory->sgt and has the device hold it. */
static int pinbed_tee_give(struct pinbed_tee *tee, struct tee_shm *shm,
			   struct pinbed_tee_memory *memory)
{
	struct device *parent = tee->pdev->vdev->dev.parent;
	int ret;

	ret = dma_map_sgtable(parent, &memory->sgt, DMA_BIDIRECTIONAL,
			      PINBED_TEE_DMA_ATTRS);
	if (ret)
		return ret;
	memory->att = pinbed_attach(tee->pdev, &memory->sgt, shm->size,
				    PINBED_DIRECTION_BOTH, 0);
	if (IS_ERR(memory->att)) {
		ret = PTR_ERR(memory->att);
		goto unmap;
	}
	ret = xa_err(xa_store(&tee->memories, (unsigned long)shm, memory,
			      GFP_KERNEL));
	if (ret)
		goto detach;
	return 0;

detach:
	pinbed_detach(tee->pdev, memory->att);
unmap:
	dma_unmap_sgtable(parent, &memory->sgt, DMA_BIDIRECTIONAL,
			  PINBED_TEE_DMA_ATTRS);
	return ret;
}

static void pinbed_tee_take_back(struct pinbed_tee *tee, struct tee_shm *shm)
{
	struct device *parent = tee->pdev->vdev->dev.parent;
	struct pinbed_tee_memory *memory;

	memory = xa_erase(&tee->memories, (unsigned long)shm);
	pinbed_detach(tee->pdev, memory->att);
	dma_unmap_sgtable(parent, &memory->sgt, DMA_BIDIRECTIONAL,
			  PINBED_TEE_DMA_ATTRS);
	sg_free_table(&memory->sgt);
	kfree(memory);
}

static int pinbed_tee_share(struct pinbed_tee *tee, struct tee_shm *shm,
			    struct page **pages, size_t count)
{
	struct pinbed_tee_memory *memory;
	int ret;

	if (!shm->size)
		return -EINVAL;
	memory = kzalloc(sizeof(*memory), GFP_KERNEL);
	if (!memory)
		return -ENOMEM;
	ret = sg_alloc_table_from_pages(&memory->sgt, pages, count, shm->offset,
					shm->size, GFP_KERNEL);
	if (ret)
		goto free;
	ret = pinbed_tee_give(tee, shm, memory);
	if (ret)
		goto free_table;
	return 0;

free_table:
	sg_free_table(&memory->sgt);
free:
	kfree(memory);
	return ret;
}

int pinbed_tee_shm_register(struct tee_context *ctx, struct tee_shm *shm,
			    struct page **pages, size_t num_pages,
			    unsigned long start)
{
	return pinbed_tee_share(pinbed_tee_of(ctx), shm, pages, num_pages);
}

int pinbed_tee_shm_unregister(struct tee_context *ctx, struct tee_shm *shm)
{
	pinbed_tee_take_back(pinbed_tee_of(ctx), shm);
	return 0;
}

/* The device's name for @shm, which the caller holds on to. */
int pinbed_tee_shm_handle(struct pinbed_tee *tee, struct tee_shm *shm,
			  u64 *handle)
{
	const struct pinbed_tee_memory *memory;

	memory = xa_load(&tee->memories, (unsigned long)shm);
	if (!memory)
		return pinbed_tee_heap_handle(tee, shm, handle);
	*handle = memory->att->handle;
	return 0;
}

static int pinbed_tee_pool_alloc(struct pinbed_tee_pool *manager,
				 struct tee_shm *shm, PINBED_TEE_POOL_SIZE)
{
	size_t i, count = DIV_ROUND_UP(size, PAGE_SIZE);
	struct page **pages;
	void *vaddr;
	int ret;

	if (!count)
		return -EINVAL;
	/* A client may ask for any size. */
	pages = kvmalloc_array(count, sizeof(*pages),
			       GFP_KERNEL | __GFP_NOWARN);
	if (!pages)
		return -ENOMEM;
	vaddr = alloc_pages_exact(count * PAGE_SIZE,
				  GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN);
	if (!vaddr) {
		ret = -ENOMEM;
		goto free_pages;
	}
	for (i = 0; i < count; i++)
		pages[i] = virt_to_page(vaddr + i * PAGE_SIZE);

	shm->kaddr = vaddr;
	shm->paddr = virt_to_phys(vaddr);
	shm->size = count * PAGE_SIZE;
	ret = pinbed_tee_share(manager->private_data, shm, pages, count);
	if (ret)
		free_pages_exact(vaddr, shm->size);
free_pages:
	kvfree(pages);
	return ret;
}

static void pinbed_tee_pool_free(struct pinbed_tee_pool *manager,
				 struct tee_shm *shm)
{
	pinbed_tee_take_back(manager->private_data, shm);
	free_pages_exact(shm->kaddr, shm->size);
}

static void pinbed_tee_pool_destroy(struct pinbed_tee_pool *manager)
{
}

const struct pinbed_tee_pool_ops pinbed_tee_pool_ops = {
	.alloc = pinbed_tee_pool_alloc,
	.free = pinbed_tee_pool_free,
	.PINBED_TEE_POOL_DESTROY = pinbed_tee_pool_destroy,
};
