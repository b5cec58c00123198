use super::config::{Identity, RegionKind, Space, regs};
use super::*;
use crate::*;
use base::clock::{Clock, Kind};
use base::notice::Notices;
use memory::{AddressSpace, Handler, SpaceKind};
use std::any::Any;
use std::sync::Mutex;

struct Nothing;
impl Power for Nothing {
    fn request_reset(&self, _: ResetCause) {}
    fn request_shutdown(&self, _: ShutdownCause) {}
    fn request_suspend(&self) {}
    fn guest_panicked(&self, _: bool) {}
    fn watchdog_expired(&self) {}
    fn exit(&self, _: i32) {}
    fn set_a20(&self, _: bool) {}
    fn a20(&self) -> bool {
        true
    }
    fn inject_nmi(&self) {}
    fn ejected(&self, _: Arc<dyn Device>) {}
}
impl Backends for Nothing {
    fn chardev(&self, name: &str) -> base::Result<chardev::Port> {
        Err(base::Failure::device_not_found(name))
    }
    fn drive(&self, name: &str, _front_end: &str) -> base::Result<block::Backend> {
        Err(base::Failure::device_not_found(name))
    }
    fn empty_drive(&self) -> base::Result<block::Backend> {
        Err(base::Failure::device_not_found("drive"))
    }
    fn object(&self, _: &str) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }
}

#[derive(Default)]
struct Sink(Mutex<Vec<MsiMessage>>);
impl MsiSink for Sink {
    fn send(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message);
    }
}

struct Cell;
impl Handler for Cell {
    fn read(&self, offset: u64, _: u8) -> u64 {
        0x40 + offset
    }
    fn write(&self, _: u64, _: u8, _: u64) {}
}

struct Fixture {
    services: Services,
    bus: Arc<PciBus>,
    sink: Arc<Sink>,
    wires: Arc<Mutex<Vec<(u8, u8, bool)>>>,
}

fn fixture() -> Fixture {
    let wires: Arc<Mutex<Vec<_>>> = Arc::default();
    let seen = wires.clone();
    let route = Box::new(move |slot, pin, level| seen.lock().unwrap().push((slot, pin, level)));
    let sink = Arc::new(Sink::default());
    let clock = || Clock::new(Kind::Manual);
    let services = Services {
        memory: AddressSpace::new(SpaceKind::Memory),
        ports: AddressSpace::new(SpaceKind::Port),
        clocks: Clocks { virtual_: clock(), realtime: clock(), host: clock() },
        irqs: Arc::new([]),
        msi: sink.clone(),
        power: Arc::new(Nothing),
        notices: Notices::new(),
        backends: Arc::new(Nothing),
    };
    Fixture { services, bus: PciBus::new("pci.0", false, route), sink, wires }
}

impl Fixture {
    fn core(&self) -> Arc<PciCore> {
        let wiring = Wiring {
            services: &self.services,
            bus: self.bus.clone(),
            bus_numbers: &BusNumbers::default(),
            id: None,
            qom_path: String::new(),
            hotplugged: false,
            outputs: Default::default(),
        };
        PciCore::new("probe", Identity::new(0x1234, 0x5678, 1, 0x020000), &Props::default(), &wiring).unwrap()
    }
}

#[test]
fn a_bar_sizes_maps_moves_and_goes() {
    let f = fixture();
    let core = f.core();
    core.add_io_bar(0, RegionKind::Io, 0x20, Arc::new(Cell));
    core.add_io_bar(2, RegionKind::Memory64, 0x4000, Arc::new(Cell));
    core.config_write(0x10, 4, u32::MAX);
    assert_eq!(core.config_read(0x10, 4), 0xffff_ffe1);
    core.config_write(0x18, 4, u32::MAX);
    core.config_write(0x1c, 4, u32::MAX);
    assert_eq!(core.config_read(0x18, 4), 0xffff_c004);
    assert_eq!(core.config_read(0x1c, 4), u32::MAX);
    core.config_write(4, 2, 3);
    assert_eq!(core.regions()[1].address, None, "all ones decode nothing");
    core.config_write(0x10, 4, 0xc001);
    core.config_write(0x18, 4, 0xe000_0000);
    core.config_write(0x1c, 4, 1);
    assert_eq!(f.services.ports.load(0xc003, 1), 0x43);
    assert_eq!(f.services.memory.load(0x1_e000_0001, 1), 0x41);
    core.config_write(0x1c, 4, 0);
    assert_eq!(f.services.memory.load(0xe000_0001, 1), 0x41);
    assert_eq!(f.services.memory.load(0x1_e000_0001, 1), 0);
    core.config_write(4, 2, 0);
    assert_eq!(f.services.ports.load(0xc003, 1), 0xff);
    core.config_write(4, 2, 3);
    core.reset();
    assert_eq!(f.services.memory.view().ranges().len(), 0);
    assert_eq!(core.config_read(0x10, 4), 1);
}

#[test]
fn msix_masks_remember_and_need_bus_mastering() {
    let f = fixture();
    let core = f.core();
    core.add_msix(1, 3).unwrap();
    core.config_write(0x14, 4, 0xfe00_0000);
    core.config_write(4, 2, 6);
    let memory = &f.services.memory;
    memory.store(0xfe00_0010, 8, 0xfee0_1000);
    memory.store(0xfe00_0018, 4, 0x4041);
    core.msix_trigger(1);
    let at = core.config_read(0x34, 1) as u16;
    assert_eq!(core.config_read(at, 1), 0x11);
    core.config_write(at + 2, 2, 0x8000);
    core.msix_trigger(1);
    assert!(f.sink.0.lock().unwrap().is_empty());
    assert_eq!(memory.load(0xfe00_0800, 4), 2);
    memory.store(0xfe00_001c, 4, 0);
    assert_eq!(*f.sink.0.lock().unwrap(), [MsiMessage { address: 0xfee0_1000, data: 0x4041 }]);
    assert_eq!(memory.load(0xfe00_0800, 4), 0);
    core.msix_trigger(7);
    core.config_write(4, 2, 2);
    core.msix_trigger(1);
    assert_eq!(f.sink.0.lock().unwrap().len(), 1);
}

#[test]
fn the_pin_obeys_intx_disable_and_shares_its_wire() {
    let f = fixture();
    let core = f.core();
    core.set_interrupt_pin(1);
    core.set_intx(true);
    assert_eq!(core.config_read(6, 2) & 8, 8);
    core.config_write(4, 2, 0x400);
    core.config_write(4, 2, 0);
    core.set_intx(false);
    assert_eq!(*f.wires.lock().unwrap(), [(0, 0, true), (0, 0, false), (0, 0, true), (0, 0, false)]);
    f.wires.lock().unwrap().clear();
    f.bus.set_intx(devfn(3, 0), 1, true);
    f.bus.set_intx(devfn(3, 1), 1, true);
    f.bus.set_intx(devfn(3, 0), 1, false);
    f.bus.set_intx(devfn(3, 1), 1, false);
    assert_eq!(*f.wires.lock().unwrap(), [(3, 1, true), (3, 1, false)]);
}

#[test]
fn msi_sends_the_vector_in_the_low_bits() {
    let f = fixture();
    let core = f.core();
    core.add_msi(4).unwrap();
    let at = core.config_read(0x34, 1) as u16;
    core.config_write(4, 2, 4);
    core.config_write(at + 4, 4, 0xfee0_0000);
    core.config_write(at + 12, 2, 0x30);
    core.config_write(at + 2, 2, 1 | 2 << 4);
    core.signal(3);
    assert_eq!(*f.sink.0.lock().unwrap(), [MsiMessage { address: 0xfee0_0000, data: 0x33 }]);
}

#[test]
fn places_are_reserved_once_and_given_back() {
    let f = fixture();
    let first = f.core();
    assert_eq!(first.address(), 0);
    let text = f.bus.reserve(Some(0), "other").unwrap_err().text;
    assert_eq!(text, "PCI: slot 0 function 0 not available for other, in use by probe");
    assert_eq!(f.core().address(), 8);
    drop(first);
    assert_eq!(f.bus.reserve(Some(0), "other"), Ok(0));
}

#[test]
fn any_configuration_access_is_harmless() {
    let f = fixture();
    let core = f.core();
    core.add_io_bar(0, RegionKind::Io, 0x20, Arc::new(Cell));
    core.add_io_bar(2, RegionKind::Memory64Prefetch, 1 << 33, Arc::new(Cell));
    core.add_msix(1, 2048).unwrap();
    core.add_msi(1).unwrap();
    core.add_power_management().unwrap();
    core.set_interrupt_pin(1);
    let mut random = 0x1234_5678_9abc_def1u64;
    for _ in 0..20_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let size = [1, 2, 4][(random % 3) as usize];
        let offset = (random >> 8) as u16 % 0x108;
        core.config_write(offset, size, (random >> 32) as u32);
        core.config_read(offset, size);
        core.signal((random >> 20) as usize % 4096);
        assert_eq!(core.config_read(0, 4), 0x5678_1234);
    }
}

#[test]
fn write_one_to_clear_and_read_only_bits() {
    let mut space = Space::new(256);
    space.init(regs::STATUS, &[0x10, 0x20]);
    space.set_clearable(regs::STATUS, &[0, 0xf9]);
    space.write(regs::STATUS, 2, 0xffff);
    assert_eq!(space.read(regs::STATUS, 2), 0x0010);
    space.reset();
    assert_eq!(space.read(regs::STATUS, 2), 0x2010);
    assert_eq!(space.read(0xfe, 4), u32::MAX);
}
