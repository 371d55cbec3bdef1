// SPDX-License-Identifier: GPL-2.0-only
/*
 * Carries requests to the device and answers back.
 *
 * A device that stops answering is reset, which ends every request with an
 * error: nobody waits for ever, and memory that is given back to its owner is
 * out of the device's reach.
 */
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "pinbed.h"
#include "pinbed_compat.h"

/* PINBED_INJECT_DELAY asks for up to 10 s. */
static unsigned int timeout_s = 30;
module_param(timeout_s, uint, 0444);
MODULE_PARM_DESC(timeout_s, "Seconds without an answer after which the device is given up");

/* Returns the number of entries, at most one for each page. */
static unsigned int pinbed_fill_sg(struct scatterlist *sg, void *buffer,
				   size_t length)
{
	unsigned int i, entries = DIV_ROUND_UP(length, PAGE_SIZE);

	if (!is_vmalloc_addr(buffer)) {
		sg_init_one(sg, buffer, length);
		return 1;
	}
	sg_init_table(sg, entries);
	for (i = 0; i < entries; i++) {
		size_t offset = i * PAGE_SIZE;

		sg_set_page(&sg[i], vmalloc_to_page(buffer + offset),
			    min_t(size_t, length - offset, PAGE_SIZE), 0);
	}
	return entries;
}

static void pinbed_request_release(struct kref *ref)
{
	struct pinbed_request *req = container_of(ref, struct pinbed_request, ref);

	kvfree(req->out);
	kvfree(req->response);
	kvfree(req->request);
	kfree(req);
}

void pinbed_request_put(struct pinbed_request *req)
{
	kref_put(&req->ref, pinbed_request_release);
}

/* Lengths are in bytes and not zero. Returns NULL when out of memory. */
struct pinbed_request *pinbed_request_new(size_t request_length,
					  size_t response_length)
{
	size_t pages = DIV_ROUND_UP(request_length, PAGE_SIZE) +
		       DIV_ROUND_UP(response_length, PAGE_SIZE);
	struct pinbed_request *req;

	req = kzalloc(sizeof(*req), GFP_KERNEL);
	if (!req)
		return NULL;
	kref_init(&req->ref);
	init_completion(&req->answer);
	req->response_length = response_length;
	req->request = kvzalloc(request_length, GFP_KERNEL);
	req->response = kvzalloc(response_length, GFP_KERNEL);
	req->out = kvmalloc_array(pages, sizeof(*req->out), GFP_KERNEL);
	if (!req->request || !req->response || !req->out) {
		pinbed_request_put(req);
		return NULL;
	}
	req->out_entries = pinbed_fill_sg(req->out, req->request, request_length);
	req->in_entries = pinbed_fill_sg(req->out + req->out_entries,
					 req->response, response_length);
	return req;
}

void pinbed_request_init(struct pinbed_device *pdev, struct pinbed_request *req,
			 u32 op)
{
	struct pinbed_request_header *header = req->request;

	header->op = cpu_to_le32(op);
	header->cookie = cpu_to_le64(atomic64_inc_return(&pdev->cookie));
}

static int pinbed_request_add(struct pinbed_queue *q, struct pinbed_request *req)
{
	struct scatterlist *sgs[] = { req->out, req->out + req->out_entries };
	unsigned long flags;
	int ret = -EIO;

	spin_lock_irqsave(&q->lock, flags);
	if (!q->stopped)
		ret = virtqueue_add_sgs(q->vq, sgs, 1, 1, req, GFP_ATOMIC);
	if (!ret) {
		kref_get(&req->ref);
		if (!req->patient && !q->inflight++)
			q->progress = jiffies;
		virtqueue_kick(q->vq);
	}
	spin_unlock_irqrestore(&q->lock, flags);
	return ret;
}

/*
 * Gives a request to the device; sleeps while the queue is full. Zero means that
 * the request will end, by its answer or because the device is stopped.
 */
int pinbed_request_submit(struct pinbed_device *pdev, unsigned int queue,
			  struct pinbed_request *req)
{
	struct pinbed_queue *q = &pdev->queues[queue];
	int ret;

	if (req->out_entries + req->in_entries > q->size)
		return -E2BIG;

	reinit_completion(&req->answer);
	memset(req->response, 0, req->response_length);
	req->answered = 0;
	req->error = 0;

	wait_event(q->room, (ret = pinbed_request_add(q, req)) != -ENOSPC);
	if (!ret)
		schedule_delayed_work(&pdev->watchdog, HZ);
	return ret;
}

/*
 * Zero if the device did what was asked and answered at least @length bytes;
 * nothing that the device wrote is to be looked at otherwise.
 */
int pinbed_request_result(const struct pinbed_request *req, size_t length)
{
	const struct pinbed_request_header *request = req->request;
	const struct pinbed_response_header *response = req->response;

	if (req->error)
		return req->error;
	if (req->answered < sizeof(*response) ||
	    response->cookie != request->cookie)
		return -EPROTO;

	switch (le32_to_cpu(response->status)) {
	case PINBED_STATUS_OK:
		return req->answered < length ? -EPROTO : 0;
	case PINBED_STATUS_UNSUPPORTED:
		return -EOPNOTSUPP;
	case PINBED_STATUS_INVALID:
		return -EINVAL;
	case PINBED_STATUS_NO_BUFFER:
		return -ENOENT;
	case PINBED_STATUS_DMA_FAULT:
		return -EFAULT;
	case PINBED_STATUS_LIMIT:
		return -ENOSPC;
	case PINBED_STATUS_ERROR:
		return -EIO;
	default:
		return -EPROTO;
	}
}

static void pinbed_request_end(struct pinbed_request *req)
{
	if (req->done)
		req->done(req);
	else
		complete(&req->answer);
	pinbed_request_put(req);
}

void pinbed_request_callback(struct virtqueue *vq)
{
	struct pinbed_device *pdev = vq->vdev->priv;
	struct pinbed_queue *q = &pdev->queues[vq->index];
	struct pinbed_request *req, *next;
	LIST_HEAD(answered);
	unsigned long flags;
	unsigned int length;
	bool broken;

	spin_lock_irqsave(&q->lock, flags);
	do {
		virtqueue_disable_cb(vq);
		while ((req = virtqueue_get_buf(vq, &length))) {
			req->answered = min_t(size_t, length,
					      req->response_length);
			list_add_tail(&req->entry, &answered);
			if (!req->patient)
				q->inflight--;
			q->progress = jiffies;
		}
		broken = virtqueue_is_broken(vq);
	} while (!broken && !virtqueue_enable_cb(vq));
	spin_unlock_irqrestore(&q->lock, flags);

	wake_up(&q->room);
	list_for_each_entry_safe(req, next, &answered, entry)
		pinbed_request_end(req);

	/* The ring made no sense, so no answer will come through it. */
	if (broken) {
		cancel_delayed_work(&pdev->watchdog);
		schedule_delayed_work(&pdev->watchdog, 0);
	}
}

void pinbed_watchdog(struct work_struct *work)
{
	struct pinbed_device *pdev = container_of(to_delayed_work(work),
						  struct pinbed_device, watchdog);
	bool busy = false, late = false, broken = false;
	unsigned int i;

	for (i = 0; i < PINBED_QUEUE_COUNT; i++) {
		struct pinbed_queue *q = &pdev->queues[i];

		spin_lock_irq(&q->lock);
		if (!q->stopped) {
			broken |= virtqueue_is_broken(q->vq);
			if (q->inflight) {
				busy = true;
				late |= time_after_eq(jiffies, q->progress +
						      timeout_s * HZ);
			}
		}
		spin_unlock_irq(&q->lock);
	}

	if (broken)
		dev_err(&pdev->vdev->dev,
			"device broke its ring: given up until it is bound again\n");
	else if (late)
		dev_err(&pdev->vdev->dev,
			"no answer for %u s: given up until it is bound again\n",
			timeout_s);
	if (broken || late)
		pinbed_stop(pdev);
	else if (busy)
		schedule_delayed_work(&pdev->watchdog, HZ);
}

/* Resets the device, for good; ends all requests with -EIO. */
void pinbed_stop(struct pinbed_device *pdev)
{
	struct pinbed_request *req, *next;
	LIST_HEAD(unanswered);
	unsigned int i;

	mutex_lock(&pdev->stop_lock);
	if (pdev->queues[0].stopped)
		goto unlock;

	for (i = 0; i < PINBED_QUEUE_COUNT; i++) {
		struct pinbed_queue *q = &pdev->queues[i];

		spin_lock_irq(&q->lock);
		q->stopped = true;
		spin_unlock_irq(&q->lock);
	}

	virtio_break_device(pdev->vdev);
	virtio_reset_device(pdev->vdev);

	for (i = 0; i < PINBED_QUEUE_COUNT; i++) {
		struct pinbed_queue *q = &pdev->queues[i];
		void *data;

		spin_lock_irq(&q->lock);
		while ((data = virtqueue_detach_unused_buf(q->vq))) {
			if (i == PINBED_QUEUE_EVENT)
				continue;
			req = data;
			req->error = -EIO;
			list_add_tail(&req->entry, &unanswered);
		}
		q->inflight = 0;
		spin_unlock_irq(&q->lock);
		wake_up_all(&q->room);
	}
	wake_up_all(&pdev->event_wait);

	list_for_each_entry_safe(req, next, &unanswered, entry)
		pinbed_request_end(req);
unlock:
	mutex_unlock(&pdev->stop_lock);
}
