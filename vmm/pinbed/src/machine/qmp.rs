// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The little of QMP that a run needs: the run state when the guest stops, why it ends, and registers when it hangs. (The crates for
//! QMP carry all of its schema, and give events only between commands.)

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

/// What QEMU says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The guest stopped; [`Monitor::ask_run_state`] tells why.
    Stopped,
    /// The guest is in this run state.
    RunState(String),
    /// The guest wants to end.
    Shutdown {
        /// By a reset.
        reset: bool,
    },
    /// All CPUs' registers, as QEMU prints them.
    Registers(String),
    /// The guest has let go of the device of this id, and QEMU has taken it out.
    Deleted(String),
    /// Memory, as QEMU prints it.
    Memory(String),
    /// The machine's state is saved, or taken up.
    Migrated,
    /// It could not be.
    NotMigrated,
}

const RUN_STATE: &str = "run-state";
const REGISTERS: &str = "registers";
const MEMORY: &str = "memory";
const MIGRATE: &str = "migrate";

/// The side of a QMP connection that asks.
#[derive(Debug)]
pub struct Monitor(UnixStream);

impl Monitor {
    /// Takes over a connection on which nothing has been said.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn new(connection: UnixStream) -> io::Result<Self> {
        let mut monitor = Monitor(connection);
        monitor.ask("capabilities", "qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Asks for [`Said::RunState`].
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn ask_run_state(&mut self) -> io::Result<()> {
        self.ask(RUN_STATE, "query-status", json!({}))
    }

    /// Asks for [`Said::Registers`].
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn ask_registers(&mut self) -> io::Result<()> {
        self.ask(
            REGISTERS,
            "human-monitor-command",
            json!({ "command-line": "info registers -a" }),
        )
    }

    /// Asks for [`Said::Memory`]: two words of 64 bits at an address as a CPU sees it.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn ask_words(&mut self, cpu: usize, address: u64) -> io::Result<()> {
        self.ask(
            MEMORY,
            "human-monitor-command",
            json!({ "command-line": format!("x /2gx {address:#x}"), "cpu-index": cpu }),
        )
    }

    /// Sends a serial break to the console, with which the kernel takes the next key as a SysRq.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn send_break(&mut self) -> io::Result<()> {
        self.ask("break", "chardev-send-break", json!({ "id": "console" }))
    }

    /// Asks the guest to let go of a device, and then for [`Said::Deleted`].
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn take_device(&mut self, id: &str) -> io::Result<()> {
        self.ask("device", "device_del", json!({ "id": id }))
    }

    /// Puts a device into the machine; `device` is as in -device.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn add_device(&mut self, device: Value) -> io::Result<()> {
        self.ask("device", "device_add", device)
    }

    /// Connects to a socket that somebody listens at.
    ///
    /// # Errors
    /// When the connection to QEMU is closed.
    pub fn add_socket(&mut self, id: &str, path: &Path) -> io::Result<()> {
        let address = json!({ "type": "unix", "data": { "path": path } });
        let data = json!({ "addr": address, "server": false });
        let backend = json!({ "type": "socket", "data": data });
        self.ask(
            "chardev",
            "chardev-add",
            json!({ "id": id, "backend": backend }),
        )
    }

    /// Closes a connection that no device uses.
    ///
    /// # Errors
    /// When the connection to QEMU is closed.
    pub fn remove_chardev(&mut self, id: &str) -> io::Result<()> {
        self.ask("chardev", "chardev-remove", json!({ "id": id }))
    }

    /// Stops the guest, writes the machine's state but for its memory to a file, and then says [`Said::Migrated`] or
    /// [`Said::NotMigrated`]. Memory that is shared with us is ours to save.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn save(&mut self, state: &Path) -> io::Result<()> {
        self.prepare_migration()?;
        self.ask("stop", "stop", json!({}))?;
        self.ask(MIGRATE, "migrate", json!({ "uri": file_uri(state) }))
    }

    /// Takes up the state in a file, in a QEMU that waits for it, and then says as [`Monitor::save`]. The guest's memory is in place.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn restore(&mut self, state: &Path) -> io::Result<()> {
        self.prepare_migration()?;
        self.ask(
            MIGRATE,
            "migrate-incoming",
            json!({ "uri": file_uri(state) }),
        )
    }

    fn prepare_migration(&mut self) -> io::Result<()> {
        let on = |name| json!({ "capability": name, "state": true });
        let capabilities = [on("events"), on("x-ignore-shared")];
        self.ask(
            MIGRATE,
            "migrate-set-capabilities",
            json!({ "capabilities": capabilities }),
        )
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn resume(&mut self) -> io::Result<()> {
        self.ask("resume", "cont", json!({}))
    }

    fn ask(&mut self, id: &str, command: &str, arguments: Value) -> io::Result<()> {
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.0.write_all(line.as_bytes())
    }
}

fn file_uri(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// What a line from QEMU says, if it is of interest.
pub fn parse(line: &str) -> Option<Said> {
    let value: Value = serde_json::from_str(line).ok()?;
    match (
        value.get("event").and_then(Value::as_str),
        value.get("id").and_then(Value::as_str),
    ) {
        (Some("STOP"), _) => Some(Said::Stopped),
        (Some("SHUTDOWN"), _) => {
            let reason = value.pointer("/data/reason").and_then(Value::as_str)?;
            Some(Said::Shutdown {
                reset: reason.contains("reset"),
            })
        }
        (Some("DEVICE_DELETED"), _) => {
            let id = value.pointer("/data/device").and_then(Value::as_str)?;
            Some(Said::Deleted(id.to_owned()))
        }
        (Some("MIGRATION"), _) => match value.pointer("/data/status").and_then(Value::as_str)? {
            "completed" => Some(Said::Migrated),
            "failed" => Some(Said::NotMigrated),
            _ => None,
        },
        // A command of migration that is refused.
        (None, Some(MIGRATE)) => value.get("error").map(|_| Said::NotMigrated),
        (Some("GUEST_PANICKED"), _) => Some(Said::RunState("guest-panicked".to_owned())),
        (_, Some(RUN_STATE)) => value
            .pointer("/return/status")
            .and_then(Value::as_str)
            .map(|state| Said::RunState(state.to_owned())),
        (_, Some(REGISTERS)) => value
            .get("return")
            .and_then(Value::as_str)
            // An empty line comes first.
            .map(|text| Said::Registers(text.trim().to_owned())),
        (_, Some(MEMORY)) => value
            .get("return")
            .and_then(Value::as_str)
            .map(|text| Said::Memory(text.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_says_is_understood() {
        for (line, said) in [
            (
                r#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}}, "capabilities": ["oob"]}}"#,
                None,
            ),
            (
                r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
                Some(Said::Stopped),
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
                Some(Said::Shutdown { reset: false }),
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#,
                Some(Said::Shutdown { reset: true }),
            ),
            (
                r#"{"return": {"status": "internal-error", "running": false}, "id": "run-state"}"#,
                Some(Said::RunState("internal-error".to_owned())),
            ),
            (
                r#"{"return": "\r\nCPU#0\r\nRIP=1\r\n", "id": "registers"}"#,
                Some(Said::Registers("CPU#0\r\nRIP=1".to_owned())),
            ),
            (
                r#"{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/pinbed/virtio-backend"}}"#,
                None,
            ),
            (
                r#"{"event": "DEVICE_DELETED", "data": {"device": "pinbed", "path": "/machine/peripheral/pinbed"}}"#,
                Some(Said::Deleted("pinbed".to_owned())),
            ),
            (
                r#"{"event": "MIGRATION", "data": {"status": "active"}}"#,
                None,
            ),
            (
                r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#,
                Some(Said::Migrated),
            ),
            (
                r#"{"event": "MIGRATION", "data": {"status": "failed"}}"#,
                Some(Said::NotMigrated),
            ),
            (r#"{"return": {}, "id": "migrate"}"#, None),
            (
                r#"{"error": {"class": "GenericError", "desc": "State blocked"}, "id": "migrate"}"#,
                Some(Said::NotMigrated),
            ),
            (r#"{"return": {}, "id": "capabilities"}"#, None),
            (r#"{"event": "RTC_CHANGE", "data": {"offset": 0}}"#, None),
            ("QEMU is not talking JSON", None),
        ] {
            assert_eq!(parse(line), said, "{line}");
        }
    }
}
