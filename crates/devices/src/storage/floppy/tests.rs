use super::*;
use crate::pc::dma::IsaDma;
use crate::testbed::{Random, Testbed};
use block::Media;
use memory::Dma;
use std::time::{Duration, Instant};

struct Fixture {
    bed: Testbed,
    controller: Arc<dyn Device>,
    drive: block::Backend,
    file: tempfile::NamedTempFile,
}

const BYTES: usize = 1_474_560;

fn disk() -> Vec<u8> {
    (0..BYTES / 512).flat_map(|sector| (sector as u16).to_le_bytes().repeat(256)).collect()
}

fn fixture() -> Fixture {
    let bed = Testbed::new();
    let dma = IsaDma::new(Dma::new(bed.services.memory.clone(), true));
    dma.map(&bed.services.ports);
    let isa = IsaBus::new("isa.0");
    isa.set_dma(dma);
    let controller = bed.make(&CONTROLLER_MODEL, isa, &[]);
    let (drive, file) = bed.drive("fd0", &disk());
    bed.make(&DRIVE_MODEL, controller.buses()[0].clone(), &[("drive", "fd0")]);
    let f = Fixture { bed, controller, drive, file };
    f.bed.port_out(0x3f7, 1, 0);
    f
}

impl Fixture {
    fn status(&self) -> u64 {
        self.bed.port_in(0x3f4, 1)
    }

    fn send(&self, bytes: &[u8]) {
        for &byte in bytes {
            assert_eq!(self.status() & 0xc0, 0x80, "{bytes:x?}");
            self.bed.port_out(0x3f5, 1, byte.into());
        }
    }

    fn receive(&self, count: usize) -> Vec<u8> {
        let results = (0..count).map(|_| {
            assert_eq!(self.status() & 0xd0, 0xd0);
            self.bed.port_in(0x3f5, 1) as u8
        });
        results.collect()
    }

    /// The seven result bytes, once they are there.
    fn results(&self) -> Vec<u8> {
        let end = Instant::now() + Duration::from_secs(10);
        while self.status() & 0xe0 != 0xc0 {
            assert!(Instant::now() < end, "{:x}", self.status());
            std::thread::yield_now();
        }
        assert!(self.bed.level(6));
        let results = self.receive(7);
        assert!(!self.bed.level(6));
        assert_eq!(self.status(), 0x80);
        results
    }

    fn program_dma(&self, mode: u64, address: u64, count: u64) {
        let out = |port, value| self.bed.port_out(port, 1, value);
        out(0x0a, 6);
        out(0x0c, 0);
        out(0x0b, mode | 2);
        [0, 8].into_iter().for_each(|shift| out(4, address >> shift & 0xff));
        [0, 8].into_iter().for_each(|shift| out(5, (count - 1) >> shift & 0xff));
        out(0x81, address >> 16);
        out(0x0a, 2);
    }
}

#[test]
fn reset_seek_and_sense() {
    let f = fixture();
    f.bed.port_out(0x3f2, 1, 0);
    assert_eq!(f.status(), 0);
    f.bed.port_out(0x3f2, 1, 0x0c);
    assert!(f.bed.level(6));
    for unit in 0..4 {
        f.send(&[8]);
        assert_eq!(f.receive(2), [0xc0 | unit, 0]);
    }
    f.send(&[8]);
    assert_eq!(f.receive(1), [0x80]);
    assert_eq!(f.bed.port_in(0x3f7, 1), 0x80, "the disk is new");
    f.send(&[0x0f, 0, 40]);
    assert!(f.bed.level(6));
    f.send(&[8]);
    assert_eq!(f.receive(2), [0x20, 40]);
    assert!(!f.bed.level(6));
    assert_eq!(f.bed.port_in(0x3f7, 1), 0);
    f.send(&[0x07, 1]);
    f.send(&[8]);
    assert_eq!(f.receive(2), [0x71, 0], "no second drive");
    f.send(&[0xcf, 0, 5]);
    f.send(&[8]);
    assert_eq!(f.receive(2), [0x20, 45]);
    f.send(&[0x4, 4]);
    assert_eq!(f.receive(1), [0x2c]);
    f.send(&[0x10]);
    assert_eq!(f.receive(1), [0x90]);
    f.send(&[0x94]);
    assert_eq!(f.receive(1), [0x10]);
    f.send(&[0x13, 0, 0x57, 3]);
    f.bed.port_out(0x3f4, 1, 0x80);
    f.send(&[0x0e]);
    assert_eq!(f.receive(10), [45, 0, 0, 0, 0, 0, 0, 0x80, 0x57, 3], "locked values stay");
    f.send(&[0x1f]);
    assert_eq!(f.receive(1), [0x80]);
    assert_eq!(drive_types(&*f.controller), Some([DriveType::D144, DriveType::None]));
}

#[test]
fn reads_and_writes_by_dma() {
    let f = fixture();
    f.program_dma(0x44, 0x2_0000, 1024);
    // Cylinder 1, head 0, sector 18, on to the second head.
    f.send(&[0xe6, 0, 1, 0, 18, 2, 18, 27, 0xff]);
    assert_eq!(f.results(), [4, 0, 0, 1, 1, 2, 2]);
    assert_eq!(f.bed.services.memory.load(0x2_0000, 2), 53);
    assert_eq!(f.bed.services.memory.load(0x2_0200, 2), 54);
    f.bed.services.memory.store(0x3_0000, 4, 0x600d_cafe);
    f.program_dma(0x48, 0x3_0000, 512);
    f.send(&[0x45, 4, 79, 1, 18, 2, 18, 27, 0xff]);
    assert_eq!(f.results(), [4, 0, 0, 80, 1, 1, 2]);
    let bytes = std::fs::read(f.file.path()).unwrap();
    assert_eq!(bytes[BYTES - 512..BYTES - 508], [0xfe, 0xca, 0x0d, 0x60]);
    // The host wants more than the track has.
    f.program_dma(0x44, 0x2_0000, 2048);
    f.send(&[0x46, 0, 0, 0, 18, 2, 18, 27, 0xff]);
    assert_eq!(f.results()[..3], [0x40, 0x80, 0]);
    // Scan: the same, then one that is lower.
    f.program_dma(0x48, 0x3_0000, 512);
    f.send(&[0x51, 4, 79, 1, 18, 2, 18, 27, 0xff]);
    assert_eq!(f.results()[..3], [0x04, 0, 8]);
    f.program_dma(0x48, 0x3_0000, 512);
    f.send(&[0x51, 4, 0, 0, 3, 2, 18, 27, 0xff]);
    assert_eq!(f.results()[..3], [0, 0, 4]);
    f.send(&[0x56, 0, 0, 0, 1, 2, 18, 27, 0]);
    assert_eq!(f.results()[..3], [0, 0, 0]);
}

#[test]
fn a_channel_set_up_later_is_waited_for() {
    let f = fixture();
    f.send(&[0x46, 0, 0, 0, 2, 2, 18, 27, 0xff]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(f.status(), 0x10);
    f.program_dma(0x44, 0x2_0000, 512);
    f.bed.services.clocks.virtual_.advance(2_000_000);
    assert_eq!(f.results()[..3], [0, 0, 0]);
    assert_eq!(f.bed.services.memory.load(0x2_0000, 2), 1);
}

#[test]
fn reads_formats_and_writes_byte_by_byte() {
    let f = fixture();
    f.send(&[3, 0xaf, 1]);
    let wait = |status: u64| {
        let end = Instant::now() + Duration::from_secs(10);
        while f.status() != status {
            assert!(Instant::now() < end, "{:x}", f.status());
        }
    };
    f.send(&[0x46, 0, 0, 0, 7, 2, 8, 27, 0xff]);
    for sector in [6u8, 7] {
        for at in 0..512 {
            wait(0xf0);
            let wanted = if at % 2 == 0 { sector } else { 0 };
            assert_eq!(f.bed.port_in(0x3f5, 1), u64::from(wanted));
        }
    }
    assert_eq!(f.results(), [0, 0, 0, 1, 0, 1, 2]);
    f.send(&[0x45, 0, 0, 0, 1, 2, 1, 27, 0xff]);
    for _ in 0..512 {
        wait(0xb0);
        f.bed.port_out(0x3f5, 1, 0x77);
    }
    assert_eq!(f.results()[..3], [0, 0, 0]);
    f.send(&[0x0f, 4, 2]);
    f.send(&[8]);
    f.receive(2);
    f.send(&[0x4d, 4, 2, 3, 0x54, 0xf6]);
    for sector in 1..=3 {
        for byte in [2, 1, sector, 2] {
            wait(0xb0);
            f.bed.port_out(0x3f5, 1, byte);
        }
    }
    assert_eq!(f.results()[..3], [4, 0, 0]);
    let bytes = std::fs::read(f.file.path()).unwrap();
    assert_eq!(bytes[..512], [0x77; 512]);
    let track = (2 * 2 + 1) * 18 * 512;
    assert_eq!(bytes[track..track + 3 * 512], [0xf6; 3 * 512]);
    assert_eq!(bytes[track + 3 * 512], 93);
}

#[test]
fn errors() {
    let f = fixture();
    let read = [0x46, 0, 0, 0, 1, 2, 18, 27, 0xff];
    let with = |at: usize, value: u8| {
        let mut command = read;
        command[at] = value;
        f.send(&command);
        f.results()[..3].to_vec()
    };
    assert_eq!(with(4, 19), [0x40, 4, 0], "no such sector");
    assert_eq!(with(2, 80), [0x40, 4, 0], "no such cylinder");
    assert_eq!(with(5, 3), [0x40, 4, 0], "sectors of another size");
    assert_eq!(with(1, 1), [0x41, 1, 0], "no such drive");
    f.bed.port_out(0x3f7, 1, 2);
    assert_eq!(with(0, 0x46), [0x40, 1, 0], "wrong data rate");
    f.bed.port_out(0x3f7, 1, 0);
    f.send(&[0x4a, 4]);
    assert_eq!(f.results(), [4, 0, 0, 0, 1, 1, 2]);
    f.drive.set_read_only(true);
    f.send(&[0x45, 0, 0, 0, 1, 2, 18, 27, 0xff]);
    assert_eq!(f.results()[..3], [0x40, 2, 0]);
    f.send(&[4, 0]);
    assert_eq!(f.receive(1), [0x78], "write protected");
    let front = f.drive.front_end().unwrap();
    let media: &dyn Media = front.media().unwrap();
    f.send(&[7, 0]);
    assert_eq!(f.bed.port_in(0x3f7, 1), 0);
    media.changed(true);
    assert_eq!(f.bed.port_in(0x3f7, 1), 0x80);
}

#[test]
fn a_hostile_guest_does_no_harm() {
    let f = fixture();
    let mut random = Random(0x5eed_f10d);
    for round in 0..200_000u32 {
        let port = [0x3f2, 0x3f4, 0x3f5, 0x3f5, 0x3f5, 0x3f5, 0x3f7, 0x0a][random.below(8) as usize];
        match random.below(4) {
            0 => drop(f.bed.port_in(port, 1)),
            1 if port == 0x3f5 => {
                let commands = [0x46, 0x45, 0xc6, 0x4d, 0x51, 0x56, 0x0e, 0x4e, 0x2e, 0x13, 0x8e, 0x08];
                f.bed.port_out(port, 1, commands[random.below(12) as usize]);
            }
            _ => f.bed.port_out(port, 1, random.next() & 0xff),
        }
        if round % 1000 == 0 {
            f.bed.services.clocks.virtual_.advance(u64::from(round) * 2_000_000);
        }
    }
    f.controller.reset(ResetKind::Cold);
    f.send(&[0x10]);
    assert_eq!(f.receive(1), [0x90]);
}

#[test]
fn geometries() {
    use geometry::Format;
    let of = |kilobytes: u64, drive| Format::of(kilobytes << 10, drive);
    let shape = |f: Option<Format>| f.map(|f| (f.drive, f.sectors, f.cylinders, f.heads));
    assert_eq!(shape(of(1440, None)), Some((DriveType::D144, 18, 80, 2)));
    assert_eq!(shape(of(2880, None)), Some((DriveType::D288, 36, 80, 2)));
    assert_eq!(shape(of(1200, None)), Some((DriveType::D120, 15, 80, 2)));
    assert_eq!(shape(of(720, Some(DriveType::D288))), Some((DriveType::D144, 9, 80, 2)));
    assert_eq!(shape(of(360, None)), Some((DriveType::D120, 9, 40, 2)));
    assert_eq!(of(1234, None), None);
    assert_eq!(shape(of(1234, Some(DriveType::D144))), Some((DriveType::D144, 18, 80, 2)));
    let format = of(1440, None).unwrap();
    assert_eq!(format.offset(79, 1, 18), Some(1_474_560 - 512));
    assert_eq!((format.offset(80, 0, 1), format.offset(0, 2, 1), format.offset(0, 0, 0)), (None, None, None));
}
