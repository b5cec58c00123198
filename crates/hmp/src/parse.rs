//! A line of the monitor into a command and its arguments.

use crate::Session;
use crate::commands::registers;
use crate::expr;
use crate::table::{self, Command, Kind, Param};
use base::Result;
use std::collections::HashMap;

/// Repetition, format and size of `/fmt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub count: u32,
    /// One of `o x u d c i`.
    pub letter: char,
    /// Bytes: 1, 2, 4 or 8; `None` if not given.
    pub size: Option<u8>,
}

impl Default for Format {
    fn default() -> Self {
        Format { count: 1, letter: 'x', size: None }
    }
}

#[derive(Clone, Debug)]
enum Value {
    Text(String),
    Int(i64),
    Format(Format),
    Set,
}

/// The arguments of a command by name.
#[derive(Clone, Debug, Default)]
pub struct Args(HashMap<&'static str, Value>);

impl Args {
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A mandatory text: the parser has seen to it.
    pub fn need(&self, name: &str) -> String {
        self.text(name).unwrap_or_default().to_string()
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        match self.0.get(name) {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    pub fn need_int(&self, name: &str) -> i64 {
        self.int(name).unwrap_or_default()
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(Value::Set))
    }

    pub fn format(&self) -> Format {
        match self.0.get("fmt") {
            Some(Value::Format(format)) => *format,
            _ => Format::default(),
        }
    }
}

/// `value,key=value,...` as an object of texts: a first part without `=` is the value of
/// `implied`, another one switches its key on; `,,` is a comma.
pub(crate) fn key_values(text: &str, implied: &str) -> serde_json::Map<String, serde_json::Value> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_none() => parts.push(String::new()),
            c => parts.last_mut().unwrap_or(&mut String::new()).push(c),
        }
    }
    let mut map = serde_json::Map::new();
    for (at, part) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key, value),
            None if at == 0 => (implied, part.as_str()),
            None => (part.as_str(), "on"),
        };
        map.insert(key.into(), value.into());
    }
    map
}

/// The command with its arguments, or what to print instead.
pub(crate) fn line(session: &Session, line: &str) -> Result<(&'static Command, Args), String> {
    let (mut command, mut rest) = find(table::COMMANDS, line, line)?;
    let mut whole = command.names[0].to_string();
    if command.names[0] == "info" && !rest.trim().is_empty() {
        (command, rest) = find(table::INFO, rest.trim_start(), line)?;
        whole = format!("info {}", command.names[0]);
    }
    let args = arguments(session, command, rest);
    args.map(|args| (command, args)).map_err(|text| {
        let hint = format!("Try \"help {whole}\" for more information\n");
        format!("{}: {text}\n{hint}", command.names[0])
    })
}

fn find<'a>(
    list: &'static [Command],
    text: &'a str,
    line: &str,
) -> Result<(&'static Command, &'a str), String> {
    let end = text.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match list.iter().find(|c| c.names.contains(&name)) {
        Some(command) => Ok((command, rest)),
        None => {
            let upto = line.len() - rest.len();
            Err(format!("unknown command: '{}'\n", &line[..upto]))
        }
    }
}

fn arguments(session: &Session, command: &'static Command, text: &str) -> Result<Args, String> {
    let mut args = Args::default();
    let mut rest = text;
    let register = |name: &str| registers::value(session, name);
    for param in command.params {
        rest = rest.trim_start();
        match param.kind {
            Kind::Flag => rest = flags(command, &mut args, rest)?,
            Kind::Format => {
                if let Some(after) = rest.strip_prefix('/') {
                    let (format, after) = format(after)?;
                    args.0.insert("fmt", Value::Format(format));
                    rest = after;
                }
            }
            _ if rest.is_empty() => {
                if !param.optional {
                    return Err(missing(param));
                }
            }
            Kind::Word => {
                let (word, after) = word(rest)?;
                args.0.insert(param.name, Value::Text(word));
                rest = after;
            }
            Kind::Rest => {
                args.0.insert(param.name, Value::Text(rest.trim_end().to_string()));
                rest = "";
            }
            Kind::Index => {
                // Only directly after its predecessor, behind a dot.
                if let Some(after) = rest.strip_prefix('.') {
                    let (value, after) = expr::eval(after, &register).map_err(|f| f.text)?;
                    args.0.insert(param.name, Value::Int(value));
                    rest = after;
                }
            }
            Kind::Size => {
                let (text, after) = word(rest)?;
                let size = spec::size::parse_size(&text, 1 << 20).and_then(|size| i64::try_from(size).ok());
                args.0.insert(param.name, Value::Int(size.ok_or("invalid size")?));
                rest = after;
            }
            Kind::Int | Kind::Long => {
                let (value, after) = expr::eval(rest, &register).map_err(|f| f.text)?;
                if param.kind == Kind::Int && i32::try_from(value).is_err() && u32::try_from(value).is_err() {
                    return Err("integer is for 32-bit values".into());
                }
                args.0.insert(param.name, Value::Int(value));
                rest = after;
            }
        }
    }
    match rest.trim().is_empty() {
        true => Ok(args),
        false => Err("extraneous characters at the end of line".into()),
    }
}

fn missing(param: &Param) -> String {
    match param.kind {
        Kind::Int | Kind::Long | Kind::Index | Kind::Size => "unexpected end of expression".into(),
        _ => format!("{} expected", if param.name.contains("file") { "filename" } else { "string" }),
    }
}

/// `-a -b`: flags that the command has.
fn flags<'a>(command: &'static Command, args: &mut Args, text: &'a str) -> Result<&'a str, String> {
    let mut rest = text;
    loop {
        let Some(after) = rest.strip_prefix('-') else { return Ok(rest) };
        let end = after.find(char::is_whitespace).unwrap_or(after.len());
        let (name, after) = after.split_at(end);
        // A negative number is an argument.
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(rest);
        }
        let known = command.params.iter().find(|p| p.kind == Kind::Flag && p.name == name);
        let known = known.ok_or_else(|| format!("unsupported option -{name}"))?;
        args.0.insert(known.name, Value::Set);
        rest = after.trim_start();
    }
}

fn format(text: &str) -> Result<(Format, &str), String> {
    let mut format = Format::default();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if digits > 0 {
        format.count = text[..digits].parse().map_err(|_| "count too large".to_string())?;
    }
    let mut rest = &text[digits..];
    while let Some(letter) = rest.chars().next().filter(|c| !c.is_whitespace()) {
        match letter {
            'o' | 'x' | 'u' | 'd' | 'c' | 'i' => format.letter = letter,
            'b' => format.size = Some(1),
            'h' => format.size = Some(2),
            'w' => format.size = Some(4),
            'g' | 'L' => format.size = Some(8),
            other => return Err(format!("invalid char in format: '{other}'")),
        }
        rest = &rest[letter.len_utf8()..];
    }
    Ok((format, rest))
}

/// A word, possibly in double quotes with `\n \r \\ \' \"`.
fn word(text: &str) -> Result<(String, &str), String> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return Ok((text[..end].to_string(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next() {
            Some('"') => return Ok((value, chars.as_str())),
            Some('\\') => match chars.next() {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some(c @ ('\\' | '\'' | '"')) => value.push(c),
                Some(other) => return Err(format!("unsupported escape code: '\\{other}'")),
                None => return Err("unterminated string".into()),
            },
            Some(c) => value.push(c),
            None => return Err("unterminated string".into()),
        }
    }
}
