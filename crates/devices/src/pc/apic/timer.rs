use super::local::Lapic;
use super::register::lvt;
use base::Mutex;
use base::clock::{Clock, Timer};
use std::sync::Weak;

/// Interrupts of a periodic timer closer than this are merged.
const MIN_INTERVAL: u64 = 20_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    Deadline,
}

fn mode(entry: u32) -> Mode {
    match entry >> 17 & 3 {
        0 => Mode::OneShot,
        1 => Mode::Periodic,
        _ => Mode::Deadline,
    }
}

#[derive(Default)]
struct State {
    initial: u32,
    divide: u32,
    /// When the count was (or would have been) loaded.
    start: u64,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    deadline: u64,
    tsc_offset: u64,
    armed: Option<u64>,
}

impl State {
    fn shift(&self) -> u32 {
        ((self.divide & 3 | self.divide >> 1 & 4) + 1) & 7
    }

    /// Nanoseconds the initial count lasts: the bus clock is 1 GHz.
    fn period(&self) -> u64 {
        u64::from(self.initial) << self.shift()
    }
}

/// The timer of a local APIC: one-shot, periodic or TSC deadline, on the virtual clock.
pub(super) struct ApicTimer {
    state: Mutex<State>,
    clock: Clock,
    timer: Timer,
    tsc_khz: u64,
}

impl ApicTimer {
    pub fn new(lapic: Weak<Lapic>, clock: &Clock, tsc_khz: u64) -> Self {
        let timer = clock.timer(move |at| {
            if let Some(lapic) = lapic.upgrade() {
                lapic.timer.fire(&lapic, at);
            }
        });
        ApicTimer { state: Mutex::default(), clock: clock.clone(), timer, tsc_khz: tsc_khz.max(1) }
    }

    pub fn reset(&self) {
        let mut state = self.state.lock();
        *state = State { tsc_offset: state.tsc_offset, ..State::default() };
        self.timer.cancel();
    }

    pub fn set_tsc_offset(&self, lapic: &Lapic, offset: u64) {
        let mut state = self.state.lock();
        state.tsc_offset = offset;
        self.arm(&mut state, lapic.lvt(lvt::TIMER), self.clock.now());
    }

    pub fn initial(&self) -> u32 {
        self.state.lock().initial
    }

    pub fn divide(&self) -> u32 {
        self.state.lock().divide
    }

    pub fn current(&self, entry: u32) -> u32 {
        let state = self.state.lock();
        if state.initial == 0 || mode(entry) == Mode::Deadline {
            return 0;
        }
        let passed = self.clock.now().saturating_sub(state.start);
        if mode(entry) == Mode::OneShot && passed >= state.period() {
            return 0;
        }
        let left = state.period() - passed % state.period();
        (left.div_ceil(1 << state.shift())) as u32
    }

    /// The guest's deadline; 0 once it has passed or in another mode.
    pub fn deadline(&self, entry: u32) -> u64 {
        if mode(entry) == Mode::Deadline { self.state.lock().deadline } else { 0 }
    }

    pub fn set_deadline(&self, entry: u32, deadline: u64) {
        if mode(entry) == Mode::Deadline {
            let mut state = self.state.lock();
            state.deadline = deadline;
            self.arm(&mut state, entry, self.clock.now());
        }
    }

    pub fn set_initial(&self, entry: u32, initial: u32) {
        if mode(entry) == Mode::Deadline {
            return;
        }
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.initial = initial;
        state.start = now;
        self.arm(&mut state, entry, now);
    }

    pub fn set_divide(&self, entry: u32, divide: u32) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let counted = now.saturating_sub(state.start) >> state.shift();
        state.divide = divide & 0xb;
        state.start = now.saturating_sub(counted << state.shift());
        self.arm(&mut state, entry, now);
    }

    /// The LVT entry changed from `old` to `new`.
    pub fn lvt_changed(&self, old: u32, new: u32) {
        let mut state = self.state.lock();
        if (mode(old) == Mode::Deadline) != (mode(new) == Mode::Deadline) {
            state.initial = 0;
            state.deadline = 0;
        }
        self.arm(&mut state, new, self.clock.now());
    }

    /// Arms for the next interrupt after `after`; nothing ticks while masked.
    fn arm(&self, state: &mut State, entry: u32, after: u64) {
        state.armed = if entry & lvt::MASKED != 0 {
            None
        } else {
            match mode(entry) {
                Mode::Deadline if state.deadline == 0 => None,
                Mode::Deadline => Some(self.nanos_at(state.deadline.wrapping_sub(state.tsc_offset))),
                _ if state.initial == 0 => None,
                Mode::OneShot => Some(state.start.saturating_add(state.period())).filter(|&at| at > after),
                Mode::Periodic => {
                    let period = state.period();
                    let mut from = after.max(self.clock.now().saturating_sub(period));
                    if period < MIN_INTERVAL {
                        from = self.clock.now().saturating_add(MIN_INTERVAL - period);
                    }
                    let passed = from.saturating_sub(state.start) / period + 1;
                    Some(state.start.saturating_add(passed.saturating_mul(period)))
                }
            }
        };
        match state.armed {
            Some(at) => self.timer.arm(at),
            None => self.timer.cancel(),
        }
    }

    /// When the bus's TSC reaches `tsc` (at or in the past: now).
    fn nanos_at(&self, tsc: u64) -> u64 {
        // A deadline before the bus's zero lies in the past.
        if tsc as i64 <= 0 {
            return 0;
        }
        (u128::from(tsc) * 1_000_000).div_ceil(u128::from(self.tsc_khz)).min(u64::MAX as u128 - 1) as u64
    }

    fn fire(&self, lapic: &Lapic, at: u64) {
        let mut state = self.state.lock();
        // A firing overtaken by a change of the registers is early or not wanted.
        let Some(due) = state.armed.filter(|&armed| armed <= at) else { return };
        let entry = lapic.lvt(lvt::TIMER);
        if mode(entry) == Mode::Deadline {
            state.deadline = 0;
        }
        self.arm(&mut state, entry, due);
        drop(state);
        lapic.deliver_local(lvt::TIMER);
    }
}
