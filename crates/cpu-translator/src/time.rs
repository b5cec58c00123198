//! The guest's time-stamp counter as a line over the host's, so that RDTSC needs no clock.
//!
//! All vCPUs of a machine read the same line. Every [`PERIOD`] a new one is laid from the
//! present point of the old one towards the virtual clock: the counter stays within a
//! microsecond of the clock, and does not go back (but for some nanoseconds between two
//! processors, if the host holds a thread up in the very moment when it lays a line).

use cpu::CpuBus;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// `guest = offset + high64((host + start) * slope)`; the order is known to translated code.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Line {
    /// Minus the host's counter at (just before) the line's start.
    start: AtomicU64,
    /// Guest ticks for each host tick, times 2^64.
    slope: AtomicU64,
    offset: AtomicU64,
}

/// Lines that are kept: no vCPU is held up for so long (50 s) that its line is written again.
const LINES: usize = 1024;
/// Nanoseconds of the clock between lines.
const PERIOD: u64 = 50_000_000;
/// Host ticks by which a line begins before its first use, for counters that are not quite
/// the same on all processors.
const MARGIN: u64 = 1 << 32;
/// Host ticks of the first measurement.
const MEASURE: u64 = 5_000_000;
/// Nanoseconds between line and clock that say that the clock stood still.
const FAR: u64 = 1_000_000;

/// The lines of a machine.
pub struct Time {
    lines: Box<[Line]>,
    /// The present line; null: none.
    now: AtomicPtr<Line>,
    /// Host counter from which the next line is due.
    due: AtomicU64,
    /// The largest value that was shown before a pause.
    shown: AtomicU64,
    /// (host counter, clock) of the first measurement since the clock was set going.
    first: Mutex<Option<(u64, u64)>>,
    usable: bool,
}

/// Whether the host's counter runs evenly and alike on all processors: Linux says so by using
/// it as its clock source.
fn host_is_steady() -> bool {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let named = std::fs::read_to_string(path).unwrap_or_default();
    matches!(named.trim(), "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page")
        && std::arch::is_x86_feature_detected!("bmi2")
}

pub fn host_counter() -> u64 {
    // SAFETY: RDTSC is available to user code on every host the engine runs on.
    unsafe { std::arch::x86_64::_rdtsc() }
}

fn high(a: u64, b: u64) -> u64 {
    (u128::from(a) * u128::from(b) >> 64) as u64
}

impl Line {
    fn at(&self, host: u64) -> u64 {
        let since = host.wrapping_add(self.start.load(Ordering::Relaxed));
        self.offset.load(Ordering::Relaxed).wrapping_add(high(since, self.slope.load(Ordering::Relaxed)))
    }
}

impl Time {
    pub fn new() -> Time {
        Time {
            lines: (0..LINES).map(|_| Line::default()).collect(),
            now: AtomicPtr::default(),
            due: AtomicU64::new(0),
            shown: AtomicU64::new(0),
            first: Mutex::default(),
            usable: host_is_steady(),
        }
    }

    /// Where the address of the present line stands, for translated code.
    pub fn cell(&self) -> u64 {
        self.now.as_ptr() as u64
    }

    /// The present line, if there is one.
    pub fn line(&self) -> Option<&Line> {
        // SAFETY: null or one of `lines`, which live as long as this.
        unsafe { self.now.load(Ordering::Acquire).as_ref() }
    }

    /// The guest's counter now. The thread may be held up anywhere while another one lays lines: what
    /// counts is that the line is the present one still when all was read.
    pub fn read(&self) -> Option<u64> {
        loop {
            let line = self.line()?;
            let value = line.at(host_counter());
            if std::ptr::eq(self.now.load(Ordering::Acquire), line) {
                return Some(value);
            }
        }
    }

    /// A vCPU goes on (or begins): a first line, or one that follows the clock again after it
    /// stood still. Without a running clock there is none.
    pub fn resume(&self, bus: &CpuBus) {
        if !self.usable || !bus.clock.is_running() {
            self.now.store(std::ptr::null_mut(), Ordering::Release);
            return;
        }
        let off = |line: &Line| {
            let shown = line.at(host_counter());
            ticks(bus, bus.clock.now()).wrapping_sub(shown) as i64
        };
        let far = FAR * bus.tsc_khz / 1_000_000;
        if self.line().is_some_and(|line| off(line).unsigned_abs() <= far) {
            return;
        }
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if self.line().is_some_and(|line| off(line).unsigned_abs() <= far) {
            return;
        }
        let (host0, clock0) = sample(bus);
        while host_counter() - host0 < MEASURE {
            std::hint::spin_loop();
        }
        let (host, clock) = sample(bus);
        if host <= host0 || clock <= clock0 {
            return;
        }
        let Some(slope) = slope(bus, host - host0, clock - clock0) else { return };
        *first = Some((host0, clock0));
        let value = ticks(bus, clock).max(self.shown.load(Ordering::Relaxed));
        self.lay(host, value, slope, bus);
    }

    /// A vCPU leaves its code: what was shown must not be seen again.
    pub fn pause(&self) {
        if let Some(value) = self.read() {
            self.shown.fetch_max(value, Ordering::Relaxed);
        }
    }

    /// A state was loaded: its counter may be an earlier one.
    pub fn forget(&self) {
        self.now.store(std::ptr::null_mut(), Ordering::Release);
        self.shown.store(0, Ordering::Relaxed);
    }

    /// Lays a new line if one is due.
    pub fn steer(&self, bus: &CpuBus) {
        if host_counter() < self.due.load(Ordering::Relaxed) {
            return;
        }
        let Ok(first) = self.first.try_lock() else { return };
        let (Some(line), Some((host0, clock0))) = (self.line(), *first) else { return };
        let (host, clock) = sample(bus);
        if clock <= clock0 || host <= host0 {
            return;
        }
        let Some(rate) = slope(bus, host - host0, clock - clock0) else { return };
        let value = line.at(host);
        let off = ticks(bus, clock).wrapping_sub(value) as i64;
        // Made good within the next period, by at most a twentieth of the rate.
        let period = (i128::from(PERIOD) * i128::from(bus.tsc_khz) / 1_000_000).max(1);
        let by = i128::from(rate) * i128::from(off) / period;
        let most = i128::from(rate / 20);
        let slope = (i128::from(rate) + by.clamp(-most, most)).clamp(1, i128::from(u64::MAX)) as u64;
        // From a moment as late as can be: until the new line is the present one, others read the old one
        // beyond it, and may be ahead of a slower one.
        let host = host_counter();
        self.lay(host, line.at(host), slope, bus);
    }

    /// A line through (`host`, `value`); the lock is held.
    fn lay(&self, host: u64, value: u64, slope: u64, bus: &CpuBus) {
        let now = self.now.load(Ordering::Relaxed);
        let next = self.lines.iter().position(|line| std::ptr::eq(line, now)).map_or(0, |n| n + 1);
        let line = &self.lines[next % LINES];
        line.start.store(MARGIN.wrapping_sub(host), Ordering::Relaxed);
        line.slope.store(slope, Ordering::Relaxed);
        line.offset.store(value.wrapping_sub(high(MARGIN, slope)), Ordering::Relaxed);
        self.now.store(std::ptr::from_ref(line).cast_mut(), Ordering::Release);
        let period = u128::from(PERIOD) * u128::from(bus.tsc_khz) / 1_000_000;
        self.due.store(host + ((period << 64) / u128::from(slope.max(1))) as u64, Ordering::Relaxed);
    }
}

/// The host's counter and the clock at one moment.
fn sample(bus: &CpuBus) -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..4 {
        let before = host_counter();
        let clock = bus.clock.now();
        let took = host_counter() - before;
        if took < best.0 {
            best = (took, before + took / 2, clock);
        }
    }
    (best.1, best.2)
}

fn ticks(bus: &CpuBus, clock: u64) -> u64 {
    (u128::from(clock) * u128::from(bus.tsc_khz) / 1_000_000) as u64
}

/// Guest ticks by host tick, times 2^64; `None`: one or more.
fn slope(bus: &CpuBus, host: u64, clock: u64) -> Option<u64> {
    let guest = u128::from(clock) * u128::from(bus.tsc_khz) / 1_000_000;
    if host == 0 || guest == 0 || guest >= u128::from(host) {
        return None;
    }
    Some(((guest << 64) / u128::from(host)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{CODE, Guest, STACK};
    use cpu_interpreter::testing::{long_mode_state, quiet_bus};
    use memory::{AddressSpace, SpaceKind};
    use std::sync::atomic::AtomicBool;

    /// A guest reads its counter while lines are laid every millisecond, by so many threads that the host
    /// takes the processor from each of them for longer now and then.
    #[test]
    fn a_reader_that_is_held_up_sees_no_other_time() {
        // cmp rcx,1 (its flags are wanted behind RDTSC) or nop; rdtsc; jz +0; shl rdx,32; or rax,rdx;
        // mov r8,rax; sub r8,rbx; add r8,rsi; cmp r8,rdi; ja out; mov rbx,rax; dec rcx; jnz; out: hlt
        let code = |live: bool| {
            let first: &[u8] = if live { &[0x48, 0x83, 0xf9, 0x01] } else { &[0x0f, 0x1f, 0x40, 0x00] };
            let branch: &[u8] = if live { &[0x74, 0x00] } else { &[0x66, 0x90] };
            let rest = [
                0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x49, 0x89, 0xc0, 0x49, 0x29, 0xd8, 0x49, 0x01,
                0xf0, 0x49, 0x39, 0xf8, 0x77, 0x08, 0x48, 0x89, 0xc3, 0x48, 0xff, 0xc9, 0x75, 0xdb, 0xf4,
            ];
            // rdtsc; shl rdx,32; or rax,rdx; mov rbx,rax
            let begin = [0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0xc3];
            [&begin, first, &[0x0f, 0x31][..], branch, &rest].concat()
        };
        for live in [false, true] {
            let mut state = long_mode_state(CODE, STACK, 0);
            // From one reading to the next a minute at most, and 10 ms back: lines are laid by far too often.
            (state.gpr[1], state.gpr[6], state.gpr[7]) = (3_000_000, 10_000_000, 60_000_000_000);
            let mut guest = Guest::with(&state, &code(live));
            let done = AtomicBool::new(false);
            let shared = guest.shared();
            let end = std::thread::scope(|scope| {
                for _ in 0..2 * std::thread::available_parallelism().map_or(2, usize::from) {
                    scope.spawn(|| {
                        let bus = quiet_bus(AddressSpace::new(SpaceKind::Memory));
                        let mut last = host_counter();
                        while !done.load(Ordering::SeqCst) {
                            if host_counter() - last > 2_000_000 {
                                last = host_counter();
                                shared.time.due.store(0, Ordering::Relaxed);
                                shared.time.steer(&bus);
                            }
                        }
                    });
                }
                let end = guest.run();
                done.store(true, Ordering::SeqCst);
                end
            });
            assert_eq!(end.gpr[1], 0, "{live}: {:#x} after {:#x}", end.gpr[0], end.gpr[3]);
        }
    }
}
