use super::blk;
use crate::testbed::{Random, Testbed};
use device::Device;
use device::pci::PciBus;
use memory::RamBlock;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BAR: u64 = 0xe000_0000;
const MSIX_BAR: u64 = 0xe100_0000;
const DESC: u64 = 0x10000;
const AVAIL: u64 = 0x20000;
const USED: u64 = 0x30000;
const DATA: u64 = 0x100000;

/// A driver of one queue over the modern interface.
pub struct Driver {
    pub bed: Testbed,
    pub bus: Arc<PciBus>,
    pub device: Arc<dyn Device>,
    size: u16,
    next: u16,
    seen: u16,
}

impl Driver {
    pub fn new(bed: Testbed, model: &'static device::Model, given: &[(&str, &str)]) -> Driver {
        let bus = PciBus::new("pci.0", false, Box::new(|_, _, _| ()));
        let device = bed.make(model, bus.clone(), given);
        let mut driver = Driver { bed, bus, device, size: 8, next: 0, seen: 0 };
        driver.config(0x20, 4, BAR as u32);
        driver.config(0x14, 4, MSIX_BAR as u32);
        driver.config(4, 2, 6);
        driver.size = 8;
        driver
    }

    pub fn config(&self, register: u16, size: u8, value: u32) {
        self.bus.config_write(0, register, size, value);
    }

    pub fn load(&self, at: u64, size: u8) -> u64 {
        self.bed.services.memory.load(at, size)
    }

    pub fn store(&self, at: u64, size: u8, value: u64) {
        self.bed.services.memory.store(at, size, value);
    }

    pub fn ram(&self) -> RamBlock {
        self.bed.ram
    }

    pub fn status(&self) -> u8 {
        self.load(BAR + 0x14, 1) as u8
    }

    /// Resets, accepts `features`, enables queue 0 with 8 entries and starts the device.
    pub fn start(&mut self, features: u64) {
        self.start_queue(features, 0);
        self.store(BAR + 0x14, 1, 15);
        assert_eq!(self.status(), 15);
    }

    pub fn start_queue(&mut self, features: u64, queue: u16) {
        self.store(BAR + 0x14, 1, 0);
        self.store(BAR + 0x14, 1, 3);
        for half in 0..2 {
            self.store(BAR + 8, 4, half);
            self.store(BAR + 12, 4, features >> (32 * half));
        }
        self.store(BAR + 0x14, 1, 11);
        assert_eq!(self.status(), 11, "features accepted");
        self.store(BAR + 0x16, 2, queue.into());
        self.store(BAR + 0x18, 2, self.size.into());
        for (register, at) in [(0x20, DESC), (0x28, AVAIL), (0x30, USED)] {
            self.store(BAR + register, 4, at);
            self.store(BAR + register + 4, 4, 0);
        }
        self.ram().write(DESC, &[0; 0x4000]);
        self.ram().write(AVAIL, &[0; 0x1000]);
        self.ram().write(USED, &[0; 0x1000]);
        self.store(BAR + 0x1c, 2, 1);
        (self.next, self.seen) = (0, 0);
    }

    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.ram().write(DESC + 16 * u64::from(index), &bytes);
    }

    pub fn offer(&mut self, head: u16, queue: u64) {
        let slot = u64::from(self.next % self.size);
        self.store(AVAIL + 4 + 2 * slot, 2, head.into());
        self.next = self.next.wrapping_add(1);
        self.store(AVAIL + 2, 2, self.next.into());
        self.store(BAR + 0x3000 + 4 * queue, 2, queue);
    }

    /// Waits for the next used element: head and bytes written.
    pub fn used(&mut self) -> (u16, u32) {
        let end = Instant::now() + Duration::from_secs(5);
        while self.load(USED + 2, 2) as u16 == self.seen {
            assert!(Instant::now() < end, "the device answers");
            std::thread::yield_now();
        }
        let slot = u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        (self.load(USED + 4 + 8 * slot, 4) as u16, self.load(USED + 8 + 8 * slot, 4) as u32)
    }

    /// One request of a header, data and a status byte; gives (status, bytes written).
    fn request(&mut self, kind: u32, sector: u64, write: &[u8], read: u32) -> (u8, u32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram().write(DATA, &header);
        self.ram().write(DATA + 0x1000, write);
        self.ram().write(DATA + 0xfff, &[0xee]);
        self.descriptor(0, DATA, 16, 1, 1);
        match (write.len() as u32, read) {
            (0, 0) => self.descriptor(1, DATA + 0xfff, 1, 2, 0),
            (len, 0) => {
                self.descriptor(1, DATA + 0x1000, len, 1, 2);
                self.descriptor(2, DATA + 0xfff, 1, 2, 0);
            }
            (_, len) => {
                self.descriptor(1, DATA + 0x1000, len, 3, 2);
                self.descriptor(2, DATA + 0xfff, 1, 2, 0);
            }
        }
        self.offer(0, 0);
        let (head, written) = self.used();
        assert_eq!(head, 0);
        (self.load(DATA + 0xfff, 1) as u8, written)
    }
}

const VERSION_1: u64 = 1 << 32;

fn blk(given: &[(&str, &str)], content: &[u8]) -> (Driver, tempfile::NamedTempFile) {
    let bed = Testbed::new();
    let (_, file) = bed.drive("d0", content);
    let all = [&[("drive", "d0")], given].concat();
    (Driver::new(bed, blk::MODELS[0], &all), file)
}

fn image(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i % 251) as u8).collect()
}

#[test]
fn blk_reads_writes_flushes_and_names_itself() {
    let content = image(1 << 20);
    let (mut d, file) = blk(&[("serial", "abc")], &content);
    d.start(VERSION_1);
    assert_eq!(d.load(BAR + 0x2000, 8), 2048);
    assert_eq!(d.request(0, 3, &[], 1024), (0, 1025));
    let mut bytes = vec![0; 1024];
    d.ram().read(DATA + 0x1000, &mut bytes);
    assert_eq!(bytes, content[3 * 512..5 * 512]);
    assert_eq!(d.request(1, 2047, &[7; 512], 0), (0, 1));
    assert_eq!(d.request(4, 0, &[], 0), (0, 1));
    assert_eq!(std::fs::read(file.path()).unwrap()[2047 * 512..], [7; 512]);
    assert_eq!(d.request(8, 0, &[], 20), (0, 21));
    let mut id = [0; 4];
    d.ram().read(DATA + 0x1000, &mut id);
    assert_eq!(&id, b"abc\0");
    assert_eq!(d.request(0, 2048, &[], 512).0, 1, "past the end");
    assert_eq!(d.request(0, u64::MAX, &[], 512).0, 1);
    assert_eq!(d.request(1, 0, &[7; 100], 0).0, 1, "not whole sectors");
    assert_eq!(d.request(99, 0, &[], 0).0, 2);
    let mut zeroes = [0; 16];
    zeroes[0] = 2047u64 as u8;
    zeroes[1] = 7;
    zeroes[8] = 1;
    assert_eq!(d.request(13, 0, &zeroes, 0).0, 0);
    assert_eq!(d.request(0, 2047, &[], 512), (0, 513));
    assert_eq!(d.load(DATA + 0x1000, 8), 0);
    zeroes[8] = 200;
    assert_eq!(d.request(11, 0, &zeroes, 0).0, 1, "beyond the end");
}

#[test]
fn blk_moves_long_requests_in_pieces() {
    let content = image(8 << 20);
    let (mut d, _file) = blk(&[], &content);
    d.start(VERSION_1);
    assert_eq!(d.request(0, 0, &[], 5 << 20), (0, (5 << 20) + 1));
    let mut bytes = vec![0; 5 << 20];
    d.ram().read(DATA + 0x1000, &mut bytes);
    assert!(bytes == content[..5 << 20]);
}

#[test]
fn blk_interrupts_by_msix_and_by_pin() {
    let (mut d, _file) = blk(&[], &image(4096));
    let at = d.bus.config_read(0, 0x34, 1) as u16;
    let mut cap = at;
    while d.bus.config_read(0, cap, 1) != 0x11 {
        cap = d.bus.config_read(0, cap + 1, 1) as u16;
    }
    d.start(VERSION_1);
    d.request(0, 0, &[], 512);
    assert_eq!(d.load(BAR + 0x1000, 1), 1, "interrupt status");
    assert_eq!(d.load(BAR + 0x1000, 1), 0, "cleared by reading");
    d.config(cap + 2, 2, 0x8000);
    d.store(MSIX_BAR + 16, 4, 0xfee0_0000);
    d.store(MSIX_BAR + 24, 4, 0x77);
    d.store(MSIX_BAR + 28, 4, 0);
    d.start_queue(VERSION_1, 0);
    d.store(BAR + 0x1a, 2, 1);
    assert_eq!(d.load(BAR + 0x1a, 2), 1);
    d.store(BAR + 0x10, 2, 9);
    assert_eq!(d.load(BAR + 0x10, 2), 0xffff, "no such vector");
    d.store(BAR + 0x14, 1, 15);
    d.request(0, 0, &[], 512);
    let end = Instant::now() + Duration::from_secs(5);
    while d.bed.recorder.messages.lock().unwrap().is_empty() {
        assert!(Instant::now() < end);
    }
    assert_eq!(d.bed.recorder.messages.lock().unwrap()[0].data, 0x77);
}

#[test]
fn blk_over_the_legacy_interface() {
    let (mut d, _file) = blk(&[("queue-size", "8")], &image(4096));
    d.config(0x10, 4, 0xc000);
    d.config(4, 2, 7);
    let port = |register: u64| 0xc000 + register;
    let bed = &d.bed;
    bed.port_out(port(0x12), 1, 0);
    bed.port_out(port(0x12), 1, 3);
    assert_ne!(bed.port_in(port(0), 4) & 1 << 9, 0, "flush is offered");
    bed.port_out(port(4), 4, 0);
    assert_eq!(bed.port_in(port(0x0c), 2), 8);
    assert_eq!(bed.port_in(port(0x14), 4), 8, "capacity");
    bed.port_out(port(8), 4, DESC >> 12);
    bed.port_out(port(0x12), 1, 7);
    let mut header = [0; 16];
    header[8] = 1;
    bed.ram.write(DATA, &header);
    d.descriptor(0, DATA, 16, 1, 1);
    d.descriptor(1, DATA + 0x1000, 512, 3, 2);
    d.descriptor(2, DATA + 0xfff, 1, 2, 0);
    // With 8 entries the available ring follows at +128, the used ring at +4096.
    d.store(DESC + 128 + 4, 2, 0);
    d.store(DESC + 128 + 2, 2, 1);
    d.bed.port_out(port(0x10), 2, 0);
    let end = Instant::now() + Duration::from_secs(5);
    while d.load(DESC + 4096 + 2, 2) != 1 {
        assert!(Instant::now() < end);
    }
    let mut bytes = [0; 512];
    d.ram().read(DATA + 0x1000, &mut bytes);
    assert_eq!(bytes, image(4096)[512..1024]);
    d.seen = 0;
}

#[test]
fn hostile_rings_break_the_device_and_nothing_else() {
    let (mut d, _file) = blk(&[], &image(4096));
    let broken = |d: &Driver| d.status() & 0x40 != 0;
    type Attack = fn(&mut Driver);
    let attacks: [Attack; 8] = [
        |d| d.offer(8, 0),
        |d| {
            d.descriptor(0, DATA, 16, 1, 0);
            d.offer(0, 0);
        },
        |d| {
            d.descriptor(0, DATA, 16, 1, 9);
            d.offer(0, 0);
        },
        |d| {
            d.descriptor(0, DATA, 16, 4, 0);
            d.descriptor(1, 0, 0, 0, 0);
            d.ram().write(DATA, &[0; 16]);
            d.offer(0, 0);
        },
        |d| {
            d.descriptor(0, DATA, 17, 4, 0);
            d.offer(0, 0);
        },
        |d| {
            d.descriptor(0, u64::MAX - 3, 32, 4, 0);
            d.offer(0, 0);
        },
        |d| {
            d.store(AVAIL + 2, 2, 100);
            d.store(BAR + 0x3000, 2, 0);
        },
        |d| {
            d.descriptor(0, DATA, 16, 3, 1);
            d.descriptor(1, DATA, 16, 0, 0);
            d.offer(0, 0);
        },
    ];
    for (number, attack) in attacks.into_iter().enumerate() {
        d.start(VERSION_1 | 1 << 28);
        attack(&mut d);
        assert!(broken(&d), "attack {number}");
        d.start(VERSION_1);
        assert_eq!(d.request(0, 0, &[], 512).0, 0, "works again after reset");
    }
    // Buffers in the device's own registers are not memory.
    d.start(VERSION_1);
    d.descriptor(0, BAR, 16, 1, 1);
    d.descriptor(1, BAR + 0x3000, 1, 2, 0);
    d.offer(0, 0);
    assert!(broken(&d));
}

#[test]
fn features_not_offered_are_refused() {
    let (d, _file) = blk(&[("disable-legacy", "on")], &image(4096));
    assert_eq!(d.bus.config_read(0, 2, 2), 0x1042);
    d.store(BAR + 0x14, 1, 3);
    d.store(BAR + 8, 4, 1);
    d.store(BAR + 12, 4, 0xff);
    d.store(BAR + 0x14, 1, 11);
    assert_eq!(d.status() & 8, 0);
    d.store(BAR + 12, 4, 0);
    d.store(BAR + 0x14, 1, 11);
    assert_eq!(d.status() & 8, 0, "a modern driver must accept VERSION_1");
}

#[test]
fn the_configuration_window_reaches_the_registers() {
    let (d, _file) = blk(&[], &image(4096));
    let mut cap = d.bus.config_read(0, 0x34, 1) as u16;
    while d.bus.config_read(0, cap, 1) != 9 || d.bus.config_read(0, cap + 3, 1) != 5 {
        cap = d.bus.config_read(0, cap + 1, 1) as u16;
    }
    d.config(cap + 4, 1, 4);
    d.config(cap + 8, 4, 0x2000);
    d.config(cap + 12, 4, 4);
    assert_eq!(d.bus.config_read(0, cap + 16, 4), 8);
    d.config(cap + 8, 4, 0xffff_fffe);
    d.bus.config_read(0, cap + 16, 4);
}

#[test]
fn event_index_asks_for_the_interrupts_it_wants() {
    use super::queue::Queue;
    let bed = Testbed::new();
    let dma = memory::Dma::new(bed.services.memory.clone(), true).memory_only();
    let mut queue = Queue::new(4);
    queue.place_legacy(DESC);
    queue.event_idx = true;
    let (avail, used) = (queue.avail, queue.used);
    for i in 0..4u64 {
        bed.services.memory.store(DESC + 16 * i, 8, DATA);
        bed.services.memory.store(DESC + 16 * i + 8, 8, 1 | 2 << 32);
        bed.services.memory.store(avail + 4 + 2 * i, 2, i);
    }
    let mut wanted = Vec::new();
    let mut index = 0u16;
    for round in 0..40_000u32 {
        index = index.wrapping_add(1);
        bed.services.memory.store(avail + 2, 2, index.into());
        // The driver wants every tenth.
        let event = (round / 10 * 10 + 9) as u16;
        bed.services.memory.store(avail + 4 + 8, 2, event.into());
        let chain = queue.pop(&dma, 0).unwrap().expect("one is available");
        if queue.push(&dma, &chain, 1).unwrap() {
            wanted.push(round);
        }
        assert!(queue.pop(&dma, 0).unwrap().is_none());
        assert_eq!(bed.services.memory.load(used + 4 + 8 * 4, 2) as u16, index);
    }
    assert!(wanted.iter().skip(1).all(|round| round % 10 == 9), "{:?}", &wanted[..5]);
    assert_eq!(wanted.len(), 4000 + 1, "the first decision always interrupts");
}

#[test]
fn random_rings_and_registers_are_harmless() {
    let (mut d, _file) = blk(&[("num-queues", "2")], &image(1 << 20));
    let mut random = Random(42);
    for round in 0..300 {
        d.start(VERSION_1 | 3 << 28);
        for _ in 0..20 {
            let index = random.below(8) as u16;
            let address = match random.below(4) {
                0 => random.next(),
                1 => DESC + random.below(0x100),
                _ => DATA + random.below(0x10000),
            };
            let len = random.below(0x2000) as u32;
            d.descriptor(index, address, len, random.below(8) as u16, random.below(9) as u16);
            d.ram().write(DATA, &[random.below(16) as u8, 0, 0, 0]);
            d.offer(random.below(8) as u16, 0);
        }
        for _ in 0..50 {
            let size = [1, 2, 4, 8][random.below(4) as usize];
            let at = BAR + random.below(0x3ff0);
            if at & 0xfff != 0x14 || round % 3 == 0 {
                d.store(at, size, random.next());
            }
            d.load(at, size);
        }
    }
}

#[test]
fn rng_fills_buffers_within_its_allowance() {
    let bed = Testbed::new();
    let mut d = Driver::new(bed, super::rng::MODELS[0], &[("max-bytes", "100"), ("period", "1000")]);
    d.start(VERSION_1);
    d.ram().write(DATA, &[0; 256]);
    d.descriptor(0, DATA, 64, 2, 0);
    d.offer(0, 0);
    assert_eq!(d.used(), (0, 64));
    assert_ne!(d.load(DATA, 8), 0);
    d.offer(0, 0);
    assert_eq!(d.used(), (0, 36), "what is left of the period");
    d.offer(0, 0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(d.load(USED + 2, 2), 2);
    d.bed.services.clocks.virtual_.advance(1_100_000_000);
    assert_eq!(d.used(), (0, 64));
}

#[test]
fn balloon_pages_go_back_to_the_host_and_statistics_are_asked_for() {
    use serde_json::json;
    let mut d = Driver::new(Testbed::new(), super::balloon::MODELS[0], &[]);
    d.start(VERSION_1 | 2);
    let balloon = |d: &Driver| {
        let pci = d.device.as_any().downcast_ref::<super::VirtioPci>().unwrap();
        pci.device().clone()
    };
    let device = balloon(&d);
    let balloon = device.as_any().downcast_ref::<super::Balloon>().unwrap();
    balloon.set_target(8192);
    assert_eq!(d.load(BAR + 0x2000, 4), 2);
    d.ram().write(0x20_0000, &[1; 4096]);
    d.ram().write(DATA, &[0x200u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat());
    d.descriptor(0, DATA, 8, 0, 0);
    d.offer(0, 0);
    assert_eq!(d.used(), (0, 0));
    assert_eq!(d.load(0x20_0000, 8), 0);
    d.store(BAR + 0x2004, 4, 1);
    let notice = d.bed.services.notices.drain().pop().unwrap().what.downcast::<device::Notice>().unwrap();
    assert_eq!((*notice, balloon.given()), (device::Notice::BalloonChanged { bytes: 4096 }, 4096));
    d.start_queue(VERSION_1 | 2, 2);
    d.store(BAR + 0x14, 1, 15);
    d.ram().write(DATA, &[4, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
    d.descriptor(0, DATA, 10, 0, 0);
    d.offer(0, 2);
    assert_eq!(d.device.dynamic_property("guest-stats").unwrap()["stats"]["stat-free-memory"], 4096);
    assert!(d.device.set_dynamic_property("guest-stats-polling-interval", &json!(-1)).unwrap().is_err());
    d.device.set_dynamic_property("guest-stats-polling-interval", &json!(2)).unwrap().unwrap();
    assert_eq!(d.load(USED + 2, 2), 0);
    d.bed.services.clocks.virtual_.advance(2_000_000_000);
    assert_eq!(d.used(), (0, 0), "asked again");
}
