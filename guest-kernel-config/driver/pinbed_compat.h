/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Gives kernels from 5.10 on the interfaces of the newest one. Kbuild says what
 * the kernel at hand has.
 */
#ifndef PINBED_COMPAT_H
#define PINBED_COMPAT_H

#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <media/v4l2-fh.h>
#include <media/v4l2-mem2mem.h>
#include <media/videobuf2-v4l2.h>

#ifndef PINBED_HAVE_VIRTQUEUE_INFO
#define PINBED_COMPAT_MAX_QUEUES 8

struct virtqueue_info {
	const char *name;
	vq_callback_t *callback;
};

static inline int pinbed_find_vqs(struct virtio_device *vdev, unsigned int count,
				  struct virtqueue *vqs[],
				  struct virtqueue_info infos[])
{
	vq_callback_t *callbacks[PINBED_COMPAT_MAX_QUEUES];
	const char *names[PINBED_COMPAT_MAX_QUEUES];
	unsigned int i;

	if (count > PINBED_COMPAT_MAX_QUEUES)
		return -EINVAL;
	for (i = 0; i < count; i++) {
		callbacks[i] = infos[i].callback;
		names[i] = infos[i].name;
	}
	return virtio_find_vqs(vdev, count, vqs, callbacks, names, NULL);
}
#else
static inline int pinbed_find_vqs(struct virtio_device *vdev, unsigned int count,
				  struct virtqueue *vqs[],
				  struct virtqueue_info infos[])
{
	return virtio_find_vqs(vdev, count, vqs, infos, NULL);
}
#endif

#ifndef PINBED_HAVE_RESET_DEVICE
static inline void virtio_reset_device(struct virtio_device *vdev)
{
	vdev->config->reset(vdev);
}
#endif

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

#ifndef PINBED_HAVE_INVALIDATE_MAPPINGS
#define invalidate_mappings move_notify
#define dma_buf_invalidate_mappings dma_buf_move_notify
#endif

/*
 * Before 5.16 dma_map_resource() refuses an address that has a struct page, as
 * a carveout has where it shares a section with memory.
 */
static inline dma_addr_t pinbed_map_carveout(struct device *dev,
					     phys_addr_t address, size_t size,
					     enum dma_data_direction direction,
					     unsigned long attrs)
{
#ifdef PINBED_HAVE_RESOURCE_PFN_CHECK
	if (pfn_valid(PHYS_PFN(address)))
		return dma_map_page_attrs(dev, pfn_to_page(PHYS_PFN(address)),
					  offset_in_page(address), size,
					  direction, attrs);
#endif
	return dma_map_resource(dev, address, size, direction, attrs);
}

static inline void pinbed_unmap_carveout(struct device *dev,
					 phys_addr_t address,
					 dma_addr_t mapped, size_t size,
					 enum dma_data_direction direction,
					 unsigned long attrs)
{
#ifdef PINBED_HAVE_RESOURCE_PFN_CHECK
	if (pfn_valid(PHYS_PFN(address))) {
		dma_unmap_page_attrs(dev, mapped, size, direction, attrs);
		return;
	}
#endif
	dma_unmap_resource(dev, mapped, size, direction, attrs);
}

#ifndef PINBED_HAVE_VM_FLAGS_SET
static inline void vm_flags_set(struct vm_area_struct *vma, unsigned long flags)
{
	vma->vm_flags |= flags;
}
#endif

/* Always a special entry, where the architecture has these. */
#ifdef PINBED_HAVE_PFN_T
#include <linux/pfn_t.h>

static inline vm_fault_t pinbed_insert_mixed(struct vm_area_struct *vma,
					     unsigned long address,
					     unsigned long pfn)
{
	return vmf_insert_mixed(vma, address, __pfn_to_pfn_t(pfn, PFN_DEV));
}
#else
#define pinbed_insert_mixed vmf_insert_mixed
#endif

#ifdef PINBED_HAVE_IMPORT_NS_STRING
#define PINBED_IMPORT_NS_DMA_BUF MODULE_IMPORT_NS("DMA_BUF")
#else
#define PINBED_IMPORT_NS_DMA_BUF MODULE_IMPORT_NS(DMA_BUF)
#endif

#ifdef PINBED_HAVE_REMOVE_BUFS
#define PINBED_REMOVE_BUFS_OPS				\
	.vidioc_remove_bufs = v4l2_m2m_ioctl_remove_bufs,
#else
#define PINBED_REMOVE_BUFS_OPS
#endif

#endif /* PINBED_COMPAT_H */
