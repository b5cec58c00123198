use base::clock::NANOS;

/// Counter input in hertz: 14.31818 MHz / 12.
pub const FREQUENCY: u64 = 1_193_182;

/// Whole counter ticks in `nanos`.
pub fn ticks_of(nanos: u64) -> u64 {
    (u128::from(nanos) * u128::from(FREQUENCY) / u128::from(NANOS)) as u64
}

/// The first nanosecond at which `ticks` counter ticks have passed.
pub fn nanos_of(ticks: u64) -> u64 {
    (u128::from(ticks) * u128::from(NANOS)).div_ceil(u128::from(FREQUENCY)) as u64
}

/// One counter. Times are nanoseconds of the virtual clock.
#[derive(Clone, Debug)]
pub struct Channel {
    /// 0-5.
    mode: u8,
    /// 1 low byte, 2 high byte, 3 low then high.
    access: u8,
    bcd: bool,
    /// 1-0x10000.
    count: u32,
    /// A count was written since the mode was set.
    loaded: bool,
    gate: bool,
    /// Start of counting (of the last trigger in modes 1 and 5).
    start: u64,
    /// Modes 1 and 5: a trigger came since the mode was set.
    triggered: bool,
    /// Ticks counted when the counting was suspended.
    frozen: Option<u64>,
    low: Option<u8>,
    read_high: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    pub fn new(gate: bool, now: u64) -> Self {
        Channel {
            mode: 3,
            access: 3,
            bcd: false,
            count: 0x10000,
            loaded: gate,
            gate,
            start: now,
            triggered: false,
            frozen: None,
            low: None,
            read_high: false,
            latched: None,
            latched_status: None,
        }
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn is_triggered_mode(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// Ticks between rising edges of the output, if it repeats.
    pub fn period(&self) -> Option<u64> {
        (self.is_periodic() && self.loaded && self.gate).then_some(self.count.into())
    }

    fn elapsed(&self, now: u64) -> u64 {
        self.frozen.unwrap_or_else(|| ticks_of(now.saturating_sub(self.start)))
    }

    /// Whether the counter counts (or has counted) since the mode was set.
    fn is_counting(&self) -> bool {
        self.loaded && (!self.is_triggered_mode() || self.triggered)
    }

    pub fn output(&self, now: u64) -> bool {
        if !self.is_counting() {
            return self.mode != 0;
        }
        let (elapsed, count) = (self.elapsed(now), u64::from(self.count));
        match self.mode {
            0 | 1 => elapsed >= count,
            2 => !self.gate || elapsed % count != count - 1 || count == 1,
            3 => !self.gate || elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    /// Time of the first rising edge of the output after `after`.
    pub fn next_rising_edge(&self, after: u64) -> Option<u64> {
        if !self.is_counting() || self.frozen.is_some() {
            return None;
        }
        let count = u64::from(self.count);
        let at = match self.mode {
            2 | 3 if !self.gate => return None,
            2 | 3 => {
                let mut edge = ticks_of(after.saturating_sub(self.start)) / count + 1;
                // Rounding up to whole nanoseconds may give `after` itself.
                while self.start + nanos_of(edge * count) <= after {
                    edge += 1;
                }
                edge * count
            }
            0 | 1 => count,
            _ => count + 1,
        };
        Some(self.start.saturating_add(nanos_of(at))).filter(|&at| at > after)
    }

    fn value(&self, now: u64) -> u16 {
        if !self.is_counting() {
            return self.encode(self.count);
        }
        let (elapsed, count) = (self.elapsed(now), u64::from(self.count));
        let modulus: u64 = if self.bcd { 10_000 } else { 0x10000 };
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => count - (2 * elapsed) % count & !1,
            _ => (count % modulus + modulus - elapsed % modulus) % modulus,
        };
        self.encode(value as u32)
    }

    fn encode(&self, value: u32) -> u16 {
        if !self.bcd {
            return value as u16;
        }
        let value = value % 10_000;
        ((value / 1000) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | value % 10) as u16
    }

    fn decode(&self, value: u16) -> u32 {
        let digit = |shift: u16| u32::from(value >> shift & 0xf);
        let value = match self.bcd {
            false => u32::from(value),
            true => digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0),
        };
        match (value, self.bcd) {
            (0, false) => 0x10000,
            (0, true) => 10_000,
            (value, _) => value,
        }
    }

    /// A control word for this channel. Returns whether the output may have changed.
    pub fn control(&mut self, word: u8, now: u64) -> bool {
        let access = word >> 4 & 3;
        if access == 0 {
            if self.latched.is_none() {
                self.latched = Some(self.value(now));
            }
            return false;
        }
        let mode = word >> 1 & 7;
        *self = Channel {
            mode: if mode > 5 { mode & 3 } else { mode },
            access,
            bcd: word & 1 != 0,
            count: self.count.min(if word & 1 != 0 { 10_000 } else { 0x10000 }),
            ..Channel::new(self.gate, now)
        };
        self.loaded = false;
        true
    }

    /// A byte of the count. Returns whether counting was changed.
    pub fn write(&mut self, value: u8, now: u64) -> bool {
        let count = match self.access {
            1 => u16::from(value),
            2 => u16::from(value) << 8,
            _ => match self.low.take() {
                None => {
                    self.low = Some(value);
                    // In mode 0 the first byte stops the counting.
                    let stops = self.mode == 0 && self.loaded;
                    self.loaded &= self.mode != 0;
                    return stops;
                }
                Some(low) => u16::from_le_bytes([low, value]),
            },
        };
        self.count = self.decode(count);
        self.loaded = true;
        if !self.is_triggered_mode() {
            self.start = now;
            self.frozen = (matches!(self.mode, 0 | 4) && !self.gate).then_some(0);
        }
        true
    }

    pub fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        match self.mode {
            0 | 4 if !gate => self.frozen = Some(self.elapsed(now)),
            0 | 4 => {
                if let Some(ticks) = self.frozen.take() {
                    self.start = now.saturating_sub(nanos_of(ticks));
                }
            }
            1 | 5 if gate => {
                self.triggered = true;
                self.start = now;
            }
            2 | 3 if gate => {
                self.frozen = None;
                self.start = now;
            }
            2 | 3 => self.frozen = Some(self.elapsed(now)),
            _ => {}
        }
        self.gate = gate;
    }

    pub fn read_back(&mut self, count: bool, status: bool, now: u64) {
        if count && self.latched.is_none() {
            self.latched = Some(self.value(now));
        }
        if status && self.latched_status.is_none() {
            let flags = u8::from(self.output(now)) << 7 | u8::from(!self.loaded) << 6;
            self.latched_status = Some(flags | self.access << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    pub fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(now)).to_le_bytes();
        match self.access {
            1 => {
                self.latched = None;
                low
            }
            2 => {
                self.latched = None;
                high
            }
            _ if self.read_high => {
                self.read_high = false;
                self.latched = None;
                high
            }
            _ => {
                self.read_high = true;
                low
            }
        }
    }

    pub fn describe(&self, now: u64) -> String {
        format!(
            "mode={} count={} gate={} out={} value={}",
            self.mode,
            self.count,
            u8::from(self.gate),
            u8::from(self.output(now)),
            self.value(now)
        )
    }
}
