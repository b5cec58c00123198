//! `pvpanic-pci`: the panic notification as a PCI function.

use crate::pc::debug::PvPanic;
use base::Result;
use device::pci::{Identity, PciCore, PciFunction, RegionKind};
use device::{BusKind, Device, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use std::any::Any;
use std::sync::Arc;

const PROPERTIES: &[Property] =
    &[Property::new("events", PropertyKind::U8, "3", "Supported events: 1 panicked, 2 crash kernel loaded")];

pub static MODEL: Model = Model {
    name: "pvpanic-pci",
    aliases: &[],
    description: "Guest crash notification",
    bus: BusKind::Pci,
    parent: "pci-device",
    properties: &[PROPERTIES, device::pci::PROPERTIES],
    user_creatable: true,
    hotpluggable: true,
    create,
};

struct PvPanicPci {
    core: Arc<PciCore>,
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("pvpanic-pci", Identity::new(0x1b36, 0x0011, 1, 0x08_8000), props, wiring)?;
    let panic = PvPanic::new(wiring.services.power.clone(), props.u64("events") as u8);
    core.add_io_bar(0, RegionKind::Memory32, 16, panic.register());
    Ok(Arc::new(PvPanicPci { core }))
}

impl PciFunction for PvPanicPci {
    fn core(&self) -> &PciCore {
        &self.core
    }
}

impl Device for PvPanicPci {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
    }
    fn unplug(&self) {
        self.core.unplug();
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::Testbed;
    use device::pci::PciBus;

    #[test]
    fn tells_of_panics() {
        let bed = Testbed::new();
        let bus = PciBus::new("pci.0", false, Box::new(|_, _, _| ()));
        let device = bed.make(&MODEL, bus, &[("events", "1")]);
        let function = device.pci().unwrap();
        function.config_write(0x10, 4, 0xfe00_0000);
        function.config_write(4, 2, 2);
        assert_eq!(bed.services.memory.load(0xfe00_0000, 1), 1);
        bed.services.memory.store(0xfe00_0000, 1, 2);
        assert!(bed.recorder.asked.lock().unwrap().is_empty());
        bed.services.memory.store(0xfe00_0000, 1, 1);
        assert_eq!(*bed.recorder.asked.lock().unwrap(), ["panicked"]);
    }
}
