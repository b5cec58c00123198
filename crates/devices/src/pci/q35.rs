use super::pam::Pam;
use super::window::Window;
use base::Result;
use device::pci::{Identity, PciBus, PciCore, PciFunction};
use device::{Device, Model, Props, ResetKind, Wiring};
use memory::Handler;
use std::any::Any;
use std::sync::Arc;

/// Q35 memory controller hub (Intel 3 Series MCH): shadowing of low memory and the memory
/// window of the enhanced configuration mechanism.
pub static MODEL: Model = super::chip("mch", "Host bridge", &[device::pci::PROPERTIES], create);

const PCIEXBAR: u16 = 0x60;
const PAM0: u16 = 0x90;
const SMRAM: u16 = 0x9d;
const ECAM_BASE: u32 = 0xb000_0000;
const ECAM_SIZE: u64 = 256 << 20;

pub struct Mch {
    core: Arc<PciCore>,
    pam: Pam,
    ecam: Window,
}

/// One 4 KiB page a function (PCI Express base 3.0 §7.2.2).
struct Ecam(Arc<PciBus>);

impl Ecam {
    fn target(&self, offset: u64) -> Option<(Arc<PciBus>, u8, u16)> {
        let bus = self.0.find_bus(0, (offset >> 20) as u8)?;
        Some((bus, (offset >> 12) as u8, (offset & 0xfff) as u16))
    }
}

impl Handler for Ecam {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match self.target(offset) {
            Some((bus, at, register)) => bus.config_read(at, register, size).into(),
            None => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some((bus, at, register)) = self.target(offset) {
            bus.config_write(at, register, size, value as u32);
        }
    }

    fn max_access(&self) -> u8 {
        4
    }
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("mch", Identity::new(0x8086, 0x29c0, 2, 0x06_0000), props, wiring)?;
    core.init(PCIEXBAR, &ECAM_BASE.to_le_bytes());
    core.set_writable(PCIEXBAR, &[0x07, 0, 0, 0xf0, 0xff, 0xff, 0xff, 0xff]);
    core.set_writable(PAM0, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
    core.init(SMRAM, &[2]);
    let services = wiring.services;
    let ecam = Window::memory(services, "pcie-mmcfg-mmio", ECAM_SIZE, Arc::new(Ecam(core.bus().clone())));
    Ok(Arc::new(Mch { core, pam: Pam::new(services), ecam }))
}

impl Mch {
    fn update_pam(&self) {
        let registers = std::array::from_fn(|i| self.core.get(PAM0 + i as u16, 1) as u8);
        self.pam.update(registers, self.core.get(SMRAM, 1) as u8);
    }

    fn update_ecam(&self) {
        let low = self.core.get(PCIEXBAR, 4);
        let base = u64::from(self.core.get(PCIEXBAR + 4, 4)) << 32 | u64::from(low & 0xf000_0000);
        let shown = (low & 1 != 0 && base.checked_add(ECAM_SIZE).is_some()).then_some(base);
        self.ecam.place_sized(shown, ECAM_SIZE >> (low >> 1 & 3).min(2));
    }
}

impl PciFunction for Mch {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.core.config_write(offset, size, value);
        let end = offset + u16::from(size);
        if offset < PCIEXBAR + 8 && end > PCIEXBAR {
            self.update_ecam();
        }
        if (offset..end).contains(&SMRAM) {
            let old = self.core.get(SMRAM, 1) as u8;
            let new = (value >> ((SMRAM - offset) * 8)) as u8;
            self.core.set(SMRAM, 1, Pam::smram_after(old, new).into());
        }
        if offset <= SMRAM && end > PAM0 {
            self.update_pam();
        }
    }
}

impl Device for Mch {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.update_pam();
        self.update_ecam();
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
