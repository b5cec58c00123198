use super::*;
use crate::testbed::Testbed;
use crate::virtio::VirtioPci;
use device::pci::PciBus;
use std::time::{Duration, Instant};

const BAR: u64 = 0xe000_0000;
const RINGS: u64 = 0x100000;

/// The driver's side of some queues, each with buffers of 4 KiB at a fixed place.
struct Driver {
    bed: Testbed,
    bus: Arc<SerialBus>,
    positions: BTreeMap<usize, (u16, u16)>,
}

impl Driver {
    fn new(queues: &[usize]) -> Driver {
        let bed = Testbed::new();
        let pci = PciBus::new("pci.0", false, Box::new(|_, _, _| ()));
        let device = bed.make(&GENERIC, pci.clone(), &[]);
        let bus = device.buses()[0].clone().as_any().downcast::<SerialBus>().unwrap();
        assert!(device.as_any().is::<VirtioPci>());
        pci.config_write(0, 0x20, 4, BAR as u32);
        pci.config_write(0, 4, 2, 6);
        let driver = Driver { bed, bus, positions: queues.iter().map(|&queue| (queue, (0, 0))).collect() };
        driver.store(BAR + 0x14, 1, 3);
        for (half, value) in [(0, F_MULTIPORT), (1, 1)] {
            driver.store(BAR + 8, 4, half);
            driver.store(BAR + 12, 4, value);
        }
        driver.store(BAR + 0x14, 1, 11);
        for &queue in queues {
            let base = RINGS + queue as u64 * 0x10000;
            driver.store(BAR + 0x16, 2, queue as u64);
            driver.store(BAR + 0x18, 2, 8);
            for (register, at) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
                driver.store(BAR + register, 4, at);
            }
            driver.store(BAR + 0x1c, 2, 1);
        }
        driver.store(BAR + 0x14, 1, 15);
        driver
    }

    fn store(&self, at: u64, size: u8, value: u64) {
        self.bed.services.memory.store(at, size, value);
    }

    fn load(&self, at: u64, size: u8) -> u64 {
        self.bed.services.memory.load(at, size)
    }

    /// Offers a buffer: the bytes for the device, or room for it to fill.
    fn offer(&mut self, queue: usize, bytes: Option<&[u8]>, room: u32) {
        let base = RINGS + queue as u64 * 0x10000;
        let (next, _) = self.positions[&queue];
        let slot = u64::from(next % 8);
        let data = base + 0x8000 + slot * 0x1000;
        let len = bytes.map_or(room, |bytes| bytes.len() as u32);
        self.bed.ram.write(data, bytes.unwrap_or_default());
        self.store(base + slot * 16, 8, data);
        self.store(base + slot * 16 + 8, 8, u64::from(len) | if bytes.is_some() { 0 } else { 2 << 32 });
        self.store(base + 0x1004 + 2 * slot, 2, slot);
        self.store(base + 0x1002, 2, u64::from(next.wrapping_add(1)));
        self.positions.get_mut(&queue).unwrap().0 += 1;
        self.store(BAR + 0x3000 + 4 * queue as u64, 2, queue as u64);
    }

    /// The next filled buffer of a queue, if there is one.
    fn used(&mut self, queue: usize) -> Option<Vec<u8>> {
        let base = RINGS + queue as u64 * 0x10000;
        let (_, seen) = self.positions[&queue];
        if self.load(base + 0x2002, 2) == u64::from(seen) {
            return None;
        }
        let slot = u64::from(seen % 8);
        let head = self.load(base + 0x2004 + 8 * slot, 4);
        let mut bytes = vec![0; self.load(base + 0x2008 + 8 * slot, 4) as usize];
        self.bed.ram.read(base + 0x8000 + head * 0x1000, &mut bytes);
        self.positions.get_mut(&queue).unwrap().1 += 1;
        Some(bytes)
    }

    fn tell(&mut self, id: u32, event: u16, value: u16) {
        self.offer(3, Some(&message(id, event, value)), 0);
        assert_eq!(self.used(3), Some(vec![]));
    }

    /// The control message that comes next, a buffer having been offered for it.
    fn told(&mut self) -> Vec<u8> {
        self.offer(2, None, 100);
        self.used(2).unwrap_or_default()
    }
}

#[test]
fn ports_are_announced_opened_and_named() {
    let mut d = Driver::new(&[2, 3, 4, 5]);
    d.bed.make(&PORT, d.bus.clone(), &[("name", "org.test.0")]);
    d.tell(0xffff_ffff, DEVICE_READY, 1);
    assert_eq!(d.told(), message(1, PORT_ADD, 1));
    d.tell(1, PORT_READY, 1);
    assert_eq!(d.told(), [&message(1, PORT_NAME, 1)[..], b"org.test.0"].concat());
    let port = d.bus.port(1).unwrap();
    port.event(Event::Opened);
    assert!(d.used(2).is_none());
    assert_eq!(d.told(), message(1, PORT_OPEN, 1));
    assert_eq!(port.can_receive(), 0, "the guest has not opened it");
    d.tell(1, PORT_OPEN, 1);
    let opened = d.bed.services.notices.drain();
    let notice = opened[0].what.downcast_ref::<device::Notice>().unwrap();
    assert_eq!(*notice, device::Notice::PortChanged { id: "dev0".into(), open: true });
    assert_eq!(port.can_receive(), 0, "there are no buffers");
    d.offer(4, None, 3);
    assert!(port.can_receive() > 0);
    port.receive(b"hello", Vec::new());
    assert_eq!(d.used(4).unwrap(), b"hel");
    assert_eq!(d.used(4), None);
    d.offer(4, None, 100);
    assert_eq!(d.used(4).unwrap(), b"lo");
    d.tell(1, PORT_OPEN, 0);
    assert_eq!(d.bed.services.notices.drain().len(), 1);
}

use chardev::{Event, FrontEnd};

#[test]
fn output_reaches_the_character_device() {
    let mut d = Driver::new(&[0, 1, 2, 3]);
    let chardevs = d.bed.recorder.add_ringbuf("c0");
    d.bed.make(&CONSOLE, d.bus.clone(), &[("chardev", "c0")]);
    d.tell(0, DEVICE_READY, 1);
    assert_eq!(d.told(), message(0, PORT_ADD, 1));
    d.tell(0, PORT_READY, 1);
    assert_eq!(d.told(), message(0, CONSOLE_PORT, 1));
    assert_eq!(d.told(), message(0, PORT_OPEN, 1));
    d.offer(1, Some(b"from the guest"), 0);
    let end = Instant::now() + Duration::from_secs(5);
    while d.used(1).is_none() {
        assert!(Instant::now() < end);
    }
    assert_eq!(chardevs.ringbuf_read("c0", 100, false).unwrap(), b"from the guest");
    d.store(BAR + 0x2008, 4, u64::from(b'!'));
    assert_eq!(chardevs.ringbuf_read("c0", 100, false).unwrap(), b"!");
}

#[test]
fn numbers_of_ports_are_checked() {
    let d = Driver::new(&[]);
    let error = |model, given: &[(&str, &str)]| {
        d.bed.try_make(model, d.bus.clone(), given).err().map(|failure| failure.text).unwrap_or_default()
    };
    assert!(error(&PORT, &[("nr", "0")]).starts_with("Port number 0 on virtio-serial devices reserved"));
    assert_eq!(error(&PORT, &[("nr", "31")]), "Out-of-range port id specified, max. allowed: 30");
    assert_eq!(error(&PORT, &[("nr", "5")]), "");
    assert_eq!(error(&PORT, &[("nr", "5")]), "A port already exists at id 5");
    assert_eq!(error(&PORT, &[("chardev", "none")]), "Chardev 'none' not found");
    assert_eq!(error(&CONSOLE, &[]), "");
    (1..31).filter(|&nr| nr != 5).for_each(|_| assert_eq!(error(&PORT, &[]), ""));
    assert_eq!(error(&PORT, &[]), "Maximum port limit for this device reached");
}
