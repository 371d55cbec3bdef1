/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The V4L2 interfaces of the newest kernel for those from 5.10 on.
 */
#ifndef PINBED_COMPAT_MEDIA_H
#define PINBED_COMPAT_MEDIA_H

#include <media/v4l2-fh.h>
#include <media/v4l2-mem2mem.h>
#include <media/videobuf2-v4l2.h>

#ifndef PINBED_HAVE_FILE_TO_FH
static inline struct v4l2_fh *file_to_v4l2_fh(struct file *file)
{
	return file->private_data;
}
#endif

static inline void pinbed_fh_add(struct v4l2_fh *fh, struct file *file)
{
#ifdef PINBED_HAVE_FH_ADD_FILE
	v4l2_fh_add(fh, file);
#else
	file->private_data = fh;
	v4l2_fh_add(fh);
#endif
}

static inline void pinbed_fh_del(struct v4l2_fh *fh, struct file *file)
{
#ifdef PINBED_HAVE_FH_ADD_FILE
	v4l2_fh_del(fh, file);
#else
	v4l2_fh_del(fh);
#endif
}

static inline void pinbed_copy_metadata(const struct vb2_v4l2_buffer *out,
					struct vb2_v4l2_buffer *cap)
{
#ifdef PINBED_HAVE_COPY_FRAME_FLAGS
	v4l2_m2m_buf_copy_metadata(out, cap, true);
#else
	v4l2_m2m_buf_copy_metadata(out, cap);
#endif
}

/* Newer kernels drop and take the queue's lock themselves. */
#ifdef PINBED_HAVE_WAIT_PREPARE
#define PINBED_VB2_LOCK_OPS				\
	.wait_prepare = vb2_ops_wait_prepare,		\
	.wait_finish = vb2_ops_wait_finish,
#else
#define PINBED_VB2_LOCK_OPS
#endif

#ifdef PINBED_HAVE_REMOVE_BUFS
#define PINBED_REMOVE_BUFS_OPS				\
	.vidioc_remove_bufs = v4l2_m2m_ioctl_remove_bufs,
#else
#define PINBED_REMOVE_BUFS_OPS
#endif

#endif /* PINBED_COMPAT_MEDIA_H */
