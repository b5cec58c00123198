//! `docs/qmp.md`, made from the declarations.

use crate::{AREAS, Area};
use qapi::book::{Layout, Member, Shape, TypeId};
use qapi::{Book, CommandEntry, EventEntry};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The reference of all commands, events and types in Markdown.
pub fn qmp_markdown() -> String {
    let mut book = Book::new();
    let mut chapters = String::new();
    let mut used = BTreeSet::new();
    for area in AREAS {
        chapter(&mut chapters, area, &mut book, &mut used);
    }
    let mut out = String::from(
        "# QMP reference\n\nMade from the declarations in `crates/schema` by `cargo xtask docs`; do not edit.\n\n\
         A command is sent as `{\"execute\": NAME, \"arguments\": {...}, \"id\": ANY}` and answered by\n\
         `{\"return\": VALUE, \"id\": ANY}` or `{\"error\": {\"class\": CLASS, \"desc\": TEXT}, \"id\": ANY}`.\n\
         `?` marks what may be left out.\n\n",
    );
    for area in AREAS {
        let _ = writeln!(out, "- [{}](#{})", area.title, area.title.to_lowercase().replace(' ', "-"));
    }
    out.push_str("- [Types](#types)\n");
    out.push_str(&chapters);
    out.push_str("\n## Types\n");
    let mut types: Vec<TypeId> = closure(&book, used).into_iter().collect();
    types.sort_by_key(|&id| &book.entries()[id].name);
    for id in types {
        type_section(&mut out, &book, id);
    }
    out
}

fn chapter(out: &mut String, area: &Area, book: &mut Book, used: &mut BTreeSet<TypeId>) {
    let _ = write!(out, "\n## {}\n", area.title);
    for CommandEntry { info, describe } in area.commands {
        let (arguments, reply) = describe(book);
        let _ = write!(out, "\n### {}\n\n{}\n\n", info.name, info.doc);
        members(out, book, arguments, used);
        let reply_name = type_name(book, reply);
        used.insert(reply);
        if reply_name != "Empty" {
            let _ = writeln!(out, "\nReturns {reply_name}.");
        }
        let flags = [(info.allow_oob, "may run out of band"), (info.allow_preconfig, "needs no machine")];
        for (_, text) in flags.iter().filter(|(set, _)| *set) {
            let _ = writeln!(out, "\n*{text}*");
        }
        features(out, info.features);
    }
    for EventEntry { info, describe } in area.events {
        let data = describe(book);
        let _ = write!(out, "\n### {} (event)\n\n{}\n\n", info.name, info.doc);
        members(out, book, data, used);
        match info.throttle {
            Some([]) => out.push_str("\nAt most one a second.\n"),
            Some(keys) => {
                let _ = writeln!(out, "\nAt most one a second for each `{}`.", keys.join("`, `"));
            }
            None => {}
        }
        features(out, info.features);
    }
}

fn features(out: &mut String, features: &[&str]) {
    if !features.is_empty() {
        let _ = writeln!(out, "\nFeatures: {}", features.join(", "));
    }
}

/// The members of an argument or data type, in place of its name.
fn members(out: &mut String, book: &Book, id: TypeId, used: &mut BTreeSet<TypeId>) {
    if let Layout::Object(shape) = &book.entries()[id].layout {
        used.extend(shape.members.iter().map(|member| member.ty));
        used.extend(shape.variants.iter().map(|(_, ty)| *ty));
        shape_list(out, book, shape);
    }
}

fn shape_list(out: &mut String, book: &Book, shape: &Shape) {
    for member in &shape.members {
        let mark = if member.optional { "?" } else { "" };
        let _ = write!(out, "- `{}`{mark}: {}", member.name, type_name(book, member.ty));
        explain(out, member);
    }
    for (case, ty) in &shape.variants {
        let tag = shape.tag.as_deref().unwrap_or_default();
        let _ = writeln!(out, "- with `{tag}` = `{case}`: {}", type_name(book, *ty));
    }
    if shape.open {
        out.push_str("- any other member, as the thing named needs it\n");
    }
}

fn explain(out: &mut String, member: &Member) {
    if !member.doc.is_empty() {
        let _ = write!(out, ", {}", member.doc.replace('\n', " "));
    }
    if !member.features.is_empty() {
        let _ = write!(out, " ({})", member.features.join(", "));
    }
    out.push('\n');
}

fn type_section(out: &mut String, book: &Book, id: TypeId) {
    let entry = &book.entries()[id];
    match &entry.layout {
        Layout::Object(shape) if !shape.members.is_empty() => {
            let _ = write!(out, "\n### {}\n\n", entry.name);
            paragraph(out, &entry.doc);
            shape_list(out, book, shape);
        }
        Layout::Enum(values) => {
            let _ = write!(out, "\n### {}\n\n", entry.name);
            paragraph(out, &entry.doc);
            for value in values {
                let _ = write!(out, "- `{}`", value.name);
                explain(out, value);
            }
        }
        Layout::Alternate(kinds) => {
            let _ = write!(out, "\n### {}\n\n", entry.name);
            paragraph(out, &entry.doc);
            let kinds: Vec<_> = kinds.iter().map(|id| type_name(book, *id)).collect();
            let _ = writeln!(out, "One of: {}.", kinds.join(", "));
        }
        _ => {}
    }
}

fn paragraph(out: &mut String, doc: &str) {
    if !doc.is_empty() {
        let _ = write!(out, "{doc}\n\n");
    }
}

fn type_name(book: &Book, id: TypeId) -> String {
    let entry = &book.entries()[id];
    match &entry.layout {
        Layout::Array(element) => format!("list of {}", type_name(book, *element)),
        Layout::Builtin(_) => entry.name.clone(),
        Layout::Object(shape) if shape.members.is_empty() => "Empty".into(),
        _ => format!("[{}](#{})", entry.name, entry.name.to_lowercase()),
    }
}

/// All types that can be reached from `used`.
fn closure(book: &Book, used: BTreeSet<TypeId>) -> BTreeSet<TypeId> {
    let mut open: Vec<TypeId> = used.into_iter().collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        match &book.entries()[id].layout {
            Layout::Array(element) => open.push(*element),
            Layout::Alternate(kinds) => open.extend(kinds),
            Layout::Object(shape) => {
                open.extend(shape.members.iter().map(|member| member.ty));
                open.extend(shape.variants.iter().map(|(_, ty)| *ty));
            }
            Layout::Enum(_) | Layout::Builtin(_) => {}
        }
    }
    seen
}
