// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device: who refers to it, how it dies, and in whose name it does DMA.
 *
 * A device dies once, when it is unbound or when it does not do what it was
 * asked. From then on it takes no request. It is reset before anybody can see
 * that a request or a hold has ended, so memory that is freed afterwards is out
 * of its reach.
 */
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/iommu.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "pinbed.h"
#include "pinbed_compat_virtio.h"

/* PINBED_INJECT_DELAY asks for up to 10 s. */
static unsigned int timeout_s = 30;
module_param(timeout_s, uint, 0644);
MODULE_PARM_DESC(timeout_s, "Seconds without an answer after which the device is reset");

static unsigned int max_segment;
module_param(max_segment, uint, 0444);
MODULE_PARM_DESC(max_segment, "Largest DMA segment in bytes, whole pages; 0 for no limit");

struct pinbed_device *pinbed_device_new(struct virtio_device *vdev)
{
	struct pinbed_device *pdev;
	unsigned int i;

	pdev = pinbed_zalloc_obj(*pdev);
	if (!pdev)
		return NULL;
	pdev->event_buffers = kcalloc(PINBED_EVENTS,
				      sizeof(*pdev->event_buffers), GFP_KERNEL);
	pdev->heartbeat = pinbed_request_new(sizeof(struct pinbed_request_header),
					     sizeof(struct pinbed_status_response));
	if (!pdev->event_buffers || !pdev->heartbeat) {
		if (pdev->heartbeat)
			pinbed_request_put(pdev->heartbeat);
		kfree(pdev->event_buffers);
		kfree(pdev);
		return NULL;
	}
	kref_init(&pdev->ref);
	get_device(&vdev->dev);
	pdev->vdev = vdev;
	spin_lock_init(&pdev->lock);
	for (i = 0; i < PINBED_QUEUE_COUNT; i++)
		init_waitqueue_head(&pdev->queues[i].room);
	INIT_LIST_HEAD(&pdev->holds);
	mutex_init(&pdev->kill_lock);
	complete(&pdev->heartbeat->answer);
	init_waitqueue_head(&pdev->event_wait);
	init_completion(&pdev->tee_gone);
	return pdev;
}

static void pinbed_device_release(struct kref *ref)
{
	struct pinbed_device *pdev = container_of(ref, struct pinbed_device, ref);

	put_device(pdev->dma);
	put_device(&pdev->vdev->dev);
	pinbed_request_put(pdev->heartbeat);
	kfree(pdev->event_buffers);
	mutex_destroy(&pdev->kill_lock);
	kfree(pdev);
}

struct pinbed_device *pinbed_device_get(struct pinbed_device *pdev)
{
	kref_get(&pdev->ref);
	return pdev;
}

void pinbed_device_put(struct pinbed_device *pdev)
{
	kref_put(&pdev->ref, pinbed_device_release);
}

/*
 * Resets the device, for good. When this returns it does no DMA, holds nothing
 * and has no request.
 */
void pinbed_device_kill(struct pinbed_device *pdev)
{
	struct pinbed_hold *hold, *next;
	bool dead;

	mutex_lock(&pdev->kill_lock);
	spin_lock_irq(&pdev->lock);
	dead = pdev->dead;
	WRITE_ONCE(pdev->dead, true);
	spin_unlock_irq(&pdev->lock);
	if (dead)
		goto unlock;

	virtio_break_device(pdev->vdev);
	virtio_reset_device(pdev->vdev);

	spin_lock_irq(&pdev->lock);
	list_for_each_entry_safe(hold, next, &pdev->holds, entry)
		list_del_init(&hold->entry);
	/* Those who wait in the video nodes are told by the work. */
	mod_delayed_work(pinbed_wq, &pdev->heartbeat_work, 0);
	spin_unlock_irq(&pdev->lock);
	pinbed_request_abort_all(pdev);
	wake_up_all(&pdev->event_wait);
unlock:
	mutex_unlock(&pdev->kill_lock);
}

static bool pinbed_heartbeat_is_out(struct pinbed_device *pdev)
{
	return !completion_done(&pdev->heartbeat->answer);
}

/* Asks for a sign of life, which comes as every other answer does. */
static void pinbed_heartbeat_send(struct pinbed_device *pdev)
{
	if (pinbed_heartbeat_is_out(pdev))
		return;
	pinbed_request_init(pdev, pdev->heartbeat, PINBED_OP_STATUS);
	/* If the queue is full, the requests in it tell as much. */
	if (pinbed_request_try(pdev, PINBED_QUEUE_CONTROL, pdev->heartbeat))
		complete(&pdev->heartbeat->answer);
}

/*
 * Whether the device is given up: it broke a ring, or has not answered in time.
 * If not, and while it has requests, it is asked for a sign of life and looked at
 * again.
 */
bool pinbed_device_is_late(struct pinbed_device *pdev)
{
	unsigned int limit = max(READ_ONCE(timeout_s), 1U);
	bool late = false, broken = false;
	unsigned int i, waiting = 0;

	spin_lock_irq(&pdev->lock);
	for (i = 0; i < PINBED_QUEUE_COUNT && !pdev->dead; i++) {
		struct pinbed_queue *q = &pdev->queues[i];

		broken |= virtqueue_is_broken(q->vq);
		waiting += q->waiting;
		if (q->prompt)
			late |= time_after_eq(jiffies,
					      q->progress + limit * HZ);
	}
	if (waiting && !pdev->dead)
		queue_delayed_work(pinbed_wq, &pdev->heartbeat_work, HZ);
	spin_unlock_irq(&pdev->lock);

	if (broken)
		dev_err(&pdev->vdev->dev,
			"device broke its ring: given up until it is bound again\n");
	else if (late)
		dev_err(&pdev->vdev->dev,
			"no answer for %u s: given up until it is bound again\n",
			limit);
	else if (waiting > pinbed_heartbeat_is_out(pdev))
		pinbed_heartbeat_send(pdev);
	return broken || late;
}

/*
 * A device for the DMA API, so that mappings of the same memory by several users
 * are told apart. It may be used after the binding has ended, until its last
 * reference is put: its DMA addresses are physical ones. Behind an IOMMU, only
 * the transport's device has an address space; there it is that one. Its name is
 * @pdev's and @user.
 */
struct device *pinbed_dma_device_new(struct pinbed_device *pdev,
				     struct device *parent, const char *user)
{
	struct device *transport = pdev->vdev->dev.parent;
	char name[32];
	struct platform_device_info info = {
		.parent = parent,
		.name = name,
		.id = PLATFORM_DEVID_AUTO,
		.dma_mask = DMA_BIT_MASK(64),
	};
	struct platform_device *platform;

	if (device_iommu_mapped(transport))
		return get_device(transport);
	snprintf(name, sizeof(name), "%s-%s", pdev->name, user);
	platform = platform_device_register_full(&info);
	if (IS_ERR(platform))
		return ERR_CAST(platform);
	set_dev_node(&platform->dev, dev_to_node(transport));
	dma_set_max_seg_size(&platform->dev,
			     max_segment ? max_t(unsigned int, max_segment,
						 PAGE_SIZE) : UINT_MAX);
	/* One for registration, one for the caller. */
	return get_device(&platform->dev);
}

/*
 * As pinbed_dma_device_new(), for memory that the device and the CPU use at the same
 * time, where nothing tells the kernel to copy to and from a bounce buffer: not
 * even swiotlb=force gives it one. (5.10 bounces whatever the device.)
 */
struct device *pinbed_dma_device_new_coherent(struct pinbed_device *pdev,
					      struct device *parent,
					      const char *user)
{
	struct device *dev = pinbed_dma_device_new(pdev, parent, user);

#if defined(PINBED_HAVE_IO_TLB_MEM) && defined(CONFIG_SWIOTLB)
	if (!IS_ERR(dev) && dev->bus == &platform_bus_type)
		dev->dma_io_tlb_mem = NULL;
#endif
	return dev;
}

/* The caller keeps its reference. */
void pinbed_dma_device_unregister(struct device *dev)
{
	if (dev->bus == &platform_bus_type)
		platform_device_unregister(to_platform_device(dev));
}

/* What the device takes, and what a bounce buffer holds where there is one. */
unsigned int pinbed_max_segment(struct device *dev)
{
	return min_t(size_t, dma_get_max_seg_size(dev),
		     dma_max_mapping_size(dev)) & PAGE_MASK;
}
