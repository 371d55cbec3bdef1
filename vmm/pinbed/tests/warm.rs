// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Warm starts with real guests: what is saved, when it is used, and what happens when it is damaged.

mod common;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use common::{cache_without, pinbed};
use serde_json::Value;

/// Each leaves something to find to a device that was plugged in after the guest had started.
const TESTS: [&str; 2] = [
    "userptr::malloc_is_decoder_input",
    "unplug::hot_unplug_with_everything_open",
];
/// How long a state may take to be saved on a busy host.
const SAVED: Duration = Duration::from_secs(120);

/// A cache that has what the user's has, but for saved states and remembered answers.
struct Cache {
    home: tempfile::TempDir,
    results: tempfile::TempDir,
}

impl Cache {
    fn new() -> Self {
        Cache {
            home: cache_without(&["start", "answers"]),
            results: tempfile::tempdir().unwrap(),
        }
    }

    fn pinbed(&self, arguments: &[&str]) -> Output {
        pinbed(&["run", "--accel", "tcg", "--kernel", "6.12"])
            .args(arguments)
            .env("XDG_CACHE_HOME", self.home.path())
            .env("XDG_STATE_HOME", self.results.path())
            .output()
            .unwrap()
    }

    /// Runs TESTS, which pass. Returns how the guest came up, and what was said on standard error.
    fn run(&self, arguments: &[&str]) -> (String, String) {
        let json = self.results.path().join("run.json");
        let arguments = [arguments, &TESTS, &["--json", json.to_str().unwrap()]].concat();
        let output = self.pinbed(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{}{said}",
            String::from_utf8_lossy(&output.stdout)
        );
        let run: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        let session = &run["sessions"][0];
        assert_eq!(session["counts"]["passed"], 2, "{session}");
        let start = session["environment"]["start"].as_str().unwrap();
        (start.to_owned(), said)
    }

    /// The directory of the saved state, if there is one that is complete.
    fn state(&self) -> Option<PathBuf> {
        let states = fs::read_dir(self.home.path().join("pinbed/start")).ok()?;
        let mut states = states.flatten().map(|entry| entry.path());
        states.find(|path| path.join("entry.json").exists())
    }

    fn wait_for_state(&self) -> PathBuf {
        let begin = Instant::now();
        loop {
            if let Some(state) = self.state() {
                return state;
            }
            assert!(begin.elapsed() < SAVED, "no state is saved");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The files of a directory.
fn copies(directory: &Path) -> Vec<(OsString, Vec<u8>)> {
    let files = fs::read_dir(directory).unwrap().flatten();
    files
        .map(|file| (file.file_name(), fs::read(file.path()).unwrap()))
        .collect()
}

fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 64] {
        *byte ^= 0x5a;
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_machine_that_boots_twice_is_saved_and_then_starts_warm() {
    let cache = Cache::new();
    assert_eq!(cache.run(&[]).0, "cold");
    assert_eq!(cache.run(&["--cold"]).0, "cold");
    assert!(cache.state().is_none());
    assert_eq!(cache.run(&[]).0, "cold");
    cache.wait_for_state();
    assert_eq!(cache.run(&[]), ("warm".to_owned(), String::new()));
    assert_eq!(cache.run(&["--cold"]).0, "cold");
    // Another machine.
    assert_eq!(cache.run(&["--memory", "640"]).0, "cold");
}

#[test]
fn a_damaged_state_is_removed_and_the_guest_boots() {
    let cache = Cache::new();
    assert!(cache.pinbed(&["--save-start", TESTS[0]]).status.success());
    let state = cache.state().unwrap();
    let whole = copies(&state);
    for (file, breaks) in [
        ("memory", damage as fn(&Path)),
        ("state", |file| {
            let length = fs::metadata(file).unwrap().len();
            fs::write(file, vec![0; length.try_into().unwrap()]).unwrap();
        }),
        ("console", |file| fs::remove_file(file).unwrap()),
    ] {
        fs::create_dir_all(&state).unwrap();
        for (name, bytes) in &whole {
            fs::write(state.join(name), bytes).unwrap();
        }
        breaks(&state.join(file));
        let (start, said) = cache.run(&[]);
        assert_eq!(start, "cold", "{file}");
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 1, "{file}: {said}");
        assert!(
            lines[0].contains("the saved start is of no use") || lines[0].contains("is damaged"),
            "{said}"
        );
    }
}
