//! 8254 programmable interval timer (Intel 8254 data sheet) and the speaker port 0x61.
//!
//! Channel 0 drives IRQ 0, channel 2 the speaker. Counters are computed from the clock when
//! somebody looks; only channel 0 needs a timer, at its rising edges.

mod channel;

use super::owed::OwedTicks;
use super::range::{board_model, byte_range};
use base::Mutex;
use base::clock::{Clock, Timer};
use base::rank::ranks;
use channel::Channel;
pub use channel::{FREQUENCY, nanos_of, ticks_of};
use device::{BusKind, Device, IrqLine, Model, ResetKind};
use memory::AddressSpace;
use std::any::Any;
use std::sync::{Arc, OnceLock};

pub static MODEL: Model = board_model("isa-pit", "8254 interval timer", BusKind::Isa, "isa-device");

/// What becomes of ticks that come while the guest has not yet taken the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LostTicks {
    /// Deliver them later, between later ticks.
    #[default]
    Delay,
    Discard,
}

/// Ticks closer than this are merged (a guest may ask for one every 838 ns).
const MIN_INTERVAL: u64 = 20_000;
/// Ticks owed to the guest are not counted past this.
const MAX_OWED: u32 = 10_000;
/// The refresh bit of port 0x61 toggles about every 15 us.
const REFRESH: u64 = 15_085;

struct State {
    channels: [Channel; 3],
    /// Port 0x61 bits 0 (gate of channel 2) and 1 (speaker data).
    control: u8,
    irq_enabled: bool,
    owed: u32,
    /// Deadline of the armed timer, to tell a stale firing.
    deadline: Option<u64>,
    /// Whether the armed deadline delivers an owed tick only.
    extra: bool,
}

type Pending = (Box<dyn Fn() -> bool + Send + Sync>, Arc<OwedTicks>);

/// The timer chip with its channel 0 on a line.
pub struct Pit {
    state: Mutex<State>,
    clock: Clock,
    timer: Timer,
    irq: IrqLine,
    lost_ticks: LostTicks,
    pending: OnceLock<Pending>,
}

impl Pit {
    /// `clock` is the virtual clock, `irq` IRQ 0 (GSI 2 on the I/O APIC).
    pub fn new(clock: &Clock, irq: IrqLine, lost_ticks: LostTicks) -> Arc<Self> {
        let now = clock.now();
        Arc::new_cyclic(|weak: &std::sync::Weak<Pit>| {
            let weak = weak.clone();
            Pit {
                state: Mutex::ranked(
                    ranks::DEVICE,
                    State {
                        channels: [
                            Channel::new(true, now),
                            Channel::new(true, now),
                            Channel::new(false, now),
                        ],
                        control: 0,
                        irq_enabled: true,
                        owed: 0,
                        deadline: None,
                        extra: false,
                    },
                ),
                clock: clock.clone(),
                timer: clock.timer(move |at| {
                    if let Some(pit) = weak.upgrade() {
                        pit.fire(at);
                    }
                }),
                irq,
                lost_ticks,
                pending: OnceLock::new(),
            }
        })
    }

    /// How to learn that the last tick was not yet taken by a CPU (for [`LostTicks::Delay`]).
    pub fn set_pending_probe(&self, probe: impl Fn() -> bool + Send + Sync + 'static, owed: Arc<OwedTicks>) {
        let _ = self.pending.set((Box::new(probe), owed));
    }

    /// A processor has taken an interrupt: the next tick that is owed, if that was a tick.
    /// Returns whether more are owed.
    pub fn catch_up(&self) -> bool {
        let busy = self.is_pending();
        let mut state = self.state.lock();
        if !busy && state.irq_enabled && state.owed > 0 {
            state.owed -= 1;
            self.irq.lower();
            self.irq.raise();
        }
        state.owed > 0
    }

    fn is_pending(&self) -> bool {
        self.lost_ticks == LostTicks::Delay && self.pending.get().is_some_and(|(pending, _)| pending())
    }

    /// Ports 0x40-0x43 and 0x61.
    pub fn map(self: &Arc<Self>, ports: &AddressSpace) {
        let timer = byte_range(self, |d, at, _| d.read(at), |d, at, _, v| d.write(at, v as u8));
        let speaker = byte_range(self, |d, _, _| d.read_control(), |d, _, _, v| d.write_control(v as u8));
        ports.edit(|edit| {
            edit.io("pit", 0x40, 4, timer);
            edit.io("pcspk", 0x61, 1, speaker);
        });
    }

    /// Takes channel 0 off its line and back on (HPET legacy replacement).
    pub fn set_irq_enabled(&self, enabled: bool) {
        let mut state = self.state.lock();
        state.irq_enabled = enabled;
        state.owed = 0;
        self.restart(&mut state);
    }

    /// Whether the speaker sounds, and at how many hertz.
    pub fn speaker(&self) -> Option<f64> {
        let state = self.state.lock();
        (state.control & 3 == 3).then(|| f64::from(FREQUENCY as u32) / f64::from(state.channels[2].count()))
    }

    /// Sets the line as channel 0 stands now and arms the timer for its next rising edge.
    fn restart(&self, state: &mut State) {
        let now = self.clock.now();
        let channel = &state.channels[0];
        self.irq.set(state.irq_enabled && channel.output(now));
        self.arm(state, now, now);
    }

    fn arm(&self, state: &mut State, after: u64, now: u64) {
        state.extra = false;
        state.deadline = None;
        if state.irq_enabled
            && let Some(mut next) = state.channels[0].next_rising_edge(after)
        {
            if next < now.saturating_add(MIN_INTERVAL) {
                // Late or very fast: keep the phase, merge what lies between.
                let from = if next < now { now } else { after.max(now).saturating_add(MIN_INTERVAL) };
                let close = state.channels[0].period().is_some_and(|period| nanos_of(period) < MIN_INTERVAL);
                if close {
                    next = state.channels[0].next_rising_edge(from).unwrap_or(next);
                }
            }
            if state.owed > 0 && next > now {
                let half = after.max(now) + (next - after.max(now)) / 2;
                if half > now {
                    next = half;
                    state.extra = true;
                }
            }
            state.deadline = Some(next);
        }
        match state.deadline {
            Some(at) => self.timer.arm(at),
            None => self.timer.cancel(),
        }
    }

    fn fire(&self, at: u64) {
        let busy = self.is_pending();
        let mut state = self.state.lock();
        // A firing overtaken by a change of the registers is early or not wanted.
        let Some(due) = state.deadline.filter(|&deadline| deadline <= at) else { return };
        // What was owed when this was armed may have been delivered by `catch_up`.
        let now = !busy && (!state.extra || state.owed > 0);
        if state.extra {
            state.owed -= u32::from(now);
        } else if busy {
            state.owed = (state.owed + 1).min(MAX_OWED);
        }
        if state.owed > 0
            && let Some((_, ticks)) = self.pending.get()
        {
            ticks.set(true);
        }
        if now {
            self.irq.lower();
            self.irq.raise();
        }
        let now = self.clock.now();
        self.arm(&mut state, due, now);
    }

    fn read(&self, offset: u64) -> u64 {
        match offset & 3 {
            3 => 0xff,
            number => self.state.lock().channels[number as usize].read(self.clock.now()).into(),
        }
    }

    fn write(&self, offset: u64, value: u8) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let restart = match offset & 3 {
            3 => match value >> 6 {
                3 => {
                    for number in (0..3).filter(|number| value & 2 << number != 0) {
                        state.channels[number].read_back(value & 0x20 == 0, value & 0x10 == 0, now);
                    }
                    false
                }
                number => state.channels[usize::from(number)].control(value, now) && number == 0,
            },
            number => state.channels[number as usize].write(value, now) && number == 0,
        };
        if restart {
            state.owed = 0;
            self.restart(&mut state);
        }
    }

    fn read_control(&self) -> u64 {
        let now = self.clock.now();
        let state = self.state.lock();
        let refresh = u64::from((now / REFRESH) & 1 != 0) << 4;
        u64::from(state.control) | refresh | u64::from(state.channels[2].output(now)) << 5
    }

    fn write_control(&self, value: u8) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.control = value & 0xf;
        state.channels[2].set_gate(value & 1 != 0, now);
    }
}

impl Device for Pit {
    fn model(&self) -> &'static Model {
        &MODEL
    }

    fn reset(&self, _: ResetKind) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        // As a PC's firmware finds it: channel 0 in mode 3 with the full count.
        state.channels = [Channel::new(true, now), Channel::new(true, now), Channel::new(false, now)];
        state.control = 0;
        state.owed = 0;
        self.restart(&mut state);
    }

    fn info(&self, item: &str) -> Option<String> {
        let state = self.state.lock();
        (item == "pit").then(|| {
            let now = self.clock.now();
            let lines = state.channels.iter().enumerate();
            lines.map(|(number, channel)| format!("channel {number}: {}\n", channel.describe(now))).collect()
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
