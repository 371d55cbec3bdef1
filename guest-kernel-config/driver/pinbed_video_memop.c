// SPDX-License-Identifier: GPL-2.0-only
/*
 * The allocators of vb2, and what the device holds of their buffers.
 */
#include <linux/err.h>
#include <linux/mm.h>
#include <media/videobuf2-dma-contig.h>
#include <media/videobuf2-dma-sg.h>
#include <media/videobuf2-vmalloc.h>

#include "pinbed_video.h"

static u32 pinbed_direction(struct vb2_buffer *vb)
{
	return V4L2_TYPE_IS_OUTPUT(vb->type) ? PINBED_DIRECTION_READ :
					       PINBED_DIRECTION_WRITE;
}

static int pinbed_hold_dma_sg(struct pinbed_node *node, struct vb2_buffer *vb,
			      unsigned int index, struct pinbed_plane *plane)
{
	plane->hold = pinbed_hold_begin(node->pdev,
					vb2_dma_sg_plane_desc(vb, index),
					vb2_plane_size(vb, index),
					pinbed_direction(vb), 0);
	if (IS_ERR(plane->hold))
		return PTR_ERR(plane->hold);
	if (vb->memory == V4L2_MEMORY_USERPTR)
		pinbed_hold_expect_pins(plane->hold,
					vb2_dma_sg_plane_desc(vb, index));
	return 0;
}

static int pinbed_hold_dma_contig(struct pinbed_node *node,
				  struct vb2_buffer *vb, unsigned int index,
				  struct pinbed_plane *plane)
{
	dma_addr_t address = vb2_dma_contig_plane_dma_addr(vb, index);

	plane->hold = pinbed_hold_contiguous(node->pdev, address,
					     vb2_plane_size(vb, index),
					     pinbed_direction(vb), 0);
	if (IS_ERR(plane->hold))
		return PTR_ERR(plane->hold);
	/* vb2 does not show the pages; only some mappings can be undone. */
	if (vb->memory == V4L2_MEMORY_USERPTR &&
	    !device_iommu_mapped(node->dma))
		pinbed_hold_expect_pins_at(plane->hold, address,
					   vb2_plane_size(vb, index));
	return 0;
}

static int pinbed_hold_vmalloc(struct pinbed_node *node, struct vb2_buffer *vb,
			       unsigned int index, struct pinbed_plane *plane)
{
	/* No kernel mapping, as of a dma-buf whose exporter has none. */
	if (!vb2_plane_vaddr(vb, index))
		return -EFAULT;
	plane->bounce = pinbed_bounce_new(node->pdev, node->dma,
					  vb2_plane_size(vb, index),
					  pinbed_direction(vb));
	if (IS_ERR(plane->bounce))
		return PTR_ERR(plane->bounce);
	plane->hold = plane->bounce->hold;
	if (vb->memory == V4L2_MEMORY_USERPTR &&
	    is_vmalloc_addr(vb2_plane_vaddr(vb, index)))
		pinbed_hold_expect_pins_mapped(plane->hold,
					       vb2_plane_vaddr(vb, index),
					       vb2_plane_size(vb, index));
	return 0;
}

const struct pinbed_memop pinbed_memops[PINBED_NODES] = {
	{ "dma-sg", false, &vb2_dma_sg_memops, pinbed_hold_dma_sg },
	{ "dma-contig", false, &vb2_dma_contig_memops, pinbed_hold_dma_contig },
	{ "vmalloc", false, &vb2_vmalloc_memops, pinbed_hold_vmalloc },
	{ "dma-sg-mplane", true, &vb2_dma_sg_memops, pinbed_hold_dma_sg },
};
