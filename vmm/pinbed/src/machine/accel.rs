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
use crate::provision::qemu::Qemu;
use crate::provision::{self, Context};

/// How long the trial's guest may take to report in. Under KVM a kernel of ours takes well under a second, under TCG two.
const TRIAL_BOOT: Duration = Duration::from_secs(6);
/// How long anything else in the trial may take.
const TRIAL_STEP: Duration = Duration::from_secs(10);

/// Who runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
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
    pub fn qemu_accel(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=single",
        }
    }

    /// For QEMU's `-cpu`. Under TCG a fixed model: the same guest on every host, an Intel one so that Linux takes the TSC as constant and
    /// does not measure it, without AVX because its state is slow to switch, and with 1 GiB pages because they are quick to map.
    pub fn qemu_cpu(self) -> &'static str {
        match self {
            Accel::Kvm => "host",
            Accel::Tcg => "Nehalem,+pdpe1gb",
        }
    }

    /// For the kernel's command line, with a space before each. Under TCG the TSC is the host's and the timer interrupt is wired right: no
    /// need to check either, and the kernel's checks take a busy host's delays for broken hardware (and panic).
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

/// What a trial showed, and what that holds for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    /// The host's boot.
    boot: String,
    /// QEMU's path and version.
    qemu: String,
    /// The kernel's fingerprint, where the kernel itself may be to blame.
    kernel: Option<String>,
    kvm: Kvm,
}

/// Finds out whether KVM runs this kernel. `trial` boots it under KVM with nothing to do.
///
/// # Errors
/// When the trial cannot be started, or is interrupted.
pub fn probe(
    qemu: &Qemu,
    kernel: &Kernel,
    context: &Context,
    trial: impl FnOnce(Limits) -> Result<End>,
) -> Result<Kvm> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        // Not remembered: a new group or a loaded module shows at once.
        return Ok(Kvm::Fails(match error.kind() {
            ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
            ErrorKind::PermissionDenied => {
                "you may not open /dev/kvm; join the group kvm".to_owned()
            }
            _ => format!("/dev/kvm does not open: {error}"),
        }));
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let identity = format!("{} {}", qemu.program.display(), qemu.version);
    let entry = context.cache.entry("kvm", "trial");
    if let Some(known) = entry.record::<Remembered>()
        && (&known.boot, &known.qemu) == (&boot, &identity)
        && known
            .kernel
            .as_ref()
            .is_none_or(|kernel_then| *kernel_then == kernel.fingerprint)
    {
        return Ok(known.kvm);
    }
    context.progress.say("trying whether KVM works here");
    let limits = Limits {
        boot: TRIAL_BOOT,
        between: TRIAL_STEP,
        test: TRIAL_STEP,
        slow_tests: [].into(),
        power_off: TRIAL_STEP,
        settle: Duration::from_secs(2),
    };
    let (kvm, certain) = judge(trial(limits)?)?;
    let kernel = (!certain).then(|| kernel.fingerprint.clone());
    let remembered = Remembered {
        boot,
        qemu: identity,
        kernel,
        kvm,
    };
    if let Err(error) = entry
        .lock(&context.progress)
        .and_then(|entry| entry.publish(&remembered))
    {
        log::warn!("cannot remember whether KVM works: {error}");
    }
    Ok(remembered.kvm)
}

/// What a trial's end says of KVM, and whether that is certain for other kernels, too.
fn judge(end: End) -> Result<(Kvm, bool), provision::Error> {
    let fails = |why: String| Kvm::Fails(format!("/dev/kvm opens, but {why}"));
    Ok(match end {
        End::Interrupted { .. } => return Err(provision::Error::Interrupted),
        End::Done => (Kvm::Works, true),
        End::AccelBroken => (
            fails("KVM stops the guest with an internal error".to_owned()),
            true,
        ),
        End::QemuDied { status, .. } => (fails(format!("QEMU dies with it ({status})")), true),
        End::NeverUp { reason } => (
            fails(format!("a guest under it does not come up: {reason}")),
            false,
        ),
        // KVM ran the guest up to there; what is wrong with it will show.
        End::NotProvided { .. }
        | End::Broken { .. }
        | End::Panic { .. }
        | End::Hang { .. }
        | End::DeviceDied { .. }
        | End::Unexpected { .. } => (Kvm::Works, false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_works_only_if_a_guest_got_somewhere() {
        assert_eq!(judge(End::Done).unwrap(), (Kvm::Works, true));
        let panic = End::Panic {
            line: String::new(),
            test: None,
        };
        assert_eq!(judge(panic).unwrap(), (Kvm::Works, false));
        for (end, certain) in [
            (End::AccelBroken, true),
            (
                End::QemuDied {
                    status: String::new(),
                    test: None,
                },
                true,
            ),
            (
                End::NeverUp {
                    reason: String::new(),
                },
                false,
            ),
        ] {
            let (kvm, sure) = judge(end.clone()).unwrap();
            assert!(matches!(kvm, Kvm::Fails(_)) && sure == certain, "{end:?}");
        }
        assert!(judge(End::Interrupted { signal: 2 }).is_err());
    }
}
