//! Laws every device of this folder keeps: any access is legal, reset is idempotent.

use super::*;
use crate::testbed::Testbed;
use cpu::LocalApic;
use device::{Device, ResetKind};
use memory::Dma;
use std::sync::Arc;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A board of all devices here, on one bed.
fn board(bed: &Testbed) -> (Vec<Arc<dyn Device>>, Arc<apic::Lapic>, Arc<rtc::Rtc>) {
    let services = &bed.services;
    let clock = &services.clocks.virtual_;
    let line = |irq: usize| services.irqs[irq].clone();
    let pic = pic::Pic::new();
    pic.map(&services.ports);
    let bus = apic::ApicBus::new(Some(pic.clone()));
    let config = apic::LapicConfig { id: 0, bootstrap: true, x2apic: true, tsc_khz: 1_000_000 };
    let lapic = apic::Lapic::new(config, &bus, Arc::new(cpu::Link::new()), clock);
    let ioapic = ioapic::IoApic::new(&bus, 0x20);
    ioapic.map(&services.memory, ioapic::BASE);
    let pit = pit::Pit::new(clock, ioapic.line(2), pit::LostTicks::Delay);
    pit.map(&services.ports);
    let config = rtc::RtcConfig {
        base: rtc::RtcBase::Utc,
        drift_fix: rtc::DriftFix::Slew,
        clock: clock.clone(),
        virtual_clock: clock.clone(),
        qom_path: String::new(),
    };
    let rtc = rtc::Rtc::new(config, pic.line(8), &services.notices);
    rtc.map(&services.ports);
    let i8042 = i8042::I8042::new(pic.line(1), pic.line(12), services.power.clone());
    i8042.map(&services.ports);
    let port92 = port92::Port92::new(services.power.clone());
    port92.map(&services.ports);
    let uart = uart::Uart::new(&uart::MODEL, clock, pic.line(4), None);
    uart.map(&services.ports, 0x3f8);
    let parallel = parallel::Parallel::new(pic.line(7), None);
    parallel.map(&services.ports, 0x378);
    let pvpanic = debug::PvPanic::new(services.power.clone(), 3);
    pvpanic.map(&services.ports, 0x505);
    let legacy = debug::LegacyPorts::new(pic.line(13));
    legacy.map(&services.ports);
    let dma = dma::IsaDma::new(Dma::new(services.memory.clone(), true));
    dma.map(&services.ports);
    let lines = hpet::HpetLines { legacy: [line(0), line(8)], irqs: services.irqs.clone(), msi: bus.clone() };
    let config = hpet::HpetConfig { msi: true, ..Default::default() };
    let hpet = hpet::Hpet::new(&config, clock, lines);
    hpet.map(&services.memory, hpet::BASE);
    let devices: Vec<Arc<dyn Device>> = vec![
        pic,
        lapic.clone(),
        ioapic,
        pit,
        rtc.clone(),
        i8042,
        port92,
        uart,
        parallel,
        pvpanic,
        legacy,
        dma,
        hpet,
    ];
    (devices, lapic, rtc)
}

#[test]
fn any_access_is_legal() {
    let bed = Testbed::new();
    let (devices, lapic, _) = board(&bed);
    let services = &bed.services;
    let ports: Vec<(u64, u64)> =
        services.ports.snapshot().ranges().iter().map(|range| (range.start, range.last)).collect();
    let windows = [(ioapic::BASE, 0x1000), (hpet::BASE, hpet::SIZE)];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..60_000 {
        let size = [1u8, 2, 4, 8][random.below(4) as usize];
        let value = match random.below(4) {
            0 => random.below(4),
            1 => u64::MAX,
            2 => random.below(256),
            _ => random.next(),
        };
        match random.below(4) {
            0 | 1 => {
                let (start, last) = ports[random.below(ports.len() as u64) as usize];
                let port = start + random.below(last - start + 1);
                services.ports.store(port, size.min(4), value);
                services.ports.load(port, size.min(4));
            }
            2 => {
                let (base, len) = windows[random.below(2) as usize];
                let at = base + random.below(len);
                services.memory.store(at, size, value);
                services.memory.load(at, size);
            }
            _ => {
                lapic.write_mmio(random.below(0x1000), size, value);
                lapic.read_mmio(random.below(0x1000), size);
                let index = [0x1b, 0x6e0, 0x800 + random.below(0x100) as u32][random.below(3) as usize];
                lapic.write_msr(index, value);
                lapic.read_msr(index);
                if let Some(_vector) = lapic.acknowledge() {
                    lapic.write_mmio(0xb0, 4, 0);
                }
            }
        }
        if round % 64 == 0 {
            let clock = &services.clocks.virtual_;
            let most = 1 << random.below(24);
            clock.advance(clock.now() + random.below(most));
        }
        if round % 8192 == 0 {
            devices.iter().for_each(|device| device.reset(ResetKind::Warm));
        }
    }
    services.notices.drain();
}

/// What a guest can read of a range without side effects is the same after one reset as
/// after two, and after a reset nothing is left to happen.
#[test]
fn reset_is_idempotent_and_complete() {
    let bed = Testbed::new();
    let (devices, lapic, rtc) = board(&bed);
    let mut random = Random(7);
    for _ in 0..5_000 {
        bed.services.ports.store(random.below(0x520), 1, random.next());
        lapic.write_mmio(random.below(0x400), 4, random.next());
    }
    let look = || {
        let mut seen: Vec<u64> = Vec::new();
        for device in &devices {
            device.reset(ResetKind::Cold);
        }
        for port in
            [0x20, 0x21, 0xa1, 0x4d0, 0x4d1, 0x61, 0x64, 0x3f9, 0x3fa, 0x3fb, 0x3fd, 0x379, 0x37a, 0x0f]
        {
            // The refresh toggle runs on.
            seen.push(bed.services.ports.load(port, 1) & if port == 0x61 { 0xef } else { 0xff });
        }
        seen.extend((0..0x40).map(|register| lapic.read_mmio(register * 16, 4)));
        seen.extend([0x10, 0x20, 0x100, 0x108].map(|at| bed.services.memory.load(hpet::BASE + at, 8)));
        seen
    };
    let once = look();
    assert_eq!(once, look());
    assert!(!lapic.has_interrupt());
    bed.services.ports.store(0x70, 1, 0x0b);
    assert_eq!(bed.services.ports.load(0x71, 1) & 0x70, 0);
    rtc.reset_reinjection();
}

#[test]
fn models_are_listed_once() {
    let mut names: Vec<_> = models().iter().map(|model| model.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
