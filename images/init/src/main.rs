// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PID 1 of the guest: mounts what tests look at, loads the driver, runs the plan, powers off.
//!
//! It never dies and never waits without a bound, since the kernel would panic or the run would hang: what it cannot do becomes a
//! `Broken` message on the report port and a line on the console, then the machine goes off.

mod aftermath;
mod bounded;
mod errand;
mod failing;
mod holders;
mod limit;
mod mounts;
mod news;
mod port;
mod processes;
mod shell;
mod supervisor;
mod trace;

use nix::sys::reboot::{RebootMode, reboot};
use pinbed_abi::report::{Message, PLAN_PATH, Plan};
use pinbed_guest::module;
use pinbed_guest::observe::kmsg::Log;
use pinbed_guest::observe::movable;
use port::Port;
use std::fs;
use std::time::Duration;

/// Why the plan cannot be carried out: one sentence.
pub struct Broken(String);

impl<T: std::fmt::Display> From<T> for Broken {
    fn from(error: T) -> Self {
        Self(error.to_string())
    }
}

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "pinbed-init is the first process of a guest; to run a test by hand use pinbed-guest run NAME"
        );
        std::process::exit(2);
    }
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("pinbed-init: {panic}");
        if let Ok(mut port) = Port::open() {
            port.send(&Message::Broken {
                reason: format!("PID 1 itself is wrong: {panic}"),
            });
        }
        power_off();
    }));
    mounts::mount_all();
    // The way to the runner may be among them.
    let warnings = match bounded::run(
        "loading modules",
        Duration::from_secs(60),
        module::insert_listed,
    ) {
        Ok(failures) => failures.iter().map(ToString::to_string).collect(),
        Err(Broken(reason)) => vec![reason],
    };
    for warning in &warnings {
        eprintln!("pinbed-init: {warning}");
    }
    match Port::open() {
        Ok(mut port) => {
            if let Err(Broken(reason)) = carry_out(&mut port, warnings) {
                eprintln!("pinbed-init: {reason}");
                port.send(&Message::Broken { reason });
            }
        }
        Err(Broken(reason)) => eprintln!("pinbed-init: {reason}"),
    }
    power_off();
}

fn carry_out(port: &mut Port, mut warnings: Vec<String>) -> Result<(), Broken> {
    let mut log = Log::open().map_err(|error| {
        Broken(format!(
            "the kernel log cannot be read, so no test could be judged: /dev/kmsg: {error}"
        ))
    })?;
    let plan = match read_plan()? {
        Plan::Await => errand::wait(port)?,
        plan => plan,
    };
    let name = nix::sys::utsname::uname()?;
    let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    port.send(&Message::Hello {
        release: text(name.release()),
        version: text(name.version()),
        regions: movable::regions(),
    });
    let loaded = bounded::run("loading the driver", Duration::from_secs(30), module::load)?;
    match plan {
        Plan::Tests { names, timeout_s } => {
            loaded?;
            supervisor::run_all(port, &mut log, &names, Duration::from_secs(timeout_s))?;
            port.send(&Message::Done);
            Ok(())
        }
        Plan::Shell(session) => {
            // Whoever wants a shell may want it because the driver does not load.
            warnings.extend(loaded.err().map(|error| error.to_string()));
            shell::run(&session, &warnings)
        }
        Plan::Await => Err(Broken("an errand is to wait for another one".into())),
    }
}

fn read_plan() -> Result<Plan, Broken> {
    let text = fs::read_to_string(PLAN_PATH)
        .map_err(|error| Broken(format!("there is no plan at {PLAN_PATH}: {error}")))?;
    parse_plan(&text)
}

fn parse_plan(text: &str) -> Result<Plan, Broken> {
    serde_json::from_str(text).map_err(|error| {
        Broken(format!(
            "the plan at {PLAN_PATH} is not one that this init knows: {error}"
        ))
    })
}

/// Ends the machine, one way or another.
fn power_off() -> ! {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("pinbed-init: the kernel cannot power off ({error}); resetting instead");
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    eprintln!("pinbed-init: the kernel cannot reset either ({error})");
    // Now the kernel panics, which the runner sees at once: better than a machine that just sits there.
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinbed_abi::shell::Session;

    #[test]
    fn plans_are_read_as_the_runner_writes_them() {
        let plan = Plan::Tests {
            names: vec!["userptr::malloc_is_decoder_input".into()],
            timeout_s: 10,
        };
        for plan in [plan, Plan::Shell(Session::default()), Plan::Await] {
            let text = serde_json::to_string(&plan).expect("a plan is JSON");
            assert!(parse_plan(&text).is_ok_and(|read| read == plan));
        }
        assert!(parse_plan("{\"Dance\":{}}").is_err_and(|Broken(reason)| reason.contains("Dance")));
    }
}
