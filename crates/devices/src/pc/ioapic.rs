//! I/O APIC (Intel 82093AA data sheet; version 0x20 adds the EOI register).

use super::apic::{ApicBus, DeliveryMode, Interrupt};
use super::range::{Range, board_model};
use base::Mutex;
use base::rank::ranks;
use device::{BusKind, Device, IrqLine, Model, ResetKind};
use memory::AddressSpace;
use std::any::Any;
use std::fmt::Write;
use std::sync::{Arc, OnceLock, Weak};

pub static MODEL: Model = board_model("ioapic", "I/O APIC", BusKind::System, "ioapic-common");

/// Inputs of the chip.
pub const PINS: usize = 24;
/// Where a PC has its first I/O APIC.
pub const BASE: u64 = 0xfec0_0000;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const ACTIVE_LOW: u64 = 1 << 13;
const LOGICAL: u64 = 1 << 11;
const READ_ONLY: u64 = REMOTE_IRR | 1 << 12;

struct State {
    select: u8,
    id: u8,
    entries: [u64; PINS],
    /// Input levels.
    lines: u32,
    counts: [u64; PINS],
}

/// One I/O APIC.
pub struct IoApic {
    state: Mutex<State>,
    bus: Weak<ApicBus>,
    version: u8,
    watch: OnceLock<InputWatch>,
}

/// Is told of each change of an input: (input, level).
pub type InputWatch = Box<dyn Fn(usize, bool) + Send + Sync>;

impl IoApic {
    /// `version` is 0x11 (82093AA) or 0x20 (with EOI register). Joins the bus.
    pub fn new(bus: &Arc<ApicBus>, version: u8) -> Arc<Self> {
        let state = State { select: 0, id: 0, entries: [MASKED; PINS], lines: 0, counts: [0; PINS] };
        let ioapic = Arc::new(IoApic {
            state: Mutex::ranked(ranks::INTERRUPT, state),
            bus: Arc::downgrade(bus),
            version,
            watch: OnceLock::new(),
        });
        bus.add_ioapic(ioapic.clone());
        ioapic
    }

    /// 4 KiB of memory at `base`.
    pub fn map(self: &Arc<Self>, memory: &AddressSpace, base: u64) {
        let handler = Range {
            device: self.clone(),
            read: |d, offset, _| d.read(offset),
            write: |d, offset, _, value| d.write(offset, value as u32),
            max: 4,
            min: 4,
        };
        memory.edit(|edit| edit.io("ioapic", base, 0x1000, Arc::new(handler)));
    }

    /// Sets the level of an input (a global system interrupt of this chip).
    pub fn set_irq(&self, pin: usize, level: bool) {
        if pin >= PINS {
            return;
        }
        let mut state = self.state.lock();
        let bit = 1 << pin;
        let was = state.lines & bit != 0;
        state.lines = if level { state.lines | bit } else { state.lines & !bit };
        if level && !was {
            state.counts[pin] += 1;
        }
        // Edges on masked inputs are ignored; levels wait.
        let edge = state.entries[pin] & LEVEL == 0;
        if level && (!edge || !was) {
            self.service(&mut state, pin);
        }
        drop(state);
        if level != was
            && let Some(watch) = self.watch.get()
        {
            watch(pin, level);
        }
    }

    /// Watches the inputs (the qtest protocol); `false` if somebody does already.
    pub fn watch(&self, watch: InputWatch) -> bool {
        self.watch.set(watch).is_ok()
    }

    pub fn line(self: &Arc<Self>, pin: usize) -> IrqLine {
        let ioapic = self.clone();
        IrqLine::new(move |level| ioapic.set_irq(pin, level))
    }

    /// Whether the last edge of an input still waits at a processor.
    pub fn is_pending(&self, pin: usize) -> bool {
        let entry = self.state.lock().entries.get(pin).copied().unwrap_or(MASKED);
        entry & MASKED == 0 && self.bus.upgrade().is_some_and(|bus| bus.is_requested(entry as u8))
    }

    /// A processor has ended a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.state.lock();
        for pin in 0..PINS {
            let entry = state.entries[pin];
            if entry as u8 == vector && entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR {
                state.entries[pin] &= !REMOTE_IRR;
                if state.lines & 1 << pin != 0 {
                    self.service(&mut state, pin);
                }
            }
        }
    }

    /// Sends the interrupt of an active input unless it is masked or in service. The lock
    /// is held: local APICs do not call back while accepting.
    fn service(&self, state: &mut State, pin: usize) {
        let entry = state.entries[pin];
        let level = entry & LEVEL != 0;
        if entry & MASKED != 0 || (level && entry & REMOTE_IRR != 0) {
            return;
        }
        let (Some(mode), Some(bus)) = (DeliveryMode::from_bits((entry >> 8) as u32), self.bus.upgrade())
        else {
            return;
        };
        // SMI, NMI, INIT and ExtINT are always edges.
        let level = level && matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if level {
            state.entries[pin] |= REMOTE_IRR;
        }
        let destination = (entry >> 56) as u8;
        bus.deliver(Interrupt::from_narrow(mode, entry as u8, level, destination, entry & LOGICAL != 0));
    }

    fn read(&self, offset: u64) -> u64 {
        let state = self.state.lock();
        match offset & 0xff {
            0 => state.select.into(),
            0x10 => self.register(&state).into(),
            _ => 0,
        }
    }

    fn register(&self, state: &State) -> u32 {
        match state.select {
            0 | 2 => u32::from(state.id) << 24,
            1 => u32::from(self.version) | (PINS as u32 - 1) << 16,
            select @ 0x10.. if usize::from(select - 0x10) < PINS * 2 => {
                let entry = state.entries[usize::from(select - 0x10) / 2];
                if select & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u64, value: u32) {
        let mut state = self.state.lock();
        match offset & 0xff {
            0 => state.select = value as u8,
            0x10 => self.set_register(&mut state, value),
            0x40 if self.version >= 0x20 => {
                drop(state);
                self.end_of_interrupt(value as u8);
            }
            _ => {}
        }
    }

    fn set_register(&self, state: &mut State, value: u32) {
        match state.select {
            0 => state.id = (value >> 24) as u8 & 0xf,
            select @ 0x10.. if usize::from(select - 0x10) < PINS * 2 => {
                let pin = usize::from(select - 0x10) / 2;
                let old = state.entries[pin];
                let mut new = if select & 1 == 0 {
                    old & !0xffff_ffff | u64::from(value) & !READ_ONLY & 0x1ffff | old & READ_ONLY
                } else {
                    old & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32
                };
                if new & LEVEL == 0 {
                    new &= !REMOTE_IRR;
                }
                state.entries[pin] = new;
                if new & LEVEL != 0 && state.lines & 1 << pin != 0 {
                    self.service(state, pin);
                }
            }
            _ => {}
        }
    }
}

impl Device for IoApic {
    fn model(&self) -> &'static Model {
        &MODEL
    }

    fn reset(&self, _: ResetKind) {
        let mut state = self.state.lock();
        state.select = 0;
        state.id = 0;
        state.entries = [MASKED; PINS];
    }

    fn info(&self, item: &str) -> Option<String> {
        let state = self.state.lock();
        let mut text = String::new();
        match item {
            "pic" => {
                let _ = writeln!(
                    text,
                    "ioapic0: ver=0x{:x} id=0x{:02x} sel=0x{:02x}",
                    self.version, state.id, state.select
                );
                for (pin, &entry) in state.entries.iter().enumerate() {
                    let mode = DeliveryMode::from_bits((entry >> 8) as u32);
                    let _ = writeln!(
                        text,
                        "  pin {pin:<2} 0x{entry:016x} dest={:x} vec={:<3} active-{} {} {} {}{}",
                        entry >> 56,
                        entry as u8,
                        if entry & ACTIVE_LOW != 0 { "lo" } else { "hi" },
                        if entry & LEVEL != 0 { "level" } else { "edge " },
                        if entry & LOGICAL != 0 { "logical " } else { "physical" },
                        mode.map_or("reserved".to_string(), |mode| format!("{mode:?}")),
                        if entry & MASKED != 0 { " masked" } else { "" },
                    );
                }
            }
            "irq" => {
                text.push_str("IRQ statistics for ioapic:\n");
                for (pin, count) in state.counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
                    let _ = writeln!(text, "{pin:2}: {count}");
                }
            }
            _ => return None,
        }
        Some(text)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
#[path = "ioapic_tests.rs"]
mod tests;
