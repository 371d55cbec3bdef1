// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who runs the guest's code: KVM where it is shown to work, TCG elsewhere.
//!
//! That /dev/kvm is there and opens proves little, and so does a small guest that KVM runs: in some virtual machines KVM runs thousands of
//! instructions and stops at one that it has to emulate and cannot, or gets on so slowly that TCG is faster. So the proof is a boot of
//! the kernel under test that reports in soon. Its outcome is remembered until the host boots or QEMU changes.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::kernel::Kernel;
use crate::machine::watch::{End, Limits};
use crate::provision::cache::Cache;
use crate::provision::qemu::Qemu;
use crate::provision::{self, Context, answers};

/// How long the trial's guest may take to report in. Under KVM a kernel of ours takes well under a second, under TCG two.
const TRIAL_BOOT: Duration = Duration::from_secs(6);
/// How long it may take under TCG, on a host of any load, to show that the kernel comes up at all.
const CONTROL_BOOT: Duration = Duration::from_secs(30);
/// How long anything else in the trial may take.
const TRIAL_STEP: Duration = Duration::from_secs(10);

/// Who runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Accel {
    /// For QEMU's `-accel`. Under TCG all of the guest's CPUs take turns on one thread: CPUs that wait for each other do not burn the time
    /// that a busy host should give to the other one, and no atomic needs a host's. Measured on a host with 2 cores: as fast at rest, and
    /// several times as fast where others keep it busy. The price: two CPUs never run at the very same moment, as they do with KVM.
    pub fn qemu_accel(self, parallel: bool) -> &'static str {
        match (self, parallel) {
            (Accel::Kvm, _) => "kvm",
            (Accel::Tcg, false) => "tcg,thread=single",
            (Accel::Tcg, true) => "tcg,thread=multi",
        }
    }

    /// For QEMU's `-cpu`. Under TCG an environment's, else a fixed model: the same guest on every host, an Intel one so that Linux takes the TSC as constant and
    /// does not measure it, without AVX because its state is slow to switch, and with 1 GiB pages because they are quick to map.
    ///
    /// Without the bit that tells of a hypervisor: with it Linux takes spin locks that are not fair, and CPUs that take turns starve each
    /// other of them. A CPU in free_irq() polls the I/O APIC under a lock that the interrupt's handler needs on the other one, and most turns end
    /// at that poll: an unbind took 20 s where it takes 10 ms.
    pub fn qemu_cpu(self, model: Option<&str>) -> &str {
        match self {
            Accel::Kvm => "host",
            Accel::Tcg => model.unwrap_or("Nehalem,+pdpe1gb,-hypervisor"),
        }
    }

    /// For the kernel's command line, with a space before each. Under TCG the TSC is the host's and the timer interrupt is wired right: no
    /// need to check either, and the kernel takes a busy host's delays for broken hardware (and panics).
    pub fn kernel_arguments(self) -> &'static str {
        match self {
            Accel::Kvm => "",
            Accel::Tcg => " tsc=reliable no_timer_check",
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
        }
    }
}

/// Whether KVM runs a guest here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kvm {
    /// It does.
    Works,
    /// It does not, for this reason.
    Fails(String),
}

/// Finds out whether KVM runs this kernel. `trial` boots it with nothing to do.
///
/// # Errors
/// When a trial cannot be started, or is interrupted.
pub fn probe(
    qemu: &Qemu,
    kernel: &Kernel,
    context: &Context,
    trial: impl Fn(Accel, Limits) -> Result<End>,
) -> Result<Kvm> {
    if let Err(why) = opens() {
        // Not remembered: a new group or a loaded module shows at once.
        return Ok(Kvm::Fails(why));
    }
    Memory::of(context, qemu).known_or_tried(&kernel.fingerprint, context, trial)
}

/// What is known of KVM here without a trial; for `pinbed doctor`.
pub fn known(qemu: &Qemu, context: &Context) -> Option<Kvm> {
    match opens() {
        Err(why) => Some(Kvm::Fails(why)),
        Ok(()) => Memory::of(context, qemu).recall(None),
    }
}

/// Whether /dev/kvm opens, or why not.
fn opens() -> Result<(), String> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
            ErrorKind::PermissionDenied => {
                "you may not open /dev/kvm; join the group kvm".to_owned()
            }
            _ => format!("/dev/kvm does not open: {error}"),
        }),
    }
}

fn limits(boot: Duration) -> Limits {
    Limits {
        boot,
        between: TRIAL_STEP,
        test: TRIAL_STEP,
        slow_tests: [].into(),
        power_off: TRIAL_STEP,
        settle: Duration::from_secs(2),
    }
}

/// What trials showed since the host booted, with this QEMU.
struct Memory<'a> {
    cache: &'a Cache,
    stamp: String,
}

impl<'a> Memory<'a> {
    fn of(context: &'a Context, qemu: &Qemu) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let (program, version) = (qemu.program.display(), &qemu.version);
        Memory {
            cache: &context.cache,
            stamp: format!("{} {program} {version}", boot.trim()),
        }
    }

    fn known_or_tried(
        &self,
        kernel: &str,
        context: &Context,
        trial: impl Fn(Accel, Limits) -> Result<End>,
    ) -> Result<Kvm> {
        if let Some(known) = self.recall(None).or_else(|| self.recall(Some(kernel))) {
            return Ok(known);
        }
        context.progress.say("trying whether KVM works here");
        let (kvm, blame) = judge(trial(Accel::Kvm, limits(TRIAL_BOOT))?)?;
        let of_host = match blame {
            Blame::Host => true,
            Blame::Kernel => false,
            // If it comes up without KVM, the kernel is sound.
            Blame::Either => {
                let (without, _) = judge(trial(Accel::Tcg, limits(CONTROL_BOOT))?)?;
                without == Kvm::Works
            }
        };
        self.keep((!of_host).then_some(kernel), &kvm);
        Ok(kvm)
    }

    /// Of this kernel, or of any.
    fn recall(&self, kernel: Option<&str>) -> Option<Kvm> {
        answers::recall(self.cache, &Memory::question(kernel), &self.stamp)
    }

    fn keep(&self, kernel: Option<&str>, kvm: &Kvm) {
        answers::keep(self.cache, &Memory::question(kernel), &self.stamp, kvm);
    }

    fn question(kernel: Option<&str>) -> String {
        format!("does KVM run {}", kernel.unwrap_or("guests"))
    }
}

/// Whose a trial's outcome is: of which other kernels it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// The host's: of all.
    Host,
    /// The kernel's: of none.
    Kernel,
    /// Not known.
    Either,
}

/// What a trial's end says of KVM.
fn judge(end: End) -> Result<(Kvm, Blame), provision::Error> {
    let fails = |why: String| Kvm::Fails(format!("/dev/kvm opens, but {why}"));
    Ok(match end {
        End::Interrupted { .. } => return Err(provision::Error::Interrupted),
        End::Done => (Kvm::Works, Blame::Host),
        End::AccelBroken => (
            fails("KVM stops the guest with an internal error".to_owned()),
            Blame::Host,
        ),
        End::QemuDied { status, .. } => {
            (fails(format!("QEMU dies with it ({status})")), Blame::Host)
        }
        End::NeverUp { reason } => (
            fails(format!("a guest under it does not come up: {reason}")),
            Blame::Either,
        ),
        // KVM ran the guest up to there; what is wrong with it will show.
        End::NotProvided { .. }
        | End::Stopped
        | End::Broken { .. }
        | End::Panic { .. }
        | End::Hang { .. }
        | End::DeviceDied { .. }
        | End::Unexpected { .. } => (Kvm::Works, Blame::Kernel),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::progress::Progress;

    #[test]
    fn kvm_works_only_if_a_guest_got_somewhere() {
        assert_eq!(judge(End::Done).unwrap(), (Kvm::Works, Blame::Host));
        let panic = End::Panic {
            line: String::new(),
            test: None,
        };
        assert_eq!(judge(panic).unwrap(), (Kvm::Works, Blame::Kernel));
        let died = End::QemuDied {
            status: String::new(),
            test: None,
        };
        for (end, whose) in [
            (End::AccelBroken, Blame::Host),
            (died, Blame::Host),
            (never_up(), Blame::Either),
        ] {
            let (kvm, blame) = judge(end.clone()).unwrap();
            assert!(matches!(kvm, Kvm::Fails(_)) && blame == whose, "{end:?}");
        }
        assert!(judge(End::Interrupted { signal: 2 }).is_err());
    }

    fn never_up() -> End {
        End::NeverUp {
            reason: String::new(),
        }
    }

    /// How many trials two kernels take after each other, each asked for twice, where under KVM no guest comes up and under TCG they end so.
    fn trials(under_tcg: &End) -> usize {
        let directory = tempfile::tempdir().unwrap();
        let context = Context {
            cache: Cache::at(directory.path().to_owned()),
            progress: Progress::new(),
        };
        let memory = Memory {
            cache: &context.cache,
            stamp: "boot".to_owned(),
        };
        let count = std::cell::Cell::new(0);
        for kernel in ["one", "two", "one", "two"] {
            let trial = |accel, _: Limits| {
                count.set(count.get() + 1);
                Ok(match accel {
                    Accel::Kvm => never_up(),
                    Accel::Tcg => under_tcg.clone(),
                })
            };
            let kvm = memory.known_or_tried(kernel, &context, trial).unwrap();
            assert!(matches!(kvm, Kvm::Fails(_)));
        }
        count.get()
    }

    #[test]
    fn a_failure_of_the_host_is_remembered_for_every_kernel() {
        assert_eq!(trials(&End::Done), 2, "one under each, and no more");
        // Where the kernel may be to blame, each has its own.
        assert_eq!(trials(&never_up()), 4);
    }
}
