// SPDX-License-Identifier: Apache-2.0 OR MIT
//! All tests, in a folder for each subject.
//!
//! Each group is a file with a table: name, what a correct kernel does, where that is from, the function. A subject uses only those
//! after it: playback, tee, lifecycle, leaks, pin, video; misbehave, devices, unplug, pinners, dmabuf, ioctl, driver; raw.

mod devices;
mod dmabuf;
mod driver;
mod ioctl;
mod leaks;
mod lifecycle;
mod misbehave;
mod pin;
mod pinners;
mod playback;
mod raw;
mod sources;
mod tee;
mod test;
mod unplug;
mod video;

use test::Test;

/// All tests, in the order in which they are best run: what others build on comes first.
pub fn all() -> impl Iterator<Item = &'static Test> {
    [
        video::userptr::TESTS,
        dmabuf::import::TESTS,
        video::memop::TESTS,
        dmabuf::exporter::TESTS,
        video::convert::TESTS,
        pin::longterm::TESTS,
        pin::kinds::TESTS,
        pin::dirty::TESTS,
        pin::udmabuf::TESTS,
        pin::fresh::TESTS,
        pin::fixed::TESTS,
        lifecycle::hold::TESTS,
        lifecycle::fork::TESTS,
        lifecycle::protect::TESTS,
        lifecycle::remap::TESTS,
        lifecycle::reclaim::TESTS,
        lifecycle::merge::TESTS,
        lifecycle::huge::TESTS,
        lifecycle::migrate::TESTS,
        lifecycle::poison::TESTS,
        video::fault::TESTS,
        video::stream::TESTS,
        video::mplane::TESTS,
        tee::calls::TESTS,
        tee::memory::TESTS,
        tee::kinds::TESTS,
        tee::place::TESTS,
        tee::hold::TESTS,
        tee::dirty::TESTS,
        tee::client::TESTS,
        tee::input::TESTS,
        tee::race::TESTS,
        video::compliance::TESTS,
        playback::TESTS,
        driver::TESTS,
        ioctl::TESTS,
        leaks::TESTS,
        raw::transport::TESTS,
        raw::requests::TESTS,
        raw::jobs::TESTS,
        raw::calls::TESTS,
        raw::protected::TESTS,
        raw::order::TESTS,
        raw::rights::TESTS,
        raw::hostile::TESTS,
        raw::pin::TESTS,
        devices::TESTS,
        unplug::TESTS,
        tee::memory::LAST,
    ]
    .into_iter()
    .chain(pinners::TESTS.iter().copied())
    .chain(misbehave::TESTS)
    .chain(dmabuf::mmaps::TESTS.iter().copied())
    .chain([
        dmabuf::exporter::LAST,
        dmabuf::import::LAST,
        pin::udmabuf::LAST,
    ])
    .flatten()
}

#[cfg(test)]
mod checks {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_entry_is_complete_and_its_name_unique() {
        let mut names = HashSet::new();
        for test in all() {
            assert!(names.insert(test.name), "{} is there twice", test.name);
            let (group, what) = test.name.split_once("::").expect("a name is group::what");
            let plain = |part: &str| {
                part.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            };
            assert!(
                plain(group) && plain(what) && !what.is_empty(),
                "{}",
                test.name
            );
            // It may begin with a system call's name, and so with a small letter.
            assert!(test.correct.ends_with('.'), "{}", test.name);
            assert!(!test.source.is_empty(), "{}", test.name);
        }
    }
}
