// SPDX-License-Identifier: GPL-2.0-only
/*
 * Imports a dma-buf without pinning it. When the exporter moves it the device
 * lets go at once, and is given the new place when the dma-buf is next used.
 */
#include <linux/err.h>
#include <linux/uaccess.h>

#include "pinbed_compat_dmabuf.h"
#include "pinbed_export.h"

/* Caller must hold the reservation. */
static void pinbed_importer_unmap(struct pinbed_importer *importer,
				  struct dma_buf_attachment *attach)
{
	dma_resv_assert_held(attach->dmabuf->resv);
	if (importer->hold)
		pinbed_hold_end(importer->hold);
	importer->hold = NULL;
	if (importer->sgt)
		dma_buf_unmap_attachment(attach, importer->sgt,
					 pinbed_dma_direction(importer->direction));
	importer->sgt = NULL;
}

/*
 * DETACH waits for bytes that are on their way, so no DMA comes after this. It
 * may be called before pinbed_importer_attach() knows of @attach; then there is
 * nothing to let go of.
 */
static void pinbed_importer_invalidate(struct dma_buf_attachment *attach)
{
	pinbed_importer_unmap(attach->importer_priv, attach);
}

static const struct dma_buf_attach_ops pinbed_attach_ops = {
	.allow_peer2peer = true,
	PINBED_INVALIDATE_OP(pinbed_importer_invalidate),
};

/* Caller must hold the reservation. */
static int pinbed_importer_map(struct pinbed_importer *importer)
{
	struct dma_buf_attachment *attach = importer->attach;
	struct pinbed_hold *hold;
	struct sg_table *sgt;
	int ret;

	dma_resv_assert_held(attach->dmabuf->resv);
	if (importer->hold)
		return 0;
	sgt = dma_buf_map_attachment(attach,
				     pinbed_dma_direction(importer->direction));
	if (IS_ERR(sgt))
		return PTR_ERR(sgt);
	importer->sgt = sgt;
	/* The bytes may not have arrived yet. */
	ret = pinbed_resv_wait(attach->dmabuf->resv, false);
	if (ret)
		goto unmap;
	hold = pinbed_hold_begin(importer->pdev, sgt, attach->dmabuf->size,
				 importer->direction, 0);
	if (IS_ERR(hold)) {
		ret = PTR_ERR(hold);
		goto unmap;
	}
	importer->hold = hold;
	return 0;

unmap:
	pinbed_importer_unmap(importer, attach);
	return ret;
}

void pinbed_importer_init(struct pinbed_importer *importer,
			  struct pinbed_device *pdev)
{
	mutex_init(&importer->lock);
	importer->pdev = pdev;
}

static void pinbed_importer_detach(struct pinbed_importer *importer)
{
	struct dma_buf_attachment *attach = importer->attach;
	struct dma_buf *dmabuf;

	if (!attach)
		return;
	dmabuf = attach->dmabuf;
	dma_resv_lock(dmabuf->resv, NULL);
	pinbed_importer_unmap(importer, attach);
	dma_resv_unlock(dmabuf->resv);
	dma_buf_detach(dmabuf, attach);
	dma_buf_put(dmabuf);
	importer->attach = NULL;
}

void pinbed_importer_exit(struct pinbed_importer *importer)
{
	pinbed_importer_detach(importer);
	mutex_destroy(&importer->lock);
}

/* Takes over the reference to @dmabuf. */
static int pinbed_importer_attach(struct pinbed_importer *importer,
				  struct dma_buf *dmabuf, u32 direction)
{
	struct dma_buf_attachment *attach;

	if (importer->attach && importer->attach->dmabuf == dmabuf &&
	    importer->direction == direction) {
		dma_buf_put(dmabuf);
		return 0;
	}
	pinbed_importer_detach(importer);
	importer->direction = direction;
	attach = dma_buf_dynamic_attach(dmabuf, importer->pdev->dma,
					&pinbed_attach_ops, importer);
	if (IS_ERR(attach)) {
		dma_buf_put(dmabuf);
		return PTR_ERR(attach);
	}
	importer->attach = attach;
	return 0;
}

static int pinbed_importer_use(struct pinbed_importer *importer,
			       struct pinbed_import *import)
{
	struct dma_buf *dmabuf = dma_buf_get(import->fd);
	int ret;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	ret = pinbed_importer_attach(importer, dmabuf, import->direction);
	if (ret)
		return ret;
	dma_resv_lock(dmabuf->resv, NULL);
	ret = pinbed_importer_map(importer);
	if (!ret)
		import->handle = importer->hold->handle;
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
	ret = mutex_lock_interruptible(&importer->lock);
	if (ret)
		return ret;
	ret = pinbed_importer_use(importer, &import);
	mutex_unlock(&importer->lock);
	if (!ret && put_user(import.handle, &arg->handle))
		ret = -EFAULT;
	return ret;
}
