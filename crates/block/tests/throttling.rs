//! Throttling measured: what passes a group in ten seconds, against what its limits say.

#![allow(missing_docs)]

use base::clock::{Clock, Kind, NANOS};
use block::throttle::{Bucket, Config, Group};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Tasks that send requests one after the other; `writers` of eight write.
fn load(group: &Arc<Group>, writers: usize, bytes: u64) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    for task in 0..8 {
        let (group, count) = (group.clone(), count.clone());
        tokio::spawn(async move {
            loop {
                group.wait(task < writers, bytes).await;
                count.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
    }
    count
}

fn group(clock: &Clock, set: &dyn Fn(&mut Config)) -> Arc<Group> {
    let group = Group::new("g", clock.clone());
    let mut config = Config::default();
    set(&mut config);
    config.check().unwrap();
    group.set_config(config);
    group
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// How many requests pass in `seconds` of a clock that is moved from timer to timer.
fn passed(set: &dyn Fn(&mut Config), writers: usize, bytes: u64, seconds: u64) -> u64 {
    runtime().block_on(async {
        let clock = Clock::new(Kind::Manual);
        let count = load(&group(&clock, set), writers, bytes);
        loop {
            // Until every task waits for the clock.
            let mut before = u64::MAX;
            while before != count.load(Ordering::Relaxed) {
                before = count.load(Ordering::Relaxed);
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
            match clock.next_deadline() {
                Some(next) if next < seconds * NANOS => clock.advance(next),
                Some(_) => return count.load(Ordering::Relaxed),
                None => panic!("requests wait for no timer"),
            };
        }
    })
}

fn bucket(avg: u64, max: u64, burst_length: u64) -> Bucket {
    Bucket { avg, max, burst_length }
}

fn within(count: u64, expected: f64) {
    let off = (count as f64 - expected).abs() / expected;
    assert!(off <= 0.05, "{count}, expected {expected}: {:.1} % off", off * 100.0);
}

#[test]
fn limits_hold_within_5_percent() {
    within(passed(&|config| config.iops[0] = bucket(500, 0, 1), 0, 4096, 10), 5000.0);
    within(passed(&|config| config.iops[0] = bucket(500, 0, 1), 4, 4096, 10), 5000.0);
    let apart = |config: &mut Config| {
        config.iops[1] = bucket(500, 0, 1);
        config.iops[2] = bucket(300, 0, 1);
    };
    within(passed(&apart, 4, 512, 10), 8000.0);
    within(passed(&|config| config.bps[0] = bucket(10 << 20, 0, 1), 0, 65536, 10), 1600.0);
    within(passed(&|config| config.bps[2] = bucket(1 << 20, 0, 1), 8, 4096, 10), 2560.0);
    // Large requests count as several.
    let sized = |config: &mut Config| {
        config.iops[0] = bucket(1000, 0, 1);
        config.iops_size = 4096;
    };
    within(passed(&sized, 0, 16384, 10), 2500.0);
}

#[test]
fn bursts_hold_within_5_percent() {
    // A bucket of 3 s at 1000/s, out of which 100/s run: in ten seconds both.
    within(passed(&|config| config.iops[0] = bucket(100, 1000, 3), 0, 512, 10), 4000.0);
    // Two seconds at the burst's rate.
    within(passed(&|config| config.iops[0] = bucket(100, 1000, 3), 0, 512, 2), 2100.0);
    // Without a length the bucket holds one second of the burst.
    within(passed(&|config| config.iops[0] = bucket(100, 1000, 1), 0, 512, 10), 2000.0);
    let bytes = |config: &mut Config| config.bps[2] = bucket(1 << 20, 8 << 20, 2);
    within(passed(&bytes, 8, 65536, 10), (16.0 + 10.0) * 16.0);
}

fn real(set: &dyn Fn(&mut Config), bytes: u64, seconds: f64) -> u64 {
    runtime().block_on(async {
        let clock = Clock::new(Kind::Realtime);
        let count = load(&group(&clock, set), 4, bytes);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        count.load(Ordering::Relaxed)
    })
}

/// `cargo test -p block --test throttling -- --ignored --nocapture`
#[test]
#[ignore = "takes half a minute, and a machine that is not busy"]
fn ten_real_seconds_at_each_limit() {
    type Limit = (&'static str, fn(&mut Config), u64, f64);
    let limits: [Limit; 3] = [
        ("iops", |config| config.iops[0] = bucket(500, 0, 1), 4096, 5000.0),
        ("bps", |config| config.bps[0] = bucket(20 << 20, 0, 1), 65536, 3200.0),
        ("burst", |config| config.iops[0] = bucket(100, 500, 4), 4096, 3000.0),
    ];
    for (name, set, bytes, expected) in limits {
        let count = real(&set, bytes, 10.0);
        println!("{name}: {count} requests in 10 s, expected {expected}");
        within(count, expected);
    }
}

/// That limits bind and waiting requests are woken; the machine may be busy.
#[test]
fn a_limit_binds_in_real_time() {
    let count = real(&|config| config.iops[0] = bucket(200, 0, 1), 4096, 2.0);
    assert!((20..=440).contains(&count), "{count}");
}
