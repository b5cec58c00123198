//! The lexical form `value,key=value,flag,nokey`: commas doubled inside values.

use base::{Failure, Result, bail, fail};
use spec::Tree;
use spec::size::parse_size;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    String,
    Bool,
    Number,
    Size,
}

/// One key of an option: for the parser, `-help` and `query-command-line-options`.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    /// When not empty: the only values that are supported.
    pub only: &'static [&'static str],
}

/// The keys of an option.
#[derive(Debug)]
pub struct Group {
    pub name: &'static str,
    /// The key of a first value without name.
    pub implied: Option<&'static str>,
    pub keys: &'static [Key],
    /// Keys that are not in the table go on to whoever owns the thing.
    pub open: bool,
}

impl Group {
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|k| k.name == name)
    }
}

/// Parsed keys and values, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params {
    pub list: Vec<(String, String)>,
    /// `help` or `?` was among them.
    pub help: bool,
}

impl Params {
    pub fn parse(text: &str, group: &'static Group) -> Result<Self> {
        Self::parse_with(text, group, group.implied)
    }

    /// As [`Params::parse`], for keys that follow something else.
    pub fn parse_rest(text: &str, group: &'static Group) -> Result<Self> {
        Self::parse_with(text, group, None)
    }

    fn parse_with(text: &str, group: &'static Group, implied: Option<&str>) -> Result<Self> {
        let mut params = Params::default();
        for (at, part) in split(text).into_iter().enumerate() {
            let (key, value) = match part {
                (key, Some(value)) => (key, value),
                (word, None) if word == "help" || word == "?" => {
                    params.help = true;
                    continue;
                }
                (word, None) => match implied.filter(|_| at == 0) {
                    Some(key) => (key.to_string(), word),
                    None => flag(word, group),
                },
            };
            if key == "id" && !spec::id_wellformed(&value) {
                let what = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";
                return Err(Failure::expects("id", "an identifier").hint(what));
            }
            let value = group.check(&key, &value)?;
            params.list.push((key, value));
        }
        Ok(params)
    }

    /// The last value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.list.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn owned(&self, key: &str) -> Option<String> {
        self.get(key).map(str::to_string)
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(|v| parse_bool(v).ok())
    }

    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let number = parse_number(text).and_then(|n| T::try_from(n).ok());
        number.map(Some).ok_or_else(|| fail!("Parameter '{key}' is out of range"))
    }

    pub fn set(&mut self, key: &str, value: &str) {
        self.list.push((key.to_string(), value.to_string()));
    }

    /// As a flat tree of texts; the values of a repeated key become a list.
    pub fn into_lists(self) -> Tree {
        let mut tree = Tree::new();
        for (key, value) in self.list {
            let value = serde_json::Value::from(value);
            match tree.get_mut(&key) {
                Some(serde_json::Value::Array(list)) => list.push(value),
                Some(first) => *first = vec![first.take(), value].into(),
                None => drop(tree.insert(key, value)),
            }
        }
        tree
    }

    /// As a flat tree of texts; of a repeated key the last value.
    pub fn into_tree(self) -> Tree {
        self.list.into_iter().map(|(k, v)| (k, v.into())).collect()
    }
}

fn flag(word: String, group: &Group) -> (String, String) {
    if group.key(&word).is_none()
        && let Some(rest) = word.strip_prefix("no")
        && group.key(rest).is_some()
    {
        return (rest.to_string(), "off".into());
    }
    (word, "on".into())
}

impl Group {
    /// Checks that the key exists and the value is of its type; gives the value, switches
    /// written `on` or `off`.
    pub fn check(&self, name: &str, value: &str) -> Result<String> {
        let Some(key) = self.key(name) else {
            if self.open || name == "id" {
                return Ok(value.to_string());
            }
            return Err(self.unknown(name));
        };
        match key.kind {
            Kind::String => {}
            Kind::Bool => drop(parse_bool(value).map_err(|()| Failure::expects(name, "'on' or 'off'"))?),
            Kind::Number => drop(parse_number(value).ok_or_else(|| Failure::expects(name, "a number"))?),
            Kind::Size => drop(parse_size(value, 1).ok_or_else(|| size_failure(name))?),
        }
        let plain = match parse_bool(value) {
            Ok(true) if key.kind == Kind::Bool => "on",
            Ok(false) if key.kind == Kind::Bool => "off",
            _ => value,
        };
        if !key.only.is_empty() && !key.only.contains(&plain) {
            let list = key.only.join("', '");
            bail!("{name}={value} is not supported by Ryokan (possible: '{list}')");
        }
        Ok(plain.to_string())
    }

    fn unknown(&self, name: &str) -> Failure {
        let failure = fail!("Invalid parameter '{name}'");
        match spec::nearest(name, self.keys.iter().map(|k| k.name)) {
            Some(near) => failure.hint(format!("Did you mean '{near}'?")),
            None => failure,
        }
    }
}

pub fn size_failure(name: &str) -> Failure {
    Failure::expects(name, "a non-negative number below 2^64").hint(
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.",
    )
}

pub fn parse_bool(value: &str) -> Result<bool, ()> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(()),
    }
}

/// Decimal, 0x hexadecimal or 0 octal.
pub fn parse_number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+'));
    }
    if text.len() > 1 && text.starts_with('0') {
        return u64::from_str_radix(&text[1..], 8).ok().filter(|_| !text[1..].starts_with('+'));
    }
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// Splits at single commas; a value is `None` for a word without `=`. An `=` only counts before
/// the first comma of its part.
pub fn split(text: &str) -> Vec<(String, Option<String>)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find([',', '=']).unwrap_or(rest.len());
        if rest[end..].starts_with('=') {
            let (value, after) = value(&rest[end + 1..]);
            parts.push((rest[..end].to_string(), Some(value)));
            rest = after;
        } else {
            let (word, after) = value(rest);
            parts.push((word, None));
            rest = after;
        }
    }
    parts
}

/// A value up to a single comma, and what follows that.
fn value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some(comma) = rest.find(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(&rest[..comma]);
        rest = &rest[comma + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, rest),
        }
    }
}
