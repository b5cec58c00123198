//! I/O limits: leaky buckets shared by the members of a group.

use base::clock::{Clock, NANOS, Timer};
use base::{Mutex, Result, bail};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// One limit. Units (bytes or operations) per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    /// Long-term rate; 0 is no limit.
    pub avg: u64,
    /// Rate in bursts; 0 allows a tenth of a second of `avg`.
    pub max: u64,
    /// Seconds for which `max` may last; at least 1.
    pub burst_length: u64,
}

/// The limits of a group, in the order total, read, write.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Config {
    pub bps: [Bucket; 3],
    pub iops: [Bucket; 3],
    /// A request of n bytes counts as n/iops_size operations; 0 counts each as one.
    pub iops_size: u64,
}

const LIMIT: u64 = 1_000_000_000_000_000;

impl Config {
    pub fn is_limited(&self) -> bool {
        self.bps.iter().chain(&self.iops).any(|bucket| bucket.avg > 0)
    }

    /// Refuses contradictions, with the customary texts.
    pub fn check(&self) -> Result<()> {
        for group in [&self.bps, &self.iops] {
            let [total, read, write] = group;
            if (total.avg > 0 && (read.avg > 0 || write.avg > 0))
                || (total.max > 0 && (read.max > 0 || write.max > 0))
            {
                bail!("bps/iops/max total values and read/write values cannot be used at the same time");
            }
        }
        if self.iops_size > 0 && self.iops.iter().all(|bucket| bucket.avg == 0) {
            bail!("iops size requires an iops value to be set");
        }
        for bucket in self.bps.iter().chain(&self.iops) {
            if bucket.avg > LIMIT || bucket.max > LIMIT {
                bail!("bps/iops/max values must be within [0, {LIMIT}]");
            }
            if bucket.burst_length == 0 && bucket.max > 0 {
                bail!("the burst length cannot be 0");
            }
            if bucket.burst_length > 1 && bucket.max == 0 {
                bail!("burst length set without burst rate");
            }
            if bucket.max > 0 && bucket.burst_length > LIMIT / bucket.max {
                bail!("burst length too high for this burst rate");
            }
            if bucket.max > 0 && bucket.avg == 0 {
                bail!("bps_max/iops_max require corresponding bps/iops values");
            }
            if bucket.max > 0 && bucket.max < bucket.avg {
                bail!("bps_max/iops_max cannot be lower than bps/iops");
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Default)]
struct Level {
    level: f64,
    burst: f64,
}

struct State {
    config: Config,
    /// bps then iops, each total, read, write.
    levels: [Level; 6],
    leaked_at: u64,
}

/// A group of users that share limits.
pub struct Group {
    pub name: String,
    clock: Clock,
    state: Mutex<State>,
    /// One request of each direction waits at the head; the others queue in order.
    heads: [tokio::sync::Mutex<()>; 2],
    wake: Arc<Notify>,
    timers: [Timer; 2],
}

impl Group {
    pub fn new(name: &str, clock: Clock) -> Arc<Self> {
        let wake = Arc::new(Notify::new());
        let timer = || {
            let wake = wake.clone();
            clock.timer(move |_| wake.notify_waiters())
        };
        Arc::new(Group {
            name: name.to_string(),
            timers: [timer(), timer()],
            state: Mutex::new(State {
                config: Config::default(),
                levels: Default::default(),
                leaked_at: clock.now(),
            }),
            heads: Default::default(),
            wake,
            clock,
        })
    }

    pub fn config(&self) -> Config {
        self.state.lock().config
    }

    /// Replaces all limits and forgets past use; waiting requests are looked at anew.
    pub fn set_config(&self, config: Config) {
        let mut state = self.state.lock();
        *state = State { config, levels: Default::default(), leaked_at: self.clock.now() };
        drop(state);
        self.wake.notify_waiters();
    }

    /// Waits until a request of `bytes` may go, and counts it.
    pub async fn wait(&self, write: bool, bytes: u64) {
        if !self.state.lock().config.is_limited() {
            return;
        }
        let side = usize::from(write);
        let _head = self.heads[side].lock().await;
        loop {
            let woken = self.wake.notified();
            let Some(delay) = self.try_pass(side, bytes) else { return };
            self.timers[side].arm_in(delay);
            woken.await;
        }
    }

    /// Counts the request and lets it go, or says how many nanoseconds to wait.
    fn try_pass(&self, side: usize, bytes: u64) -> Option<u64> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.leak(self.clock.now());
        let config = state.config;
        let ops = if config.iops_size > 0 && bytes > config.iops_size {
            bytes as f64 / config.iops_size as f64
        } else {
            1.0
        };
        let used = [(0, bytes as f64), (1 + side, bytes as f64), (3, ops), (4 + side, ops)];
        let delay = used.iter().map(|&(at, _)| state.delay(at)).fold(0.0, f64::max);
        if delay > 0.0 {
            return Some((delay * NANOS as f64) as u64 + 1);
        }
        for (at, amount) in used {
            state.levels[at].level += amount;
            state.levels[at].burst += amount;
        }
        None
    }
}

impl State {
    fn bucket(&self, at: usize) -> Bucket {
        if at < 3 { self.config.bps[at] } else { self.config.iops[at - 3] }
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
    clock: Clock,
    named: Mutex<HashMap<String, Weak<Group>>>,
}

impl Groups {
    pub(crate) fn new(clock: Clock) -> Self {
        Groups { clock, named: Mutex::default() }
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
        let group = Group::new(name, self.clock.clone());
        named.insert(name.to_string(), Arc::downgrade(&group));
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::clock::Kind;

    #[test]
    fn a_limit_paces_requests_on_the_clock() {
        let clock = Clock::new(Kind::Manual);
        let group = Group::new("g", clock.clone());
        let mut config = Config::default();
        config.bps[0] = Bucket { avg: 1000, max: 0, burst_length: 1 };
        group.set_config(config);
        // Level 0, then 101 > 100 (a tenth of a second).
        assert_eq!(group.try_pass(0, 101), None);
        let delay = group.try_pass(1, 50).expect("over the limit");
        assert!((900_000..1_100_000).contains(&delay), "{delay}");
        clock.advance(2_000_000);
        assert_eq!(group.try_pass(1, 50), None);
    }

    #[test]
    fn contradictions_are_refused() {
        let mut config = Config::default();
        config.bps[0].avg = 1;
        config.bps[1].avg = 1;
        assert!(config.check().unwrap_err().text.contains("cannot be used at the same time"));
        let mut config = Config::default();
        config.iops[0].max = 5;
        config.iops[0].burst_length = 1;
        assert!(config.check().unwrap_err().text.starts_with("bps_max/iops_max require"));
    }
}
