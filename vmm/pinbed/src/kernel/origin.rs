// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where a kernel's source comes from, as kernels.toml has it.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

/// One place that may have it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub enum Origin {
    /// A Debian package.
    Debian {
        /// Its name.
        package: String,
        /// The suites to look in.
        suites: Vec<String>,
        /// The mirror, where it is not the host's own.
        mirror: Option<String>,
        /// That of security updates, where `mirror` is not the host's own.
        security: Option<String>,
    },
    /// A tarball with one directory at its top.
    Tarball {
        /// Its address: http, https or file.
        url: String,
        /// Of the file, in hexadecimal.
        sha256: String,
    },
    /// A tag of a repository.
    Git {
        /// The repository.
        url: String,
        /// The tag.
        tag: String,
        /// The commit that the tag is of.
        commit: String,
    },
    /// A kernel tree on this machine, which is copied.
    Directory {
        /// Its top.
        path: PathBuf,
    },
}

/// The fields of all kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    package: Option<String>,
    #[serde(default)]
    suites: Vec<String>,
    mirror: Option<String>,
    security: Option<String>,
    tarball: Option<String>,
    sha256: Option<String>,
    git: Option<String>,
    tag: Option<String>,
    commit: Option<String>,
    directory: Option<PathBuf>,
}

impl TryFrom<Text> for Origin {
    type Error = &'static str;

    fn try_from(text: Text) -> Result<Self, Self::Error> {
        let is_sum = |sum: &str, digits| {
            sum.len() == digits && sum.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        match text {
            Text {
                package: Some(package),
                suites,
                mirror,
                security,
                tarball: None,
                sha256: None,
                git: None,
                tag: None,
                commit: None,
                directory: None,
            } if !suites.is_empty() => Ok(Origin::Debian {
                package,
                suites,
                mirror,
                security,
            }),
            Text {
                package: None,
                suites,
                mirror: None,
                security: None,
                tarball: Some(url),
                sha256: Some(sha256),
                git: None,
                tag: None,
                commit: None,
                directory: None,
            } if suites.is_empty() && is_sum(&sha256, 64) => Ok(Origin::Tarball { url, sha256 }),
            Text {
                package: None,
                suites,
                mirror: None,
                security: None,
                tarball: None,
                sha256: None,
                git: Some(url),
                tag: Some(tag),
                commit: Some(commit),
                directory: None,
            } if suites.is_empty() && is_sum(&commit, 40) => Ok(Origin::Git { url, tag, commit }),
            Text {
                package: None,
                suites,
                mirror: None,
                security: None,
                tarball: None,
                sha256: None,
                git: None,
                tag: None,
                commit: None,
                directory: Some(path),
            } if suites.is_empty() => Ok(Origin::Directory { path }),
            _ => Err(
                "a source is one of: package and suites (and mirror, security); tarball and sha256 (64 digits); git, tag and commit \
                 (40 digits); directory",
            ),
        }
    }
}

impl Origin {
    /// A package of the host's own mirrors.
    pub fn debian(package: &str, suites: &[String]) -> Self {
        Origin::Debian {
            package: package.to_owned(),
            suites: suites.to_vec(),
            mirror: None,
            security: None,
        }
    }

    /// The suites, if they are of the host's own mirrors.
    pub fn host_suites(&self) -> &[String] {
        match self {
            Origin::Debian {
                suites,
                mirror: None,
                ..
            } => suites,
            _ => &[],
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Debian {
                package,
                suites,
                mirror,
                ..
            } => {
                let suite = suites.first().map_or("", String::as_str);
                write!(f, "{package} of Debian {suite}")?;
                mirror
                    .iter()
                    .try_for_each(|mirror| write!(f, " from {mirror}"))
            }
            Origin::Tarball { url, .. } => f.write_str(url),
            Origin::Git { url, tag, .. } => write!(f, "{tag} of {url}"),
            Origin::Directory { path } => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        sources: Vec<Origin>,
    }

    fn parse(fields: &str) -> Result<Origin, String> {
        let file = toml::from_str::<File>(&format!("sources = [{{ {fields} }}]"));
        let mut file = file.map_err(|error| error.to_string())?;
        Ok(file.sources.remove(0))
    }

    #[test]
    fn each_kind_is_told_by_its_fields() {
        let sum = "0".repeat(64);
        let commit = "0".repeat(40);
        for (fields, shown) in [
            (
                "package = \"p\", suites = [\"s\"]".to_owned(),
                "p of Debian s",
            ),
            (
                "package = \"p\", suites = [\"s\"], mirror = \"http://m\"".to_owned(),
                "p of Debian s from http://m",
            ),
            (
                format!("tarball = \"file:/x\", sha256 = \"{sum}\""),
                "file:/x",
            ),
            (
                format!("git = \"/x\", tag = \"v1\", commit = \"{commit}\""),
                "v1 of /x",
            ),
            ("directory = \"/x\"".to_owned(), "/x"),
        ] {
            assert_eq!(parse(&fields).unwrap().to_string(), shown);
        }
        for fields in [
            "package = \"p\"".to_owned(),
            "tarball = \"file:/x\"".to_owned(),
            "tarball = \"file:/x\", sha256 = \"00\"".to_owned(),
            format!("git = \"/x\", commit = \"{commit}\""),
            "directory = \"/x\", package = \"p\", suites = [\"s\"]".to_owned(),
        ] {
            assert!(
                parse(&fields).unwrap_err().contains("a source is one of"),
                "{fields}"
            );
        }
        assert!(parse("colour = 1").unwrap_err().contains("colour"));
    }
}
