//! Words of a command line, sizes in and out.

use crate::options::Options;
use std::collections::HashMap;

/// Words separated by blanks; quotes keep blanks.
pub(super) fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut inside, mut quote) = (Vec::new(), String::new(), false, None);
    for c in line.trim().chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                inside = true;
            }
            (None, c) if c.is_whitespace() => {
                if inside {
                    words.push(std::mem::take(&mut word));
                }
                inside = false;
            }
            (_, c) => {
                word.push(c);
                inside = true;
            }
        }
    }
    if inside {
        words.push(word);
    }
    words
}

/// Flags and values, and what is left.
pub(super) struct Words {
    flags: HashMap<char, Option<String>>,
    pub rest: Vec<String>,
}

impl Words {
    /// `flags` stand alone, `values` take a word.
    pub fn parse(name: &str, words: Vec<String>, flags: &str, values: &str) -> Result<Self, String> {
        let mut parsed = Words { flags: HashMap::new(), rest: Vec::new() };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                parsed.rest.push(word);
                continue;
            };
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                if flags.contains(letter) {
                    parsed.flags.insert(letter, None);
                } else if values.contains(letter) {
                    let glued: String = letters.by_ref().collect();
                    let value = if glued.is_empty() { words.next() } else { Some(glued) };
                    let value = value.ok_or_else(|| {
                        format!("{name}: option requires an argument -- '{letter}'\n{}", super::usage(name))
                    })?;
                    parsed.flags.insert(letter, Some(value));
                } else {
                    return Err(format!("{name}: invalid option -- '{letter}'\n{}", super::usage(name)));
                }
            }
        }
        Ok(parsed)
    }

    pub fn flag(&self, letter: char) -> bool {
        self.flags.contains_key(&letter)
    }

    pub fn value(&mut self, letter: char) -> Option<String> {
        self.flags.remove(&letter).flatten()
    }
}

/// A size with suffix, or the customary complaint.
pub(super) fn number(word: &str) -> Result<u64, String> {
    match crate::options::parse_size(word) {
        Some(value) if value <= i64::MAX as u64 => Ok(value),
        Some(_) => Err(format!("Parsing error: argument too large -- {word}")),
        None => {
            Err(format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {word}"))
        }
    }
}

/// "4 KiB", "193.187 MiB", "512 bytes".
pub(super) fn size_text(value: f64) -> String {
    let units = [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let (value, unit) = match units.iter().find(|(shift, _)| value >= (1u64 << shift) as f64) {
        Some((shift, unit)) => (value / (1u64 << shift) as f64, *unit),
        None => (value, "bytes"),
    };
    let text = format!("{value:.3}");
    format!("{} {unit}", text.strip_suffix(".000").unwrap_or(&text))
}

/// `cache.direct=on,detect-zeroes=on`: a comma in a value stands twice, a name alone is on.
pub fn options(text: &str) -> Result<Options, String> {
    let mut flat = Vec::new();
    for part in text.replace(",,", "\0").split(',').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, "on"));
        flat.push((key.to_string(), value.replace('\0', ",").into()));
    }
    Options::crumple(flat).map_err(|why| why.text)
}
