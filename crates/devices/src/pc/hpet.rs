//! High precision event timer (IA-PC HPET specification 1.0a): 100 MHz main counter, three
//! or more comparators, legacy replacement routing, optional FSB delivery.

mod comparator;

use super::owed::OwedTicks;
use super::range::{Range, board_model};
use base::clock::{Clock, Timer};
use base::rank::ranks;
use base::{Mutex, MutexGuard};
use comparator::{Comparator, configuration as tn};
use device::{BusKind, Device, IrqLine, Model, MsiMessage, MsiSink, ResetKind};
use memory::AddressSpace;
use std::any::Any;
use std::sync::{Arc, OnceLock, Weak};

pub static MODEL: Model =
    board_model("hpet", "High precision event timer", BusKind::System, "sys-bus-device");

/// Where a PC has it, and the size of its registers.
pub const BASE: u64 = 0xfed0_0000;
pub const SIZE: u64 = 0x400;
/// Length of one count in nanoseconds.
pub const PERIOD: u64 = 10;
/// Comparator interrupts closer than this are merged, in counts.
const MIN_INTERVAL: u64 = 2_000;
/// Nanoseconds after which it is seen whether the guest has taken a tick, while some are owed.
const LOOK: u64 = 1_000_000;
/// Ticks owed to the guest are not counted past this.
const MAX_OWED: u64 = 10_000;

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;
const VENDOR: u64 = 0x8086;

#[derive(Clone, Debug)]
pub struct HpetConfig {
    /// 3 to 32.
    pub comparators: usize,
    /// Comparators can send MSIs.
    pub msi: bool,
    /// The I/O APIC inputs a comparator may be routed to (bit n = input n).
    pub routes: u32,
}

impl Default for HpetConfig {
    fn default() -> Self {
        HpetConfig { comparators: 3, msi: false, routes: 0xff_0104 }
    }
}

struct State {
    configuration: u64,
    status: u64,
    /// Main counter at `since`, or while disabled.
    counter: u64,
    since: u64,
    comparators: Vec<Comparator>,
    /// Ticks of comparator 0 in place of the 8254 that came while the guest had not yet taken
    /// the one before.
    owed: u64,
}

impl State {
    fn now(&self, clock: &Clock) -> u64 {
        if self.configuration & ENABLE != 0 {
            self.counter.wrapping_add(clock.now().saturating_sub(self.since) / PERIOD)
        } else {
            self.counter
        }
    }
}

/// Where the outputs lead.
pub struct HpetLines {
    /// Legacy replacement: IRQ 0 (I/O APIC input 2) and IRQ 8.
    pub legacy: [IrqLine; 2],
    /// Global system interrupts 0-23 for the other routings.
    pub irqs: Arc<[IrqLine]>,
    pub msi: Arc<dyn MsiSink>,
}

type Pending = (Box<dyn Fn() -> bool + Send + Sync>, Arc<OwedTicks>);
type LegacyChanged = Box<dyn Fn(bool) + Send + Sync>;

pub struct Hpet {
    state: Mutex<State>,
    clock: Clock,
    timers: Vec<Timer>,
    lines: HpetLines,
    routes: u32,
    msi: bool,
    legacy_changed: OnceLock<LegacyChanged>,
    pending: OnceLock<Pending>,
}

impl Hpet {
    pub fn new(config: &HpetConfig, clock: &Clock, lines: HpetLines) -> Arc<Self> {
        let count = config.comparators.clamp(3, 32);
        let comparators = (0..count).map(|_| Comparator::new(config.routes, config.msi)).collect();
        let state = State { configuration: 0, status: 0, counter: 0, since: 0, comparators, owed: 0 };
        Arc::new_cyclic(|weak: &Weak<Hpet>| {
            let timer = |index: usize| {
                let weak = weak.clone();
                clock.timer(move |_| {
                    if let Some(hpet) = weak.upgrade() {
                        hpet.fire(index);
                    }
                })
            };
            Hpet {
                state: Mutex::ranked(ranks::DEVICE, state),
                clock: clock.clone(),
                timers: (0..count).map(timer).collect(),
                lines,
                routes: config.routes,
                msi: config.msi,
                legacy_changed: OnceLock::new(),
                pending: OnceLock::new(),
            }
        })
    }

    /// What is told when legacy replacement goes on or off: the 8254 (and the RTC's line)
    /// give way to comparators 0 and 1.
    pub fn on_legacy(&self, change: impl Fn(bool) + Send + Sync + 'static) {
        let _ = self.legacy_changed.set(Box::new(change));
    }

    /// How to learn that the last tick in place of the 8254 was not yet taken by a CPU. Such
    /// ticks are delivered later.
    pub fn set_pending_probe(&self, probe: impl Fn() -> bool + Send + Sync + 'static, owed: Arc<OwedTicks>) {
        let _ = self.pending.set((Box::new(probe), owed));
    }

    /// A processor has taken an interrupt: the next tick that is owed, if that was a tick.
    /// Returns whether more are owed.
    pub fn catch_up(&self) -> bool {
        let busy = self.is_pending();
        let mut state = self.state.lock();
        let now = self.takes_owed(&mut state, 0, busy);
        let more = state.owed > 0;
        if now {
            self.interrupt(state, 0);
        }
        more
    }

    fn is_pending(&self) -> bool {
        self.pending.get().is_some_and(|(pending, _)| pending())
    }

    pub fn map(self: &Arc<Self>, memory: &AddressSpace, base: u64) {
        let handler = Range {
            device: self.clone(),
            read: |d, offset, size| d.read(offset, size),
            write: |d, offset, size, value| d.write(offset, size, value),
            max: 8,
            min: 4,
        };
        memory.edit(|edit| edit.io("hpet", base, SIZE, Arc::new(handler)));
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        let value = self.register(offset & !7 & (SIZE - 1));
        if size >= 8 { value } else { value >> ((offset & 4) * 8) & 0xffff_ffff }
    }

    fn register(&self, offset: u64) -> u64 {
        let state = self.state.lock();
        match offset {
            0 => {
                let last = state.comparators.len() as u64 - 1;
                // Counter of 64 bits, legacy replacement capable, revision 1.
                (PERIOD * 1_000_000) << 32 | VENDOR << 16 | 1 << 15 | 1 << 13 | last << 8 | 1
            }
            0x10 => state.configuration,
            0x20 => state.status,
            0xf0 => state.now(&self.clock),
            0x100.. => match state.comparators.get(((offset - 0x100) / 0x20) as usize) {
                Some(timer) => timer.read(offset & 0x18),
                None => 0,
            },
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let at = offset & !7 & (SIZE - 1);
        let (shift, mask) = if size >= 8 { (0, u64::MAX) } else { ((offset & 4) * 8, 0xffff_ffff) };
        let (mask, value) = (mask << shift, value << shift);
        let mut state = self.state.lock();
        let mut legacy = None;
        match at {
            0x10 => {
                let old = state.configuration;
                let new = (old & !mask | value & mask) & (ENABLE | LEGACY);
                legacy = ((old ^ new) & LEGACY != 0).then_some(new & LEGACY != 0);
                state.owed = 0;
                self.configure(&mut state, new);
            }
            0x20 => {
                // Writing one ends a level interrupt.
                let cleared = state.status & value & mask;
                state.status &= !cleared;
                for index in (0..state.comparators.len()).filter(|index| cleared >> index & 1 != 0) {
                    self.set_line(&state, index, false);
                }
            }
            0xf0 if state.configuration & ENABLE == 0 => {
                state.counter = state.counter & !mask | value & mask;
            }
            0x100.. => {
                let index = ((at - 0x100) / 0x20) as usize;
                if index < state.comparators.len() {
                    state.owed = if index == 0 { 0 } else { state.owed };
                    self.write_timer(&mut state, index, at & 0x18, (mask, value));
                }
            }
            _ => {}
        }
        drop(state);
        if let (Some(on), Some(tell)) = (legacy, self.legacy_changed.get()) {
            tell(on);
        }
    }

    fn configure(&self, state: &mut State, new: u64) {
        let old = state.configuration;
        let now = state.now(&self.clock);
        // A line that is routed elsewhere from now on is not left high.
        if (old ^ new) & (ENABLE | LEGACY) != 0 {
            (0..state.comparators.len()).for_each(|index| self.set_line(state, index, false));
        }
        state.configuration = new;
        if (old ^ new) & ENABLE != 0 {
            state.counter = now;
            state.since = self.clock.now();
            for timer in &mut state.comparators {
                timer.due = None;
                if new & ENABLE != 0 {
                    timer.plan(now, false);
                }
            }
        }
        for index in 0..state.comparators.len() {
            if new & ENABLE != 0 && state.status >> index & 1 != 0 {
                self.set_line(state, index, true);
            }
            self.arm(state, index);
        }
    }

    fn write_timer(&self, state: &mut State, index: usize, register: u64, (mask, value): (u64, u64)) {
        let now = state.now(&self.clock);
        let counts = state.configuration & ENABLE != 0;
        let timer = &mut state.comparators[index];
        match register {
            0 => {
                let was = timer.configuration;
                let new = timer.configure(mask, value, self.routes, self.msi);
                if counts && (was ^ new) & (tn::ENABLE | tn::MODE_32) != 0 {
                    timer.plan(now, false);
                }
                if (was ^ new) & (tn::ENABLE | tn::LEVEL | tn::ROUTE | tn::FSB) != 0
                    && state.status >> index & 1 != 0
                {
                    self.drive(state.configuration, index, was, false);
                    if new & tn::LEVEL == 0 {
                        state.status &= !(1 << index);
                    } else if new & tn::ENABLE != 0 {
                        self.set_line(state, index, true);
                    }
                }
            }
            8 if timer.set_comparator(mask, value) && counts => timer.plan(now, true),
            0x10 => timer.fsb = timer.fsb & !mask | value & mask,
            _ => {}
        }
        self.arm(state, index);
    }

    fn set_line(&self, state: &State, index: usize, level: bool) {
        self.drive(state.configuration, index, state.comparators[index].configuration, level);
    }

    /// Drives the output a comparator is routed to under the given configurations.
    fn drive(&self, general: u64, index: usize, timer: u64, level: bool) {
        if timer & tn::FSB != 0 {
            return;
        }
        let line = if general & LEGACY != 0 && index < 2 {
            Some(&self.lines.legacy[index])
        } else {
            self.lines.irqs.get(comparator::route(timer))
        };
        if let Some(line) = line {
            line.set(level);
        }
    }

    fn arm(&self, state: &mut State, index: usize) {
        let timer = &state.comparators[index];
        let wanted = state.configuration & ENABLE != 0 && timer.configuration & tn::ENABLE != 0;
        match timer.due.filter(|_| wanted) {
            Some(due) => {
                let counts = due.saturating_sub(state.counter);
                let mut at = state.since.saturating_add(counts.saturating_mul(PERIOD));
                if index == 0 && state.owed > 0 {
                    at = at.min(self.clock.now() + LOOK);
                }
                self.timers[index].arm(at);
            }
            None => self.timers[index].cancel(),
        }
    }

    fn fire(&self, index: usize) {
        // Before the lock: it asks other devices.
        let busy = index == 0 && self.is_pending();
        let mut state = self.state.lock();
        let now = state.now(&self.clock);
        let enabled = state.configuration & ENABLE != 0;
        let timer = &mut state.comparators[index];
        // Otherwise overtaken by a change of the registers.
        let enabled = enabled && timer.configuration & tn::ENABLE != 0;
        let matches = if enabled { timer.take_matches(now, MIN_INTERVAL) } else { 0 };
        let periodic = timer.is_periodic() && timer.configuration & (tn::FSB | tn::LEVEL) == 0;
        let met = if index == 0 && periodic && state.configuration & LEGACY != 0 {
            self.takes_owed(&mut state, matches, busy)
        } else {
            matches > 0
        };
        self.arm(&mut state, index);
        if met {
            self.interrupt(state, index);
        }
    }

    /// `more` ticks are owed; whether one is to be delivered now.
    fn takes_owed(&self, state: &mut State, more: u64, busy: bool) -> bool {
        let owed = (state.owed + more).min(MAX_OWED);
        let now = owed > 0 && !busy;
        state.owed = owed - u64::from(now);
        if state.owed > 0
            && let Some((_, ticks)) = self.pending.get()
        {
            ticks.set(true);
        }
        now
    }

    fn interrupt(&self, mut state: MutexGuard<'_, State>, index: usize) {
        let timer = &state.comparators[index];
        if timer.configuration & tn::FSB != 0 {
            let message = MsiMessage { address: timer.fsb >> 32, data: timer.fsb as u32 };
            drop(state);
            self.lines.msi.send(message);
        } else if timer.configuration & tn::LEVEL != 0 {
            state.status |= 1 << index;
            self.set_line(&state, index, true);
        } else {
            self.set_line(&state, index, true);
            self.set_line(&state, index, false);
        }
    }
}

impl Device for Hpet {
    fn model(&self) -> &'static Model {
        &MODEL
    }

    fn reset(&self, _: ResetKind) {
        let mut state = self.state.lock();
        let legacy = state.configuration & LEGACY != 0;
        for index in 0..state.comparators.len() {
            self.set_line(&state, index, false);
            self.timers[index].cancel();
            state.comparators[index] = Comparator::new(self.routes, self.msi);
        }
        state.configuration = 0;
        state.status = 0;
        state.counter = 0;
        state.owed = 0;
        drop(state);
        if legacy && let Some(tell) = self.legacy_changed.get() {
            tell(false);
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
