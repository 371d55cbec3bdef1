// SPDX-License-Identifier: GPL-2.0-only
/*
 * The formats of a video node's files.
 */
#include <linux/kernel.h>
#include <linux/videodev2.h>
#include <media/v4l2-common.h>

#include "pinbed_video.h"

#define PINBED_MIN_SIDE 2
#define PINBED_MAX_SIDE 4096
#define PINBED_DEFAULT_WIDTH 640
#define PINBED_DEFAULT_HEIGHT 480

/* The first takes any size. */
static const struct pinbed_pixfmt pinbed_pixfmts[] = {
	{ V4L2_PIX_FMT_GREY, 1, 2, 0, 0 },
	{ V4L2_PIX_FMT_RGB24, 3, 6, 0, 0 },
	{ V4L2_PIX_FMT_YUYV, 2, 4, 1, 0 },
	{ V4L2_PIX_FMT_NV12, 1, 3, 1, 1 },
};

void pinbed_format_init(struct pinbed_ctx *ctx)
{
	ctx->out.pixfmt = &pinbed_pixfmts[0];
	ctx->out.width = PINBED_DEFAULT_WIDTH;
	ctx->out.height = PINBED_DEFAULT_HEIGHT;
	ctx->cap = ctx->out;
	ctx->colorspace = V4L2_COLORSPACE_SRGB;
}

static const struct pinbed_pixfmt *pinbed_find_pixfmt(u32 fourcc)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pinbed_pixfmts); i++)
		if (pinbed_pixfmts[i].fourcc == fourcc)
			return &pinbed_pixfmts[i];
	return NULL;
}

int pinbed_enum_fmt(struct file *file, void *priv, struct v4l2_fmtdesc *f)
{
	if (f->index >= ARRAY_SIZE(pinbed_pixfmts))
		return -EINVAL;
	f->pixelformat = pinbed_pixfmts[f->index].fourcc;
	return 0;
}

int pinbed_enum_framesizes(struct file *file, void *priv,
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

static void pinbed_fill_fmt(struct v4l2_format *f,
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
		    pix->colorspace > V4L2_COLORSPACE_DCI_P3) {
			pix->colorspace = V4L2_COLORSPACE_SRGB;
			pix->xfer_func = V4L2_XFER_FUNC_DEFAULT;
			pix->ycbcr_enc = V4L2_YCBCR_ENC_DEFAULT;
			pix->quantization = V4L2_QUANTIZATION_DEFAULT;
		}
	} else {
		image = pinbed_capture_image(&ctx->out, pixfmt);
		pinbed_fill_colors(ctx, f);
	}
	pinbed_fill_fmt(f, &image);
	return image;
}

int pinbed_try_fmt(struct file *file, void *priv, struct v4l2_format *f)
{
	struct pinbed_ctx *ctx = pinbed_file_ctx(file);

	mutex_lock(&ctx->lock);
	pinbed_try(ctx, f);
	mutex_unlock(&ctx->lock);
	return 0;
}

int pinbed_g_fmt(struct file *file, void *priv, struct v4l2_format *f)
{
	struct pinbed_ctx *ctx = pinbed_file_ctx(file);

	mutex_lock(&ctx->lock);
	pinbed_fill_fmt(f, pinbed_image(ctx, f->type));
	pinbed_fill_colors(ctx, f);
	mutex_unlock(&ctx->lock);
	return 0;
}

int pinbed_s_fmt_cap(struct file *file, void *priv, struct v4l2_format *f)
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

int pinbed_s_fmt_out(struct file *file, void *priv, struct v4l2_format *f)
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
