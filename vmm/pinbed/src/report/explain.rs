// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A bad end in words: what happened, what is known of it, and what to do next.

use super::accel_name;
use crate::machine::watch::End;
use crate::report::record::Record;

/// How many of the console's last lines are shown.
const CONSOLE: usize = 50;

/// A bad end.
#[derive(Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What happened, in one sentence.
    pub what: String,
    /// What is known of it: titles, and lines under them.
    pub evidence: Vec<(&'static str, Vec<String>)>,
    /// What to do next, in one sentence.
    pub next: String,
}

/// Explains a run's end; nothing if it ended as it should. `rerun` makes the command that runs one test again.
pub fn explain(record: &Record, rerun: &dyn Fn(&str) -> String) -> Option<Explanation> {
    let during = |test: &Option<String>| {
        test.as_ref()
            .map_or(String::new(), |test| format!(" during {test}"))
    };
    let again = |test: &Option<String>, then: &str| match test {
        Some(test) => format!(
            "run it alone with its logs kept: {} --keep{then}",
            rerun(test)
        ),
        None => format!("run again with --keep -v to see the whole console{then}"),
    };
    let (what, next) = match &record.end {
        End::Done => return None,
        End::Interrupted { .. } => ("interrupted".to_owned(), "what ended before has its verdict above; the rest is missing".to_owned()),
        End::NotProvided { reason } => (
            format!("there is no kernel to boot: {reason}"),
            format!("`pinbed setup --kernel {}` tries that alone", record.name()),
        ),
        End::Broken { reason } => (
            format!("the guest cannot run the tests: {reason}"),
            "see the console above; `pinbed shell` opens a shell in the guest".to_owned(),
        ),
        End::NeverUp { reason } => (
            format!("the guest never came up: {reason}"),
            "if the kernel is your own, see that its configuration has what guest-kernel-config/fragments/base.config asks for".to_owned(),
        ),
        End::Panic { line, test } => (format!("the guest kernel panicked{}: {line}", during(test)), again(test, "")),
        End::Hang { reason, test } => (
            format!("the guest hangs{}: {reason}", during(test)),
            again(test, "; if the machine is only slow, give a longer --timeout"),
        ),
        End::DeviceDied { status, test } => (
            format!("the device process died{} ({status})", during(test)),
            format!("unless somebody killed it, that is a bug in vmm/device or vmm/engine; {}", again(test, "")),
        ),
        End::QemuDied { status, test } => (
            format!("QEMU died{} ({status})", during(test)),
            format!("unless somebody killed it, try another with --qemu PATH; {}", again(test, "")),
        ),
        End::AccelBroken => (
            format!("{} cannot run this guest: QEMU stopped it with an internal error", accel_name(record.environment.accel)),
            "use --accel tcg".to_owned(),
        ),
        End::Unexpected { reason } => (
            format!("internal error: {reason}"),
            "that is a bug in pinbed; run again with --keep -v and report what it shows".to_owned(),
        ),
    };
    let last = |lines: &[String], most: usize| lines[lines.len().saturating_sub(most)..].to_vec();
    let shown = &record.evidence;
    let mut evidence = Vec::new();
    if let End::Interrupted { .. } = record.end {
        return Some(Explanation {
            what,
            evidence,
            next,
        });
    }
    if let Some(registers) = &shown.registers {
        evidence.push((
            "registers",
            registers
                .lines()
                .filter(|line| is_telling(line))
                .map(str::to_owned)
                .collect(),
        ));
    }
    evidence.push(("the console's last lines", last(&shown.console, CONSOLE)));
    evidence.push(("QEMU says", shown.qemu.clone()));
    evidence.push(("the device says", shown.device.clone()));
    evidence.retain(|(_, lines)| !lines.is_empty());
    Some(Explanation {
        what,
        evidence,
        next,
    })
}

/// Whether a line of QEMU's register dump is one that people look at first; the rest is in the JSON file.
fn is_telling(line: &str) -> bool {
    let general = ["CPU#", "RAX=", "RSI=", "R8 =", "R12=", "RIP=", "CR0="];
    general.iter().any(|start| line.starts_with(start))
}
