// SPDX-License-Identifier: GPL-2.0-only
/*
 * Exports carveout memory as dma-bufs. Two kinds stay where they are, and differ
 * in how the CPU's mappings are marked. The third can be moved or revoked at any
 * time unless an importer pins it.
 *
 * There are no struct pages. An importer has to say that it can do without them
 * (peer2peer), unless the exporter was told not to ask.
 */
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "pinbed_compat_dmabuf.h"
#include "pinbed_compat_mm.h"
#include "pinbed_export.h"
#include "pinbed_protected.h"

static int pinbed_object_attach(struct dma_buf *dmabuf,
				struct dma_buf_attachment *attach)
{
	struct pinbed_object *object = dmabuf->priv;

	return attach->peer2peer || object->any_importer ? 0 : -EOPNOTSUPP;
}

static int pinbed_object_pin(struct dma_buf_attachment *attach)
{
	struct pinbed_object *object = attach->dmabuf->priv;

	dma_resv_assert_held(attach->dmabuf->resv);
	if (object->revoked)
		return -ENODEV;
	object->pins++;
	return 0;
}

static void pinbed_object_unpin(struct dma_buf_attachment *attach)
{
	struct pinbed_object *object = attach->dmabuf->priv;

	dma_resv_assert_held(attach->dmabuf->resv);
	object->pins--;
}

/*
 * Where the kernel has struct pages for a carveout because it shares a section
 * with memory, kernels before 5.16 refuse it as a resource.
 */
static dma_addr_t pinbed_object_dma_map(struct device *dev,
					const struct pinbed_object *object,
					enum dma_data_direction direction)
{
	unsigned long pfn = PHYS_PFN(object->address);

	/*
	 * A carveout has no kernel address to copy from, so it cannot be bounced,
	 * and not all kernels say so.
	 */
	if (dma_max_mapping_size(dev) != SIZE_MAX)
		return DMA_MAPPING_ERROR;
	/* Caches are the business of those who access by CPU. */
	if (pfn_valid(pfn))
		return dma_map_page_attrs(dev, pfn_to_page(pfn), 0,
					  object->size, direction,
					  DMA_ATTR_SKIP_CPU_SYNC);
	return dma_map_resource(dev, object->address, object->size, direction,
				DMA_ATTR_SKIP_CPU_SYNC);
}

static void pinbed_object_dma_unmap(struct device *dev,
				    const struct pinbed_object *object,
				    dma_addr_t address,
				    enum dma_data_direction direction)
{
	if (pfn_valid(PHYS_PFN(object->address)))
		dma_unmap_page_attrs(dev, address, object->size, direction,
				     DMA_ATTR_SKIP_CPU_SYNC);
	else
		dma_unmap_resource(dev, address, object->size, direction,
				   DMA_ATTR_SKIP_CPU_SYNC);
}

static struct sg_table *pinbed_object_map(struct dma_buf_attachment *attach,
					  enum dma_data_direction direction)
{
	struct pinbed_object *object = attach->dmabuf->priv;
	struct sg_table *sgt;
	dma_addr_t address;
	int ret;

	pinbed_assert_map_locked(attach);
	if (object->revoked)
		return ERR_PTR(-ENODEV);
	sgt = pinbed_zalloc_obj(*sgt);
	if (!sgt)
		return ERR_PTR(-ENOMEM);
	ret = sg_alloc_table(sgt, 1, GFP_KERNEL);
	if (ret)
		goto free;
	address = pinbed_object_dma_map(attach->dev, object, direction);
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

	pinbed_assert_map_locked(attach);
	pinbed_object_dma_unmap(attach->dev, object, sg_dma_address(sgt->sgl),
				direction);
	sg_free_table(sgt);
	kfree(sgt);
}

static vm_fault_t pinbed_object_fault(struct vm_fault *vmf)
{
	struct dma_buf *dmabuf = vmf->vma->vm_private_data;
	struct pinbed_object *object = dmabuf->priv;
	vm_fault_t ret = VM_FAULT_SIGBUS;

	dma_resv_lock(dmabuf->resv, NULL);
	/* The bytes may not have arrived yet. On a signal, the fault is retried. */
	if (pinbed_resv_wait(dmabuf->resv, false))
		ret = VM_FAULT_NOPAGE;
	else if (!object->revoked && vmf->pgoff < object->size >> PAGE_SHIFT)
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
		pinbed_carveout_free(object->address, object->size);
	kfree(object);
}

static const struct dma_buf_ops pinbed_fixed_ops = {
	.attach = pinbed_object_attach,
	.map_dma_buf = pinbed_object_map,
	.unmap_dma_buf = pinbed_object_unmap,
	.mmap = pinbed_object_mmap,
	.release = pinbed_object_release,
};

static const struct dma_buf_ops pinbed_mixedmap_ops = {
	.attach = pinbed_object_attach,
	.map_dma_buf = pinbed_object_map,
	.unmap_dma_buf = pinbed_object_unmap,
	.mmap = pinbed_mixedmap_mmap,
	.release = pinbed_object_release,
};

const struct dma_buf_ops pinbed_moving_ops = {
	.attach = pinbed_object_attach,
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

	if (!export->length || export->length > PINBED_EXPORT_MAX)
		return ERR_PTR(-EINVAL);
	object = pinbed_zalloc_obj(*object);
	if (!object)
		return ERR_PTR(-ENOMEM);
	object->size = PAGE_ALIGN(export->length);
	object->any_importer = export->flags & PINBED_EXPORT_ANY_IMPORTER;
	ret = pinbed_carveout_alloc(object->size, &object->address);
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
		pinbed_carveout_free(object->address, object->size);
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
	if (export->flags == PINBED_EXPORT_PROTECTED)
		return pinbed_protected_export(pdev, export);
	switch (export->flags & ~PINBED_EXPORT_ANY_IMPORTER) {
	case 0:
		return pinbed_object_export(export, &pinbed_fixed_ops);
	case PINBED_EXPORT_MOVING:
		return pinbed_object_export(export, &pinbed_moving_ops);
	case PINBED_EXPORT_MIXEDMAP:
		return pinbed_object_export(export, &pinbed_mixedmap_ops);
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

PINBED_IMPORT_NS_DMA_BUF;
