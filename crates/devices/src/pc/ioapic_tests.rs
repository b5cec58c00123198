use super::*;
use crate::pc::apic::{Lapic, LapicConfig};
use base::clock::{Clock, Kind};
use cpu::{Link, LocalApic};
use memory::SpaceKind;

fn bench() -> (Arc<IoApic>, Arc<Lapic>, Arc<AddressSpace>, Arc<ApicBus>) {
    let bus = ApicBus::new(None);
    let config = LapicConfig { id: 0, bootstrap: true, x2apic: false, tsc_khz: 1_000_000 };
    let lapic = Lapic::new(config, &bus, Arc::new(Link::new()), &Clock::new(Kind::Manual));
    lapic.write_mmio(0xf0, 4, 0x1ff);
    let ioapic = IoApic::new(&bus, 0x20);
    let memory = AddressSpace::new(SpaceKind::Memory);
    ioapic.map(&memory, BASE);
    (ioapic, lapic, memory, bus)
}

fn set(memory: &AddressSpace, register: u64, value: u64) {
    memory.store(BASE, 4, register);
    memory.store(BASE + 0x10, 4, value);
}

fn get(memory: &AddressSpace, register: u64) -> u64 {
    memory.store(BASE, 4, register);
    memory.load(BASE + 0x10, 4)
}

#[test]
fn identification() {
    let (_ioapic, _, memory, _bus) = bench();
    assert_eq!(get(&memory, 1), 0x0017_0020);
    set(&memory, 0, 0xff00_0000);
    assert_eq!(get(&memory, 0), 0x0f00_0000);
    assert_eq!(get(&memory, 0x10), 0x10000);
    assert_eq!(get(&memory, 0xff), 0);
}

#[test]
fn edges() {
    let (ioapic, lapic, memory, _bus) = bench();
    ioapic.set_irq(4, true);
    set(&memory, 0x18, 0x44);
    assert!(!lapic.has_interrupt(), "an edge while masked is lost");
    ioapic.set_irq(4, false);
    ioapic.set_irq(4, true);
    assert!(ioapic.is_pending(4));
    assert_eq!(lapic.acknowledge(), Some(0x44));
    assert!(!ioapic.is_pending(4));
    ioapic.set_irq(4, true);
    lapic.write_mmio(0xb0, 4, 0);
    assert!(!lapic.has_interrupt());
}

#[test]
fn levels_repeat_until_lowered() {
    let (ioapic, lapic, memory, _bus) = bench();
    set(&memory, 0x10 + 2 * 16, 0x8060);
    ioapic.set_irq(16, true);
    assert_eq!(lapic.acknowledge(), Some(0x60));
    assert_eq!(get(&memory, 0x10 + 2 * 16), 0xc060);
    assert!(!lapic.has_interrupt());
    lapic.write_mmio(0xb0, 4, 0);
    assert_eq!(lapic.acknowledge(), Some(0x60));
    ioapic.set_irq(16, false);
    lapic.write_mmio(0xb0, 4, 0);
    assert!(!lapic.has_interrupt());
    assert_eq!(get(&memory, 0x10 + 2 * 16), 0x8060);
    // A level that rose while masked is delivered at unmasking.
    set(&memory, 0x10 + 2 * 16, 0x18060);
    ioapic.set_irq(16, true);
    assert!(!lapic.has_interrupt());
    set(&memory, 0x10 + 2 * 16, 0x8060);
    assert_eq!(lapic.acknowledge(), Some(0x60));
    // The EOI register.
    memory.store(BASE + 0x40, 4, 0x60);
    assert_eq!(get(&memory, 0x10 + 2 * 16), 0xc060);
    ioapic.set_irq(16, false);
    memory.store(BASE + 0x40, 4, 0x60);
    assert_eq!(get(&memory, 0x10 + 2 * 16), 0x8060);
}
