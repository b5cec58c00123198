/// Bits of a timer's configuration register.
pub mod configuration {
    pub const LEVEL: u64 = 1 << 1;
    pub const ENABLE: u64 = 1 << 2;
    pub const PERIODIC: u64 = 1 << 3;
    pub const PERIODIC_CAPABLE: u64 = 1 << 4;
    pub const SIZE_64: u64 = 1 << 5;
    pub const SET_VALUE: u64 = 1 << 6;
    pub const MODE_32: u64 = 1 << 8;
    pub const ROUTE: u64 = 0x1f << 9;
    pub const FSB: u64 = 1 << 14;
    pub const FSB_CAPABLE: u64 = 1 << 15;
}
use configuration as tn;

/// The I/O APIC input a timer's configuration names.
pub fn route(configuration: u64) -> usize {
    ((configuration & tn::ROUTE) >> 9) as usize
}

/// One comparator.
#[derive(Clone, Debug)]
pub struct Comparator {
    pub configuration: u64,
    comparator: u64,
    period: u64,
    pub fsb: u64,
    /// Value of the whole main counter at the next match, while that counts.
    pub due: Option<u64>,
}

impl Comparator {
    pub fn new(routes: u32, msi: bool) -> Self {
        let fsb = if msi { tn::FSB_CAPABLE } else { 0 };
        Comparator {
            configuration: tn::PERIODIC_CAPABLE | tn::SIZE_64 | fsb | u64::from(routes) << 32,
            comparator: u64::MAX,
            period: 0,
            fsb: 0,
            due: None,
        }
    }

    pub fn read(&self, register: u64) -> u64 {
        match register {
            0 => self.configuration,
            8 => self.comparator & self.mask(),
            0x10 => self.fsb,
            _ => 0,
        }
    }

    fn mask(&self) -> u64 {
        if self.configuration & tn::MODE_32 != 0 { 0xffff_ffff } else { u64::MAX }
    }

    pub fn is_periodic(&self) -> bool {
        self.configuration & tn::PERIODIC != 0
    }

    /// Writes the configuration's writable bits; an impossible route is not taken.
    pub fn configure(&mut self, mask: u64, value: u64, routes: u32, msi: bool) -> u64 {
        let mut writable = tn::LEVEL | tn::ENABLE | tn::PERIODIC | tn::SET_VALUE | tn::MODE_32 | tn::ROUTE;
        if msi {
            writable |= tn::FSB;
        }
        let old = self.configuration;
        let change = writable & mask;
        self.configuration = old & !change | value & change;
        if routes & 1 << route(self.configuration) == 0 {
            self.configuration = self.configuration & !tn::ROUTE | old & tn::ROUTE;
        }
        self.comparator &= self.mask();
        self.period &= self.mask();
        self.configuration
    }

    /// In periodic mode a write sets the period, with SET_VALUE also the comparator
    /// (§2.3.9.2.2). Returns whether the comparator was set.
    pub fn set_comparator(&mut self, mask: u64, value: u64) -> bool {
        let merge = |old: u64| old & !mask | value & mask;
        let sets = !self.is_periodic() || self.configuration & tn::SET_VALUE != 0;
        if sets {
            self.comparator = merge(self.comparator) & self.mask();
        }
        if self.is_periodic() {
            self.period = merge(self.period) & self.mask();
        }
        self.configuration &= !tn::SET_VALUE;
        sets
    }

    /// Computes the next match. `fresh`: the guest has just written the comparator; a value
    /// that has gone by then is met at once, otherwise when the counter comes round.
    pub fn plan(&mut self, now: u64, fresh: bool) {
        let left = self.comparator.wrapping_sub(now) & self.mask();
        let left = if fresh && left > self.mask() / 2 { 0 } else { left };
        self.due = now.checked_add(left);
    }

    /// How often the comparator was met by `now`; goes on to its next match. Matches closer than
    /// `min_interval` are one.
    pub fn take_matches(&mut self, now: u64, min_interval: u64) -> u64 {
        let Some(due) = self.due.filter(|&due| due <= now) else { return 0 };
        let mut matches = 1;
        self.due = if self.is_periodic() && self.period != 0 {
            // Late by whole periods, or very fast: keep the phase, merge what lies between.
            let floor = if self.period < min_interval { min_interval } else { 1 };
            let steps = (now - due).saturating_add(floor).div_ceil(self.period).max(1);
            if floor == 1 {
                matches = steps;
            }
            let next = due.saturating_add(steps.saturating_mul(self.period));
            self.comparator = next & self.mask();
            Some(next)
        } else {
            due.checked_add(self.mask()).and_then(|at| at.checked_add(1))
        };
        matches
    }
}
