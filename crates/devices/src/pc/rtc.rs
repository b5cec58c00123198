//! MC146818A real-time clock with 128 bytes of CMOS memory (Motorola data sheet; ports 0x70
//! and 0x71), `mc146818rtc`.
//!
//! The time of day is computed from the chosen clock when somebody looks. Timers run only
//! while an interrupt is enabled that they would raise.

mod state;

use super::range::{board_model, byte_range};
use base::clock::{Calendar, Clock, Kind, NANOS, Timer};
use base::notice::Notices;
use base::rank::ranks;
use base::{Mutex, MutexGuard};
use device::{BusKind, Device, IrqLine, Model, Notice, ResetKind};
use memory::AddressSpace;
use serde_json::{Value, json};
use state::State;
use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

pub static MODEL: Model = board_model("mc146818rtc", "Real-time clock", BusKind::Isa, "isa-device");

/// `-rtc base=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcBase {
    Utc,
    /// Local time: seconds east of UTC now.
    Local(i64),
    /// A given moment, as seconds since 1970 of the guest's calendar.
    Date(i64),
}

/// `-rtc driftfix=`: what becomes of periodic interrupts the guest did not take in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriftFix {
    /// They are lost.
    #[default]
    None,
    /// They are delivered as soon as the guest has acknowledged the one before.
    Slew,
}

#[derive(Clone)]
pub struct RtcConfig {
    pub base: RtcBase,
    pub drift_fix: DriftFix,
    /// `-rtc clock=`: the clock the time of day follows (host, rt or vm).
    pub clock: Clock,
    /// The virtual clock, for the periodic interrupt.
    pub virtual_clock: Clock,
    /// For the RTC_CHANGE notice.
    pub qom_path: String,
}

/// The clock chip.
pub struct Rtc {
    state: Mutex<State>,
    config: RtcConfig,
    periodic: Timer,
    /// Update-ended and alarm interrupts.
    update: Timer,
    irq: IrqLine,
    notices: Notices,
}

impl Rtc {
    /// `irq` is IRQ 8.
    pub fn new(config: RtcConfig, irq: IrqLine, notices: &Notices) -> Arc<Self> {
        let wall = || match config.clock.kind() {
            Kind::Host => config.clock.now(),
            _ => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64,
        };
        let guest = match config.base {
            RtcBase::Utc => wall() as i64,
            RtcBase::Local(east) => (wall() as i64).saturating_add(east.saturating_mul(NANOS as i64)),
            RtcBase::Date(seconds) => seconds.saturating_mul(NANOS as i64),
        };
        let offset = guest.wrapping_sub(config.clock.now() as i64);
        let state = State::new(offset, config.clock.now(), config.virtual_clock.now());
        Arc::new_cyclic(|weak: &Weak<Rtc>| {
            let timer = |clock: &Clock, fire: fn(&Rtc)| {
                let weak = weak.clone();
                clock.timer(move |_| {
                    if let Some(rtc) = weak.upgrade() {
                        fire(&rtc);
                    }
                })
            };
            Rtc {
                state: Mutex::ranked(ranks::DEVICE, state),
                periodic: timer(&config.virtual_clock, |rtc| {
                    let mut state = rtc.state.lock();
                    let slew = rtc.config.drift_fix == DriftFix::Slew;
                    state.periodic_tick(rtc.config.virtual_clock.now(), slew);
                    rtc.settle(state);
                }),
                update: timer(&config.clock, |rtc| {
                    let state = rtc.state.lock();
                    rtc.settle(state);
                }),
                irq,
                notices: notices.clone(),
                config,
            }
        })
    }

    /// Ports 0x70 and 0x71.
    pub fn map(self: &Arc<Self>, ports: &AddressSpace) {
        let handler = byte_range(self, |d, at, _| d.read(at).into(), |d, at, _, v| d.write(at, v as u8));
        ports.edit(|edit| edit.io("rtc", 0x70, 2, handler));
    }

    /// Sets a byte of CMOS memory, as a board's firmware set-up would (memory size, boot
    /// order, floppy types); register addresses below 0x0e are left alone.
    pub fn set_cmos(&self, index: u8, value: u8) {
        if (0x0e..0x80).contains(&index) {
            self.state.lock().memory[usize::from(index)] = value;
        }
    }

    pub fn cmos(&self, index: u8) -> u8 {
        self.state.lock().memory[usize::from(index & 0x7f)]
    }

    /// Forgets periodic interrupts still owed to the guest (`rtc-reset-reinjection`).
    pub fn reset_reinjection(&self) {
        self.state.lock().owed = 0;
    }

    /// The guest's present date and time.
    pub fn date(&self) -> Calendar {
        Calendar::from_seconds(self.state.lock().seconds(self.config.clock.now()))
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) {
        let now = self.config.clock.now();
        state.update_flags(now);
        match state.next_update(now) {
            Some(at) => self.update.arm(at),
            None => self.update.cancel(),
        }
        match state.next_periodic() {
            Some(at) if self.periodic.deadline() != Some(at) => self.periodic.arm(at),
            Some(_) => {}
            None => self.periodic.cancel(),
        }
        let level = state.interrupts();
        if state.irq != level {
            state.irq = level;
            self.irq.set(level);
        }
        if let Some(offset) = state.changed.take() {
            drop(state);
            self.notices.send(Notice::RtcChange { offset, qom_path: self.config.qom_path.clone() });
        }
    }

    fn read(&self, offset: u64) -> u8 {
        let mut state = self.state.lock();
        if offset & 1 == 0 {
            return 0xff;
        }
        let (now, machine) = (self.config.clock.now(), self.config.virtual_clock.now());
        let value = state.read(now, machine);
        if state.index == 0x0c {
            // The acknowledgement: the line falls before it may rise again.
            self.irq.set(false);
            state.irq = false;
            state.reinject();
            self.settle(state);
        }
        value
    }

    fn write(&self, offset: u64, value: u8) {
        let mut state = self.state.lock();
        if offset & 1 == 0 {
            state.index = value & 0x7f;
        } else {
            state.write(value, self.config.clock.now(), self.config.virtual_clock.now());
            self.settle(state);
        }
    }
}

impl Device for Rtc {
    fn model(&self) -> &'static Model {
        &MODEL
    }

    fn reset(&self, _: ResetKind) {
        let mut state = self.state.lock();
        state.reset();
        self.settle(state);
    }

    fn dynamic_property(&self, name: &str) -> Option<Value> {
        let date = (name == "date").then(|| self.date())?;
        Some(json!({
            "tm_year": date.year - 1900,
            "tm_mon": date.month - 1,
            "tm_mday": date.day,
            "tm_hour": date.hour,
            "tm_min": date.minute,
            "tm_sec": date.second,
        }))
    }

    fn dynamic_properties(&self) -> &'static [(&'static str, &'static str)] {
        &[("date", "struct tm")]
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
