use super::*;
use std::sync::mpsc;

#[test]
fn manual_clock_fires_in_order_at_the_deadlines() {
    let clock = Clock::new(Kind::Manual);
    let (tx, rx) = mpsc::channel();
    let tx2 = tx.clone();
    let late = clock.timer(move |at| tx.send(("late", at)).unwrap());
    let early = clock.timer(move |at| tx2.send(("early", at)).unwrap());
    late.arm(200);
    early.arm(100);
    clock.advance(150);
    assert_eq!(rx.try_iter().collect::<Vec<_>>(), [("early", 100)]);
    assert_eq!(clock.now(), 150);
    late.cancel();
    clock.advance(500);
    assert!(rx.try_recv().is_err());
}

#[test]
fn a_stopped_virtual_clock_stands_and_its_timers_wait() {
    let clock = Clock::new(Kind::Virtual);
    let (tx, rx) = mpsc::channel();
    let timer = clock.timer(move |at| tx.send(at).unwrap());
    timer.arm(5_000_000);
    assert!(rx.recv_timeout(Duration::from_millis(30)).is_err());
    assert_eq!(clock.now(), 0);
    clock.start();
    assert_eq!(rx.recv_timeout(Duration::from_secs(5)), Ok(5_000_000));
    assert!(clock.now() >= 5_000_000);
    clock.stop();
    let frozen = clock.now();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(clock.now(), frozen);
}

#[test]
fn rearming_replaces() {
    let clock = Clock::new(Kind::Manual);
    let (tx, rx) = mpsc::channel();
    let timer = clock.timer(move |at| tx.send(at).unwrap());
    timer.arm(100);
    timer.arm(300);
    clock.advance(200);
    assert!(rx.try_recv().is_err());
    clock.advance(300);
    assert_eq!(rx.try_recv(), Ok(300));
}
