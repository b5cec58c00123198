//! Directory entries: short names, long names, times.

use std::collections::HashSet;
use std::time::SystemTime;

pub(super) const ENTRY: usize = 32;
pub(super) const READ_ONLY: u8 = 0x01;
pub(super) const LABEL: u8 = 0x08;
pub(super) const DIRECTORY: u8 = 0x10;
const LONG: u8 = 0x0f;

/// An entry for a short name.
pub(super) fn entry(
    name: &[u8; 11],
    attributes: u8,
    time: SystemTime,
    cluster: u32,
    size: u32,
) -> [u8; ENTRY] {
    let mut out = [0; ENTRY];
    out[..11].copy_from_slice(name);
    out[11] = attributes;
    let (date, clock) = stamp(time);
    for (at, word) in [(14, clock), (16, date), (18, date), (22, clock), (24, date)] {
        out[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
    out[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
    out[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    out[28..32].copy_from_slice(&size.to_le_bytes());
    out
}

/// Date and time of day (UTC) as FAT has them; years from 1980 to 2107.
fn stamp(time: SystemTime) -> (u16, u16) {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let (mut days, second) = (seconds / 86400, seconds % 86400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while year < 2108 && days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    if !(1980..2108).contains(&year) {
        return (1 << 5 | 1, 0);
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let date = (year - 1980) << 9 | (month as u64 + 1) << 5 | (days + 1);
    let clock = second / 3600 << 11 | second / 60 % 60 << 5 | second % 60 / 2;
    (date as u16, clock as u16)
}

/// A short name that is not in `taken`, and the entries of the long name if it is needed.
pub(super) fn names(name: &str, taken: &mut HashSet<[u8; 11]>) -> ([u8; 11], Vec<[u8; ENTRY]>) {
    let (stem, ending) = match name.rfind('.') {
        Some(at) if at > 0 => (&name[..at], &name[at + 1..]),
        _ => (name, ""),
    };
    let (stem, stem_fits) = plain(stem, 8);
    let (ending, ending_fits) = plain(ending, 3);
    let padded = |stem: &str| {
        let mut out = [b' '; 11];
        out[..stem.len()].copy_from_slice(stem.as_bytes());
        out[8..8 + ending.len()].copy_from_slice(ending.as_bytes());
        out
    };
    let mut short = padded(&stem);
    let mut number = 0;
    let exact = stem_fits && ending_fits && !stem.is_empty() && !name.ends_with('.');
    while (number == 0 && !exact) || taken.contains(&short) {
        number += 1;
        let tail = format!("~{number}");
        let kept = stem.len().min(8 - tail.len());
        short = padded(&format!("{}{tail}", &stem[..kept]));
    }
    taken.insert(short);
    let long = if exact && number == 0 { Vec::new() } else { long(name, &short) };
    (short, long)
}

/// Up to `most` characters as short names have them, and whether nothing was changed.
fn plain(text: &str, most: usize) -> (String, bool) {
    let mut fits = text.chars().count() <= most;
    let mut out = String::new();
    for character in text.chars() {
        let upper = character.to_ascii_uppercase();
        let known = upper.is_ascii_alphanumeric() || "!#$%&'()-@^_`{}~".contains(upper);
        fits &= known && upper == character;
        match upper {
            ' ' | '.' => {}
            _ if known => out.push(upper),
            _ => out.push('_'),
        }
    }
    out.truncate(most);
    (out, fits)
}

/// The entries of a long name, last part first.
fn long(name: &str, short: &[u8; 11]) -> Vec<[u8; ENTRY]> {
    let sum = checksum(short);
    let mut units: Vec<u16> = name.encode_utf16().take(255).collect();
    if !units.len().is_multiple_of(13) {
        units.push(0);
        let whole = units.len().next_multiple_of(13);
        units.resize(whole, 0xffff);
    }
    let parts = units.len() / 13;
    let part = |(at, part): (usize, &[u16])| {
        let mut out = [0; ENTRY];
        out[0] = at as u8 + 1 | if at + 1 == parts { 0x40 } else { 0 };
        out[11] = LONG;
        out[13] = sum;
        for (place, unit) in PLACES.into_iter().zip(part) {
            out[place..place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        out
    };
    let mut entries: Vec<[u8; ENTRY]> = units.chunks(13).enumerate().map(part).collect();
    entries.reverse();
    entries
}

/// Whether the guest may give this name to a file of the host.
pub(super) fn is_allowed(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.chars().any(|c| c == '/' || c.is_control())
}

/// What an entry of a directory says.
pub(super) struct Found {
    pub name: String,
    pub dir: bool,
    pub cluster: u32,
    pub size: u32,
}

/// A long name in the making: its parts come last first.
#[derive(Default)]
struct Long {
    units: Vec<u16>,
    sum: u8,
    /// Number of the part that comes next; 0 if the name is complete.
    wanted: u8,
}

const PLACES: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

impl Long {
    fn take(&mut self, raw: &[u8]) {
        let number = raw[0] & 0x3f;
        if raw[0] & 0x40 != 0 {
            *self = Long { units: Vec::new(), sum: raw[13], wanted: number };
        }
        if number == 0 || number > 20 || number != self.wanted || raw[13] != self.sum {
            *self = Long::default();
            return;
        }
        let part = PLACES.map(|place| u16::from_le_bytes([raw[place], raw[place + 1]]));
        self.units.splice(0..0, part);
        self.wanted -= 1;
    }

    /// The name, if it is complete and belongs to a short one.
    fn of(self, short: &[u8]) -> Option<Vec<u16>> {
        let mut units = self.units;
        let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
        units.truncate(end);
        (!units.is_empty() && self.wanted == 0 && self.sum == checksum(short)).then_some(units)
    }
}

fn checksum(short: &[u8]) -> u8 {
    short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The files and directories in a directory; an error names what the host cannot have.
pub(super) fn found(bytes: &[u8]) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    let mut long = Long::default();
    for raw in bytes.chunks_exact(ENTRY).take_while(|raw| raw[0] != 0) {
        if raw[0] == 0xe5 {
            long = Long::default();
            continue;
        }
        if raw[11] & 0x3f == LONG {
            long.take(raw);
            continue;
        }
        let named = std::mem::take(&mut long).of(&raw[..11]);
        if raw[11] & LABEL != 0 || raw[..11] == *b".          " || raw[..11] == *b"..         " {
            continue;
        }
        let name = match named {
            Some(units) => String::from_utf16(&units).ok(),
            None => short_name(raw),
        };
        let shown = || String::from_utf8_lossy(&raw[..11]).escape_debug().to_string();
        let Some(name) = name.filter(|name| is_allowed(name)) else {
            return Err(format!("the name of '{}' cannot be had on the host", shown()));
        };
        let half = |at: usize| u32::from(u16::from_le_bytes([raw[at], raw[at + 1]]));
        let size = half(28) | half(30) << 16;
        found.push(Found { name, dir: raw[11] & DIRECTORY != 0, cluster: half(20) << 16 | half(26), size });
    }
    Ok(found)
}

/// A name without a long one; `None` if it is not ASCII. Byte 12 says which parts are in lower
/// case (as Windows NT has it).
fn short_name(raw: &[u8]) -> Option<String> {
    let part = |bytes: &[u8], lower: bool| {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii())?.trim_end_matches(' ');
        Some(if lower { text.to_ascii_lowercase() } else { text.to_string() })
    };
    let (stem, ending) = (part(&raw[..8], raw[12] & 0x08 != 0)?, part(&raw[8..11], raw[12] & 0x10 != 0)?);
    Some(if ending.is_empty() { stem } else { format!("{stem}.{ending}") })
}
