use super::IsaBus;
use super::pirq::Router;
use base::Result;
use device::pci::{Identity, PciCore, PciFunction};
use device::{Bus, Device, Model, Props, ResetKind, Wiring};
use std::any::Any;
use std::sync::Arc;

/// PIIX3 PCI-to-ISA bridge (Intel 82371SB): owner of `isa.0`, router of the PCI interrupts.
pub static MODEL: Model = super::chip("PIIX3", "PCI-to-ISA bridge", &[device::pci::PROPERTIES], create);

const PIRQ_ROUTE: u16 = 0x60;

pub struct Piix3 {
    core: Arc<PciCore>,
    isa: Arc<IsaBus>,
    router: Arc<Router<4>>,
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("PIIX3", Identity::new(0x8086, 0x7000, 0, 0x06_0100), props, wiring)?;
    core.init(0x04, &[7, 0, 0, 2]);
    for (offset, value) in [
        (0x4c, &[0x4d, 0x03, 0, 0][..]),
        (PIRQ_ROUTE, &[0x80; 4]),
        (0x69, &[2]),
        (0x70, &[0x80]),
        (0x76, &[0x0c, 0x0c, 2]),
        (0xa0, &[8]),
        (0xa8, &[0x0f]),
    ] {
        core.init(offset, value);
        core.set_writable(offset, &vec![0xff; value.len()]);
    }
    core.set_writable(PIRQ_ROUTE, &[0x8f; 4]);
    core.set_writable(0x82, &[0xff]);
    let router = Arc::new(Router::<4>::new(wiring.services.irqs.clone(), None));
    let route = router.clone();
    core.bus().set_route(Box::new(move |slot, pin, level| {
        // Boards of this chipset rotate the pins by slot, slot 1 being unrotated.
        route.set_wire((usize::from(pin) + usize::from(slot) + 3) & 3, level);
    }));
    Ok(Arc::new(Piix3 { core, isa: IsaBus::new(&wiring.bus_name("isa", 0)), router }))
}

impl Piix3 {
    fn update(&self) {
        self.router.set_routes(std::array::from_fn(|i| self.core.get(PIRQ_ROUTE + i as u16, 1) as u8));
    }
}

impl PciFunction for Piix3 {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.core.config_write(offset, size, value);
        if offset < PIRQ_ROUTE + 4 && offset + u16::from(size) > PIRQ_ROUTE {
            self.update();
        }
    }
}

impl Device for Piix3 {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.update();
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        vec![self.isa.clone()]
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
