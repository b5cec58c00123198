use super::unit::{CD, HD};
use super::*;
use crate::testbed::{Random, Testbed};
use device::pci::PciBus;
use device::{Bus, Device, ResetKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CMD: u64 = 0x1f0;
const CTL: u64 = 0x3f6;
const BM: u64 = 0xc000;
const PRD: u64 = 0x8000;
const DATA: u64 = 0x100000;

struct Ide {
    bed: Testbed,
    _controller: Arc<dyn Device>,
    drives: Vec<Arc<dyn Device>>,
    _files: Vec<tempfile::NamedTempFile>,
    cd: block::Backend,
}

fn image(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i % 251) as u8).collect()
}

/// A disk of 4 MiB as master and a CD drive with a medium of 64 sectors as slave.
fn ide() -> Ide {
    let bed = Testbed::new();
    let bus = PciBus::new("pci.0", false, Box::new(|_, _, _| ()));
    let controller = bed.make(&piix3::MODEL, bus.clone(), &[]);
    bus.config_write(0, 0x20, 4, BM as u32);
    bus.config_write(0, 4, 2, 7);
    let (_, hd_file) = bed.drive("hd", &image(4 << 20));
    let (cd, cd_file) = bed.drive("cd", &image(128 << 10));
    let first: Arc<dyn Bus> = controller.buses()[0].clone();
    let drives = vec![
        bed.make(&HD, first.clone(), &[("drive", "hd"), ("serial", "S123")]),
        bed.make(&CD, first, &[("drive", "cd")]),
    ];
    // Software reset shows the drives that are there now.
    bed.port_out(CTL, 1, 4);
    bed.port_out(CTL, 1, 0);
    Ide { bed, _controller: controller, drives, _files: vec![hd_file, cd_file], cd }
}

impl Ide {
    fn out(&self, register: u64, value: u8) {
        self.bed.port_out(CMD + register, 1, value.into());
    }

    fn status(&self) -> u8 {
        self.bed.port_in(CTL, 1) as u8
    }

    fn wait(&self) -> u8 {
        let end = Instant::now() + Duration::from_secs(5);
        while self.status() & 0x80 != 0 {
            assert!(Instant::now() < end, "the drive answers");
            std::thread::yield_now();
        }
        self.status()
    }

    fn wait_irq(&self) -> u8 {
        let end = Instant::now() + Duration::from_secs(5);
        while !self.bed.level(14) {
            assert!(Instant::now() < end, "an interrupt comes, status {:#x}", self.status());
            std::thread::yield_now();
        }
        let status = self.bed.port_in(CMD + 7, 1) as u8;
        assert!(!self.bed.level(14), "reading the status takes the interrupt back");
        status
    }

    fn select(&self, unit: u8) {
        self.out(6, 0xe0 | unit << 4);
    }

    fn address(&self, sector: u32, count: u8) {
        self.out(2, count);
        self.out(3, sector as u8);
        self.out(4, (sector >> 8) as u8);
        self.out(5, (sector >> 16) as u8);
    }

    fn words(&self, count: usize) -> Vec<u8> {
        (0..count).flat_map(|_| (self.bed.port_in(CMD, 2) as u16).to_le_bytes()).collect()
    }

    fn packet(&self, cdb: &[u8], limit: u16) -> (u8, Vec<u8>) {
        self.select(1);
        self.out(1, 0);
        self.out(4, limit as u8);
        self.out(5, (limit >> 8) as u8);
        self.out(7, 0xa0);
        assert_eq!(self.wait() & 0x89, 8);
        let mut block = [0; 12];
        block[..cdb.len()].copy_from_slice(cdb);
        for word in block.chunks(2) {
            self.bed.port_out(CMD, 2, u16::from_le_bytes([word[0], word[1]]).into());
        }
        let mut data = Vec::new();
        loop {
            let status = self.wait_irq();
            if status & 8 == 0 {
                assert_eq!(self.bed.port_in(CMD + 2, 1), 3);
                return (self.bed.port_in(CMD + 1, 1) as u8, data);
            }
            assert_eq!(self.bed.port_in(CMD + 2, 1), 2);
            let len = self.bed.port_in(CMD + 4, 1) | self.bed.port_in(CMD + 5, 1) << 8;
            assert!(len <= limit.into());
            let mut bytes = self.words((len as usize).div_ceil(2));
            bytes.truncate(len as usize);
            data.extend(bytes);
        }
    }
}

#[test]
fn identify_tells_size_serial_and_abilities() {
    let ide = ide();
    ide.select(0);
    ide.out(7, 0xec);
    assert_eq!(ide.wait_irq(), 0x58);
    let data = ide.words(256);
    assert_eq!(ide.status(), 0x50);
    let word = |at: usize| u16::from_le_bytes([data[at * 2], data[at * 2 + 1]]);
    assert_eq!((word(60), word(61), word(100)), (8192, 0, 8192));
    assert_eq!(&data[20..26], b"1S32  ");
    assert_eq!(&data[54..66], b"EQUMH RADDSI");
    assert_eq!((word(83) & 1 << 10, word(88) & 0x3f), (1 << 10, 0x3f));
    ide.select(1);
    ide.out(7, 0xec);
    assert_eq!(ide.wait_irq() & 1, 1);
    assert_eq!(ide.bed.port_in(CMD + 4, 2), 0xeb14);
    ide.out(7, 0xa1);
    ide.wait_irq();
    assert_eq!(ide.words(256)[0], 0xc0);
}

#[test]
fn pio_reads_writes_single_multiple_and_long() {
    let ide = ide();
    let content = image(4 << 20);
    ide.select(0);
    ide.address(5, 3);
    ide.out(7, 0x20);
    let mut data = Vec::new();
    for _ in 0..3 {
        assert_eq!(ide.wait_irq() & 0x89, 8);
        data.extend(ide.words(256));
    }
    assert_eq!(data, content[5 * 512..8 * 512]);
    assert_eq!(ide.status(), 0x50);
    ide.out(2, 8);
    ide.out(7, 0xc6);
    assert_eq!(ide.wait_irq(), 0x50);
    // 256 sectors in blocks of 8: more than one chunk.
    ide.address(0, 0);
    ide.out(7, 0xc4);
    data.clear();
    for _ in 0..32 {
        assert_eq!(ide.wait_irq() & 0x89, 8);
        data.extend((0..1024).flat_map(|_| (ide.bed.port_in(CMD, 4) as u32).to_le_bytes()));
    }
    assert!(data == content[..256 * 512]);
    ide.address(100, 2);
    ide.out(7, 0x30);
    for block in 0..2u64 {
        if block > 0 {
            ide.wait_irq();
        }
        assert_eq!(ide.wait() & 0x88, 8);
        (0..256u64).for_each(|i| ide.bed.port_out(CMD, 2, i + block));
    }
    assert_eq!(ide.wait_irq(), 0x50);
    // LBA48 read of what was written.
    for value in [0, 1] {
        ide.out(2, value);
    }
    for (register, value) in [(3, 101), (4, 0), (5, 0)] {
        ide.out(register, 0);
        ide.out(register, value);
    }
    ide.out(7, 0x24);
    ide.wait_irq();
    assert_eq!(ide.words(2), [1, 0, 2, 0]);
}

#[test]
fn what_lies_past_the_end_is_refused() {
    let ide = ide();
    ide.select(0);
    ide.address(8191, 2);
    ide.out(7, 0x20);
    assert_eq!(ide.wait_irq() & 9, 1);
    assert_eq!(ide.bed.port_in(CMD + 1, 1), 0x14);
    ide.out(7, 0xf5);
    assert_eq!(ide.wait_irq() & 1, 1);
    assert_eq!(ide.bed.port_in(CMD + 1, 1), 4);
}

#[test]
fn the_bus_master_moves_scattered_memory() {
    let ide = ide();
    let content = image(4 << 20);
    let prd = |at: u64, address: u64, len: u64, last: bool| {
        ide.bed.services.memory.store(PRD + at * 8, 8, address | len << 32 | u64::from(last) << 63);
    };
    prd(0, DATA, 0x300, false);
    prd(1, DATA + 0x2000, 0x500, true);
    ide.bed.port_out(BM + 4, 4, PRD);
    ide.select(0);
    ide.address(9, 4);
    ide.out(7, 0xc8);
    assert_eq!(ide.status() & 0x80, 0x80);
    ide.bed.port_out(BM, 1, 9);
    assert_eq!(ide.wait_irq(), 0x50);
    assert_eq!(ide.bed.port_in(BM + 2, 1), 4, "interrupt, not active");
    ide.bed.port_out(BM + 2, 1, 4);
    ide.bed.port_out(BM, 1, 0);
    let mut data = vec![0; 0x800];
    ide.bed.ram.read(DATA, &mut data[..0x300]);
    ide.bed.ram.read(DATA + 0x2000, &mut data[0x300..]);
    assert_eq!(data, content[9 * 512..13 * 512]);
    // Write them elsewhere.
    ide.bed.ram.write(DATA, &[9; 0x300]);
    ide.address(20, 4);
    ide.out(7, 0xca);
    ide.bed.port_out(BM, 1, 1);
    assert_eq!(ide.wait_irq(), 0x50);
    ide.bed.port_out(BM, 1, 0);
    assert_eq!(std::fs::read(ide._files[0].path()).unwrap()[20 * 512..20 * 512 + 0x300], [9; 0x300]);
    // A table that is too short ends in an error, not in silence.
    ide.address(0, 5);
    ide.out(7, 0xc8);
    ide.bed.port_out(BM, 1, 9);
    assert_eq!(ide.wait_irq() & 1, 1);
    assert_eq!(ide.bed.port_in(BM + 2, 1) & 7, 6);
}

#[test]
fn the_cd_reads_and_reports_its_medium() {
    let ide = ide();
    let content = image(128 << 10);
    assert_eq!(ide.packet(&[0x00], 0xfffe), (0, vec![]));
    let (error, data) = ide.packet(&[0x12, 0, 0, 0, 36], 0xfffe);
    assert_eq!((error, data.len(), &data[8..24]), (0, 36, &b"QEMU    QEMU DVD"[..]));
    assert_eq!(ide.packet(&[0x25], 0xfffe).1, [0, 0, 0, 63, 0, 0, 8, 0]);
    let (error, data) = ide.packet(&[0x28, 0, 0, 0, 0, 1, 0, 0, 3], 2048);
    assert!(error == 0 && data == content[2048..4 * 2048]);
    let (_, data) = ide.packet(&[0x28, 0, 0, 0, 0, 0, 0, 0, 64], 0xfffe);
    assert!(data == content);
    let (error, _) = ide.packet(&[0x28, 0, 0, 0, 0, 64, 0, 0, 1], 2048);
    assert_eq!(error, 0x54);
    let (_, sense) = ide.packet(&[0x03, 0, 0, 0, 18], 2048);
    assert_eq!((sense[2], sense[12]), (5, 0x21));
    let (_, toc) = ide.packet(&[0x43, 0, 0, 0, 0, 0, 0, 0, 20], 2048);
    assert_eq!(toc.len(), 20);
    assert_eq!(toc[16..], [0, 0, 0, 64]);
    let (_, event) = ide.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 2048);
    assert_eq!(event, [0, 6, 4, 0x10, 0, 2, 0, 0]);
}

#[test]
fn the_tray_locks_opens_and_tells() {
    let ide = ide();
    let front = ide.cd.front_end().unwrap();
    ide.packet(&[0x1e, 0, 0, 0, 1], 2048);
    let media = front.media().unwrap();
    assert!(media.tray().unwrap().locked);
    assert_eq!(ide.packet(&[0x1b, 0, 0, 0, 2], 2048).0, 0x54);
    media.request_eject(false);
    assert_eq!(ide.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 2048).1[4], 1, "the user wants it out");
    ide.packet(&[0x1e], 2048);
    assert_eq!(ide.packet(&[0x1b, 0, 0, 0, 2], 2048).0, 0);
    assert!(media.tray().unwrap().open);
    assert_eq!(ide.packet(&[0x00], 2048).0, 0x20, "no medium");
    let notices = ide.bed.services.notices.drain();
    let moved = notices[0].what.downcast_ref::<block::Notice>().unwrap();
    assert!(matches!(moved, block::Notice::TrayMoved { open: true, .. }));
    media.changed(true);
    assert!(!media.tray().unwrap().open);
    assert_eq!(ide.packet(&[0x00], 2048).0, 0x60, "unit attention");
    assert_eq!(ide.packet(&[0x00], 2048).0, 0);
}

#[test]
fn packets_by_the_bus_master() {
    let ide = ide();
    let content = image(128 << 10);
    ide.bed.services.memory.store(PRD, 8, DATA | 0x1000 << 32 | 1 << 63);
    ide.bed.port_out(BM + 4, 4, PRD);
    ide.select(1);
    ide.out(1, 1);
    ide.out(7, 0xa0);
    for word in [0x28u64, 0, 0x0200, 0, 0x0002, 0] {
        ide.bed.port_out(CMD, 2, word);
    }
    ide.bed.port_out(BM, 1, 9);
    assert_eq!(ide.wait_irq() & 1, 0);
    let mut data = vec![0; 4096];
    ide.bed.ram.read(DATA, &mut data);
    assert!(data == content[2 * 2048..4 * 2048]);
}

#[test]
fn an_empty_cd_drive_has_no_medium() {
    let bed = Testbed::new();
    let bus = IdeBus::new("ide.0".into(), 0, 2, false);
    bed.make(&CD, bus.clone(), &[]);
    let drive = bus.drive(0).unwrap();
    let mut cdb = [0; 16];
    let reply = drive.cdrom.as_ref().unwrap().execute(&cdb);
    assert_eq!(reply, cdrom::Reply::Check(cdrom::NO_MEDIUM));
    cdb[0] = 0x4a;
    cdb[1] = 1;
    cdb[4] = 0x10;
    cdb[8] = 8;
    assert_eq!(
        drive.cdrom.as_ref().unwrap().execute(&cdb),
        cdrom::Reply::Data(vec![0, 6, 4, 0x10, 0, 0, 0, 0])
    );
}

#[test]
fn places_on_the_bus_are_checked() {
    let bed = Testbed::new();
    let bus = IdeBus::new("ide.0".into(), 0, 1, true);
    bed.drive("a", &[0; 4096]);
    bed.drive("b", &[0; 4096]);
    let text = |given: &[(&str, &str)]| bed.try_make(&HD, bus.clone(), given).err().unwrap().text;
    assert_eq!(text(&[("drive", "a"), ("unit", "1")]), "Can't create IDE unit 1, bus supports only 1 units");
    assert_eq!(text(&[]), "No drive specified");
    bed.make(&HD, bus.clone(), &[("drive", "a")]);
    assert_eq!(text(&[("drive", "b")]), "Can't create IDE unit 1, bus supports only 1 units");
    assert_eq!(text(&[("drive", "b"), ("unit", "0")]), "IDE unit 0 is in use");
    let text = |given: &[(&str, &str)]| {
        bed.try_make(&HD, IdeBus::new("x".into(), 0, 2, false), given).err().unwrap().text
    };
    assert_eq!(text(&[("drive", "a")]), "Drive 'a' is already in use by another device");
    assert_eq!(
        text(&[("drive", "b"), ("logical_block_size", "4096"), ("physical_block_size", "4096")]),
        "logical_block_size must be 512 for IDE"
    );
}

#[test]
fn random_port_accesses_are_harmless() {
    let ide = ide();
    let mut random = Random(7);
    for round in 0..30_000u32 {
        let size = [1, 2, 4][random.below(3) as usize];
        let base = [CMD, CMD, CMD, CTL, BM, 0x170, 0x376][random.below(7) as usize];
        let span = if base == BM { 16 } else { 8 };
        let value = match random.below(3) {
            0 => [0x20, 0x30, 0xc8, 0xca, 0xa0, 0xec, 0x25, 0x35, 0x06, 0x24][random.below(10) as usize],
            1 => PRD,
            _ => random.next(),
        };
        ide.bed.port_out(base + random.below(span), size, value);
        ide.bed.port_in(base + random.below(span), size);
        if round % 5000 == 0 {
            ide._controller.reset(ResetKind::Warm);
            ide.drives.iter().for_each(|drive| drive.reset(ResetKind::Warm));
        }
    }
    ide.drives.iter().for_each(|drive| drive.pause());
}

#[test]
fn random_packets_are_harmless() {
    let ide = ide();
    let drive = {
        let bus = ide._controller.buses()[0].clone().as_any().downcast::<IdeBus>().unwrap();
        bus.drive(1).unwrap()
    };
    let mut random = Random(11);
    for _ in 0..50_000 {
        let mut cdb = [0; 16];
        cdb[..8].copy_from_slice(&random.next().to_le_bytes());
        cdb[8..].copy_from_slice(&random.next().to_le_bytes());
        if let cdrom::Reply::Read { offset, len } = drive.cdrom.as_ref().unwrap().execute(&cdb) {
            assert!(offset + len <= 128 << 10 && len > 0);
        }
    }
}
