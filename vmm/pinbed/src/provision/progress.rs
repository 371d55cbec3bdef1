// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the long parts are doing, how far they are, and for how long: one live line on a terminal, a plain line now and
//! then anywhere else. All of it goes to standard error.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// The longest silence off a terminal: long enough to keep a CI log short, short enough to show that work goes on.
const QUIET: Duration = Duration::from_secs(15);

/// What a task counts.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Bytes, shown as MiB and so on.
    Bytes,
    /// Things with this name, in the plural.
    Count(&'static str),
}

impl Unit {
    fn show(self, done: u64, total: Option<u64>) -> String {
        match (self, total) {
            (_, None) if done == 0 => String::new(),
            (Unit::Bytes, None) => format!(", {}", HumanBytes(done)),
            (Unit::Bytes, Some(total)) => {
                format!(", {} of {}", HumanBytes(done), HumanBytes(total))
            }
            (Unit::Count(name), None) => format!(", {done} {name}"),
            (Unit::Count(name), Some(total)) => format!(", {done} of {total} {name}"),
        }
    }
}

/// Where progress is shown.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    live: bool,
}

impl Progress {
    /// Live if standard error is a terminal, plain lines otherwise.
    pub fn new() -> Self {
        Progress {
            live: stderr().is_terminal(),
        }
    }

    /// Says one thing, on a line of its own.
    pub fn say(&self, line: &str) {
        say!("pinbed: {line}");
    }

    /// Starts showing a task. `what` names it in the present participle: "building kernel 6.12".
    pub fn start(&self, what: impl Into<String>, unit: Unit, total: Option<u64>) -> Task {
        let what = what.into();
        let bar = self.live.then(|| {
            let bar = ProgressBar::new_spinner().with_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            say!("pinbed: {what} ...");
        }
        let now = Instant::now();
        let task = Task {
            what,
            unit,
            total,
            done: 0,
            started: now,
            spoke: now,
            bar,
            finished: false,
        };
        task.style();
        task
    }
}

/// One long part under way. Dropped before [`Task::finish`], it leaves no line behind.
pub struct Task {
    what: String,
    unit: Unit,
    total: Option<u64>,
    done: u64,
    started: Instant,
    spoke: Instant,
    bar: Option<ProgressBar>,
    finished: bool,
}

impl Task {
    /// Sets how much is done; more than the total counts as the total.
    pub fn set(&mut self, done: u64) {
        self.done = self.total.map_or(done, |total| done.min(total));
        self.tick();
    }

    /// Counts one more.
    pub fn inc(&mut self) {
        self.set(self.done + 1);
    }

    /// To be called a few times a second while the work goes on: says a plain line when there was none for a while.
    pub fn tick(&mut self) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if self.spoke.elapsed() >= QUIET {
            self.spoke = Instant::now();
            let amount = self.unit.show(self.done, self.total);
            say!(
                "pinbed: {}{amount}, {}",
                self.what,
                span(self.started.elapsed())
            );
        }
    }

    /// Ends the task with a line such as "built kernel 6.12 (5 min 26 s)".
    pub fn finish(mut self, said: &str) {
        self.finished = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        say!("pinbed: {said} ({})", span(self.started.elapsed()));
    }

    fn style(&self) {
        let (Some(bar), amount) = (
            &self.bar,
            match self.unit {
                Unit::Bytes => "{bytes} of {total_bytes}, {bytes_per_sec}".to_owned(),
                Unit::Count(name) => format!("{{pos}} of {{len}} {name}"),
            },
        ) else {
            return;
        };
        let template = match self.total {
            Some(total) => {
                bar.set_length(total);
                format!("{{spinner}} {{msg}} [{{bar:24}}] {amount}, {{elapsed}}")
            }
            None => "{spinner} {msg}, {elapsed}".to_owned(),
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let (Some(bar), false) = (&self.bar, self.finished) {
            bar.finish_and_clear();
        }
    }
}

/// A duration for people: "0.4 s", "12 s", "5 min 26 s".
pub fn span(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f32()),
        seconds @ 10..60 => format!("{seconds} s"),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_people_say_them() {
        assert_eq!(span(Duration::from_millis(420)), "0.4 s");
        assert_eq!(span(Duration::from_millis(9_900)), "9.9 s");
        assert_eq!(span(Duration::from_millis(12_900)), "12 s");
        assert_eq!(span(Duration::from_secs(60)), "1 min 00 s");
        assert_eq!(span(Duration::from_secs(326)), "5 min 26 s");
    }

    #[test]
    fn amounts_name_their_unit() {
        assert_eq!(
            Unit::Count("objects").show(8, Some(20)),
            ", 8 of 20 objects"
        );
        assert_eq!(
            Unit::Bytes.show(1 << 20, Some(3 << 20)),
            ", 1.00 MiB of 3.00 MiB"
        );
        assert_eq!(Unit::Count("objects").show(0, None), "");
    }
}
