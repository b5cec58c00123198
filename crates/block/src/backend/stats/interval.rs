//! Latencies over a sliding interval: two windows of its length that begin half a length apart;
//! the older one tells.

use super::Kind;
use base::clock::NANOS;

/// Nanoseconds; 0 where there was no request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    pub min: u64,
    pub max: u64,
    pub average: u64,
    /// Requests in flight at a time, on average.
    pub depth: f64,
}

/// `BlockDeviceTimedStats`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimedStats {
    pub seconds: u32,
    pub read: Latency,
    pub write: Latency,
    pub flush: Latency,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    min: u64,
    max: u64,
    sum: u64,
    count: u64,
}

struct Window {
    /// Nanoseconds of the clock.
    ends: u64,
    kinds: [Sums; 4],
}

pub(super) struct Interval {
    seconds: u32,
    windows: [Window; 2],
}

impl Interval {
    pub fn new(seconds: u32, now: u64) -> Self {
        let period = u64::from(seconds) * NANOS;
        let window = |ends| Window { ends, kinds: Default::default() };
        Interval { seconds, windows: [window(now + period / 2), window(now + period)] }
    }

    fn period(&self) -> u64 {
        u64::from(self.seconds) * NANOS
    }

    /// Empties windows whose time is over.
    fn slide(&mut self, now: u64) {
        let period = self.period();
        for window in &mut self.windows {
            if window.ends <= now {
                window.kinds = Default::default();
                window.ends += (now - window.ends) / period * period + period;
            }
        }
    }

    pub fn add(&mut self, kind: Kind, time: u64, now: u64) {
        self.slide(now);
        for window in &mut self.windows {
            let sums = &mut window.kinds[kind as usize];
            sums.min = if sums.count == 0 { time } else { sums.min.min(time) };
            sums.max = sums.max.max(time);
            sums.sum += time;
            sums.count += 1;
        }
    }

    pub fn tell(&mut self, now: u64) -> TimedStats {
        self.slide(now);
        let period = self.period();
        let [one, other] = &self.windows;
        let oldest = if one.ends <= other.ends { one } else { other };
        let elapsed = period - (oldest.ends - now).min(period);
        let latency = |kind: Kind| {
            let sums = oldest.kinds[kind as usize];
            Latency {
                min: sums.min,
                max: sums.max,
                average: sums.sum.checked_div(sums.count).unwrap_or(0),
                depth: if elapsed > 0 { sums.sum as f64 / elapsed as f64 } else { 0.0 },
            }
        };
        TimedStats {
            seconds: self.seconds,
            read: latency(Kind::Read),
            write: latency(Kind::Write),
            flush: latency(Kind::Flush),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_requests_are_forgotten_after_the_interval() {
        let mut interval = Interval::new(10, 0);
        interval.add(Kind::Read, 4, 6 * NANOS);
        interval.add(Kind::Read, 8, 6 * NANOS);
        let now = interval.tell(7 * NANOS);
        assert_eq!((now.read.min, now.read.max, now.read.average), (4, 8, 6));
        assert_eq!(now.write, Latency::default());
        // 12 ns of work in the 7 s since the older window began.
        assert!((now.read.depth - 12.0 / (7 * NANOS) as f64).abs() < 1e-12);
        assert_eq!(interval.tell(14 * NANOS).read.max, 8);
        assert_eq!(interval.tell(20 * NANOS).read, Latency::default());
        interval.add(Kind::Flush, 1, 1000 * NANOS);
        assert_eq!(interval.tell(1001 * NANOS).flush.max, 1);
    }
}
