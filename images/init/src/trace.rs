// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Traces tests with the kernel's ftrace, where the runner asks for it. Two buffers: one of events, one of function graphs, since the
//! graph's tracer can fill only the first. Nothing here decides a verdict: what fails is noted in the trace.

use crate::{Broken, port};
use pinbed_abi::trace::{
    CLOCK, EVENTS, FORMAT, GRAPH, MODULES, NOTE, PORT_NAME, PROCESSES, Part, SYMBOLS, TASKS,
    WANTED_PATH, Wanted,
};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The kernel's tracing. Its first buffer has the function graphs.
const TRACING: &str = "/sys/kernel/tracing";
/// The second buffer.
const INSTANCE: &str = "instances/pinbed";
/// Events that the kernel records without being asked for by name.
const BUILT_IN: [&str; 4] = [
    "ftrace/funcgraph_entry",
    "ftrace/funcgraph_exit",
    "ftrace/kernel_stack",
    "ftrace/print",
];

/// A trace under way.
pub struct Trace {
    port: File,
    /// Both buffers: what they are called, and where they are.
    buffers: [(&'static str, PathBuf); 2],
    /// What tests are announced to.
    marker: Option<File>,
}

impl Trace {
    /// Sets the kernel's tracing up; nothing where no trace is wanted.
    pub fn begin() -> Result<Option<Self>, Broken> {
        let Ok(text) = fs::read_to_string(WANTED_PATH) else {
            return Ok(None);
        };
        let wanted: Wanted = serde_json::from_str(&text)?;
        let path = port::wait_for(PORT_NAME)?;
        let port = OpenOptions::new().write(true).open(path)?;
        let top = PathBuf::from(TRACING);
        let mut trace = Trace {
            port,
            buffers: [(EVENTS, top.join(INSTANCE)), (GRAPH, top)],
            marker: None,
        };
        trace.set_up(&wanted)?;
        Ok(Some(trace))
    }

    fn set_up(&mut self, wanted: &Wanted) -> io::Result<()> {
        let [(_, events), (_, graph)] = self.buffers.clone();
        if !graph.join("trace").exists() {
            return self.note("the kernel has no tracefs: CONFIG_FTRACE is not set");
        }
        // A probe belongs to all buffers, and its events have to be there first.
        for probe in &wanted.probes {
            self.append(&graph.join("kprobe_events"), probe)?;
        }
        if let Err(error) = fs::create_dir(&events) {
            return self.note(&format!("no second trace buffer: {error}"));
        }
        for place in [&events, &graph] {
            for (file, value) in [
                ("tracing_on", "0"),
                ("trace_clock", CLOCK),
                ("buffer_size_kb", &wanted.buffer_kib.to_string()),
            ] {
                self.set(&place.join(file), value)?;
            }
        }
        self.set(&graph.join("options/record-cmd"), "1")?;
        self.set(&graph.join("options/record-tgid"), "1")?;
        for event in &wanted.events {
            self.set(&events.join("events").join(event).join("enable"), "1")?;
        }
        for event in &wanted.stacks {
            let trigger = events.join("events").join(event).join("trigger");
            self.set(&trigger, "stacktrace")?;
        }
        if !wanted.functions.is_empty() {
            // In one write each: the kernel looks at all its functions for each pattern.
            for function in &wanted.functions {
                self.append(&graph.join("set_ftrace_filter"), function)?;
            }
            self.set(&graph.join("current_tracer"), "function_graph")?;
        }
        let enabled = wanted.events.iter().map(String::as_str);
        for event in enabled.chain(BUILT_IN) {
            let place = graph.join("events").join(event);
            let formats = match place.join("format").exists() {
                true => vec![place.join("format")],
                // A group.
                false => fs::read_dir(&place)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|event| event.path().join("format"))
                    .filter(|path| path.exists())
                    .collect(),
            };
            for format in formats {
                self.send(FORMAT, 0, &fs::read(format)?)?;
            }
        }
        self.send(MODULES, 0, modules().as_bytes())?;
        if wanted.symbols {
            self.send(SYMBOLS, 0, &fs::read("/proc/kallsyms")?)?;
        }
        self.marker = OpenOptions::new()
            .write(true)
            .open(events.join("trace_marker"))
            .ok();
        Ok(())
    }

    /// Records from now on, as a part of this test.
    pub fn start(&mut self, test: &str) {
        for (_, place) in &self.buffers {
            // Where that fails there is nothing to record with, as has been noted.
            let _ = fs::write(place.join("tracing_on"), "1");
        }
        self.mark(&format!("begin {test}"));
    }

    /// Records no more, and sends what there is.
    pub fn stop(&mut self) {
        self.mark("end");
        for (_, place) in &self.buffers {
            let _ = fs::write(place.join("tracing_on"), "0");
        }
        if let Err(error) = self.drain() {
            eprintln!("pinbed-init: the trace cannot be sent: {error}");
        }
    }

    fn mark(&mut self, text: &str) {
        if let Some(marker) = &mut self.marker {
            let _ = marker.write_all(text.as_bytes());
        }
    }

    fn drain(&mut self) -> io::Result<()> {
        let top = Path::new(TRACING);
        for (kind, file) in [(TASKS, "saved_cmdlines"), (PROCESSES, "saved_tgids")] {
            if let Ok(bytes) = fs::read(top.join(file)) {
                self.send(kind, 0, &bytes)?;
            }
        }
        for (kind, place) in self.buffers.clone() {
            for cpu in 0.. {
                let path = place.join(format!("per_cpu/cpu{cpu}/trace_pipe_raw"));
                let opened = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(path);
                let Ok(mut pipe) = opened else { break };
                let mut pages = Vec::new();
                let mut page = [0; 4096];
                // An empty buffer would have us wait.
                while let Ok(length @ 1..) = pipe.read(&mut page) {
                    pages.extend_from_slice(&page[..length]);
                }
                if !pages.is_empty() {
                    self.send(kind, cpu, &pages)?;
                }
            }
        }
        self.port.flush()
    }

    fn set(&mut self, path: &Path, value: &str) -> io::Result<()> {
        match fs::write(path, value) {
            Ok(()) => Ok(()),
            Err(error) => self.missing(path, value, &error),
        }
    }

    fn append(&mut self, path: &Path, value: &str) -> io::Result<()> {
        let opened = OpenOptions::new().append(true).open(path);
        match opened.and_then(|mut file| file.write_all(value.as_bytes())) {
            Ok(()) => Ok(()),
            Err(error) => self.missing(path, value, &error),
        }
    }

    fn missing(&mut self, path: &Path, value: &str, error: &io::Error) -> io::Result<()> {
        let path = path.strip_prefix(TRACING).unwrap_or(path);
        self.note(&format!("{}: {value}: {error}", path.display()))
    }

    fn note(&mut self, text: &str) -> io::Result<()> {
        self.send(NOTE, 0, text.as_bytes())
    }

    fn send(&mut self, kind: &str, cpu: u32, bytes: &[u8]) -> io::Result<()> {
        let part = Part { kind, cpu, bytes };
        self.port.write_all(part.header().as_bytes())?;
        self.port.write_all(bytes)
    }
}

/// Where modules are, a line each. One that is gone by now, or built in, has no such file.
fn modules() -> String {
    let mut lines = String::new();
    for module in fs::read_dir("/sys/module").into_iter().flatten().flatten() {
        if let Ok(address) = fs::read_to_string(module.path().join("sections/.text")) {
            lines += &format!("{} {}\n", module.file_name().display(), address.trim());
        }
    }
    lines
}
