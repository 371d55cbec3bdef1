// SPDX-License-Identifier: GPL-2.0-only
/*
 * Moves the memory of a dma-buf, or takes it away. Importers are told, and the
 * CPU's mappings are removed. The bytes follow at once, or later behind a fence,
 * as where a DMA engine copies them.
 */
#include <linux/dma-fence.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "pinbed_compat_dmabuf.h"
#include "pinbed_export.h"

/**
 * struct pinbed_copy - Bytes on their way to a new place.
 * @fence: Signalled when they have arrived; its last reference frees this.
 * @lock: See below.
 * @work: Copies them.
 * @dmabuf: Whose they are, referenced.
 * @from: The old place, which is freed then.
 * @to: The new place.
 */
struct pinbed_copy {
	struct dma_fence fence;
	/* Of @fence. */
	spinlock_t lock;
	struct delayed_work work;
	struct dma_buf *dmabuf;
	phys_addr_t from;
	phys_addr_t to;
};

static const char *pinbed_fence_driver(struct dma_fence *fence)
{
	return KBUILD_MODNAME;
}

static const char *pinbed_fence_timeline(struct dma_fence *fence)
{
	return "move";
}

static void pinbed_fence_release(struct dma_fence *fence)
{
	dma_fence_free(fence);
	/* A sync_file may have kept the fence for longer than the dma-buf. */
	module_put(THIS_MODULE);
}

static const struct dma_fence_ops pinbed_fence_ops = {
	.get_driver_name = pinbed_fence_driver,
	.get_timeline_name = pinbed_fence_timeline,
	.release = pinbed_fence_release,
};

static void pinbed_copy_now(phys_addr_t to, phys_addr_t from, size_t size)
{
	memcpy(pinbed_carveout_cpu(to), pinbed_carveout_cpu(from), size);
	pinbed_carveout_free(from, size);
}

static void pinbed_copy_work(struct work_struct *work)
{
	struct pinbed_copy *copy = container_of(to_delayed_work(work),
						struct pinbed_copy, work);
	struct pinbed_object *object = copy->dmabuf->priv;

	pinbed_copy_now(copy->to, copy->from, object->size);
	dma_fence_signal(&copy->fence);
	dma_buf_put(copy->dmabuf);
	dma_fence_put(&copy->fence);
}

/* Caller must hold the reservation. */
static int pinbed_copy_later(struct dma_buf *dmabuf, phys_addr_t to,
			     phys_addr_t from)
{
	struct pinbed_copy *copy = pinbed_zalloc_obj(*copy);
	int ret;

	if (!copy)
		return -ENOMEM;
	spin_lock_init(&copy->lock);
	INIT_DELAYED_WORK(&copy->work, pinbed_copy_work);
	copy->from = from;
	copy->to = to;
	__module_get(THIS_MODULE);
	dma_fence_init(&copy->fence, &pinbed_fence_ops, &copy->lock,
		       dma_fence_context_alloc(1), 1);
	ret = pinbed_resv_add_move(dmabuf->resv, &copy->fence);
	if (ret) {
		dma_fence_signal(&copy->fence);
		dma_fence_put(&copy->fence);
		return ret;
	}
	get_dma_buf(dmabuf);
	copy->dmabuf = dmabuf;
	queue_delayed_work(pinbed_wq, &copy->work,
			   msecs_to_jiffies(PINBED_MOVE_FENCE_MS));
	return 0;
}

/* Caller must hold the reservation. When this returns, nobody uses the place. */
static int pinbed_object_evict(struct dma_buf *dmabuf)
{
	pinbed_invalidate_mappings(dmabuf);
	unmap_mapping_range(dmabuf->file->f_mapping, 0, 0, 1);
	/* Those who cannot let go at once have said how long it takes them. */
	return pinbed_resv_wait(dmabuf->resv, true);
}

/* Caller must hold the reservation. */
static int pinbed_object_move(struct dma_buf *dmabuf, u32 flags,
			      phys_addr_t *address)
{
	struct pinbed_object *object = dmabuf->priv;
	int ret;

	dma_resv_assert_held(dmabuf->resv);
	if (object->revoked)
		return -ENODEV;
	if (object->pins)
		return -EBUSY;
	*address = 0;
	if (flags & PINBED_MOVE_REVOKE) {
		ret = pinbed_object_evict(dmabuf);
		if (ret)
			return ret;
		object->revoked = true;
		pinbed_carveout_free(object->address, object->size);
		object->address = 0;
		return 0;
	}

	ret = pinbed_carveout_alloc(object->size, address);
	if (ret)
		return ret;
	ret = pinbed_object_evict(dmabuf);
	if (ret)
		goto free;
	if (flags & PINBED_MOVE_FENCED) {
		ret = pinbed_copy_later(dmabuf, *address, object->address);
		if (ret)
			goto free;
	} else {
		pinbed_copy_now(*address, object->address, object->size);
	}
	object->address = *address;
	return 0;

free:
	pinbed_carveout_free(*address, object->size);
	*address = 0;
	return ret;
}

long pinbed_ioctl_move(struct pinbed_move __user *arg)
{
	struct dma_buf *dmabuf;
	struct pinbed_move move;
	phys_addr_t address = 0;
	long ret = -EINVAL;

	if (copy_from_user(&move, arg, sizeof(move)))
		return -EFAULT;
	if (move.flags && move.flags != PINBED_MOVE_REVOKE &&
	    move.flags != PINBED_MOVE_FENCED)
		return -EINVAL;
	dmabuf = dma_buf_get(move.fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	if (dmabuf->ops == &pinbed_moving_ops) {
		ret = dma_resv_lock_interruptible(dmabuf->resv, NULL);
		if (ret)
			goto put;
		ret = pinbed_object_move(dmabuf, move.flags, &address);
		dma_resv_unlock(dmabuf->resv);
	}
	move.address = address;
	if (!ret && put_user(move.address, &arg->address))
		ret = -EFAULT;
put:
	dma_buf_put(dmabuf);
	return ret;
}
