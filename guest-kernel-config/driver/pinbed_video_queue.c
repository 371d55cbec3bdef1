// SPDX-License-Identifier: GPL-2.0-only
/*
 * The buffers of a video node's files. The device holds each for as long as vb2
 * keeps its memory.
 */
#include <linux/err.h>
#include <linux/slab.h>
#include <linux/videodev2.h>

#include "pinbed_video.h"

static int pinbed_queue_setup(struct vb2_queue *vq, unsigned int *buffers,
			      unsigned int *planes, unsigned int sizes[],
			      struct device *alloc_devs[])
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vq);
	const struct pinbed_image *image = pinbed_image(ctx, vq->type);
	unsigned int i, count = image->pixfmt->planes;

	if (*planes) {
		if (*planes != count)
			return -EINVAL;
		for (i = 0; i < count; i++)
			if (sizes[i] < pinbed_plane_size(image, i))
				return -EINVAL;
		return 0;
	}
	*planes = count;
	for (i = 0; i < count; i++)
		sizes[i] = pinbed_plane_size(image, i);
	return 0;
}

static struct pinbed_plane *pinbed_plane_new(struct pinbed_ctx *ctx,
					     struct vb2_buffer *vb,
					     unsigned int index)
{
	struct pinbed_plane *plane = pinbed_zalloc_obj(*plane);
	int ret;

	if (!plane)
		return ERR_PTR(-ENOMEM);
	ret = ctx->node->memop->hold(ctx->node, vb, index, plane);
	if (ret) {
		kfree(plane);
		return ERR_PTR(ret);
	}
	list_add(&plane->entry, &ctx->planes);
	return plane;
}

static void pinbed_plane_free(struct pinbed_plane *plane)
{
	list_del(&plane->entry);
	if (plane->bounce)
		pinbed_bounce_free(plane->bounce);
	else
		pinbed_hold_end(plane->hold);
	kfree(plane);
}

/* vb2 is about to unmap and unpin the memory. */
static void pinbed_buf_cleanup(struct vb2_buffer *vb)
{
	struct pinbed_vb *pvb = to_pinbed_vb(vb);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pvb->planes); i++) {
		if (!pvb->planes[i])
			continue;
		pvb->planes[i]->cleaned = true;
		pinbed_plane_free(pvb->planes[i]);
		pvb->planes[i] = NULL;
	}
}

/*
 * Where vb2 refuses a QBUF(USERPTR) for its length, it lets go of the buffer's
 * previous memory without buf_cleanup. What comes of that is not this driver's
 * doing, and shall not be taken for it, nor the other way round.
 */
static void pinbed_plane_free_late(struct pinbed_plane *plane)
{
	pr_warn("WARNING: pinbed: the device still holds memory %s\n",
		plane->cleaned ? "after buf_cleanup, a defect of this driver" :
				 "that vb2 let go of without buf_cleanup");
	pinbed_plane_free(plane);
}

/* vb2 has just pinned and mapped the memory. */
static int pinbed_buf_init(struct vb2_buffer *vb)
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vb->vb2_queue);
	struct pinbed_vb *pvb = to_pinbed_vb(vb);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pvb->planes); i++) {
		if (pvb->planes[i])
			pinbed_plane_free_late(pvb->planes[i]);
		pvb->planes[i] = NULL;
	}

	for (i = 0; i < vb->num_planes; i++) {
		struct pinbed_plane *plane = pinbed_plane_new(ctx, vb, i);

		if (IS_ERR(plane)) {
			pinbed_buf_cleanup(vb);
			return PTR_ERR(plane);
		}
		pvb->planes[i] = plane;
		pvb->reports[i].valid = false;
	}
	return 0;
}

static int pinbed_buf_out_validate(struct vb2_buffer *vb)
{
	struct vb2_v4l2_buffer *vbuf = to_vb2_v4l2_buffer(vb);

	if (vbuf->field == V4L2_FIELD_ANY)
		vbuf->field = V4L2_FIELD_NONE;
	return vbuf->field == V4L2_FIELD_NONE ? 0 : -EINVAL;
}

static int pinbed_buf_prepare(struct vb2_buffer *vb)
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vb->vb2_queue);
	const struct pinbed_image *image = pinbed_image(ctx, vb->type);
	unsigned int i;

	for (i = 0; i < vb->num_planes; i++)
		if (vb2_plane_size(vb, i) < pinbed_plane_size(image, i))
			return -PINBED_ESHORT;
	return 0;
}

/* The process is about to have the buffer back. */
static void pinbed_buf_finish(struct vb2_buffer *vb)
{
	struct pinbed_plane *plane = to_pinbed_vb(vb)->planes[0];
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vb->vb2_queue);
	u32 length = vb2_get_plane_payload(vb, 0);
	bool padded = pinbed_converts(ctx);

	if (plane && plane->bounce && !V4L2_TYPE_IS_OUTPUT(vb->type) &&
	    vb->state == VB2_BUF_STATE_DONE)
		pinbed_bounce_drain(plane->bounce, vb2_plane_vaddr(vb, 0), length,
				    padded ? pinbed_line(&ctx->cap) : length,
				    padded ? ctx->cap.stride : length);
}

static void pinbed_buf_queue(struct vb2_buffer *vb)
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vb->vb2_queue);

	v4l2_m2m_buf_queue(ctx->fh.m2m_ctx, to_vb2_v4l2_buffer(vb));
}

static void pinbed_return_buffers(struct vb2_queue *vq,
				  enum vb2_buffer_state state)
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vq);
	struct vb2_v4l2_buffer *vbuf;

	for (;;) {
		if (V4L2_TYPE_IS_OUTPUT(vq->type))
			vbuf = v4l2_m2m_src_buf_remove(ctx->fh.m2m_ctx);
		else
			vbuf = v4l2_m2m_dst_buf_remove(ctx->fh.m2m_ctx);
		if (!vbuf)
			break;
		v4l2_m2m_buf_done(vbuf, state);
	}
}

static int pinbed_start_streaming(struct vb2_queue *vq, unsigned int count)
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vq);

	if (pinbed_is_dead(ctx->node->pdev)) {
		pinbed_return_buffers(vq, VB2_BUF_STATE_QUEUED);
		return -ENODEV;
	}
	if (V4L2_TYPE_IS_OUTPUT(vq->type))
		ctx->out_sequence = 0;
	else
		ctx->cap_sequence = 0;
	return 0;
}

/* V4L2 has waited for the running job, so nothing is at the device. */
static void pinbed_stop_streaming(struct vb2_queue *vq)
{
	pinbed_return_buffers(vq, VB2_BUF_STATE_ERROR);
}

static const struct vb2_ops pinbed_vb2_ops = {
	.queue_setup = pinbed_queue_setup,
	.buf_init = pinbed_buf_init,
	.buf_cleanup = pinbed_buf_cleanup,
	.buf_out_validate = pinbed_buf_out_validate,
	.buf_prepare = pinbed_buf_prepare,
	.buf_finish = pinbed_buf_finish,
	.buf_queue = pinbed_buf_queue,
	.start_streaming = pinbed_start_streaming,
	.stop_streaming = pinbed_stop_streaming,
	PINBED_VB2_LOCK_OPS
};

static int pinbed_init_queue(struct pinbed_ctx *ctx, struct vb2_queue *vq,
			     u32 type)
{
	vq->type = type;
	vq->io_modes = VB2_MMAP | VB2_USERPTR | VB2_DMABUF;
	vq->drv_priv = ctx;
	vq->buf_struct_size = sizeof(struct pinbed_vb);
	vq->ops = &pinbed_vb2_ops;
	vq->mem_ops = ctx->node->memop->ops;
	vq->timestamp_flags = V4L2_BUF_FLAG_TIMESTAMP_COPY;
	vq->lock = &ctx->lock;
	vq->dev = ctx->node->dma;
	return vb2_queue_init(vq);
}

int pinbed_init_queues(void *priv, struct vb2_queue *src, struct vb2_queue *dst)
{
	struct pinbed_ctx *ctx = priv;
	bool mplane = ctx->node->memop->mplane;
	int ret;

	ret = pinbed_init_queue(ctx, src,
				mplane ? V4L2_BUF_TYPE_VIDEO_OUTPUT_MPLANE :
					 V4L2_BUF_TYPE_VIDEO_OUTPUT);
	if (ret)
		return ret;
	return pinbed_init_queue(ctx, dst,
				 mplane ? V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE :
					  V4L2_BUF_TYPE_VIDEO_CAPTURE);
}

/* When vb2 has let go of all buffers. */
void pinbed_release_leftovers(struct pinbed_ctx *ctx)
{
	struct pinbed_plane *plane, *next;

	list_for_each_entry_safe(plane, next, &ctx->planes, entry)
		pinbed_plane_free_late(plane);
}
