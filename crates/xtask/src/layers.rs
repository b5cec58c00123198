//! Imports go down the layers of ARCHITECTURE.md only, and every crate stands in its map.

use crate::run::{Result, output, root};
use serde_json::Value;
use std::collections::BTreeMap;

/// Each crate's layer. A crate may depend on crates of its own layer or below.
const LAYERS: &[(u8, &[&str])] = &[
    (0, &["base", "trace", "qapi", "qapi-derive"]),
    (1, &["spec", "schema"]),
    (2, &["memory", "state", "qmp", "qom", "tls"]),
    (3, &["block", "chardev", "net", "display", "cpu", "device"]),
    (4, &["cpu-host", "cpu-interpreter", "cpu-translator", "cpu-kvm", "devices", "vnc", "firmware"]),
    (5, &["machine", "migration", "dump", "gdb", "qtest"]),
    (6, &["control", "hmp"]),
    (7, &["cli", "ryokan", "testkit", "judge", "xtask"]),
];

/// Nothing below `control` may know these.
const CONTROL_ONLY: &[&str] = &["schema", "qmp"];

/// Crates that may contain `unsafe`.
const UNSAFE: &[&str] =
    &["base", "memory", "cpu-host", "cpu-translator", "cpu-kvm", "block", "net", "judge", "testkit"];

pub fn check() -> Result {
    let metadata: Value =
        serde_json::from_str(&output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?)
            .map_err(|e| format!("cargo metadata: {e}"))?;
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md"))
        .map_err(|e| format!("ARCHITECTURE.md: {e}"))?;
    let layer: BTreeMap<&str, u8> =
        LAYERS.iter().flat_map(|(layer, names)| names.iter().map(move |name| (*name, *layer))).collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(&mine) = layer.get(name) else {
            wrong.push(format!("{name}: has no layer (crates/xtask/src/layers.rs)"));
            continue;
        };
        if !map.contains(&format!("| `{name}` |")) {
            wrong.push(format!("{name}: is missing in ARCHITECTURE.md's code map"));
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default();
            let testing = dependency["kind"].as_str() == Some("dev");
            let Some(&theirs) = layer.get(other).filter(|_| dependency["path"].is_string() && !testing)
            else {
                continue;
            };
            if theirs > mine {
                wrong.push(format!("{name} (layer {mine}) imports {other} (layer {theirs})"));
            }
            if mine < 6 && CONTROL_ONLY.contains(&other) && !CONTROL_ONLY.contains(&name) {
                wrong.push(format!("{name} imports {other}, which only the control plane may know"));
            }
        }
        if !UNSAFE.contains(&name) {
            forbids_unsafe(name, &mut wrong);
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("layers:\n  {}", wrong.join("\n  "))) }
}

fn forbids_unsafe(name: &str, wrong: &mut Vec<String>) {
    let src = root().join("crates").join(name).join("src");
    let file = ["lib.rs", "main.rs"].iter().map(|file| src.join(file)).find(|file| file.exists());
    let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    if !text.contains("#![forbid(unsafe_code)]") {
        wrong.push(format!("{name}: lib.rs or main.rs lacks #![forbid(unsafe_code)]"));
    }
}
