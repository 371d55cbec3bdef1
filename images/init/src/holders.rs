// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who holds what a test left pinned, as far as anybody can be asked: the device, dma-bufs, and processes that did not end. The kernel
//! counts pins (nr_foll_pin_acquired, nr_foll_pin_released), and notes for none of them whose it is.

use crate::processes;
use pinbed_guest::dmabuf::Alive;
use pinbed_guest::observe::device::Held;
use pinbed_guest::observe::extent::frames;
use pinbed_guest::observe::frame;
use std::collections::BTreeMap;
use std::fs;

/// What a descriptor's link begins with that may keep memory pinned.
const KEEPERS: [&str; 8] = [
    "/dev/dma_heap",
    "/dev/iommu",
    "/dev/pinbed",
    "/dev/tee",
    "/dev/udmabuf",
    "/dev/video",
    "/dmabuf",
    "anon_inode:",
];

/// A note for each holder, or that none is known.
pub fn notes(held: &[Held], dmabufs: &[Alive]) -> Vec<String> {
    let device = held.iter().map(|held| {
        let pages: Vec<_> = frames(&held.segments).collect();
        let kinds = count(pages.iter().map(|frame| frame::describe(*frame)));
        format!("the device, {held}: {} pages: {kinds}", pages.len())
    });
    let dmabufs = dmabufs
        .iter()
        .map(|dmabuf| match dmabuf.attached.as_slice() {
            [] => format!("{dmabuf}, attached to no device"),
            devices => format!("{dmabuf}, attached to {}", devices.join(", ")),
        });
    let processes = processes::others().into_iter().filter_map(process);
    let mut notes: Vec<_> = device.chain(dmabufs).chain(processes).collect();
    if notes.is_empty() {
        notes.push(
            "not known: the device holds nothing more, and neither a dma-buf nor a process is left. The kernel does not note whose pins \
             are; `pinbed trace` of this test has the stack of each pin and unpin"
                .to_owned(),
        );
    }
    notes.iter().map(|note| format!("holder: {note}")).collect()
}

/// A process that did not end, and what it has open.
fn process(pid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let open = open.flatten().filter_map(|fd| {
        let link = fs::read_link(fd.path()).ok()?;
        let link = link.to_str()?;
        let keeps = KEEPERS.iter().any(|keeper| link.starts_with(keeper));
        let number = fd.file_name();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", number.to_str()?));
        keeps.then(|| described(link, &info.unwrap_or_default()))
    });
    let open = count(open);
    let open = match open.is_empty() {
        // Its files may be closed, and its memory gone, but for one system call that does not return.
        true => "has no file open that pins memory".to_owned(),
        false => format!("has {open}"),
    };
    Some(format!(
        "process {pid} ({}), which did not end, {open}",
        name.trim()
    ))
}

/// A descriptor, with what fdinfo says of a dma-buf.
fn described(link: &str, info: &str) -> String {
    let value = |key: &str| {
        let value = info.lines().find_map(|line| line.strip_prefix(key));
        value.map(str::trim)
    };
    match (value("exp_name:"), value("size:")) {
        (Some(exporter), Some(size)) => format!("a dma-buf of {size} bytes from {exporter}"),
        _ => link.to_owned(),
    }
}

/// Each text once, with how often it comes.
fn count(texts: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for text in texts {
        *counts.entry(text).or_default() += 1;
    }
    let words = counts.iter().map(|(text, count)| match count {
        1 => text.clone(),
        count => format!("{count} x {text}"),
    });
    words.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dma_bufs_and_what_they_are_attached_to_are_named() {
        let dmabuf = Alive {
            size: 8192,
            exporter: "system".into(),
            inode: 12,
            attached: vec!["virtio0".into()],
        };
        let notes = notes(&[], &[dmabuf]);
        assert!(
            notes[0].contains("dma-buf 12 of 8192 bytes from system, attached to virtio0"),
            "{notes:?}"
        );
    }

    #[test]
    fn descriptors_of_dma_bufs_say_what_they_are() {
        let info = "pos:\t0\nflags:\t02\nino:\t12\nsize:\t8192\ncount:\t2\nexp_name:\tudmabuf\n";
        assert_eq!(
            described("/dmabuf:", info),
            "a dma-buf of 8192 bytes from udmabuf"
        );
        assert_eq!(described("/dev/video2", "pos:\t0\n"), "/dev/video2");
        let fds = ["/dev/video2", "/dev/tee0", "/dev/video2"];
        let counted = count(fds.iter().map(|fd| (*fd).to_owned()));
        assert_eq!(counted, "/dev/tee0; 2 x /dev/video2");
    }
}
