// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A bad end in words: what happened, what is known of it, and what to do next.

use super::accel_name;
use super::again::Again;
use super::record::{Boot, Environment, Session};
use crate::machine::watch::{End, Evidence};

/// How many of the console's last lines are shown.
const CONSOLE: usize = 40;

/// A bad end.
#[derive(Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What happened: the first line is the headline.
    pub what: Vec<String>,
    /// What is known of it: titles, and lines under them.
    pub evidence: Vec<(&'static str, Vec<String>)>,
    /// What to do next, in one sentence.
    pub next: String,
}

/// Explains how a boot ended; nothing if it ended as it should. `rerun` makes the command that runs one test again.
pub fn boot(
    boot: &Boot,
    environment: &Environment,
    rerun: &dyn Fn(&Environment, &str) -> Again,
) -> Option<Explanation> {
    let (mut what, next) = words(&boot.end, boot.culprit.as_deref(), environment, rerun)?;
    let during = boot
        .culprit
        .as_ref()
        .map_or(String::new(), |test| format!(" during {test}"));
    match &boot.headline {
        // The first report is the news; what came of it later follows.
        Some(headline) if !what[0].contains(headline) => {
            what.insert(0, format!("{headline}{during}"));
        }
        _ => what[0].push_str(&during),
    }
    let evidence = match boot.end {
        End::Interrupted { .. } => Vec::new(),
        _ => evidence(&boot.evidence),
    };
    Some(Explanation {
        what,
        evidence,
        next,
    })
}

/// Explains why a session has no boot; nothing if it has one.
pub fn session(
    session: &Session,
    rerun: &dyn Fn(&Environment, &str) -> Again,
) -> Option<Explanation> {
    if !session.boots.is_empty() {
        return None;
    }
    let (what, next) = words(&session.summary.end, None, &session.environment, rerun)?;
    Some(Explanation {
        what,
        evidence: Vec::new(),
        next,
    })
}

/// What happened, and what to do next.
fn words(
    end: &End,
    culprit: Option<&str>,
    environment: &Environment,
    rerun: &dyn Fn(&Environment, &str) -> Again,
) -> Option<(Vec<String>, String)> {
    let again = |then: &str| match culprit {
        Some(test) => {
            let Again { run, debug } = rerun(environment, test);
            format!(
                "run it alone with its logs kept: {run} --keep; or in a debugger: {debug}{then}"
            )
        }
        None => format!("run again with --keep -v to see the whole console{then}"),
    };
    let (what, next) = match end {
        End::Done | End::Stopped => return None,
        End::Interrupted { .. } => (
            "interrupted".to_owned(),
            "what ended before has its verdict above".to_owned(),
        ),
        End::NotProvided { reason } => (
            format!("there is no kernel to boot: {reason}"),
            format!(
                "`pinbed setup --kernel {}` tries that alone",
                environment.kernel
            ),
        ),
        End::Broken { reason } => (
            format!("the guest cannot run the tests: {reason}"),
            "see the console above; `pinbed shell` opens a shell in the guest".to_owned(),
        ),
        End::NeverUp { reason } => (
            format!("the guest never came up: {reason}"),
            "if the kernel is your own, see that its configuration has what guest-kernel-config/fragments/base.config asks for".to_owned(),
        ),
        End::Panic { line, .. } => (format!("the guest kernel panicked: {line}"), again("")),
        End::Hang { reason, .. } => (
            format!("the guest hangs: {reason}"),
            again("; if the machine is only slow, give a longer --timeout"),
        ),
        End::DeviceDied { status, .. } => (
            format!("the device process died ({status})"),
            format!(
                "unless somebody killed it, that is a bug in vmm/device or vmm/engine; {}",
                again("")
            ),
        ),
        End::QemuDied { status, .. } => (
            format!("QEMU died ({status})"),
            format!(
                "unless somebody killed it, try another with --qemu PATH; {}",
                again("")
            ),
        ),
        End::AccelBroken => (
            format!(
                "{} cannot run this guest: QEMU stopped it with an internal error",
                accel_name(environment.accel)
            ),
            "use --accel tcg".to_owned(),
        ),
        End::Unexpected { reason } => (
            format!("internal error: {reason}"),
            "that is a bug in pinbed; run again with --keep -v and report what it shows".to_owned(),
        ),
    };
    Some((vec![what], next))
}

/// Titles, and lines under them; those that people look at first come first.
pub fn evidence(known: &Evidence) -> Vec<(&'static str, Vec<String>)> {
    let last = |lines: &[String], most: usize| lines[lines.len().saturating_sub(most)..].to_vec();
    let mut evidence = vec![
        ("tasks", known.tasks.clone()),
        ("backtraces", known.backtraces.clone()),
        ("the device holds", known.holds.clone()),
    ];
    if let Some(registers) = &known.registers {
        let telling = registers.lines().filter(|line| is_telling(line));
        evidence.push(("registers", telling.map(str::to_owned).collect()));
    }
    evidence.push(("the console's last lines", last(&known.console, CONSOLE)));
    evidence.push(("QEMU says", known.qemu.clone()));
    evidence.push(("the device says", known.device.clone()));
    evidence.retain(|(_, lines)| !lines.is_empty());
    evidence
}

/// Whether a line of QEMU's register dump is one that people look at first; the rest is in the JSON file.
fn is_telling(line: &str) -> bool {
    let general = ["CPU#", "RAX=", "RSI=", "R8 =", "R12=", "RIP=", "CR0="];
    general.iter().any(|start| line.starts_with(start))
}
