// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hands memory to the device, which holds on to it, and takes it back.
 */
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/slab.h>

#include "pinbed.h"

static struct pinbed_attachment *pinbed_attachment_new(void)
{
	struct pinbed_attachment *att = kzalloc(sizeof(*att), GFP_KERNEL);

	if (!att)
		return NULL;
	att->detach = pinbed_request_new(sizeof(struct pinbed_detach_request),
					 sizeof(struct pinbed_response_header));
	if (!att->detach) {
		kfree(att);
		return NULL;
	}
	return att;
}

static void pinbed_attachment_free(struct pinbed_attachment *att)
{
	pinbed_request_put(att->detach);
	pinbed_bounce_free(att->bounce);
	kfree(att);
}

/*
 * Number of segments that make up the first @length bytes, or -EINVAL if there
 * are fewer bytes.
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
	return length ? -EINVAL : count;
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

/*
 * Has the device hold the first @length bytes of a mapped scatterlist: what
 * follows is not its owner's (page rounding) or not wanted (a longer dma-buf).
 * @flags are PINBED_ATTACH_*. E2BIG and ENOSPC stand for limits of the device.
 */
struct pinbed_attachment *pinbed_attach(struct pinbed_device *pdev,
					struct sg_table *sgt, u64 length,
					u32 direction, u32 flags)
{
	const struct pinbed_attach_response *response;
	struct pinbed_attach_request *attach;
	struct pinbed_attachment *att;
	struct pinbed_request *req;
	int count, ret;

	count = pinbed_count_segments(sgt, length);
	if (count < 0)
		return ERR_PTR(count);
	if (!count)
		return ERR_PTR(-EINVAL);
	if (count > pdev->max_segments || length > pdev->max_length)
		return ERR_PTR(-E2BIG);

	att = pinbed_attachment_new();
	if (!att)
		return ERR_PTR(-ENOMEM);
	req = pinbed_request_new(sizeof(*attach) +
				 count * sizeof(struct pinbed_segment),
				 sizeof(*response));
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

	ret = pinbed_request_submit(pdev, PINBED_QUEUE_CONTROL, req);
	if (ret)
		goto put;
	/* The device may hold the memory until it answers or is reset. */
	wait_for_completion(&req->answer);
	ret = pinbed_request_result(req, sizeof(*response));
	if (ret)
		goto put;
	response = req->response;
	att->handle = le64_to_cpu(response->handle);
	pinbed_request_put(req);
	return att;

put:
	pinbed_request_put(req);
free:
	pinbed_attachment_free(att);
	return ERR_PTR(ret);
}

/* When this returns the device does not hold the memory any more. */
void pinbed_detach(struct pinbed_device *pdev, struct pinbed_attachment *att)
{
	struct pinbed_detach_request *detach = att->detach->request;
	int ret;

	pinbed_request_init(pdev, att->detach, PINBED_OP_DETACH);
	detach->handle = cpu_to_le64(att->handle);
	ret = pinbed_request_submit(pdev, PINBED_QUEUE_CONTROL, att->detach);
	if (!ret) {
		wait_for_completion(&att->detach->answer);
		ret = pinbed_request_result(att->detach,
					    sizeof(struct pinbed_response_header));
	}
	/* EIO: the device is stopped, and holds nothing since. */
	if (ret && ret != -EIO)
		dev_warn_ratelimited(&pdev->vdev->dev,
				     "DETACH of buffer %llu failed: %d\n",
				     att->handle, ret);
	pinbed_attachment_free(att);
}
