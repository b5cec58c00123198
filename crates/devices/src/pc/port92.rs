//! System control port A, 0x92: address line 20 and fast reset.

use super::range::{board_model, byte_range};
use device::{BusKind, Device, Model, Power, ResetCause, ResetKind};
use memory::AddressSpace;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

pub static MODEL: Model = board_model("port92", "System control port A", BusKind::Isa, "isa-device");

const RESET: u8 = 1;
const A20: u8 = 2;

pub struct Port92 {
    value: AtomicU8,
    power: Arc<dyn Power>,
}

impl Port92 {
    pub fn new(power: Arc<dyn Power>) -> Arc<Self> {
        Arc::new(Port92 { value: AtomicU8::new(0), power })
    }

    pub fn map(self: &Arc<Self>, ports: &AddressSpace) {
        let handler = byte_range(self, |d, _, _| d.read().into(), |d, _, _, v| d.write(v as u8));
        ports.edit(|edit| edit.io("port92", 0x92, 1, handler));
    }

    /// Bit 1 shows the address line as it is, whoever set it.
    fn read(&self) -> u8 {
        let a20 = if self.power.a20() { A20 } else { 0 };
        self.value.load(Ordering::Acquire) & !A20 | a20
    }

    fn write(&self, value: u8) {
        let before = self.value.swap(value, Ordering::AcqRel);
        self.power.set_a20(value & A20 != 0);
        if value & RESET != 0 && before & RESET == 0 {
            self.power.request_reset(ResetCause::Guest);
        }
    }
}

impl Device for Port92 {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _: ResetKind) {
        self.value.store(0, Ordering::Release);
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
