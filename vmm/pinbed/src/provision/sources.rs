// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which Debian mirrors the host's apt uses, read from sources.list(5) in both of its forms. Only read: the host's apt is
//! never changed.

use std::fs;
use std::path::{Path, PathBuf};

/// Names a Debian suite can begin with.
const RELEASES: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
];

/// One source of binary packages.
#[derive(Debug, Default, PartialEq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

/// The host's Debian mirrors, the likeliest first.
#[derive(Debug, Default, PartialEq)]
pub struct Mirrors {
    /// Of the archive proper, where the releases and the backports are.
    pub archive: Vec<String>,
    /// Of the security archive. Empty when the host has none.
    pub security: Vec<String>,
}

impl Mirrors {
    /// Reads `sources.list` and `sources.list.d` in apt's configuration directory. A file that cannot be read is none.
    pub fn of_host(etc: &Path) -> Self {
        let mut sources = Vec::new();
        let mut files: Vec<PathBuf> = fs::read_dir(etc.join("sources.list.d"))
            .map(|entries| {
                entries
                    .filter_map(|entry| Some(entry.ok()?.path()))
                    .collect()
            })
            .unwrap_or_default();
        files.sort();
        files.insert(0, etc.join("sources.list"));
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            match file.extension().and_then(|e| e.to_str()) {
                Some("list") => sources.extend(text.lines().filter_map(one_line)),
                Some("sources") => sources.extend(deb822(&text)),
                _ => {}
            }
        }
        Mirrors::among(&sources)
    }

    // Others sign repositories for Debian's releases too, and name their suites alike. What cannot be told apart here is by
    // apt, which we let accept Debian's own signature only; so the order is all that matters.
    fn among(sources: &[Source]) -> Self {
        let mut ranked: Vec<(bool, bool, &str)> = Vec::new();
        for source in sources {
            let foreign_key = source
                .signed_by
                .as_ref()
                .is_some_and(|key| !key.contains("debian-archive"));
            if foreign_key
                || !source
                    .components
                    .iter()
                    .any(|component| component == "main")
            {
                continue;
            }
            let debian: Vec<_> = source
                .suites
                .iter()
                .filter(|suite| RELEASES.contains(&base(suite)))
                .collect();
            for uri in source.uris.iter().filter(|uri| !uri.starts_with("cdrom:")) {
                for suite in &debian {
                    let unsure = source.signed_by.is_none() && !uri.contains("debian");
                    ranked.push((
                        suite.ends_with("-security"),
                        unsure,
                        uri.trim_end_matches('/'),
                    ));
                }
            }
        }
        ranked.sort_by_key(|&(_, unsure, _)| unsure);
        let mut mirrors = Mirrors::default();
        for (security, _, uri) in ranked {
            let list = if security {
                &mut mirrors.security
            } else {
                &mut mirrors.archive
            };
            if !list.iter().any(|known| known == uri) {
                list.push(uri.to_owned());
            }
        }
        mirrors
    }
}

fn base(suite: &str) -> &str {
    suite.split(['-', '/']).next().unwrap_or(suite)
}

/// `deb [ option=value … ] uri suite component …`
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (inside, after) = options.split_once(']')?;
        signed_by = inside
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by,
    })
}

/// Stanzas of `Field: value`, with comments and continuation lines.
fn deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .chain([""])
    {
        if line.trim().is_empty() {
            sources.extend(stanza_source(&std::mem::take(&mut stanza)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            stanza.push((field.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza_source(stanza: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| {
        stanza
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    };
    let words = |name: &str| -> Vec<String> {
        field(name)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let disabled =
        field("enabled").is_some_and(|value| ["no", "false", "0", "off"].contains(&value));
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    let signed_by = field("signed-by").map(str::to_owned);
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> Mirrors {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(etc.path().join(name), text).unwrap();
        }
        Mirrors::of_host(etc.path())
    }

    #[test]
    fn deb822_with_a_comment_a_continuation_and_two_stanzas() {
        let text = "# snapshot\nTypes: deb deb-src\nURIs: http://mirror.example/debian\n http://other.example/debian/\n\
                    Suites: trixie trixie-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\
                    \nTypes: deb\nURIs: http://mirror.example/debian-security\nSuites: trixie-security\ncomponents: main\n";
        let mirrors = host(&[("sources.list.d/debian.sources", text)]);
        assert_eq!(
            mirrors.archive,
            [
                "http://mirror.example/debian",
                "http://other.example/debian"
            ]
        );
        assert_eq!(mirrors.security, ["http://mirror.example/debian-security"]);
    }

    #[test]
    fn one_line_form_with_options() {
        let text = "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://a.example/debian bookworm main\n\
                    #deb http://b.example/debian bookworm main\n\
                    deb-src http://c.example/debian bookworm main\n\
                    deb http://d.example/security bookworm-security main contrib # late\n";
        let mirrors = host(&[("sources.list", text)]);
        assert_eq!(mirrors.archive, ["http://a.example/debian"]);
        assert_eq!(mirrors.security, ["http://d.example/security"]);
    }

    #[test]
    fn repositories_of_others_are_left_out_or_come_last() {
        let mirrors = host(&[
            (
                "sources.list",
                "deb http://vendor.example/linux bookworm main\ndeb http://a.example/debian bookworm main\n",
            ),
            (
                "sources.list.d/x.list",
                "deb [signed-by=/usr/share/keyrings/x.gpg] http://x.example/debian bookworm main\n",
            ),
            (
                "sources.list.d/y.list",
                "deb http://y.example/debian cloud-sdk-bookworm main\n",
            ),
            (
                "sources.list.d/z.list",
                "deb http://z.example/linux/debian bookworm stable\n",
            ),
            (
                "sources.list.d/old.sources",
                "Enabled: no\nTypes: deb\nURIs: http://o.example/debian\nSuites: sid\nComponents: main\n",
            ),
            (
                "sources.list.d/cd.list",
                "deb cdrom:[Debian]/ bookworm main\n",
            ),
            (
                "sources.list.d/left.save",
                "deb http://s.example/debian bookworm main\n",
            ),
        ]);
        assert_eq!(
            mirrors.archive,
            ["http://a.example/debian", "http://vendor.example/linux"]
        );
        assert!(mirrors.security.is_empty());
    }

    #[test]
    fn no_configuration_is_no_mirror() {
        assert_eq!(
            Mirrors::of_host(Path::new("/nonexistent")),
            Mirrors::default()
        );
    }
}
