// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that clients share with the TEE. The device holds it for as long as the
 * kernel keeps it.
 */
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/slab.h>

#include "pinbed_compat_mm.h"
#include "pinbed_tee.h"

/*
 * Shared memory is coherent: trusted applications use it at any time between
 * attaching and detaching, and it may be registered more than once.
 */
#define PINBED_TEE_DMA_ATTRS DMA_ATTR_SKIP_CPU_SYNC

/**
 * struct pinbed_tee_memory - Memory shared with the TEE.
 * @sgt: Its pages.
 * @hold: The device's hold on it.
 */
struct pinbed_tee_memory {
	struct sg_table sgt;
	struct pinbed_hold *hold;
};

/* Takes over @memory->sgt, also on error. */
static int pinbed_tee_share(struct pinbed_tee *tee, struct tee_shm *shm,
			    struct pinbed_tee_memory *memory)
{
	int ret;

	memory->hold = pinbed_hold_map(tee->pdev, tee->dma, &memory->sgt,
				       shm->size, PINBED_DIRECTION_BOTH,
				       PINBED_TEE_DMA_ATTRS);
	if (IS_ERR(memory->hold)) {
		ret = PTR_ERR(memory->hold);
		goto free_table;
	}
	ret = xa_err(xa_store(&tee->memories, (unsigned long)shm, memory,
			      GFP_KERNEL));
	if (ret)
		goto end_hold;
	return 0;

end_hold:
	pinbed_hold_end(memory->hold);
free_table:
	sg_free_table(&memory->sgt);
	return ret;
}

static void pinbed_tee_unshare(struct pinbed_tee *tee, struct tee_shm *shm)
{
	struct pinbed_tee_memory *memory;

	memory = xa_erase(&tee->memories, (unsigned long)shm);
	pinbed_hold_end(memory->hold);
	sg_free_table(&memory->sgt);
	kfree(memory);
}

int pinbed_tee_shm_register(struct tee_context *ctx, struct tee_shm *shm,
			    struct page **pages, size_t num_pages,
			    unsigned long start)
{
	struct pinbed_tee *tee = pinbed_tee_of(ctx);
	struct pinbed_tee_memory *memory;
	int ret;

	if (!shm->size)
		return -EINVAL;
	if (num_pages > UINT_MAX)
		return -E2BIG;
	memory = pinbed_zalloc_obj(*memory);
	if (!memory)
		return -ENOMEM;
	ret = pinbed_sg_from_pages(&memory->sgt, pages, num_pages, shm->offset,
				   shm->size, pinbed_max_segment(tee->dma));
	if (!ret)
		ret = pinbed_tee_share(tee, shm, memory);
	if (ret)
		kfree(memory);
	else if (shm->flags & TEE_SHM_USER_MAPPED)
		pinbed_hold_expect_pins(memory->hold, &memory->sgt);
	return ret;
}

int pinbed_tee_shm_unregister(struct tee_context *ctx, struct tee_shm *shm)
{
	pinbed_tee_unshare(pinbed_tee_of(ctx), shm);
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
	*handle = memory->hold->handle;
	return 0;
}

/* The scatterlist of contiguous pages, in segments that the DMA device takes. */
static int pinbed_tee_sg_contiguous(struct sg_table *sgt, void *vaddr,
				    size_t length, unsigned int max_segment)
{
	struct scatterlist *sg;
	unsigned int i;
	int ret;

	ret = sg_alloc_table(sgt, DIV_ROUND_UP(length, max_segment), GFP_KERNEL);
	if (ret)
		return ret;
	for_each_sgtable_sg(sgt, sg, i) {
		size_t piece = min_t(size_t, length, max_segment);

		sg_set_buf(sg, vaddr, piece);
		vaddr += piece;
		length -= piece;
	}
	return 0;
}

static int pinbed_tee_pool_alloc(struct pinbed_tee_pool *manager,
				 struct tee_shm *shm, PINBED_TEE_POOL_SIZE)
{
	struct pinbed_tee *tee = manager->private_data;
	struct pinbed_tee_memory *memory;
	int ret = -ENOMEM;

	if (!size)
		return -EINVAL;
	/* A client may ask for any size; more than this cannot be contiguous. */
	if (size > INT_MAX)
		return -ENOMEM;
	memory = pinbed_zalloc_obj(*memory);
	if (!memory)
		return -ENOMEM;
	shm->size = PAGE_ALIGN(size);
	shm->kaddr = alloc_pages_exact(shm->size,
				       GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN);
	if (!shm->kaddr)
		goto free;
	shm->paddr = virt_to_phys(shm->kaddr);
	ret = pinbed_tee_sg_contiguous(&memory->sgt, shm->kaddr, shm->size,
				       pinbed_max_segment(tee->dma));
	if (!ret)
		ret = pinbed_tee_share(tee, shm, memory);
	if (ret)
		goto free_pages;
	return 0;

free_pages:
	free_pages_exact(shm->kaddr, shm->size);
free:
	kfree(memory);
	return ret;
}

static void pinbed_tee_pool_free(struct pinbed_tee_pool *manager,
				 struct tee_shm *shm)
{
	pinbed_tee_unshare(manager->private_data, shm);
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
