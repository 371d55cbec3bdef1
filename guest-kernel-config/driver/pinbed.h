/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the driver share.
 *
 * pinbed_core.c binds the virtio device. Below it, pinbed_request.c carries
 * requests and answers, pinbed_attach.c hands memory to the device,
 * pinbed_bounce.c makes memory for that where the device is not to have the
 * owner's, pinbed_protected.c allocates memory that only the TEE is to have, and
 * pinbed_event.c keeps what the device says unasked. Above it is what user space
 * sees: pinbed_ctl.c with pinbed_ballast.c, pinbed_video*.c, and pinbed_tee*.c.
 */
#ifndef PINBED_H
#define PINBED_H

#include <linux/completion.h>
#include <linux/dma-direction.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "pinbed_abi.h"

/* Ways for vb2 to get at memory: dma-sg, dma-contig, vmalloc. */
#define PINBED_MEMOPS 3

/* Events that are kept for readers; also the buffers the device has for them. */
#define PINBED_EVENTS 64

/**
 * struct pinbed_queue - A virtqueue.
 * @vq: The queue; only valid under @lock while not @stopped.
 * @lock: Protects all of this, taken in interrupts.
 * @size: Descriptors in the queue.
 * @stopped: The device has been reset and takes no more requests.
 * @inflight: Requests that the device has not answered, but for patient ones.
 * @progress: When the device last answered, or was given its only request.
 * @room: Woken when descriptors become free, and on stop.
 */
struct pinbed_queue {
	struct virtqueue *vq;
	spinlock_t lock;
	unsigned int size;
	bool stopped;
	unsigned int inflight;
	unsigned long progress;
	wait_queue_head_t room;
};

struct pinbed_node;
struct pinbed_tee;

/**
 * struct pinbed_device - One bound device; outlives the binding while files are
 * open.
 * @ref: Held by the binding, by video nodes and by open files.
 * @vdev: The virtio device; only to be used to name it after remove.
 * @max_segments: Segments in one ATTACH.
 * @max_length: Bytes in one ATTACH.
 * @queues: Virtqueues by number.
 * @cookie: The last request's.
 * @watchdog: Looks for requests that are not answered.
 * @stop_lock: Lets one caller at a time stop the device.
 * @event_buffers: PINBED_EVENTS buffers that the device writes.
 * @events: The last PINBED_EVENTS events; the nth is at n % PINBED_EVENTS.
 * Protected by the event queue's lock, as is @event_count.
 * @event_count: Events so far.
 * @event_wait: Woken by events, and on stop.
 * @misc: /dev/pinbed.
 * @video: The nodes, one for each memop.
 * @tee: The TEE device.
 */
struct pinbed_device {
	struct kref ref;
	struct virtio_device *vdev;
	u32 max_segments;
	u64 max_length;
	struct pinbed_queue queues[PINBED_QUEUE_COUNT];
	atomic64_t cookie;
	struct delayed_work watchdog;
	struct mutex stop_lock;

	struct pinbed_event *event_buffers;
	struct pinbed_event events[PINBED_EVENTS];
	u64 event_count;
	wait_queue_head_t event_wait;

	struct miscdevice misc;
	struct pinbed_node *video[PINBED_MEMOPS];
	struct pinbed_tee *tee;
};

struct pinbed_device *pinbed_get(struct pinbed_device *pdev);
void pinbed_put(struct pinbed_device *pdev);

/* pinbed_request.c */

/**
 * struct pinbed_request - A request and the room for its answer.
 * @ref: Held by the owner, and by the queue while the device has the request.
 * @entry: For whoever ends several requests at once.
 * @answer: Completed at the end, unless there is @done.
 * @done: Called at the end, in interrupt or process context.
 * @owner: For @done.
 * @patient: The device may take as long as it likes to answer.
 * @request: What the device reads; begins with struct pinbed_request_header.
 * @response: What the device writes, zero before.
 * @response_length: Room in @response, in bytes.
 * @answered: Bytes that the device says it wrote, at most @response_length.
 * @error: Zero if the device answered, else an errno.
 * @out: Scatterlist of @request, then that of @response.
 * @out_entries: Entries of @request.
 * @in_entries: Entries of @response.
 */
struct pinbed_request {
	struct kref ref;
	struct list_head entry;
	struct completion answer;
	void (*done)(struct pinbed_request *req);
	void *owner;
	bool patient;

	void *request;
	void *response;
	size_t response_length;
	size_t answered;
	int error;

	struct scatterlist *out;
	unsigned int out_entries;
	unsigned int in_entries;
};

struct pinbed_request *pinbed_request_new(size_t request_length,
					  size_t response_length);
void pinbed_request_put(struct pinbed_request *req);
void pinbed_request_init(struct pinbed_device *pdev, struct pinbed_request *req,
			 u32 op);
int pinbed_request_submit(struct pinbed_device *pdev, unsigned int queue,
			  struct pinbed_request *req);
int pinbed_request_result(const struct pinbed_request *req, size_t length);
void pinbed_request_callback(struct virtqueue *vq);
void pinbed_watchdog(struct work_struct *work);
void pinbed_stop(struct pinbed_device *pdev);

/* pinbed_attach.c */

/**
 * struct pinbed_attachment - Memory that the device holds.
 * @entry: For the owner.
 * @handle: The device's name for it.
 * @detach: Allocated beforehand, so that DETACH cannot fail for want of memory.
 * @bounce: What the device holds in place of the owner's memory, or NULL; freed
 * after DETACH.
 */
struct pinbed_attachment {
	struct list_head entry;
	u64 handle;
	struct pinbed_request *detach;
	struct pinbed_bounce *bounce;
};

struct pinbed_attachment *pinbed_attach(struct pinbed_device *pdev,
					struct sg_table *sgt, u64 length,
					u32 direction, u32 flags);
void pinbed_detach(struct pinbed_device *pdev, struct pinbed_attachment *att);

/* pinbed_bounce.c */

/**
 * struct pinbed_bounce - Memory that is the driver's own, mapped for the device.
 * @dev: Whose DMA it is mapped for.
 * @direction: Of the mapping.
 * @vaddr: Where the CPU has it.
 * @length: In bytes.
 * @sgt: Its pages.
 */
struct pinbed_bounce {
	struct device *dev;
	enum dma_data_direction direction;
	void *vaddr;
	size_t length;
	struct sg_table sgt;
};

struct pinbed_bounce *pinbed_bounce_new(struct pinbed_device *pdev,
					size_t length,
					enum dma_data_direction direction);
void pinbed_bounce_free(struct pinbed_bounce *bounce);
void pinbed_bounce_fill(struct pinbed_bounce *bounce, const void *from,
			size_t length);
void pinbed_bounce_drain(struct pinbed_bounce *bounce, void *to, size_t length);

/* pinbed_event.c */

int pinbed_events_start(struct pinbed_device *pdev);
void pinbed_event_callback(struct virtqueue *vq);
u64 pinbed_event_position(struct pinbed_device *pdev);
int pinbed_event_pending(struct pinbed_device *pdev, const u64 *position);
bool pinbed_event_take(struct pinbed_device *pdev, u64 *position,
		       struct pinbed_event *event);

/* pinbed_ctl.c */

int pinbed_ctl_register(struct pinbed_device *pdev);
void pinbed_ctl_unregister(struct pinbed_device *pdev);

/* pinbed_ballast.c */

struct pinbed_ballast_hold {
	struct list_head pages;
	u64 bytes;
};

int pinbed_ballast_take(struct pinbed_ballast_hold *hold, u64 leave);
void pinbed_ballast_drop(struct pinbed_ballast_hold *hold);

/* pinbed_video.c */

int pinbed_video_register(struct pinbed_device *pdev);
void pinbed_video_unregister(struct pinbed_device *pdev);

/* pinbed_tee.c */

#if IS_ENABLED(CONFIG_TEE)
int pinbed_tee_register(struct pinbed_device *pdev);
void pinbed_tee_unregister(struct pinbed_device *pdev);
#else
static inline int pinbed_tee_register(struct pinbed_device *pdev)
{
	return 0;
}

static inline void pinbed_tee_unregister(struct pinbed_device *pdev)
{
}
#endif

#endif /* PINBED_H */
