use super::chip::{self, reg};
use super::*;
use crate::storage::scsi;
use crate::testbed::{Random, Testbed};
use device::pci::PciBus;
use std::time::{Duration, Instant};

const REGS: u64 = 0xfe00_0000;
const SCRIPT: u64 = 0x1000;
const DSA: u64 = 0x8000;
const DATA: u64 = 0x10_0000;
const INT: u32 = 0x9808_0000;

struct Bench {
    bed: Testbed,
    device: Arc<dyn Device>,
    bus: Arc<ScsiBus>,
    _file: tempfile::NamedTempFile,
    _disk: Arc<dyn Device>,
}

/// A controller with a disk of 4 MiB as target 3, whose sectors begin with their number.
fn bench() -> Bench {
    let bed = Testbed::new();
    let mut content = vec![0; 4 << 20];
    for (number, sector) in content.chunks_mut(512).enumerate() {
        sector[..4].copy_from_slice(&(number as u32).to_le_bytes());
    }
    let (_, file) = bed.drive("d", &content);
    let device = bed.make(&MODEL, PciBus::new("pci.0", false, Box::new(|_, _, _| ())), &[]);
    let function = device.pci().unwrap();
    function.config_write(0x14, 4, REGS as u32);
    function.config_write(0x18, 4, 0xfe10_0000);
    function.config_write(4, 2, 6);
    let bus = device.buses()[0].clone().as_any().downcast::<ScsiBus>().unwrap();
    let disk = bed.make(&scsi::HD, bus.clone(), &[("drive", "d"), ("scsi-id", "3")]);
    Bench { bed, device, bus, _file: file, _disk: disk }
}

impl Bench {
    fn get(&self, at: u8, size: u8) -> u32 {
        self.bed.services.memory.load(REGS + u64::from(at), size) as u32
    }

    fn set(&self, at: u8, size: u8, value: u32) {
        self.bed.services.memory.store(REGS + u64::from(at), size, value.into());
    }

    fn put(&self, address: u64, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bed.services.memory.write(address, &bytes);
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.bed.services.memory.read(address, &mut bytes);
        bytes
    }

    /// Waits for an interrupt; gives DSTAT and SIST.
    fn stopped(&self) -> (u8, u32) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.get(reg::ISTAT0, 1) & 3 == 0 {
            assert!(Instant::now() < end, "the program goes on: DSP {:#x}", self.get(reg::DSP, 4));
            self.bed.services.clocks.virtual_.advance(0);
            std::thread::sleep(Duration::from_micros(200));
        }
        (self.get(reg::DSTAT, 1) as u8 & 0x7f, self.get(reg::SIST0, 2))
    }

    /// Runs a program to its end.
    fn run(&self, program: &[u32]) -> (u8, u32) {
        self.put(SCRIPT, program);
        self.set(reg::DSP, 4, SCRIPT as u32);
        self.stopped()
    }
}

/// What firmware does for one command: no attention, no disconnection.
fn simple(target: u32, data: (u32, u64)) -> Vec<u32> {
    vec![
        0x4000_0000 | target << 16,
        0,
        0x0600_0001,
        DSA as u32,
        0x0200_0010,
        DSA as u32 + 16,
        0x8782_0000,
        0x18,
        0x0700_0002,
        DSA as u32 + 0x40,
        0x5000_0000,
        0,
        0x0700_0002,
        DSA as u32 + 0x40,
        data.0,
        data.1 as u32,
        0x0300_0001,
        DSA as u32 + 0x50,
        0x0700_0001,
        DSA as u32 + 0x51,
        INT,
        0x1234,
    ]
}

fn command(bench: &Bench, cdb: &[u8]) {
    let mut block = [0; 32];
    block[0] = 0x80;
    block[16..16 + cdb.len()].copy_from_slice(cdb);
    bench.bed.services.memory.write(DSA, &block);
}

#[test]
fn firmware_reads_and_writes() {
    let bench = bench();
    command(&bench, &[0x28, 0, 0, 0, 0, 5, 0, 0, 2, 0]);
    assert_eq!(bench.run(&simple(3, (0x0100_0400, DATA))), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.get(reg::DSPS, 4), 0x1234);
    assert_eq!(bench.bytes(DSA + 0x50, 2), [0, 0]);
    assert_eq!((bench.bytes(DATA, 4), bench.bytes(DATA + 512, 4)), (vec![5, 0, 0, 0], vec![6, 0, 0, 0]));
    // A command without data.
    command(&bench, &[0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.run(&simple(3, (0, 0))), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.bytes(DSA + 0x50, 2), [0, 0]);
    // A command that fails instead of giving data: the program stops, the next one goes on.
    command(&bench, &[0x28, 0, 0xff, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bench.run(&simple(3, (0x0100_0200, DATA))), (0, 0x80));
    command(&bench, &[3, 0, 0, 0, 18, 0]);
    assert_eq!(bench.run(&simple(3, (0x0100_0012, DATA))), (chip::DSTAT_SCRIPT, 0));
    assert_eq!((bench.bytes(DATA + 2, 1), bench.bytes(DATA + 12, 1)), (vec![5], vec![0x21]));
    // More than one piece, and back.
    command(&bench, &[0x28, 0, 0, 0, 0, 0, 0, 16, 0, 0]);
    assert_eq!(bench.run(&simple(3, (0x0120_0000, DATA))), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.bytes(DATA + 4095 * 512, 4), [0xff, 0xf, 0, 0]);
    command(&bench, &[0x2a, 0, 0, 0, 0x10, 0, 0, 16, 0, 0]);
    assert_eq!(bench.run(&simple(3, (0x0020_0000, DATA))), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.bytes(DSA + 0x50, 2), [0, 0]);
    bench.bed.services.memory.write(DATA, &[0xee; 4096]);
    command(&bench, &[0x28, 0, 0, 0, 0x10, 7, 0, 0, 1, 0]);
    assert_eq!(bench.run(&simple(3, (0x0100_0200, DATA))), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.bytes(DATA, 4), [7, 0, 0, 0]);
}

#[test]
fn selections_time_out_where_a_phase_is_wanted() {
    let bench = bench();
    // Select with attention; a load that needs no bus; wait for message out.
    let program = [0x4105_0000, 0, 0xe134_0004, DATA as u32, 0x9e03_0000, 7, INT, 8];
    assert_eq!(bench.run(&program), (0, 0x400));
    assert_eq!(bench.get(reg::DSP, 4), SCRIPT as u32 + 24);
    assert_eq!(bench.get(reg::SDID, 1), 5);
}

#[test]
fn registers_and_jumps() {
    let bench = bench();
    #[rustfmt::skip]
    let program = [
        0x7834_f000, 0, // SCRATCHA := f0
        0x7e34_2000, 0, // + 20: carry
        0x7f35_0100, 0, // SCRATCHA1 + 1 + carry
        0x7234_0000, 0, // to SFBR
        0x8084_ff10, 8, // any data are 10: not "if false"
        0x808c_0010, 8, // the data are 10: over the next
        INT, 1,
        0x8888_0000, 16, // call over the next two
        INT, 2,
        INT, 3,
        0x6a36_0000, 0, // SFBR to SCRATCHA2
        0x9008_0000, 0, // return
    ];
    assert_eq!(bench.run(&program), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.get(reg::DSPS, 4), 2);
    assert_eq!(bench.get(reg::SCRATCHA, 4), 0x0010_0210);
    assert_eq!(bench.get(reg::TEMP, 4), SCRIPT as u32 + 64);
    // Memory move, and a move between memory and the chip's own registers.
    bench.put(DATA, &[0x1122_3344, 5, 6]);
    let program = [
        0xc000_0008,
        DATA as u32,
        DATA as u32 + 0x100,
        0xc000_0004,
        DATA as u32,
        REGS as u32 + 0x5c,
        0xe05c_0002,
        DATA as u32 + 0x200,
        INT,
        9,
    ];
    assert_eq!(bench.run(&program), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.bytes(DATA + 0x100, 8), [0x44, 0x33, 0x22, 0x11, 5, 0, 0, 0]);
    assert_eq!(bench.get(reg::SCRATCHB, 4), 0x1122_3344);
    assert_eq!(bench.bytes(DATA + 0x200, 4), [0x44, 0x33, 0, 0]);
    // What is no instruction, and what is no memory.
    assert_eq!(bench.run(&[0xe034_0000, 0]).0, chip::DSTAT_ILLEGAL);
    assert_eq!(bench.run(&[0xe134_0004, 0xf000_0000]).0, chip::DSTAT_BUS_FAULT);
}

#[test]
fn short_data_mismatch_the_phase() {
    let bench = bench();
    command(&bench, &[0x12, 0, 0, 0, 36, 0]);
    assert_eq!(bench.run(&simple(3, (0x0100_0060, DATA))), (0, 0x80));
    assert_eq!(bench.get(reg::DBC, 4), 0x0100_0000 | (0x60 - 36));
    assert_eq!(bench.bytes(DATA + 8, 8), b"QEMU    ");
    bench.set(reg::SCNTL1, 1, 8);
    assert_eq!(bench.stopped(), (0, 2), "bus reset");
    bench.set(reg::SCNTL1, 1, 0);
    // The same handled by the program, which finds out how far it came.
    bench.set(reg::CCNTL0, 1, 0x80);
    bench.set(reg::PMJAD1, 4, SCRIPT as u32 + 0x200);
    bench.put(SCRIPT + 0x200, &[INT, 77]);
    assert_eq!(bench.run(&simple(3, (0x0100_0060, DATA))), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.get(reg::DSPS, 4), 77);
    assert_eq!(bench.get(reg::RBC, 4), 0x60 - 36);
    assert_eq!(bench.get(reg::UA, 4), DATA as u32 + 36);
    assert_eq!(bench.get(reg::IA, 4), SCRIPT as u32 + 0x38);
    assert_eq!(bench.get(reg::SBC, 4), 36);
}

/// Selects by a table, sends messages, a command, and takes all messages of the target until
/// it is gone.
fn disconnecting(messages: u32) -> Vec<u32> {
    vec![
        0x4300_0000,
        SCRIPT as u32 + 0x300,
        0x1e00_0000,
        8, // messages from the table
        0x1a00_0000,
        16, // command from the table
        0x0f00_0000 | messages,
        DATA as u32 + 0x1000,
        0x6000_0040,
        0, // clear ACK
        0x4800_0000,
        0, // wait for the disconnection
        0x5000_0000,
        SCRIPT as u32 + 0x300, // wait for the reselection
        0x0f00_0003,
        DATA as u32 + 0x1010, // identify and tag
        0x1900_0000,
        24, // data from the table
        0x0b00_0001,
        DATA as u32 + 0x1020,
        0x0f00_0001,
        DATA as u32 + 0x1021,
        INT,
        1,
    ]
}

#[test]
fn targets_disconnect_and_come_back() {
    let bench = bench();
    bench.set(reg::SCID, 1, 0x47);
    bench.set(reg::DSA, 4, DSA as u32);
    bench.put(DSA, &[0x0003_0000, 0]);
    bench.put(DSA + 8, &[3, DATA as u32 + 0x2000, 10, DATA as u32 + 0x2010, 512, DATA as u32]);
    bench.bed.services.memory.write(DATA + 0x2000, &[0xc0, 0x20, 0x55]);
    bench.bed.services.memory.write(DATA + 0x2010, &[0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0]);
    assert_eq!(bench.run(&disconnecting(1)), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.bytes(DATA + 0x1000, 1), [4]);
    assert_eq!(bench.bytes(DATA + 0x1010, 3), [0x80, 0x20, 0x55]);
    assert_eq!((bench.bytes(DATA, 4), bench.bytes(DATA + 0x1020, 2)), (vec![9, 0, 0, 0], vec![0, 0]));
    assert_eq!(bench.get(reg::SSID, 1), 0x83);
    // While it waits the host may signal: the program goes elsewhere.
    bench.put(SCRIPT + 0x300, &[INT, 2]);
    bench.put(SCRIPT, &[0x5000_0000, SCRIPT as u32 + 0x300]);
    bench.set(reg::DSP, 4, SCRIPT as u32);
    assert_eq!(bench.get(reg::ISTAT0, 1) & 3, 0);
    assert_eq!(bench.get(reg::ISTAT1, 1), 2);
    bench.set(reg::ISTAT0, 1, 0x20);
    assert_eq!(bench.stopped().0, chip::DSTAT_SCRIPT);
    assert_eq!(bench.get(reg::CTEST2, 1) & 0x40, 0x40);
    assert_eq!(bench.get(reg::ISTAT0, 1), 0, "read and gone");
}

#[test]
fn transfers_are_negotiated_down_and_tasks_aborted() {
    let bench = bench();
    let hear = |messages: &[u8], answer: usize| {
        bench.bed.services.memory.write(DATA, messages);
        let sent = 0x0e00_0000 | messages.len() as u32;
        let taken = 0x0f00_0000 | answer as u32;
        let program = [0x4103_0000, 0, sent, DATA as u32, taken, DATA as u32 + 0x100, INT, 0];
        let (dstat, sist) = bench.run(&program);
        let connected = bench.get(reg::ISTAT0, 1) & 8 != 0;
        bench.device.reset(ResetKind::Warm);
        let function = bench.device.pci().unwrap();
        function.config_write(0x14, 4, REGS as u32);
        function.config_write(4, 2, 6);
        (dstat, sist, connected, bench.bytes(DATA + 0x100, answer))
    };
    assert_eq!(hear(&[0x80, 1, 3, 1, 12, 31], 5), (4, 0, true, vec![1, 3, 1, 12, 0]));
    assert_eq!(hear(&[0x80, 1, 2, 3, 1], 4), (4, 0, true, vec![1, 2, 3, 0]));
    assert_eq!(hear(&[0x80, 1, 6, 4, 9, 0, 31, 1, 2], 1), (4, 0, true, vec![7]));
    // A device reset ends in a free bus: nobody is there to ask for more.
    bench.bed.services.memory.write(DATA, &[0xc0, 0x0c]);
    let program = [0x4103_0000, 0, 0x0e00_0002, DATA as u32, 0x4800_0000, 0, INT, 5];
    assert_eq!(bench.run(&program), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.get(reg::ISTAT0, 1) & 8, 0);
}

#[test]
fn endless_programs_let_others_run_and_can_be_aborted() {
    let bench = bench();
    bench.set(reg::DIEN, 1, 0x7d);
    bench.put(SCRIPT, &[0x8008_0000, SCRIPT as u32]);
    bench.set(reg::DSP, 4, SCRIPT as u32);
    let clock = &bench.bed.services.clocks.virtual_;
    let deadline = clock.next_deadline().expect("it goes on later");
    clock.advance(deadline);
    assert!(clock.next_deadline().is_some());
    let pending = || bench.device.pci().unwrap().config_read(6, 2) & 8 != 0;
    assert!(!pending());
    bench.set(reg::ISTAT0, 1, 0x80);
    bench.set(reg::ISTAT0, 1, 0);
    assert!(pending());
    assert_eq!(bench.stopped(), (0x10, 0));
    assert!(!pending());
    // An interrupt on the fly stops nothing and is cleared by writing it.
    bench.put(SCRIPT, &[0x9818_0000, 0, 0x5000_0000, SCRIPT as u32]);
    bench.set(reg::DSP, 4, SCRIPT as u32);
    assert_eq!(bench.get(reg::ISTAT0, 1), 4);
    assert!(pending());
    bench.set(reg::ISTAT0, 1, 4);
    assert!(!pending());
    // The general purpose timer: the shortest time.
    bench.set(reg::SIEN1, 1, 2);
    bench.set(reg::STIME1, 1, 1);
    clock.advance(clock.now() + 125_000);
    assert_eq!(bench.get(reg::SIST1, 1), 2);
}

#[test]
fn units_that_are_not_there() {
    let bench = bench();
    command(&bench, &[0x12, 0, 0, 0, 36, 0]);
    bench.bed.services.memory.write(DSA, &[0x82]);
    assert_eq!(bench.run(&simple(3, (0x0100_0024, DATA))), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.bytes(DATA, 1), [0x7f]);
    command(&bench, &[0, 0, 0, 0, 0, 0]);
    bench.bed.services.memory.write(DSA, &[0x82]);
    let mut program = simple(3, (0x0300_0001, DSA + 0x50));
    program.drain(16..18);
    assert_eq!(bench.run(&program), (chip::DSTAT_SCRIPT, 0));
    assert_eq!(bench.bytes(DSA + 0x50, 1), [2]);
    assert_eq!(bench.bus.numbers(3), [0]);
}

#[test]
fn random_programs_are_harmless() {
    let bench = bench();
    let mut random = Random(4711);
    for round in 0..120 {
        let words: Vec<u32> = (0..64)
            .map(|at| match (at & 1, random.below(4)) {
                (0, 0) => 0x4100_0000 | (random.below(8) as u32) << 16,
                (0, 1) => (random.below(8) as u32) << 24 | random.below(64) as u32,
                (1, 0 | 1) => DATA as u32 + random.below(4096) as u32,
                _ => random.next() as u32,
            })
            .collect();
        bench.put(SCRIPT, &words);
        bench.set(reg::SCID, 1, 0x47);
        bench.set(reg::DSP, 4, SCRIPT as u32);
        for _ in 0..8 {
            bench.set(random.next() as u8 & 0xfc, 4, random.next() as u32);
            bench.get(random.next() as u8 & 0xfc, 4);
        }
        if round % 16 == 0 {
            bench.set(reg::ISTAT0, 1, 0x40);
            bench.set(reg::ISTAT0, 1, 0);
        }
    }
    bench.device.pause();
    bench.device.reset(ResetKind::Cold);
}
