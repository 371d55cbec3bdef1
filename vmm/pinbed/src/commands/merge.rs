// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed merge`: one run out of the results of several, told to the reporters as if it had been one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;

use crate::cli::MergeArgs;
use crate::commands::run::reporters;
use crate::exit::Exit;
use crate::judge::verdict::Counts;
use crate::report::again::Again;
use crate::report::record::{Environment, Run, Session};
use crate::report::{Reporters, result};
use crate::run::suite::Shard;

/// Results that do not make one run.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// There is no result.
    #[error("there is no result to merge")]
    None,
    /// Two results that differ in what all shards have to share.
    #[error("{}: {what} is {have}, and in {} {want}; merge results of one run only", path.display(), first.display())]
    Differs {
        /// The file.
        path: PathBuf,
        /// The one before it.
        first: PathBuf,
        /// In what they differ: "the kernel's fingerprint".
        what: String,
        /// What this file has.
        have: String,
        /// What the one before has.
        want: String,
    },
    /// The same test is in two results.
    #[error("{}: has {test} of {kernel} like {}; merge shards of one run, each once", path.display(), first.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The one before it.
        first: PathBuf,
        /// The test.
        test: String,
        /// The kernel.
        kernel: String,
    },
}

/// A result and the file it is from.
struct Part {
    path: PathBuf,
    run: Run,
}

/// Merges the results and reports on them.
///
/// # Errors
/// When they do not belong together, or a report cannot be written.
pub fn merge(args: &MergeArgs) -> Result<Exit> {
    let reporters = Reporters::new(
        reporters(&args.reports, Rc::new(Again::recorded))?,
        Instant::now(),
    );
    let parts = args
        .results
        .iter()
        .map(|path| {
            let path = path.clone();
            result::read(&path).map(|run| Part { path, run })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut run = merged(parts)?;
    run.command = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let told = reporters.retell(&run);
    if let Some(error) = &run.error {
        say!("pinbed: {error}");
    }
    told?;
    Ok(run.exit.and_then(Exit::of).unwrap_or(Exit::Internal))
}

/// One run out of these; at least one.
fn merged(mut parts: Vec<Part>) -> Result<Run, Unfit> {
    parts.sort_by_key(|part| part.run.started);
    let paths: Vec<_> = parts.iter().map(|part| part.path.clone()).collect();
    let mut parts = parts.into_iter();
    let Some(Part { path: first, run }) = parts.next() else {
        return Err(Unfit::None);
    };
    let mut whole = Run {
        sessions: Vec::new(),
        ..run.clone()
    };
    // The sessions so far, with the files that each is from.
    let mut sources: Vec<Vec<PathBuf>> = Vec::new();
    for Part { path, run } in std::iter::once(Part {
        path: first.clone(),
        run,
    })
    .chain(parts)
    {
        same(
            &path,
            &first,
            "pinbed's version",
            &run.pinbed,
            &whole.pinbed,
        )?;
        same(
            &path,
            &first,
            "pinbed's revision",
            run.revision.as_deref().unwrap_or("unknown"),
            whole.revision.as_deref().unwrap_or("unknown"),
        )?;
        // A run that did not come to its end is not green.
        let exit = run.exit.unwrap_or(Exit::Internal as u8);
        whole.exit = whole.exit.max(Some(exit));
        if let (None, Some(error)) = (&whole.error, &run.error) {
            whole.error = Some(format!("{}: {error}", path.display()));
        }
        let later = run.started - whole.started;
        let later = u64::try_from(later.num_milliseconds()).unwrap_or(0);
        for mut session in run.sessions {
            delay(&mut session, later);
            let at = whole
                .sessions
                .iter()
                .position(|known| known.name() == session.name());
            match at {
                None => {
                    whole.sessions.push(session);
                    sources.push(vec![path.clone()]);
                }
                Some(at) => {
                    join(&mut whole.sessions[at], session, &path, &sources[at])?;
                    sources[at].push(path.clone());
                }
            }
        }
    }
    missing(&mut whole, &paths);
    Ok(whole)
}

fn same(path: &Path, first: &Path, what: &str, have: &str, want: &str) -> Result<(), Unfit> {
    if have == want {
        return Ok(());
    }
    Err(Unfit::Differs {
        path: path.to_owned(),
        first: first.to_owned(),
        what: what.to_owned(),
        have: have.to_owned(),
        want: want.to_owned(),
    })
}

/// Counts a session's times from the beginning of the whole run.
fn delay(session: &mut Session, ms: u64) {
    let times = &mut session.summary.times;
    for time in [
        &mut times.qemu_started,
        &mut times.hello,
        &mut times.first_result,
    ] {
        *time = time.map(|time| time + ms);
    }
    times.ended += ms;
    for judged in &mut session.tests {
        judged.started_ms = judged.started_ms.map(|time| time + ms);
    }
}

/// Adds a session of the same kernel.
fn join(whole: &mut Session, part: Session, path: &Path, sources: &[PathBuf]) -> Result<(), Unfit> {
    let first = sources.first().map_or(path, PathBuf::as_path);
    fits(&whole.environment, &part.environment, path, first)?;
    let have: BTreeSet<_> = whole
        .tests
        .iter()
        .map(|judged| (judged.test.name.as_str(), judged.repetition))
        .collect();
    let twice = |judged: &&crate::report::record::Judged| {
        have.contains(&(judged.test.name.as_str(), judged.repetition))
    };
    if let Some(judged) = part.tests.iter().find(twice) {
        return Err(Unfit::Twice {
            path: path.to_owned(),
            first: first.to_owned(),
            test: judged.test.name.clone(),
            kernel: whole.name().to_owned(),
        });
    }
    let environment = &mut whole.environment;
    environment.release = environment.release.take().or(part.environment.release);
    environment.version = environment.version.take().or(part.environment.version);
    environment.fingerprint = environment
        .fingerprint
        .take()
        .or(part.environment.fingerprint);
    environment.baseline = environment.baseline.take().or(part.environment.baseline);
    // Hosts of a farm may differ in these.
    if environment.accel != part.environment.accel {
        environment.accel = environment.accel.or(part.environment.accel);
        environment.accel_reason = Some("some shards ran with another accelerator".to_owned());
    }
    if let (Some(shards), Some(shard)) = (&mut environment.shard, part.environment.shard) {
        shards.push(' ');
        shards.push_str(&shard);
    }
    let boots = whole.boots.iter().map(|boot| boot.boot + 1).max();
    let boots = boots.unwrap_or(0);
    whole.boots.extend(part.boots.into_iter().map(|mut boot| {
        boot.boot += boots;
        boot
    }));
    whole.tests.extend(part.tests.into_iter().map(|mut judged| {
        judged.boot = judged.boot.map(|boot| boot + boots);
        judged
    }));
    let mut counts = Counts::default();
    for (last, _) in whole.results() {
        counts.add(&last.verdict, last.attempt > 1);
    }
    let (summary, other) = (&mut whole.summary, part.summary);
    summary.counts = counts;
    if other.exit > summary.exit {
        summary.exit = other.exit;
        summary.end = other.end;
    }
    let earliest = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    let (times, others) = (&mut summary.times, other.times);
    times.qemu_started = earliest(times.qemu_started, others.qemu_started);
    times.hello = earliest(times.hello, others.hello);
    times.first_result = earliest(times.first_result, others.first_result);
    times.ended = times.ended.max(others.ended);
    Ok(())
}

/// Whether two sessions' tests ran on the same.
fn fits(a: &Environment, b: &Environment, path: &Path, first: &Path) -> Result<(), Unfit> {
    let of = |what: &str| format!("the {what} of kernel {}", a.kernel);
    let number = |shard: &Option<String>| {
        let number = shard.as_deref().and_then(|shard| shard.split_once('/'));
        number.map_or("one".to_owned(), |(_, of)| {
            of.split(' ').next().unwrap_or_default().to_owned()
        })
    };
    for (what, have, want) in [
        ("fragments", b.fragments.join(" "), a.fragments.join(" ")),
        ("command line", b.append.clone(), a.append.clone()),
        ("faults", b.faults.join(" "), a.faults.join(" ")),
        ("memory", b.memory_mib.to_string(), a.memory_mib.to_string()),
        ("number of CPUs", b.cpus.to_string(), a.cpus.to_string()),
        ("number of shards", number(&b.shard), number(&a.shard)),
    ] {
        same(path, first, &of(what), &have, &want)?;
    }
    // Not known where the kernel could not be provided.
    for (what, have, want) in [
        ("fingerprint", &b.fingerprint, &a.fingerprint),
        ("tree's revision", &b.tree_revision, &a.tree_revision),
        ("release", &b.release, &a.release),
        ("baseline", &b.baseline, &a.baseline),
    ] {
        if let (Some(have), Some(want)) = (have, want) {
            same(path, first, &of(what), have, want)?;
        }
    }
    Ok(())
}

/// Says of a shard that has no result, so that the whole is not green without it.
fn missing(whole: &mut Run, paths: &[PathBuf]) {
    let mut lacking = Vec::new();
    for session in &whole.sessions {
        let shards = session.environment.shard.as_deref().unwrap_or_default();
        let have: Vec<Shard> = shards
            .split(' ')
            .filter_map(|shard| shard.parse().ok())
            .collect();
        let Some(Shard { of, .. }) = have.first().copied() else {
            continue;
        };
        let gone = (1..=of).filter(|index| have.iter().all(|shard| shard.index != *index));
        lacking.extend(gone.map(|index| format!("{index}/{of} of kernel {}", session.name())));
    }
    if whole.sessions.is_empty() && whole.error.is_none() {
        whole.error = Some(format!("no session in {} results", paths.len()));
    }
    if !lacking.is_empty() {
        let error = format!("there is no result of shard {}", lacking.join(", "));
        whole.error = Some(match whole.error.take() {
            Some(before) => format!("{before}; {error}"),
            None => error,
        });
    }
    if whole.error.is_some() {
        whole.exit = whole.exit.max(Some(Exit::Provisioning as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::verdict::Verdict;
    use crate::report::samples;

    fn shard(index: usize, of: usize, mut run: Run) -> Part {
        for session in &mut run.sessions {
            session.environment.shard = Some(format!("{index}/{of}"));
            session.environment.fingerprint = Some("f".to_owned());
        }
        run.started += chrono::TimeDelta::seconds(index as i64);
        Part {
            path: format!("{index}.json").into(),
            run,
        }
    }

    fn one(test: &str) -> Run {
        let mut run = samples::green();
        run.sessions[0].tests[0].test.name = test.to_owned();
        run
    }

    #[test]
    fn shards_make_one_session_with_the_worst_end() {
        let mut bad = samples::panicked();
        bad.sessions[0].tests[1].test.name = "group::other".to_owned();
        let whole = merged(vec![shard(2, 2, bad), shard(1, 2, samples::green())]).unwrap();
        assert_eq!((whole.exit, whole.error.as_ref()), (Some(5), None));
        let session = &whole.sessions[0];
        assert_eq!(whole.sessions.len(), 1);
        assert_eq!(session.summary.exit, 5);
        assert_eq!(session.summary.counts.to_string(), "2 passed, 1 failed");
        let boots: Vec<_> = session.boots.iter().map(|boot| boot.boot).collect();
        assert_eq!(boots, [0, 1, 1], "the sample has two boots of one number");
        // The second shard began a second later.
        let started: Vec<_> = session.tests.iter().map(|test| test.started_ms).collect();
        assert_eq!(started, [Some(1000), Some(2000), Some(2000)]);
    }

    #[test]
    fn kernels_stay_sessions_of_their_own() {
        let parts = vec![
            shard(1, 1, samples::green()),
            shard(1, 1, samples::not_provided()),
        ];
        let whole = merged(parts).unwrap();
        assert_eq!((whole.sessions.len(), whole.exit), (2, Some(3)));
    }

    #[test]
    fn a_shard_without_a_result_is_missed() {
        let whole = merged(vec![shard(1, 3, one("a::a")), shard(3, 3, one("a::c"))]).unwrap();
        assert_eq!(whole.exit, Some(3));
        assert_eq!(
            whole.error.as_deref(),
            Some("there is no result of shard 2/3 of kernel 6.12")
        );
    }

    #[test]
    fn a_shard_that_was_not_ended_is_not_green() {
        let mut part = shard(1, 1, samples::green());
        part.run.exit = None;
        assert_eq!(merged(vec![part]).unwrap().exit, Some(Exit::Internal as u8));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |change: fn(&mut Run)| {
            let mut other = shard(2, 2, one("a::b"));
            change(&mut other.run);
            let parts = vec![shard(1, 2, one("a::a")), other];
            merged(parts).unwrap_err().to_string()
        };
        let text = refused(|run| run.sessions[0].environment.fingerprint = Some("g".to_owned()));
        assert_eq!(
            text,
            "2.json: the fingerprint of kernel 6.12 is g, and in 1.json f; merge results of one run only"
        );
        assert!(refused(|run| run.pinbed = "9".to_owned()).contains("pinbed's version is 9"));
        let text = refused(|run| run.sessions[0].environment.shard = Some("2/3".to_owned()));
        assert!(text.contains("number of shards"), "{text}");
        let text = refused(|run| run.sessions[0].tests[0].test.name = "a::a".to_owned());
        assert!(
            text.contains("2.json: has a::a of 6.12 like 1.json"),
            "{text}"
        );
    }

    #[test]
    fn a_merged_run_is_told_as_any_other() {
        let mut other = one("a::b");
        other.sessions[0].tests[0].verdict = Verdict::NotRun {
            reason: "interrupted".to_owned(),
        };
        let whole = merged(vec![shard(1, 2, one("a::a")), shard(2, 2, other)]).unwrap();
        let mut collector = crate::report::collect::Collector::default();
        for event in whole.events() {
            collector.hear(&event);
        }
        let value = |run: &Run| serde_json::to_value(run).unwrap();
        assert_eq!(value(collector.run().unwrap()), value(&whole));
    }
}
