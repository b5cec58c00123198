//! What a device model is, and all that it can reach.
//!
//! - [`Device`]: the small trait every model implements (`&self`, its own lock inside).
//! - [`Model`]: the static record by which a model is listed, described and created.
//! - [`Wiring`]: everything a device may touch while it is created and afterwards keeps
//!   handles of: ranges, interrupt lines, DMA, clocks, back ends, power.
//! - [`Bus`] and [`pci`]: where devices sit.

#![forbid(unsafe_code)]

mod entropy;
mod irq;
mod model;
pub mod pci;
mod power;
mod props;
mod wiring;

pub use entropy::{Entropy, EntropySource};
pub use irq::{IrqLine, MsiMessage, MsiSink};
pub use model::{Bus, BusKind, Hotplug, Model};
pub use power::{Notice, Power, ResetCause, ShutdownCause, WatchdogAction};
pub use props::{Property, PropertyKind, Props};
pub use wiring::{Backends, BusNumbers, Clocks, Services, Wiring};

use serde_json::Value;
use std::any::Any;
use std::sync::Arc;

/// Which reset a device goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// Power-on: everything to its documented reset value.
    Cold,
    /// System reset with RAM kept.
    Warm,
}

/// A device model's running instance.
///
/// Methods take `&self`; a device has its own lock, holds it for bookkeeping only, and calls
/// out (interrupt lines, DMA, back ends, other devices) after unlocking where it can.
pub trait Device: Send + Sync + Any {
    /// The record this device was made from.
    fn model(&self) -> &'static Model;

    fn reset(&self, kind: ResetKind);

    /// The machine stops: no more host I/O may be started (timers on the virtual clock stop
    /// by themselves).
    fn pause(&self) {}

    fn resume(&self) {}

    /// Called once before an unplugged device is dropped: ranges unmapped, DMA revoked,
    /// back ends released.
    fn unplug(&self) {}

    /// Buses this device provides (`ide.0`, `pci.1`, `scsi0.0`).
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        Vec::new()
    }

    /// The type of the part of the device that has a place of its own in the object tree,
    /// `virtio-backend` below the device.
    fn inner_type(&self) -> Option<&'static str> {
        None
    }

    /// Properties that change while the device lives (QOM getters beside the static ones).
    fn dynamic_property(&self, _name: &str) -> Option<Value> {
        None
    }

    /// Names and types of [`Device::dynamic_property`].
    fn dynamic_properties(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Sets a property that may change while the device lives; `None`: it has no such one.
    fn set_dynamic_property(&self, _name: &str, _value: &Value) -> Option<base::Result<()>> {
        None
    }

    /// The PCI function, if this is one.
    fn pci(&self) -> Option<&dyn pci::PciFunction> {
        None
    }

    /// Lines for a device-specific `info` item (`info pic`, `info irq`).
    fn info(&self, _item: &str) -> Option<String> {
        None
    }

    fn as_any(&self) -> &dyn Any;
}
