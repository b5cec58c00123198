//! I/O limits: leaky buckets shared by the members of a group.

mod config;
#[cfg(test)]
mod tests;
mod valve;

pub(crate) use config::LIMIT;
pub use config::{Bucket, Config};
pub use valve::Valve;

use base::Mutex;
use base::clock::{Clock, NANOS, Timer};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use tokio::sync::oneshot;

#[derive(Clone, Copy, Default)]
struct Level {
    level: f64,
    burst: f64,
}

/// A request that has to wait. Whoever gave up has dropped the other end.
struct Waiting {
    bytes: u64,
    go: oneshot::Sender<()>,
}

struct State {
    config: Config,
    /// bps then iops, each total, read, write.
    levels: [Level; 6],
    leaked_at: u64,
    /// Reads and writes, each in the order of asking.
    queues: [VecDeque<Waiting>; 2],
}

/// A group of users that share limits.
pub struct Group {
    pub name: String,
    clock: Clock,
    state: Mutex<State>,
    /// When the first of each queue may go.
    timers: [Timer; 2],
}

impl Group {
    pub fn new(name: &str, clock: Clock) -> Arc<Self> {
        Arc::new_cyclic(|group: &Weak<Group>| {
            let timer = |side: usize| {
                let group = group.clone();
                clock.timer(move |_| {
                    if let Some(group) = group.upgrade() {
                        group.release(side);
                    }
                })
            };
            Group {
                name: name.to_string(),
                timers: [timer(0), timer(1)],
                state: Mutex::new(State {
                    config: Config::default(),
                    levels: Default::default(),
                    leaked_at: clock.now(),
                    queues: Default::default(),
                }),
                clock,
            }
        })
    }

    pub fn config(&self) -> Config {
        self.state.lock().config
    }

    /// Replaces all limits and forgets past use; waiting requests are looked at anew.
    pub fn set_config(&self, config: Config) {
        let mut state = self.state.lock();
        state.config = config;
        state.levels = Default::default();
        state.leaked_at = self.clock.now();
        drop(state);
        self.release(0);
        self.release(1);
    }

    /// Waits until a request of `bytes` may go, and counts it. Dropping the future gives up.
    pub async fn wait(&self, write: bool, bytes: u64) {
        let side = usize::from(write);
        let gone = {
            let mut state = self.state.lock();
            if !state.config.is_limited() {
                return;
            }
            if state.queues[side].is_empty() {
                match state.try_pass(side, bytes, self.clock.now()) {
                    None => return,
                    Some(delay) => self.timers[side].arm_in(delay),
                }
            }
            let (go, gone) = oneshot::channel();
            state.queues[side].push_back(Waiting { bytes, go });
            gone
        };
        // The sender lives in the queue as long as the group.
        let _ = gone.await;
    }

    /// Counts a request that goes without waiting.
    fn count(&self, write: bool, bytes: u64) {
        let mut state = self.state.lock();
        if state.config.is_limited() {
            state.leak(self.clock.now());
            let used = state.used(usize::from(write), bytes);
            state.take(used);
        }
    }

    /// Lets those at the head of a queue go whose time has come. Runs on the clock's thread, so
    /// that what a manual clock allows does not depend on how far it steps.
    fn release(&self, side: usize) {
        let mut state = self.state.lock();
        while let Some(first) = state.queues[side].front() {
            if first.go.is_closed() {
                state.queues[side].pop_front();
                continue;
            }
            let bytes = first.bytes;
            if let Some(delay) = state.try_pass(side, bytes, self.clock.now()) {
                self.timers[side].arm_in(delay);
                return;
            }
            if let Some(first) = state.queues[side].pop_front() {
                let _ = first.go.send(());
            }
        }
    }
}

impl State {
    fn bucket(&self, at: usize) -> Bucket {
        if at < 3 { self.config.bps[at] } else { self.config.iops[at - 3] }
    }

    /// Counts the request and lets it go, or says how many nanoseconds to wait.
    fn try_pass(&mut self, side: usize, bytes: u64, now: u64) -> Option<u64> {
        self.leak(now);
        let used = self.used(side, bytes);
        let delay = used.iter().map(|&(at, _)| self.delay(at)).fold(0.0, f64::max);
        if delay > 0.0 {
            return Some((delay * NANOS as f64) as u64 + 1);
        }
        self.take(used);
        None
    }

    /// Which buckets a request fills, and by how much.
    fn used(&self, side: usize, bytes: u64) -> [(usize, f64); 4] {
        let size = self.config.iops_size;
        let ops = if size > 0 && bytes > size { bytes as f64 / size as f64 } else { 1.0 };
        [(0, bytes as f64), (1 + side, bytes as f64), (3, ops), (4 + side, ops)]
    }

    fn take(&mut self, used: [(usize, f64); 4]) {
        for (at, amount) in used {
            self.levels[at].level += amount;
            self.levels[at].burst += amount;
        }
    }

    fn leak(&mut self, now: u64) {
        let seconds = now.saturating_sub(self.leaked_at) as f64 / NANOS as f64;
        self.leaked_at = now;
        for at in 0..6 {
            let bucket = self.bucket(at);
            let level = &mut self.levels[at];
            level.level = (level.level - bucket.avg as f64 * seconds).max(0.0);
            level.burst = (level.burst - bucket.max as f64 * seconds).max(0.0);
        }
    }

    /// Seconds until the bucket has room.
    fn delay(&self, at: usize) -> f64 {
        let (bucket, level) = (self.bucket(at), self.levels[at]);
        if bucket.avg == 0 {
            return 0.0;
        }
        let (size, burst_size) = match bucket.max {
            0 => (bucket.avg as f64 / 10.0, 0.0),
            max => (max as f64 * bucket.burst_length.max(1) as f64, max as f64 / 10.0),
        };
        let over = level.level - size;
        if over > 0.0 {
            return over / bucket.avg as f64;
        }
        if bucket.burst_length > 1 {
            let over = level.burst - burst_size;
            if over > 0.0 {
                return over / bucket.max as f64;
            }
        }
        0.0
    }
}

/// The named groups. Groups made by `-object throttle-group` are held by their object;
/// others live as long as a member.
pub struct Groups {
    /// What groups to come are measured with.
    clock: Mutex<Clock>,
    named: Mutex<HashMap<String, Weak<Group>>>,
}

impl Groups {
    pub(crate) fn new(clock: Clock) -> Self {
        Groups { clock: Mutex::new(clock), named: Mutex::default() }
    }

    /// Groups made from now on are measured with `clock`.
    pub fn set_clock(&self, clock: Clock) {
        *self.clock.lock() = clock;
    }

    pub fn find(&self, name: &str) -> Option<Arc<Group>> {
        self.named.lock().get(name).and_then(Weak::upgrade)
    }

    /// The group of that name, made if need be.
    pub fn obtain(&self, name: &str) -> Arc<Group> {
        let mut named = self.named.lock();
        named.retain(|_, group| group.strong_count() > 0);
        if let Some(group) = named.get(name).and_then(Weak::upgrade) {
            return group;
        }
        let group = Group::new(name, self.clock.lock().clone());
        named.insert(name.to_string(), Arc::downgrade(&group));
        group
    }
}
