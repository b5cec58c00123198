//! Ground floor: what every other crate may use and what knows nobody.
//!
//! - [`Failure`]: the one error type that can reach a user, with its class and its text.
//! - [`clock`]: clocks that can be stopped or driven by hand, and timers on them.
//! - [`fd`]: inherited descriptors and descriptor sets.
//! - [`rank`]: a non-poisoning mutex whose lock order is checked in debug builds.
//! - [`quotes`]: single quotes in JSON.
//! - [`notice`]: the never-blocking queue from lower layers to the control plane.

#![deny(unsafe_code)]

pub mod clock;
pub mod failure;
pub mod fd;
pub mod notice;
pub mod ofd;
pub mod quotes;
pub mod rank;

/// The name the program was called by, without its directory: how messages begin.
pub fn program() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "ryokan".to_string())
}

pub use failure::{Class, Failure, Result};
pub use rank::{Mutex, MutexGuard};

/// One kibibyte, mebibyte and gibibyte in bytes.
pub const KIB: u64 = 1 << 10;
/// See [`KIB`].
pub const MIB: u64 = 1 << 20;
/// See [`KIB`].
pub const GIB: u64 = 1 << 30;
