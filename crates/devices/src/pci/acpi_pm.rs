//! The ACPI fixed hardware (ACPI 6.4 §4.8) that both chipsets have: PM1 event and control,
//! the power management timer, one GPE block, and the SMI command port.

use base::Mutex;
use base::clock::{Clock, NANOS, Timer};
use device::{IrqLine, Power, ShutdownCause};
use memory::Handler;
use std::sync::{Arc, Weak};

const TIMER_HZ: u64 = 3_579_545;
/// The timer is 24 bits wide and its status bit is set whenever the top one toggles.
const TIMER_MASK: u64 = 0xff_ffff;
const TIMER_HALF: u64 = 0x80_0000;

const STS_TIMER: u16 = 1;
const STS_GLOBAL: u16 = 1 << 5;
const STS_POWER_BUTTON: u16 = 1 << 8;
const STS_RTC: u16 = 1 << 10;
const STS_WAKE: u16 = 1 << 15;
const EVENTS: u16 = STS_TIMER | STS_GLOBAL | STS_POWER_BUTTON | STS_RTC;
const CNT_SCI_ENABLE: u16 = 1;
const CNT_SLEEP: u16 = 1 << 13;

/// Where a chipset has what; the ACPI tables are made from it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes of GPE status (as many of GPE enable follow).
    pub gpe_bytes: u8,
    /// Values of the SMI command port that turn ACPI mode on and off.
    pub acpi_enable: u8,
    pub acpi_disable: u8,
    pub s3_disabled: bool,
    pub s4_disabled: bool,
    /// SLP_TYP of S4 (S3 is 1, S5 is 0).
    pub s4_type: u8,
}

pub struct AcpiPm {
    layout: Layout,
    clock: Clock,
    sci: IrqLine,
    power: Arc<dyn Power>,
    overflow: Timer,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
    /// Timer ticks at which the timer's status bit is set next.
    overflow_at: u64,
    gpe_status: [u8; 8],
    gpe_enable: [u8; 8],
    apm_control: u8,
    apm_status: u8,
}

fn ticks(nanos: u64) -> u64 {
    (u128::from(nanos) * u128::from(TIMER_HZ) / u128::from(NANOS)) as u64
}

impl State {
    fn note_overflow(&mut self, now: u64) {
        if now >= self.overflow_at {
            self.status |= STS_TIMER;
        }
    }

    fn sci(&self) -> bool {
        let gpe = self.gpe_status.iter().zip(&self.gpe_enable).any(|(sts, en)| sts & en != 0);
        self.status & self.enable & EVENTS != 0 || gpe
    }
}

impl AcpiPm {
    pub fn new(layout: Layout, clock: &Clock, sci: IrqLine, power: Arc<dyn Power>) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<AcpiPm>| {
            let pm = weak.clone();
            let overflow = clock.timer(move |_| {
                if let Some(pm) = pm.upgrade() {
                    pm.update(|_| ());
                }
            });
            AcpiPm {
                layout,
                clock: clock.clone(),
                sci,
                power,
                overflow,
                state: Mutex::new(State { overflow_at: TIMER_HALF, ..State::default() }),
            }
        })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn now(&self) -> u64 {
        ticks(self.clock.now())
    }

    /// Changes the state, then brings the SCI and the overflow timer in line. The line is
    /// driven under the lock so that changes arrive in order.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let now = self.now();
        state.note_overflow(now);
        let result = change(&mut state);
        if state.enable & STS_TIMER != 0 && state.status & STS_TIMER == 0 {
            let at = u128::from(state.overflow_at) * u128::from(NANOS) / u128::from(TIMER_HZ);
            self.overflow.arm(u64::try_from(at + 1).unwrap_or(u64::MAX));
        } else {
            self.overflow.cancel();
        }
        self.sci.set(state.sci());
        result
    }

    pub fn reset(&self) {
        let now = self.now();
        self.update(|state| {
            *state = State { overflow_at: (now + TIMER_HALF) & !(TIMER_HALF - 1), ..State::default() };
        });
    }

    /// The power button was pressed (heard only once the guest's ACPI listens).
    pub fn power_button(&self) {
        self.update(|state| {
            if state.enable & STS_POWER_BUTTON != 0 {
                state.status |= STS_POWER_BUTTON;
            }
        });
    }

    /// The machine leaves S3: sets the wake status and what woke it.
    pub fn wake(&self, by_button: bool) {
        self.update(|state| {
            state.status |= STS_WAKE | if by_button { STS_POWER_BUTTON } else { 0 };
        });
    }

    /// Raises a general purpose event.
    pub fn raise_gpe(&self, event: u8) {
        self.update(|state| {
            if let Some(byte) = state.gpe_status.get_mut(usize::from(event / 8)) {
                *byte |= 1 << (event % 8);
            }
        });
    }

    /// Whether the guest has switched to ACPI mode.
    pub fn sci_enabled(&self) -> bool {
        self.state.lock().control & CNT_SCI_ENABLE != 0
    }

    fn sleep(&self, kind: u8) {
        match kind {
            0 => self.power.request_shutdown(ShutdownCause::Guest),
            1 if !self.layout.s3_disabled => self.power.request_suspend(),
            kind if kind == self.layout.s4_type && !self.layout.s4_disabled => {
                self.power.request_shutdown(ShutdownCause::Guest);
            }
            _ => {}
        }
    }

    fn read_pm(&self, offset: u64) -> u8 {
        let now = self.now();
        let mut state = self.state.lock();
        state.note_overflow(now);
        let (word, byte) = match offset {
            0 | 1 => (state.status, offset),
            2 | 3 => (state.enable, offset - 2),
            4 | 5 => (state.control, offset - 4),
            8..12 => return ((now & TIMER_MASK) >> ((offset - 8) * 8)) as u8,
            _ => return 0,
        };
        (word >> (byte * 8)) as u8
    }

    fn write_pm(&self, offset: u64, value: u8) {
        let merge = |old: u16, byte: u64| (old & !(0xff << (byte * 8))) | u16::from(value) << (byte * 8);
        let now = self.now();
        let sleep = self.update(|state| {
            match offset {
                0 | 1 => {
                    let clear = u16::from(value) << (offset * 8);
                    if clear & state.status & STS_TIMER != 0 {
                        state.overflow_at = (now + TIMER_HALF) & !(TIMER_HALF - 1);
                    }
                    state.status &= !clear;
                }
                2 | 3 => state.enable = merge(state.enable, offset - 2),
                4 | 5 => {
                    let control = merge(state.control, offset - 4);
                    state.control = control & !CNT_SLEEP;
                    return (control & CNT_SLEEP != 0).then_some((control >> 10 & 7) as u8);
                }
                _ => {}
            }
            None
        });
        if let Some(kind) = sleep {
            self.sleep(kind);
        }
    }

    fn read_gpe(&self, offset: u64) -> u8 {
        let state = self.state.lock();
        let half = u64::from(self.layout.gpe_bytes);
        let from = if offset < half { &state.gpe_status } else { &state.gpe_enable };
        from.get((offset % half) as usize).copied().unwrap_or(0)
    }

    fn write_gpe(&self, offset: u64, value: u8) {
        let half = u64::from(self.layout.gpe_bytes);
        self.update(|state| {
            let at = (offset % half) as usize;
            if offset < half {
                state.gpe_status[at] &= !value;
            } else {
                state.gpe_enable[at] = value;
            }
        });
    }

    fn write_apm(&self, offset: u64, value: u8) {
        self.update(|state| {
            if offset == 1 {
                state.apm_status = value;
                return;
            }
            state.apm_control = value;
            if value == self.layout.acpi_enable {
                state.control |= CNT_SCI_ENABLE;
            } else if value == self.layout.acpi_disable {
                state.control &= !CNT_SCI_ENABLE;
            }
        });
    }
}

/// Which registers of an [`AcpiPm`] a port range shows.
#[derive(Clone, Copy)]
enum Part {
    /// PM1 event, PM1 control, timer.
    Pm,
    Gpe,
    /// Ports 0xb2 and 0xb3.
    Apm,
}

struct Window(Arc<AcpiPm>, Part);

impl AcpiPm {
    /// PM1 event (0), control (4) and timer (8).
    pub fn pm_ports(self: &Arc<Self>) -> Arc<dyn Handler> {
        Arc::new(Window(self.clone(), Part::Pm))
    }

    /// GPE status, then enable.
    pub fn gpe_ports(self: &Arc<Self>) -> Arc<dyn Handler> {
        Arc::new(Window(self.clone(), Part::Gpe))
    }

    /// SMI command and status.
    pub fn apm_ports(self: &Arc<Self>) -> Arc<dyn Handler> {
        Arc::new(Window(self.clone(), Part::Apm))
    }
}

impl Handler for Window {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match self.1 {
            // The timer is read whole: byte reads could tear.
            Part::Pm if offset == 8 && size == 4 => self.0.now() & TIMER_MASK,
            part => (0..size).fold(0, |value, i| {
                let at = offset + u64::from(i);
                let byte = match part {
                    Part::Pm => self.0.read_pm(at),
                    Part::Gpe => self.0.read_gpe(at),
                    Part::Apm if at == 1 => self.0.state.lock().apm_status,
                    Part::Apm => self.0.state.lock().apm_control,
                };
                value | u64::from(byte) << (i * 8)
            }),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        for i in 0..size {
            let (at, byte) = (offset + u64::from(i), (value >> (i * 8)) as u8);
            match self.1 {
                Part::Pm => self.0.write_pm(at, byte),
                Part::Gpe => self.0.write_gpe(at, byte),
                Part::Apm => self.0.write_apm(at, byte),
            }
        }
    }

    fn max_access(&self) -> u8 {
        4
    }
}
