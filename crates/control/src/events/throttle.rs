//! At most one event a second of each kind and key; the latest of those held back wins. Times are
//! nanoseconds of one clock.

use qapi::Value;
use qmp::Line;

const PERIOD: u64 = base::clock::NANOS;

/// What to do with an event.
pub enum Verdict {
    Send(Line),
    Held,
}

struct Slot {
    name: &'static str,
    key: Vec<Value>,
    last: u64,
    held: Option<Line>,
}

#[derive(Default)]
pub struct Throttle(Vec<Slot>);

impl Throttle {
    pub fn offer(&mut self, name: &'static str, key: Vec<Value>, line: Line, now: u64) -> Verdict {
        // Slots that have been quiet for a period say nothing any more.
        self.0.retain(|slot| slot.held.is_some() || now.saturating_sub(slot.last) < PERIOD);
        match self.0.iter_mut().find(|slot| slot.name == name && slot.key == key) {
            Some(slot) => {
                slot.held = Some(line);
                Verdict::Held
            }
            None => {
                self.0.push(Slot { name, key, last: now, held: None });
                Verdict::Send(line)
            }
        }
    }

    /// When the next event held back is to be sent.
    pub fn next_due(&self) -> Option<u64> {
        self.0.iter().filter(|slot| slot.held.is_some()).map(|slot| slot.last + PERIOD).min()
    }

    /// Events whose time has come.
    pub fn take_due(&mut self, now: u64) -> Vec<Line> {
        let mut due = Vec::new();
        for slot in &mut self.0 {
            if now >= slot.last + PERIOD
                && let Some(line) = slot.held.take()
            {
                // It was due then, however late the clock is looked at.
                slot.last += PERIOD;
                due.push(line);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn offer(throttle: &mut Throttle, key: i64, n: i64, now: u64) -> Option<i64> {
        match throttle.offer("E", vec![json!(key)], Line::new(json!(n)), now) {
            Verdict::Send(line) => line.value().as_i64(),
            Verdict::Held => None,
        }
    }

    fn due(throttle: &mut Throttle, now: u64) -> Vec<i64> {
        throttle.take_due(now).iter().map(|line| line.value().as_i64().unwrap()).collect()
    }

    #[test]
    fn latest_wins_and_comes_within_a_second() {
        let mut throttle = Throttle::default();
        let at = |ms: u64| ms * 1_000_000;
        assert_eq!(offer(&mut throttle, 1, 1, at(0)), Some(1));
        assert_eq!(throttle.next_due(), None);
        assert_eq!(offer(&mut throttle, 1, 2, at(10)), None);
        assert_eq!(offer(&mut throttle, 1, 3, at(20)), None);
        assert_eq!(offer(&mut throttle, 2, 9, at(20)), Some(9), "another key has its own slot");
        assert_eq!(throttle.next_due(), Some(at(1000)));
        assert!(due(&mut throttle, at(999)).is_empty());
        assert_eq!(due(&mut throttle, at(1000)), [3]);
        assert_eq!(offer(&mut throttle, 1, 4, at(1500)), None);
        assert_eq!(due(&mut throttle, at(2000)), [4]);
        assert_eq!(offer(&mut throttle, 1, 5, at(3000)), Some(5), "quiet for a second");
        assert_eq!(throttle.0.len(), 1, "quiet slots are forgotten");
        assert_eq!(offer(&mut throttle, 1, 6, at(3001)), None);
        assert_eq!(due(&mut throttle, at(5000)), [6], "looked at a second late");
        assert_eq!(offer(&mut throttle, 1, 7, at(5000)), Some(7), "quiet since it was due");
    }
}
