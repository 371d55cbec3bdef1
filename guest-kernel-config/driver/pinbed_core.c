// SPDX-License-Identifier: GPL-2.0-only
/*
 * Binds the virtio device and brings its parts up and down.
 */
#include <linux/bitops.h>
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "pinbed.h"
#include "pinbed_compat.h"
#include "pinbed_export.h"

/* /dev/pinbed has one name, so one device can have it. */
static unsigned long pinbed_bound;

static void pinbed_release(struct kref *ref)
{
	struct pinbed_device *pdev = container_of(ref, struct pinbed_device, ref);

	put_device(&pdev->vdev->dev);
	kfree(pdev->event_buffers);
	kfree(pdev);
}

struct pinbed_device *pinbed_get(struct pinbed_device *pdev)
{
	kref_get(&pdev->ref);
	return pdev;
}

void pinbed_put(struct pinbed_device *pdev)
{
	kref_put(&pdev->ref, pinbed_release);
}

static int pinbed_validate(struct virtio_device *vdev)
{
	if (!vdev->config->get) {
		dev_err(&vdev->dev, "device has no configuration space\n");
		return -EINVAL;
	}
	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "device is legacy, virtio 1.x is needed\n");
		return -EINVAL;
	}
	return 0;
}

static int pinbed_read_config(struct pinbed_device *pdev)
{
	struct virtio_device *vdev = pdev->vdev;
	u32 magic, version;

	virtio_cread_le(vdev, struct pinbed_config, magic, &magic);
	if (magic != PINBED_MAGIC) {
		dev_err(&vdev->dev, "magic is %#x, not a pinbed device\n", magic);
		return -ENODEV;
	}
	virtio_cread_le(vdev, struct pinbed_config, version, &version);
	if (version != PINBED_VERSION) {
		dev_err(&vdev->dev,
			"device speaks version %u, this driver %u: build both from one tree\n",
			version, PINBED_VERSION);
		return -ENODEV;
	}
	virtio_cread_le(vdev, struct pinbed_config, max_segments,
			&pdev->max_segments);
	virtio_cread_le(vdev, struct pinbed_config, max_length,
			&pdev->max_length);
	return 0;
}

static int pinbed_find_queues(struct pinbed_device *pdev)
{
	struct virtqueue_info infos[PINBED_QUEUE_COUNT] = {
		[PINBED_QUEUE_CONTROL] = { "control", pinbed_request_callback },
		[PINBED_QUEUE_VIDEO] = { "video", pinbed_request_callback },
		[PINBED_QUEUE_TEE] = { "tee", pinbed_request_callback },
		[PINBED_QUEUE_EVENT] = { "event", pinbed_event_callback },
	};
	struct virtqueue *vqs[PINBED_QUEUE_COUNT];
	unsigned int i;
	int ret;

	ret = pinbed_find_vqs(pdev->vdev, PINBED_QUEUE_COUNT, vqs, infos);
	if (ret)
		return ret;
	for (i = 0; i < PINBED_QUEUE_COUNT; i++) {
		pdev->queues[i].vq = vqs[i];
		pdev->queues[i].size = virtqueue_get_vring_size(vqs[i]);
	}
	return 0;
}

static void pinbed_drop_queues(struct pinbed_device *pdev)
{
	pinbed_stop(pdev);
	cancel_delayed_work_sync(&pdev->watchdog);
	pdev->vdev->config->del_vqs(pdev->vdev);
}

static struct pinbed_device *pinbed_new(struct virtio_device *vdev)
{
	struct pinbed_device *pdev;
	unsigned int i;

	pdev = kzalloc(sizeof(*pdev), GFP_KERNEL);
	if (!pdev)
		return NULL;
	kref_init(&pdev->ref);
	get_device(&vdev->dev);
	pdev->vdev = vdev;
	for (i = 0; i < PINBED_QUEUE_COUNT; i++) {
		spin_lock_init(&pdev->queues[i].lock);
		init_waitqueue_head(&pdev->queues[i].room);
	}
	INIT_DELAYED_WORK(&pdev->watchdog, pinbed_watchdog);
	mutex_init(&pdev->stop_lock);
	init_waitqueue_head(&pdev->event_wait);
	return pdev;
}

static int pinbed_probe(struct virtio_device *vdev)
{
	struct pinbed_device *pdev;
	int ret;

	if (test_and_set_bit(0, &pinbed_bound)) {
		dev_err(&vdev->dev, "another pinbed device is bound already\n");
		return -EBUSY;
	}

	pdev = pinbed_new(vdev);
	if (!pdev) {
		ret = -ENOMEM;
		goto unbind;
	}
	vdev->priv = pdev;

	ret = pinbed_read_config(pdev);
	if (ret)
		goto put;

	/*
	 * Segments have 64 bits of length. DMA is the parent's affair, which
	 * has its mask from the transport.
	 */
	dma_set_max_seg_size(vdev->dev.parent, UINT_MAX);

	ret = pinbed_find_queues(pdev);
	if (ret)
		goto put;

	virtio_device_ready(vdev);
	ret = pinbed_events_start(pdev);
	if (ret)
		goto drop_queues;

	ret = pinbed_ctl_register(pdev);
	if (ret)
		goto drop_queues;
	ret = pinbed_video_register(pdev);
	if (ret)
		goto unregister_ctl;
	ret = pinbed_tee_register(pdev);
	if (ret)
		goto unregister_video;
	return 0;

unregister_video:
	pinbed_video_unregister(pdev);
unregister_ctl:
	pinbed_ctl_unregister(pdev);
drop_queues:
	pinbed_drop_queues(pdev);
put:
	pinbed_put(pdev);
unbind:
	clear_bit(0, &pinbed_bound);
	return ret;
}

static void pinbed_remove(struct virtio_device *vdev)
{
	struct pinbed_device *pdev = vdev->priv;

	/* While the device can still be told to let go. */
	pinbed_tee_unregister(pdev);
	pinbed_video_unregister(pdev);
	pinbed_ctl_unregister(pdev);
	pinbed_drop_queues(pdev);
	pinbed_put(pdev);
	clear_bit(0, &pinbed_bound);
}

static const struct virtio_device_id pinbed_ids[] = {
	{ PINBED_VIRTIO_ID, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, pinbed_ids);

static struct virtio_driver pinbed_driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
	.id_table = pinbed_ids,
	.validate = pinbed_validate,
	.probe = pinbed_probe,
	.remove = pinbed_remove,
};
static int __init pinbed_init(void)
{
	int ret = pinbed_carveout_init();

	if (ret)
		return ret;
	ret = register_virtio_driver(&pinbed_driver);
	if (ret)
		pinbed_carveout_exit();
	return ret;
}
module_init(pinbed_init);

static void __exit pinbed_exit(void)
{
	unregister_virtio_driver(&pinbed_driver);
	pinbed_carveout_exit();
}
module_exit(pinbed_exit);

MODULE_DESCRIPTION("Driver of the pinbed device, which holds on to memory");
MODULE_LICENSE("GPL");
