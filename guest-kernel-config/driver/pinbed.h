/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the driver share. Each part calls those above it in this
 * list, and none below:
 *
 *   pinbed_request.c    requests and answers, over the virtqueues
 *   pinbed_event.c      what the device says unasked
 *   pinbed_device.c     the device: its references, its end, its DMA devices
 *   pinbed_hold.c       memory that the device holds
 *   pinbed_bounce.c     memory that the CPU copies to and from
 *   pinbed_protected.c  memory that only the TEE may access
 *   pinbed_carveout.c, pinbed_export.c, pinbed_import.c, pinbed_ballast.c
 *   pinbed_ctl.c        /dev/pinbed
 *   pinbed_video*.c     the V4L2 nodes
 *   pinbed_tee*.c       the TEE device
 *   pinbed_main.c       binds and unbinds the virtio device
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
#include "pinbed_compat_mm.h"

/* Video nodes: one for each allocator of vb2, and a multi-planar one. */
#define PINBED_NODES 4

/* Events kept for readers, and buffers that the device has for them. */
#define PINBED_EVENTS 64

/*
 * The kernel gave the driver less memory than a buffer or a registration has.
 * That is for the subsystems to refuse, which do not use this error: who sees it
 * knows that the driver alone stood in the way.
 */
#define PINBED_ESHORT EBADR

/* Work that module exit waits for. */
extern struct workqueue_struct *pinbed_wq;

struct pinbed_node;
struct pinbed_request;
struct pinbed_tee;

/**
 * struct pinbed_queue - A virtqueue; protected by the device's lock.
 * @vq: The queue; only valid while the device is not dead.
 * @size: Descriptors in the queue.
 * @waiting: Requests that the device has not answered.
 * @prompt: Those of @waiting that are not patient.
 * @progress: When the device last answered, or was given the first of @prompt.
 * @room: Woken when descriptors become free, and when the device dies.
 */
struct pinbed_queue {
	struct virtqueue *vq;
	unsigned int size;
	unsigned int waiting;
	unsigned int prompt;
	unsigned long progress;
	wait_queue_head_t room;
};

/**
 * struct pinbed_device - A bound device; outlives the binding while anybody
 * refers to it.
 * @ref: References: the binding, video nodes, the TEE, open files, holds.
 * @vdev: The virtio device, referenced; after remove only to name it.
 * @number: The lowest that no other bound device has.
 * @name: "pinbed", with @number unless that is zero; what the names of all its
 * nodes begin with.
 * @max_segments: Segments in one ATTACH.
 * @max_length: Bytes in one ATTACH.
 * @can_protect: The device protects memory.
 * @cookie: Of the last request.
 * @lock: Taken in interrupts.
 * @dead: The device is being reset, or has been, and takes no request any more.
 * @queues: Virtqueues by number.
 * @holds: Memory that the device holds.
 * @kill_lock: See below.
 * @heartbeat: The request that asks for a sign of life.
 * @heartbeat_work: Sends @heartbeat, and ends the device if it is late.
 * @event_buffers: PINBED_EVENTS buffers that the device writes.
 * @events: The last PINBED_EVENTS events; the nth is at n % PINBED_EVENTS.
 * @event_count: Events so far.
 * @event_wait: Woken by events, and when the device dies.
 * @misc: /dev/pinbed.
 * @dma: Does the DMA of /dev/pinbed.
 * @video: The video nodes.
 * @tee: The TEE device.
 * @tee_gone: Completed when its last user is gone.
 */
struct pinbed_device {
	struct kref ref;
	struct virtio_device *vdev;
	int number;
	char name[16];
	u32 max_segments;
	u64 max_length;
	bool can_protect;
	atomic64_t cookie;

	/* Protects @dead, @queues, @holds, @events and @event_count. */
	spinlock_t lock;
	bool dead;
	struct pinbed_queue queues[PINBED_QUEUE_COUNT];
	struct list_head holds;

	/* Held while the device is being reset. */
	struct mutex kill_lock;
	struct pinbed_request *heartbeat;
	struct delayed_work heartbeat_work;

	struct pinbed_event *event_buffers;
	struct pinbed_event events[PINBED_EVENTS];
	u64 event_count;
	wait_queue_head_t event_wait;

	struct miscdevice misc;
	struct device *dma;
	struct pinbed_node *video[PINBED_NODES];
	struct pinbed_tee *tee;
	struct completion tee_gone;
};

static inline bool pinbed_is_dead(struct pinbed_device *pdev)
{
	return READ_ONCE(pdev->dead);
}

/* pinbed_request.c */

/**
 * struct pinbed_request - A request and the room for its answer.
 * @ref: References: the owner, and the queue while the device has the request.
 * @entry: For whoever ends several requests at once.
 * @answer: Completed at the end, unless there is @done.
 * @done: Called at the end, in interrupt or process context.
 * @owner: For @done.
 * @patient: The device may take as long as it likes to answer.
 * @request: What the device reads; begins with struct pinbed_request_header.
 * @response: What the device writes, zero before.
 * @response_length: Room in @response, in bytes.
 * @answered: Bytes that the device says it wrote, at most @response_length.
 * @error: Zero if the device answered, else -ENODEV.
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
int pinbed_request_try(struct pinbed_device *pdev, unsigned int queue,
		       struct pinbed_request *req);
int pinbed_request_submit(struct pinbed_device *pdev, unsigned int queue,
			  struct pinbed_request *req);
int pinbed_request_result(const struct pinbed_request *req, size_t length);
void pinbed_request_callback(struct virtqueue *vq);
void pinbed_request_abort_all(struct pinbed_device *pdev);

/* pinbed_event.c */

int pinbed_events_start(struct pinbed_device *pdev);
void pinbed_event_callback(struct virtqueue *vq);
u64 pinbed_event_position(struct pinbed_device *pdev);
int pinbed_event_pending(struct pinbed_device *pdev, const u64 *position);
bool pinbed_event_take(struct pinbed_device *pdev, u64 *position,
		       struct pinbed_event *event);

/* pinbed_device.c */

struct pinbed_device *pinbed_device_new(struct virtio_device *vdev);
struct pinbed_device *pinbed_device_get(struct pinbed_device *pdev);
void pinbed_device_put(struct pinbed_device *pdev);
void pinbed_device_kill(struct pinbed_device *pdev);
bool pinbed_device_is_late(struct pinbed_device *pdev);
struct device *pinbed_dma_device_new(struct pinbed_device *pdev,
				     struct device *parent, const char *user);
struct device *pinbed_dma_device_new_coherent(struct pinbed_device *pdev,
					      struct device *parent,
					      const char *user);
void pinbed_dma_device_unregister(struct device *dev);
unsigned int pinbed_max_segment(struct device *dev);

/* pinbed_hold.c */

/**
 * struct pinbed_hold - Memory that the device holds.
 * @pdev: The device, referenced.
 * @entry: In the device's list, while the device holds the memory.
 * @handle: The device's name for it.
 * @detach: Allocated beforehand, so that DETACH needs no memory.
 * @dev: Does the DMA, if the mapping is the hold's.
 * @sgt: The mapping, if it is the hold's, else NULL.
 * @direction: Of the mapping.
 * @attrs: DMA_ATTR_* of the mapping.
 * @pins: Pages that were pinned when it began, or NULL.
 */
struct pinbed_hold {
	struct pinbed_device *pdev;
	struct list_head entry;
	u64 handle;
	struct pinbed_request *detach;
	struct device *dev;
	struct sg_table *sgt;
	enum dma_data_direction direction;
	unsigned long attrs;
	struct pinbed_pins *pins;
};

struct pinbed_hold *pinbed_hold_begin(struct pinbed_device *pdev,
				      struct sg_table *sgt, u64 length,
				      u32 direction, u32 flags);
struct pinbed_hold *pinbed_hold_contiguous(struct pinbed_device *pdev,
					   dma_addr_t address, u64 length,
					   u32 direction, u32 flags);
struct pinbed_hold *pinbed_hold_map(struct pinbed_device *pdev,
				    struct device *dev, struct sg_table *sgt,
				    u64 length, u32 direction,
				    unsigned long attrs);
void pinbed_hold_end(struct pinbed_hold *hold);
enum dma_data_direction pinbed_dma_direction(u32 direction);

/* pinbed_pins.c */

void pinbed_hold_expect_pins(struct pinbed_hold *hold, struct sg_table *sgt);
void pinbed_hold_expect_pins_at(struct pinbed_hold *hold, phys_addr_t address,
				size_t length);
void pinbed_hold_expect_pins_mapped(struct pinbed_hold *hold, const void *vaddr,
				    size_t length);
void pinbed_hold_check_pins(struct pinbed_hold *hold);

/* pinbed_bounce.c */

/**
 * struct pinbed_bounce - Memory of the driver's own that the device holds in
 * place of memory that only the CPU can access.
 * @dev: Does the DMA.
 * @direction: Of the mapping.
 * @vaddr: Kernel address.
 * @length: In bytes.
 * @sgt: Its pages.
 * @hold: The device's hold on it.
 */
struct pinbed_bounce {
	struct device *dev;
	enum dma_data_direction direction;
	void *vaddr;
	size_t length;
	struct sg_table sgt;
	struct pinbed_hold *hold;
};

struct pinbed_bounce *pinbed_bounce_new(struct pinbed_device *pdev,
					struct device *dev, size_t length,
					u32 direction);
void pinbed_bounce_free(struct pinbed_bounce *bounce);
void pinbed_bounce_fill(struct pinbed_bounce *bounce, const void *from,
			size_t length);
void pinbed_bounce_drain(struct pinbed_bounce *bounce, void *to, size_t length,
			 size_t line, size_t stride);

/* pinbed_ballast.c */

struct pinbed_ballast_pages {
	struct list_head pages;
	u64 bytes;
};

int pinbed_ballast_take(struct pinbed_ballast_pages *ballast, u64 leave);
void pinbed_ballast_drop(struct pinbed_ballast_pages *ballast);

/* pinbed_ctl.c */

int pinbed_ctl_register(struct pinbed_device *pdev);
void pinbed_ctl_unregister(struct pinbed_device *pdev);

/* pinbed_video.c */

int pinbed_video_register(struct pinbed_device *pdev);
void pinbed_video_fail(struct pinbed_device *pdev);
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
