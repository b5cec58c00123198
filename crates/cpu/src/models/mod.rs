//! CPU models: what CPUID shows for `-cpu MODEL,+feature,-feature,key=value`.
//!
//! - [`feature`]: the feature words with the names users, QMP and libvirt know.
//! - [`catalog`]: the named models and their versions.
//! - [`Request`]: a parsed `-cpu` argument; [`Request::resolve`] meets it with an [`Offer`]
//!   (what an engine can do) and gives a [`CpuModel`].
//! - [`CpuModel::table`]: the CPUID leaves of one vCPU.

pub mod catalog;
pub mod feature;
mod leaves;
mod request;
mod requirement;
mod software;

pub use catalog::{Definition, definitions};
pub use feature::{Features, Word};
pub use leaves::Topology;
pub use request::{CpuModel, Property, Request};
pub use requirement::executes;
pub use software::software_features;

/// Vendor, family and brand of the machine this runs on, for the model `host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Twelve characters.
    pub vendor: String,
    pub family: u32,
    pub model: u32,
    pub stepping: u32,
    pub brand: String,
}

/// What an engine can give a guest.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Name for messages: `interpreter`, `KVM` ...
    pub engine: String,
    pub features: Features,
    /// The host processor, if the engine runs on it (model `host`).
    pub host: Option<Identity>,
    /// Physical address bits for models that do not say (software: 40).
    pub phys_bits: u32,
}

#[cfg(test)]
mod tests;
