/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Trace events: requests to the device and its answers, and memory that it comes
 * to hold and lets go of. `pinbed trace` finds the device's clock by the first two.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pinbed

#if !defined(PINBED_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define PINBED_TRACE_H

#include <linux/tracepoint.h>

/* Before the device is told of the request. */
TRACE_EVENT(pinbed_request,
	TP_PROTO(u32 queue, u32 op, u64 cookie),
	TP_ARGS(queue, op, cookie),
	TP_STRUCT__entry(
		__field(u32, queue)
		__field(u32, op)
		__field(u64, cookie)
	),
	TP_fast_assign(
		__entry->queue = queue;
		__entry->op = op;
		__entry->cookie = cookie;
	),
	TP_printk("queue=%u op=%#x cookie=%llu",
		  __entry->queue, __entry->op, __entry->cookie)
);

/* After the device has answered. */
TRACE_EVENT(pinbed_answer,
	TP_PROTO(u32 queue, u32 status, u64 cookie),
	TP_ARGS(queue, status, cookie),
	TP_STRUCT__entry(
		__field(u32, queue)
		__field(u32, status)
		__field(u64, cookie)
	),
	TP_fast_assign(
		__entry->queue = queue;
		__entry->status = status;
		__entry->cookie = cookie;
	),
	TP_printk("queue=%u status=%u cookie=%llu",
		  __entry->queue, __entry->status, __entry->cookie)
);

/* The device holds memory from now on. */
TRACE_EVENT(pinbed_hold,
	TP_PROTO(u64 handle, u64 length, u32 segments, u32 direction),
	TP_ARGS(handle, length, segments, direction),
	TP_STRUCT__entry(
		__field(u64, handle)
		__field(u64, length)
		__field(u32, segments)
		__field(u32, direction)
	),
	TP_fast_assign(
		__entry->handle = handle;
		__entry->length = length;
		__entry->segments = segments;
		__entry->direction = direction;
	),
	TP_printk("handle=%llu length=%llu segments=%u direction=%u",
		  __entry->handle, __entry->length, __entry->segments,
		  __entry->direction)
);

/* The device has let go of it, or has been reset. */
TRACE_EVENT(pinbed_release,
	TP_PROTO(u64 handle),
	TP_ARGS(handle),
	TP_STRUCT__entry(
		__field(u64, handle)
	),
	TP_fast_assign(
		__entry->handle = handle;
	),
	TP_printk("handle=%llu", __entry->handle)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE pinbed_trace
#include <trace/define_trace.h>
