use super::*;
use qapi::Book;
use std::collections::BTreeSet;

#[test]
fn names_are_unique_and_well_formed() {
    let mut seen = BTreeSet::new();
    for entry in all_commands() {
        let name = entry.info.name;
        assert!(seen.insert(name), "{name} is declared twice");
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b)),
            "{name}"
        );
        assert!(!entry.info.doc.is_empty(), "{name} has no text");
    }
    for entry in all_events() {
        let name = entry.info.name;
        assert!(seen.insert(name), "{name} is declared twice");
        assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'), "{name}");
        assert!(!entry.info.doc.is_empty(), "{name} has no text");
    }
}

/// Every reference in the answer to `query-qmp-schema` leads to an entry.
#[test]
fn the_schema_is_closed() {
    let info = Book::schema_info(all_commands(), all_events());
    let list = info.as_array().unwrap();
    let names: BTreeSet<&str> = list.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), list.len());
    let mut references = Vec::new();
    for entry in list {
        for key in ["arg-type", "ret-type", "element-type"] {
            references.extend(entry.get(key).and_then(|name| name.as_str()));
        }
        for key in ["members", "variants"] {
            let members = entry.get(key).and_then(|list| list.as_array()).into_iter().flatten();
            references.extend(members.filter_map(|member| member.get("type")?.as_str()));
        }
    }
    for reference in references {
        assert!(names.contains(reference), "{reference}");
    }
}

#[test]
fn throttle_keys_are_members() {
    for entry in all_events() {
        let mut book = Book::new();
        let id = (entry.describe)(&mut book);
        let qapi::book::Layout::Object(shape) = &book.entries()[id].layout else { panic!() };
        for key in entry.info.throttle.unwrap_or_default() {
            assert!(shape.members.iter().any(|member| member.name == *key), "{}", entry.info.name);
        }
    }
}

#[test]
fn the_reference_names_everything() {
    let text = docs::qmp_markdown();
    for entry in all_commands() {
        assert!(text.contains(&format!("\n### {}\n", entry.info.name)), "{}", entry.info.name);
    }
    for entry in all_events() {
        assert!(text.contains(&format!("\n### {} (event)\n", entry.info.name)), "{}", entry.info.name);
    }
}
