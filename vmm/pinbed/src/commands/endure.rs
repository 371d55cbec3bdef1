// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed endure`: does the same thing thousands of times, and sees whether anything grows: what the processes of the host take up, and
//! what the guest's kernel and the device hold.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use console::Term;
use pinbed_abi::report::Holdings;

use crate::cli::{Course, EndureArgs, Kind, RunArgs};
use crate::commands::run::told_to;
use crate::commands::shell::SeveralKernels;
use crate::exit::Exit;
use crate::judge::verdict::Verdict;
use crate::machine::taken::{Role, Taken, by_all};
use crate::report::again::Again;
use crate::report::event::{Event, What};
use crate::report::table::Table;
use crate::report::{Error, Reporter, Reporters};

/// Seconds a test may take.
const TIMEOUT: u64 = 60;
/// How often what is taken up is looked at.
const LOOKS: u32 = 100;
/// By how many a process' descriptors and threads may differ because of what is under way at the moment of a look: a reset of the device
/// closes ten descriptors of QEMU's and of the device, which come back.
const SPARE: usize = 16;
/// KiB by which a process may have grown: what allocators keep, and the books of a run. QEMU's tables of translated code grow in steps of 2 MiB.
fn slack(role: Role) -> u64 {
    match role {
        Role::Qemu => 8192,
        Role::Pinbed | Role::Device => 2048,
    }
}

impl Kind {
    /// A test that does it, and how many times.
    fn test(self) -> (&'static str, u32) {
        match self {
            Kind::Attachments => ("leaks::registered_memory", 110),
            Kind::Resets => ("unplug::refused_detach_resets_the_device", 1),
            Kind::Unplugs => ("unplug::hot_unplug_with_everything_open", 1),
            Kind::Guests => ("userptr::malloc_is_decoder_input", 1),
        }
    }
}

/// Runs all courses, or those that are asked for; the exit code is that of a verdict that differs where something grows.
///
/// # Errors
/// When a run does not come to begin.
pub fn endure(args: &EndureArgs) -> Result<Exit> {
    if args.vm.kernels.len() > 1 {
        return Err(SeveralKernels.into());
    }
    let all = || Kind::value_variants().iter().copied().map(Course::from);
    let courses = match args.courses.as_slice() {
        [] => all().collect(),
        some => some.to_vec(),
    };
    let mut worst = Exit::Green;
    for course in courses {
        let exit = run(course, args)?;
        worst = worst.max(exit);
        if matches!(exit, Exit::Interrupted | Exit::ClosedPipe) {
            break;
        }
    }
    Ok(worst)
}

fn run(course: Course, args: &EndureArgs) -> Result<Exit> {
    let (test, each) = course.kind.test();
    let runs = course.count.div_ceil(each);
    let args = RunArgs {
        filters: vec![test.to_owned()],
        vm: args.vm.clone(),
        timeout: TIMEOUT,
        repeat: Some(runs),
        jobs: Some(1),
        isolate: course.kind == Kind::Guests,
        cold: true,
        ..RunArgs::default()
    };
    let watch = Watch {
        every: (runs / LOOKS).max(1),
        ..Watch::default()
    };
    let watch = Rc::new(RefCell::new(watch));
    let table = Table::new(
        io::stderr(),
        &Term::stderr(),
        false,
        Rc::new(Again::recorded),
    );
    let reporters: Vec<Box<dyn Reporter>> = vec![Box::new(Rc::clone(&watch)), Box::new(table)];
    let exit = told_to(&args, Reporters::new(reporters, Instant::now()))?;
    if matches!(exit, Exit::Interrupted | Exit::ClosedPipe) {
        return Ok(exit);
    }
    let watch = watch.borrow();
    println!(
        "{}: {}, by {} runs of {test} in {}, {:.0} s; {} differ",
        course.kind,
        watch.ended * each,
        watch.ended,
        match watch.boots {
            1 => "1 guest".to_owned(),
            boots => format!("{boots} guests"),
        },
        watch.took(),
        watch.differ
    );
    if let Some(reason) = &watch.skipped {
        println!("  not tried here: {reason}");
        return Ok(exit);
    }
    let mut grown = Vec::new();
    let ends = watch.ends(runs);
    if ends.is_empty() {
        grown.push("nothing was seen of the processes".to_owned());
    }
    for (role, [early, late]) in ends {
        println!("  {role}: {early}; at the end {late}");
        grown.extend(growth(role, early, late).map(|what| format!("{role} has more {what}")));
    }
    if let Some((first, last)) = &watch.held {
        println!("  guest: {}; at the end {}", of(first), of(last));
        if of(first) != of(last) {
            grown.push("what the guest and the device hold is not the same".to_owned());
        }
    }
    for what in &grown {
        println!("  GROWS: {what}");
    }
    Ok(match grown.is_empty() {
        true => exit,
        false => exit.max(Exit::Differs),
    })
}

/// What there is more of than may be.
fn growth(role: Role, early: Taken, late: Taken) -> impl Iterator<Item = &'static str> {
    [
        ("memory", late.memory > early.memory + slack(role)),
        ("descriptors", late.descriptors > early.descriptors + SPARE),
        ("threads", late.threads > early.threads + SPARE),
    ]
    .into_iter()
    .filter_map(|(what, grown)| grown.then_some(what))
}

fn of(held: &Holdings) -> String {
    format!(
        "{} pages pinned, {} of CMA allocated, the device holds {}",
        held.pinned,
        held.cma_used,
        match held.held.to_string() {
            none if none.is_empty() => "none".to_owned(),
            frames => frames,
        }
    )
}

/// Looks at the processes after tests.
#[derive(Default)]
struct Watch {
    /// After each so many tests.
    every: u32,
    ended: u32,
    differ: u32,
    boots: u32,
    /// Milliseconds at which the first boot began, and the last test ended.
    times: Option<(u64, u64)>,
    skipped: Option<String>,
    /// How many tests had ended, and what was taken up.
    looks: Vec<(u32, BTreeMap<Role, Taken>)>,
    /// What was held after the first test and after the last one.
    held: Option<(Holdings, Holdings)>,
}

impl Watch {
    /// Seconds.
    fn took(&self) -> f64 {
        self.times
            .map_or(0.0, |(first, last)| (last - first) as f64 / 1000.0)
    }

    /// For each process the least that it took up in the first half of the course, but for its first tenth, when what is made once is made,
    /// and in the second, but for its end, when a guest may be going. The least, since a test that is under way takes something up, too.
    fn ends(&self, runs: u32) -> BTreeMap<Role, [Taken; 2]> {
        let least = |from: u32, to: u32| {
            let mut least: BTreeMap<Role, Taken> = BTreeMap::new();
            let looks = self.looks.iter().filter(|(at, _)| (from..=to).contains(at));
            for (role, taken) in looks.flat_map(|(_, looked)| looked) {
                let now = least.entry(*role).or_insert(*taken);
                *now = now.least(*taken);
            }
            least
        };
        let tenth = |count: u32| (runs / 10 * count).max(1);
        let (early, late) = (
            least(tenth(1), tenth(5)),
            least(tenth(5) + 1, (runs - 1).max(1)),
        );
        early
            .into_iter()
            .filter_map(|(role, early)| Some((role, [early, *late.get(&role)?])))
            .collect()
    }
}

impl Reporter for Rc<RefCell<Watch>> {
    fn hear(&mut self, event: &Event) -> Result<(), Error> {
        let mut watch = self.borrow_mut();
        match &event.what {
            What::BootStarted { .. } => {
                watch.boots += 1;
                watch
                    .times
                    .get_or_insert((event.elapsed_ms, event.elapsed_ms));
            }
            What::TestFinished { judged, .. } => {
                if let Some((_, last)) = &mut watch.times {
                    *last = event.elapsed_ms;
                }
                watch.differ += u32::from(judged.verdict.differs());
                match &judged.verdict {
                    Verdict::Skip { reason, .. } => watch.skipped = Some(reason.clone()),
                    Verdict::NotRun { .. } => {}
                    _ => watch.ended += 1,
                }
                if let Some(memory) = &judged.memory {
                    let held = watch.held.take();
                    let first = held.map_or(memory.after.clone(), |(first, _)| first);
                    watch.held = Some((first, memory.after.clone()));
                }
                if watch.ended.is_multiple_of(watch.every) {
                    let look = (watch.ended, by_all());
                    watch.looks.push(look);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred runs in which each takes up so much more than the one before.
    fn watch(more: Taken) -> Watch {
        let looks = (1..=100).map(|at| {
            let taken = Taken {
                memory: 40_000 + more.memory * u64::from(at) + u64::from(at % 3) * 500,
                descriptors: 20 + more.descriptors * at as usize + at as usize % 2,
                threads: 5 + more.threads * at as usize,
            };
            (at, BTreeMap::from([(Role::Device, taken)]))
        });
        Watch {
            looks: looks.collect(),
            ..Watch::default()
        }
    }

    #[test]
    fn what_grows_is_told_from_what_comes_and_goes() {
        let more = |memory, descriptors, threads| Taken {
            memory,
            descriptors,
            threads,
        };
        let cases = [
            (more(0, 0, 0), vec![]),
            (more(20, 0, 0), vec![]),
            (more(80, 0, 0), vec!["memory"]),
            (more(0, 1, 0), vec!["descriptors"]),
            (more(0, 0, 1), vec!["threads"]),
        ];
        for (more, expected) in cases {
            let [early, late] = watch(more).ends(100)[&Role::Device];
            assert_eq!(
                growth(Role::Device, early, late).collect::<Vec<_>>(),
                expected,
                "{more}"
            );
        }
    }

    #[test]
    fn a_course_has_a_kind_and_a_count() {
        let course: Course = "resets=20".parse().unwrap();
        assert_eq!((course.kind, course.count), (Kind::Resets, 20));
        let course: Course = "guests".parse().unwrap();
        assert_eq!((course.kind, course.count), (Kind::Guests, 200));
        for bad in ["", "resets=", "resets=0", "resets=x", "reset", "guests=-1"] {
            assert!(bad.parse::<Course>().is_err(), "{bad}");
        }
    }
}
