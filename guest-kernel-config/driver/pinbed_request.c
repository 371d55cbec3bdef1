// SPDX-License-Identifier: GPL-2.0-only
/*
 * Requests to the device, and its answers. Every request ends: by its answer, or
 * when the device dies.
 */
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "pinbed.h"
#include "pinbed_trace.h"

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

	req = pinbed_zalloc_obj(*req);
	if (!req)
		return NULL;
	kref_init(&req->ref);
	init_completion(&req->answer);
	req->response_length = response_length;
	/* EXEC sends and takes less than a header, too, and headers are traced. */
	req->request = kvzalloc(max(request_length,
				    sizeof(struct pinbed_request_header)),
				GFP_KERNEL);
	req->response = kvzalloc(max(response_length,
				     sizeof(struct pinbed_response_header)),
				 GFP_KERNEL);
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

static int pinbed_request_add(struct pinbed_device *pdev,
			      struct pinbed_queue *q,
			      struct pinbed_request *req)
{
	struct scatterlist *sgs[] = { req->out, req->out + req->out_entries };
	const struct pinbed_request_header *header = req->request;
	unsigned long flags;
	int ret = -ENODEV;

	spin_lock_irqsave(&pdev->lock, flags);
	if (!pdev->dead)
		ret = virtqueue_add_sgs(q->vq, sgs, 1, 1, req, GFP_ATOMIC);
	if (!ret) {
		kref_get(&req->ref);
		q->waiting++;
		if (!req->patient && !q->prompt++)
			q->progress = jiffies;
		trace_pinbed_request(q->vq->index, le32_to_cpu(header->op),
				     le64_to_cpu(header->cookie));
		virtqueue_kick(q->vq);
		/* Under the lock, so that a dead device never gets it. */
		queue_delayed_work(pinbed_wq, &pdev->heartbeat_work, HZ);
	}
	spin_unlock_irqrestore(&pdev->lock, flags);
	return ret;
}

static int pinbed_request_prepare(struct pinbed_queue *q,
				  struct pinbed_request *req)
{
	if (req->out_entries + req->in_entries > q->size)
		return -E2BIG;
	reinit_completion(&req->answer);
	memset(req->response, 0, req->response_length);
	req->answered = 0;
	req->error = 0;
	return 0;
}

/*
 * Gives a request to the device, or returns -ENOSPC if the queue is full. See
 * pinbed_request_submit().
 */
int pinbed_request_try(struct pinbed_device *pdev, unsigned int queue,
		       struct pinbed_request *req)
{
	struct pinbed_queue *q = &pdev->queues[queue];
	int ret = pinbed_request_prepare(q, req);

	return ret ? ret : pinbed_request_add(pdev, q, req);
}

/*
 * Gives a request to the device; sleeps while the queue is full. Zero means that
 * the request will end. On an error, -ENODEV if the device is dead, the device
 * has not seen it.
 */
int pinbed_request_submit(struct pinbed_device *pdev, unsigned int queue,
			  struct pinbed_request *req)
{
	struct pinbed_queue *q = &pdev->queues[queue];
	int ret = pinbed_request_prepare(q, req);

	if (ret)
		return ret;
	wait_event(q->room,
		   (ret = pinbed_request_add(pdev, q, req)) != -ENOSPC);
	return ret;
}

/*
 * Zero if the device did what was asked and answered at least @length bytes; if
 * not, the answer must not be used. -ENODEV stands for no answer, -EPROTO for one
 * that makes no sense; all other errors are the device's.
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

	spin_lock_irqsave(&pdev->lock, flags);
	if (pdev->dead)
		goto unlock;
	do {
		virtqueue_disable_cb(vq);
		while ((req = virtqueue_get_buf(vq, &length))) {
			const struct pinbed_response_header *header =
				req->response;

			req->answered = min_t(size_t, length,
					      req->response_length);
			trace_pinbed_answer(vq->index,
					    le32_to_cpu(header->status),
					    le64_to_cpu(header->cookie));
			list_add_tail(&req->entry, &answered);
			q->waiting--;
			if (!req->patient)
				q->prompt--;
			q->progress = jiffies;
		}
		broken = virtqueue_is_broken(vq);
	} while (!broken && !virtqueue_enable_cb(vq));
	/* The ring made no sense, so no answer will come through it. */
	if (broken)
		mod_delayed_work(pinbed_wq, &pdev->heartbeat_work, 0);
unlock:
	spin_unlock_irqrestore(&pdev->lock, flags);

	wake_up(&q->room);
	list_for_each_entry_safe(req, next, &answered, entry)
		pinbed_request_end(req);
}

/* Ends all requests with -ENODEV. The device is dead and has been reset. */
void pinbed_request_abort_all(struct pinbed_device *pdev)
{
	struct pinbed_request *req, *next;
	LIST_HEAD(unanswered);
	unsigned int i;

	spin_lock_irq(&pdev->lock);
	for (i = 0; i < PINBED_QUEUE_COUNT; i++) {
		struct pinbed_queue *q = &pdev->queues[i];
		void *data;

		while (q->vq && (data = virtqueue_detach_unused_buf(q->vq))) {
			/* The buffers of the event queue are the device's. */
			if (i == PINBED_QUEUE_EVENT)
				continue;
			req = data;
			req->error = -ENODEV;
			list_add_tail(&req->entry, &unanswered);
		}
		q->waiting = 0;
		q->prompt = 0;
	}
	spin_unlock_irq(&pdev->lock);

	for (i = 0; i < PINBED_QUEUE_COUNT; i++)
		wake_up_all(&pdev->queues[i].room);
	list_for_each_entry_safe(req, next, &unanswered, entry)
		pinbed_request_end(req);
}
