use super::*;
use crate::testbed::Testbed;
use std::sync::Mutex as StdMutex;

struct Bench {
    bed: Testbed,
    hpet: Arc<Hpet>,
    edges: Arc<StdMutex<Vec<(usize, u64)>>>,
}

fn bench(msi: bool) -> Bench {
    let bed = Testbed::new();
    let edges: Arc<StdMutex<Vec<(usize, u64)>>> = Arc::default();
    let clock = bed.services.clocks.virtual_.clone();
    let line = |number: usize| {
        let (edges, clock, levels) = (edges.clone(), clock.clone(), bed.levels.clone());
        IrqLine::new(move |level| {
            let was = std::mem::replace(&mut levels.lock().unwrap()[number % 24], level);
            if level && !was {
                edges.lock().unwrap().push((number, clock.now()));
            }
        })
    };
    let lines = HpetLines {
        legacy: [line(0), line(8)],
        irqs: (0..24).map(line).collect(),
        msi: bed.services.msi.clone(),
    };
    let hpet = Hpet::new(&HpetConfig { msi, ..HpetConfig::default() }, &clock, lines);
    hpet.map(&bed.services.memory, BASE);
    Bench { bed, hpet, edges }
}

impl Bench {
    fn r(&self, offset: u64) -> u64 {
        self.bed.services.memory.load(BASE + offset, 8)
    }
    fn w(&self, offset: u64, value: u64) {
        self.bed.services.memory.store(BASE + offset, 8, value);
    }
    fn to(&self, nanos: u64) {
        self.bed.services.clocks.virtual_.advance(nanos);
    }
    fn edges(&self) -> Vec<(usize, u64)> {
        std::mem::take(&mut *self.edges.lock().unwrap())
    }
}

#[test]
fn identification_and_counter() {
    let b = bench(false);
    assert_eq!(b.r(0), 10_000_000 << 32 | 0x8086_a201);
    assert_eq!(b.bed.services.memory.load(BASE + 4, 4), 10_000_000);
    b.w(0xf0, 1000);
    b.to(5000);
    assert_eq!(b.r(0xf0), 1000, "halted");
    b.w(0x10, 1);
    b.to(6000);
    assert_eq!(b.r(0xf0), 1100);
    b.w(0xf0, 5);
    assert_eq!(b.r(0xf0), 1100, "not writable while it runs");
    b.w(0x10, 0);
    b.to(9000);
    assert_eq!(b.r(0xf0), 1100);
}

#[test]
fn one_shot_and_wrap_of_32_bits() {
    let b = bench(false);
    b.w(0x10, 1);
    b.w(0x100, 1 << 2 | 1 << 8 | 2 << 9);
    b.w(0x108, 100);
    b.to(999);
    assert!(b.edges().is_empty());
    b.to(1_000_000);
    assert_eq!(b.edges(), [(2, 1000)]);
    b.to((1 << 32) * 10 + 2000);
    assert_eq!(b.edges(), [(2, (1 << 32) * 10 + 1000)]);
    // A value just gone by is met at once.
    let now = b.r(0xf0);
    b.w(0x108, (now - 3) & 0xffff_ffff);
    b.to(b.bed.services.clocks.virtual_.now() + 1);
    assert_eq!(b.edges().len(), 1);
}

#[test]
fn periodic_is_exact() {
    let b = bench(false);
    b.w(0x10, 1);
    b.w(0x100, 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8 | 2 << 9);
    b.w(0x108, 100_000);
    b.w(0x108, 100_000);
    b.to(1_000_000_000);
    let edges = b.edges();
    assert_eq!(edges.len(), 1000);
    assert!(edges.iter().enumerate().all(|(i, &(_, at))| at == (i as u64 + 1) * 1_000_000));
    assert_eq!(b.r(0x108), 100_100_000);
    // Absurdly fast ones are merged.
    b.w(0x100, 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8 | 2 << 9);
    b.w(0x108, b.r(0xf0) + 1);
    b.w(0x108, 1);
    b.to(1_001_000_000);
    let count = b.edges().len();
    assert!((10..60).contains(&count), "{count}");
}

#[test]
fn legacy_replacement_level_and_fsb() {
    let b = bench(true);
    let told = Arc::new(StdMutex::new(Vec::new()));
    let log = told.clone();
    b.hpet.on_legacy(move |on| log.lock().unwrap().push(on));
    b.w(0x10, 3);
    b.w(0x120, 1 << 2);
    b.w(0x128, 50);
    b.to(500);
    assert_eq!(b.edges(), [(8, 500)]);
    assert_eq!(*told.lock().unwrap(), [true]);
    // Level triggered until the status bit is cleared.
    b.w(0x140, 1 << 1 | 1 << 2 | 20 << 9);
    b.w(0x148, 100);
    b.to(1000);
    assert_eq!(b.edges(), [(20, 1000)]);
    assert_eq!(b.r(0x20), 4);
    assert!(b.bed.levels.lock().unwrap()[20]);
    b.w(0x20, 4);
    assert!(!b.bed.levels.lock().unwrap()[20]);
    // FSB.
    b.w(0x150, 0xfee0_1000 << 32 | 0x4041);
    b.w(0x140, 1 << 2 | 1 << 14);
    b.w(0x148, 200);
    b.to(2000);
    assert_eq!(*b.bed.recorder.messages.lock().unwrap(), [MsiMessage { address: 0xfee0_1000, data: 0x4041 }]);
    // Routes that the chip has not are refused.
    b.w(0x140, 5 << 9);
    assert_eq!(b.r(0x140) >> 9 & 0x1f, 20);
    b.hpet.reset(ResetKind::Warm);
    assert_eq!(*told.lock().unwrap(), [true, false]);
    assert_eq!(b.bed.services.clocks.virtual_.next_deadline(), None);
}

#[test]
fn ticks_that_were_not_taken_come_later() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let b = bench(false);
    let busy = Arc::new(AtomicBool::new(false));
    let probe = busy.clone();
    let owed = Arc::new(OwedTicks::default());
    b.hpet.set_pending_probe(move || probe.load(Ordering::SeqCst), owed.clone());
    let hpet = b.hpet.clone();
    owed.on_taken(move || hpet.catch_up());
    // Comparator 0: edge, periodic, every 4 ms, in place of the 8254.
    b.w(0x100, 0x4c);
    b.w(0x108, 400_000);
    b.w(0x108, 400_000);
    b.w(0x10, 3);
    b.to(4_000_000);
    assert_eq!(b.edges(), [(0, 4_000_000)]);
    busy.store(true, Ordering::SeqCst);
    b.to(24_000_000);
    assert_eq!(b.edges(), []);
    owed.taken();
    assert_eq!(b.edges(), [], "another interrupt was taken");
    busy.store(false, Ordering::SeqCst);
    owed.taken();
    owed.taken();
    assert_eq!(b.edges().len(), 2, "at once");
    b.to(27_900_000);
    assert_eq!(b.edges().len(), 3, "soon");
    owed.taken();
    assert_eq!(b.edges(), []);
    b.to(100_000_000);
    assert_eq!(b.edges().len(), 19, "and then at the usual pace");
    // A guest that sets it anew is owed nothing.
    busy.store(true, Ordering::SeqCst);
    b.to(120_000_000);
    b.w(0x10, 0);
    busy.store(false, Ordering::SeqCst);
    b.to(200_000_000);
    assert_eq!(b.edges(), []);
}
