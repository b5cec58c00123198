//! The two chipsets: i440FX with PIIX3/PIIX4, and Q35 with ICH9.
//!
//! A board makes [`Host::i440fx`] or [`Host::q35`] after its RAM is mapped, then the models
//! of this folder on the host's bus ([`Host::bus`]): `i440FX` at 0, `PIIX3` at 1,
//! `PIIX4_PM` at 1.3; or `mch` at 0, `ICH9-LPC` at 1f.0, `ICH9-SMB` at 1f.3.

mod acpi_hotplug;
mod acpi_pm;
mod bridge;
mod host;
mod i440fx;
mod i6300esb;
mod ich9;
mod isa_bus;
mod pam;
mod piix3;
mod piix4_pm;
mod pirq;
mod pvpanic;
mod q35;
mod slot;
mod smbus;
#[cfg(test)]
mod tests;
mod window;

pub use acpi_pm::{AcpiPm, Layout};
pub use host::Host;
pub use isa_bus::IsaBus;

use device::{Device, Model};
use std::sync::Arc;

/// The models of this folder.
pub fn models() -> Vec<&'static Model> {
    vec![
        &host::I440FX_HOST,
        &host::Q35_HOST,
        &i440fx::MODEL,
        &piix3::MODEL,
        &piix4_pm::MODEL,
        &q35::MODEL,
        &ich9::MODEL,
        &ich9::SMBUS_MODEL,
        &bridge::ROOT_PORT,
        &bridge::IOH3420,
        &bridge::PCI_BRIDGE,
        &i6300esb::MODEL,
        &pvpanic::MODEL,
    ]
}

/// The ACPI power management block of a device that has one (`PIIX4_PM`, `ICH9-LPC`).
pub fn acpi_pm(device: &dyn Device) -> Option<Arc<AcpiPm>> {
    let any = device.as_any();
    any.downcast_ref::<piix4_pm::Piix4Pm>()
        .map(|pm| pm.acpi().clone())
        .or_else(|| any.downcast_ref::<ich9::Ich9Lpc>().map(|lpc| lpc.acpi().clone()))
}

/// A model that the board makes on its PCI bus and `-global` can still reach.
const fn chip(
    name: &'static str,
    description: &'static str,
    properties: &'static [&'static [device::Property]],
    create: fn(&device::Props, &mut device::Wiring<'_>) -> base::Result<Arc<dyn Device>>,
) -> Model {
    Model {
        name,
        aliases: &[],
        description,
        bus: device::BusKind::Pci,
        parent: "pci-device",
        properties,
        user_creatable: false,
        hotpluggable: false,
        create,
    }
}
