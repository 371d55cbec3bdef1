// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Makes the record of a run from its events, and events from a record.

use chrono::TimeDelta;

use super::event::{Event, What};
use super::record::{Run, Session, Summary, Times};
use crate::judge::verdict::Counts;
use crate::machine::watch::End;

impl Run {
    /// The events that a run consisted of, as far as the run has kept them.
    pub fn events(&self) -> Vec<Event> {
        let mut all = Vec::new();
        let mut add = |elapsed_ms, what| {
            let ms = i64::try_from(elapsed_ms).unwrap_or(i64::MAX);
            let after = TimeDelta::try_milliseconds(ms).unwrap_or_default();
            all.push(Event {
                time: self.started + after,
                elapsed_ms,
                what,
            });
        };
        add(
            0,
            What::RunStarted {
                format: self.format,
                pinbed: self.pinbed.clone(),
                revision: self.revision.clone(),
                command: self.command.clone(),
                kernels: self.sessions.iter().map(|s| s.name().to_owned()).collect(),
            },
        );
        let mut ended = 0;
        for (session, of) in self.sessions.iter().enumerate() {
            let began = ended;
            ended = ended.max(of.summary.times.ended);
            add(
                began,
                What::SessionStarted {
                    session,
                    environment: Box::new(of.environment.clone()),
                    plan: of.results().map(|(last, _)| last.test.clone()).collect(),
                },
            );
            for boot in &of.boots {
                let tests = of.tests.iter().filter(|test| test.boot == Some(boot.boot));
                add(
                    of.summary.times.qemu_started.unwrap_or(began),
                    What::BootStarted {
                        session,
                        boot: boot.boot,
                        tests: tests.count(),
                    },
                );
            }
            for judged in &of.tests {
                let at = judged
                    .started_ms
                    .map(|ms| ms + judged.duration_ms.unwrap_or(0));
                add(
                    at.unwrap_or(ended),
                    What::TestFinished {
                        session,
                        judged: Box::new(judged.clone()),
                    },
                );
            }
            for boot in &of.boots {
                add(
                    ended,
                    What::BootFinished {
                        session,
                        ended: Box::new(boot.clone()),
                    },
                );
            }
            add(
                ended,
                What::SessionFinished {
                    session,
                    summary: of.summary.clone(),
                },
            );
        }
        add(
            ended,
            What::RunFinished {
                exit: self.exit.unwrap_or(crate::exit::Exit::Internal as u8),
                error: self.error.clone(),
            },
        );
        all
    }
}

/// Builds a [`Run`] from its events.
#[derive(Debug, Default)]
pub struct Collector {
    run: Option<Run>,
}

impl Collector {
    /// Takes in the next event.
    pub fn hear(&mut self, event: &Event) {
        if let What::RunStarted {
            format,
            pinbed,
            revision,
            command,
            ..
        } = &event.what
        {
            self.run = Some(Run {
                format: *format,
                pinbed: pinbed.clone(),
                revision: revision.clone(),
                started: event.time,
                command: command.clone(),
                exit: None,
                error: None,
                sessions: Vec::new(),
            });
            return;
        }
        let Some(run) = &mut self.run else {
            return;
        };
        if let What::RunFinished { exit, error } = &event.what {
            run.exit = Some(*exit);
            run.error.clone_from(error);
            return;
        }
        if let What::SessionStarted { environment, .. } = &event.what {
            run.sessions.push(Session {
                environment: (**environment).clone(),
                summary: Summary {
                    exit: crate::exit::Exit::Internal as u8,
                    end: End::Unexpected {
                        reason: "the session goes on".to_owned(),
                    },
                    counts: Counts::default(),
                    times: Times::default(),
                },
                boots: Vec::new(),
                tests: Vec::new(),
            });
            return;
        }
        let Some(session) = run.sessions.last_mut() else {
            return;
        };
        match &event.what {
            What::GuestUp {
                release,
                version,
                regions,
                start,
                ..
            } => {
                session.environment.start = Some(*start);
                session.environment.release = Some(release.clone());
                session.environment.version = Some(version.clone());
                session.environment.regions.clone_from(regions);
            }
            What::TestFinished { judged, .. } => session.tests.push((**judged).clone()),
            What::BootFinished { ended, .. } => session.boots.push((**ended).clone()),
            What::SessionFinished { summary, .. } => session.summary = summary.clone(),
            What::RunStarted { .. }
            | What::SessionStarted { .. }
            | What::BootStarted { .. }
            | What::TestStarted { .. }
            | What::Console { .. }
            | What::RunFinished { .. } => {}
        }
    }

    /// The run so far; none before it began.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// The session that goes on, or ended last.
    pub fn session(&self) -> Option<&Session> {
        self.run.as_ref()?.sessions.last()
    }
}
