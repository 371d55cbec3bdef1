// SPDX-License-Identifier: GPL-2.0-only
/*
 * Binds and unbinds the virtio device.
 */
#include <linux/bitops.h>
#include <linux/device.h>
#include <linux/idr.h>
#include <linux/iommu.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/workqueue.h>

#include "pinbed.h"

#define CREATE_TRACE_POINTS
#include "pinbed_trace.h"
#include "pinbed_compat_virtio.h"
#include "pinbed_export.h"

struct workqueue_struct *pinbed_wq;

static unsigned int feature_mask = UINT_MAX;
module_param(feature_mask, uint, 0444);
MODULE_PARM_DESC(feature_mask, "Features of the device to accept, by bit; it is used as one that lacks the others");

static const unsigned int pinbed_features[] = {
	PINBED_F_TEE,
	PINBED_F_PROTECTED,
	PINBED_F_SABOTAGE,
};

/* Numbers of the bound devices; see struct pinbed_device. */
static DEFINE_IDA(pinbed_numbers);

static int pinbed_validate(struct virtio_device *vdev)
{
	unsigned int i;

	if (!vdev->config->get) {
		dev_err(&vdev->dev, "device has no configuration space\n");
		return -EINVAL;
	}
	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "device is legacy, virtio 1.x is needed\n");
		return -EINVAL;
	}
	for (i = 0; i < ARRAY_SIZE(pinbed_features); i++)
		if (!(feature_mask & BIT(pinbed_features[i])))
			__virtio_clear_bit(vdev, pinbed_features[i]);
	return 0;
}

/* The device takes addresses for physical ones unless it says otherwise. */
static int pinbed_check_iommu(struct virtio_device *vdev)
{
	struct iommu_domain *domain;

	if (virtio_has_feature(vdev, VIRTIO_F_ACCESS_PLATFORM))
		return 0;
	domain = iommu_get_domain_for_dev(vdev->dev.parent);
	if (!domain || domain->type == IOMMU_DOMAIN_IDENTITY)
		return 0;
	dev_err(&vdev->dev,
		"an IOMMU translates DMA, but the device uses physical addresses: boot with iommu=pt\n");
	return -EOPNOTSUPP;
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
	pdev->can_protect = virtio_has_feature(vdev, PINBED_F_PROTECTED);
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

/*
 * Sees to it that the device is alive while it has requests, and that those who
 * wait in the video nodes learn of its death.
 */
static void pinbed_heartbeat_work(struct work_struct *work)
{
	struct pinbed_device *pdev = container_of(to_delayed_work(work),
						  struct pinbed_device,
						  heartbeat_work);

	if (pinbed_device_is_late(pdev))
		pinbed_device_kill(pdev);
	if (pinbed_is_dead(pdev))
		pinbed_video_fail(pdev);
}

/* Nodes of the first device are called as those of a machine that has but one. */
static int pinbed_name(struct pinbed_device *pdev)
{
	int number = ida_alloc(&pinbed_numbers, GFP_KERNEL);

	if (number < 0)
		return number;
	pdev->number = number;
	if (number)
		snprintf(pdev->name, sizeof(pdev->name), "%s%d", KBUILD_MODNAME,
			 number);
	else
		strscpy(pdev->name, KBUILD_MODNAME, sizeof(pdev->name));
	return 0;
}

/* When this returns the device is dead and no work refers to its binding. */
static void pinbed_stop(struct pinbed_device *pdev)
{
	pinbed_device_kill(pdev);
	/* A dead device is not given this work again. */
	cancel_delayed_work_sync(&pdev->heartbeat_work);
}

static int pinbed_probe(struct virtio_device *vdev)
{
	struct pinbed_device *pdev;
	int ret;

	ret = pinbed_check_iommu(vdev);
	if (ret)
		return ret;

	pdev = pinbed_device_new(vdev);
	if (!pdev)
		return -ENOMEM;
	INIT_DELAYED_WORK(&pdev->heartbeat_work, pinbed_heartbeat_work);
	vdev->priv = pdev;

	ret = pinbed_read_config(pdev);
	if (ret)
		goto put;
	ret = pinbed_name(pdev);
	if (ret)
		goto put;
	ret = pinbed_find_queues(pdev);
	if (ret)
		goto free_number;

	virtio_device_ready(vdev);
	ret = pinbed_events_start(pdev);
	if (ret)
		goto stop;
	ret = pinbed_ctl_register(pdev);
	if (ret)
		goto stop;
	ret = pinbed_video_register(pdev);
	if (ret)
		goto unregister_video;
	ret = pinbed_tee_register(pdev);
	if (ret)
		goto unregister_video;
	return 0;

unregister_video:
	pinbed_stop(pdev);
	pinbed_video_unregister(pdev);
	pinbed_ctl_unregister(pdev);
stop:
	pinbed_stop(pdev);
	vdev->config->del_vqs(vdev);
free_number:
	ida_free(&pinbed_numbers, pdev->number);
put:
	pinbed_device_put(pdev);
	return ret;
}

/*
 * Everybody who waits for the device is told that it is dead; from then on every
 * call fails with -ENODEV. Memory is freed when the files are closed.
 */
static void pinbed_remove(struct virtio_device *vdev)
{
	struct pinbed_device *pdev = vdev->priv;

	pinbed_stop(pdev);
	pinbed_tee_unregister(pdev);
	pinbed_video_unregister(pdev);
	pinbed_ctl_unregister(pdev);
	vdev->config->del_vqs(vdev);
	ida_free(&pinbed_numbers, pdev->number);
	pinbed_device_put(pdev);
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
	.feature_table = pinbed_features,
	.feature_table_size = ARRAY_SIZE(pinbed_features),
	.validate = pinbed_validate,
	.probe = pinbed_probe,
	.remove = pinbed_remove,
};

static int __init pinbed_init(void)
{
	int ret;

	pinbed_wq = alloc_workqueue("pinbed", WQ_UNBOUND, 0);
	if (!pinbed_wq)
		return -ENOMEM;
	ret = pinbed_carveout_init();
	if (ret)
		goto destroy;
	ret = register_virtio_driver(&pinbed_driver);
	if (ret)
		goto exit_carveout;
	return 0;

exit_carveout:
	pinbed_carveout_exit();
destroy:
	destroy_workqueue(pinbed_wq);
	return ret;
}
module_init(pinbed_init);

static void __exit pinbed_exit(void)
{
	unregister_virtio_driver(&pinbed_driver);
	/* Nobody has a file open, so what is left of the work does not wait. */
	destroy_workqueue(pinbed_wq);
	pinbed_carveout_exit();
}
module_exit(pinbed_exit);

MODULE_DESCRIPTION("Driver of the pinbed device, which holds on to memory");
MODULE_LICENSE("GPL");
