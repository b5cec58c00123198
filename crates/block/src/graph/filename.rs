//! File names: protocol prefixes, `json:`, names relative to an image.

use super::node::Parts;
use crate::driver::Kind;
use crate::options::Options;
use crate::types::Role;
use base::{Result, bail, fail};
use serde_json::Value;

/// The protocol prefix of a file name ("nbd" of "nbd:host:port"), if it has one.
pub fn scheme(name: &str) -> Option<&str> {
    let at = name.find([':', '/'])?;
    (name.as_bytes()[at] == b':').then(|| &name[..at])
}

/// `name` seen from the directory of `image`.
pub fn combine(image: &str, name: &str) -> Result<String> {
    if name.starts_with('/') || scheme(name).is_some() {
        return Ok(name.to_string());
    }
    if image.starts_with("json:") {
        bail!("Cannot use relative backing file names for '{image}'");
    }
    let start = scheme(image).map_or(0, |scheme| scheme.len() + 1);
    let dir = image.rfind('/').map_or(start, |at| (at + 1).max(start));
    Ok(format!("{}{name}", &image[..dir]))
}

/// The options in a `json:{...}` file name.
pub fn parse_json(name: &str) -> Result<Option<Options>> {
    let Some(text) = name.strip_prefix("json:") else { return Ok(None) };
    let value: Value =
        serde_json::from_str(text).map_err(|why| fail!("Could not parse the JSON options: {why}"))?;
    match value {
        Value::Object(map) => Options::crumple(map).map(Some),
        _ => bail!("Invalid JSON object given"),
    }
}

/// What a node calls itself: the plain name where that is enough to open it again.
pub(super) fn of(parts: &Parts) -> String {
    if let Some(name) = parts.layer.filename() {
        return name;
    }
    let primary = parts.children.iter().find(|child| child.role().contains(Role::PRIMARY));
    let plain = parts.driver.kind == Kind::Format
        && !["offset", "size", "data-file"].iter().any(|key| parts.options.contains(key));
    match primary {
        Some(child) if plain && !child.node().filename().starts_with("json:") => {
            child.node().filename().to_string()
        }
        _ => {
            let mut options = parts.options.clone();
            for key in ["node-name", "backing"] {
                options.take(key);
            }
            for child in &parts.children {
                if !child.role().contains(Role::BACKING) {
                    let below = describe(&child.node());
                    options.set(child.name(), below);
                }
            }
            options.set("driver", parts.driver.name);
            format!("json:{}", Value::Object(options.0))
        }
    }
}

fn describe(node: &super::Node) -> Value {
    if let Some(name) = node.layer().filename() {
        return serde_json::json!({"driver": node.driver().name, "filename": name});
    }
    if let Ok(Some(options)) = parse_json(node.filename()) {
        return Value::Object(options.0);
    }
    let mut options = Options::new();
    options.set("driver", node.driver().name);
    for child in node.children() {
        if !child.role().contains(Role::BACKING) {
            options.set(child.name(), describe(&child.node()));
        }
    }
    Value::Object(options.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_relative_names() {
        assert_eq!(scheme("nbd:localhost:1"), Some("nbd"));
        assert_eq!(scheme("./nbd:x"), None);
        assert_eq!(combine("/a/b.qcow2", "c.raw").unwrap(), "/a/c.raw");
        assert_eq!(combine("b.qcow2", "c.raw").unwrap(), "c.raw");
        assert_eq!(combine("http://h/x/b.img", "c").unwrap(), "http://h/x/c");
        assert_eq!(combine("/a/b", "nbd:h:1").unwrap(), "nbd:h:1");
        let options = parse_json("json:{\"driver\":\"raw\",\"file.filename\":\"x\"}").unwrap().unwrap();
        assert_eq!(options.get("file").unwrap()["filename"], "x");
    }
}
