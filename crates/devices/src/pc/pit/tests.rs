use super::*;
use base::clock::Kind;
use memory::SpaceKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Bench {
    pit: Arc<Pit>,
    ports: Arc<AddressSpace>,
    clock: Clock,
    edges: Arc<AtomicU64>,
    last: Arc<AtomicU64>,
}

fn bench() -> Bench {
    let clock = Clock::new(Kind::Manual);
    let (edges, last, level) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), AtomicBool::new(false));
    let (count, at, time) = (edges.clone(), last.clone(), clock.clone());
    let irq = IrqLine::new(move |high| {
        if high && !level.swap(high, Ordering::SeqCst) {
            count.fetch_add(1, Ordering::SeqCst);
            at.store(time.now(), Ordering::SeqCst);
        }
        level.store(high, Ordering::SeqCst);
    });
    let pit = Pit::new(&clock, irq, LostTicks::Delay);
    let ports = AddressSpace::new(SpaceKind::Port);
    pit.map(&ports);
    Bench { pit, ports, clock, edges, last }
}

impl Bench {
    fn program(&self, channel: u64, mode: u64, count: u16) {
        self.ports.store(0x43, 1, channel << 6 | 3 << 4 | mode << 1);
        self.ports.store(0x40 + channel, 1, u64::from(count & 0xff));
        self.ports.store(0x40 + channel, 1, u64::from(count >> 8));
        self.edges.store(0, Ordering::SeqCst);
    }
    fn counter(&self, channel: u64) -> u16 {
        self.ports.store(0x43, 1, channel << 6);
        let low = self.ports.load(0x40 + channel, 1);
        (low | self.ports.load(0x40 + channel, 1) << 8) as u16
    }
}

#[test]
fn rate_generator_is_exact_and_does_not_drift() {
    let b = bench();
    b.clock.advance(12_345);
    b.program(0, 2, 11932);
    // 100 Hz for a minute, stepped unevenly.
    for step in 0..600 {
        b.clock.advance(12_345 + (step + 1) * 100_000_000);
    }
    let expected = 60 * FREQUENCY / 11932;
    assert_eq!(b.edges.load(Ordering::SeqCst), expected);
    assert_eq!(b.last.load(Ordering::SeqCst), 12_345 + nanos_of(expected * 11932));
}

#[test]
fn one_shot_fires_once_at_terminal_count() {
    let b = bench();
    b.program(0, 0, 1000);
    let due = nanos_of(1000);
    b.clock.advance(due - 1);
    assert_eq!(b.edges.load(Ordering::SeqCst), 0);
    b.clock.advance(due);
    assert_eq!(b.edges.load(Ordering::SeqCst), 1);
    b.clock.advance(due * 1000);
    assert_eq!(b.edges.load(Ordering::SeqCst), 1);
    // Past zero the counter wraps and goes on.
    let b = bench();
    b.program(2, 0, 1000);
    b.ports.store(0x61, 1, 1);
    b.clock.advance(nanos_of(1001));
    assert_eq!(b.counter(2), 0xffff);
}

#[test]
fn counting_modes() {
    let b = bench();
    b.ports.store(0x61, 1, 1);
    b.program(2, 2, 100);
    b.clock.advance(nanos_of(30));
    assert_eq!(b.counter(2), 70);
    b.clock.advance(nanos_of(130));
    assert_eq!(b.counter(2), 70);
    let b = bench();
    b.ports.store(0x61, 1, 1);
    b.program(2, 3, 100);
    b.clock.advance(nanos_of(30));
    assert_eq!(b.counter(2), 40);
    assert_ne!(b.ports.load(0x61, 1) & 0x20, 0);
    b.clock.advance(nanos_of(60));
    assert_eq!(b.ports.load(0x61, 1) & 0x20, 0);
    assert_eq!(b.counter(2), 80);
    // Mode 4: low for the one tick at terminal count.
    b.program(2, 4, 10);
    let start = b.clock.now();
    assert_ne!(b.ports.load(0x61, 1) & 0x20, 0);
    b.clock.advance(start + nanos_of(10));
    assert_eq!(b.ports.load(0x61, 1) & 0x20, 0);
    b.clock.advance(start + nanos_of(11));
    assert_ne!(b.ports.load(0x61, 1) & 0x20, 0);
    // Mode 1 counts from the gate's rising edge.
    b.program(2, 1, 10);
    assert_ne!(b.ports.load(0x61, 1) & 0x20, 0);
    b.ports.store(0x61, 1, 0);
    b.ports.store(0x61, 1, 1);
    assert_eq!(b.ports.load(0x61, 1) & 0x20, 0);
    b.clock.advance(b.clock.now() + nanos_of(10));
    assert_ne!(b.ports.load(0x61, 1) & 0x20, 0);
}

#[test]
fn gate_suspends_mode_0() {
    let b = bench();
    b.ports.store(0x61, 1, 1);
    b.program(2, 0, 1000);
    b.clock.advance(nanos_of(400));
    b.ports.store(0x61, 1, 0);
    b.clock.advance(nanos_of(4000));
    assert_eq!(b.counter(2), 600);
    b.ports.store(0x61, 1, 1);
    let resumed = b.clock.now();
    b.clock.advance(resumed + nanos_of(100));
    assert_eq!(b.counter(2), 500);
}

#[test]
fn bcd_read_back_and_access_modes() {
    let b = bench();
    b.ports.store(0x43, 1, 0x31 | 2 << 1);
    b.ports.store(0x40, 1, 0x00);
    b.ports.store(0x40, 1, 0x12);
    b.clock.advance(nanos_of(1));
    assert_eq!(b.counter(0), 0x1199);
    // Status and count of channel 0; status comes first.
    b.ports.store(0x43, 1, 0xc2);
    assert_eq!(b.ports.load(0x40, 1), 0x80 | 3 << 4 | 2 << 1 | 1);
    assert_eq!(b.ports.load(0x40, 1), 0x99);
    assert_eq!(b.ports.load(0x40, 1), 0x11);
    // Null count until the count is written.
    b.ports.store(0x43, 1, 0x14);
    b.ports.store(0x43, 1, 0xe2);
    assert_eq!(b.ports.load(0x40, 1), 0x80 | 0x40 | 1 << 4 | 2 << 1);
    b.ports.store(0x40, 1, 50);
    assert_eq!(b.ports.load(0x40, 1), 50);
    assert_eq!(b.ports.load(0x40, 1), 50);
}

#[test]
fn lost_ticks_come_later() {
    let b = bench();
    let busy = Arc::new(AtomicBool::new(false));
    let probe = busy.clone();
    let owed = Arc::new(OwedTicks::default());
    b.pit.set_pending_probe(move || probe.load(Ordering::SeqCst), owed.clone());
    let pit = b.pit.clone();
    owed.on_taken(move || pit.catch_up());
    b.program(0, 2, 1193);
    busy.store(true, Ordering::SeqCst);
    b.clock.advance(nanos_of(1193 * 10));
    assert_eq!(b.edges.load(Ordering::SeqCst), 0);
    busy.store(false, Ordering::SeqCst);
    for _ in 0..20 {
        owed.taken();
    }
    assert_eq!(b.edges.load(Ordering::SeqCst), 10, "all at once when they are taken, and no more");
    b.clock.advance(nanos_of(1193 * 30));
    assert_eq!(b.edges.load(Ordering::SeqCst), 30);
}

#[test]
fn absurd_rates_are_merged_and_hpet_takes_the_line() {
    let b = bench();
    b.program(0, 2, 1);
    b.clock.advance(1_000_000);
    let edges = b.edges.load(Ordering::SeqCst);
    assert!((10..=51).contains(&edges), "{edges}");
    b.pit.set_irq_enabled(false);
    b.edges.store(0, Ordering::SeqCst);
    b.clock.advance(2_000_000);
    assert_eq!(b.edges.load(Ordering::SeqCst), 0);
    assert_eq!(b.clock.next_deadline(), None);
}

#[test]
fn refresh_toggles() {
    let b = bench();
    let first = b.ports.load(0x61, 1) & 0x10;
    b.clock.advance(REFRESH);
    assert_ne!(b.ports.load(0x61, 1) & 0x10, first);
}
