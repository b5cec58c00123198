use super::pam::Pam;
use base::Result;
use device::pci::{Identity, PciCore, PciFunction};
use device::{Device, Model, Props, ResetKind, Wiring};
use std::any::Any;
use std::sync::Arc;

/// i440FX host bridge (Intel 82441FX PMC): shadowing of low memory.
pub static MODEL: Model = super::chip("i440FX", "Host bridge", &[device::pci::PROPERTIES], create);

const PAM0: u16 = 0x59;
const SMRAM: u16 = 0x72;

pub struct I440fx {
    core: Arc<PciCore>,
    pam: Pam,
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("i440FX", Identity::new(0x8086, 0x1237, 2, 0x06_0000), props, wiring)?;
    core.set_writable(PAM0, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
    core.init(SMRAM, &[2]);
    Ok(Arc::new(I440fx { core, pam: Pam::new(wiring.services) }))
}

impl I440fx {
    fn update(&self) {
        let registers = std::array::from_fn(|i| self.core.get(PAM0 + i as u16, 1) as u8);
        self.pam.update(registers, self.core.get(SMRAM, 1) as u8);
    }
}

impl PciFunction for I440fx {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.core.config_write(offset, size, value);
        let end = offset + u16::from(size);
        if (offset..end).contains(&SMRAM) {
            let old = self.core.get(SMRAM, 1) as u8;
            let new = (value >> ((SMRAM - offset) * 8)) as u8;
            self.core.set(SMRAM, 1, Pam::smram_after(old, new).into());
            self.update();
        }
        if offset < PAM0 + 7 && end > PAM0 {
            self.update();
        }
    }
}

impl Device for I440fx {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.update();
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
