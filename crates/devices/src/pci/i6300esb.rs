//! `i6300esb`: the watchdog of the Intel 6300ESB I/O controller hub (data sheet 300641, §16).

use base::clock::{Clock, NANOS, Timer};
use base::{Mutex, Result};
use device::pci::{Identity, PciCore, PciFunction, RegionKind};
use device::{BusKind, Device, Model, Power, Props, ResetKind, Wiring};
use memory::Handler;
use std::any::Any;
use std::sync::{Arc, Weak};

pub static MODEL: Model = Model {
    name: "i6300esb",
    aliases: &[],
    description: "Intel 6300ESB watchdog",
    bus: BusKind::Pci,
    parent: "pci-device",
    properties: &[device::pci::PROPERTIES],
    user_creatable: true,
    hotpluggable: true,
    create,
};

const CONFIG: u16 = 0x60;
const CONFIG_SCALE: u32 = 1 << 2;
const CONFIG_NO_REBOOT: u32 = 1 << 5;
/// What the first stage does: 0 interrupts.
const CONFIG_INTERRUPT: u32 = 3;
const LOCK: u16 = 0x68;
const LOCKED: u32 = 1;
const ENABLED: u32 = 1 << 1;
const FREE_RUN: u32 = 1 << 2;

const RELOAD: u64 = 0x0c;
const RELOAD_NOW: u64 = 1 << 8;
const TIMED_OUT: u64 = 1 << 9;
const PRELOAD_MASK: u32 = 0xf_ffff;
const PCI_CLOCK: u128 = 33_000_000;

pub struct I6300Esb {
    core: Arc<PciCore>,
    watchdog: Arc<Watchdog>,
}

struct Watchdog {
    core: Arc<PciCore>,
    clock: Clock,
    timer: Timer,
    power: Arc<dyn Power>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Ticks of the first and the second stage.
    preload: [u32; 2],
    /// Of the two writes that open a register for one write.
    opened: u8,
    second_stage: bool,
    interrupt: bool,
    timed_out: bool,
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("i6300esb", Identity::new(0x8086, 0x25ab, 0, 0x08_8000), props, wiring)?;
    core.set_interrupt_pin(1);
    core.set_writable(CONFIG, &[0x27, 0]);
    core.set_writable(LOCK, &[7]);
    let watchdog = Arc::new_cyclic(|me: &Weak<Watchdog>| {
        let me = me.clone();
        let expired = move |_| {
            if let Some(watchdog) = me.upgrade() {
                watchdog.expired();
            }
        };
        Watchdog {
            core: core.clone(),
            clock: wiring.clock().clone(),
            timer: wiring.clock().timer(expired),
            power: wiring.services.power.clone(),
            state: Mutex::default(),
        }
    });
    watchdog.reset(false);
    core.add_io_bar(0, RegionKind::Memory32, 16, watchdog.clone());
    Ok(Arc::new(I6300Esb { core, watchdog }))
}

impl Watchdog {
    fn reset(&self, timed_out: bool) {
        self.timer.cancel();
        *self.state.lock() = State { preload: [PRELOAD_MASK; 2], timed_out, ..State::default() };
    }

    fn lock_register(&self) -> u32 {
        self.core.get(LOCK, 1)
    }

    /// Begins a stage.
    fn start(&self, state: &mut State, second: bool) {
        if self.lock_register() & ENABLED == 0 {
            return;
        }
        state.second_stage = second;
        let shift = if self.core.get(CONFIG, 2) & CONFIG_SCALE == 0 { 15 } else { 5 };
        let ticks = u128::from(state.preload[usize::from(second)]) << shift;
        let nanos = u64::try_from(ticks * u128::from(NANOS) / PCI_CLOCK).unwrap_or(u64::MAX);
        self.timer.arm(self.clock.now().saturating_add(nanos));
    }

    fn expired(&self) {
        let mut state = self.state.lock();
        let config = self.core.get(CONFIG, 2);
        if !state.second_stage {
            if config & CONFIG_INTERRUPT == 0 {
                state.interrupt = true;
                self.core.set_intx(true);
            }
            return self.start(&mut state, true);
        }
        drop(state);
        if config & CONFIG_NO_REBOOT == 0 {
            self.reset(true);
            self.power.watchdog_expired();
        } else if self.lock_register() & FREE_RUN != 0 {
            self.start(&mut self.state.lock(), false);
        }
    }
}

impl Handler for Watchdog {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let state = self.state.lock();
        match offset {
            8 => state.interrupt.into(),
            RELOAD if state.timed_out => TIMED_OUT | 1 << 12,
            _ => 0,
        }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let mut state = self.state.lock();
        match (offset, value, state.opened) {
            (RELOAD, 0x80, 0) => return state.opened = 1,
            (RELOAD, 0x86, 1) => return state.opened = 2,
            (8, ..) if value & 1 != 0 => {
                state.interrupt = false;
                self.core.set_intx(false);
            }
            (0, _, 2) => state.preload[0] = value as u32 & PRELOAD_MASK,
            (4, _, 2) => state.preload[1] = value as u32 & PRELOAD_MASK,
            (RELOAD, _, 2) => {
                if value & TIMED_OUT != 0 {
                    state.timed_out = false;
                }
                if value & RELOAD_NOW != 0 {
                    self.start(&mut state, false);
                }
            }
            _ => {}
        }
        state.opened = 0;
    }

    fn max_access(&self) -> u8 {
        4
    }
}

impl PciFunction for I6300Esb {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        let before = self.watchdog.lock_register();
        self.core.config_write(offset, size, value);
        let after = self.watchdog.lock_register();
        if before & LOCKED != 0 {
            // What is locked stays until the reset.
            self.core.set(LOCK, 1, before);
        } else if after & ENABLED != 0 && before & ENABLED == 0 {
            self.watchdog.start(&mut self.watchdog.state.lock(), false);
        } else if after & ENABLED == 0 {
            self.watchdog.timer.cancel();
        }
    }
}

impl Device for I6300Esb {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, kind: ResetKind) {
        let timed_out = kind == ResetKind::Warm && self.watchdog.state.lock().timed_out;
        self.core.reset();
        self.watchdog.reset(timed_out);
    }
    fn unplug(&self) {
        self.watchdog.timer.cancel();
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
    fn two_stages_then_the_action() {
        let bed = Testbed::new();
        let device = bed.make(&MODEL, PciBus::new("pci.0", false, Box::new(|_, _, _| ())), &[]);
        let function = device.pci().unwrap();
        function.config_write(0x10, 4, 0xfe00_0000);
        function.config_write(4, 2, 2);
        let memory = bed.services.memory.clone();
        let open = |memory: &memory::AddressSpace| {
            memory.store(0xfe00_000c, 2, 0x80);
            memory.store(0xfe00_000c, 2, 0x86);
        };
        // One second a stage, about, as Linux counts.
        for register in [0, 4] {
            open(&memory);
            memory.store(0xfe00_0000 + register, 4, 1 << 10);
        }
        memory.store(0xfe00_0000, 4, 5);
        function.config_write(LOCK, 1, ENABLED);
        let clock = &bed.services.clocks.virtual_;
        clock.advance(900_000_000);
        open(&memory);
        memory.store(0xfe00_000c, 2, RELOAD_NOW);
        clock.advance(1_800_000_000);
        assert_eq!(memory.load(0xfe00_0008, 4), 0);
        clock.advance(2_000_000_000);
        assert_eq!(memory.load(0xfe00_0008, 4), 1, "first stage");
        assert!(bed.recorder.asked.lock().unwrap().is_empty());
        clock.advance(3_000_000_000);
        assert_eq!(*bed.recorder.asked.lock().unwrap(), ["watchdog"]);
        assert_eq!(memory.load(0xfe00_000c, 2) & TIMED_OUT, TIMED_OUT);
        function.config_write(LOCK, 1, ENABLED | LOCKED);
        function.config_write(LOCK, 1, 0);
        assert_eq!(function.config_read(LOCK, 1), ENABLED | LOCKED);
        device.reset(ResetKind::Warm);
        assert_eq!((clock.next_deadline(), function.config_read(LOCK, 1)), (None, 0));
    }
}
