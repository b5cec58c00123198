//! Random tests: numbers that a seed repeats, and how many cases are run.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// SplitMix64.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// Runs `case` with `count` seeds from `first` on, or with those of `RYOKAN_WALK=first:count`.
/// Goes on after a failed case, and fails at the end.
pub fn walk(first: u64, count: u64, case: impl Fn(u64)) {
    let asked = std::env::var("RYOKAN_WALK").ok();
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|e| panic!("RYOKAN_WALK: {text}: {e}"));
    let (first, count) = match asked.as_deref().map(|text| text.split_once(':').unwrap_or((text, "1"))) {
        Some((first, count)) => (number(first), number(count)),
        None => (first, count),
    };
    let fails = |seed: &u64| catch_unwind(AssertUnwindSafe(|| case(*seed))).is_err();
    let failed: Vec<u64> = (first..first + count).filter(fails).collect();
    assert!(failed.is_empty(), "failed: {failed:?} (RYOKAN_WALK=seed:1 runs one of them)");
}
