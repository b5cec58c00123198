use base::Mutex;
use memory::Handler;
use std::sync::Arc;

const INTERRUPT_ENABLE: u8 = 1;
const START: u8 = 1 << 6;
const DEVICE_ERROR: u8 = 1 << 2;
/// Status bits that software clears by writing one.
const CLEARABLE: u8 = 0x1e;

/// SMBus 2.0 host controller registers (PIIX4 §11.1, ICH9 §18.2) of a bus without devices:
/// every transaction ends in a device error, as on the real bus when nobody acknowledges.
pub struct SmbusHost {
    registers: Mutex<Registers>,
    /// Level of the controller's interrupt.
    irq: Box<dyn Fn(bool) + Send + Sync>,
}

#[derive(Default)]
struct Registers {
    status: u8,
    control: u8,
    command: u8,
    address: u8,
    data: [u8; 2],
    block: [u8; 32],
    index: usize,
}

impl SmbusHost {
    pub fn new(irq: impl Fn(bool) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(SmbusHost { registers: Mutex::default(), irq: Box::new(irq) })
    }

    pub fn reset(&self) {
        let mut regs = self.registers.lock();
        *regs = Registers::default();
        (self.irq)(false);
    }
}

impl Handler for SmbusHost {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let mut regs = self.registers.lock();
        let value = match offset {
            0 => regs.status,
            2 => {
                regs.index = 0;
                regs.control & !START
            }
            3 => regs.command,
            4 => regs.address,
            5 | 6 => regs.data[offset as usize - 5],
            7 => {
                let value = regs.block[regs.index];
                regs.index = (regs.index + 1) % regs.block.len();
                value
            }
            _ => 0,
        };
        value.into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let mut regs = self.registers.lock();
        let value = value as u8;
        match offset {
            0 => regs.status &= !(value & CLEARABLE),
            2 => {
                regs.control = value;
                if value & START != 0 {
                    regs.status |= DEVICE_ERROR;
                }
            }
            3 => regs.command = value,
            4 => regs.address = value,
            5 | 6 => regs.data[offset as usize - 5] = value,
            7 => {
                let index = regs.index;
                regs.block[index] = value;
                regs.index = (index + 1) % regs.block.len();
            }
            _ => {}
        }
        (self.irq)(regs.status & CLEARABLE != 0 && regs.control & INTERRUPT_ENABLE != 0);
    }

    fn max_access(&self) -> u8 {
        1
    }
}
