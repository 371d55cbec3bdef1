// SPDX-License-Identifier: GPL-2.0-only
/*
 * The formats of a video node's files: sizes, strides and colours. The device
 * converts what they say, so they say what is true of the pixels: luma and
 * chroma keep their encoding and range, unless user space asks for others with
 * V4L2_PIX_FMT_FLAG_SET_CSC, and RGB is always full range.
 */
#include <linux/kernel.h>
#include <linux/videodev2.h>
#include <media/v4l2-common.h>

#include "pinbed_video.h"

#define PINBED_MIN_SIDE 2
#define PINBED_MAX_SIDE 4096
/* An RGB24 line of PINBED_MAX_SIDE pixels, and padding to a power of two. */
#define PINBED_MAX_STRIDE 16384
/*
 * Twice a default image, of which v4l2-compliance makes buffers, can be bounced
 * (swiotlb takes 256 KiB at a time) whether its pages touch or not.
 */
#define PINBED_DEFAULT_WIDTH 320
#define PINBED_DEFAULT_HEIGHT 240

/* The first is the default of nodes with the single-planar interface. */
static const struct pinbed_pixfmt pinbed_pixfmts[] = {
	{ V4L2_PIX_FMT_GREY, 1, 2, 0, 0, 1 },
	{ V4L2_PIX_FMT_RGB24, 3, 6, 0, 0, 1, true },
	{ V4L2_PIX_FMT_YUYV, 2, 4, 1, 0, 1 },
	{ V4L2_PIX_FMT_NV12, 1, 3, 1, 1, 1 },
	{ V4L2_PIX_FMT_NV12M, 1, 3, 1, 1, 2 },
};

static bool pinbed_is_mplane(const struct pinbed_pixfmt *pixfmt)
{
	return pixfmt->planes > 1;
}

/* The @index-th format of a node, or NULL. */
static const struct pinbed_pixfmt *pinbed_enum_pixfmt(bool mplane,
						      unsigned int index)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pinbed_pixfmts); i++)
		if (mplane == pinbed_is_mplane(&pinbed_pixfmts[i]) && !index--)
			return &pinbed_pixfmts[i];
	return NULL;
}

void pinbed_format_init(struct pinbed_ctx *ctx, bool mplane)
{
	ctx->out = (struct pinbed_image){
		.pixfmt = pinbed_enum_pixfmt(mplane, 0),
		.width = PINBED_DEFAULT_WIDTH,
		.height = PINBED_DEFAULT_HEIGHT,
		.colorspace = V4L2_COLORSPACE_SRGB,
	};
	ctx->out.stride = pinbed_line(&ctx->out);
	ctx->cap = ctx->out;
}

/* What V4L2_YCBCR_ENC_DEFAULT stands for; the device has each default. */
u32 pinbed_ycbcr_enc(const struct pinbed_image *image)
{
	if (image->ycbcr_enc != V4L2_YCBCR_ENC_DEFAULT)
		return image->ycbcr_enc;
	return V4L2_MAP_YCBCR_ENC_DEFAULT(image->colorspace);
}

/*
 * What V4L2_QUANTIZATION_DEFAULT stands for. V4L2 says nothing of GREY; as in
 * vivid's test pattern generator, where what is not Y'CbCr counts as RGB, its
 * default is full range.
 */
u32 pinbed_quantization(const struct pinbed_image *image)
{
	bool full = image->pixfmt->rgb ||
		    image->pixfmt->fourcc == V4L2_PIX_FMT_GREY;

	if (image->quantization != V4L2_QUANTIZATION_DEFAULT)
		return image->quantization;
	return V4L2_MAP_QUANTIZATION_DEFAULT(full, image->colorspace,
					     pinbed_ycbcr_enc(image));
}

static const struct pinbed_pixfmt *pinbed_find_pixfmt(bool mplane, u32 fourcc)
{
	const struct pinbed_pixfmt *pixfmt;
	unsigned int i;

	for (i = 0; (pixfmt = pinbed_enum_pixfmt(mplane, i)); i++)
		if (pixfmt->fourcc == fourcc)
			return pixfmt;
	return NULL;
}

int pinbed_enum_fmt(struct file *file, void *priv, struct v4l2_fmtdesc *f)
{
	bool mplane = V4L2_TYPE_IS_MULTIPLANAR(f->type);
	const struct pinbed_pixfmt *pixfmt = pinbed_enum_pixfmt(mplane, f->index);

	if (!pixfmt)
		return -EINVAL;
	f->pixelformat = pixfmt->fourcc;
	if (!V4L2_TYPE_IS_OUTPUT(f->type) && !pixfmt->rgb && !mplane)
		f->flags = V4L2_FMT_FLAG_CSC_YCBCR_ENC |
			   V4L2_FMT_FLAG_CSC_QUANTIZATION;
	return 0;
}

int pinbed_enum_framesizes(struct file *file, void *priv,
			   struct v4l2_frmsizeenum *size)
{
	const struct pinbed_node *node = video_drvdata(file);
	const struct pinbed_pixfmt *pixfmt;

	pixfmt = pinbed_find_pixfmt(node->memop->mplane, size->pixel_format);
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

static bool pinbed_has_ycbcr_enc(u32 ycbcr_enc)
{
	return ycbcr_enc == V4L2_YCBCR_ENC_601 ||
	       ycbcr_enc == V4L2_YCBCR_ENC_709 ||
	       ycbcr_enc == V4L2_YCBCR_ENC_BT2020 ||
	       ycbcr_enc == V4L2_YCBCR_ENC_SMPTE240M;
}

static bool pinbed_is_quantization(u32 quantization)
{
	return quantization == V4L2_QUANTIZATION_FULL_RANGE ||
	       quantization == V4L2_QUANTIZATION_LIM_RANGE;
}

/* The padding that user space asks for, if it is one that the driver takes. */
static u32 pinbed_choose_stride(const struct pinbed_image *image, u32 asked)
{
	u32 line = pinbed_line(image);

	return asked >= line && asked <= PINBED_MAX_STRIDE ? asked : line;
}

static struct pinbed_image
pinbed_output_image(const struct v4l2_pix_format *pix,
		    const struct pinbed_pixfmt *pixfmt)
{
	struct pinbed_image image = {
		.pixfmt = pixfmt,
		.width = pix->width,
		.height = pix->height,
		.colorspace = V4L2_COLORSPACE_SRGB,
	};

	v4l_bound_align_image(&image.width, PINBED_MIN_SIDE, PINBED_MAX_SIDE,
			      pixfmt->width_shift,
			      &image.height, PINBED_MIN_SIDE, PINBED_MAX_SIDE,
			      pixfmt->height_shift, 0);
	image.stride = pinbed_choose_stride(&image, pix->bytesperline);

	if (pix->colorspace == V4L2_COLORSPACE_DEFAULT ||
	    pix->colorspace > V4L2_COLORSPACE_DCI_P3)
		return image;
	image.colorspace = pix->colorspace;
	image.xfer_func = pix->xfer_func;
	if (pinbed_has_ycbcr_enc(pix->ycbcr_enc))
		image.ycbcr_enc = pix->ycbcr_enc;
	if (pinbed_is_quantization(pix->quantization))
		image.quantization = pix->quantization;
	if (pixfmt->rgb && image.quantization == V4L2_QUANTIZATION_LIM_RANGE)
		image.quantization = V4L2_QUANTIZATION_FULL_RANGE;
	return image;
}

/*
 * The device does not scale, and does not convert several planes. So CAPTURE
 * images have the size of OUTPUT's; their colours are what the device makes of
 * them.
 */
static struct pinbed_image
pinbed_capture_image(const struct pinbed_image *out,
		     const struct pinbed_pixfmt *pixfmt, u32 stride)
{
	struct pinbed_image image = *out;

	if (pinbed_is_mplane(out->pixfmt))
		return image;
	if (IS_ALIGNED(out->width, 1 << pixfmt->width_shift) &&
	    IS_ALIGNED(out->height, 1 << pixfmt->height_shift))
		image.pixfmt = pixfmt;
	image.stride = pinbed_choose_stride(&image, stride);

	if (image.pixfmt == out->pixfmt)
		return image;
	/* Said outright: what the default is of GREY, software disagrees about. */
	if (image.pixfmt->rgb || out->pixfmt->rgb) {
		image.quantization = V4L2_QUANTIZATION_DEFAULT;
		image.quantization = pinbed_quantization(&image);
	} else {
		image.quantization = pinbed_quantization(out);
	}
	return image;
}

/* V4L2_PIX_FMT_FLAG_SET_CSC */
static void pinbed_set_csc(struct pinbed_image *image,
			   const struct pinbed_image *out,
			   const struct v4l2_pix_format *pix)
{
	if (image->pixfmt->rgb || pinbed_is_mplane(image->pixfmt))
		return;
	if (pinbed_is_quantization(pix->quantization))
		image->quantization = pix->quantization;
	/* The device does not get from one encoding to another. */
	if (out->pixfmt->rgb && pinbed_has_ycbcr_enc(pix->ycbcr_enc))
		image->ycbcr_enc = pix->ycbcr_enc;
}

static void pinbed_fill_fmt_mplane(struct v4l2_format *f,
				   const struct pinbed_image *image)
{
	struct v4l2_pix_format_mplane *pix = &f->fmt.pix_mp;
	unsigned int i;

	pix->pixelformat = image->pixfmt->fourcc;
	pix->width = image->width;
	pix->height = image->height;
	pix->field = V4L2_FIELD_NONE;
	pix->colorspace = image->colorspace;
	pix->xfer_func = image->xfer_func;
	pix->ycbcr_enc = image->ycbcr_enc;
	pix->quantization = image->quantization;
	pix->num_planes = image->pixfmt->planes;
	for (i = 0; i < pix->num_planes; i++) {
		pix->plane_fmt[i].bytesperline = image->stride;
		pix->plane_fmt[i].sizeimage = pinbed_plane_size(image, i);
	}
}

/* What is asked for, by either interface. */
static struct v4l2_pix_format pinbed_asked_pix(const struct v4l2_format *f)
{
	const struct v4l2_pix_format_mplane *pix = &f->fmt.pix_mp;

	if (!V4L2_TYPE_IS_MULTIPLANAR(f->type))
		return f->fmt.pix;
	return (struct v4l2_pix_format){
		.pixelformat = pix->pixelformat,
		.width = pix->width,
		.height = pix->height,
		.bytesperline = pix->plane_fmt[0].bytesperline,
		.colorspace = pix->colorspace,
		.xfer_func = pix->xfer_func,
		.ycbcr_enc = pix->ycbcr_enc,
		.quantization = pix->quantization,
		.flags = pix->flags,
	};
}

static void pinbed_fill_fmt(struct v4l2_format *f,
			    const struct pinbed_image *image)
{
	struct v4l2_pix_format *pix = &f->fmt.pix;

	if (V4L2_TYPE_IS_MULTIPLANAR(f->type)) {
		pinbed_fill_fmt_mplane(f, image);
		return;
	}

	pix->pixelformat = image->pixfmt->fourcc;
	pix->width = image->width;
	pix->height = image->height;
	pix->field = V4L2_FIELD_NONE;
	pix->bytesperline = image->stride;
	pix->sizeimage = pinbed_size(image);
	pix->colorspace = image->colorspace;
	pix->xfer_func = image->xfer_func;
	pix->ycbcr_enc = image->ycbcr_enc;
	pix->quantization = image->quantization;
}

/* Returns what the queue would have after S_FMT, and puts it into @f. */
static struct pinbed_image pinbed_try(struct pinbed_ctx *ctx,
				      struct v4l2_format *f)
{
	bool mplane = V4L2_TYPE_IS_MULTIPLANAR(f->type);
	struct v4l2_pix_format pix = pinbed_asked_pix(f);
	const struct pinbed_pixfmt *pixfmt;
	struct pinbed_image image;

	pixfmt = pinbed_find_pixfmt(mplane, pix.pixelformat);
	if (!pixfmt)
		pixfmt = pinbed_enum_pixfmt(mplane, 0);

	if (V4L2_TYPE_IS_OUTPUT(f->type)) {
		image = pinbed_output_image(&pix, pixfmt);
	} else {
		image = pinbed_capture_image(&ctx->out, pixfmt,
					     pix.bytesperline);
		if (pix.flags & V4L2_PIX_FMT_FLAG_SET_CSC)
			pinbed_set_csc(&image, &ctx->out, &pix);
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
	bool changed;
	u32 stride;

	mutex_lock(&ctx->lock);
	if (vb2_is_busy(v4l2_m2m_get_src_vq(ctx->fh.m2m_ctx)))
		goto unlock;
	image = pinbed_try(ctx, f);
	changed = image.width != ctx->cap.width ||
		  image.height != ctx->cap.height ||
		  (pinbed_is_mplane(image.pixfmt) && image.stride != ctx->cap.stride);
	if (changed && vb2_is_busy(v4l2_m2m_get_dst_vq(ctx->fh.m2m_ctx)))
		goto unlock;

	/* Padding stays where the size does, since buffers may be made for it. */
	stride = image.width == ctx->cap.width ? ctx->cap.stride : 0;
	ctx->out = image;
	ctx->cap = pinbed_capture_image(&image, ctx->cap.pixfmt, stride);
	ret = 0;
unlock:
	mutex_unlock(&ctx->lock);
	return ret;
}
