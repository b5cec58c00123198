//! How long an I/O thread looks for new work before it sleeps (`poll-max-ns` of an iothread).
//!
//! Waking a thread costs more than a small request. A thread that looks on for a moment saves its
//! next waking; how long that is worth while follows from how long it was idle before.

use base::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// The first step up from not looking at all, in nanoseconds.
const FIRST: u64 = 4000;

/// A thread's settings for polling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Look for work at most this long, in nanoseconds; 0: sleep at once.
    pub most: u64,
    /// The time is multiplied by this when it was too short; 0: by the usual factor, 2.
    pub grow: u64,
    /// The time is divided by this when the thread was idle for longer than `most`; 0: it becomes 0.
    pub shrink: u64,
}

impl Limits {
    /// What a thread of the block layer's own has.
    pub const NONE: Limits = Limits { most: 0, grow: 0, shrink: 0 };
}

pub(super) struct Polling {
    most: AtomicU64,
    grow: AtomicU64,
    shrink: AtomicU64,
    /// How long the thread looks for work now, in nanoseconds.
    now: AtomicU64,
    state: Mutex<State>,
    /// The thread is about to sleep.
    idle: Notify,
}

#[derive(Default)]
struct State {
    /// It has worked since it last looked.
    worked: bool,
    idle_since: Option<Instant>,
}

impl Polling {
    pub fn new(limits: Limits) -> Self {
        Polling {
            most: AtomicU64::new(limits.most),
            grow: AtomicU64::new(limits.grow),
            shrink: AtomicU64::new(limits.shrink),
            now: AtomicU64::new(0),
            state: Mutex::default(),
            idle: Notify::new(),
        }
    }

    pub fn limits(&self) -> Limits {
        let [most, grow, shrink] =
            [&self.most, &self.grow, &self.shrink].map(|limit| limit.load(Ordering::Relaxed));
        Limits { most, grow, shrink }
    }

    pub fn set_limits(&self, limits: Limits) {
        self.most.store(limits.most, Ordering::Relaxed);
        self.grow.store(limits.grow, Ordering::Relaxed);
        self.shrink.store(limits.shrink, Ordering::Relaxed);
        self.now.fetch_min(limits.most, Ordering::Relaxed);
    }

    /// Threads of the block layer's own never look: their way to sleep stays short.
    fn is_off(&self) -> bool {
        self.most.load(Ordering::Relaxed) == 0
    }

    /// Before the thread sleeps.
    pub fn parks(&self) {
        if self.is_off() {
            return;
        }
        let mut state = self.state.lock();
        if !state.worked {
            return;
        }
        state.worked = false;
        state.idle_since = Some(Instant::now());
        if self.now.load(Ordering::Relaxed) != 0 {
            self.idle.notify_one();
        }
    }

    /// After it slept.
    pub fn wakes(&self) {
        if self.is_off() {
            return;
        }
        let mut state = self.state.lock();
        state.worked = true;
        if let Some(since) = state.idle_since.take() {
            self.learn(since.elapsed());
        }
    }

    /// Fits the time to how long the thread was idle.
    fn learn(&self, idle: Duration) {
        let Limits { most, grow, shrink } = self.limits();
        let (idle, now) =
            (u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX), self.now.load(Ordering::Relaxed));
        let next = if idle <= now {
            now
        } else if idle > most {
            now.checked_div(shrink).unwrap_or(0)
        } else if now == 0 {
            FIRST.min(most)
        } else {
            now.saturating_mul(if grow == 0 { 2 } else { grow }).min(most)
        };
        self.now.store(next, Ordering::Relaxed);
    }

    /// The thread's own task: keeps it awake while it looks for work.
    pub async fn run(&self) {
        let metrics = Handle::current().metrics();
        loop {
            self.idle.notified().await;
            let (mut since, mut tasks) = (Instant::now(), metrics.num_alive_tasks());
            while since.elapsed() < Duration::from_nanos(self.now.load(Ordering::Relaxed)) {
                tokio::task::yield_now().await;
                let present = metrics.num_alive_tasks();
                if present != tasks {
                    // Requests come or end: it was worth while, and the wait begins anew.
                    (since, tasks) = (Instant::now(), present);
                    self.state.lock().idle_since = Some(since);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_fits_itself_to_the_pauses() {
        let polling = Polling::new(Limits { most: 32_768, grow: 0, shrink: 0 });
        let after = |pauses: &[u64]| {
            pauses.iter().for_each(|&pause| polling.learn(Duration::from_nanos(pause)));
            polling.now.load(Ordering::Relaxed)
        };
        assert_eq!(after(&[10_000]), 4000, "the first step");
        assert_eq!(after(&[10_000]), 8000, "twice as long");
        assert_eq!(after(&[10_000]), 16_000);
        assert_eq!(after(&[10_000, 12_000]), 16_000, "long enough");
        assert_eq!(after(&[30_000, 32_768]), 32_768, "never longer than allowed");
        assert_eq!(after(&[1_000_000]), 0, "the thread has nothing to do");
        polling.set_limits(Limits { most: 100_000, grow: 10, shrink: 4 });
        assert_eq!(after(&[5_000, 50_000]), 40_000, "grow");
        assert_eq!(after(&[1_000_000]), 10_000, "shrink");
        polling.set_limits(Limits::NONE);
        assert_eq!(after(&[]), 0, "switched off at once");
        assert_eq!(after(&[1000]), 0);
    }

    /// A field of what the system says of a thread of ours.
    fn status(thread: &crate::IoThread, field: &str) -> String {
        let all = std::fs::read_to_string(format!("/proc/self/task/{}/status", thread.thread_id())).unwrap();
        let value = all.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap().trim().to_string()
    }

    /// How often it went to sleep.
    fn sleeps(thread: &crate::IoThread) -> u64 {
        status(thread, "voluntary_ctxt_switches").parse().unwrap()
    }

    #[test]
    fn a_thread_that_looks_for_work_sleeps_less() {
        let count = |most: u64, pause: fn(&crate::IoThread)| {
            let thread = crate::IoThread::start("test");
            thread.set_polling(Limits { most, ..Limits::NONE });
            let before = sleeps(&thread);
            for _ in 0..300 {
                thread.run(async {});
                pause(&thread);
            }
            sleeps(&thread) - before
        };
        // A busy machine lets it go to sleep late.
        let sleeping = count(0, |thread| {
            while !status(thread, "State").starts_with('S') {
                std::thread::yield_now();
            }
        });
        // It takes some twenty sleeps to learn to look for so long.
        let polling = count(10_000_000_000, |_| std::thread::sleep(Duration::from_micros(100)));
        assert!(polling * 3 < sleeping, "{polling} times with polling, {sleeping} without");
    }
}
