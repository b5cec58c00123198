//! The object tree: every device, bus, back end, CPU and the machine itself under a path,
//! with typed properties; and the registry of types.

#![forbid(unsafe_code)]

mod tree;
mod types;

pub use tree::{Container, Object, PropertyInfo, Tree};
pub use types::{TypeInfo, Types};

#[cfg(test)]
mod tests;
