/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The virtio interfaces of the newest kernel for those from 5.10 on.
 */
#ifndef PINBED_COMPAT_VIRTIO_H
#define PINBED_COMPAT_VIRTIO_H

#include <linux/virtio.h>
#include <linux/virtio_config.h>

#ifndef PINBED_HAVE_VIRTQUEUE_INFO
#define PINBED_COMPAT_MAX_QUEUES 8

struct virtqueue_info {
	const char *name;
	vq_callback_t *callback;
};

static inline int pinbed_find_vqs(struct virtio_device *vdev, unsigned int count,
				  struct virtqueue *vqs[],
				  struct virtqueue_info infos[])
{
	vq_callback_t *callbacks[PINBED_COMPAT_MAX_QUEUES];
	const char *names[PINBED_COMPAT_MAX_QUEUES];
	unsigned int i;

	if (count > PINBED_COMPAT_MAX_QUEUES)
		return -EINVAL;
	for (i = 0; i < count; i++) {
		callbacks[i] = infos[i].callback;
		names[i] = infos[i].name;
	}
	return virtio_find_vqs(vdev, count, vqs, callbacks, names, NULL);
}
#else
static inline int pinbed_find_vqs(struct virtio_device *vdev, unsigned int count,
				  struct virtqueue *vqs[],
				  struct virtqueue_info infos[])
{
	return virtio_find_vqs(vdev, count, vqs, infos, NULL);
}
#endif

#ifndef PINBED_HAVE_RESET_DEVICE
static inline void virtio_reset_device(struct virtio_device *vdev)
{
	vdev->config->reset(vdev);
}
#endif

#endif /* PINBED_COMPAT_VIRTIO_H */
