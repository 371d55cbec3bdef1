/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the video nodes share: pinbed_video.c has the nodes and their
 * files, pinbed_video_format.c their formats, pinbed_video_queue.c their buffers,
 * pinbed_video_memop.c the buffers' memory and pinbed_video_job.c the jobs.
 */
#ifndef PINBED_VIDEO_H
#define PINBED_VIDEO_H

#include <media/v4l2-device.h>
#include <media/v4l2-fh.h>
#include <media/v4l2-ioctl.h>
#include <media/v4l2-mem2mem.h>
#include <media/videobuf2-v4l2.h>

#include "pinbed.h"
#include "pinbed_compat_media.h"

/* Planes of a buffer, at most. */
#define PINBED_PLANES 2

/**
 * struct pinbed_pixfmt - A pixel format.
 * @fourcc: V4L2_PIX_FMT_*.
 * @line: Bytes of a pixel in a line of the (first) plane.
 * @halves: Size of an image in half bytes for each pixel.
 * @width_shift: Width is a multiple of 1 << this.
 * @height_shift: Height is a multiple of 1 << this.
 * @planes: Planes of a buffer; the second has what follows the luma.
 * @rgb: Has no Y'CbCr encoding.
 */
struct pinbed_pixfmt {
	u32 fourcc;
	u8 line;
	u8 halves;
	u8 width_shift;
	u8 height_shift;
	u8 planes;
	bool rgb;
};

/**
 * struct pinbed_plane - What the device holds of a plane of a buffer.
 * @entry: In the file's list.
 * @bounce: What it holds in place of the plane, or NULL.
 * @hold: The hold, which is @bounce's if there is one.
 * @cleaned: vb2 has called buf_cleanup for it.
 */
struct pinbed_plane {
	struct list_head entry;
	struct pinbed_bounce *bounce;
	struct pinbed_hold *hold;
	bool cleaned;
};

/**
 * struct pinbed_memop - An allocator of vb2, and what a node does with it.
 * @name: As in the node's name.
 * @mplane: The node has the multi-planar interface; it copies each plane.
 * @ops: vb2's operations.
 * @hold: Has the device hold a plane that vb2 has mapped, or a bounce buffer.
 */
struct pinbed_memop {
	const char *name;
	bool mplane;
	const struct vb2_mem_ops *ops;
	int (*hold)(struct pinbed_node *node, struct vb2_buffer *vb,
		    unsigned int index, struct pinbed_plane *plane);
};

/**
 * struct pinbed_node - A video node.
 * @v4l2_dev: Its last reference frees the node.
 * @vfd: The node as V4L2 knows it.
 * @m2m_dev: Runs one job at a time.
 * @pdev: The device, referenced.
 * @dma: Does the DMA of its buffers, referenced.
 * @memop: Its allocator.
 * @lock: See below.
 * @ctxs: Open files.
 */
struct pinbed_node {
	struct v4l2_device v4l2_dev;
	struct video_device vfd;
	struct v4l2_m2m_dev *m2m_dev;
	struct pinbed_device *pdev;
	struct device *dma;
	const struct pinbed_memop *memop;
	/* Protects @ctxs. */
	struct mutex lock;
	struct list_head ctxs;
};

/**
 * struct pinbed_image - The format of a queue.
 * @pixfmt: Pixel format.
 * @width: In pixels.
 * @height: In lines.
 * @stride: Bytes from one line to the next, of each plane.
 * @colorspace: V4L2_COLORSPACE_*.
 * @xfer_func: V4L2_XFER_FUNC_*.
 * @ycbcr_enc: V4L2_YCBCR_ENC_*, one that the device has or the default.
 * @quantization: V4L2_QUANTIZATION_*.
 */
struct pinbed_image {
	const struct pinbed_pixfmt *pixfmt;
	u32 width;
	u32 height;
	u32 stride;
	u32 colorspace;
	u32 xfer_func;
	u32 ycbcr_enc;
	u32 quantization;
};

/**
 * struct pinbed_ctx - An open file of a node.
 * @fh: V4L2's part.
 * @node: The node.
 * @entry: In the node's list.
 * @lock: See below.
 * @out: Format of the OUTPUT queue.
 * @cap: Format of the CAPTURE queue; width, height, colorspace and transfer
 *       function are always those of @out.
 * @out_sequence: Number of the next frame of the OUTPUT queue.
 * @cap_sequence: Number of the next frame of the CAPTURE queue.
 * @planes: What the device holds for this file.
 * @jobs: The requests of the running job, one for each plane.
 * @jobs_left: Those that have not ended.
 * @report_lock: See below.
 */
struct pinbed_ctx {
	struct v4l2_fh fh;
	struct pinbed_node *node;
	struct list_head entry;
	/* Lock of both queues; protects the formats and @planes, too. */
	struct mutex lock;
	struct pinbed_image out;
	struct pinbed_image cap;
	u32 out_sequence;
	u32 cap_sequence;
	struct list_head planes;
	struct pinbed_request *jobs[PINBED_PLANES];
	atomic_t jobs_left;
	/* Protects the buffers' reports. */
	spinlock_t report_lock;
};

/**
 * struct pinbed_report - What the last job did in a plane of a buffer.
 * @valid: There was one since the device holds the buffer.
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
 * @planes: What the device holds of it, by plane.
 * @reports: The last job, by plane.
 */
struct pinbed_vb {
	struct v4l2_m2m_buffer m2m;
	struct pinbed_plane *planes[PINBED_PLANES];
	struct pinbed_report reports[PINBED_PLANES];
};

static inline struct pinbed_ctx *pinbed_file_ctx(struct file *file)
{
	return container_of(file_to_v4l2_fh(file), struct pinbed_ctx, fh);
}

static inline struct pinbed_vb *to_pinbed_vb(struct vb2_buffer *vb)
{
	return container_of(vb, struct pinbed_vb, m2m.vb.vb2_buf);
}

static inline struct pinbed_image *pinbed_image(struct pinbed_ctx *ctx, u32 type)
{
	return V4L2_TYPE_IS_OUTPUT(type) ? &ctx->out : &ctx->cap;
}

/* Bytes of a line without padding. */
static inline u32 pinbed_line(const struct pinbed_image *image)
{
	return image->width * image->pixfmt->line;
}

/* Bytes of the image, padding included. */
static inline u32 pinbed_size(const struct pinbed_image *image)
{
	const struct pinbed_pixfmt *pixfmt = image->pixfmt;

	return image->stride * image->height * pixfmt->halves /
	       (2 * pixfmt->line);
}

/* Bytes of a plane of the image, padding included. */
static inline u32 pinbed_plane_size(const struct pinbed_image *image,
				    unsigned int plane)
{
	u32 luma = image->stride * image->height;

	if (image->pixfmt->planes == 1)
		return pinbed_size(image);
	return plane ? pinbed_size(image) - luma : luma;
}

/* pinbed_video_format.c */

void pinbed_format_init(struct pinbed_ctx *ctx, bool mplane);
u32 pinbed_ycbcr_enc(const struct pinbed_image *image);
u32 pinbed_quantization(const struct pinbed_image *image);
int pinbed_enum_fmt(struct file *file, void *priv, struct v4l2_fmtdesc *f);
int pinbed_enum_framesizes(struct file *file, void *priv,
			   struct v4l2_frmsizeenum *size);
int pinbed_g_fmt(struct file *file, void *priv, struct v4l2_format *f);
int pinbed_try_fmt(struct file *file, void *priv, struct v4l2_format *f);
int pinbed_s_fmt_cap(struct file *file, void *priv, struct v4l2_format *f);
int pinbed_s_fmt_out(struct file *file, void *priv, struct v4l2_format *f);

/* pinbed_video_queue.c */

int pinbed_init_queues(void *priv, struct vb2_queue *src, struct vb2_queue *dst);
void pinbed_release_leftovers(struct pinbed_ctx *ctx);

/* pinbed_video_memop.c */

extern const struct pinbed_memop pinbed_memops[PINBED_NODES];

/* pinbed_video_job.c */

extern const struct v4l2_m2m_ops pinbed_m2m_ops;

/* Whether a CAPTURE image is more than a copy of an OUTPUT image. */
bool pinbed_converts(const struct pinbed_ctx *ctx);
int pinbed_jobs_new(struct pinbed_ctx *ctx);
void pinbed_jobs_free(struct pinbed_ctx *ctx);

#endif /* PINBED_VIDEO_H */
