// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Files in sysfs and procfs that are one value: a setting of the kernel's, put back when it is no longer needed.

use crate::harness::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// A changed setting; what it was before is written back on drop.
pub struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Changes a setting, or says what to build the kernel with.
    pub fn set(path: impl Into<PathBuf>, value: &str, remedy: &str) -> Result<Self, Error> {
        let path = path.into();
        let before = fs::read_to_string(&path).map_err(|_| Error::Absent {
            what: path.display().to_string(),
            remedy: remedy.into(),
        })?;
        write(&path, value)?;
        Ok(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // Of "always [madvise] never" the choice in brackets is what is set. A failure leaves a kernel that works otherwise.
        let value = match (self.before.find('['), self.before.find(']')) {
            (Some(start), Some(end)) if start < end => &self.before[start + 1..end],
            _ => self.before.trim(),
        };
        let _ = fs::write(&self.path, value);
    }
}

/// Writes a value.
pub fn write(path: impl AsRef<Path>, value: &str) -> Result<(), Error> {
    let path = path.as_ref();
    fs::write(path, value).map_err(Error::io(format!(
        "writing '{value}' to {}",
        path.display()
    )))
}

/// Reads a number.
pub fn number(path: impl AsRef<Path>) -> Result<u64, Error> {
    let path = path.as_ref();
    let text =
        fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?;
    let text = text.trim();
    text.parse().map_err(|_| Error::Format {
        source_name: path.display().to_string(),
        text: text.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_put_back() {
        let path = std::env::temp_dir().join(format!("pinbed-setting-{}", std::process::id()));
        for (before, after) in [("20\n", "20"), ("always [madvise] never\n", "madvise")] {
            fs::write(&path, before).unwrap();
            let setting = Setting::set(&path, "7", "nothing").unwrap();
            assert_eq!(number(&path).unwrap(), 7);
            drop(setting);
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(
            Setting::set(&path, "7", "nothing"),
            Err(Error::Absent { .. })
        ));
    }
}
