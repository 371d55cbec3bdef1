// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ways in which vb2 gets at a buffer's memory, and what of it the device is
 * given for each.
 */
#include <linux/err.h>
#include <media/videobuf2-dma-contig.h>
#include <media/videobuf2-dma-sg.h>
#include <media/videobuf2-vmalloc.h>

#include "pinbed_video.h"

static u32 pinbed_direction(struct vb2_buffer *vb)
{
	return V4L2_TYPE_IS_OUTPUT(vb->type) ? PINBED_DIRECTION_READ :
					       PINBED_DIRECTION_WRITE;
}

static struct pinbed_attachment *
pinbed_attach_dma_sg(struct pinbed_device *pdev, struct vb2_buffer *vb)
{
	return pinbed_attach(pdev, vb2_dma_sg_plane_desc(vb, 0),
			     vb2_plane_size(vb, 0), pinbed_direction(vb), 0);
}

static struct pinbed_attachment *
pinbed_attach_dma_contig(struct pinbed_device *pdev, struct vb2_buffer *vb)
{
	struct scatterlist sg;
	struct sg_table sgt = { .sgl = &sg, .nents = 1, .orig_nents = 1 };

	/* vb2 has mapped it; this only says where. */
	sg_init_table(&sg, 1);
	sg_dma_address(&sg) = vb2_dma_contig_plane_dma_addr(vb, 0);
	sg_dma_len(&sg) = vb2_plane_size(vb, 0);
	return pinbed_attach(pdev, &sgt, vb2_plane_size(vb, 0),
			     pinbed_direction(vb), 0);
}

static struct pinbed_attachment *
pinbed_attach_vmalloc(struct pinbed_device *pdev, struct vb2_buffer *vb)
{
	enum dma_data_direction direction = V4L2_TYPE_IS_OUTPUT(vb->type) ?
					    DMA_TO_DEVICE : DMA_FROM_DEVICE;
	struct pinbed_attachment *att;
	struct pinbed_bounce *bounce;

	/* No kernel mapping, as of a dma-buf whose exporter has none. */
	if (!vb2_plane_vaddr(vb, 0))
		return ERR_PTR(-EFAULT);
	bounce = pinbed_bounce_new(pdev, vb2_plane_size(vb, 0), direction);
	if (IS_ERR(bounce))
		return ERR_CAST(bounce);
	att = pinbed_attach(pdev, &bounce->sgt, bounce->length,
			    pinbed_direction(vb), 0);
	if (IS_ERR(att))
		pinbed_bounce_free(bounce);
	else
		att->bounce = bounce;
	return att;
}

const struct pinbed_memop pinbed_memops[PINBED_MEMOPS] = {
	{ "dma-sg", &vb2_dma_sg_memops, pinbed_attach_dma_sg },
	{ "dma-contig", &vb2_dma_contig_memops, pinbed_attach_dma_contig },
	{ "vmalloc", &vb2_vmalloc_memops, pinbed_attach_vmalloc },
};
