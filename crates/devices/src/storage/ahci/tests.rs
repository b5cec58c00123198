use super::*;
use crate::storage::unit::{CD, HD};
use crate::testbed::{Random, Testbed};
use device::pci::PciBus;
use std::time::{Duration, Instant};

const BAR: u64 = 0xe000_0000;
const LIST: u64 = 0x10000;
const FIS: u64 = 0x12000;
const TABLE: u64 = 0x14000;
const DATA: u64 = 0x100000;

struct Sata {
    bed: Testbed,
    levels: Arc<std::sync::Mutex<bool>>,
    controller: Arc<dyn Device>,
    _files: Vec<tempfile::NamedTempFile>,
}

fn image(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i % 251) as u8).collect()
}

/// A disk at port 0, a CD drive at port 1, both started.
fn sata() -> Sata {
    let bed = Testbed::new();
    let levels = Arc::new(std::sync::Mutex::new(false));
    let seen = levels.clone();
    let bus = PciBus::new("pcie.0", true, Box::new(move |_, _, level| *seen.lock().unwrap() = level));
    let controller = bed.make(&MODEL, bus.clone(), &[]);
    let (_, hd) = bed.drive("hd", &image(4 << 20));
    let (_, cd) = bed.drive("cd", &image(128 << 10));
    bed.make(&HD, controller.buses()[0].clone(), &[("drive", "hd")]);
    bed.make(&CD, controller.buses()[1].clone(), &[("drive", "cd")]);
    bus.config_write(0, 0x24, 4, BAR as u32);
    bus.config_write(0, 4, 2, 6);
    let sata = Sata { bed, levels, controller, _files: vec![hd, cd] };
    sata.set(4, 1);
    sata.set(4, 2);
    for port in 0..2 {
        sata.set_port(port, 0, LIST + port * 0x400);
        sata.set_port(port, 8, FIS + port * 0x100);
        sata.set_port(port, 0x14, 0xffff_ffff);
        sata.set_port(port, 0x18, 0x17);
    }
    sata
}

impl Sata {
    fn get(&self, at: u64) -> u64 {
        self.bed.services.memory.load(BAR + at, 4)
    }
    fn set(&self, at: u64, value: u64) {
        self.bed.services.memory.store(BAR + at, 4, value);
    }
    fn get_port(&self, port: u64, at: u64) -> u64 {
        self.get(0x100 + port * 0x80 + at)
    }
    fn set_port(&self, port: u64, at: u64, value: u64) {
        self.set(0x100 + port * 0x80 + at, value);
    }

    /// Runs a command with `len` bytes at DATA in two regions; gives the interrupt status.
    fn run(&self, port: u64, fis: &[u8], packet: &[u8], len: u64) -> u64 {
        let memory = &self.bed.services.memory;
        memory.write(TABLE, &[0; 0x80]);
        memory.write(TABLE, fis);
        memory.write(TABLE + 0x40, packet);
        let first = (len / 2).max(1);
        memory.store(TABLE + 0x80, 8, DATA);
        memory.store(TABLE + 0x88, 8, (first - 1) << 32);
        memory.store(TABLE + 0x90, 8, DATA + 0x40000);
        memory.store(TABLE + 0x98, 8, (len.max(first + 1) - first - 1) << 32);
        let list = LIST + port * 0x400 + 3 * 32;
        memory.store(list, 8, 5 | 2 << 16);
        memory.store(list + 8, 8, TABLE);
        self.set_port(port, 0x38, 1 << 3);
        let end = Instant::now() + Duration::from_secs(5);
        while !*self.levels.lock().unwrap() {
            assert!(Instant::now() < end, "an interrupt comes");
        }
        assert_eq!(self.get(8), 1 << port);
        let status = self.get_port(port, 0x10);
        self.set_port(port, 0x10, status);
        assert!(!*self.levels.lock().unwrap());
        status
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.bed.ram.read(DATA, &mut data[..len / 2]);
        self.bed.ram.read(DATA + 0x40000, &mut data[len / 2..]);
        data
    }
}

fn fis(command: u8, sector: u32, count: u16) -> [u8; 20] {
    let s = sector.to_le_bytes();
    let c = count.to_le_bytes();
    [0x27, 0x80, command, 0, s[0], s[1], s[2], 0x40, s[3], 0, 0, 0, c[0], c[1], 0, 0, 0, 0, 0, 0]
}

#[test]
fn ports_show_their_drives() {
    let s = sata();
    assert_eq!(s.get(0) & 0x1f, 5);
    assert_eq!((s.get_port(0, 0x28), s.get_port(0, 0x24)), (0x113, 0x101));
    assert_eq!((s.get_port(1, 0x28), s.get_port(1, 0x24)), (0x113, 0xeb14_0101));
    assert_eq!((s.get_port(2, 0x28), s.get_port(2, 0x20)), (0, 0x7f));
    assert_eq!(s.bed.services.memory.load(FIS + 0x40, 1), 0x34);
    s.set_port(0, 0x2c, 1);
    assert_eq!(s.get_port(0, 0x28), 0);
    s.set_port(0, 0x2c, 0);
    assert_eq!((s.get_port(0, 0x28), s.get_port(0, 0x20) & 0xff), (0x113, 0x50));
}

#[test]
fn reads_writes_and_identifies() {
    let s = sata();
    let content = image(4 << 20);
    assert_eq!(s.run(0, &fis(0xec, 0, 0), &[], 512), 3);
    let data = s.data(512);
    assert_eq!(u32::from_le_bytes([data[200], data[201], data[202], data[203]]), 8192);
    assert_eq!(s.bed.services.memory.load(FIS + 0x20, 1), 0x5f);
    assert_eq!(s.run(0, &fis(0x25, 7, 8), &[], 4096), 1);
    assert!(s.data(4096) == content[7 * 512..15 * 512]);
    assert_eq!(s.bed.services.memory.load(LIST + 3 * 32 + 4, 4), 4096, "bytes moved");
    assert_eq!(s.get_port(0, 0x38), 0);
    s.bed.ram.write(DATA, &[5; 256]);
    s.bed.ram.write(DATA + 0x40000, &[6; 256]);
    assert_eq!(s.run(0, &fis(0x35, 100, 1), &[], 512), 1);
    let written = std::fs::read(s._files[0].path()).unwrap();
    assert_eq!(written[51200..51712], [[5u8; 256], [6; 256]].concat());
    assert_eq!(s.run(0, &fis(0xea, 0, 0), &[], 0), 1);
}

#[test]
fn an_error_halts_until_the_port_is_restarted() {
    let s = sata();
    assert_eq!(s.run(0, &fis(0x25, 8190, 8), &[], 4096) & 1 << 30, 1 << 30);
    assert_eq!(s.get_port(0, 0x20), 0x1451);
    assert_eq!(s.get_port(0, 0x38), 8);
    s.set_port(0, 0x18, 0x16);
    assert_eq!(s.get_port(0, 0x38), 0);
    s.set_port(0, 0x18, 0x17);
    assert_eq!(s.run(0, &fis(0x25, 0, 8), &[], 4096), 1);
    assert_eq!(s.run(0, &fis(0x25, 0, 9), &[], 4096) & 1 << 30, 1 << 30, "regions too small");
}

#[test]
fn the_cd_answers_packets() {
    let s = sata();
    let packet = fis(0xa0, 0, 0);
    assert_eq!(s.run(1, &packet, &[0x25], 8), 1);
    assert_eq!(s.data(8), [0, 0, 0, 63, 0, 0, 8, 0]);
    assert_eq!(s.run(1, &packet, &[0x28, 0, 0, 0, 0, 3, 0, 0, 2], 4096), 1);
    assert!(s.data(4096) == image(128 << 10)[3 * 2048..5 * 2048]);
    assert_ne!(s.run(1, &packet, &[0xff], 8) & 1 << 30, 0);
    assert_eq!(s.get_port(1, 0x20) >> 8, 0x54);
}

#[test]
fn random_registers_and_tables_are_harmless() {
    let s = sata();
    let mut random = Random(3);
    for round in 0..20_000u32 {
        let at = [0, 0x100, 0x180][random.below(3) as usize] + random.below(0x80);
        let value = match random.below(3) {
            0 => 0x17,
            1 => LIST,
            _ => random.next(),
        };
        s.bed.services.memory.store(BAR + at, [1, 2, 4, 8][random.below(4) as usize], value);
        s.get(at & !3);
        let command = [0x25, 0x35, 0xc8, 0xa0, 0xec, 0x06, 0xea][random.below(7) as usize];
        let mut bytes = fis(command, random.below(9000) as u32, random.below(64) as u16);
        bytes[1] = random.next() as u8;
        s.bed.ram.write(TABLE, &bytes);
        s.bed.ram.write(TABLE + 0x40, &random.next().to_le_bytes());
        s.bed.services.memory.store(TABLE + 0x80, 8, if random.below(4) == 0 { random.next() } else { DATA });
        s.bed.services.memory.store(TABLE + 0x88, 8, random.next());
        for slot in 0..32 {
            s.bed.services.memory.store(LIST + slot * 32, 8, 5 | random.below(3) << 16);
            s.bed.services.memory.store(LIST + slot * 32 + 8, 8, TABLE);
        }
        if round % 3000 == 0 {
            s.controller.reset(ResetKind::Warm);
        }
    }
}
