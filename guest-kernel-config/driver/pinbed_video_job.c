// SPDX-License-Identifier: GPL-2.0-only
/*
 * The jobs of a video node: from an OUTPUT buffer to a CAPTURE buffer.
 */
#include <linux/device.h>

#include "pinbed_video.h"

static void pinbed_report_job(struct pinbed_ctx *ctx, struct vb2_v4l2_buffer *vb,
			      unsigned int plane, u32 status, u64 bytes, u32 crc)
{
	const struct pinbed_request_header *header = ctx->jobs[plane]->request;
	struct pinbed_report *report = &to_pinbed_vb(&vb->vb2_buf)->reports[plane];
	unsigned long flags;

	spin_lock_irqsave(&ctx->report_lock, flags);
	report->valid = true;
	report->status = status;
	report->cookie = le64_to_cpu(header->cookie);
	report->bytes = bytes;
	report->crc = crc;
	spin_unlock_irqrestore(&ctx->report_lock, flags);
}

/* Unless @status is PINBED_STATUS_OK there are no answers. */
static void pinbed_job_finish(struct pinbed_ctx *ctx, u32 status)
{
	struct v4l2_m2m_ctx *m2m_ctx = ctx->fh.m2m_ctx;
	struct vb2_v4l2_buffer *src = v4l2_m2m_src_buf_remove(m2m_ctx);
	struct vb2_v4l2_buffer *dst = v4l2_m2m_dst_buf_remove(m2m_ctx);
	enum vb2_buffer_state state = VB2_BUF_STATE_ERROR;
	unsigned int i;

	if (status == PINBED_STATUS_OK)
		state = VB2_BUF_STATE_DONE;
	for (i = 0; i < src->vb2_buf.num_planes; i++) {
		const struct pinbed_job_response *response = ctx->jobs[i]->response;
		u64 read = 0, written = 0;
		u32 src_crc = 0, dst_crc = 0;

		if (status == PINBED_STATUS_OK) {
			read = le64_to_cpu(response->bytes_read);
			written = le64_to_cpu(response->bytes_written);
			src_crc = le32_to_cpu(response->src_crc);
			dst_crc = le32_to_cpu(response->dst_crc);
		}
		pinbed_report_job(ctx, src, i, status, read, src_crc);
		pinbed_report_job(ctx, dst, i, status, written, dst_crc);
		/* What CONVERT writes is less than the image, if lines are padded. */
		if (written && pinbed_converts(ctx))
			written = pinbed_size(&ctx->cap);
		vb2_set_plane_payload(&dst->vb2_buf, i, written);
	}

	src->sequence = ctx->out_sequence++;
	dst->sequence = ctx->cap_sequence++;
	pinbed_copy_metadata(src, dst);

	v4l2_m2m_buf_done(src, state);
	v4l2_m2m_buf_done(dst, state);
	v4l2_m2m_job_finish(ctx->node->m2m_dev, m2m_ctx);
}

/* PINBED_STATUS_OK, or what went wrong with a plane. */
static u32 pinbed_job_status(struct pinbed_ctx *ctx, struct pinbed_request *req)
{
	struct device *dev = &ctx->node->pdev->vdev->dev;
	const struct pinbed_job_response *response = req->response;
	const struct pinbed_job_request *job = req->request;
	int ret = pinbed_request_result(req, sizeof(*response));
	u64 cookie = le64_to_cpu(job->header.cookie);

	/* A copy moves all of its bytes, a conversion may leave padding alone. */
	if (!ret && (le64_to_cpu(response->bytes_written) >
		     le64_to_cpu(job->dst.length) ||
		     (job->header.op == cpu_to_le32(PINBED_OP_COPY) &&
		      response->bytes_written != job->dst.length)))
		ret = -EPROTO;
	switch (ret) {
	case 0:
		return PINBED_STATUS_OK;
	case -EFAULT:
		dev_warn_ratelimited(dev, "job %llu: DMA fault\n", cookie);
		break;
	case -EPROTO:
		dev_warn_ratelimited(dev, "job %llu: malformed answer\n", cookie);
		break;
	}
	/* A status that is not the device's own stands for having none. */
	if (ret == -ENODEV || ret == -EPROTO)
		return PINBED_STATUS_ERROR;
	return le32_to_cpu(response->header.status);
}

/* The last of a job's requests ends the job. */
static void pinbed_job_done(struct pinbed_request *req)
{
	struct pinbed_ctx *ctx = req->owner;
	u32 status = PINBED_STATUS_OK;
	unsigned int i;

	if (!atomic_dec_and_test(&ctx->jobs_left))
		return;
	for (i = 0; i < ctx->out.pixfmt->planes; i++)
		if (status == PINBED_STATUS_OK)
			status = pinbed_job_status(ctx, ctx->jobs[i]);
	pinbed_job_finish(ctx, status);
}

void pinbed_jobs_free(struct pinbed_ctx *ctx)
{
	unsigned int i;

	for (i = 0; i < PINBED_PLANES; i++)
		if (ctx->jobs[i])
			pinbed_request_put(ctx->jobs[i]);
}

int pinbed_jobs_new(struct pinbed_ctx *ctx)
{
	unsigned int i;

	for (i = 0; i < PINBED_PLANES; i++) {
		struct pinbed_request *req;

		req = pinbed_request_new(sizeof(struct pinbed_job_request),
					 sizeof(struct pinbed_job_response));
		if (!req) {
			pinbed_jobs_free(ctx);
			return -ENOMEM;
		}
		req->done = pinbed_job_done;
		req->owner = ctx;
		ctx->jobs[i] = req;
	}
	return 0;
}

static void pinbed_wire_format(struct pinbed_format *format,
			       const struct pinbed_image *image)
{
	format->fourcc = cpu_to_le32(image->pixfmt->fourcc);
	format->width = cpu_to_le32(image->width);
	format->height = cpu_to_le32(image->height);
	format->stride = cpu_to_le32(image->stride);
	/* The device has V4L2's numbers for both. */
	if (!image->pixfmt->rgb)
		format->encoding = cpu_to_le32(pinbed_ycbcr_enc(image));
	format->quantization = cpu_to_le32(pinbed_quantization(image));
}

bool pinbed_converts(const struct pinbed_ctx *ctx)
{
	return ctx->out.pixfmt != ctx->cap.pixfmt ||
	       ctx->out.stride != ctx->cap.stride ||
	       pinbed_quantization(&ctx->out) != pinbed_quantization(&ctx->cap);
}

static void pinbed_wire_range(struct pinbed_range *range, struct vb2_buffer *vb,
			      unsigned int plane, u64 offset, u64 length)
{
	const struct pinbed_plane *held = to_pinbed_vb(vb)->planes[plane];

	range->handle = cpu_to_le64(held->hold->handle);
	range->offset = cpu_to_le64(offset);
	range->length = cpu_to_le64(length);
}

/* Makes the request for a plane; false if a buffer is too short for it. */
static bool pinbed_job_prepare(struct pinbed_ctx *ctx, struct vb2_buffer *src,
			       struct vb2_buffer *dst, unsigned int plane)
{
	bool convert = pinbed_converts(ctx);
	struct pinbed_request *req = ctx->jobs[plane];
	struct pinbed_job_request *job = req->request;
	u64 offset = src->planes[plane].data_offset;
	u64 src_length = vb2_get_plane_payload(src, plane) - offset;
	u64 dst_length = vb2_plane_size(dst, plane);
	u64 src_needed = convert ? pinbed_size(&ctx->out) : 0;
	u64 dst_needed = convert ? pinbed_size(&ctx->cap) : src_length;

	memset(job, 0, sizeof(*job));
	pinbed_request_init(ctx->node->pdev, req,
			    convert ? PINBED_OP_CONVERT : PINBED_OP_COPY);
	if (src_length < src_needed || dst_length < dst_needed)
		return false;
	pinbed_wire_range(&job->src, src, plane, offset,
			  convert ? src_needed : src_length);
	pinbed_wire_range(&job->dst, dst, plane, 0, dst_needed);
	if (convert) {
		pinbed_wire_format(&job->src_format, &ctx->out);
		pinbed_wire_format(&job->dst_format, &ctx->cap);
	}
	return true;
}

static void pinbed_device_run(void *priv)
{
	struct pinbed_ctx *ctx = priv;
	struct pinbed_device *pdev = ctx->node->pdev;
	struct vb2_buffer *src = &v4l2_m2m_next_src_buf(ctx->fh.m2m_ctx)->vb2_buf;
	struct vb2_buffer *dst = &v4l2_m2m_next_dst_buf(ctx->fh.m2m_ctx)->vb2_buf;
	unsigned int i, planes = src->num_planes;
	struct pinbed_bounce *bounce;
	bool fits = true;

	for (i = 0; i < planes; i++)
		fits &= pinbed_job_prepare(ctx, src, dst, i);
	if (!fits) {
		pinbed_job_finish(ctx, PINBED_STATUS_INVALID);
		return;
	}
	bounce = to_pinbed_vb(src)->planes[0]->bounce;
	if (bounce)
		pinbed_bounce_fill(bounce, vb2_plane_vaddr(src, 0),
				   vb2_get_plane_payload(src, 0));
	atomic_set(&ctx->jobs_left, planes);
	for (i = 0; i < planes; i++) {
		struct pinbed_request *req = ctx->jobs[i];
		int ret = pinbed_request_submit(pdev, PINBED_QUEUE_VIDEO, req);

		if (ret) {
			req->error = ret;
			pinbed_job_done(req);
		}
	}
}

/* No job_abort: the device has no way to cut a job short, V4L2 waits for it. */
const struct v4l2_m2m_ops pinbed_m2m_ops = {
	.device_run = pinbed_device_run,
};
