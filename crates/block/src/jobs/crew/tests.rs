use super::*;
use crate::graph::tests::graph;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Barrier, oneshot};

/// Runs `test` where jobs run.
fn on_graph<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(Arc<Graph>) -> F) {
    let graph = graph();
    let test = test(graph.clone());
    let limited = async { tokio::time::timeout(Duration::from_secs(60), test).await };
    graph.block_on(limited).expect("everything ends");
}

#[test]
fn the_ranges_in_flight_are_known() {
    on_graph(async |graph| {
        let mut crew = Crew::new(&graph, 2);
        assert!(crew.is_empty() && !crew.is_full());
        let ((first, one), (second, two)) = (oneshot::channel(), oneshot::channel());
        crew.start(0, 10, async { one.await.unwrap() });
        assert!(!crew.is_full() && !crew.is_empty());
        crew.start(20, 5, async { two.await.unwrap() });
        assert!(crew.is_full());
        assert_eq!(crew.bytes(), 15);
        for (range, meets) in [
            ((0, 1), true),
            ((9, 1), true),
            ((10, 10), false),
            ((19, 2), true),
            ((25, 9), false),
            ((5, 99), true),
        ] {
            assert_eq!(crew.meets(range.0, range.1), meets, "{range:?}");
        }
        second.send("second").unwrap();
        let ended = crew.next().await.unwrap().unwrap();
        assert_eq!((ended.from, ended.len, ended.result), (20, 5, "second"));
        assert!(!crew.is_full() && !crew.meets(20, 5) && crew.meets(0, 1));
        first.send("first").unwrap();
        let ended = crew.next().await.unwrap().unwrap();
        assert_eq!((ended.from, ended.len, ended.result), (0, 10, "first"));
        assert!(crew.is_empty());
        assert_eq!(crew.bytes(), 0);
        assert!(crew.next().await.unwrap().is_none());
    });
}

#[test]
fn pieces_run_at_the_same_time() {
    on_graph(async |graph| {
        let mut crew = Crew::new(&graph, 3);
        let all_there = Arc::new(Barrier::new(3));
        for number in 0..3 {
            let all_there = all_there.clone();
            crew.start(number, 1, async move { all_there.wait().await.is_leader() });
        }
        let mut leaders = 0;
        while let Some(ended) = crew.next().await.unwrap() {
            leaders += u32::from(ended.result);
        }
        assert_eq!(leaders, 1);
    });
}

#[test]
fn a_piece_that_panics_is_an_error_and_the_others_end() {
    on_graph(async |graph| {
        let mut crew = Crew::new(&graph, 4);
        for number in 0..4u64 {
            crew.start(number * 10, 10, async move {
                assert_ne!(number, 2, "as this test wants it");
                number
            });
        }
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        loop {
            match crew.next().await {
                Ok(None) => break,
                Ok(Some(ended)) => good.push(ended.result),
                Err(error) => bad.push(error.raw_os_error()),
            }
        }
        good.sort();
        assert_eq!((good, bad), (vec![0, 1, 3], vec![Some(libc::EIO)]));
        assert!(crew.is_empty(), "no range is left behind");
    });
}

#[test]
fn settling_waits_for_all() {
    on_graph(async |graph| {
        let mut crew = Crew::new(&graph, 8);
        let done = Arc::new(AtomicU64::new(0));
        for number in 0..8 {
            let done = done.clone();
            crew.start(number, 1, async move {
                for _ in 0..=number * 10 {
                    tokio::task::yield_now().await;
                }
                assert_ne!(number, 3, "as this test wants it");
                done.fetch_add(1, Ordering::AcqRel);
            });
        }
        crew.settle().await;
        assert_eq!(done.load(Ordering::Acquire), 7);
        assert!(crew.is_empty());
    });
}
