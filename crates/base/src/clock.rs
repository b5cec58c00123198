//! Clocks and timers of a virtual machine.
//!
//! Three kinds (as QEMU names them): *realtime* counts host monotonic nanoseconds and never
//! stops; *virtual* counts only while the machine runs; *host* is the wall clock. A virtual
//! clock may be *manual* (`-accel qtest`): it then moves only by [`Clock::advance`].
//!
//! All timers of one clock fire on one thread of that clock, in deadline order, with no lock
//! held. Callbacks must be short and must not wait for a vCPU.

mod calendar;

pub use calendar::Calendar;

use crate::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex as StdMutex, MutexGuard as StdGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds in a second.
pub const NANOS: u64 = 1_000_000_000;

/// Seconds that the host's local time is east of UTC at this moment.
#[allow(unsafe_code)]
pub fn local_offset() -> i64 {
    // SAFETY: `tm` is a plain C structure that localtime_r fills in; the arguments are valid.
    unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut parts).is_null() { 0 } else { parts.tm_gmtoff }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Realtime,
    Virtual,
    Host,
    /// A virtual clock that only [`Clock::advance`] moves.
    Manual,
}

/// A clock; clones are the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    kind: Kind,
    origin: Instant,
    /// Running: what to add to the host's monotonic time. Stopped: the frozen time.
    base: AtomicU64,
    running: AtomicBool,
    /// Odd while `base` and `running` are being changed.
    seq: AtomicU64,
    timers: StdMutex<Timers>,
    changed: Condvar,
}

#[derive(Default)]
struct Timers {
    queue: BTreeMap<(u64, u64), Arc<Slot>>,
    next_id: u64,
    thread: bool,
}

type Callback = Box<dyn Fn(u64) + Send + Sync>;

struct Slot {
    id: u64,
    call: Callback,
    /// Deadline in nanoseconds of the clock; `u64::MAX` when not armed.
    deadline: AtomicU64,
    firing: Mutex<()>,
}

impl Clock {
    /// A clock of the given kind, starting at 0 (wall-clock time for `Host`). Virtual and
    /// manual clocks start stopped.
    pub fn new(kind: Kind) -> Self {
        Clock(Arc::new(Inner {
            kind,
            origin: Instant::now(),
            base: AtomicU64::new(0),
            running: AtomicBool::new(matches!(kind, Kind::Realtime | Kind::Host)),
            seq: AtomicU64::new(0),
            timers: StdMutex::default(),
            changed: Condvar::new(),
        }))
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The present time of this clock in nanoseconds.
    pub fn now(&self) -> u64 {
        self.0.now()
    }

    /// Whether the clock moves by itself now.
    pub fn is_running(&self) -> bool {
        self.0.running.load(Ordering::Acquire)
    }

    /// Lets a virtual clock run; no effect on the others.
    pub fn start(&self) {
        if self.0.kind == Kind::Virtual && !self.0.running.load(Ordering::Acquire) {
            let frozen = self.now();
            self.0.set(frozen.wrapping_sub(self.0.host()), true);
            self.0.changed.notify_all();
        }
    }

    /// Freezes a virtual clock; no effect on the others.
    pub fn stop(&self) {
        if self.0.kind == Kind::Virtual && self.0.running.load(Ordering::Acquire) {
            let now = self.now();
            self.0.set(now, false);
            self.0.changed.notify_all();
        }
    }

    /// Sets a stopped virtual or manual clock (migration, snapshots).
    pub fn set(&self, now: u64) {
        if !self.0.running.load(Ordering::Acquire) {
            self.0.set(now, false);
            self.0.changed.notify_all();
        }
    }

    /// Moves a manual clock to `to`, firing every timer due on the way on this thread, each
    /// at its own deadline. Returns the new time.
    pub fn advance(&self, to: u64) -> u64 {
        if self.0.kind != Kind::Manual {
            return self.now();
        }
        while let Some(slot) = self.0.take_due(to) {
            let at = slot.deadline.swap(u64::MAX, Ordering::AcqRel).max(self.now());
            self.0.set(at.min(to), false);
            slot.fire(at);
        }
        if to > self.now() {
            self.0.set(to, false);
        }
        self.now()
    }

    /// The earliest armed deadline.
    pub fn next_deadline(&self) -> Option<u64> {
        self.0.lock().queue.keys().next().map(|&(at, _)| at)
    }

    /// Makes a timer, not armed. The callback gets the deadline that fired.
    pub fn timer(&self, call: impl Fn(u64) + Send + Sync + 'static) -> Timer {
        let mut timers = self.0.lock();
        timers.next_id += 1;
        let id = timers.next_id;
        if !timers.thread && self.0.kind != Kind::Manual {
            timers.thread = true;
            let weak = Arc::downgrade(&self.0);
            std::thread::Builder::new()
                .name(format!("clock-{:?}", self.0.kind).to_lowercase())
                .spawn(move || fire_timers(weak))
                .expect("the host can start a timer thread");
        }
        let slot =
            Slot { id, call: Box::new(call), deadline: AtomicU64::new(u64::MAX), firing: Mutex::new(()) };
        Timer { slot: Arc::new(slot), clock: self.clone() }
    }
}

impl Inner {
    fn lock(&self) -> StdGuard<'_, Timers> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self) -> u64 {
        match self.kind {
            Kind::Host => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64,
            _ => self.origin.elapsed().as_nanos() as u64,
        }
    }

    fn now(&self) -> u64 {
        loop {
            let before = self.seq.load(Ordering::Acquire);
            let base = self.base.load(Ordering::Acquire);
            let running = self.running.load(Ordering::Acquire);
            let now = if running { self.host().wrapping_add(base) } else { base };
            if before & 1 == 0 && self.seq.load(Ordering::Acquire) == before {
                return now;
            }
            std::hint::spin_loop();
        }
    }

    fn set(&self, base: u64, running: bool) {
        let _one_writer = self.lock();
        self.seq.fetch_add(1, Ordering::AcqRel);
        self.base.store(base, Ordering::Release);
        self.running.store(running, Ordering::Release);
        self.seq.fetch_add(1, Ordering::AcqRel);
    }

    fn take_due(&self, now: u64) -> Option<Arc<Slot>> {
        let mut timers = self.lock();
        let (&key, _) = timers.queue.iter().next()?;
        if key.0 > now { None } else { timers.queue.remove(&key) }
    }
}

impl Slot {
    fn fire(&self, at: u64) {
        let _order = self.firing.lock();
        (self.call)(at);
    }
}

fn fire_timers(weak: Weak<Inner>) {
    // Ends when the clock is gone; a parked thread looks once a second.
    const LOOK: Duration = Duration::from_secs(1);
    while let Some(inner) = weak.upgrade() {
        if inner.running.load(Ordering::Acquire)
            && let Some(slot) = inner.take_due(inner.now())
        {
            let at = slot.deadline.swap(u64::MAX, Ordering::AcqRel);
            if at != u64::MAX {
                slot.fire(at);
            }
            continue;
        }
        // Read under the lock that `set` and `arm` take, so that no change is missed.
        let timers = inner.lock();
        let running = inner.running.load(Ordering::Acquire);
        let wait = match timers.queue.keys().next() {
            Some(&(at, _)) if running => Duration::from_nanos(at.saturating_sub(inner.now())).min(LOOK),
            _ => LOOK,
        };
        if !wait.is_zero() {
            drop(inner.changed.wait_timeout(timers, wait));
        }
    }
}

/// A one-shot timer of a [`Clock`]. Dropping it cancels it.
pub struct Timer {
    slot: Arc<Slot>,
    clock: Clock,
}

impl Timer {
    /// Fires at `deadline` (nanoseconds of the clock), replacing an earlier arming. A
    /// deadline in the past fires at once (on the clock's thread).
    pub fn arm(&self, deadline: u64) {
        let deadline = deadline.min(u64::MAX - 1);
        let mut timers = self.clock.0.lock();
        let old = self.slot.deadline.swap(deadline, Ordering::AcqRel);
        timers.queue.remove(&(old, self.slot.id));
        timers.queue.insert((deadline, self.slot.id), self.slot.clone());
        let first = timers.queue.keys().next().is_some_and(|&(_, id)| id == self.slot.id);
        drop(timers);
        if first {
            self.clock.0.changed.notify_all();
        }
    }

    /// Fires `delay` nanoseconds from now.
    pub fn arm_in(&self, delay: u64) {
        self.arm(self.clock.now().saturating_add(delay));
    }

    /// Disarms; a callback already running is not waited for.
    pub fn cancel(&self) {
        let mut timers = self.clock.0.lock();
        let old = self.slot.deadline.swap(u64::MAX, Ordering::AcqRel);
        timers.queue.remove(&(old, self.slot.id));
    }

    /// The deadline, if armed.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.slot.deadline.load(Ordering::Acquire)).filter(|&at| at != u64::MAX)
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests;
