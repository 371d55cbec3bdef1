// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The commands that take one test again: as a run had it, or as its record says.

use std::path::Path;

use super::record::Environment;
use crate::machine::{DEFAULT_CPUS, DEFAULT_MEMORY};

/// The commands for one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// Runs it.
    pub run: String,
    /// Debugs it.
    pub debug: String,
}

/// Makes them, of what a session ran on and the test's name.
pub type Rerun = std::rc::Rc<dyn Fn(&Environment, &str) -> Again>;

impl Again {
    /// Of a program, a test, the options of the virtual machine, and those that `pinbed run` alone has.
    pub fn new(program: &str, test: &str, machine: &[String], of_run: &[String]) -> Self {
        let line = |command: &str, options: &[&[String]]| {
            let options = options.iter().flat_map(|some| some.iter());
            let options = options.map(String::as_str);
            // Fails only for a NUL, which no argument can have.
            shlex::try_join([program, command, test].into_iter().chain(options)).unwrap_or_default()
        };
        Again {
            run: line("run", &[machine, of_run]),
            debug: line("debug", &[machine]),
        }
    }

    /// Of a record, which does not say how long a test could take.
    pub fn recorded(environment: &Environment, test: &str) -> Self {
        Again::new("pinbed", test, &options(environment), &[])
    }
}

/// What names a kernel of kernels.toml or of Debian's, and the environment.
pub fn session_options(environment: &Environment) -> Vec<String> {
    let mut options = vec!["--kernel".to_owned(), environment.kernel_alone().to_owned()];
    options.extend(environment_options(environment));
    options
}

/// What names the environment.
pub fn environment_options(environment: &Environment) -> Vec<String> {
    let name = environment.env.iter();
    name.flat_map(|name| ["--env".to_owned(), name.clone()])
        .collect()
}

/// The options of the virtual machine that a record has.
pub fn options(environment: &Environment) -> Vec<String> {
    let kernel = environment.kernel_alone();
    let mut options = match kernel.starts_with('/') {
        false => session_options(environment),
        true => {
            let name = Path::new(kernel).file_name().unwrap_or_default();
            let name = name.to_string_lossy();
            let is_image = name.starts_with("vmlinu") || name.starts_with("bzImage");
            let option = if is_image {
                "--kernel-image"
            } else {
                "--kernel-src"
            };
            let named = vec![option.to_owned(), kernel.to_owned()];
            [named, environment_options(environment)].concat()
        }
    };
    let mut add = |name: &str, value: String| options.extend([name.to_owned(), value]);
    // Those of an environment come with its name.
    if environment.env.is_none() {
        for fragment in &environment.fragments {
            add("--fragment", fragment.clone());
        }
        if ![0, DEFAULT_MEMORY].contains(&environment.memory_mib) {
            add("--memory", environment.memory_mib.to_string());
        }
        if ![0, DEFAULT_CPUS].contains(&environment.cpus) {
            add("--cpus", environment.cpus.to_string());
        }
        if !environment.append.is_empty() {
            add("--append", environment.append.clone());
        }
    }
    for fault in &environment.faults {
        add("--fault", fault.clone());
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_how_its_tests_run_again() {
        let line = |environment: &Environment| Again::recorded(environment, "a::b").run;
        let mut environment = Environment {
            kernel: "6.12".to_owned(),
            memory_mib: 1024,
            cpus: DEFAULT_CPUS,
            append: "a=1 b".to_owned(),
            fragments: vec!["debug".to_owned()],
            faults: vec!["lost=3".to_owned()],
            ..Environment::default()
        };
        assert_eq!(
            line(&environment),
            "pinbed run a::b --kernel 6.12 --fragment debug --memory 1024 --append 'a=1 b' --fault 'lost=3'"
        );
        environment.kernel = "6.12,lowmem".to_owned();
        environment.env = Some("lowmem".to_owned());
        assert_eq!(
            line(&environment),
            "pinbed run a::b --kernel 6.12 --env lowmem --fault 'lost=3'"
        );
        for (kernel, option) in [
            ("/a tree", "--kernel-src '/a tree'"),
            ("/build/vmlinuz-6.12", "--kernel-image /build/vmlinuz-6.12"),
        ] {
            let environment = Environment {
                kernel: kernel.to_owned(),
                ..Environment::default()
            };
            assert_eq!(line(&environment), format!("pinbed run a::b {option}"));
            let debug = Again::recorded(&environment, "a::b").debug;
            assert_eq!(debug, format!("pinbed debug a::b {option}"));
        }
    }
}
