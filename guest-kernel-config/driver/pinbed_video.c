// SPDX-License-Identifier: GPL-2.0-only
/*
 * A V4L2 memory-to-memory node and its files.
 */
#include <linux/compat.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/videodev2.h>

#include "pinbed_video.h"

#define PINBED_IOC_BUFFER \
	_IOWR('V', PINBED_NR_BUFFER, struct pinbed_buffer)

/*
 * Ioctls
 */

static int pinbed_querycap(struct file *file, void *priv,
			   struct v4l2_capability *cap)
{
	struct pinbed_node *node = video_drvdata(file);
	struct device *parent = node->pdev->vdev->dev.parent;

	strscpy(cap->driver, KBUILD_MODNAME, sizeof(cap->driver));
	strscpy(cap->card, node->vfd.name, sizeof(cap->card));
	snprintf(cap->bus_info, sizeof(cap->bus_info), "%s:%s",
		 dev_is_pci(parent) ? "PCI" : "platform", dev_name(parent));
	return 0;
}

static int pinbed_describe(struct pinbed_ctx *ctx, struct pinbed_buffer *buffer)
{
	const struct pinbed_plane *plane;
	struct pinbed_report *report;
	struct vb2_queue *vq;
	struct pinbed_vb *pvb;
	struct vb2_buffer *vb;

	vq = v4l2_m2m_get_vq(ctx->fh.m2m_ctx, buffer->kind);
	if (vq->type != buffer->kind)
		return -EINVAL;
	vb = vb2_get_buffer(vq, buffer->index);
	if (!vb || buffer->plane >= vb->num_planes)
		return -EINVAL;
	pvb = to_pinbed_vb(vb);

	*buffer = (struct pinbed_buffer){
		.kind = buffer->kind,
		.index = buffer->index,
		.plane = buffer->plane,
	};
	plane = pvb->planes[buffer->plane];
	if (plane) {
		buffer->flags |= PINBED_BUFFER_ATTACHED;
		buffer->handle = plane->hold->handle;
		if (plane->bounce)
			buffer->flags |= PINBED_BUFFER_BOUNCE;
	}
	report = &pvb->reports[buffer->plane];
	spin_lock_irq(&ctx->report_lock);
	if (report->valid) {
		buffer->flags |= PINBED_BUFFER_JOB;
		buffer->job_status = report->status;
		buffer->job_cookie = report->cookie;
		buffer->job_bytes = report->bytes;
		buffer->job_crc = report->crc;
	}
	spin_unlock_irq(&ctx->report_lock);
	return 0;
}

static long pinbed_default_ioctl(struct file *file, void *priv, bool valid_prio,
				 unsigned int cmd, void *arg)
{
	struct pinbed_ctx *ctx = pinbed_file_ctx(file);
	long ret;

	if (cmd != PINBED_IOC_BUFFER)
		return -ENOTTY;
	mutex_lock(&ctx->lock);
	ret = pinbed_describe(ctx, arg);
	mutex_unlock(&ctx->lock);
	return ret;
}

#define PINBED_COMMON_IOCTL_OPS					\
	.vidioc_querycap = pinbed_querycap,				\
	.vidioc_enum_fmt_vid_cap = pinbed_enum_fmt,			\
	.vidioc_enum_fmt_vid_out = pinbed_enum_fmt,			\
	.vidioc_enum_framesizes = pinbed_enum_framesizes,		\
	.vidioc_reqbufs = v4l2_m2m_ioctl_reqbufs,			\
	.vidioc_create_bufs = v4l2_m2m_ioctl_create_bufs,		\
	PINBED_REMOVE_BUFS_OPS						\
	.vidioc_querybuf = v4l2_m2m_ioctl_querybuf,			\
	.vidioc_prepare_buf = v4l2_m2m_ioctl_prepare_buf,		\
	.vidioc_qbuf = v4l2_m2m_ioctl_qbuf,				\
	.vidioc_dqbuf = v4l2_m2m_ioctl_dqbuf,				\
	.vidioc_expbuf = v4l2_m2m_ioctl_expbuf,				\
	.vidioc_streamon = v4l2_m2m_ioctl_streamon,			\
	.vidioc_streamoff = v4l2_m2m_ioctl_streamoff,			\
	.vidioc_default = pinbed_default_ioctl,

static const struct v4l2_ioctl_ops pinbed_ioctl_ops = {
	PINBED_COMMON_IOCTL_OPS
	.vidioc_g_fmt_vid_cap = pinbed_g_fmt,
	.vidioc_g_fmt_vid_out = pinbed_g_fmt,
	.vidioc_try_fmt_vid_cap = pinbed_try_fmt,
	.vidioc_try_fmt_vid_out = pinbed_try_fmt,
	.vidioc_s_fmt_vid_cap = pinbed_s_fmt_cap,
	.vidioc_s_fmt_vid_out = pinbed_s_fmt_out,
};

/* V4L2 takes a node for what it has operations for. */
static const struct v4l2_ioctl_ops pinbed_mplane_ioctl_ops = {
	PINBED_COMMON_IOCTL_OPS
	.vidioc_g_fmt_vid_cap_mplane = pinbed_g_fmt,
	.vidioc_g_fmt_vid_out_mplane = pinbed_g_fmt,
	.vidioc_try_fmt_vid_cap_mplane = pinbed_try_fmt,
	.vidioc_try_fmt_vid_out_mplane = pinbed_try_fmt,
	.vidioc_s_fmt_vid_cap_mplane = pinbed_s_fmt_cap,
	.vidioc_s_fmt_vid_out_mplane = pinbed_s_fmt_out,
};

/*
 * Files
 */

static void pinbed_ctx_free(struct pinbed_ctx *ctx)
{
	v4l2_fh_exit(&ctx->fh);
	pinbed_jobs_free(ctx);
	mutex_destroy(&ctx->lock);
	kfree(ctx);
}

static int pinbed_video_open(struct file *file)
{
	struct pinbed_node *node = video_drvdata(file);
	struct v4l2_m2m_ctx *m2m_ctx;
	struct pinbed_ctx *ctx;

	if (pinbed_is_dead(node->pdev))
		return -ENODEV;
	ctx = pinbed_zalloc_obj(*ctx);
	if (!ctx)
		return -ENOMEM;
	if (pinbed_jobs_new(ctx)) {
		kfree(ctx);
		return -ENOMEM;
	}
	ctx->node = node;
	mutex_init(&ctx->lock);
	spin_lock_init(&ctx->report_lock);
	INIT_LIST_HEAD(&ctx->planes);
	pinbed_format_init(ctx, node->memop->mplane);
	v4l2_fh_init(&ctx->fh, &node->vfd);

	m2m_ctx = v4l2_m2m_ctx_init(node->m2m_dev, ctx, pinbed_init_queues);
	if (IS_ERR(m2m_ctx)) {
		pinbed_ctx_free(ctx);
		return PTR_ERR(m2m_ctx);
	}
	ctx->fh.m2m_ctx = m2m_ctx;

	mutex_lock(&node->lock);
	list_add(&ctx->entry, &node->ctxs);
	mutex_unlock(&node->lock);
	pinbed_fh_add(&ctx->fh, file);
	return 0;
}

static int pinbed_video_close(struct file *file)
{
	struct pinbed_ctx *ctx = pinbed_file_ctx(file);
	struct pinbed_node *node = ctx->node;

	pinbed_fh_del(&ctx->fh, file);
	mutex_lock(&node->lock);
	list_del(&ctx->entry);
	mutex_unlock(&node->lock);

	v4l2_m2m_ctx_release(ctx->fh.m2m_ctx);
	pinbed_release_leftovers(ctx);
	pinbed_ctx_free(ctx);
	return 0;
}

#ifdef CONFIG_COMPAT
/* V4L2 asks for ioctls of the driver's own; theirs are laid out alike. */
static long pinbed_video_compat_ioctl(struct file *file, unsigned int cmd,
				      unsigned long arg)
{
	return video_ioctl2(file, cmd, (unsigned long)compat_ptr(arg));
}
#endif

static const struct v4l2_file_operations pinbed_video_fops = {
	.owner = THIS_MODULE,
	.open = pinbed_video_open,
	.release = pinbed_video_close,
	.poll = v4l2_m2m_fop_poll,
	.unlocked_ioctl = video_ioctl2,
#ifdef CONFIG_COMPAT
	.compat_ioctl32 = pinbed_video_compat_ioctl,
#endif
	.mmap = v4l2_m2m_fop_mmap,
};

/*
 * The node
 */

static void pinbed_node_release(struct v4l2_device *v4l2_dev)
{
	struct pinbed_node *node = container_of(v4l2_dev, struct pinbed_node,
						v4l2_dev);

	v4l2_m2m_release(node->m2m_dev);
	put_device(node->dma);
	pinbed_device_put(node->pdev);
	mutex_destroy(&node->lock);
	kfree(node);
}

static struct pinbed_node *pinbed_node_new(struct pinbed_device *pdev,
					   const struct pinbed_memop *memop)
{
	struct pinbed_node *node;
	int ret;

	node = pinbed_zalloc_obj(*node);
	if (!node)
		return ERR_PTR(-ENOMEM);
	node->memop = memop;
	mutex_init(&node->lock);
	INIT_LIST_HEAD(&node->ctxs);
	node->m2m_dev = v4l2_m2m_init(&pinbed_m2m_ops);
	if (IS_ERR(node->m2m_dev)) {
		ret = PTR_ERR(node->m2m_dev);
		goto free;
	}
	node->dma = pinbed_dma_device_new(pdev, &pdev->vdev->dev, memop->name);
	if (IS_ERR(node->dma)) {
		ret = PTR_ERR(node->dma);
		goto release_m2m;
	}
	ret = v4l2_device_register(&pdev->vdev->dev, &node->v4l2_dev);
	if (ret)
		goto unregister_dma;
	node->v4l2_dev.release = pinbed_node_release;
	node->pdev = pinbed_device_get(pdev);
	return node;

unregister_dma:
	pinbed_dma_device_unregister(node->dma);
	put_device(node->dma);
release_m2m:
	v4l2_m2m_release(node->m2m_dev);
free:
	mutex_destroy(&node->lock);
	kfree(node);
	return ERR_PTR(ret);
}

/* The node is freed when its last file is closed. */
static void pinbed_node_put(struct pinbed_node *node)
{
	pinbed_dma_device_unregister(node->dma);
	v4l2_device_disconnect(&node->v4l2_dev);
	v4l2_device_put(&node->v4l2_dev);
}

static struct pinbed_node *pinbed_node_register(struct pinbed_device *pdev,
						const struct pinbed_memop *memop)
{
	struct pinbed_node *node = pinbed_node_new(pdev, memop);
	struct video_device *vfd;
	int ret;

	if (IS_ERR(node))
		return node;
	vfd = &node->vfd;
	snprintf(vfd->name, sizeof(vfd->name), "%s-%s", pdev->name, memop->name);
	vfd->v4l2_dev = &node->v4l2_dev;
	vfd->vfl_dir = VFL_DIR_M2M;
	vfd->device_caps = V4L2_CAP_STREAMING |
			   (memop->mplane ? V4L2_CAP_VIDEO_M2M_MPLANE :
					    V4L2_CAP_VIDEO_M2M);
	vfd->fops = &pinbed_video_fops;
	vfd->ioctl_ops = memop->mplane ? &pinbed_mplane_ioctl_ops :
					 &pinbed_ioctl_ops;
	vfd->release = video_device_release_empty;
	video_set_drvdata(vfd, node);
	ret = video_register_device(vfd, VFL_TYPE_VIDEO, -1);
	if (ret) {
		pinbed_node_put(node);
		return ERR_PTR(ret);
	}
	return node;
}

/* On failure, pinbed_video_unregister() takes back what was registered. */
int pinbed_video_register(struct pinbed_device *pdev)
{
	unsigned int i;

	for (i = 0; i < PINBED_NODES; i++) {
		struct pinbed_node *node = pinbed_node_register(pdev,
								&pinbed_memops[i]);

		if (IS_ERR(node))
			return PTR_ERR(node);
		WRITE_ONCE(pdev->video[i], node);
	}
	return 0;
}

/* Wakes those who wait for a buffer: the device is dead. */
static void pinbed_node_fail(struct pinbed_node *node)
{
	struct pinbed_ctx *ctx;

	mutex_lock(&node->lock);
	list_for_each_entry(ctx, &node->ctxs, entry) {
		vb2_queue_error(v4l2_m2m_get_src_vq(ctx->fh.m2m_ctx));
		vb2_queue_error(v4l2_m2m_get_dst_vq(ctx->fh.m2m_ctx));
	}
	mutex_unlock(&node->lock);
}

void pinbed_video_fail(struct pinbed_device *pdev)
{
	unsigned int i;

	for (i = 0; i < PINBED_NODES; i++) {
		struct pinbed_node *node = READ_ONCE(pdev->video[i]);

		if (node)
			pinbed_node_fail(node);
	}
}

/* Files that are open keep their buffers until they are closed. */
void pinbed_video_unregister(struct pinbed_device *pdev)
{
	unsigned int i;

	for (i = 0; i < PINBED_NODES && pdev->video[i]; i++) {
		struct pinbed_node *node = pdev->video[i];

		video_unregister_device(&node->vfd);
		pinbed_node_fail(node);
		WRITE_ONCE(pdev->video[i], NULL);
		pinbed_node_put(node);
	}
}
