// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a test's outcome means on the kernel it ran on: the judgement of an outcome against a baseline.

use pinbed_abi::report::{Eye, Finding, Outcome};
use serde::{Deserialize, Serialize};

use crate::judge::baseline::{Baseline, Expected};

/// A judged outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Verdict {
    /// The kernel did the correct thing, as expected.
    Pass,
    /// It did not, and that is news.
    Fail {
        /// What was seen; never empty.
        findings: Vec<Finding>,
        /// If the baseline expects the test to fail: the failure that was expected instead, and how this one differs.
        expected: Option<String>,
    },
    /// It did not, as the baseline says.
    Xfail {
        /// What was seen.
        findings: Vec<Finding>,
        /// The baseline's reason.
        reason: String,
        /// Where that is known from.
        reference: String,
    },
    /// It did the correct thing, and the baseline says that it does not: the baseline wants an update.
    Fixed {
        /// The reason that no longer holds.
        reason: String,
    },
    /// The test could not run.
    Skip {
        /// What it lacks, in the guest's words.
        reason: String,
        /// Whether the baseline says so, or there is no baseline to say otherwise.
        expected: bool,
    },
    /// The test was to run, and did not come to a verdict.
    NotRun {
        /// Why.
        reason: String,
    },
}

impl Verdict {
    /// Judges an outcome. Without a baseline the kernel is held to correctness: it may lack something, but what runs has to pass.
    pub fn of(name: &str, outcome: Outcome, baseline: Option<&Baseline>) -> Self {
        let known = baseline.and_then(|baseline| baseline.get(name));
        let outcome = match outcome {
            Outcome::Fail(findings) => {
                let mut own = findings.clone();
                match baseline.and_then(|baseline| baseline.without_common(&mut own)) {
                    Some(_) if own.is_empty() && known.is_some() => Outcome::Pass,
                    Some(common) if own.is_empty() => {
                        return Verdict::Xfail {
                            findings,
                            reason: common.reason.clone(),
                            reference: common.reference.clone(),
                        };
                    }
                    // What the test found besides is judged as elsewhere.
                    _ => Outcome::Fail(own),
                }
            }
            outcome => outcome,
        };
        match (outcome, known) {
            (Outcome::Pass, None) => Verdict::Pass,
            (Outcome::Pass, Some(known)) => Verdict::Fixed {
                reason: known.reason.clone(),
            },
            (Outcome::Fail(findings), Some(known)) => {
                let differences = known.differences(&findings);
                match &known.expected {
                    Expected::Xfail { reference, .. } if differences.is_empty() => Verdict::Xfail {
                        findings,
                        reason: known.reason.clone(),
                        reference: reference.clone(),
                    },
                    Expected::Xfail { .. } => Verdict::Fail {
                        findings,
                        expected: Some(format!("{} ({})", known.reason, differences.join("; "))),
                    },
                    Expected::Skip | Expected::Pass => Verdict::Fail {
                        findings,
                        expected: None,
                    },
                }
            }
            (Outcome::Fail(findings), None) => Verdict::Fail {
                findings,
                expected: None,
            },
            (Outcome::Skip(reason), known) => Verdict::Skip {
                expected: baseline.is_none_or(|baseline| baseline.explains_skip(&reason))
                    || known.is_some_and(|known| known.expected == Expected::Skip),
                reason,
            },
        }
    }

    /// Whether the test judged nothing, since its premise did not hold.
    pub fn shows_nothing(&self) -> bool {
        matches!(self, Verdict::Fail { findings, .. } if findings.iter().all(|finding| finding.eye == Eye::Premise))
    }

    /// Whether this is other than the baseline says, so that the run is not green.
    pub fn differs(&self) -> bool {
        match self {
            Verdict::Pass | Verdict::Xfail { .. } | Verdict::Skip { expected: true, .. } => false,
            Verdict::Fail { .. }
            | Verdict::Fixed { .. }
            | Verdict::Skip {
                expected: false, ..
            }
            | Verdict::NotRun { .. } => true,
        }
    }

    /// The verdict's name.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail { .. } => "fail",
            Verdict::Xfail { .. } => "xfail",
            Verdict::Fixed { .. } => "fixed",
            Verdict::Skip { .. } => "skip",
            Verdict::NotRun { .. } => "not_run",
        }
    }
}

/// How many tests came to what. Every test of every repetition counts once, by its last attempt; all forms of output count so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Counts {
    /// As expected: passes, and failures that the baseline knows.
    pub passed: usize,
    /// Of those that passed: failures that the baseline knows.
    pub known: usize,
    /// Of those that passed: some attempt before the last one did not.
    pub flaky: usize,
    /// Other than expected: failures, fixes, and skips that the baseline does not know.
    pub failed: usize,
    /// Skipped, as expected.
    pub skipped: usize,
    /// Not run: the session ended before.
    pub not_run: usize,
}

impl Counts {
    /// Counts a test's last verdict; `retried` if there was an attempt before.
    pub fn add(&mut self, verdict: &Verdict, retried: bool) {
        match verdict {
            Verdict::NotRun { .. } => self.not_run += 1,
            verdict if verdict.differs() => self.failed += 1,
            Verdict::Skip { .. } => self.skipped += 1,
            _ => {
                self.passed += 1;
                self.known += usize::from(matches!(verdict, Verdict::Xfail { .. }));
                self.flaky += usize::from(retried);
            }
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        for (count, what) in [(self.skipped, "skipped"), (self.not_run, "not run")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::baseline::tests::known_of_6_12;
    use crate::kernel::Config;

    const BASELINE: &str = r#"
        [[known]]
        tests = ["cma::any"]
        kernels = ["6.12"]
        verdict = "xfail"
        reason = "known"
        reference = "file"
        findings = [{ eye = "cpu", text = "*" }]
        [[known]]
        tests = ["cma::precise"]
        kernels = ["6.12"]
        verdict = "xfail"
        reason = "known"
        reference = "file"
        findings = [
            { eye = "placement", text = "page * lies in CMA [*]" },
            { eye = "aftermath", text = "2 pins left" },
            { eye = "aftermath", text = "a warning", sometimes = true },
        ]
        [[known]]
        tests = ["cma::lacking"]
        kernels = ["6.12"]
        verdict = "skip"
        reason = "no heap"
    "#;

    fn judge(name: &str, outcome: Outcome) -> Verdict {
        let tests = ["cma::any", "cma::precise", "cma::lacking"];
        let baseline = known_of_6_12("cma.toml", BASELINE, &tests);
        Verdict::of(&format!("cma::{name}"), outcome, Some(&baseline))
    }

    #[test]
    fn what_all_tests_find_for_one_cause_excuses_nothing_else() {
        let tests = ["cma::any", "cma::precise", "cma::lacking"];
        let mut baselines = crate::judge::baseline::Baselines::default();
        let common = crate::machine::environments::Common {
            kernels: vec!["6.12".to_owned()],
            reason: "long segments".to_owned(),
            reference: "vb2".to_owned(),
            texts: vec!["segment longer".to_owned()],
        };
        let environment = crate::machine::environments::Definition {
            known: vec![common],
            ..Default::default()
        };
        baselines.add_for_tests("cma.toml", BASELINE, &tests);
        let of = |kernel| {
            let baseline = baselines.of_environment(kernel, &environment);
            move |name: &str, found: &[(Eye, &str)]| {
                Verdict::of(name, failed(found), Some(&baseline))
            }
        };
        let (here, elsewhere) = (of("6.12"), of("5.10"));
        let common = (Eye::Aftermath, "mapping sg segment longer than");
        let precise = (Eye::Placement, "page 3 lies in CMA [reserved]");
        let also = (Eye::Aftermath, "2 pins left");
        assert!(!here("cma::new", &[common]).differs());
        assert!(elsewhere("cma::new", &[common]).differs());
        assert!(here("cma::new", &[common, precise]).differs());
        assert!(!here("cma::precise", &[common, precise, also]).differs());
        assert!(here("cma::precise", &[common]).differs(), "it is fixed");
        assert!(here("cma::new", &[(Eye::Cpu, "segment longer")]).differs());
    }

    fn failed(findings: &[(Eye, &str)]) -> Outcome {
        Outcome::Fail(
            findings
                .iter()
                .map(|&(eye, text)| Finding {
                    eye,
                    text: text.to_owned(),
                })
                .collect(),
        )
    }

    #[test]
    fn what_is_not_named_has_to_pass() {
        assert_eq!(judge("other", Outcome::Pass), Verdict::Pass);
        let verdict = judge("other", failed(&[(Eye::Cpu, "wrong byte")]));
        assert!(
            matches!(&verdict, Verdict::Fail { expected: None, findings } if findings.len() == 1),
            "{verdict:?}"
        );
        assert!(verdict.differs());
    }

    #[test]
    fn a_known_failure_is_an_xfail_with_its_reason() {
        let verdict = judge("any", failed(&[(Eye::Cpu, "wrong byte")]));
        assert!(
            matches!(&verdict, Verdict::Xfail { reason, reference, .. } if reason == "known" && reference == "file"),
            "{verdict:?}"
        );
        assert!(!verdict.differs());
    }

    #[test]
    fn a_known_failure_that_no_longer_happens_is_fixed_and_not_green() {
        for name in ["any", "precise", "lacking"] {
            let verdict = judge(name, Outcome::Pass);
            assert!(
                matches!(verdict, Verdict::Fixed { .. }),
                "{name}: {verdict:?}"
            );
            assert!(verdict.differs(), "{name}");
        }
    }

    #[test]
    fn a_test_that_fails_differently_than_known_is_a_failure() {
        let known = [
            (Eye::Placement, "page 3 lies in CMA [reserved]"),
            (Eye::Aftermath, "2 pins left"),
        ];
        let warning = (Eye::Aftermath, "a warning");
        assert!(!judge("precise", failed(&known)).differs());
        let more = failed(&[known[0], known[1], warning]);
        assert!(!judge("precise", more).differs());
        for (other, why) in [
            ((Eye::Placement, "page 3 moved"), "page 3 moved"),
            ((Eye::Cpu, "page 3 lies in CMA [reserved]"), "not in the"),
            ((Eye::Aftermath, "12 pins left"), "12 pins left"),
            ((Eye::Aftermath, "2 pins left over"), "left over"),
            ((Eye::Harness, "timed out after 30 s"), "timed out"),
        ] {
            let verdict = judge("precise", failed(&[known[0], known[1], other]));
            assert!(
                matches!(&verdict, Verdict::Fail { expected: Some(expected), .. }
                    if expected.starts_with("known (") && expected.contains(why)),
                "{verdict:?}"
            );
        }
        let part = judge("precise", failed(&[known[0], warning]));
        assert!(
            matches!(&part, Verdict::Fail { expected: Some(expected), .. }
                if expected == "known (in the baseline, and not seen: 2 pins left)"),
            "{part:?}"
        );
    }

    #[test]
    fn a_skip_is_green_only_if_the_baseline_has_it() {
        let skip = || Outcome::Skip("no /dev/udmabuf".to_owned());
        assert!(!judge("lacking", skip()).differs());
        assert!(judge("other", skip()).differs());
        assert!(judge("any", skip()).differs());
        assert!(judge("lacking", failed(&[(Eye::Cpu, "wrong byte")])).differs());
    }

    #[test]
    fn a_skip_is_green_if_the_configuration_lacks_what_the_guest_names() {
        let baseline = known_of_6_12(
            "cma.toml",
            BASELINE,
            &["cma::any", "cma::precise", "cma::lacking"],
        )
        .configured(Config::parse("CONFIG_UDMABUF=y\n# CONFIG_CMA is not set\n"));
        let skip = |symbol| {
            let reason = format!("a thing is not there: CONFIG_{symbol} is not set");
            Verdict::of("cma::other", Outcome::Skip(reason), Some(&baseline))
        };
        assert!(!skip("CMA").differs());
        assert!(skip("UDMABUF").differs());
    }

    #[test]
    fn a_kernel_without_baseline_is_held_to_correctness() {
        assert_eq!(Verdict::of("any", Outcome::Pass, None), Verdict::Pass);
        assert!(Verdict::of("any", failed(&[(Eye::Cpu, "wrong byte")]), None).differs());
        assert!(!Verdict::of("any", Outcome::Skip("no heap".to_owned()), None).differs());
    }

    #[test]
    fn counts_agree_with_the_colour_of_the_run() {
        let not_run = Verdict::NotRun {
            reason: "interrupted".to_owned(),
        };
        let skip = |expected| Verdict::Skip {
            reason: String::new(),
            expected,
        };
        let xfail = judge("any", failed(&[(Eye::Cpu, "wrong byte")]));
        let mut counts = Counts::default();
        for (verdict, retried) in [(Verdict::Pass, true), (xfail, false), (skip(true), false)] {
            assert!(!verdict.differs());
            counts.add(&verdict, retried);
        }
        assert_eq!(counts.to_string(), "2 passed, 0 failed, 1 skipped");
        for verdict in [not_run, skip(false), judge("any", Outcome::Pass)] {
            assert!(verdict.differs());
            counts.add(&verdict, false);
        }
        let expected = Counts {
            passed: 2,
            known: 1,
            flaky: 1,
            failed: 2,
            skipped: 1,
            not_run: 1,
        };
        assert_eq!(counts, expected);
        assert_eq!(
            counts.to_string(),
            "2 passed, 2 failed, 1 skipped, 1 not run"
        );
    }
}
