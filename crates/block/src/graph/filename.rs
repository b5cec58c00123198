//! File names: protocol prefixes, `json:`, names relative to an image.

use super::{Child, Node};
use crate::driver::Kind;
use crate::options::Options;
use crate::types::Role;
use base::{Result, bail, fail};
use serde_json::{Map, Value};

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

/// As [`combine`], where `name` is a path whatever it looks like. An image that nobody has looked
/// at must not reach further than files by what it names for its data.
pub fn combine_path(image: &str, name: &str) -> Result<String> {
    match scheme(name) {
        Some(_) => combine(image, &format!("./{name}")),
        None => combine(image, name),
    }
}

/// The options in a `json:{...}` file name.
pub fn parse_json(name: &str) -> Result<Option<Options>> {
    let Some(text) = name.strip_prefix("json:") else { return Ok(None) };
    let value: Value = serde_json::from_str(&base::quotes::double(text))
        .map_err(|why| fail!("Could not parse the JSON options: {why}"))?;
    match value {
        Value::Object(map) => Options::crumple(map).map(Some),
        _ => bail!("Invalid JSON object given"),
    }
}

/// What a node calls itself: the plain name where that is enough to open the same nodes again,
/// otherwise `json:` and the options that are.
pub(super) fn of(node: &Node) -> String {
    plain(node).unwrap_or_else(|| {
        let mut text = "json:".to_string();
        write_json(&mut text, &Value::Object(describe(node)));
        text
    })
}

/// The name of the file that a node's own data lies in, or what comes nearest: names in its
/// header are relative to this one.
pub(super) fn place_of(node: &Node) -> String {
    let primary = node.children().into_iter().find(|child| child.role().contains(Role::PRIMARY));
    match primary {
        Some(child) if node.driver().kind == Kind::Format => place_of(&child.node()),
        _ => of(node),
    }
}

fn plain(node: &Node) -> Option<String> {
    let own = telling(node);
    if let Some(name) = node.layer().filename() {
        return own.is_empty().then_some(name);
    }
    let child = |name: &str| {
        let child = node.children().into_iter().find(|child| child.name() == name)?;
        plain(&child.node()).filter(|name| !name.starts_with("json:"))
    };
    match node.driver().name {
        "blkdebug" if own.keys().all(|key| key == "config") => {
            let config = own.get("config").and_then(Value::as_str).unwrap_or_default();
            Some(format!("blkdebug:{config}:{}", child("image")?))
        }
        "blkverify" => Some(format!("blkverify:{}:{}", child("raw")?, child("test")?)),
        "copy-before-write" | "snapshot-access" => child("file"),
        _ if node.driver().kind == Kind::Format && own.is_empty() && !stands_elsewhere(node) => {
            let file = node.children().into_iter().find(|child| child.role().contains(Role::PRIMARY))?;
            let below = file.node().skip_implicit();
            let opened_by_name = below.driver().kind == Kind::Protocol
                || matches!(below.driver().name, "blkdebug" | "blkverify");
            child(file.name()).filter(|_| opened_by_name)
        }
        _ => None,
    }
}

/// What was given of [`crate::driver::Driver::telling`], with flat keys.
fn telling(node: &Node) -> Map<String, Value> {
    let mut own = Map::new();
    // A protocol without a name is told of by all that it was given.
    let nameless = node.driver().kind == Kind::Protocol && node.layer().filename().is_none();
    let known = node.driver().telling;
    let tells = |key: &str| if known.is_empty() { nameless } else { known.contains(&key) };
    let (given, now) = (node.given(), node.layer().reopened_by());
    let changed = |key: &str| node.driver().changes.contains(&key);
    for (key, value) in given.0.iter().filter(|(key, _)| tells(key) && !changed(key)) {
        flatten(&mut own, key, value);
    }
    for (key, value) in now.0.iter().filter(|(key, _)| tells(key) && changed(key)) {
        match given.get(key) {
            // As it was said, if it is still so.
            Some(said) if same(said, value) => flatten(&mut own, key, said),
            None if *value == 0 => {}
            _ => flatten(&mut own, key, value),
        }
    }
    if node.driver().name == "blkdebug"
        && let Some(rest) = node.given().get_str("filename").and_then(|name| name.strip_prefix("blkdebug:"))
        && let Some((config, _)) = rest.split_once(':').filter(|(config, _)| !config.is_empty())
    {
        own.insert("config".into(), config.into());
    }
    own
}

/// Whether what was given, perhaps as a text, is this value.
fn same(said: &Value, value: &Value) -> bool {
    match (said, value.as_u64()) {
        (Value::String(text), Some(number)) => crate::options::parse_size(text) == Some(number),
        _ => said == value,
    }
}

fn flatten(into: &mut Map<String, Value>, key: &str, value: &Value) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(word, value)| flatten(into, &format!("{key}.{word}"), value))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| flatten(into, &format!("{key}.{at}"), value));
        }
        _ => drop(into.insert(key.to_string(), value.clone())),
    }
}

/// Whether a node, or one that it is based on, is based on another image than its header says.
fn stands_elsewhere(node: &Node) -> bool {
    if !node.driver().backing {
        return false;
    }
    match (node.layer().header_backing(), node.backing().map(|below| below.skip_implicit())) {
        (None, None) => false,
        (Some(name), Some(below)) if node.found_backing(&name, &below) => stands_elsewhere(&below),
        (Some(name), Some(below)) => {
            let place = place_of(&below);
            let from_header = combine(&place_of(node), &name).unwrap_or_default();
            match name == place || absolute(&from_header) == absolute(&place) {
                true => stands_elsewhere(&below),
                false => name != of(&below),
            }
        }
        _ => true,
    }
}

/// A file name that does not depend on the working directory.
pub(crate) fn absolute(name: &str) -> String {
    if name.starts_with('/') || scheme(name).is_some() {
        return name.to_string();
    }
    match std::env::current_dir() {
        Ok(dir) => dir.join(name).display().to_string(),
        Err(_) => name.to_string(),
    }
}

/// The options that open the same nodes again.
fn describe(node: &Node) -> Map<String, Value> {
    let own = telling(node);
    let children = node.children();
    if let Some(name) = node.layer().filename() {
        match (node.driver().kind, parse_json(&name)) {
            // The filter of a job: gone when the node is opened again, and told of if it was named.
            (Kind::Filter, _) if node.is_implicit() => {
                return children.first().map_or(Map::new(), |child| describe(&child.node()));
            }
            (Kind::Filter, _) => {
                let mut map = own;
                map.insert("driver".into(), node.driver().name.into());
                let below =
                    |child: &Child| (child.name().to_string(), Value::Object(describe(&child.node())));
                map.extend(children.iter().map(below));
                return map;
            }
            (_, Ok(Some(options))) => return options.0,
            _ => {}
        }
        let mut map = own;
        map.insert("driver".into(), node.driver().name.into());
        if !matches!(node.driver().name, "null-co" | "null-aio") {
            map.insert("filename".into(), name.into());
        }
        return map;
    }
    let mut map = own;
    map.insert("driver".into(), node.driver().name.into());
    if node.driver().name == "quorum" {
        let list = children.iter().map(|child| Value::Object(describe(&child.node()))).collect();
        map.insert("children".into(), Value::Array(list));
        return map;
    }
    let elsewhere = stands_elsewhere(node);
    for child in children.iter().filter(|child| elsewhere || !child.role().contains(Role::BACKING)) {
        map.insert(child.name().into(), Value::Object(describe(&child.node())));
    }
    if elsewhere && node.backing().is_none() {
        map.insert("backing".into(), Value::Null);
    }
    map
}

/// JSON as QEMU writes it into file names, which test suites compare: blanks after colons and
/// commas, keys in the order of its hash table.
fn write_json(text: &mut String, value: &Value) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_key(|key| (bucket(key), *key));
            text.push('{');
            for (at, key) in keys.into_iter().enumerate() {
                text.push_str(if at > 0 { ", " } else { "" });
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push_str(": ");
                write_json(text, &map[key]);
            }
            text.push('}');
        }
        Value::Array(list) => {
            text.push('[');
            for (at, value) in list.iter().enumerate() {
                text.push_str(if at > 0 { ", " } else { "" });
                write_json(text, value);
            }
            text.push(']');
        }
        _ => text.push_str(&value.to_string()),
    }
}

/// Where a key comes in that table: the hash of the database TDB, for 512 places.
fn bucket(key: &str) -> u32 {
    let start = 0x238F_13AFu32.wrapping_mul(key.len() as u32);
    let hash = key
        .bytes()
        .enumerate()
        .fold(start, |hash, (at, byte)| hash.wrapping_add(u32::from(byte) << (at * 5 % 24)));
    hash.wrapping_mul(1_103_515_243).wrapping_add(12345) % 512
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
        assert_eq!(combine_path("/a/b", "nbd:h:1").unwrap(), "/a/./nbd:h:1");
        assert_eq!(combine_path("b", "json:{}").unwrap(), "./json:{}");
        assert_eq!(combine_path("/a/b", "c.raw").unwrap(), "/a/c.raw");
        for text in
            ["json:{\"driver\":\"raw\",\"file.filename\":\"x\"}", "json:{'driver':'raw','file.filename':'x'}"]
        {
            let options = parse_json(text).unwrap().unwrap();
            assert_eq!(options.get("file").unwrap()["filename"], "x");
        }
    }
}
