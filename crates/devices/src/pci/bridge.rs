//! Bridges to further buses: PCI Express root ports and the conventional PCI bridge.

use super::slot::Slot;
use base::{Mutex, Result};
use device::pci::{Identity, IntxRoute, PciBus, PciCore, PciFunction};
use device::{Bus, BusKind, Device, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use std::any::Any;
use std::sync::Arc;

const PORT: &[Property] = &[
    Property::new("port", PropertyKind::U8, "0", "Number of the port"),
    Property::new("chassis", PropertyKind::U8, "0", "Number of the chassis"),
    Property::new("slot", PropertyKind::U16, "0", "Physical number of the slot"),
    Property::new("hotplug", PropertyKind::Bool, "on", "Devices can come and go"),
];
const CHASSIS: &[Property] =
    &[Property::new("chassis_nr", PropertyKind::U8, "0", "Number of the chassis, from 1")];

const fn model(
    name: &'static str,
    description: &'static str,
    properties: &'static [&'static [Property]],
    create: fn(&Props, &mut Wiring<'_>) -> Result<Arc<dyn Device>>,
) -> Model {
    Model {
        name,
        aliases: &[],
        description,
        bus: BusKind::Pci,
        parent: "pci-bridge",
        properties,
        user_creatable: true,
        hotpluggable: false,
        create,
    }
}

pub static ROOT_PORT: Model =
    model("pcie-root-port", "PCI Express Root Port", &[PORT, device::pci::PROPERTIES], |props, wiring| {
        create_port(&ROOT_PORT, Identity::new(0x1b36, 0x000c, 0, 0x06_0400), props, wiring)
    });
pub static IOH3420: Model =
    model("ioh3420", "Intel IOH device id 3420 PCIE Root Port", &[PORT, device::pci::PROPERTIES], |p, w| {
        create_port(&IOH3420, Identity::new(0x8086, 0x3420, 2, 0x06_0400), p, w)
    });
pub static PCI_BRIDGE: Model =
    model("pci-bridge", "Standard PCI Bridge", &[CHASSIS, device::pci::PROPERTIES], create_bridge);

const BRIDGE_CONTROL: u16 = 0x3e;
const BUS_RESET: u32 = 1 << 6;

pub struct Bridge {
    model: &'static Model,
    core: Arc<PciCore>,
    secondary: Arc<PciBus>,
    /// The slot of a port.
    slot: Option<Arc<Slot>>,
}

/// Routes a secondary bus's pins to the bridge's: rotated by slot, ORed (PCI-to-PCI bridge 1.2 §9.1).
fn route_up(parent: Arc<PciBus>, at: u8) -> IntxRoute {
    let high = Mutex::new([0u32; 4]);
    Box::new(move |slot, pin, level| {
        let up = usize::from((pin + slot) & 3);
        let mut high = high.lock();
        high[up] = if level { high[up] + 1 } else { high[up].saturating_sub(1) };
        parent.set_intx(at, up as u8, high[up] > 0);
    })
}

/// A bus behind a bridge has the bridge's very id.
fn bus_name(kind: &str, wiring: &Wiring<'_>) -> String {
    wiring.id.map_or_else(|| wiring.bus_name(kind, 0), str::to_string)
}

fn create_port(
    model: &'static Model,
    identity: Identity,
    props: &Props,
    wiring: &mut Wiring<'_>,
) -> Result<Arc<dyn Device>> {
    if !wiring.pci_bus()?.is_express() {
        base::bail!("Device '{}' can't go on PCI bus", model.name);
    }
    let core = PciCore::bridge(model.name, identity, props, wiring)?;
    core.set_interrupt_pin(1);
    core.add_msi(1)?;
    let at = core.add_express(4)?;
    // A slot is implemented; its number, and the port's in the link capabilities.
    core.init(at + 2, &[0x42, 1]);
    core.init(at + 0x0f, &[props.u64("port") as u8]);
    core.set_writable(at + 0x1c, &[0x1f, 0]);
    let subsystem = [0, 0, 0xf4, 0x1a, 0, 0];
    core.add_capability(0x0d, &subsystem)?;
    let route = route_up(core.bus().clone(), core.address());
    let secondary = PciBus::downstream(&bus_name("pcie", wiring), route);
    let number = (props.u64("slot") as u16, props.bool("hotplug"));
    let slot = Slot::new(&core, at, number, &secondary, wiring.services.power.clone());
    Ok(Arc::new(Bridge { model, core, secondary, slot: Some(slot) }))
}

fn create_bridge(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    if props.u64("chassis_nr") == 0 {
        base::bail!(
            "Bridge chassis not specified. Each bridge is required to be assigned a unique chassis id > 0."
        );
    }
    let core = PciCore::bridge("pci-bridge", Identity::new(0x1b36, 1, 0, 0x06_0400), props, wiring)?;
    let route = route_up(core.bus().clone(), core.address());
    let secondary = PciBus::new(&bus_name("pci", wiring), false, route);
    Ok(Arc::new(Bridge { model: &PCI_BRIDGE, core, secondary, slot: None }))
}

impl PciFunction for Bridge {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn config_read(&self, offset: u16, size: u8) -> u32 {
        if let Some(slot) = &self.slot {
            slot.refresh();
        }
        self.core.config_read(offset, size)
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        let before = self.core.get(BRIDGE_CONTROL, 2);
        let write = || self.core.config_write(offset, size, value);
        match &self.slot {
            Some(slot) => slot.write(offset, size, write),
            None => write(),
        }
        if self.core.get(BRIDGE_CONTROL, 2) & !before & BUS_RESET != 0 {
            for (_, device) in self.secondary.functions() {
                device.reset(ResetKind::Warm);
            }
        }
    }

    fn secondary_bus(&self) -> Option<Arc<PciBus>> {
        Some(self.secondary.clone())
    }
}

impl Device for Bridge {
    fn model(&self) -> &'static Model {
        self.model
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        if let Some(slot) = &self.slot {
            slot.reset();
        }
    }
    fn unplug(&self) {
        self.core.unplug();
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        vec![self.secondary.clone()]
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
