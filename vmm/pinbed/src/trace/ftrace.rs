// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's trace buffers as the guest sent them: pages of the ring buffer (kernel/trace/ring_buffer.c), whose events are laid out as
//! their `format` files say.

use std::collections::BTreeMap;
use std::rc::Rc;

use pinbed_abi::trace::{self, Part};

/// A page of the ring buffer: time, bytes that are used, and these.
const PAGE: usize = 4096;
const PAGE_HEADER: usize = 16;
/// In the count of used bytes: events are missing before this page.
const MISSED: u64 = 1 << 31;
const USED: u64 = 0xf_ffff;

/// A field of an event.
#[derive(Clone, Debug)]
struct Field {
    name: String,
    offset: usize,
    size: usize,
    signed: bool,
    /// The field says where the content is: its offset in the low, its length in the high half.
    elsewhere: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    /// An array of bytes, to the end of the event where its size is 0.
    Text,
    /// Numbers of so many bytes, to the end of the event where the size is 0.
    Words(usize),
}

/// What is known of an event's layout.
#[derive(Debug)]
pub struct Format {
    /// Its name, without its group.
    pub name: String,
    id: u16,
    fields: Vec<Field>,
}

impl Format {
    fn parse(text: &str) -> Option<Self> {
        let value = |line: &str, key: &str| Some(line.strip_prefix(key)?.trim().to_owned());
        let name = text.lines().find_map(|line| value(line, "name:"))?;
        let id = text.lines().find_map(|line| value(line, "ID:"))?;
        Some(Format {
            name,
            id: id.parse().ok()?,
            fields: text.lines().filter_map(Field::parse).collect(),
        })
    }
}

impl Field {
    /// `field:unsigned long args[6]; offset:16; size:48; signed:0;`, with tabs
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        let declaration = parts.next()?.trim();
        let mut number =
            |key: &str| -> Option<usize> { parts.next()?.trim().strip_prefix(key)?.parse().ok() };
        let (offset, size) = (number("offset:")?, number("size:")?);
        let signed = number("signed:").unwrap_or(0) == 1;
        let (kind, name) = declaration.rsplit_once([' ', '*'])?;
        // `__data_loc char[] name`, `unsigned long args[6]`
        let (name, is_array) = match name.split_once('[') {
            Some((name, _)) => (name, true),
            None => (name, false),
        };
        let elsewhere = declaration.starts_with("__data_loc");
        let kind = match is_array || elsewhere {
            true if kind.contains("char") => Kind::Text,
            true if kind.contains("int") || kind.contains("32") => Kind::Words(4),
            true => Kind::Words(8),
            false => Kind::Number,
        };
        Some(Field {
            name: name.to_owned(),
            offset,
            size,
            signed,
            elsewhere,
            kind,
        })
    }
}

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Signed(i64),
    Unsigned(u64),
    Text(String),
    Words(Vec<u64>),
}

/// An event that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// In ticks of the guest's time stamp counter.
    pub time: u64,
    pub cpu: u32,
    pub format: Rc<Format>,
    data: Vec<u8>,
}

/// The field with a stack's addresses.
pub const STACK: &str = "caller";

impl Event {
    /// The task that it happened in, or that was interrupted.
    pub fn pid(&self) -> i32 {
        self.number("common_pid") as i32
    }

    /// Whether it happened in an interrupt.
    pub fn in_interrupt(&self) -> bool {
        const HARDIRQ: u64 = 0x08;
        const SOFTIRQ: u64 = 0x10;
        self.number("common_flags") & (HARDIRQ | SOFTIRQ) != 0
    }

    /// A field that is a number; 0 if there is none of that name.
    pub fn number(&self, name: &str) -> u64 {
        match self.value(name) {
            Some(Value::Signed(number)) => number.cast_unsigned(),
            Some(Value::Unsigned(number)) => number,
            _ => 0,
        }
    }

    /// A field's value.
    pub fn value(&self, name: &str) -> Option<Value> {
        let field = self.format.fields.iter().find(|field| field.name == name)?;
        self.of(field)
    }

    /// All fields but those that every event has.
    pub fn values(&self) -> impl Iterator<Item = (&str, Value)> {
        let own = |field: &&Field| {
            !field.name.starts_with("common_") && !field.name.starts_with("__probe")
        };
        let fields = self.format.fields.iter().filter(own);
        fields.filter_map(|field| Some((field.name.as_str(), self.of(field)?)))
    }

    fn of(&self, field: &Field) -> Option<Value> {
        let rest = self.data.get(field.offset..)?;
        let mut bytes = match (field.size, field.name.as_str()) {
            (0, _) => rest,
            // A stack's format says 8 entries, whatever it has (kernel/trace/trace_entries.h, __stack_array).
            (_, STACK) => rest.get(..8 * self.number("size") as usize).unwrap_or(rest),
            (size, _) => rest.get(..size)?,
        };
        if field.elsewhere {
            let place = unsigned(bytes)? as usize;
            let (offset, length) = (place & 0xffff, place >> 16);
            bytes = self.data.get(offset..offset + length)?;
        }
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0);
            let bytes = &bytes[..end.unwrap_or(bytes.len())];
            Value::Text(String::from_utf8_lossy(bytes).trim_end().to_owned())
        };
        Some(match field.kind {
            Kind::Text => text(bytes),
            Kind::Words(size) => {
                Value::Words(bytes.chunks_exact(size).filter_map(unsigned).collect())
            }
            Kind::Number if field.signed => {
                let unused = 64 - 8 * field.size.min(8) as u32;
                Value::Signed(unsigned(bytes)?.cast_signed() << unused >> unused)
            }
            Kind::Number => Value::Unsigned(unsigned(bytes)?),
        })
    }
}

/// A little-endian number of 1 to 8 bytes.
fn unsigned(bytes: &[u8]) -> Option<u64> {
    let mut whole = [0; 8];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    (!bytes.is_empty()).then(|| u64::from_le_bytes(whole))
}

/// All that a guest sent.
#[derive(Debug, Default)]
pub struct Recording {
    /// What the kernel could not trace, a sentence each.
    pub notes: Vec<String>,
    /// Names of tasks.
    pub tasks: BTreeMap<i32, String>,
    /// The processes of tasks.
    pub processes: BTreeMap<i32, i32>,
    /// Where modules' .text is.
    pub modules: BTreeMap<String, u64>,
    /// Names of the kernel's functions by address, where they were asked for.
    pub symbols: BTreeMap<u64, String>,
    /// All events, by time.
    pub events: Vec<Event>,
    /// Whether a buffer overflowed.
    pub lost: bool,
}

impl Recording {
    /// Takes it apart, as far as it is whole: a guest may have died while it sent it.
    pub fn parse(mut bytes: &[u8]) -> Self {
        let mut recording = Recording::default();
        let mut formats = BTreeMap::new();
        while let Some((part, rest)) = Part::parse(bytes) {
            bytes = rest;
            let text = || String::from_utf8_lossy(part.bytes);
            let lines = || text().into_owned();
            match part.kind {
                trace::NOTE => recording.notes.push(lines()),
                trace::FORMAT => {
                    if let Some(format) = Format::parse(&text()) {
                        formats.insert(format.id, Rc::new(format));
                    }
                }
                trace::TASKS => recording
                    .tasks
                    .extend(pairs(&lines(), |name| Some(name.to_owned()))),
                trace::PROCESSES => {
                    recording
                        .processes
                        .extend(pairs(&lines(), |pid| pid.parse().ok()));
                }
                trace::MODULES => {
                    for line in text().lines() {
                        if let Some((name, address)) = line.split_once(' ')
                            && let Some(address) = hexadecimal(address)
                        {
                            recording.modules.insert(name.to_owned(), address);
                        }
                    }
                }
                trace::SYMBOLS => {
                    for line in text().lines() {
                        let mut words = line.split_whitespace();
                        if let (Some(address), Some("t" | "T"), Some(name)) = (
                            words.next().and_then(hexadecimal),
                            words.next(),
                            words.next(),
                        ) {
                            recording
                                .symbols
                                .entry(address)
                                .or_insert_with(|| name.to_owned());
                        }
                    }
                }
                trace::EVENTS | trace::GRAPH => {
                    for page in part.bytes.chunks(PAGE) {
                        recording.page(page, part.cpu, &formats);
                    }
                }
                _ => {}
            }
        }
        recording.events.sort_by_key(|event| event.time);
        recording
    }

    fn page(&mut self, page: &[u8], cpu: u32, formats: &BTreeMap<u16, Rc<Format>>) {
        let (Some(mut time), Some(used)) = (
            page.get(..8).and_then(unsigned),
            page.get(8..PAGE_HEADER).and_then(unsigned),
        ) else {
            return;
        };
        self.lost |= used & MISSED != 0;
        let rest = &page[PAGE_HEADER..];
        let mut rest = &rest[..rest.len().min((used & USED) as usize)];
        while let Some((head, after)) = rest.split_first_chunk::<4>() {
            let head = u32::from_le_bytes(*head);
            let (kind, delta) = (head & 0x1f, u64::from(head >> 5));
            let next = after.get(..4).and_then(unsigned);
            let (data, length) = match (kind, next) {
                // Padding: to the end of the page, or over an event that was taken back.
                (29, _) if delta == 0 => return,
                (29, Some(length)) => (None, length as usize),
                (30, Some(more)) => {
                    time += (more << 27) + delta;
                    (None, 4)
                }
                (31, Some(more)) => {
                    time = (time & !((1 << 59) - 1)) | ((more << 27) + delta);
                    (None, 4)
                }
                (0, Some(length)) => {
                    let length = length as usize;
                    time += delta;
                    (after.get(4..length), length)
                }
                (1..=28, _) => {
                    let length = kind as usize * 4;
                    time += delta;
                    (after.get(..length), length)
                }
                _ => return,
            };
            if let Some(data) = data
                && let Some(id) = data.get(..2).and_then(unsigned)
                && let Some(format) = formats.get(&(id as u16))
            {
                self.events.push(Event {
                    time,
                    cpu,
                    format: Rc::clone(format),
                    data: data.to_vec(),
                });
            }
            let Some(after) = after.get(length..) else {
                return;
            };
            rest = after;
        }
    }
}

/// Lines of a number and something.
fn pairs<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<(i32, T)> {
    let pair = |line: &str| {
        let (pid, rest) = line.trim().split_once(' ')?;
        Some((pid.parse().ok()?, parse(rest.trim())?))
    };
    text.lines().filter_map(pair).collect()
}

fn hexadecimal(text: &str) -> Option<u64> {
    let text = text.trim();
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: sys_enter\nID: 300\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:long id;\toffset:8;\tsize:8;\tsigned:1;\n\
        \tfield:unsigned long args[2];\toffset:16;\tsize:16;\tsigned:0;\n\n\
        print fmt: \"NR %ld\", REC->id\n";

    fn bytes_of(events: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (head, body) in events {
            data.extend(head.to_le_bytes());
            data.extend(body);
        }
        let mut page = 1000u64.to_le_bytes().to_vec();
        page.extend((data.len() as u64).to_le_bytes());
        page.extend(data);
        page.resize(PAGE, 0);
        let mut bytes = Vec::new();
        for (kind, cpu, body) in [
            (trace::FORMAT, 0, FORMAT.as_bytes()),
            (trace::EVENTS, 1, &page),
        ] {
            let part = Part {
                kind,
                cpu,
                bytes: body,
            };
            bytes.extend(part.header().into_bytes());
            bytes.extend(part.bytes);
        }
        bytes
    }

    #[test]
    fn events_have_the_time_the_task_and_the_fields_that_the_format_says() {
        let mut body = vec![44, 1, 0, 0, 7, 0, 0, 0];
        body.extend((-3i64).to_le_bytes());
        body.extend([1u64, 2].iter().flat_map(|word| word.to_le_bytes()));
        let short = (8 | 5 << 5, body.clone());
        let extended = (30 | 1 << 5, 2u32.to_le_bytes().to_vec());
        let mut long = ((body.len() + 4) as u32).to_le_bytes().to_vec();
        long.extend(&body);
        let recording = Recording::parse(&bytes_of(&[short, extended, (6 << 5, long)]));
        let [first, second] = &recording.events[..] else {
            panic!("{:?}", recording.events)
        };
        assert_eq!((first.time, first.cpu, first.pid()), (1005, 1, 7));
        assert_eq!(first.value("id"), Some(Value::Signed(-3)));
        assert_eq!(second.time, 1005 + (2 << 27) + 1 + 6);
        assert_eq!(second.value("args"), Some(Value::Words(vec![1, 2])));
        assert_eq!(second.values().count(), 2);
        assert!(!recording.lost);
    }

    #[test]
    fn a_stack_has_as_many_entries_as_it_says() {
        let format = "name: kernel_stack\nID: 4\nformat:\n\
            \tfield:int size;\toffset:8;\tsize:4;\tsigned:1;\n\
            \tfield:unsigned long caller[2];\toffset:16;\tsize:16;\tsigned:0;\n";
        let event = |size: u32| {
            let words = (1..=5_u64).flat_map(u64::to_le_bytes);
            let head = [4, u64::from(size)].into_iter().flat_map(u64::to_le_bytes);
            Event {
                time: 0,
                cpu: 0,
                format: Rc::new(Format::parse(format).unwrap()),
                data: head.chain(words).collect(),
            }
        };
        assert_eq!(event(3).value(STACK), Some(Value::Words(vec![1, 2, 3])));
        // Never more than there is.
        assert_eq!(
            event(9).value(STACK),
            Some(Value::Words(vec![1, 2, 3, 4, 5]))
        );
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let bytes = bytes_of(&[(8 | 5 << 5, vec![44, 1, 0, 0])]);
        assert_eq!(Recording::parse(&bytes).events.len(), 0);
        assert_eq!(Recording::parse(&bytes[..bytes.len() - 5]).events.len(), 0);
    }
}
