// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that the device holds. A hold ends when the device has acknowledged
 * DETACH, or has been reset; on every other outcome it is reset. So memory that
 * is freed after pinbed_hold_end() is out of the device's reach.
 */
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/slab.h>

#include "pinbed.h"
#include "pinbed_trace.h"

static struct pinbed_hold *pinbed_hold_new(struct pinbed_device *pdev)
{
	struct pinbed_hold *hold = pinbed_zalloc_obj(*hold);

	if (!hold)
		return NULL;
	hold->detach = pinbed_request_new(sizeof(struct pinbed_detach_request),
					  sizeof(struct pinbed_response_header));
	if (!hold->detach) {
		kfree(hold);
		return NULL;
	}
	INIT_LIST_HEAD(&hold->entry);
	hold->pdev = pinbed_device_get(pdev);
	return hold;
}

static void pinbed_hold_free(struct pinbed_hold *hold)
{
	pinbed_request_put(hold->detach);
	pinbed_device_put(hold->pdev);
	kfree(hold);
}

/*
 * Number of segments that make up the first @length bytes, or
 * -PINBED_ESHORT if there are fewer bytes.
 */
static int pinbed_count_segments(struct sg_table *sgt, u64 length)
{
	struct scatterlist *sg;
	int i, count = 0;

	for_each_sgtable_dma_sg(sgt, sg, i) {
		u64 piece = min_t(u64, sg_dma_len(sg), length);

		if (!length)
			break;
		if (piece)
			count++;
		length -= piece;
	}
	return length ? -PINBED_ESHORT : count;
}

static void pinbed_fill_segments(struct pinbed_segment *segment,
				 struct sg_table *sgt, u64 length)
{
	struct scatterlist *sg;
	int i;

	for_each_sgtable_dma_sg(sgt, sg, i) {
		u64 piece = min_t(u64, sg_dma_len(sg), length);

		if (!length)
			break;
		if (!piece)
			continue;
		segment->address = cpu_to_le64(sg_dma_address(sg));
		segment->length = cpu_to_le64(piece);
		segment++;
		length -= piece;
	}
}

/* Zero if the device holds the memory, and will until it is told otherwise. */
static int pinbed_hold_attach(struct pinbed_hold *hold,
			      struct pinbed_request *req)
{
	const struct pinbed_attach_response *response = req->response;
	struct pinbed_device *pdev = hold->pdev;
	int ret;

	ret = pinbed_request_submit(pdev, PINBED_QUEUE_CONTROL, req);
	if (ret)
		return ret;
	wait_for_completion(&req->answer);
	ret = pinbed_request_result(req, sizeof(*response));
	hold->handle = le64_to_cpu(response->handle);
	if (ret == -EPROTO || (!ret && !hold->handle)) {
		/* It may hold the memory or not. */
		dev_err_ratelimited(&pdev->vdev->dev,
				    "malformed answer to ATTACH: given up until it is bound again\n");
		pinbed_device_kill(pdev);
		return -ENODEV;
	}
	if (ret)
		return ret;

	spin_lock_irq(&pdev->lock);
	if (pdev->dead)
		ret = -ENODEV;
	else
		list_add_tail(&hold->entry, &pdev->holds);
	spin_unlock_irq(&pdev->lock);
	/* Wait until it has been reset. */
	if (ret)
		pinbed_device_kill(pdev);
	return ret;
}

/*
 * Has the device hold the first @length bytes of a mapped scatterlist: what
 * follows is not its owner's (page rounding) or not wanted (a longer dma-buf).
 * @flags are PINBED_ATTACH_*. -E2BIG and -ENOSPC stand for limits of the device.
 */
struct pinbed_hold *pinbed_hold_begin(struct pinbed_device *pdev,
				      struct sg_table *sgt, u64 length,
				      u32 direction, u32 flags)
{
	struct pinbed_attach_request *attach;
	struct pinbed_request *req;
	struct pinbed_hold *hold;
	int count, ret;

	count = pinbed_count_segments(sgt, length);
	if (count < 0)
		return ERR_PTR(count);
	if (!count)
		return ERR_PTR(-EINVAL);
	if (count > pdev->max_segments || length > pdev->max_length)
		return ERR_PTR(-E2BIG);

	hold = pinbed_hold_new(pdev);
	if (!hold)
		return ERR_PTR(-ENOMEM);
	req = pinbed_request_new(sizeof(*attach) +
				 count * sizeof(struct pinbed_segment),
				 sizeof(struct pinbed_attach_response));
	if (!req) {
		ret = -ENOMEM;
		goto free;
	}

	pinbed_request_init(pdev, req, PINBED_OP_ATTACH);
	attach = req->request;
	attach->direction = cpu_to_le32(direction);
	attach->segment_count = cpu_to_le32(count);
	attach->length = cpu_to_le64(length);
	attach->flags = cpu_to_le32(flags);
	pinbed_fill_segments((struct pinbed_segment *)(attach + 1), sgt, length);

	ret = pinbed_hold_attach(hold, req);
	pinbed_request_put(req);
	if (ret)
		goto free;
	trace_pinbed_hold(hold->handle, length, count, direction);
	return hold;

free:
	pinbed_hold_free(hold);
	return ERR_PTR(ret);
}

/* As pinbed_hold_begin(), of memory that is one piece for the device. */
struct pinbed_hold *pinbed_hold_contiguous(struct pinbed_device *pdev,
					   dma_addr_t address, u64 length,
					   u32 direction, u32 flags)
{
	struct scatterlist sg;
	struct sg_table sgt = { .sgl = &sg, .nents = 1, .orig_nents = 1 };

	if (length > UINT_MAX)
		return ERR_PTR(-E2BIG);
	sg_init_table(&sg, 1);
	sg_dma_address(&sg) = address;
	sg_dma_len(&sg) = length;
	return pinbed_hold_begin(pdev, &sgt, length, direction, flags);
}

/*
 * As pinbed_hold_begin(), of a scatterlist that is mapped here, and unmapped when
 * the hold ends; it must live that long.
 */
struct pinbed_hold *pinbed_hold_map(struct pinbed_device *pdev,
				    struct device *dev, struct sg_table *sgt,
				    u64 length, u32 direction,
				    unsigned long attrs)
{
	enum dma_data_direction dma_direction = pinbed_dma_direction(direction);
	struct pinbed_hold *hold;
	int ret;

	ret = dma_map_sgtable(dev, sgt, dma_direction, attrs);
	if (ret)
		return ERR_PTR(ret);
	hold = pinbed_hold_begin(pdev, sgt, length, direction, 0);
	if (IS_ERR(hold)) {
		dma_unmap_sgtable(dev, sgt, dma_direction, attrs);
		return hold;
	}
	hold->dev = dev;
	hold->sgt = sgt;
	hold->direction = dma_direction;
	hold->attrs = attrs;
	return hold;
}

static int pinbed_hold_detach(struct pinbed_hold *hold)
{
	struct pinbed_detach_request *detach = hold->detach->request;
	int ret;

	pinbed_request_init(hold->pdev, hold->detach, PINBED_OP_DETACH);
	detach->handle = cpu_to_le64(hold->handle);
	ret = pinbed_request_submit(hold->pdev, PINBED_QUEUE_CONTROL,
				    hold->detach);
	if (ret)
		return ret;
	wait_for_completion(&hold->detach->answer);
	return pinbed_request_result(hold->detach,
				     sizeof(struct pinbed_response_header));
}

/* When this returns the device does not hold the memory any more. */
void pinbed_hold_end(struct pinbed_hold *hold)
{
	struct pinbed_device *pdev = hold->pdev;
	int ret = pinbed_hold_detach(hold);

	if (ret) {
		if (ret != -ENODEV)
			dev_err_ratelimited(&pdev->vdev->dev,
					    "DETACH of buffer %llu failed (%d): given up until it is bound again\n",
					    hold->handle, ret);
		/* Returns when it has been reset. */
		pinbed_device_kill(pdev);
	}
	spin_lock_irq(&pdev->lock);
	list_del_init(&hold->entry);
	spin_unlock_irq(&pdev->lock);
	trace_pinbed_release(hold->handle);

	pinbed_hold_check_pins(hold);
	if (hold->sgt)
		dma_unmap_sgtable(hold->dev, hold->sgt, hold->direction,
				  hold->attrs);
	pinbed_hold_free(hold);
}

/* Of the device's access; DMA_NONE if there is no such direction. */
enum dma_data_direction pinbed_dma_direction(u32 direction)
{
	switch (direction) {
	case PINBED_DIRECTION_READ:
		return DMA_TO_DEVICE;
	case PINBED_DIRECTION_WRITE:
		return DMA_FROM_DEVICE;
	case PINBED_DIRECTION_BOTH:
		return DMA_BIDIRECTIONAL;
	default:
		return DMA_NONE;
	}
}
