// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected memory. The device holds it as protected while it is allocated: it
 * lets agents other than the TEE access it only as a trusted application allows,
 * and enciphers what is written there.
 */
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "pinbed_compat_dmabuf.h"
#include "pinbed_protected.h"

/*
 * @dev does the DMA. @length is in bytes. The memory comes from CMA if it is
 * longer than a page, as of a TEE that has no memory of its own.
 */
struct pinbed_protected *pinbed_protected_new(struct pinbed_device *pdev,
					      struct device *dev, u64 length)
{
	struct pinbed_protected *protected;
	int ret = -ENOMEM;

	if (!length || length > PINBED_EXPORT_MAX)
		return ERR_PTR(-EINVAL);
	protected = pinbed_zalloc_obj(*protected);
	if (!protected)
		return ERR_PTR(-ENOMEM);
	protected->dev = get_device(dev);
	protected->length = PAGE_ALIGN(length);
	protected->page = dma_alloc_pages(dev, protected->length,
					  &protected->address,
					  DMA_BIDIRECTIONAL,
					  GFP_KERNEL | __GFP_NOWARN);
	if (!protected->page)
		goto free;
	/* Cannot fail; 5.10 and 6.1 take the memory for a mapping to check. */
	if (dma_mapping_error(dev, protected->address))
		goto free_pages;
	protected->hold = pinbed_hold_contiguous(pdev, protected->address,
						 protected->length,
						 PINBED_DIRECTION_BOTH,
						 PINBED_ATTACH_PROTECTED);
	if (IS_ERR(protected->hold)) {
		ret = PTR_ERR(protected->hold);
		goto free_pages;
	}
	return protected;

free_pages:
	dma_free_pages(dev, protected->length, protected->page,
		       protected->address, DMA_BIDIRECTIONAL);
free:
	put_device(protected->dev);
	kfree(protected);
	return ERR_PTR(ret);
}

void pinbed_protected_free(struct pinbed_protected *protected)
{
	pinbed_hold_end(protected->hold);
	dma_free_pages(protected->dev, protected->length, protected->page,
		       protected->address, DMA_BIDIRECTIONAL);
	put_device(protected->dev);
	kfree(protected);
}

static struct sg_table *pinbed_protected_map(struct dma_buf_attachment *attach,
					     enum dma_data_direction direction)
{
	struct pinbed_protected *protected = attach->dmabuf->priv;
	struct sg_table *sgt;
	int ret;

	pinbed_assert_map_locked(attach);
	sgt = pinbed_zalloc_obj(*sgt);
	if (!sgt)
		return ERR_PTR(-ENOMEM);
	ret = sg_alloc_table(sgt, 1, GFP_KERNEL);
	if (ret)
		goto free;
	sg_set_page(sgt->sgl, protected->page, protected->length, 0);
	/* There is nothing for the CPU to see. */
	ret = dma_map_sgtable(attach->dev, sgt, direction,
			      DMA_ATTR_SKIP_CPU_SYNC);
	if (ret)
		goto free_table;
	return sgt;

free_table:
	sg_free_table(sgt);
free:
	kfree(sgt);
	return ERR_PTR(ret);
}

static void pinbed_protected_unmap(struct dma_buf_attachment *attach,
				   struct sg_table *sgt,
				   enum dma_data_direction direction)
{
	pinbed_assert_map_locked(attach);
	dma_unmap_sgtable(attach->dev, sgt, direction, DMA_ATTR_SKIP_CPU_SYNC);
	sg_free_table(sgt);
	kfree(sgt);
}

static void pinbed_protected_release(struct dma_buf *dmabuf)
{
	pinbed_protected_free(dmabuf->priv);
}

/* No mmap and no vmap: the CPU could only read what is enciphered. */
static const struct dma_buf_ops pinbed_protected_ops = {
	.map_dma_buf = pinbed_protected_map,
	.unmap_dma_buf = pinbed_protected_unmap,
	.release = pinbed_protected_release,
};

struct dma_buf *pinbed_protected_export(struct pinbed_device *pdev,
					struct pinbed_export *export)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct pinbed_protected *protected;
	struct dma_buf *dmabuf;

	if (!pdev->can_protect)
		return ERR_PTR(-EOPNOTSUPP);
	protected = pinbed_protected_new(pdev, pdev->dma, export->length);
	if (IS_ERR(protected))
		return ERR_CAST(protected);
	export->address = page_to_phys(protected->page);
	export->handle = protected->hold->handle;

	info.ops = &pinbed_protected_ops;
	info.size = protected->length;
	info.flags = O_RDWR;
	info.priv = protected;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf))
		pinbed_protected_free(protected);
	return dmabuf;
}
