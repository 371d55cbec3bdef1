// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed matrix --pinners`: who pins how, as a page. All of it is from the tests of the group `pinners` and the baselines, which a green
//! run has shown to be true.

use std::fmt::Write as _;

use pinbed_abi::report::TestInfo;

use crate::judge::BLESS;
use crate::judge::baseline::{Baseline, Baselines, Expected};

/// How the test of one that keeps pages for long ends, and that of one that does not.
const LONG: &str = "_says_that_it_is_for_long";
const SHORT: &str = "_does_not_say_that_it_is_for_long";
/// How the other tests of the former end, and what a kernel does that passes them.
const QUESTIONS: [(&str, &str); 8] = [
    ("_leaves_cma", "leaves CMA"),
    ("_leaves_zone_movable", "leaves ZONE_MOVABLE"),
    ("_refuses_a_file", "refuses a shared mapping of a file"),
    ("_is_limited", "RLIMIT_MEMLOCK bounds a process"),
    ("_is_limited_for_the_user", "and a user"),
    (
        "_leaves_other_users_their_limit",
        "and leaves other users theirs",
    ),
    ("_is_reported", "VmPin or VmLck shows it"),
    ("_marks_pages_dirty", "marks what was written dirty"),
];
/// Questions that tests of other groups answer: these test names begin so.
const ANSWERS: [(&str, &str); 6] = [
    ("pinners::udmabuf_leaves_cma", "udmabuf::leaves_cma"),
    ("pinners::vb2_sg_marks_pages_dirty", "dirty::sg_"),
    ("pinners::vb2_contig_marks_pages_dirty", "dirty::contig_"),
    ("pinners::vb2_vmalloc_marks_pages_dirty", "dirty::vmalloc_"),
    ("pinners::tee_marks_pages_dirty", "tee_dirty::"),
    (
        "pinners::udmabuf_marks_pages_dirty",
        "dirty::writes_to_a_udmabuf",
    ),
];
/// Who needs more than the kernels' ordinary configuration, the fragment pinners, and the kernel that a green run with it was on.
const ELSEWHERE: [&str; 4] = ["xdp", "rdma", "iommufd", "vfio"];
const WITH_FRAGMENT: &str = "7.3";
/// The page, in Markdown.
pub fn page(tests: &[TestInfo], kernels: &[String], baselines: &Baselines) -> String {
    let named = |end: &'static str| {
        tests.iter().filter_map(move |test| {
            let who = test.name.strip_prefix("pinners::")?.strip_suffix(end)?;
            Some((who, test))
        })
    };
    let known: Vec<_> = kernels
        .iter()
        .map(|name| (name.as_str(), baselines.of(name)))
        .collect();
    let environment = ["iommu".to_owned()];
    let there = baselines.parts(WITH_FRAGMENT, &environment);
    // On which kernels all of these tests pass.
    let passes = |on: Option<&str>, is_asked: &dyn Fn(&str) -> bool| {
        let asked: Vec<_> = tests.iter().filter(|test| is_asked(&test.name)).collect();
        let fails = |baseline: &Baseline, test: &TestInfo| {
            let known = baseline.get(&test.name);
            known.is_some_and(|known| known.expected != Expected::Pass)
        };
        let good: Vec<_> = known
            .iter()
            .filter(|(name, _)| on.is_none_or(|on| on == *name))
            .filter(|(_, baseline)| {
                !asked.iter().any(|test| {
                    fails(baseline, test)
                        || on.is_some() && there.iter().any(|(_, it)| fails(it, test))
                })
            })
            .map(|(name, _)| *name)
            .collect();
        match good.len() {
            _ if asked.is_empty() => "–".to_owned(),
            0 => "no".to_owned(),
            _ if on.is_some() => "yes".to_owned(),
            all if all == kernels.len() => "yes".to_owned(),
            _ => good.join(", "),
        }
    };
    let (mut long, mut elsewhere) = (String::new(), String::new());
    for (who, test) in named(LONG) {
        let (on, table) = match ELSEWHERE.contains(&who) {
            true => (Some(WITH_FRAGMENT), &mut elsewhere),
            false => (None, &mut long),
        };
        let mut cells = vec![passes(on, &|name| name == test.name)];
        for (end, _) in QUESTIONS {
            let asked = format!("pinners::{who}{end}");
            let answer = ANSWERS.iter().find(|(question, _)| *question == asked);
            cells.push(passes(on, &|name| match answer {
                Some((_, tests)) => name.starts_with(tests),
                None => name == asked,
            }));
        }
        let subject = subject(test, " pins the page");
        let _ = writeln!(
            table,
            "| {subject} | {} | {} |",
            test.source,
            cells.join(" | ")
        );
    }
    let mut short = String::new();
    for (_, test) in named(SHORT) {
        let subject = subject(test, " takes the page");
        let _ = writeln!(short, "| {subject} | {} |", test.source);
    }
    let heads: Vec<_> = QUESTIONS.iter().map(|(_, head)| *head).collect();
    format!(
        "<!-- SPDX-License-Identifier: Apache-2.0 OR MIT -->\n\
         <!-- Made by `pinbed matrix --pinners` from the tests and the baselines: {BLESS} -->\n\
         # Who pins how\n\n\
         What takes user pages, by which function of the kernel, and what it does about them, on {}. `pinbed run pinners --kernel all` shows \
         all of it: kprobes on the kernel's functions that take pages say who asked for the page, and with which flags; the page's place, \
         RLIMIT_MEMLOCK and what reclaim leaves are tried.\n\n\
         ## For as long as user space likes\n\n\
         A cell names the kernels on which it is so. A pin of this kind has to say FOLL_LONGTERM, so that pages leave CMA and ZONE_MOVABLE \
         first, and has to count against RLIMIT_MEMLOCK: of the user, since a process can fork, or pass the descriptor on and exit.\n\n\
         | | takes pages by | says FOLL_LONGTERM | {} |\n|---|---|---|{}\n{long}\n\
         Four more on {WITH_FRAGMENT} with the fragment pinners, `pinbed run --kernel {WITH_FRAGMENT} --env iommu pinners`, which puts an IOMMU, a PCI device for VFIO, and a \
         CPU that virtual machines can run on into the machine. Debian's kernels have all but iommufd as modules, and no CMA: \
         `--kernel deb:trixie`.\n\n\
         | | takes pages by | says FOLL_LONGTERM | {} |\n|---|---|---|{}\n{elsewhere}\n\
         VmPin and VmLck are of /proc/PID/status: mm->pinned_vm and mm->locked_vm. gup_test is the kernel's own test of pins, which only root can use. \
         udmabuf takes pages of memfds only.\n\n\
         ## Beside each other\n\n\
         Two long pins race for a page in CMA (`pinners::long_pins_race_for_a_page_in_cma`); all of CMA is allocated while O_DIRECT pins pages in it for \
         moments (`pinners::short_pins_leave_cma_to_be_allocated`); memory goes offline when a page of it is let go, and not before \
         (`lifecycle::memory_in_use_does_not_go_offline`); a pin races a fork (`pinners::pin_races_a_fork`).\n\n\
         ## For as long as a system call lasts, or without a pin\n\n\
         None of these says FOLL_LONGTERM on any of the kernels, which would move pages for nothing. vmsplice(2) keeps its page until the \
         pipe is read, and MSG_ZEROCOPY until the packet is consumed, with a reference and without a pin. UFFDIO_COPY takes no page at all \
         (`pinners::userfaultfd_copy_takes_no_page`), and UFFDIO_MOVE refuses one that is pinned (`lifecycle::userfault_move_is_refused`). KVM keeps no \
         reference: a notifier tells it when the page goes. vhost copies from and to user memory, and pins a page of its log of dirty \
         memory for the time of a write. Both need the fragment pinners, too.\n\n\
         | | takes pages by |\n|---|---|\n{short}",
        kernels.join(", "),
        heads.join(" | "),
        "---|".repeat(heads.len()),
        heads.join(" | "),
        "---|".repeat(heads.len()),
    )
}

/// Who a test's sentence is about.
fn subject<'a>(test: &'a TestInfo, verb: &str) -> &'a str {
    test.correct
        .split_once(verb)
        .map_or(test.correct.as_str(), |(subject, _)| subject)
}
