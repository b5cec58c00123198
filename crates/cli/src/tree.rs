//! Dotted keys into trees (`-blockdev`, `-object`), and the JSON form of the same options.

use crate::params::split;
use base::{Result, bail, fail};
use serde_json::{Map, Value};
use spec::Tree;

/// Whether options are in the JSON form.
pub fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// Either a JSON object or `implied-value,key=value,a.b=value`. The scalars of the second form
/// are texts. `Ok(None)`: help was asked for.
pub fn parse(text: &str, implied: Option<&str>) -> Result<Option<Tree>> {
    if is_json(text) {
        return match serde_json::from_str(&base::quotes::double(text)) {
            Ok(Value::Object(map)) => Ok(Some(map)),
            Ok(_) => bail!("JSON value is not an object"),
            Err(error) => bail!("JSON parse error, {error}"),
        };
    }
    let mut root = Map::new();
    for (at, (word, value)) in split(text).into_iter().enumerate() {
        match (value, implied) {
            (Some(value), _) => insert(&mut root, &word, value)?,
            (None, _) if word == "help" || word == "?" => return Ok(None),
            (None, Some(key)) if at == 0 => insert(&mut root, key, word)?,
            (None, _) if key_valid(&word) => bail!("Expected '=' after parameter '{word}'"),
            (None, _) => bail!("Invalid parameter '{word}'"),
        }
    }
    lists(root, "").map(|value| match value {
        Value::Object(map) => Some(map),
        _ => Some(Map::new()),
    })
}

fn key_valid(key: &str) -> bool {
    let fragment = |f: &str| {
        !f.is_empty() && f.len() < 128 && f.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    key.split('.').count() <= 64
        && key.split('.').all(fragment)
        && !key.starts_with(|c: char| c.is_ascii_digit())
}

fn insert(root: &mut Tree, key: &str, value: String) -> Result<()> {
    if !key_valid(key) {
        bail!("Invalid parameter '{key}'");
    }
    let mut at = root;
    let mut parts = key.split('.').peekable();
    let mut path = String::new();
    while let Some(part) = parts.next() {
        path = if path.is_empty() { part.to_string() } else { format!("{path}.{part}") };
        if parts.peek().is_none() {
            if at.get(part).is_some_and(Value::is_object) {
                bail!("Parameters '{path}.*' used inconsistently");
            }
            at.insert(part.to_string(), value.into());
            return Ok(());
        }
        let next = at.entry(part.to_string()).or_insert_with(|| Map::new().into());
        at = next.as_object_mut().ok_or_else(|| fail!("Parameters '{path}.*' used inconsistently"))?;
    }
    Ok(())
}

/// Tables whose keys are numbers become lists.
fn lists(map: Tree, path: &str) -> Result<Value> {
    let numbered = map.keys().filter(|k| k.bytes().all(|b| b.is_ascii_digit())).count();
    if numbered > 0 && numbered < map.len() {
        bail!("Parameters '{path}*' used inconsistently");
    }
    let inner = |key: &str, value: Value| match value {
        Value::Object(map) => lists(map, &format!("{path}{key}.")),
        other => Ok(other),
    };
    if numbered == 0 || map.is_empty() {
        let done: Result<Tree> = map.into_iter().map(|(k, v)| Ok((k.clone(), inner(&k, v)?))).collect();
        return done.map(Value::Object);
    }
    let mut map = map;
    (0..numbered)
        .map(|n| match map.remove(&n.to_string()) {
            Some(value) => inner(&n.to_string(), value),
            None => bail!("Parameter '{path}{n}' missing"),
        })
        .collect::<Result<Vec<Value>>>()
        .map(Value::Array)
}
