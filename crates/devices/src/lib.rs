//! Device models, one folder a family; each family lists its [`Model`]s.
//!
//! A board makes its fixed devices through the typed constructors; everything a user may
//! create comes from [`models`].

#![forbid(unsafe_code)]

pub mod pc;
pub mod pci;
mod sg;
pub mod storage;
pub mod virtio;

use device::Model;

/// Every model of this crate, in the order `-device help` groups them.
pub fn models() -> Vec<&'static Model> {
    [pc::models(), pci::models(), storage::models(), virtio::models()].concat()
}

#[cfg(test)]
mod testbed;
