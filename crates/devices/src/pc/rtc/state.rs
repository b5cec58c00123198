use base::clock::Calendar;
use base::clock::NANOS;

const SECOND: i64 = NANOS as i64;
/// Update in progress is shown for this long before each update (data sheet: 244 us).
const UPDATE_HOLD: i64 = 244_141;
/// After the divider is released the first update comes half a second later.
const DIVIDER_START: i64 = SECOND / 2;
/// Periodic interrupts owed to the guest are not counted past this.
const MAX_OWED: u32 = 1 << 20;

pub mod register {
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const CENTURY: u8 = 0x32;
    /// Where PS/2 firmware keeps the century.
    pub const CENTURY_PS2: u8 = 0x37;
}

pub mod b {
    pub const SET: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE: u8 = 0x10;
    pub const SQUARE_WAVE: u8 = 8;
    pub const BINARY: u8 = 4;
    pub const HOURS_24: u8 = 2;
}

pub mod c {
    pub const REQUEST: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE: u8 = 0x10;
}

pub struct State {
    pub index: u8,
    pub memory: [u8; 128],
    /// Guest time minus the clock, in nanoseconds.
    offset: i64,
    /// `offset` as it was at the start: what `-rtc base` asked for.
    initial_offset: i64,
    /// Guest time (ns) at which the clock was stopped by SET or the divider reset.
    stopped: Option<i64>,
    /// The guest second up to which update and alarm flags are accounted for.
    checked: i64,
    /// Virtual time of the last periodic tick seen, in periods' base ticks of 32768 Hz.
    last_tick: u64,
    /// Next periodic interrupt in 32768 Hz ticks, while enabled.
    next_tick: Option<u64>,
    /// Periodic interrupts still owed to the guest.
    pub owed: u32,
    pub irq: bool,
    /// An RTC_CHANGE to be sent: seconds.
    pub changed: Option<i64>,
}

fn ticks(nanos: u64) -> u64 {
    (u128::from(nanos) * 32_768 / u128::from(NANOS)) as u64
}

fn tick_nanos(tick: u64) -> u64 {
    (u128::from(tick) * u128::from(NANOS)).div_ceil(32_768) as u64
}

impl State {
    pub fn new(offset: i64, now: u64, machine: u64) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(register::A)] = 0x26;
        memory[usize::from(register::B)] = b::HOURS_24;
        memory[usize::from(register::D)] = 0x80;
        let mut state = State {
            index: 0,
            memory,
            offset,
            initial_offset: offset,
            stopped: None,
            checked: 0,
            last_tick: ticks(machine),
            next_tick: None,
            owed: 0,
            irq: false,
            changed: None,
        };
        state.checked = state.seconds(now);
        let date = Calendar::from_seconds(state.checked);
        state.store_date(date);
        state
    }

    pub fn reset(&mut self) {
        self.memory[usize::from(register::B)] &= !(b::PERIODIC | b::ALARM | b::UPDATE | b::SQUARE_WAVE);
        self.memory[usize::from(register::C)] = 0;
        self.next_tick = None;
        self.owed = 0;
    }

    fn b(&self) -> u8 {
        self.memory[usize::from(register::B)]
    }

    fn c(&mut self) -> &mut u8 {
        &mut self.memory[usize::from(register::C)]
    }

    fn guest(&self, now: u64) -> i64 {
        self.stopped.unwrap_or_else(|| (now as i64).wrapping_add(self.offset))
    }

    pub fn seconds(&self, now: u64) -> i64 {
        self.guest(now).div_euclid(SECOND)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b() & b::BINARY != 0 { value } else { value / 10 << 4 | value % 10 }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b() & b::BINARY != 0 {
            value
        } else {
            (value >> 4).wrapping_mul(10).wrapping_add(value & 0xf)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b() & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b() & b::HOURS_24 != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & 0x7f) % 12;
        if value & 0x80 != 0 { hour + 12 } else { hour }
    }

    /// Puts a date into the registers, in their present format.
    fn store_date(&mut self, date: Calendar) {
        let fields = [
            (0, self.encode(date.second)),
            (2, self.encode(date.minute)),
            (4, self.encode_hour(date.hour)),
            (6, self.encode(date.weekday)),
            (7, self.encode(date.day)),
            (8, self.encode(date.month)),
            (9, self.encode(date.year.rem_euclid(100) as u8)),
            (register::CENTURY, self.encode(date.year.div_euclid(100).rem_euclid(100) as u8)),
            (register::CENTURY_PS2, self.encode(date.year.div_euclid(100).rem_euclid(100) as u8)),
        ];
        for (index, value) in fields {
            self.memory[usize::from(index)] = value;
        }
    }

    fn load_date(&self) -> Calendar {
        let field = |index: u8| self.decode(self.memory[usize::from(index)]);
        Calendar {
            year: i64::from(field(register::CENTURY)) * 100 + i64::from(field(9)),
            month: field(8),
            day: field(7),
            hour: self.decode_hour(self.memory[4]),
            minute: field(2),
            second: field(0),
            weekday: 1,
        }
    }

    fn is_time(index: u8) -> bool {
        matches!(index, 0 | 2 | 4 | 6..=9 | register::CENTURY | register::CENTURY_PS2)
    }

    pub fn read(&mut self, now: u64, machine: u64) -> u8 {
        let index = self.index;
        if State::is_time(index) && self.stopped.is_none() {
            self.store_date(Calendar::from_seconds(self.seconds(now)));
        }
        match index {
            register::A => {
                let left = SECOND - self.guest(now).rem_euclid(SECOND);
                let updating = self.stopped.is_none() && left <= UPDATE_HOLD;
                self.memory[usize::from(index)] | if updating { 0x80 } else { 0 }
            }
            register::C => {
                self.poll_periodic(machine);
                self.update_flags(now);
                std::mem::take(self.c())
            }
            _ => self.memory[usize::from(index)],
        }
    }

    pub fn write(&mut self, value: u8, now: u64, machine: u64) {
        let index = self.index;
        match index {
            register::A => self.set_a(value & 0x7f, now, machine),
            register::B => self.set_b(value, now, machine),
            register::C | register::D => {}
            _ if State::is_time(index) => {
                if self.stopped.is_none() {
                    self.store_date(Calendar::from_seconds(self.seconds(now)));
                }
                self.memory[usize::from(index)] = value;
                if index == register::CENTURY_PS2 {
                    self.memory[usize::from(register::CENTURY)] = value;
                }
                if self.stopped.is_none() {
                    self.set_date(now);
                }
            }
            _ => self.memory[usize::from(index)] = value,
        }
    }

    /// The registers hold a new date.
    fn set_date(&mut self, now: u64) {
        let guest = self.guest(now);
        let seconds = self.load_date().seconds();
        let new = seconds.saturating_mul(SECOND).saturating_add(guest.rem_euclid(SECOND));
        self.move_to(new, now);
        let undisturbed = (now as i64).wrapping_add(self.initial_offset).div_euclid(SECOND);
        self.changed = Some(seconds.saturating_sub(undisturbed));
    }

    fn move_to(&mut self, guest: i64, now: u64) {
        match &mut self.stopped {
            Some(stopped) => *stopped = guest,
            None => self.offset = guest.wrapping_sub(now as i64),
        }
        self.checked = guest.div_euclid(SECOND);
    }

    fn divider_reset(&self) -> bool {
        self.memory[usize::from(register::A)] & 0x60 == 0x60
    }

    fn set_a(&mut self, value: u8, now: u64, machine: u64) {
        self.poll_periodic(machine);
        let was_reset = self.divider_reset();
        self.memory[usize::from(register::A)] = value;
        if was_reset && !self.divider_reset() && self.b() & b::SET == 0 {
            let seconds = self.load_date().seconds();
            self.stopped = None;
            self.move_to(seconds.saturating_mul(SECOND).saturating_add(SECOND - DIVIDER_START), now);
        } else if !was_reset && self.divider_reset() {
            self.stop(now);
        }
        self.restart_periodic(machine);
    }

    fn stop(&mut self, now: u64) {
        if self.stopped.is_none() {
            self.update_flags(now);
            self.store_date(Calendar::from_seconds(self.seconds(now)));
            self.stopped = Some(self.guest(now));
        }
    }

    fn set_b(&mut self, mut value: u8, now: u64, machine: u64) {
        self.poll_periodic(machine);
        self.update_flags(now);
        let old = self.b();
        if value & b::SET != 0 {
            value &= !b::UPDATE;
            self.stop(now);
        }
        let format_changed = (value ^ old) & (b::BINARY | b::HOURS_24) != 0;
        if format_changed && value & b::SET == 0 && self.stopped.is_none() {
            // The chip keeps counting; the registers are shown in the new format.
            let date = Calendar::from_seconds(self.seconds(now));
            self.memory[usize::from(register::B)] = value;
            self.store_date(date);
        }
        self.memory[usize::from(register::B)] = value;
        if old & b::SET != 0 && value & b::SET == 0 && !self.divider_reset() {
            let phase = self.guest(now).rem_euclid(SECOND);
            self.stopped = None;
            self.offset = phase.wrapping_sub(now as i64);
            self.set_date(now);
        }
        self.restart_periodic(machine);
    }

    /// Ticks of 32768 Hz between periodic interrupts.
    fn period(&self) -> Option<u64> {
        let a = self.memory[usize::from(register::A)];
        if self.divider_reset() {
            return None;
        }
        match a & 0xf {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn restart_periodic(&mut self, machine: u64) {
        let now = ticks(machine);
        self.next_tick = match self.period() {
            Some(period) if self.b() & b::PERIODIC != 0 => {
                let next = now / period * period + period;
                // A running timer keeps its phase.
                Some(
                    self.next_tick
                        .filter(|&tick| tick > now && tick <= now + period && tick % period == 0)
                        .unwrap_or(next),
                )
            }
            _ => None,
        };
        if self.next_tick.is_none() {
            self.owed = 0;
        }
    }

    /// Virtual time of the next periodic interrupt.
    pub fn next_periodic(&self) -> Option<u64> {
        self.next_tick.map(tick_nanos)
    }

    pub fn periodic_tick(&mut self, machine: u64, slew: bool) {
        let (Some(due), Some(period)) = (self.next_tick, self.period()) else { return };
        let now = ticks(machine);
        if now < due {
            return;
        }
        // Ticks that passed unseen while the host was busy.
        let missed = ((now - due) / period).min(u64::from(MAX_OWED)) as u32;
        self.next_tick = Some(due + (now - due) / period * period + period);
        self.last_tick = now;
        let untaken = *self.c() & c::PERIODIC != 0;
        *self.c() |= c::PERIODIC;
        if slew {
            self.owed = self.owed.saturating_add(missed + u32::from(untaken)).min(MAX_OWED);
        }
    }

    /// The periodic flag is set at its rate whether or not it interrupts.
    fn poll_periodic(&mut self, machine: u64) {
        let now = ticks(machine);
        if self.next_tick.is_none()
            && let Some(period) = self.period()
            && now / period != self.last_tick / period
        {
            *self.c() |= c::PERIODIC;
        }
        self.last_tick = now;
    }

    /// After an acknowledgement: one of the interrupts still owed.
    pub fn reinject(&mut self) {
        if self.owed > 0 && self.b() & b::PERIODIC != 0 {
            self.owed -= 1;
            *self.c() |= c::PERIODIC;
        }
    }

    /// Sets the update and alarm flags for the seconds that began since the last look.
    pub fn update_flags(&mut self, now: u64) {
        let seconds = self.seconds(now);
        if self.stopped.is_some() || seconds <= self.checked {
            self.checked = self.checked.min(seconds);
            return;
        }
        *self.c() |= c::UPDATE;
        if self.next_alarm(self.checked).is_some_and(|alarm| alarm <= seconds) {
            *self.c() |= c::ALARM;
        }
        self.checked = seconds;
    }

    fn alarm_matches(&self, index: u8, value: u8) -> bool {
        let alarm = self.memory[usize::from(index)];
        alarm & 0xc0 == 0xc0
            || match index {
                5 => self.decode_hour(alarm) == value,
                _ => self.decode(alarm) == value,
            }
    }

    /// The first second after `after` that the alarm registers match.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let today = after.div_euclid(86_400) * 86_400;
        let matching = |index: u8, count: u8| -> Vec<u8> {
            (0..count).filter(|&value| self.alarm_matches(index, value)).collect()
        };
        let (hours, minutes, seconds) = (matching(5, 24), matching(3, 60), matching(1, 60));
        let find = |day: i64| {
            hours.iter().find_map(|&hour| {
                let hour = day + i64::from(hour) * 3600;
                (hour + 3599 > after).then_some(())?;
                minutes.iter().find_map(|&minute| {
                    let minute = hour + i64::from(minute) * 60;
                    seconds.iter().map(|&second| minute + i64::from(second)).find(|&at| at > after)
                })
            })
        };
        find(today).or_else(|| find(today + 86_400))
    }

    /// When (of the clock) an update or alarm interrupt is due next, if one is enabled.
    pub fn next_update(&self, now: u64) -> Option<u64> {
        if self.stopped.is_some() {
            return None;
        }
        let flags = self.memory[usize::from(register::C)];
        let seconds = self.seconds(now);
        let second = if self.b() & b::UPDATE != 0 && flags & c::UPDATE == 0 {
            seconds + 1
        } else if self.b() & b::ALARM != 0 && flags & c::ALARM == 0 {
            self.next_alarm(seconds)?
        } else {
            return None;
        };
        u64::try_from(second.saturating_mul(SECOND).wrapping_sub(self.offset)).ok()
    }

    /// Computes IRQF; whether the line is to be high.
    pub fn interrupts(&mut self) -> bool {
        let request = self.b() & *self.c() & (c::PERIODIC | c::ALARM | c::UPDATE) != 0;
        if request {
            *self.c() |= c::REQUEST;
        } else {
            *self.c() &= !c::REQUEST;
        }
        request
    }
}
