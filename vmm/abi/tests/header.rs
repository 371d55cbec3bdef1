// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Keeps the driver's C header equal to the Rust definition of the format.
//!
//! The header is written from the source text of `wire.rs`, `tee.rs` and `uapi.rs`, so that names, types and docs have one home.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use syn::{Attribute, Expr, ExprLit, Fields, Item, ItemConst, ItemStruct, Lit, Meta, Type};

const HEADER: &str = "../../guest-kernel-config/driver/pinbed_abi.h";
const BLESS: &str = "PINBED_BLESS=1 cargo test -p pinbed-abi --test header";
/// Kernel coding style's preferred limit.
const WIDTH: usize = 80;

#[test]
fn driver_header_matches_the_format() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join(HEADER);
    let wanted = Abi::parse(&[
        include_str!("../src/wire.rs"),
        include_str!("../src/tee.rs"),
        include_str!("../src/uapi.rs"),
    ])
    .header();
    if env::var_os("PINBED_BLESS").is_some() {
        fs::write(&header, &wanted).unwrap();
    }
    let found = fs::read_to_string(&header).unwrap_or_default();
    assert!(
        found == wanted,
        "{HEADER} is not what wire.rs, tee.rs and uapi.rs say; run `{BLESS}` and commit the result"
    );
}

struct Struct {
    doc: String,
    fields: Vec<Field>,
}

struct Field {
    name: String,
    doc: String,
    rust_type: String,
    /// Elements, if it is an array.
    array: Option<usize>,
}

enum Definition {
    Const {
        name: String,
        doc: String,
        value: String,
    },
    Struct(String),
}

struct Module {
    doc: String,
    definitions: Vec<Definition>,
}

struct Abi {
    modules: Vec<Module>,
    structs: BTreeMap<String, Struct>,
    constants: BTreeSet<String>,
}

impl Abi {
    fn parse(sources: &[&str]) -> Self {
        let mut abi = Abi {
            modules: Vec::new(),
            structs: BTreeMap::new(),
            constants: BTreeSet::new(),
        };
        for source in sources {
            let file = syn::parse_file(source).unwrap();
            let definitions = file
                .items
                .into_iter()
                .filter_map(|item| match item {
                    Item::Const(item) => Some(abi.constant(item)),
                    Item::Struct(item) => Some(abi.structure(item)),
                    // What wire_struct! takes is itself the text of a struct.
                    Item::Macro(item) if item.mac.path.is_ident("wire_struct") => {
                        Some(abi.structure(syn::parse2(item.mac.tokens).unwrap()))
                    }
                    _ => None,
                })
                .collect();
            abi.modules.push(Module {
                doc: doc(&file.attrs),
                definitions,
            });
        }
        abi
    }

    fn constant(&mut self, item: ItemConst) -> Definition {
        let name = item.ident.to_string();
        let Expr::Lit(ExprLit {
            lit: Lit::Int(value),
            ..
        }) = *item.expr
        else {
            panic!("{name}: only integer literals have a form in C here");
        };
        assert!(
            self.constants.insert(name.clone()),
            "{name} is defined twice"
        );
        Definition::Const {
            name,
            doc: doc(&item.attrs),
            value: value.to_string().replace('_', ""),
        }
    }

    fn structure(&mut self, item: ItemStruct) -> Definition {
        let name = item.ident.to_string();
        let Fields::Named(fields) = item.fields else {
            panic!("{name}: only named fields have a form in C");
        };
        let fields = fields
            .named
            .into_iter()
            .map(|field| {
                let (element, array) = match &field.ty {
                    Type::Array(array) => (&*array.elem, Some(length(&array.len))),
                    other => (other, None),
                };
                let Type::Path(path) = element else {
                    panic!("{name}: a field's type has no form in C here");
                };
                Field {
                    name: field.ident.unwrap().to_string(),
                    doc: doc(&field.attrs),
                    rust_type: path.path.require_ident().unwrap().to_string(),
                    array,
                }
            })
            .collect();
        let previous = self.structs.insert(
            name.clone(),
            Struct {
                doc: doc(&item.attrs),
                fields,
            },
        );
        assert!(previous.is_none(), "{name} is defined twice");
        Definition::Struct(name)
    }

    fn header(&self) -> String {
        let mut out = format!(
            "/* SPDX-License-Identifier: GPL-2.0-only */\n\
             /*\n \
              * Written from wire.rs, tee.rs and uapi.rs in vmm/abi/src. Change these, then run\n \
              * {BLESS}\n \
              */\n\
             #ifndef PINBED_ABI_H\n\
             #define PINBED_ABI_H\n\
             \n\
             #include <linux/build_bug.h>\n\
             #include <linux/types.h>\n"
        );
        let mut written = BTreeSet::new();
        for module in &self.modules {
            out.push('\n');
            out += &comment("/*\n", &module.doc, self);
            let mut after_struct = true;
            for definition in &module.definitions {
                match definition {
                    Definition::Const { name, doc, value } => {
                        if after_struct {
                            out.push('\n');
                        }
                        let line = format!("/* {} */", self.plain(doc));
                        if line.len() <= WIDTH {
                            writeln!(out, "{line}").unwrap();
                        } else {
                            out += &comment("/*\n", doc, self);
                        }
                        writeln!(out, "#define PINBED_{name} {value}").unwrap();
                        after_struct = false;
                    }
                    Definition::Struct(name) => {
                        self.write_struct(&mut out, &mut written, name);
                        after_struct = true;
                    }
                }
            }
        }
        out + "\n#endif /* PINBED_ABI_H */\n"
    }

    /// C wants a type defined before its use, Rust does not.
    fn write_struct<'a>(
        &'a self,
        out: &mut String,
        written: &mut BTreeSet<&'a str>,
        name: &'a str,
    ) {
        if !written.insert(name) {
            return;
        }
        let item = &self.structs[name];
        for field in &item.fields {
            if self.structs.contains_key(&field.rust_type) {
                self.write_struct(out, written, &field.rust_type);
            }
        }

        let mut doc = format!("{} - {}", c_struct(name), item.doc);
        for field in &item.fields {
            write!(doc, "\n@{}: {}", field.name, field.doc).unwrap();
        }
        writeln!(out).unwrap();
        *out += &comment("/**\n", &doc, self);
        writeln!(out, "{} {{", c_struct(name)).unwrap();
        for field in &item.fields {
            let array = field.array.map(|n| format!("[{n}]")).unwrap_or_default();
            let c_type = self.c_type(&field.rust_type);
            writeln!(out, "\t{c_type} {}{array};", field.name).unwrap();
        }
        let size = self.size(name);
        writeln!(
            out,
            "}};\n\nstatic_assert(sizeof({}) == {size});",
            c_struct(name)
        )
        .unwrap();
    }

    fn c_type(&self, rust: &str) -> String {
        match rust {
            "U32" => "__le32".into(),
            "U64" => "__le64".into(),
            "u8" => "__u8".into(),
            "u32" => "__u32".into(),
            "u64" => "__u64".into(),
            name if self.structs.contains_key(name) => c_struct(name),
            other => panic!("{other} has no form in C here"),
        }
    }

    /// Size in bytes. The structs have no padding: the wire format's because their alignment is 1, the others because
    /// zerocopy's `IntoBytes` demands it.
    fn size(&self, rust: &str) -> usize {
        match rust {
            "u8" => 1,
            "U32" | "u32" => 4,
            "U64" | "u64" => 8,
            name => self.structs[name]
                .fields
                .iter()
                .map(|f| self.size(&f.rust_type) * f.array.unwrap_or(1))
                .sum(),
        }
    }

    /// Rustdoc text as C text: links and code spans become the C names, in ASCII.
    fn plain(&self, doc: &str) -> String {
        let mut out = String::new();
        for (i, part) in doc.split('`').enumerate() {
            if i % 2 == 0 {
                out += part;
            } else {
                if out.ends_with('[') {
                    out.pop();
                }
                out += &self.c_name(part);
            }
        }
        // A link's closing bracket follows its code span.
        let mut text = String::new();
        let mut open = 0;
        for c in out.chars() {
            match c {
                '[' => open += 1,
                ']' if open == 0 => continue,
                ']' => open -= 1,
                _ => {}
            }
            text.push(c);
        }
        text.replace('→', "->").replace('…', "*")
    }

    fn c_name(&self, rust: &str) -> String {
        let path: Vec<&str> = rust.split("::").collect();
        if let [.., name, field] = path[..]
            && self.structs.contains_key(name)
        {
            return format!("{}.{field}", c_struct(name));
        }
        let Some(&name) = path.last() else {
            return rust.into();
        };
        if self.structs.contains_key(name) {
            return c_struct(name);
        }
        let prefix = name.trim_end_matches('…');
        let is_constant = if prefix.len() < name.len() {
            !prefix.is_empty() && self.constants.iter().any(|c| c.starts_with(prefix))
        } else {
            self.constants.contains(name)
        };
        if is_constant {
            format!("PINBED_{name}")
        } else {
            rust.into()
        }
    }
}

/// An array's length.
fn length(expr: &Expr) -> usize {
    let Expr::Lit(ExprLit {
        lit: Lit::Int(value),
        ..
    }) = expr
    else {
        panic!("only integer literals can be an array's length here");
    };
    value.base10_parse().unwrap()
}

/// An item's doc comment, its lines joined into paragraphs.
fn doc(attributes: &[Attribute]) -> String {
    let mut out = String::new();
    for attribute in attributes {
        let Meta::NameValue(meta) = &attribute.meta else {
            continue;
        };
        let (
            true,
            Expr::Lit(ExprLit {
                lit: Lit::Str(text),
                ..
            }),
        ) = (meta.path.is_ident("doc"), &meta.value)
        else {
            continue;
        };
        let text = text.value();
        match text.trim() {
            "" => out += "\n\n",
            line => {
                if !out.is_empty() && !out.ends_with('\n') {
                    out.push(' ');
                }
                out += line;
            }
        }
    }
    out
}

/// A block comment; each line of `text` is wrapped on its own.
fn comment(open: &str, text: &str, abi: &Abi) -> String {
    let mut out = String::from(open);
    for paragraph in abi.plain(text).split('\n') {
        let mut line = String::from(" *");
        // Kernel-doc's continuation lines.
        let indent = if paragraph.starts_with('@') {
            " *  "
        } else {
            " *"
        };
        for word in paragraph.split_whitespace() {
            if line.len() + 1 + word.len() > WIDTH && line != indent {
                writeln!(out, "{line}").unwrap();
                line = indent.into();
            }
            line.push(' ');
            line += word;
        }
        writeln!(out, "{}", line.trim_end()).unwrap();
    }
    out + " */\n"
}

fn c_struct(rust: &str) -> String {
    let mut out = String::from("struct pinbed");
    for c in rust.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}
