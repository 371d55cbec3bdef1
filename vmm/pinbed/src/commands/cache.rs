// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed cache`: what is kept between runs.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use indicatif::HumanBytes;

use crate::cli::CacheCommand;
use crate::exit::Exit;
use crate::provision::cache::Entry;
use crate::provision::inventory::Depth;
use crate::provision::{Context, bundle};

/// Carries out one of the cache's commands.
///
/// # Errors
/// When an entry is damaged, or a file cannot be read or written.
pub fn cache(command: &CacheCommand) -> Result<Exit> {
    let context = Context::of_user()?;
    match command {
        CacheCommand::List => list(&context),
        CacheCommand::Verify => return verify(&context),
        CacheCommand::Prune { days } => {
            let age = Duration::from_secs(days * 86_400);
            for name in context.cache.prune(age)? {
                println!("removed {name}");
            }
        }
        CacheCommand::Export { file } => tell(&bundle::export(&context, file)?),
        CacheCommand::Import { file } => tell(&bundle::import(&context, file)?),
    }
    Ok(Exit::Green)
}

fn tell(names: &[String]) {
    for name in names {
        println!("{name}");
    }
}

fn list(context: &Context) {
    let mut total = 0;
    println!("{:>11}  {:>13}  entry", "size", "last used");
    for entry in context.cache.all() {
        let size = entry.size();
        total += size;
        let state = if entry.is_complete() {
            ""
        } else {
            " (work in progress)"
        };
        let size = HumanBytes(size).to_string();
        println!("{size:>11}  {:>13}  {}{state}", age(&entry), entry.name());
    }
    let (total, root) = (HumanBytes(total).to_string(), context.cache.root());
    println!("{total:>11}  {:>13}  {}", "", root.display());
}

/// How long ago it was used, in days.
fn age(entry: &Entry) -> String {
    let used = entry.used().unwrap_or(SystemTime::UNIX_EPOCH);
    match used.elapsed().unwrap_or_default().as_secs() / 86_400 {
        0 => "today".to_owned(),
        1 => "yesterday".to_owned(),
        days => format!("{days} days ago"),
    }
}

/// Holds every file against its sum. What is damaged is made anew by the next run that needs it.
fn verify(context: &Context) -> Result<Exit> {
    let mut exit = Exit::Green;
    for entry in context.cache.all() {
        if !entry.is_complete() {
            continue;
        }
        match entry.damage(Depth::Contents) {
            None => println!("whole    {}", entry.name()),
            Some(why) => {
                println!("damaged  {}: {why}; it will be made anew", entry.name());
                entry.lock(&context.progress)?.retract()?;
                exit = Exit::Provisioning;
            }
        }
    }
    Ok(exit)
}
