//! Virtio 1.2 devices over PCI.
//!
//! - [`Virtio`]: what a device is to its transport.
//! - [`Link`]: what the transport is to its device: queues and interrupts.
//! - `pci`: the transport, legacy and modern interface.
//! - `queue`: split virtqueues; the guest is hostile, every value is checked.

/// The three models of a device, in `MODELS`: one that leaves the choice of the interfaces,
/// one with both, and one with the modern interface only. `create` gets the model and what
/// its name promises before the usual arguments.
macro_rules! three_models {
    ($name:literal, $alias:literal, $about:literal, [$($properties:expr),*], $create:path) => {
        three_models!(@one GENERIC, $name, &[$alias], $about, concat!($name, "-base"),
            [$($properties,)* super::pci::CHOICE], Generic, $create);
        three_models!(@one TRANSITIONAL, concat!($name, "-transitional"), &[], $about, concat!($name, "-base"),
            [$($properties),*], Transitional, $create);
        three_models!(@one NON_TRANSITIONAL, concat!($name, "-non-transitional"), &[], $about,
            concat!($name, "-base"), [$($properties),*], NonTransitional, $create);
        pub static MODELS: [&device::Model; 3] = [&GENERIC, &TRANSITIONAL, &NON_TRANSITIONAL];
    };
    (@one $id:ident, $name:expr, $aliases:expr, $about:literal, $parent:expr,
        [$($properties:expr),*], $generation:ident, $create:path) => {
        static $id: device::Model = device::Model {
            name: $name,
            aliases: $aliases,
            description: $about,
            bus: device::BusKind::Pci,
            parent: $parent,
            properties: &[$($properties,)* super::pci::PROPERTIES, device::pci::PROPERTIES],
            user_creatable: true,
            hotpluggable: true,
            create: |props, wiring| $create(&$id, super::pci::Generation::$generation, props, wiring),
        };
    };
}

mod balloon;
mod blk;
mod link;
mod pci;
mod queue;
mod registers;
mod rng;
mod scsi;
mod serial;
#[cfg(test)]
mod tests;

pub use balloon::Balloon;
pub use link::Link;
pub use pci::VirtioPci;
pub use queue::Chain;

use device::{Bus, Model, ResetKind};
use serde_json::Value;
use std::any::Any;
use std::sync::Arc;

/// The models of this folder.
pub fn models() -> Vec<&'static Model> {
    [
        &blk::MODELS[..],
        &balloon::MODELS,
        &rng::MODELS,
        &scsi::MODELS,
        &serial::MODELS,
        &[&serial::PORT, &serial::CONSOLE],
    ]
    .concat()
}

/// Feature bits of the transport (virtio 1.2 §6).
pub mod features {
    pub const ANY_LAYOUT: u64 = 1 << 27;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// A virtio device behind some transport. Called from vCPU threads; must not block them.
pub trait Virtio: Send + Sync + Any {
    /// Device number (virtio 1.2 §5).
    fn number(&self) -> u16;
    /// Largest size of each queue.
    fn queue_sizes(&self) -> Vec<u16>;
    /// Offered features beside the transport's.
    fn features(&self) -> u64;
    /// The configuration space as it is now, always of one length.
    fn config(&self) -> Vec<u8>;
    /// A write into the configuration space, within its length.
    fn write_config(&self, _offset: usize, _bytes: &[u8]) {}
    /// Called once, before anything else.
    fn connect(&self, link: &Arc<Link>);
    /// The driver is ready, with these features accepted.
    fn start(&self, _features: u64) {}
    /// The driver made buffers available.
    fn notify(&self, queue: usize);
    /// Back to the state before `start`; requests in flight are waited for or forgotten.
    fn reset(&self);
    fn pause(&self) {}
    fn resume(&self) {}
    /// The machine itself is reset.
    fn machine_reset(&self, _kind: ResetKind) {}
    fn unplug(&self) {}
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        Vec::new()
    }
    /// See [`device::Device::dynamic_property`].
    fn dynamic_property(&self, _name: &str) -> Option<Value> {
        None
    }
    fn dynamic_properties(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
    fn set_dynamic_property(&self, _name: &str, _value: &Value) -> Option<base::Result<()>> {
        None
    }
    fn as_any(&self) -> &dyn Any;
}
