use super::*;
use base::clock::Kind;

fn limited(bps: u64) -> Config {
    let mut config = Config::default();
    config.bps[0].avg = bps;
    config
}

fn spawn(runtime: &tokio::runtime::Runtime, group: &Arc<Group>, bytes: u64) -> tokio::task::JoinHandle<()> {
    let group = group.clone();
    let task = runtime.spawn(async move { group.wait(false, bytes).await });
    runtime.block_on(async { tokio::task::yield_now().await });
    task
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

#[test]
fn a_limit_paces_requests_on_the_clock_however_far_it_steps() {
    let (clock, runtime) = (Clock::new(Kind::Manual), runtime());
    let group = Group::new("g", clock.clone());
    group.set_config(limited(1000));
    let tasks: Vec<_> = (0..40).map(|_| spawn(&runtime, &group, 100)).collect();
    let done = || {
        runtime.block_on(async { tokio::task::yield_now().await });
        tasks.iter().filter(|task| task.is_finished()).count()
    };
    let at_once = done();
    assert!((1..=2).contains(&at_once), "{at_once}");
    clock.advance(1_000_000_000);
    let after_a_second = done() - at_once;
    assert!((9..=11).contains(&after_a_second), "{after_a_second}");
    clock.advance(3_000_000_000);
    let after_three = done() - at_once;
    assert!((29..=31).contains(&after_three), "{after_three}");
    group.set_config(Config::default());
    assert_eq!(done(), 40, "without limit all go at once");
}

#[test]
fn who_gives_up_is_not_counted() {
    let (clock, runtime) = (Clock::new(Kind::Manual), runtime());
    let group = Group::new("g", clock.clone());
    group.set_config(limited(1000));
    let first = spawn(&runtime, &group, 1000);
    let (second, third) = (spawn(&runtime, &group, 1_000_000), spawn(&runtime, &group, 100));
    runtime.block_on(async { tokio::task::yield_now().await });
    assert!(first.is_finished() && !second.is_finished());
    second.abort();
    runtime.block_on(async { tokio::task::yield_now().await });
    clock.advance(1_100_000_000);
    runtime.block_on(async { tokio::task::yield_now().await });
    assert!(third.is_finished());
}

#[test]
fn contradictions_are_refused() {
    let text = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.check().unwrap_err().text
    };
    assert!(text(|c| (c.bps[0].avg, c.bps[1].avg) = (1, 1)).contains("cannot be used at the same time"));
    assert!(text(|c| c.iops[0].max = 5).starts_with("bps_max/iops_max require"));
    assert!(
        text(|c| (c.iops[0].avg, c.iops[0].max) = (9, 5)).starts_with("bps_max/iops_max cannot be lower")
    );
    assert_eq!(text(|c| c.bps[1].burst_length = 0), "the burst length cannot be 0");
    assert_eq!(text(|c| c.bps[1].burst_length = 9), "burst length set without burst rate");
    assert_eq!(text(|c| c.iops_size = 9), "iops size requires an iops value to be set");
    assert_eq!(text(|c| c.bps[2].avg = u64::MAX), "bps/iops/max values must be within [0, 1000000000000000]");
}

#[test]
fn names_and_numbers_belong_together() {
    let mut options =
        crate::Options::json(serde_json::json!({"x-bps-read": 7, "x-iops-total-max-length": 3}));
    let mut config = Config::default();
    config.take(&mut options, "x-").unwrap();
    assert!(options.is_empty());
    assert_eq!((config.bps[1].avg, config.iops[0].burst_length), (7, 3));
    assert_eq!(config.table().len(), 19);
    assert_eq!(config.table()["bps-read"], 7);
}
