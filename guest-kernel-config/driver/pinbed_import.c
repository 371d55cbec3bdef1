// SPDX-License-Identifier: GPL-2.0-only
/*
 * Imports a dma-buf without pinning it. When the exporter moves it the device lets
 * go at once, and is given the new place when the dma-buf is next used.
 */
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/uaccess.h>

#include "pinbed_compat.h"
#include "pinbed_export.h"

static enum dma_data_direction pinbed_dma_direction(u32 direction)
{
	switch (direction) {
	case PINBED_DIRECTION_READ:
		return DMA_TO_DEVICE;
	case PINBED_DIRECTION_WRITE:
		return DMA_FROM_DEVICE;
	case PINBED_DIRECTION_BOTH:
		return DMA_BIDIRECTIONAL;
	default:
		return DMA_NONE;
	}
}

/* The reservation is held. */
static void pinbed_importer_release(struct pinbed_importer *importer)
{
	dma_resv_assert_held(importer->attach->dmabuf->resv);
	if (importer->att)
		pinbed_detach(importer->pdev, importer->att);
	importer->att = NULL;
	if (importer->sgt)
		dma_buf_unmap_attachment(importer->attach, importer->sgt,
					 pinbed_dma_direction(importer->direction));
	importer->sgt = NULL;
}

/* DETACH waits for bytes that are on their way, so no DMA comes after this. */
static void pinbed_importer_invalidate(struct dma_buf_attachment *attach)
{
	pinbed_importer_release(attach->importer_priv);
}

static const struct dma_buf_attach_ops pinbed_attach_ops = {
	.invalidate_mappings = pinbed_importer_invalidate,
};

/* The reservation is held. */
static int pinbed_importer_acquire(struct pinbed_importer *importer)
{
	struct dma_buf_attachment *attach = importer->attach;
	struct pinbed_attachment *att;
	struct sg_table *sgt;

	if (importer->att)
		return 0;
	sgt = dma_buf_map_attachment(attach,
				     pinbed_dma_direction(importer->direction));
	if (IS_ERR(sgt))
		return PTR_ERR(sgt);
	importer->sgt = sgt;
	att = pinbed_attach(importer->pdev, sgt, attach->dmabuf->size,
			    importer->direction, 0);
	if (IS_ERR(att)) {
		pinbed_importer_release(importer);
		return PTR_ERR(att);
	}
	importer->att = att;
	return 0;
}

void pinbed_importer_init(struct pinbed_importer *importer,
			  struct pinbed_device *pdev)
{
	mutex_init(&importer->lock);
	importer->pdev = pdev;
}

static void pinbed_importer_forget(struct pinbed_importer *importer)
{
	struct dma_buf_attachment *attach = importer->attach;
	struct dma_buf *dmabuf;

	if (!attach)
		return;
	dmabuf = attach->dmabuf;
	dma_resv_lock(dmabuf->resv, NULL);
	pinbed_importer_release(importer);
	dma_resv_unlock(dmabuf->resv);
	dma_buf_detach(dmabuf, attach);
	dma_buf_put(dmabuf);
	importer->attach = NULL;
}

void pinbed_importer_drop(struct pinbed_importer *importer)
{
	pinbed_importer_forget(importer);
	mutex_destroy(&importer->lock);
}

/* Takes over the reference to @dmabuf. */
static int pinbed_importer_attach(struct pinbed_importer *importer,
				  struct dma_buf *dmabuf)
{
	struct dma_buf_attachment *attach;

	attach = dma_buf_dynamic_attach(dmabuf, importer->pdev->vdev->dev.parent,
					&pinbed_attach_ops, importer);
	if (IS_ERR(attach)) {
		dma_buf_put(dmabuf);
		return PTR_ERR(attach);
	}
	importer->attach = attach;
	return 0;
}

/* Makes @dmabuf the one that is followed; takes over the reference to it. */
static int pinbed_importer_choose(struct pinbed_importer *importer,
				  struct dma_buf *dmabuf, u32 direction)
{
	if (importer->attach && importer->attach->dmabuf == dmabuf &&
	    importer->direction == direction) {
		dma_buf_put(dmabuf);
		return 0;
	}
	pinbed_importer_forget(importer);
	importer->direction = direction;
	return pinbed_importer_attach(importer, dmabuf);
}

static int pinbed_importer_use(struct pinbed_importer *importer,
			       struct pinbed_import *import)
{
	struct dma_buf *dmabuf = dma_buf_get(import->fd);
	int ret;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	ret = pinbed_importer_choose(importer, dmabuf, import->direction);
	if (ret)
		return ret;
	dma_resv_lock(dmabuf->resv, NULL);
	ret = pinbed_importer_acquire(importer);
	if (!ret)
		import->handle = importer->att->handle;
	dma_resv_unlock(dmabuf->resv);
	return ret;
}

long pinbed_ioctl_import(struct pinbed_importer *importer,
			 struct pinbed_import __user *arg)
{
	struct pinbed_import import;
	long ret;

	if (copy_from_user(&import, arg, sizeof(import)))
		return -EFAULT;
	if (pinbed_dma_direction(import.direction) == DMA_NONE)
		return -EINVAL;
	mutex_lock(&importer->lock);
	ret = pinbed_importer_use(importer, &import);
	mutex_unlock(&importer->lock);
	if (!ret && put_user(import.handle, &arg->handle))
		ret = -EFAULT;
	return ret;
}
