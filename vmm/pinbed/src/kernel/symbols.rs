// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Names and source lines of a kernel's addresses: from vmlinux's symbol table, and from DWARF where there is any (addr2line reads it).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::elf::FileHeader64;
use object::read::elf::ElfFile;
use object::{Endianness, Object, ObjectKind, ObjectSection, ObjectSymbol, SymbolKind};

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Function {
    address: u64,
    size: u64,
    name: String,
}

/// The functions of vmlinux, or of a module, whose addresses begin at its .text.
#[derive(Debug)]
pub struct Symbols {
    file: PathBuf,
    /// Sorted by address.
    functions: Vec<Function>,
    has_dwarf: bool,
}

impl Symbols {
    /// Reads them; `None` for what is no ELF file with symbols, such as a bzImage.
    pub fn of(file: &Path) -> Option<Self> {
        let bytes = fs::read(file).ok()?;
        let elf = ElfFile::<FileHeader64<Endianness>>::parse(&*bytes).ok()?;
        // In a module an address counts from its section's beginning, so functions of other sections would lie among those of .text.
        let only = match elf.kind() {
            ObjectKind::Relocatable => Some(elf.section_by_name(".text")?.index()),
            _ => None,
        };
        let of_text = |symbol: &object::read::elf::ElfSymbol<'_, '_, FileHeader64<Endianness>>| {
            let is_here = only.is_none() || symbol.section_index() == only;
            symbol.kind() == SymbolKind::Text && symbol.size() > 0 && is_here
        };
        let mut functions: Vec<_> = elf
            .symbols()
            .filter(of_text)
            .filter_map(|symbol| {
                Some(Function {
                    address: symbol.address(),
                    size: symbol.size(),
                    name: symbol.name().ok()?.to_owned(),
                })
            })
            .collect();
        functions.sort();
        (!functions.is_empty()).then(|| Symbols {
            file: file.to_owned(),
            functions,
            has_dwarf: elf
                .section_by_name(".debug_line")
                .is_some_and(|section| section.size() > 0),
        })
    }

    /// The function at an address, as the kernel writes it: "name+0x12/0x345".
    pub fn name(&self, address: u64) -> Option<String> {
        self.place(address, 0)
    }

    /// The function that is returned to at an address. That follows the call: after a call that does not return, as rest_init()'s of
    /// cpu_startup_entry(), it is past the function's end, and often another's beginning. The kernel's `%pB` writes it in the same way.
    pub fn caller(&self, address: u64) -> Option<String> {
        self.place(address.checked_sub(1)?, 1)
    }

    /// The function at an address, with so much added to the offset.
    fn place(&self, address: u64, more: u64) -> Option<String> {
        let after = self
            .functions
            .partition_point(|function| function.address <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let offset = address - function.address;
        (offset < function.size).then(|| {
            let offset = offset + more;
            format!("{}+{offset:#x}/{:#x}", function.name, function.size)
        })
    }

    /// The address of "name+0x12/0x345". The size tells functions of the same name apart.
    fn address(&self, place: &Place) -> Option<u64> {
        let same = |function: &&Function| function.name == place.name;
        let mut found = self.functions.iter().filter(same);
        let sized = found.clone().find(|function| function.size == place.size);
        let function = sized.or_else(|| found.next().filter(|_| found.next().is_none()))?;
        Some(function.address + place.offset)
    }

    /// Where the places in these lines stand in the source, in their order of appearance: "name+0x12/0x345" and "mm/gup.c:123".
    fn lines(&self, places: &[Place]) -> Vec<(String, String)> {
        if !self.has_dwarf {
            return Vec::new();
        }
        let known: Vec<_> = places
            .iter()
            .filter_map(|place| Some((place, self.address(place)?)))
            .collect();
        if known.is_empty() {
            return Vec::new();
        }
        let mut command = Command::new("addr2line");
        command.arg("-e").arg(&self.file);
        if self.file.extension().is_some_and(|end| end == "ko") {
            command.args(["-j", ".text"]);
        }
        // A return address is after the call, which may be the next line's.
        command.args(
            known
                .iter()
                .map(|(_, address)| format!("{:#x}", address.saturating_sub(1))),
        );
        let Ok(output) = command.output() else {
            return Vec::new();
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        known
            .iter()
            .zip(text.lines())
            .filter(|(_, line)| !line.starts_with("??"))
            .map(|((place, _), line)| (place.text.clone(), in_tree(line).to_owned()))
            .collect()
    }
}

/// A path as it is in the kernel's tree, or the driver's directory; and without what addr2line adds.
fn in_tree(line: &str) -> &str {
    let line = line.split(" (discriminator").next().unwrap_or(line);
    for place in ["/tree/", "/source/", "/./"] {
        if let Some(at) = line.rfind(place) {
            return &line[at + place.len()..];
        }
    }
    line
}

/// "name+0x12/0x345", and whether "[pinbed]" stands after it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    text: String,
    name: String,
    offset: u64,
    size: u64,
    is_driver: bool,
}

fn places(line: &str) -> Vec<Place> {
    let is_driver = line.contains("[pinbed]");
    line.split(|c: char| c.is_whitespace() || "()<>,;:".contains(c))
        .filter_map(|word| {
            let (name, rest) = word.split_once("+0x")?;
            let (offset, size) = rest.split_once("/0x")?;
            Some(Place {
                text: word.to_owned(),
                name: name.rsplit(['=', '?']).next()?.to_owned(),
                offset: u64::from_str_radix(offset, 16).ok()?,
                size: u64::from_str_radix(size, 16).ok()?,
                is_driver,
            })
        })
        .collect()
}

/// Adds "(mm/gup.c:123)" to the places that lines of a kernel log name, as far as the kernel or the driver has DWARF. Where none has, and
/// where no line names a place, this costs nothing.
pub fn decode(lines: &mut [String], kernel: Option<&Symbols>, driver: Option<&Symbols>) {
    let all: BTreeSet<_> = lines.iter().flat_map(|line| places(line)).collect();
    let (of_driver, of_kernel): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|place| place.is_driver);
    let mut known = kernel.map_or_else(Vec::new, |symbols| symbols.lines(&of_kernel));
    known.extend(driver.map_or_else(Vec::new, |symbols| symbols.lines(&of_driver)));
    for line in lines {
        for (place, source) in &known {
            if line.contains(place.as_str()) {
                *line = line.replacen(place.as_str(), &format!("{place} ({source})"), 1);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_in_a_log() {
        let found = |line: &str| -> Vec<_> {
            places(line)
                .into_iter()
                .map(|place| (place.name, place.offset, place.size, place.is_driver))
                .collect()
        };
        assert_eq!(
            found("RIP: 0010:try_grab_folio+0x12/0x1b0"),
            [("try_grab_folio".to_owned(), 0x12, 0x1b0, false)]
        );
        assert_eq!(
            found(" ? pinbed_hold_begin+0x1/0x20 [pinbed]"),
            [("pinbed_hold_begin".to_owned(), 1, 0x20, true)]
        );
        assert!(found("a+0x/0x1 b+0x1 c").is_empty());
    }

    #[test]
    fn a_program_with_dwarf_has_lines_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let (source, object) = (dir.path().join("a.c"), dir.path().join("vmlinux"));
        fs::write(
            &source,
            "int one(int a)\n{\n\treturn a + 1;\n}\nint main(void)\n{\n\treturn one(1);\n}\n",
        )
        .unwrap();
        let compiled = Command::new("gcc")
            .args(["-g", "-O0", "-no-pie", "-o"])
            .args([&object, &source])
            .status();
        assert!(compiled.unwrap().success());
        let symbols = Symbols::of(&object).unwrap();
        let main = symbols.functions.iter().find(|f| f.name == "main").unwrap();
        let place = symbols.name(main.address + 2).unwrap();
        assert_eq!(place, format!("main+0x2/{:#x}", main.size));
        // As if its last instruction were a call that does not return.
        let end = main.address + main.size;
        assert_eq!(
            symbols.caller(end),
            Some(format!("main+{0:#x}/{0:#x}", main.size))
        );
        assert_eq!(symbols.caller(main.address + 2), Some(place.clone()));
        let mut lines = [format!("[    1.0]  {place}"), "no place".to_owned()];
        decode(&mut lines, Some(&symbols), None);
        assert!(lines[0].contains("a.c:6)"), "{}", lines[0]);
        assert_eq!(lines[1], "no place");
        assert!(Symbols::of(&source).is_none());
    }

    /// As pinbed.ko is: the kernel's __init and __exit functions lie in sections of their own.
    #[test]
    fn functions_of_a_modules_other_sections_do_not_lie_among_those_of_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let (source, object) = (dir.path().join("a.c"), dir.path().join("a.ko"));
        fs::write(
            &source,
            "__attribute__((section(\".init.text\"))) int setup(int a)\n{\n\treturn a * 3;\n}\n\
             int work(int a)\n{\n\treturn a + 1;\n}\n",
        )
        .unwrap();
        let compiled = Command::new("gcc")
            .args(["-g", "-O0", "-c", "-o"])
            .args([&object, &source])
            .status();
        assert!(compiled.unwrap().success());
        let symbols = Symbols::of(&object).unwrap();
        let names: Vec<_> = symbols
            .functions
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        assert_eq!(names, ["work"]);
        assert!(symbols.name(2).unwrap().starts_with("work+0x2/"));
    }
}
