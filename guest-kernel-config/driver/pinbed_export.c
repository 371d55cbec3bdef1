// SPDX-License-Identifier: GPL-2.0-only
/*
 * Exports carveout memory as dma-bufs. Two kinds stay where they are, and differ
 * in how the CPU's mappings are marked. The other can be moved or revoked at any
 * time unless an importer pins it: importers are told, and the CPU's mappings are
 * taken away.
 */
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "pinbed_compat.h"
#include "pinbed_export.h"
#include "pinbed_protected.h"

/**
 * struct pinbed_object - Memory of a dma-buf. Protected by the dma-buf's
 * reservation, but for the fields that never change: @size, and those of an
 * object that cannot move.
 * @size: In bytes, a multiple of the page size.
 * @address: Where it is.
 * @revoked: It is nowhere.
 * @pins: Importers that need it where it is.
 */
struct pinbed_object {
	size_t size;
	phys_addr_t address;
	bool revoked;
	unsigned int pins;
};

static int pinbed_object_pin(struct dma_buf_attachment *attach)
{
	struct pinbed_object *object = attach->dmabuf->priv;

	if (object->revoked)
		return -ENODEV;
	object->pins++;
	return 0;
}

static void pinbed_object_unpin(struct dma_buf_attachment *attach)
{
	struct pinbed_object *object = attach->dmabuf->priv;

	object->pins--;
}

/* There are no pages to show, only where the device finds the bytes. */
static struct sg_table *pinbed_object_map(struct dma_buf_attachment *attach,
					  enum dma_data_direction direction)
{
	struct pinbed_object *object = attach->dmabuf->priv;
	struct sg_table *sgt;
	dma_addr_t address;
	int ret;

	if (object->revoked)
		return ERR_PTR(-ENODEV);
	sgt = kzalloc(sizeof(*sgt), GFP_KERNEL);
	if (!sgt)
		return ERR_PTR(-ENOMEM);
	ret = sg_alloc_table(sgt, 1, GFP_KERNEL);
	if (ret)
		goto free;
	/* Caches are the business of those who access by CPU. */
	address = pinbed_map_carveout(attach->dev, object->address,
				      object->size, direction,
				      DMA_ATTR_SKIP_CPU_SYNC);
	ret = dma_mapping_error(attach->dev, address);
	if (ret)
		goto free_table;
	sg_set_page(sgt->sgl, NULL, object->size, 0);
	sg_dma_address(sgt->sgl) = address;
	sg_dma_len(sgt->sgl) = object->size;
	return sgt;

free_table:
	sg_free_table(sgt);
free:
	kfree(sgt);
	return ERR_PTR(ret);
}

static void pinbed_object_unmap(struct dma_buf_attachment *attach,
				struct sg_table *sgt,
				enum dma_data_direction direction)
{
	struct pinbed_object *object = attach->dmabuf->priv;

	pinbed_unmap_carveout(attach->dev, object->address,
			      sg_dma_address(sgt->sgl), sg_dma_len(sgt->sgl),
			      direction, DMA_ATTR_SKIP_CPU_SYNC);
	sg_free_table(sgt);
	kfree(sgt);
}

static vm_fault_t pinbed_object_fault(struct vm_fault *vmf)
{
	struct dma_buf *dmabuf = vmf->vma->vm_private_data;
	struct pinbed_object *object = dmabuf->priv;
	vm_fault_t ret = VM_FAULT_SIGBUS;

	dma_resv_lock(dmabuf->resv, NULL);
	if (!object->revoked && vmf->pgoff < object->size >> PAGE_SHIFT)
		ret = vmf_insert_pfn(vmf->vma, vmf->address,
				     PHYS_PFN(object->address) + vmf->pgoff);
	dma_resv_unlock(dmabuf->resv);
	return ret;
}

static const struct vm_operations_struct pinbed_object_vm_ops = {
	.fault = pinbed_object_fault,
};

static int pinbed_object_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = dmabuf;
	vma->vm_ops = &pinbed_object_vm_ops;
	return 0;
}

static vm_fault_t pinbed_mixedmap_fault(struct vm_fault *vmf)
{
	struct dma_buf *dmabuf = vmf->vma->vm_private_data;
	struct pinbed_object *object = dmabuf->priv;

	if (vmf->pgoff >= object->size >> PAGE_SHIFT)
		return VM_FAULT_SIGBUS;
	return pinbed_insert_mixed(vmf->vma, vmf->address,
				   PHYS_PFN(object->address) + vmf->pgoff);
}

static const struct vm_operations_struct pinbed_mixedmap_vm_ops = {
	.fault = pinbed_mixedmap_fault,
};

/* Nothing but its entries says that there are no pages in this mapping. */
static int pinbed_mixedmap_mmap(struct dma_buf *dmabuf,
				struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vm_flags_set(vma, VM_MIXEDMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = dmabuf;
	vma->vm_ops = &pinbed_mixedmap_vm_ops;
	return 0;
}

static void pinbed_object_release(struct dma_buf *dmabuf)
{
	struct pinbed_object *object = dmabuf->priv;

	if (!object->revoked)
		pinbed_carveout_give(object->address, object->size);
	kfree(object);
}

static const struct dma_buf_ops pinbed_fixed_ops = {
	.map_dma_buf = pinbed_object_map,
	.unmap_dma_buf = pinbed_object_unmap,
	.mmap = pinbed_object_mmap,
	.release = pinbed_object_release,
};

static const struct dma_buf_ops pinbed_mixedmap_ops = {
	.map_dma_buf = pinbed_object_map,
	.unmap_dma_buf = pinbed_object_unmap,
	.mmap = pinbed_mixedmap_mmap,
	.release = pinbed_object_release,
};

static const struct dma_buf_ops pinbed_moving_ops = {
	.pin = pinbed_object_pin,
	.unpin = pinbed_object_unpin,
	.map_dma_buf = pinbed_object_map,
	.unmap_dma_buf = pinbed_object_unmap,
	.mmap = pinbed_object_mmap,
	.release = pinbed_object_release,
};

static struct dma_buf *pinbed_object_export(struct pinbed_export *export,
					    const struct dma_buf_ops *ops)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct pinbed_object *object;
	struct dma_buf *dmabuf;
	int ret;

	if (!export->length || export->length > SIZE_MAX - PAGE_SIZE)
		return ERR_PTR(-EINVAL);
	object = kzalloc(sizeof(*object), GFP_KERNEL);
	if (!object)
		return ERR_PTR(-ENOMEM);
	object->size = PAGE_ALIGN(export->length);
	ret = pinbed_carveout_take(object->size, &object->address);
	if (ret) {
		kfree(object);
		return ERR_PTR(ret);
	}
	export->address = object->address;

	info.ops = ops;
	info.size = object->size;
	info.flags = O_RDWR;
	info.priv = object;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		pinbed_carveout_give(object->address, object->size);
		kfree(object);
	}
	return dmabuf;
}

static struct dma_buf *pinbed_export_new(struct pinbed_device *pdev,
					 struct pinbed_export *export)
{
	if (export->reserved)
		return ERR_PTR(-EINVAL);
	export->address = 0;
	export->handle = 0;
	switch (export->flags) {
	case 0:
		return pinbed_object_export(export, &pinbed_fixed_ops);
	case PINBED_EXPORT_MOVING:
		return pinbed_object_export(export, &pinbed_moving_ops);
	case PINBED_EXPORT_MIXEDMAP:
		return pinbed_object_export(export, &pinbed_mixedmap_ops);
	case PINBED_EXPORT_PROTECTED:
		return pinbed_protected_export(pdev, export);
	default:
		return ERR_PTR(-EINVAL);
	}
}

long pinbed_ioctl_export(struct pinbed_device *pdev,
			 struct pinbed_export __user *arg)
{
	struct pinbed_export export;
	struct dma_buf *dmabuf;
	int fd;

	if (copy_from_user(&export, arg, sizeof(export)))
		return -EFAULT;
	dmabuf = pinbed_export_new(pdev, &export);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	/* Nothing may fail once user space can see the descriptor. */
	if (copy_to_user(arg, &export, sizeof(export))) {
		dma_buf_put(dmabuf);
		return -EFAULT;
	}
	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}

/* The reservation is held. When this returns nobody uses the old place. */
static void pinbed_object_evict(struct dma_buf *dmabuf)
{
	dma_buf_invalidate_mappings(dmabuf);
	unmap_mapping_range(dmabuf->file->f_mapping, 0, 0, 1);
}

static int pinbed_object_move(struct dma_buf *dmabuf, bool revoke,
			      phys_addr_t *address)
{
	struct pinbed_object *object = dmabuf->priv;
	phys_addr_t old = object->address;
	int ret;

	if (object->revoked)
		return -ENODEV;
	if (object->pins)
		return -EBUSY;
	*address = 0;
	if (!revoke) {
		ret = pinbed_carveout_take(object->size, address);
		if (ret)
			return ret;
	}
	pinbed_object_evict(dmabuf);
	if (revoke)
		object->revoked = true;
	else
		memcpy(pinbed_carveout_cpu(*address), pinbed_carveout_cpu(old),
		       object->size);
	object->address = *address;
	pinbed_carveout_give(old, object->size);
	return 0;
}

long pinbed_ioctl_move(struct pinbed_move __user *arg)
{
	struct dma_buf *dmabuf;
	struct pinbed_move move;
	phys_addr_t address = 0;
	long ret = -EINVAL;

	if (copy_from_user(&move, arg, sizeof(move)))
		return -EFAULT;
	if (move.flags & ~PINBED_MOVE_REVOKE)
		return -EINVAL;
	dmabuf = dma_buf_get(move.fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	if (dmabuf->ops == &pinbed_moving_ops) {
		dma_resv_lock(dmabuf->resv, NULL);
		ret = pinbed_object_move(dmabuf, move.flags & PINBED_MOVE_REVOKE,
					 &address);
		dma_resv_unlock(dmabuf->resv);
	}
	dma_buf_put(dmabuf);
	move.address = address;
	if (!ret && put_user(move.address, &arg->address))
		ret = -EFAULT;
	return ret;
}

PINBED_IMPORT_NS_DMA_BUF;
