// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device's lines (`pinbed-device --trace`): time, thread, module and text, with a tab between two of them.

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// In ticks of the host's time stamp counter.
    pub time: u64,
    pub thread: u32,
    pub said: Said,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The work on a request begins.
    Begin { queue: u32, op: u32, cookie: u64 },
    /// It ends; without a status where the answer comes later.
    End { status: Option<u32>, cookie: u64 },
    /// An access to guest memory.
    Access {
        writes: bool,
        address: u64,
        length: u64,
    },
    /// A line of the log.
    Text(String),
}

/// The lines, in the order of their times. What is no such line, as when the device died while it wrote, is left out.
pub fn parse(text: &str) -> Vec<Line> {
    let mut lines: Vec<_> = text.lines().filter_map(line).collect();
    lines.sort_by_key(|line| line.time);
    lines
}

fn line(text: &str) -> Option<Line> {
    let mut parts = text.splitn(4, '\t');
    let (time, thread) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let (module, text) = (parts.next()?, parts.next()?);
    let said = match module {
        "pinbed_device::spans" => span(text)?,
        "pinbed_engine::dma" => access(text).unwrap_or_else(|| Said::Text(text.to_owned())),
        _ => Said::Text(text.to_owned()),
    };
    Some(Line { time, thread, said })
}

fn span(text: &str) -> Option<Said> {
    let words: Vec<_> = text.split(' ').collect();
    let [what, queue, middle, cookie] = words[..] else {
        return None;
    };
    let cookie = u64::from_str_radix(cookie, 16).ok()?;
    let middle = u32::from_str_radix(middle, 16).ok();
    match what {
        "begin" => Some(Said::Begin {
            queue: u32::from_str_radix(queue, 16).ok()?,
            op: middle?,
            cookie,
        }),
        "end" => Some(Said::End {
            status: middle,
            cookie,
        }),
        _ => None,
    }
}

fn access(text: &str) -> Option<Said> {
    let words: Vec<_> = text.split(' ').collect();
    let [what @ ("read" | "write"), address, length] = words[..] else {
        return None;
    };
    Some(Said::Access {
        writes: what == "write",
        address: u64::from_str_radix(address, 16).ok()?,
        length: u64::from_str_radix(length, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_spans_accesses_or_text() {
        let text = "30\t2\tpinbed_device::spans\tend 1 0 7f\n10\t2\tpinbed_device::spans\tbegin 1 200 7f\n\
                    20\t2\tpinbed_engine::dma\tread 1b400000 1000\n25\t1\tpinbed_engine::control\tATTACH 1: Read\n40\t2\tpinb";
        let lines = parse(text);
        let said: Vec<_> = lines.iter().map(|line| (line.time, &line.said)).collect();
        assert_eq!(
            said,
            [
                (
                    10,
                    &Said::Begin {
                        queue: 1,
                        op: 0x200,
                        cookie: 0x7f
                    }
                ),
                (
                    20,
                    &Said::Access {
                        writes: false,
                        address: 0x1b40_0000,
                        length: 0x1000
                    }
                ),
                (25, &Said::Text("ATTACH 1: Read".to_owned())),
                (
                    30,
                    &Said::End {
                        status: Some(0),
                        cookie: 0x7f
                    }
                ),
            ]
        );
    }
}
