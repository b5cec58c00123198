//! 16550A UART (National Semiconductor PC16550D data sheet), as `isa-serial` and for others.
//!
//! Output goes to the character device at once; while that is blocked, bytes stay in the
//! transmit FIFO and THRE stays clear, so none is lost. A polling guest sees THRE again at
//! once, the THRE *interrupt* is spaced a little so that drivers leave their handlers.

mod state;

use super::range::{byte_range, isa_model};
use base::clock::{Clock, Timer};
use base::rank::ranks;
use base::{Mutex, MutexGuard, bail};
use chardev::{Event, FrontEnd, Params, Port};
use device::{Device, IrqLine, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use memory::{AddressSpace, Handler};
use state::{State, TIMEOUT_CHARS};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

pub static MODEL: Model = isa_model("isa-serial", "16550A serial port", &[PROPERTIES], create);

static PROPERTIES: &[Property] = &[
    Property::new("index", PropertyKind::U32, "4294967295", "Port number 0-3 (COM1-COM4)"),
    Property::new("iobase", PropertyKind::U32, "4294967295", "First I/O port"),
    Property::new("irq", PropertyKind::U32, "4294967295", "Interrupt"),
    Property::unset("chardev", PropertyKind::Chardev, "Character device"),
];

/// First I/O ports and interrupts of COM1 to COM4.
pub const ISA_PORTS: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// Delay of a transmitter-empty interrupt after the write that filled the transmitter.
const TRANSMIT_PACE: u64 = 20_000;

/// What the UART needs of its character device.
pub(crate) trait Wire: Send + Sync {
    fn write(&self, bytes: &[u8]) -> usize;
    fn accept_input(&self);
    fn set_break(&self, on: bool);
    fn set_params(&self, params: Params);
}

impl Wire for Port {
    fn write(&self, bytes: &[u8]) -> usize {
        Port::write(self, bytes)
    }
    fn accept_input(&self) {
        Port::accept_input(self);
    }
    fn set_break(&self, on: bool) {
        Port::set_break(self, on);
    }
    fn set_params(&self, params: Params) {
        Port::set_params(self, params);
    }
}

/// One UART: eight byte registers, an interrupt, a character device.
pub struct Uart {
    state: Mutex<State>,
    wire: Option<Box<dyn Wire>>,
    irq: IrqLine,
    clock: Clock,
    /// Next transmitter-empty interrupt.
    transmit: Timer,
    /// Receive FIFO time-out.
    timeout: Timer,
    model: &'static Model,
}

impl Uart {
    /// `model` is the record of the device it is part of; without a character device all
    /// output vanishes.
    pub fn new(model: &'static Model, clock: &Clock, irq: IrqLine, port: Option<Port>) -> Arc<Self> {
        let uart =
            Uart::with_wire(model, clock, irq, port.clone().map(|port| Box::new(port) as Box<dyn Wire>));
        if let Some(port) = port {
            port.connect(&uart);
        }
        uart
    }

    pub(crate) fn with_wire(
        model: &'static Model,
        clock: &Clock,
        irq: IrqLine,
        wire: Option<Box<dyn Wire>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Uart>| {
            let timer = |fire: fn(&Uart)| {
                let weak = weak.clone();
                clock.timer(move |_| {
                    if let Some(uart) = weak.upgrade() {
                        fire(&uart);
                    }
                })
            };
            Uart {
                state: Mutex::ranked(ranks::DEVICE, State::new()),
                wire,
                irq,
                transmit: timer(|uart| {
                    let mut state = uart.state.lock();
                    state.transmitter_ready();
                    uart.settle(state);
                }),
                timeout: timer(|uart| {
                    let mut state = uart.state.lock();
                    state.receive_timeout();
                    uart.settle(state);
                }),
                clock: clock.clone(),
                model,
            }
        })
    }

    /// The eight registers.
    pub fn handler(self: &Arc<Self>) -> Arc<dyn Handler> {
        byte_range(self, |d, at, _| d.read(at).into(), |d, at, _, v| d.write(at, v as u8))
    }

    pub fn map(self: &Arc<Self>, ports: &AddressSpace, iobase: u16) {
        ports.edit(|edit| edit.io("serial", iobase.into(), 8, self.handler()));
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) {
        let now = self.clock.now();
        if state.wants_pace() {
            state.paced = true;
            self.transmit.arm(now.saturating_add(TRANSMIT_PACE));
        }
        if state.timeout_changed() {
            if state.timeout_wanted() {
                self.timeout.arm(now.saturating_add(state.char_nanos() * TIMEOUT_CHARS));
            } else {
                self.timeout.cancel();
            }
        }
        let level = state.interrupt_id().is_some();
        if state.irq != level {
            state.irq = level;
            self.irq.set(level);
        }
        let resume = state.take_resume();
        drop(state);
        if resume && let Some(wire) = &self.wire {
            wire.accept_input();
        }
    }

    /// Hands the transmit FIFO to the character device as far as that takes it.
    fn pump(&self, state: &mut State) {
        while !state.transmit.is_empty() {
            let (front, _) = state.transmit.as_slices();
            let taken = self.wire.as_ref().map_or(front.len(), |wire| wire.write(front));
            if taken == 0 {
                return;
            }
            state.transmit.drain(..taken);
        }
        state.transmitted();
    }

    fn read(&self, offset: u64) -> u8 {
        let mut state = self.state.lock();
        let value = state.read(offset as u8 & 7);
        self.settle(state);
        value
    }

    fn write(&self, offset: u64, value: u8) {
        let mut state = self.state.lock();
        let (params, sends_break) = (state.params(), state.sends_break());
        state.write(offset as u8 & 7, value);
        if !state.transmit.is_empty() {
            self.pump(&mut state);
        }
        if let Some(wire) = &self.wire {
            if state.params() != params {
                wire.set_params(state.params());
            }
            if state.sends_break() != sends_break {
                wire.set_break(state.sends_break());
            }
        }
        self.settle(state);
    }
}

impl FrontEnd for Uart {
    fn can_receive(&self) -> usize {
        self.state.lock().room()
    }

    fn receive(&self, bytes: &[u8], _fds: Vec<OwnedFd>) {
        let mut state = self.state.lock();
        for &byte in bytes {
            state.receive(byte);
        }
        self.settle(state);
    }

    fn event(&self, event: Event) {
        if event == Event::Break {
            let mut state = self.state.lock();
            state.receive_break();
            self.settle(state);
        }
    }

    fn writable(&self) {
        let mut state = self.state.lock();
        self.pump(&mut state);
        self.settle(state);
    }
}

impl Device for Uart {
    fn model(&self) -> &'static Model {
        self.model
    }

    fn reset(&self, _: ResetKind) {
        let mut state = self.state.lock();
        self.transmit.cancel();
        self.timeout.cancel();
        state.reset();
        self.settle(state);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An `isa-serial` at the given place.
pub fn isa_serial(wiring: &Wiring<'_>, iobase: u16, irq: u8, port: Option<Port>) -> Arc<Uart> {
    let uart = Uart::new(&MODEL, wiring.clock(), wiring.irq(irq.into()), port);
    uart.map(&wiring.services.ports, iobase);
    uart
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> base::Result<Arc<dyn Device>> {
    let given = |name| props.opt_u64(name).filter(|&value| value != u64::from(u32::MAX));
    let Some(port) = wiring.chardev(props, "chardev")? else {
        bail!("Can't create serial device, empty char device");
    };
    let view = wiring.services.ports.snapshot();
    let index = match given("index") {
        Some(index) => index as usize,
        // The first of COM1 to COM4 that is not there yet.
        None if given("iobase").is_some() && given("irq").is_some() => 0,
        None => ISA_PORTS.iter().position(|&(at, _)| view.find(at.into()).is_none()).unwrap_or(4),
    };
    let Some(&(iobase, irq)) = ISA_PORTS.get(index) else {
        bail!("Max. supported number of ISA serial ports is {}.", ISA_PORTS.len());
    };
    let iobase = given("iobase").unwrap_or(iobase.into());
    let irq = given("irq").unwrap_or(irq.into());
    if iobase > 0xfff8 {
        bail!("isa-serial: I/O port 0x{iobase:x} is out of range");
    }
    if irq > 15 {
        bail!("isa-serial: there is no ISA interrupt {irq}");
    }
    Ok(isa_serial(wiring, iobase as u16, irq as u8, Some(port)))
}

#[cfg(test)]
mod tests;
