// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A kernel tree of a few lines, for tests of how pinbed builds kernels: its Makefile does what kbuild's does of what pinbed asks for, in
//! the object directory that O= names, with a real compiler and a real linker.

use std::fs;
use std::path::Path;

/// How many files it has; each is a step of make, and linking is another.
pub const FILES: usize = 12;

/// As kbuild: make once more in the object directory, with the source as ".." if it lies in there, and else by its path.
const MAKEFILE: &str = r#"VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 0
EXTRAVERSION =

CC = gcc
ifndef inside
src := $(realpath $(dir $(lastword $(MAKEFILE_LIST))))
from := $(if $(filter $(src)/,$(dir $(O))),..,$(src))
$(MAKECMDGOALS): once
	@:
once:
	$(if $(M),cp $(O)/vmlinux $(M)/pinbed.ko,$(MAKE) -C $(O) -f $(from)/Makefile inside=1 src=$(from) $(MAKECMDGOALS))
.PHONY: $(MAKECMDGOALS) once
else
objects := $(patsubst %,mm/%.o,FILES)

allnoconfig:
	cp $(KCONFIG_ALLCONFIG) .config
	mkdir -p include/config mm
	echo 6.12.0$(LOCALVERSION) > include/config/kernel.release
vmlinux: $(objects)
	@echo "  LD      $@"
	ld -r -o $@ $^
modules: ;
mm/%.o: $(src)/mm/%.c
	@echo "  CC      $@"
	SLOW
	$(CC) -c -o $@ $<
endif
"#;

/// Makes the tree. `slow` is a shell command that goes before each compilation.
pub fn make(top: &Path, slow: &str) {
    let names: Vec<_> = (1..FILES).map(|number| format!("file{number}")).collect();
    let names = ["gup".to_owned()].into_iter().chain(names);
    fs::create_dir_all(top.join("mm")).unwrap();
    let mut all = Vec::new();
    for name in names {
        let text = format!("int {name}(void) {{ return {}; }}\n", name.len());
        fs::write(top.join(format!("mm/{name}.c")), text).unwrap();
        all.push(name);
    }
    let makefile = MAKEFILE
        .replace("FILES", &all.join(" "))
        .replace("SLOW", slow);
    fs::write(top.join("Makefile"), makefile).unwrap();
    fs::write(top.join("Kconfig"), "").unwrap();
}
