// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Perfetto's format: those messages of its trace.proto that a timeline takes (protos/perfetto/trace/), and no others.

use prost::Message;

use crate::trace::timeline::{Argument, Track, TrackKind, Tracks, What};

/// All packets are of one writer.
const SEQUENCE: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Trace {
    #[prost(message, repeated, tag = "1")]
    packet: Vec<TracePacket>,
}

#[derive(Clone, PartialEq, Message)]
struct TracePacket {
    #[prost(uint64, optional, tag = "8")]
    timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    trusted_packet_sequence_id: Option<u32>,
    #[prost(message, optional, tag = "11")]
    track_event: Option<TrackEvent>,
    #[prost(message, optional, tag = "60")]
    track_descriptor: Option<TrackDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackDescriptor {
    #[prost(uint64, optional, tag = "1")]
    uuid: Option<u64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(message, optional, tag = "3")]
    process: Option<ProcessDescriptor>,
    #[prost(message, optional, tag = "4")]
    thread: Option<ThreadDescriptor>,
    #[prost(uint64, optional, tag = "5")]
    parent_uuid: Option<u64>,
    #[prost(message, optional, tag = "8")]
    counter: Option<CounterDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct ProcessDescriptor {
    #[prost(int32, optional, tag = "1")]
    pid: Option<i32>,
    #[prost(string, optional, tag = "6")]
    process_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ThreadDescriptor {
    #[prost(int32, optional, tag = "1")]
    pid: Option<i32>,
    #[prost(int64, optional, tag = "2")]
    tid: Option<i64>,
    #[prost(string, optional, tag = "5")]
    thread_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct CounterDescriptor {
    #[prost(string, optional, tag = "6")]
    unit_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackEvent {
    #[prost(message, repeated, tag = "4")]
    debug_annotations: Vec<DebugAnnotation>,
    /// 1 a slice begins, 2 it ends, 3 an instant, 4 a counter's value.
    #[prost(int32, optional, tag = "9")]
    r#type: Option<i32>,
    #[prost(uint64, optional, tag = "11")]
    track_uuid: Option<u64>,
    #[prost(string, repeated, tag = "22")]
    categories: Vec<String>,
    #[prost(string, optional, tag = "23")]
    name: Option<String>,
    #[prost(int64, optional, tag = "30")]
    counter_value: Option<i64>,
    #[prost(fixed64, repeated, packed = "false", tag = "47")]
    flow_ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct DebugAnnotation {
    #[prost(uint64, optional, tag = "3")]
    uint_value: Option<u64>,
    #[prost(int64, optional, tag = "4")]
    int_value: Option<i64>,
    #[prost(string, optional, tag = "6")]
    string_value: Option<String>,
    #[prost(uint64, optional, tag = "7")]
    pointer_value: Option<u64>,
    #[prost(string, optional, tag = "10")]
    name: Option<String>,
}

/// The trace as a file has it.
pub fn encode(tracks: &Tracks) -> Vec<u8> {
    let mut packets = Vec::new();
    for (index, track) in tracks.all().iter().enumerate() {
        packets.push(TracePacket {
            trusted_packet_sequence_id: Some(SEQUENCE),
            track_descriptor: Some(descriptor(uuid(index), track)),
            ..TracePacket::default()
        });
        packets.extend(track.events.iter().map(|event| {
            let mut out = TrackEvent {
                track_uuid: Some(uuid(index)),
                flow_ids: event.flow.into_iter().collect(),
                debug_annotations: event
                    .arguments
                    .iter()
                    .map(|(name, value)| annotation(name, value))
                    .collect(),
                ..TrackEvent::default()
            };
            match &event.what {
                What::Begin { name, category } | What::Instant { name, category } => {
                    let is_slice = matches!(event.what, What::Begin { .. });
                    out.r#type = Some(if is_slice { 1 } else { 3 });
                    out.name = Some(name.clone());
                    out.categories = vec![(*category).to_owned()];
                }
                What::End => out.r#type = Some(2),
                What::Value(value) => {
                    out.r#type = Some(4);
                    out.counter_value = Some(*value);
                }
            }
            TracePacket {
                timestamp: Some(event.time_ns),
                trusted_packet_sequence_id: Some(SEQUENCE),
                track_event: Some(out),
                track_descriptor: None,
            }
        }));
    }
    Trace { packet: packets }.encode_to_vec()
}

/// Not 0, which is nobody's.
fn uuid(index: usize) -> u64 {
    index as u64 + 1
}

fn descriptor(uuid: u64, track: &Track) -> TrackDescriptor {
    let mut out = TrackDescriptor {
        uuid: Some(uuid),
        parent_uuid: track.parent.map(self::uuid),
        ..TrackDescriptor::default()
    };
    match &track.kind {
        TrackKind::Process { pid } => {
            out.process = Some(ProcessDescriptor {
                pid: Some(*pid),
                process_name: Some(track.name.clone()),
            });
        }
        TrackKind::Thread { pid, tid } => {
            // It belongs to its process by the number.
            out.parent_uuid = None;
            out.thread = Some(ThreadDescriptor {
                pid: Some(*pid),
                tid: Some((*tid).into()),
                thread_name: Some(track.name.clone()),
            });
        }
        TrackKind::Plain => out.name = Some(track.name.clone()),
        TrackKind::Counter { unit } => {
            out.name = Some(track.name.clone());
            out.counter = Some(CounterDescriptor {
                unit_name: Some((*unit).to_owned()),
            });
        }
    }
    out
}

fn annotation(name: &str, value: &Argument) -> DebugAnnotation {
    let mut out = DebugAnnotation {
        name: Some(name.to_owned()),
        ..DebugAnnotation::default()
    };
    match value {
        Argument::Signed(number) => out.int_value = Some(*number),
        Argument::Unsigned(number) => out.uint_value = Some(*number),
        Argument::Address(number) => out.pointer_value = Some(*number),
        Argument::Text(text) => out.string_value = Some(text.clone()),
    }
    out
}
