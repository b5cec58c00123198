//! What a user can ask for, as plain data: made by the command line, by QMP and by
//! configuration files alike, and carried out by the crates above.
//!
//! Devices, objects and block nodes stay trees of keys ([`Tree`]) because only the owning
//! crate knows their keys; everything else is typed.

#![forbid(unsafe_code)]

pub mod chardev;
pub mod id;
pub mod invocation;
pub mod machine;
pub mod size;
pub mod socket;

pub use chardev::{Chardev, ChardevKind};
pub use id::{id_wellformed, nearest};
pub use invocation::{Elevate, Invocation, Sandbox};
pub use machine::{Accel, MachineKind, MachineSpec};
pub use socket::SocketAddress;

/// A tree of keys: JSON objects, arrays and scalars.
pub type Tree = serde_json::Map<String, serde_json::Value>;

/// Options that were given as JSON, whose values have types, or as `key=value`, where all are texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub tree: Tree,
    pub typed: bool,
}
