// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Test names that resemble a misspelt one.

/// Up to three names that look like `wanted`, the closest first. Without a `::` it may be like the name's group or its last part, too.
pub fn closest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let similarity = |name: &str| {
        let (group, last) = name.split_once("::").unwrap_or(("", name));
        let parts = if wanted.contains("::") {
            &[name][..]
        } else {
            &[name, group, last]
        };
        let similarities = parts
            .iter()
            .map(|part| strsim::normalized_damerau_levenshtein(wanted, part));
        similarities.fold(0.0, f64::max)
    };
    let mut close: Vec<_> = names
        .into_iter()
        .map(|name| (similarity(name), name))
        .filter(|(similarity, _)| *similarity > 0.6)
        .collect();
    close.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    close
        .into_iter()
        .take(3)
        .map(|(_, name)| name.to_owned())
        .collect()
}
