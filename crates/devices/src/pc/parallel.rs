//! PC parallel port (IEEE 1284 compatibility mode), `isa-parallel`.

use super::range::{byte_range, isa_model};
use base::rank::ranks;
use base::{Mutex, bail};
use chardev::{Event, FrontEnd, Port};
use device::{Device, IrqLine, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use memory::AddressSpace;
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub static MODEL: Model = isa_model("isa-parallel", "Parallel port", &[PROPERTIES], create);

static PROPERTIES: &[Property] = &[
    Property::new("index", PropertyKind::U32, "4294967295", "Port number 0-2 (LPT1-LPT3)"),
    Property::new("iobase", PropertyKind::U32, "4294967295", "First I/O port"),
    Property::new("irq", PropertyKind::U32, "7", "Interrupt"),
    Property::unset("chardev", PropertyKind::Chardev, "Character device"),
];

/// First I/O ports of LPT1 to LPT3.
pub const ISA_PORTS: [u16; 3] = [0x378, 0x278, 0x3bc];

mod status {
    pub const NOT_BUSY: u8 = 0x80;
    pub const NOT_ACK: u8 = 0x40;
    pub const ONLINE: u8 = 0x10;
    pub const NOT_ERROR: u8 = 8;
    pub const READY: u8 = NOT_BUSY | NOT_ACK | ONLINE | NOT_ERROR;
}

mod control {
    pub const STROBE: u8 = 1;
    pub const NOT_INIT: u8 = 4;
    pub const SELECT: u8 = 8;
    pub const IRQ: u8 = 0x10;
    pub const INPUT: u8 = 0x20;
}

struct State {
    data: u8,
    status: u8,
    control: u8,
    /// A byte the character device has not taken: the printer is busy.
    waiting: Option<u8>,
}

pub struct Parallel {
    state: Mutex<State>,
    port: Option<Port>,
    irq: IrqLine,
}

impl Parallel {
    pub fn new(irq: IrqLine, port: Option<Port>) -> Arc<Self> {
        let state = State {
            data: 0xff,
            status: status::READY,
            control: control::SELECT | control::NOT_INIT,
            waiting: None,
        };
        let device =
            Arc::new(Parallel { state: Mutex::ranked(ranks::DEVICE, state), port: port.clone(), irq });
        if let Some(port) = port {
            port.connect(&device);
        }
        device
    }

    pub fn map(self: &Arc<Self>, ports: &AddressSpace, iobase: u16) {
        let handler = byte_range(self, |d, at, _| d.read(at).into(), |d, at, _, v| d.write(at, v as u8));
        ports.edit(|edit| edit.io("parallel", iobase.into(), 3, handler));
    }

    fn read(&self, offset: u64) -> u8 {
        let mut state = self.state.lock();
        match offset {
            0 if state.control & control::INPUT != 0 => 0xff,
            0 => state.data,
            1 => {
                let value = state.status;
                // The acknowledge pulse is over once it was seen.
                if state.waiting.is_none() {
                    state.status = status::READY;
                    self.irq.lower();
                }
                value
            }
            _ => state.control | 0xc0,
        }
    }

    fn write(&self, offset: u64, value: u8) {
        let mut state = self.state.lock();
        match offset {
            0 => state.data = value,
            2 => {
                let value = value & 0x3f;
                let before = std::mem::replace(&mut state.control, value);
                if value & control::NOT_INIT == 0 {
                    state.status = status::READY;
                    state.waiting = None;
                } else if before & control::STROBE == 0
                    && value & control::STROBE != 0
                    && value & control::SELECT != 0
                    && state.waiting.is_none()
                {
                    state.waiting = Some(state.data);
                    self.send(&mut state);
                }
                if value & control::IRQ == 0 {
                    self.irq.lower();
                }
            }
            _ => {}
        }
    }

    /// Gives the latched byte to the character device and acknowledges it.
    fn send(&self, state: &mut State) {
        let Some(byte) = state.waiting else { return };
        if self.port.as_ref().is_some_and(|port| port.write(&[byte]) == 0) {
            state.status &= !status::NOT_BUSY;
            return;
        }
        state.waiting = None;
        state.status = status::READY & !status::NOT_ACK;
        if state.control & control::IRQ != 0 {
            self.irq.raise();
        }
    }
}

impl FrontEnd for Parallel {
    fn can_receive(&self) -> usize {
        usize::MAX
    }
    /// A printer does not send.
    fn receive(&self, _: &[u8], _: Vec<OwnedFd>) {}
    fn event(&self, _: Event) {}
    fn writable(&self) {
        self.send(&mut self.state.lock());
    }
}

impl Device for Parallel {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _: ResetKind) {
        let mut state = self.state.lock();
        *state = State {
            data: 0xff,
            status: status::READY,
            control: control::SELECT | control::NOT_INIT,
            waiting: None,
        };
        self.irq.lower();
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> base::Result<Arc<dyn Device>> {
    let given = |name| props.opt_u64(name).filter(|&value| value != u64::from(u32::MAX));
    let Some(port) = wiring.chardev(props, "chardev")? else {
        bail!("Can't create parallel device, empty char device");
    };
    let view = wiring.services.ports.snapshot();
    let index = match given("index") {
        Some(index) => index as usize,
        None if given("iobase").is_some() => 0,
        None => ISA_PORTS.iter().position(|&at| view.find(at.into()).is_none()).unwrap_or(3),
    };
    let Some(&iobase) = ISA_PORTS.get(index) else {
        bail!("Max. supported number of parallel ports is {}.", ISA_PORTS.len());
    };
    let iobase = given("iobase").unwrap_or(iobase.into());
    let irq = props.u64("irq");
    if iobase > 0xfffd {
        bail!("isa-parallel: I/O port 0x{iobase:x} is out of range");
    }
    if irq > 15 {
        bail!("isa-parallel: there is no ISA interrupt {irq}");
    }
    let device = Parallel::new(wiring.irq(irq as usize), Some(port));
    device.map(&wiring.services.ports, iobase as u16);
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::Testbed;

    #[test]
    fn strobe_acknowledges_and_interrupts() {
        let bed = Testbed::new();
        let device = Parallel::new(bed.services.irqs[7].clone(), None);
        device.map(&bed.services.ports, 0x378);
        let ports = &bed.services.ports;
        let irq = || bed.levels.lock().unwrap()[7];
        assert_eq!(ports.load(0x379, 1), 0xd8);
        ports.store(0x378, 1, 0x41);
        ports.store(0x37a, 1, 0x1c);
        ports.store(0x37a, 1, 0x1d);
        assert!(irq());
        assert_eq!(ports.load(0x379, 1), 0x98);
        assert!(!irq());
        assert_eq!(ports.load(0x379, 1), 0xd8);
        assert_eq!(ports.load(0x378, 1), 0x41);
        assert_eq!(ports.load(0x37a, 1), 0xdd);
    }
}
