// SPDX-License-Identifier: GPL-2.0-only
/*
 * Keeps the last events that the device sent, for any number of readers.
 */
#include <linux/scatterlist.h>

#include "pinbed.h"

static int pinbed_event_post(struct pinbed_queue *q, struct pinbed_event *buffer)
{
	struct scatterlist sg;

	sg_init_one(&sg, buffer, sizeof(*buffer));
	return virtqueue_add_inbuf(q->vq, &sg, 1, buffer, GFP_ATOMIC);
}

int pinbed_events_start(struct pinbed_device *pdev)
{
	struct pinbed_queue *q = &pdev->queues[PINBED_QUEUE_EVENT];
	unsigned int i;
	int ret = 0;

	spin_lock_irq(&pdev->lock);
	for (i = 0; i < min_t(unsigned int, PINBED_EVENTS, q->size) && !ret; i++)
		ret = pinbed_event_post(q, &pdev->event_buffers[i]);
	virtqueue_kick(q->vq);
	spin_unlock_irq(&pdev->lock);
	return ret;
}

void pinbed_event_callback(struct virtqueue *vq)
{
	struct pinbed_device *pdev = vq->vdev->priv;
	struct pinbed_queue *q = &pdev->queues[PINBED_QUEUE_EVENT];
	struct pinbed_event *buffer;
	unsigned long flags;
	unsigned int length;

	spin_lock_irqsave(&pdev->lock, flags);
	while (!pdev->dead && (buffer = virtqueue_get_buf(vq, &length))) {
		if (length >= sizeof(*buffer))
			pdev->events[pdev->event_count++ % PINBED_EVENTS] = *buffer;
		/* Cannot fail: get_buf has just made room. */
		pinbed_event_post(q, buffer);
	}
	if (!pdev->dead)
		virtqueue_kick(vq);
	spin_unlock_irqrestore(&pdev->lock, flags);
	wake_up(&pdev->event_wait);
}

/* Where a reader starts that wants the events from now on. */
u64 pinbed_event_position(struct pinbed_device *pdev)
{
	u64 position;

	spin_lock_irq(&pdev->lock);
	position = pdev->event_count;
	spin_unlock_irq(&pdev->lock);
	return position;
}

/* Positive if there is an event, -ENODEV if there will be none, else zero. */
int pinbed_event_pending(struct pinbed_device *pdev, const u64 *position)
{
	int ret;

	spin_lock_irq(&pdev->lock);
	if (*position != pdev->event_count)
		ret = 1;
	else
		ret = pdev->dead ? -ENODEV : 0;
	spin_unlock_irq(&pdev->lock);
	return ret;
}

/* Takes the oldest event that is left after @position, if there is one. */
bool pinbed_event_take(struct pinbed_device *pdev, u64 *position,
		       struct pinbed_event *event)
{
	bool found;

	spin_lock_irq(&pdev->lock);
	if (pdev->event_count - *position > PINBED_EVENTS)
		*position = pdev->event_count - PINBED_EVENTS;
	found = *position != pdev->event_count;
	if (found)
		*event = pdev->events[(*position)++ % PINBED_EVENTS];
	spin_unlock_irq(&pdev->lock);
	return found;
}
