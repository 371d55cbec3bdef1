// SPDX-License-Identifier: GPL-2.0-only
/*
 * A V4L2 memory-to-memory node whose buffers are attached to the device for as
 * long as vb2 holds them.
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/videodev2.h>
#include <media/v4l2-common.h>
#include <media/v4l2-device.h>
#include <media/v4l2-event.h>
#include <media/v4l2-fh.h>
#include <media/v4l2-ioctl.h>
#include <media/v4l2-mem2mem.h>
#include <media/videobuf2-dma-sg.h>
#include <media/videobuf2-v4l2.h>

#include "pinbed.h"
#include "pinbed_compat.h"

#define PINBED_IOC_BUFFER \
	_IOWR('V', PINBED_NR_BUFFER, struct pinbed_buffer)

#define PINBED_MIN_SIDE 2
#define PINBED_MAX_SIDE 4096
#define PINBED_DEFAULT_WIDTH 640
#define PINBED_DEFAULT_HEIGHT 480

/**
 * struct pinbed_pixfmt - A pixel format.
 * @fourcc: V4L2_PIX_FMT_*.
 * @line: Bytes of a pixel in a line of the (first) plane.
 * @halves: Size of an image in half bytes for each pixel.
 * @width_shift: Width is a multiple of 1 << this.
 * @height_shift: Height is a multiple of 1 << this.
 */
struct pinbed_pixfmt {
	u32 fourcc;
	u8 line;
	u8 halves;
	u8 width_shift;
	u8 height_shift;
};

/* The first takes any size. */
static const struct pinbed_pixfmt pinbed_pixfmts[] = {
	{ V4L2_PIX_FMT_GREY, 1, 2, 0, 0 },
	{ V4L2_PIX_FMT_RGB24, 3, 6, 0, 0 },
	{ V4L2_PIX_FMT_YUYV, 2, 4, 1, 0 },
	{ V4L2_PIX_FMT_NV12, 1, 3, 1, 1 },
};

/**
 * struct pinbed_memop - A way for vb2 to get at memory.
 * @name: As in the node's name.
 * @ops: vb2's operations.
 * @plane: The scatterlist of a buffer, mapped for the device.
 */
struct pinbed_memop {
	const char *name;
	const struct vb2_mem_ops *ops;
	struct sg_table *(*plane)(struct vb2_buffer *vb);
};

/**
 * struct pinbed_node - A video node.
 * @v4l2_dev: Its last reference frees the node.
 * @vfd: The node as V4L2 knows it.
 * @m2m_dev: Runs one job at a time.
 * @pdev: The device.
 * @memop: How its buffers are made.
 * @lock: Protects @ctxs.
 * @ctxs: Open files.
 */
struct pinbed_node {
	struct v4l2_device v4l2_dev;
	struct video_device vfd;
	struct v4l2_m2m_dev *m2m_dev;
	struct pinbed_device *pdev;
	const struct pinbed_memop *memop;
	struct mutex lock;
	struct list_head ctxs;
};

/**
 * struct pinbed_image - The format of a queue.
 * @pixfmt: Pixel format.
 * @width: In pixels.
 * @height: In lines.
 * @sequence: Number of the next frame.
 */
struct pinbed_image {
	const struct pinbed_pixfmt *pixfmt;
	u32 width;
	u32 height;
	u32 sequence;
};

/**
 * struct pinbed_ctx - An open file of a node.
 * @fh: V4L2's part.
 * @node: The node.
 * @entry: In the node's list.
 * @lock: Lock of both queues; protects the formats too.
 * @out: Format of the OUTPUT queue.
 * @cap: Format of the CAPTURE queue; width and height are always those of @out.
 * @colorspace: Colours are what user space says about OUTPUT.
 * @xfer_func: As @colorspace.
 * @ycbcr_enc: As @colorspace.
 * @quantization: As @colorspace.
 * @attachments: What the device holds for this file.
 * @job: The request of the running job.
 * @report_lock: Protects the buffers' reports.
 */
struct pinbed_ctx {
	struct v4l2_fh fh;
	struct pinbed_node *node;
	struct list_head entry;
	struct mutex lock;
	struct pinbed_image out;
	struct pinbed_image cap;
	u32 colorspace;
	u32 xfer_func;
	u32 ycbcr_enc;
	u32 quantization;
	struct list_head attachments;
	struct pinbed_request *job;
	spinlock_t report_lock;
};

/**
 * struct pinbed_report - What the last job did in a buffer.
 * @valid: There was one since the buffer was attached.
 * @status: PINBED_STATUS_*.
 * @crc: CRC32C of the bytes moved.
 * @cookie: The job's cookie.
 * @bytes: Bytes moved.
 */
struct pinbed_report {
	bool valid;
	u32 status;
	u32 crc;
	u64 cookie;
	u64 bytes;
};

/**
 * struct pinbed_vb - A buffer.
 * @m2m: The buffer as V4L2 knows it; must be first.
 * @att: What the device holds of it.
 * @report: The last job.
 */
struct pinbed_vb {
	struct v4l2_m2m_buffer m2m;
	struct pinbed_attachment *att;
	struct pinbed_report report;
};

static struct pinbed_ctx *pinbed_file_ctx(struct file *file)
{
	return container_of(file_to_v4l2_fh(file), struct pinbed_ctx, fh);
}

static struct pinbed_vb *to_pinbed_vb(struct vb2_buffer *vb)
{
	return container_of(vb, struct pinbed_vb, m2m.vb.vb2_buf);
}

static struct pinbed_image *pinbed_image(struct pinbed_ctx *ctx, u32 type)
{
	return V4L2_TYPE_IS_OUTPUT(type) ? &ctx->out : &ctx->cap;
}

static u32 pinbed_stride(const struct pinbed_image *image)
{
	return image->width * image->pixfmt->line;
}

static u32 pinbed_size(const struct pinbed_image *image)
{
	return image->width * image->height * image->pixfmt->halves / 2;
}

/*
 * Jobs
 */

static void pinbed_report_job(struct pinbed_ctx *ctx, struct vb2_v4l2_buffer *vb,
			      u32 status, u64 bytes, u32 crc)
{
	const struct pinbed_request_header *header = ctx->job->request;
	struct pinbed_report *report = &to_pinbed_vb(&vb->vb2_buf)->report;
	unsigned long flags;

	spin_lock_irqsave(&ctx->report_lock, flags);
	report->valid = true;
	report->status = status;
	report->cookie = le64_to_cpu(header->cookie);
	report->bytes = bytes;
	report->crc = crc;
	spin_unlock_irqrestore(&ctx->report_lock, flags);
}

/* @response is NULL unless @status is PINBED_STATUS_OK. */
static void pinbed_job_finish(struct pinbed_ctx *ctx, u32 status,
			      const struct pinbed_job_response *response)
{
	struct v4l2_m2m_ctx *m2m_ctx = ctx->fh.m2m_ctx;
	struct vb2_v4l2_buffer *src = v4l2_m2m_src_buf_remove(m2m_ctx);
	struct vb2_v4l2_buffer *dst = v4l2_m2m_dst_buf_remove(m2m_ctx);
	enum vb2_buffer_state state = VB2_BUF_STATE_ERROR;
	u64 read = 0, written = 0;
	u32 src_crc = 0, dst_crc = 0;

	if (response) {
		state = VB2_BUF_STATE_DONE;
		read = le64_to_cpu(response->bytes_read);
		written = le64_to_cpu(response->bytes_written);
		src_crc = le32_to_cpu(response->src_crc);
		dst_crc = le32_to_cpu(response->dst_crc);
	}
	pinbed_report_job(ctx, src, status, read, src_crc);
	pinbed_report_job(ctx, dst, status, written, dst_crc);

	src->sequence = ctx->out.sequence++;
	dst->sequence = ctx->cap.sequence++;
	pinbed_copy_metadata(src, dst);
	vb2_set_plane_payload(&dst->vb2_buf, 0, written);

	v4l2_m2m_buf_done(src, state);
	v4l2_m2m_buf_done(dst, state);
	v4l2_m2m_job_finish(ctx->node->m2m_dev, m2m_ctx);
}

static void pinbed_job_done(struct pinbed_request *req)
{
	struct pinbed_ctx *ctx = req->owner;
	struct device *dev = &ctx->node->pdev->vdev->dev;
	const struct pinbed_job_response *response = req->response;
	const struct pinbed_job_request *job = req->request;
	int ret = pinbed_request_result(req, sizeof(*response));
	u64 cookie = le64_to_cpu(job->header.cookie);

	if (!ret && le64_to_cpu(response->bytes_written) >
	    le64_to_cpu(job->dst.length))
		ret = -EPROTO;
	switch (ret) {
	case 0:
		pinbed_job_finish(ctx, PINBED_STATUS_OK, response);
		return;
	case -EFAULT:
		dev_warn_ratelimited(dev, "job %llu: DMA fault\n", cookie);
		break;
	case -EPROTO:
		dev_warn_ratelimited(dev, "job %llu: malformed answer\n", cookie);
		break;
	}
	/* A status that is not the device's own stands for having none. */
	if (ret == -EIO || ret == -EPROTO)
		pinbed_job_finish(ctx, PINBED_STATUS_ERROR, NULL);
	else
		pinbed_job_finish(ctx, le32_to_cpu(response->header.status), NULL);
}

static void pinbed_wire_format(struct pinbed_format *format,
			       const struct pinbed_image *image)
{
	format->fourcc = cpu_to_le32(image->pixfmt->fourcc);
	format->width = cpu_to_le32(image->width);
	format->height = cpu_to_le32(image->height);
	format->stride = cpu_to_le32(pinbed_stride(image));
}

static void pinbed_wire_range(struct pinbed_range *range, struct vb2_buffer *vb,
			      u64 length)
{
	range->handle = cpu_to_le64(to_pinbed_vb(vb)->att->handle);
	range->offset = 0;
	range->length = cpu_to_le64(length);
}

static void pinbed_device_run(void *priv)
{
	struct pinbed_ctx *ctx = priv;
	struct pinbed_device *pdev = ctx->node->pdev;
	struct vb2_buffer *src = &v4l2_m2m_next_src_buf(ctx->fh.m2m_ctx)->vb2_buf;
	struct vb2_buffer *dst = &v4l2_m2m_next_dst_buf(ctx->fh.m2m_ctx)->vb2_buf;
	bool convert = ctx->out.pixfmt != ctx->cap.pixfmt;
	struct pinbed_job_request *job = ctx->job->request;
	u64 src_length = vb2_get_plane_payload(src, 0);
	u64 dst_length = vb2_plane_size(dst, 0);
	u64 src_needed = convert ? pinbed_size(&ctx->out) : 0;
	u64 dst_needed = convert ? pinbed_size(&ctx->cap) : src_length;

	memset(job, 0, sizeof(*job));
	pinbed_request_init(pdev, ctx->job,
			    convert ? PINBED_OP_CONVERT : PINBED_OP_COPY);
	if (src_length < src_needed || dst_length < dst_needed) {
		pinbed_job_finish(ctx, PINBED_STATUS_INVALID, NULL);
		return;
	}
	pinbed_wire_range(&job->src, src, convert ? src_needed : src_length);
	pinbed_wire_range(&job->dst, dst, dst_needed);
	if (convert) {
		pinbed_wire_format(&job->src_format, &ctx->out);
		pinbed_wire_format(&job->dst_format, &ctx->cap);
	}
	if (pinbed_request_submit(pdev, PINBED_QUEUE_VIDEO, ctx->job))
		pinbed_job_finish(ctx, PINBED_STATUS_ERROR, NULL);
}

/* No job_abort: the device has no way to cut a job short, V4L2 waits for it. */
static const struct v4l2_m2m_ops pinbed_m2m_ops = {
	.device_run = pinbed_device_run,
};

/*
 * Queues
 */

static int pinbed_queue_setup(struct vb2_queue *vq, unsigned int *buffers,
			      unsigned int *planes, unsigned int sizes[],
			      struct device *alloc_devs[])
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vq);
	u32 size = pinbed_size(pinbed_image(ctx, vq->type));

	if (*planes)
		return *planes != 1 || sizes[0] < size ? -EINVAL : 0;
	*planes = 1;
	sizes[0] = size;
	return 0;
}

static void pinbed_buf_detach(struct pinbed_ctx *ctx, struct pinbed_vb *pvb)
{
	if (!pvb->att)
		return;
	list_del(&pvb->att->entry);
	pinbed_detach(ctx->node->pdev, pvb->att);
	pvb->att = NULL;
}

/* vb2 has just pinned and mapped the memory. */
static int pinbed_buf_init(struct vb2_buffer *vb)
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vb->vb2_queue);
	struct pinbed_node *node = ctx->node;
	struct pinbed_vb *pvb = to_pinbed_vb(vb);
	struct pinbed_attachment *att;

	/*
	 * Where vb2 refuses a QBUF(USERPTR) for its length, it lets go of the
	 * buffer's previous memory without buf_cleanup.
	 */
	pinbed_buf_detach(ctx, pvb);

	att = pinbed_attach(node->pdev, node->memop->plane(vb),
			    vb2_plane_size(vb, 0),
			    V4L2_TYPE_IS_OUTPUT(vb->type) ?
			    PINBED_DIRECTION_READ : PINBED_DIRECTION_WRITE);
	if (IS_ERR(att))
		return PTR_ERR(att);
	list_add(&att->entry, &ctx->attachments);
	pvb->att = att;
	pvb->report.valid = false;
	return 0;
}

/* vb2 is about to unmap and unpin the memory. */
static void pinbed_buf_cleanup(struct vb2_buffer *vb)
{
	pinbed_buf_detach(vb2_get_drv_priv(vb->vb2_queue), to_pinbed_vb(vb));
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

	if (vb2_plane_size(vb, 0) < pinbed_size(pinbed_image(ctx, vb->type)))
		return -EINVAL;
	return 0;
}

static void pinbed_buf_queue(struct vb2_buffer *vb)
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vb->vb2_queue);

	v4l2_m2m_buf_queue(ctx->fh.m2m_ctx, to_vb2_v4l2_buffer(vb));
}

static int pinbed_start_streaming(struct vb2_queue *vq, unsigned int count)
{
	struct pinbed_ctx *ctx = vb2_get_drv_priv(vq);

	pinbed_image(ctx, vq->type)->sequence = 0;
	return 0;
}

/* V4L2 has waited for the running job, so nothing is at the device. */
static void pinbed_stop_streaming(struct vb2_queue *vq)
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
		v4l2_m2m_buf_done(vbuf, VB2_BUF_STATE_ERROR);
	}
}

static const struct vb2_ops pinbed_vb2_ops = {
	.queue_setup = pinbed_queue_setup,
	.buf_init = pinbed_buf_init,
	.buf_cleanup = pinbed_buf_cleanup,
	.buf_out_validate = pinbed_buf_out_validate,
	.buf_prepare = pinbed_buf_prepare,
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
	/* Its transport's device is the one that does DMA. */
	vq->dev = ctx->node->pdev->vdev->dev.parent;
	return vb2_queue_init(vq);
}

static int pinbed_init_queues(void *priv, struct vb2_queue *src,
			      struct vb2_queue *dst)
{
	int ret = pinbed_init_queue(priv, src, V4L2_BUF_TYPE_VIDEO_OUTPUT);

	if (ret)
		return ret;
	return pinbed_init_queue(priv, dst, V4L2_BUF_TYPE_VIDEO_CAPTURE);
}

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

static const struct pinbed_pixfmt *pinbed_find_pixfmt(u32 fourcc)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pinbed_pixfmts); i++)
		if (pinbed_pixfmts[i].fourcc == fourcc)
			return &pinbed_pixfmts[i];
	return NULL;
}

static int pinbed_enum_fmt(struct file *file, void *priv, struct v4l2_fmtdesc *f)
{
	if (f->index >= ARRAY_SIZE(pinbed_pixfmts))
		return -EINVAL;
	f->pixelformat = pinbed_pixfmts[f->index].fourcc;
	return 0;
}

static int pinbed_enum_framesizes(struct file *file, void *priv,
				  struct v4l2_frmsizeenum *size)
{
	const struct pinbed_pixfmt *pixfmt = pinbed_find_pixfmt(size->pixel_format);

	if (size->index || !pixfmt)
		return -EINVAL;
	size->type = V4L2_FRMSIZE_TYPE_STEPWISE;
	size->stepwise.min_width = PINBED_MIN_SIDE;
	size->stepwise.max_width = PINBED_MAX_SIDE;
	size->stepwise.step_width = 1 << pixfmt->width_shift;
	size->stepwise.min_height = PINBED_MIN_SIDE;
	size->stepwise.max_height = PINBED_MAX_SIDE;
	size->stepwise.step_height = 1 << pixfmt->height_shift;
	return 0;
}

/* The device does not scale, so CAPTURE images have the size of OUTPUT's. */
static struct pinbed_image pinbed_capture_image(const struct pinbed_image *out,
						const struct pinbed_pixfmt *pixfmt)
{
	struct pinbed_image image = *out;

	if (IS_ALIGNED(out->width, 1 << pixfmt->width_shift) &&
	    IS_ALIGNED(out->height, 1 << pixfmt->height_shift))
		image.pixfmt = pixfmt;
	return image;
}

static void pinbed_fill_fmt(struct pinbed_ctx *ctx, struct v4l2_format *f,
			    const struct pinbed_image *image)
{
	struct v4l2_pix_format *pix = &f->fmt.pix;

	pix->pixelformat = image->pixfmt->fourcc;
	pix->width = image->width;
	pix->height = image->height;
	pix->field = V4L2_FIELD_NONE;
	pix->bytesperline = pinbed_stride(image);
	pix->sizeimage = pinbed_size(image);
}

static void pinbed_fill_colors(struct pinbed_ctx *ctx, struct v4l2_format *f)
{
	struct v4l2_pix_format *pix = &f->fmt.pix;

	pix->colorspace = ctx->colorspace;
	pix->xfer_func = ctx->xfer_func;
	pix->ycbcr_enc = ctx->ycbcr_enc;
	pix->quantization = ctx->quantization;
}

/* Returns what the queue would have after S_FMT, and puts it into @f. */
static struct pinbed_image pinbed_try(struct pinbed_ctx *ctx,
				      struct v4l2_format *f)
{
	const struct pinbed_pixfmt *pixfmt;
	struct v4l2_pix_format *pix = &f->fmt.pix;
	struct pinbed_image image = { };

	pixfmt = pinbed_find_pixfmt(pix->pixelformat);
	if (!pixfmt)
		pixfmt = &pinbed_pixfmts[0];

	if (V4L2_TYPE_IS_OUTPUT(f->type)) {
		image.pixfmt = pixfmt;
		image.width = pix->width;
		image.height = pix->height;
		v4l_bound_align_image(&image.width, PINBED_MIN_SIDE,
				      PINBED_MAX_SIDE, pixfmt->width_shift,
				      &image.height, PINBED_MIN_SIDE,
				      PINBED_MAX_SIDE, pixfmt->height_shift, 0);
		if (pix->colorspace == V4L2_COLORSPACE_DEFAULT ||
		    pix->colorspace > V4L2_COLORSPACE_DCI_P3)
			pix->colorspace = V4L2_COLORSPACE_SRGB;
	} else {
		image = pinbed_capture_image(&ctx->out, pixfmt);
		pinbed_fill_colors(ctx, f);
	}
	pinbed_fill_fmt(ctx, f, &image);
	return image;
}

static int pinbed_try_fmt(struct file *file, void *priv, struct v4l2_format *f)
{
	struct pinbed_ctx *ctx = pinbed_file_ctx(file);

	mutex_lock(&ctx->lock);
	pinbed_try(ctx, f);
	mutex_unlock(&ctx->lock);
	return 0;
}

static int pinbed_g_fmt(struct file *file, void *priv, struct v4l2_format *f)
{
	struct pinbed_ctx *ctx = pinbed_file_ctx(file);

	mutex_lock(&ctx->lock);
	pinbed_fill_fmt(ctx, f, pinbed_image(ctx, f->type));
	pinbed_fill_colors(ctx, f);
	mutex_unlock(&ctx->lock);
	return 0;
}

static int pinbed_s_fmt_cap(struct file *file, void *priv, struct v4l2_format *f)
{
	struct pinbed_ctx *ctx = pinbed_file_ctx(file);
	int ret = 0;

	mutex_lock(&ctx->lock);
	if (vb2_is_busy(v4l2_m2m_get_dst_vq(ctx->fh.m2m_ctx)))
		ret = -EBUSY;
	else
		ctx->cap = pinbed_try(ctx, f);
	mutex_unlock(&ctx->lock);
	return ret;
}

static int pinbed_s_fmt_out(struct file *file, void *priv, struct v4l2_format *f)
{
	struct pinbed_ctx *ctx = pinbed_file_ctx(file);
	struct pinbed_image image;
	int ret = -EBUSY;

	mutex_lock(&ctx->lock);
	if (vb2_is_busy(v4l2_m2m_get_src_vq(ctx->fh.m2m_ctx)))
		goto unlock;
	image = pinbed_try(ctx, f);
	if ((image.width != ctx->cap.width || image.height != ctx->cap.height) &&
	    vb2_is_busy(v4l2_m2m_get_dst_vq(ctx->fh.m2m_ctx)))
		goto unlock;

	ctx->out = image;
	ctx->cap = pinbed_capture_image(&image, ctx->cap.pixfmt);
	ctx->colorspace = f->fmt.pix.colorspace;
	ctx->xfer_func = f->fmt.pix.xfer_func;
	ctx->ycbcr_enc = f->fmt.pix.ycbcr_enc;
	ctx->quantization = f->fmt.pix.quantization;
	ret = 0;
unlock:
	mutex_unlock(&ctx->lock);
	return ret;
}

static int pinbed_describe(struct pinbed_ctx *ctx, struct pinbed_buffer *buffer)
{
	struct pinbed_report *report;
	struct vb2_queue *vq;
	struct pinbed_vb *pvb;
	struct vb2_buffer *vb;

	if (buffer->kind != V4L2_BUF_TYPE_VIDEO_OUTPUT &&
	    buffer->kind != V4L2_BUF_TYPE_VIDEO_CAPTURE)
		return -EINVAL;
	vq = v4l2_m2m_get_vq(ctx->fh.m2m_ctx, buffer->kind);
	vb = vb2_get_buffer(vq, buffer->index);
	if (!vb)
		return -EINVAL;
	pvb = to_pinbed_vb(vb);

	*buffer = (struct pinbed_buffer){
		.kind = buffer->kind,
		.index = buffer->index,
	};
	if (pvb->att) {
		buffer->flags |= PINBED_BUFFER_ATTACHED;
		buffer->handle = pvb->att->handle;
	}
	report = &pvb->report;
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

static const struct v4l2_ioctl_ops pinbed_ioctl_ops = {
	.vidioc_querycap = pinbed_querycap,

	.vidioc_enum_fmt_vid_cap = pinbed_enum_fmt,
	.vidioc_enum_fmt_vid_out = pinbed_enum_fmt,
	.vidioc_enum_framesizes = pinbed_enum_framesizes,
	.vidioc_g_fmt_vid_cap = pinbed_g_fmt,
	.vidioc_g_fmt_vid_out = pinbed_g_fmt,
	.vidioc_try_fmt_vid_cap = pinbed_try_fmt,
	.vidioc_try_fmt_vid_out = pinbed_try_fmt,
	.vidioc_s_fmt_vid_cap = pinbed_s_fmt_cap,
	.vidioc_s_fmt_vid_out = pinbed_s_fmt_out,

	.vidioc_reqbufs = v4l2_m2m_ioctl_reqbufs,
	.vidioc_create_bufs = v4l2_m2m_ioctl_create_bufs,
	PINBED_REMOVE_BUFS_OPS
	.vidioc_querybuf = v4l2_m2m_ioctl_querybuf,
	.vidioc_prepare_buf = v4l2_m2m_ioctl_prepare_buf,
	.vidioc_qbuf = v4l2_m2m_ioctl_qbuf,
	.vidioc_dqbuf = v4l2_m2m_ioctl_dqbuf,
	.vidioc_expbuf = v4l2_m2m_ioctl_expbuf,
	.vidioc_streamon = v4l2_m2m_ioctl_streamon,
	.vidioc_streamoff = v4l2_m2m_ioctl_streamoff,

	.vidioc_default = pinbed_default_ioctl,
};

/*
 * Files
 */

static void pinbed_ctx_free(struct pinbed_ctx *ctx)
{
	v4l2_fh_exit(&ctx->fh);
	pinbed_request_put(ctx->job);
	mutex_destroy(&ctx->lock);
	kfree(ctx);
}

static int pinbed_video_open(struct file *file)
{
	struct pinbed_node *node = video_drvdata(file);
	struct v4l2_m2m_ctx *m2m_ctx;
	struct pinbed_ctx *ctx;

	ctx = kzalloc(sizeof(*ctx), GFP_KERNEL);
	if (!ctx)
		return -ENOMEM;
	ctx->job = pinbed_request_new(sizeof(struct pinbed_job_request),
				      sizeof(struct pinbed_job_response));
	if (!ctx->job) {
		kfree(ctx);
		return -ENOMEM;
	}
	ctx->job->done = pinbed_job_done;
	ctx->job->owner = ctx;
	ctx->node = node;
	mutex_init(&ctx->lock);
	spin_lock_init(&ctx->report_lock);
	INIT_LIST_HEAD(&ctx->attachments);
	ctx->out.pixfmt = &pinbed_pixfmts[0];
	ctx->out.width = PINBED_DEFAULT_WIDTH;
	ctx->out.height = PINBED_DEFAULT_HEIGHT;
	ctx->cap = ctx->out;
	ctx->colorspace = V4L2_COLORSPACE_SRGB;
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
	struct pinbed_attachment *att, *next;

	pinbed_fh_del(&ctx->fh, file);
	mutex_lock(&node->lock);
	list_del(&ctx->entry);
	mutex_unlock(&node->lock);

	v4l2_m2m_ctx_release(ctx->fh.m2m_ctx);
	/* Left over where vb2 skipped buf_cleanup, see pinbed_buf_init(). */
	list_for_each_entry_safe(att, next, &ctx->attachments, entry)
		pinbed_detach(node->pdev, att);
	pinbed_ctx_free(ctx);
	return 0;
}

static const struct v4l2_file_operations pinbed_video_fops = {
	.owner = THIS_MODULE,
	.open = pinbed_video_open,
	.release = pinbed_video_close,
	.poll = v4l2_m2m_fop_poll,
	.unlocked_ioctl = video_ioctl2,
	.mmap = v4l2_m2m_fop_mmap,
};

/*
 * The node
 */

static struct sg_table *pinbed_dma_sg_plane(struct vb2_buffer *vb)
{
	return vb2_dma_sg_plane_desc(vb, 0);
}

static const struct pinbed_memop pinbed_dma_sg = {
	.name = "dma-sg",
	.ops = &vb2_dma_sg_memops,
	.plane = pinbed_dma_sg_plane,
};

static void pinbed_node_release(struct v4l2_device *v4l2_dev)
{
	struct pinbed_node *node = container_of(v4l2_dev, struct pinbed_node,
						v4l2_dev);

	v4l2_m2m_release(node->m2m_dev);
	pinbed_put(node->pdev);
	mutex_destroy(&node->lock);
	kfree(node);
}

static struct pinbed_node *pinbed_node_register(struct pinbed_device *pdev,
						const struct pinbed_memop *memop)
{
	struct pinbed_node *node;
	struct video_device *vfd;
	int ret;

	node = kzalloc(sizeof(*node), GFP_KERNEL);
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
	ret = v4l2_device_register(&pdev->vdev->dev, &node->v4l2_dev);
	if (ret)
		goto release_m2m;
	node->v4l2_dev.release = pinbed_node_release;
	node->pdev = pinbed_get(pdev);

	vfd = &node->vfd;
	snprintf(vfd->name, sizeof(vfd->name), "%s-%s", KBUILD_MODNAME,
		 memop->name);
	vfd->v4l2_dev = &node->v4l2_dev;
	vfd->vfl_dir = VFL_DIR_M2M;
	vfd->device_caps = V4L2_CAP_VIDEO_M2M | V4L2_CAP_STREAMING;
	vfd->fops = &pinbed_video_fops;
	vfd->ioctl_ops = &pinbed_ioctl_ops;
	vfd->release = video_device_release_empty;
	video_set_drvdata(vfd, node);
	ret = video_register_device(vfd, VFL_TYPE_VIDEO, -1);
	if (ret) {
		v4l2_device_disconnect(&node->v4l2_dev);
		v4l2_device_put(&node->v4l2_dev);
		return ERR_PTR(ret);
	}
	return node;

release_m2m:
	v4l2_m2m_release(node->m2m_dev);
free:
	mutex_destroy(&node->lock);
	kfree(node);
	return ERR_PTR(ret);
}

/* Gives the memory of an open file back, whose ioctls are dead by now. */
static void pinbed_ctx_drop(struct pinbed_ctx *ctx)
{
	static const u32 types[] = {
		V4L2_BUF_TYPE_VIDEO_OUTPUT, V4L2_BUF_TYPE_VIDEO_CAPTURE,
	};
	unsigned int i;

	mutex_lock(&ctx->lock);
	for (i = 0; i < ARRAY_SIZE(types); i++) {
		struct vb2_queue *vq = v4l2_m2m_get_vq(ctx->fh.m2m_ctx, types[i]);
		struct v4l2_requestbuffers none = {
			.type = types[i],
			.memory = vq->memory,
		};

		v4l2_m2m_streamoff(NULL, ctx->fh.m2m_ctx, types[i]);
		vb2_reqbufs(vq, &none);
	}
	mutex_unlock(&ctx->lock);
}

static void pinbed_node_unregister(struct pinbed_node *node)
{
	struct pinbed_ctx *ctx;

	video_unregister_device(&node->vfd);
	mutex_lock(&node->lock);
	list_for_each_entry(ctx, &node->ctxs, entry)
		pinbed_ctx_drop(ctx);
	mutex_unlock(&node->lock);
	v4l2_device_disconnect(&node->v4l2_dev);
	v4l2_device_put(&node->v4l2_dev);
}

int pinbed_video_register(struct pinbed_device *pdev)
{
	struct pinbed_node *node = pinbed_node_register(pdev, &pinbed_dma_sg);

	if (IS_ERR(node))
		return PTR_ERR(node);
	pdev->video = node;
	return 0;
}

void pinbed_video_unregister(struct pinbed_device *pdev)
{
	pinbed_node_unregister(pdev->video);
}
