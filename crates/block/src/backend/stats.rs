//! What a back end counts (`query-blockstats`).

mod interval;

pub use interval::{Latency, TimedStats};

use base::Mutex;
use base::clock::{Clock, Kind as ClockKind, NANOS};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a request does, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
    Unmap,
}

/// Counters of one kind of request.
#[derive(Default)]
pub struct Counters {
    pub bytes: AtomicU64,
    pub operations: AtomicU64,
    pub failed: AtomicU64,
    pub invalid: AtomicU64,
    /// Nanoseconds, queueing included.
    pub time: AtomicU64,
    pub merged: AtomicU64,
    /// `block-latency-histogram-set`: boundaries in nanoseconds and the bins between them.
    pub histogram: Mutex<Option<(Vec<u64>, Vec<u64>)>>,
}

/// The statistics of a back end.
pub struct Stats {
    clock: Clock,
    kinds: [Counters; 4],
    last_access: AtomicU64,
    intervals: Vec<Mutex<interval::Interval>>,
    /// `stats-account-invalid`, `stats-account-failed`.
    account_invalid: AtomicBool,
    account_failed: AtomicBool,
}

impl Stats {
    /// `intervals` in seconds.
    pub fn new(clock: Clock, account_invalid: bool, account_failed: bool, intervals: &[u32]) -> Self {
        let interval = |seconds: &u32| Mutex::new(interval::Interval::new(*seconds, clock.now()));
        Stats {
            kinds: Default::default(),
            last_access: AtomicU64::new(0),
            intervals: intervals.iter().map(interval).collect(),
            account_invalid: AtomicBool::new(account_invalid),
            account_failed: AtomicBool::new(account_failed),
            clock,
        }
    }

    /// Whether invalid and failed requests count as accesses; `None`: as before.
    pub fn set_accounting(&self, invalid: Option<bool>, failed: Option<bool>) {
        for (flag, on) in [(&self.account_invalid, invalid), (&self.account_failed, failed)] {
            if let Some(on) = on {
                flag.store(on, Ordering::Relaxed);
            }
        }
    }

    /// What [`Stats::set_accounting`] said.
    pub fn accounting(&self) -> (bool, bool) {
        (self.account_invalid.load(Ordering::Relaxed), self.account_failed.load(Ordering::Relaxed))
    }

    pub fn of(&self, kind: Kind) -> &Counters {
        &self.kinds[kind as usize]
    }

    /// To be given to [`Stats::done`].
    pub fn start(&self) -> u64 {
        self.clock.now()
    }

    /// A request that began at `started` ended.
    pub fn done(&self, kind: Kind, bytes: u64, started: u64, ok: bool) {
        let now = self.clock.now();
        let counters = self.of(kind);
        // On a clock that only a test moves every request takes a millisecond, as is customary.
        let time = match self.clock.kind() {
            ClockKind::Manual => NANOS / 1000,
            _ => now.saturating_sub(started),
        };
        if let Some((limits, bins)) = counters.histogram.lock().as_mut() {
            bins[limits.partition_point(|limit| *limit <= time)] += 1;
        }
        if ok {
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
            counters.operations.fetch_add(1, Ordering::Relaxed);
        } else {
            counters.failed.fetch_add(1, Ordering::Relaxed);
        }
        if ok || self.accounting().1 {
            counters.time.fetch_add(time, Ordering::Relaxed);
            self.last_access.store(now, Ordering::Relaxed);
            self.intervals.iter().for_each(|interval| interval.lock().add(kind, time, now));
        }
    }

    /// What happened in the last seconds, for each interval.
    pub fn timed(&self) -> Vec<TimedStats> {
        let now = self.clock.now();
        self.intervals.iter().map(|interval| interval.lock().tell(now)).collect()
    }

    /// A request that made no sense (misaligned, past the end).
    pub fn invalid(&self, kind: Kind) {
        self.of(kind).invalid.fetch_add(1, Ordering::Relaxed);
        if self.accounting().0 {
            self.last_access.store(self.clock.now(), Ordering::Relaxed);
        }
    }

    /// Nanoseconds since the last request, if there was one.
    pub fn idle(&self) -> Option<u64> {
        match self.last_access.load(Ordering::Relaxed) {
            0 => None,
            last => Some(self.clock.now().saturating_sub(last)),
        }
    }
}
