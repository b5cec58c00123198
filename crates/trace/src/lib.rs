//! Named trace points that cost one load and a branch while they are off, log items (`-d`),
//! and the one place where both write to.
//!
//! A crate declares its points and lists them:
//!
//! ```
//! trace::points! {
//!     /// A request was taken from the ring.
//!     pub VIRTIO_BLK_REQUEST = "virtio_blk_request";
//! }
//! trace::trace!(VIRTIO_BLK_REQUEST, "sector {} len {}", 8, 512);
//! let all = trace::Points::new();
//! all.add(POINTS);
//! all.set("virtio_*", true).unwrap();
//! assert!(VIRTIO_BLK_REQUEST.is_on());
//! # all.set("*", false).unwrap();
//! ```
//!
//! The switches and the sink are process-wide; nothing else here is.

#![forbid(unsafe_code)]

mod log;
mod sink;
#[cfg(test)]
mod tests;

pub use log::{ITEMS, Item, Items};
pub use sink::{Sink, set_file, set_timestamps, write_line};

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A trace point.
pub struct Point {
    name: &'static str,
    on: AtomicBool,
}

impl Point {
    pub const fn new(name: &'static str) -> Self {
        Point { name, on: AtomicBool::new(false) }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Writes a line: the name and what the caller tells.
    #[cold]
    pub fn emit(&self, what: fmt::Arguments<'_>) {
        sink::write_line(format_args!("{} {what}", self.name));
    }
}

/// Declares trace points as statics, and `POINTS`, the list of them.
#[macro_export]
macro_rules! points {
    ($($(#[$meta:meta])* $vis:vis $name:ident = $text:literal;)*) => {
        $($(#[$meta])* $vis static $name: $crate::Point = $crate::Point::new($text);)*
        /// The trace points declared here.
        pub static POINTS: &[&$crate::Point] = &[$(&$name),*];
    };
}

/// Writes a line if the point is on: `trace!(POINT, "offset {}", x)`.
#[macro_export]
macro_rules! trace {
    ($point:expr) => { if $point.is_on() { $point.emit(format_args!("")); } };
    ($point:expr, $($arg:tt)*) => { if $point.is_on() { $point.emit(format_args!($($arg)*)); } };
}

/// What a pattern did not match.
#[derive(Debug, PartialEq, Eq)]
pub struct Unknown(pub String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown event \"{}\"", self.0)
    }
}

/// The points that a program knows; clones are the same list.
#[derive(Clone, Default)]
pub struct Points(Arc<Mutex<Vec<&'static Point>>>);

impl Points {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the points of a crate.
    pub fn add(&self, points: &'static [&'static Point]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for point in points {
            if !all.iter().any(|known| std::ptr::eq(*known, *point)) {
                all.push(point);
            }
        }
    }

    /// Makes a point for something that is known only while the program runs (it stays for ever).
    pub fn make(&self, name: String) -> &'static Point {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|point| point.name == name) {
            return known;
        }
        let point: &'static Point = Box::leak(Box::new(Point::new(Box::leak(name.into_boxed_str()))));
        all.push(point);
        point
    }

    /// Points whose names match `pattern` (`*`, `?`). A plain name must exist.
    pub fn matching(&self, pattern: &str) -> Result<Vec<&'static Point>, Unknown> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found: Vec<_> = all.iter().copied().filter(|point| matches(pattern, point.name)).collect();
        match found.is_empty() && !is_pattern(pattern) {
            true => Err(Unknown(pattern.to_string())),
            false => Ok(found),
        }
    }

    /// Switches the points that match.
    pub fn set(&self, pattern: &str, on: bool) -> Result<(), Unknown> {
        for point in self.matching(pattern)? {
            point.on.store(on, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether `name` matches a pattern of `*` (any text) and `?` (any one byte).
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}
