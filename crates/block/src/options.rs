//! The tree of options a node is opened with.
//!
//! A driver *takes* what it knows; what is left at the end is an error. Values come typed
//! (QMP, `-blockdev '{...}'`) or all as strings (`-drive`, dotted keys, `json:`). Options know
//! which ([`Origin`]): a string is a number or a boolean only where there is no other way to say it.

use base::{Failure, Result, bail, fail};
use serde_json::{Map, Value};
use std::sync::{Arc, Mutex, PoisonError};

/// Where values come from, and with that what they may be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Origin {
    /// Strings may stand for values of any type, and are recorded as they were said.
    #[default]
    Texts,
    /// The same (`-blockdev` with dotted keys), but recorded by their types.
    Words(Found),
    /// Values have their type. The path before each key, as errors name it (``, `options[0].`).
    Typed(String),
}

impl Origin {
    fn names(&self, key: &str) -> String {
        match self {
            Origin::Texts | Origin::Words(_) => key.to_string(),
            Origin::Typed(path) => format!("{path}{key}"),
        }
    }

    /// Of the table that option `key` (`file`, `children.0`) holds.
    fn within(&self, key: &str) -> Origin {
        match self {
            Origin::Texts => Origin::Texts,
            Origin::Words(found) => Origin::Words(found.below(key)),
            Origin::Typed(path) => match key.split_once('.') {
                Some((list, number)) => Origin::Typed(format!("{path}{list}[{number}].")),
                None => Origin::Typed(format!("{path}{key}.")),
            },
        }
    }
}

/// What strings turned out to be when they were taken, by their paths from where one node's options begin.
#[derive(Clone, Debug, Default)]
pub struct Found {
    path: String,
    values: Arc<Mutex<Vec<(String, Value)>>>,
}

impl PartialEq for Found {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Found {
    fn below(&self, key: &str) -> Found {
        Found { path: format!("{}{key}.", self.path), values: self.values.clone() }
    }

    fn note(&self, key: &str, value: Value) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.push((format!("{}{key}", self.path), value));
    }
}

/// A tree of options, consumed key by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options(pub Map<String, Value>, Origin);

impl From<Map<String, Value>> for Options {
    fn from(map: Map<String, Value>) -> Self {
        Options(map, Origin::Texts)
    }
}

impl Options {
    pub fn new() -> Self {
        Self::default()
    }

    /// From a JSON object literal (`serde_json::json!({...})`); another value gives no options.
    pub fn json(value: Value) -> Self {
        match value {
            Value::Object(map) => map.into(),
            _ => Options::default(),
        }
    }

    /// Makes a tree of flat keys with dots (`file.filename`, `children.0.driver`). Tables
    /// whose keys are the numbers from 0 become lists.
    pub fn crumple(flat: impl IntoIterator<Item = (String, Value)>) -> Result<Self> {
        let mut root = Map::new();
        for (key, value) in flat {
            insert_path(&mut root, &key, value)?;
        }
        let mut options = Options::default();
        for (key, value) in root {
            options.0.insert(key, lists(value));
        }
        Ok(options)
    }

    /// The same with the values' origin.
    pub fn said(self, origin: Origin) -> Self {
        Options(self.0, origin)
    }

    /// Values have their types, and errors name the keys as they are.
    pub fn typed(self) -> Self {
        self.said(Origin::Typed(String::new()))
    }

    /// From here on, values are recorded for one node.
    pub(crate) fn begin(&mut self) {
        if let Origin::Words(found) = &mut self.1 {
            *found = Found::default();
        }
    }

    /// Gives the strings of `given` the types they were taken as since [`Options::begin`].
    pub(crate) fn retype(&self, given: &mut Options) {
        let Origin::Words(found) = &self.1 else { return };
        for (path, value) in found.values.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let mut keys = path.split('.');
            let first = keys.next().and_then(|key| given.0.get_mut(key));
            let place = keys.try_fold(first, |at, key| match at {
                Some(Value::Object(map)) => Some(map.get_mut(key)),
                Some(Value::Array(list)) => Some(key.parse().ok().and_then(|at: usize| list.get_mut(at))),
                _ => None,
            });
            if let Some(Some(place)) = place {
                *place = value;
            }
        }
    }

    fn note(&self, key: &str, value: impl Into<Value>) {
        if let Origin::Words(found) = &self.1 {
            found.note(key, value.into());
        }
    }

    /// A table that option `key` held.
    pub fn within(&self, key: &str, map: Map<String, Value>) -> Options {
        Options(map, self.1.within(key))
    }

    /// Strings may stand for values of any type.
    pub fn are_texts(&self) -> bool {
        !matches!(self.1, Origin::Typed(_))
    }

    /// The customary refusal of a value of another type.
    pub fn wrong_type(&self, key: &str, expected: &str) -> Failure {
        let key = self.1.names(key);
        fail!("Invalid parameter type for '{key}', expected: {expected}")
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub fn get_str(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_string(), value.into());
    }

    /// Sets `key` unless it is there.
    pub fn default_to(&mut self, key: &str, value: impl Into<Value>) {
        if !self.0.contains_key(key) {
            self.set(key, value);
        }
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }

    pub fn take_str(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Null) if self.are_texts() => Ok(None),
            Some(Value::Number(number)) if self.are_texts() => Ok(Some(number.to_string())),
            Some(_) => Err(self.wrong_type(key, "string")),
        }
    }

    /// A string that must be there.
    pub fn need_str(&mut self, key: &str) -> Result<String> {
        self.take_str(key)?.ok_or_else(|| fail!("Parameter '{key}' is missing"))
    }

    pub fn take_bool(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(Value::String(text)) if self.are_texts() => {
                let value = match text.as_str() {
                    "on" | "yes" | "true" | "y" => true,
                    "off" | "no" | "false" | "n" => false,
                    _ => bail!("Parameter '{key}' expects 'on' or 'off'"),
                };
                self.note(key, value);
                Ok(Some(value))
            }
            Some(_) => Err(self.wrong_type(key, "boolean")),
        }
    }

    /// A number with a sign.
    pub fn take_i64(&mut self, key: &str) -> Result<Option<i64>> {
        let value = match self.take(key) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) if self.are_texts() => {
                let value = text.parse().ok();
                value.inspect(|value| self.note(key, *value))
            }
            Some(_) => return Err(self.wrong_type(key, "integer")),
        };
        value.map(Some).ok_or_else(|| fail!("Parameter '{key}' expects a number"))
    }

    /// An unsigned number; strings are read as a size with suffix (`64k`, `0x200`, `1.5G`).
    pub fn take_u64(&mut self, key: &str) -> Result<Option<u64>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_u64() {
                Some(value) => Ok(Some(value)),
                None if number.is_f64() => Err(self.wrong_type(key, "integer")),
                None => bail!("Parameter '{key}' expects a non-negative number"),
            },
            Some(Value::String(text)) if self.are_texts() => {
                let Some(value) = parse_size(&text) else {
                    bail!("Parameter '{key}' expects a non-negative number below 2^64")
                };
                self.note(key, value);
                Ok(Some(value))
            }
            Some(_) => Err(self.wrong_type(key, "integer")),
        }
    }

    /// A size in bytes that must be there.
    pub fn need_u64(&mut self, key: &str) -> Result<u64> {
        self.take_u64(key)?.ok_or_else(|| fail!("Parameter '{key}' is missing"))
    }

    /// A nested table. Also gathers dotted keys `key.x` that stand beside it.
    pub fn take_table(&mut self, key: &str) -> Result<Option<Options>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(self.within(key, map))),
            Some(_) => Err(self.wrong_type(key, "object")),
        }
    }

    pub fn take_list(&mut self, key: &str) -> Result<Option<Vec<Value>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong_type(key, "array")),
        }
    }

    /// The tables of a list; none if it is not there.
    pub fn take_tables(&mut self, key: &str) -> Result<Vec<Options>> {
        let list = self.take_list(key)?.unwrap_or_default();
        let tables = list.into_iter().enumerate().map(|(at, value)| match value {
            Value::Object(map) => Ok(self.within(&format!("{key}.{at}"), map)),
            _ => Err(self.wrong_type(&format!("{key}[{at}]"), "object")),
        });
        tables.collect()
    }

    /// To be called when all known options are taken.
    pub fn finish(&self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => bail!("Parameter '{key}' is unexpected"),
        }
    }

    /// [`Options::finish`] of the table that option `name` holds.
    pub fn finish_in(&self, name: &str) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => bail!("Parameter '{name}.{key}' is unexpected"),
        }
    }

    /// Takes `ipv4` and `ipv6`: whether addresses of each kind will do (both, unless one is asked
    /// for or the other ruled out).
    pub fn take_families(&mut self) -> Result<(bool, bool)> {
        Ok(match (self.take_bool("ipv4")?, self.take_bool("ipv6")?) {
            (Some(false), Some(false)) => bail!("Cannot disable IPv4 and IPv6 at same time"),
            (None, None) | (Some(true), Some(true)) => (true, true),
            (Some(false), _) | (None, Some(true)) => (false, true),
            (Some(true), _) | (None, Some(false)) => (true, false),
        })
    }

    /// One of a set of words.
    pub fn take_word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(word) = self.take_str(key)? else { return Ok(None) };
        match words.iter().find(|(name, _)| *name == word) {
            Some((_, value)) => Ok(Some(*value)),
            None => bail!("Parameter '{key}' does not accept value '{word}'"),
        }
    }
}

/// `512`, `0x200`, `64k`, `1.5G` (powers of 1024; `b` to `E`) in bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (number, shift) = match text.char_indices().last()? {
        (at, last) if last.is_ascii_alphabetic() => {
            let shift = match last.to_ascii_lowercase() {
                'b' => 0,
                'k' => 10,
                'm' => 20,
                'g' => 30,
                't' => 40,
                'p' => 50,
                'e' => 60,
                _ => return None,
            };
            (&text[..at], shift)
        }
        _ => (text, 0),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1u64 << shift);
    }
    let (whole, fraction) = number.split_once('.')?;
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) || shift == 0 {
        return None;
    }
    let part: f64 = format!("0.{fraction}").parse().ok()?;
    whole.checked_mul(1u64 << shift)?.checked_add((part * (1u64 << shift) as f64) as u64)
}

fn insert_path(table: &mut Map<String, Value>, key: &str, value: Value) -> Result<()> {
    match key.split_once('.') {
        None => match (table.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                old.extend(new);
                Ok(())
            }
            (_, value) => {
                table.insert(key.to_string(), value);
                Ok(())
            }
        },
        Some((head, rest)) => {
            let inner = table.entry(head.to_string()).or_insert_with(|| Value::Object(Map::new()));
            match inner {
                Value::Object(inner) => insert_path(inner, rest, value),
                Value::String(reference)
                    if rest == "driver" || rest == "node-name" || !reference.is_empty() =>
                {
                    bail!("Cannot mix scalar and non-scalar keys")
                }
                _ => bail!("Cannot mix scalar and non-scalar keys"),
            }
        }
    }
}

fn lists(value: Value) -> Value {
    let Value::Object(table) = value else { return value };
    let mut table: Map<String, Value> = table.into_iter().map(|(key, value)| (key, lists(value))).collect();
    let numbered = !table.is_empty() && (0..table.len()).all(|at| table.contains_key(&at.to_string()));
    if !numbered {
        return Value::Object(table);
    }
    let items = (0..table.len()).filter_map(|at| table.remove(&at.to_string())).collect();
    Value::Array(items)
}
