use super::*;
use memory::SpaceKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Bench {
    rtc: Arc<Rtc>,
    ports: Arc<AddressSpace>,
    clock: Clock,
    level: Arc<AtomicBool>,
    edges: Arc<AtomicU64>,
    notices: Notices,
}

/// 2024-02-29 23:59:58, a Thursday.
const START: i64 = 1_709_251_198;

fn bench(drift_fix: DriftFix) -> Bench {
    let clock = Clock::new(Kind::Manual);
    let notices = Notices::new();
    let config = RtcConfig {
        base: RtcBase::Date(START),
        drift_fix,
        clock: clock.clone(),
        virtual_clock: clock.clone(),
        qom_path: "/machine/unattached/device[6]".into(),
    };
    let (level, edges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (to, count) = (level.clone(), edges.clone());
    let irq = IrqLine::new(move |high| {
        if high && !to.swap(high, Ordering::SeqCst) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        to.store(high, Ordering::SeqCst);
    });
    let rtc = Rtc::new(config, irq, &notices);
    let ports = AddressSpace::new(SpaceKind::Port);
    rtc.map(&ports);
    Bench { rtc, ports, clock, level, edges, notices }
}

impl Bench {
    fn get(&self, index: u8) -> u8 {
        self.ports.store(0x70, 1, index.into());
        self.ports.load(0x71, 1) as u8
    }
    fn set(&self, index: u8, value: u8) {
        self.ports.store(0x70, 1, index.into());
        self.ports.store(0x71, 1, value.into());
    }
    fn time(&self) -> [u8; 7] {
        [0x32, 9, 8, 7, 4, 2, 0].map(|index| self.get(index))
    }
    fn step(&self, nanos: u64) {
        self.clock.advance(self.clock.now() + nanos);
    }
}

#[test]
fn calendar_round_trip() {
    for seconds in (-70_000_000_000i64..400_000_000_000).step_by(987_654_321) {
        let date = Calendar::from_seconds(seconds);
        assert_eq!(date.seconds(), seconds);
    }
    let date = Calendar::from_seconds(START);
    assert_eq!((date.year, date.month, date.day, date.weekday), (2024, 2, 29, 5));
    // Any register content is legal.
    let odd = Calendar { year: 16_665, month: 0, day: 0, hour: 255, minute: 165, second: 165, weekday: 0 };
    odd.seconds();
}

#[test]
fn date_rolls_over_in_every_format() {
    let b = bench(DriftFix::None);
    assert_eq!(b.time(), [0x20, 0x24, 2, 0x29, 0x23, 0x59, 0x58]);
    assert_eq!(b.get(6), 5);
    b.step(2 * NANOS);
    assert_eq!(b.time(), [0x20, 0x24, 3, 1, 0, 0, 0]);
    b.set(0x0b, 0x06);
    b.step(3600 * 13 * NANOS);
    assert_eq!(b.time(), [20, 24, 3, 1, 13, 0, 0]);
    b.set(0x0b, 0);
    assert_eq!(b.get(4), 0x81, "1 pm");
    b.step(3600 * 11 * NANOS);
    assert_eq!(b.get(4), 0x12, "midnight");
}

#[test]
fn update_in_progress_before_the_second() {
    let b = bench(DriftFix::None);
    assert_eq!(b.get(0x0a), 0x26);
    b.step(NANOS - 200_000);
    assert_eq!(b.get(0x0a), 0xa6);
    b.step(200_000);
    assert_eq!(b.get(0x0a), 0x26);
    assert_eq!(b.get(0x0c) & 0x10, 0x10);
    assert_eq!(b.get(0x0c) & 0x10, 0);
    assert_eq!(b.get(0x0d), 0x80);
}

#[test]
fn setting_the_time_is_noticed() {
    let b = bench(DriftFix::None);
    b.set(0x0b, 0x82);
    b.step(5 * NANOS);
    assert_eq!(b.get(0), 0x58, "SET freezes the registers");
    b.set(4, 0x12);
    b.set(0, 0);
    assert!(b.notices.drain().is_empty());
    b.set(0x0b, 2);
    assert_eq!(b.time(), [0x20, 0x24, 2, 0x29, 0x12, 0x59, 0]);
    let notice = b.notices.drain().pop().unwrap();
    let Some(Notice::RtcChange { offset, .. }) = notice.what.downcast_ref::<Notice>() else { panic!() };
    assert_eq!(*offset, -11 * 3600 - 58 - 5);
    b.step(NANOS);
    assert_eq!(b.get(0), 1);
    let date = b.rtc.dynamic_property("date").unwrap();
    assert_eq!(date["tm_year"], 124);
    assert_eq!(date["tm_hour"], 12);
}

#[test]
fn alarm_and_update_interrupts() {
    let b = bench(DriftFix::None);
    // Every minute at second 30.
    b.set(1, 0x30);
    b.set(3, 0xff);
    b.set(5, 0xff);
    b.set(0x0b, 0x22);
    b.step(31 * NANOS);
    assert!(!b.level.load(Ordering::SeqCst));
    b.step(NANOS);
    assert!(b.level.load(Ordering::SeqCst));
    assert_eq!(b.get(0x0c) & 0xa0, 0xa0);
    assert!(!b.level.load(Ordering::SeqCst));
    b.step(60 * NANOS);
    assert_eq!(b.edges.load(Ordering::SeqCst), 2);
    b.get(0x0c);
    b.set(0x0b, 0x12);
    for second in 1..=3 {
        b.step(NANOS);
        assert_eq!(b.get(0x0c) & 0x90, 0x90, "second {second}");
    }
    b.set(0x0b, 2);
    assert_eq!(b.clock.next_deadline(), None);
    b.step(NANOS);
    // The flag is up already when the interrupt is enabled.
    b.set(0x0b, 0x12);
    assert!(b.level.load(Ordering::SeqCst));
}

#[test]
fn periodic_interrupt_is_exact() {
    let b = bench(DriftFix::None);
    b.set(0x0a, 0x26); // 1024 Hz
    b.set(0x0b, 0x42);
    let mut taken = 0;
    for tick in 1..=2048u64 {
        b.clock.advance((tick * 1_000_000_000).div_ceil(1024) - 1);
        assert_eq!(b.edges.load(Ordering::SeqCst), taken);
        b.clock.advance((tick * 1_000_000_000).div_ceil(1024));
        taken += 1;
        assert_eq!(b.edges.load(Ordering::SeqCst), taken);
        assert_eq!(b.get(0x0c) & 0xc0, 0xc0);
    }
    // Polled without the interrupt: no timer, the flag still comes.
    b.set(0x0b, 2);
    b.get(0x0c);
    assert_eq!(b.clock.next_deadline(), None);
    b.step(1_000_000);
    assert_eq!(b.get(0x0c) & 0xc0, 0x40);
}

#[test]
fn slewing_delivers_what_was_not_taken() {
    for (fix, expected) in [(DriftFix::None, 1), (DriftFix::Slew, 10)] {
        let b = bench(fix);
        b.set(0x0b, 0x42);
        b.clock.advance((10u64 * 1_000_000_000).div_ceil(1024));
        let mut taken = 0;
        while b.get(0x0c) & 0xc0 == 0xc0 {
            taken += 1;
        }
        assert_eq!(taken, expected, "{fix:?}");
        assert_eq!(b.edges.load(Ordering::SeqCst), expected);
    }
    let b = bench(DriftFix::Slew);
    b.set(0x0b, 0x42);
    b.clock.advance((10u64 * 1_000_000_000).div_ceil(1024));
    b.rtc.reset_reinjection();
    b.get(0x0c);
    assert!(!b.level.load(Ordering::SeqCst));
}

#[test]
fn memory_survives_reset_and_the_divider_stops_the_clock() {
    let b = bench(DriftFix::None);
    b.rtc.set_cmos(0x34, 0x55);
    b.rtc.set_cmos(0x00, 0x99);
    b.set(0x0b, 0x72);
    b.rtc.reset(ResetKind::Warm);
    assert_eq!(b.get(0x34), 0x55);
    assert_eq!(b.get(0), 0x58);
    assert_eq!(b.get(0x0b), 2);
    b.set(0x0a, 0x66);
    b.step(10 * NANOS);
    assert_eq!(b.get(0), 0x58);
    b.set(0x0a, 0x26);
    b.step(NANOS / 2 - 1);
    assert_eq!(b.get(0), 0x58);
    b.step(1);
    assert_eq!(b.get(0), 0x59);
}
