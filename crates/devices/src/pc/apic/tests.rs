use super::*;
use base::clock::{Clock, Kind};
use cpu::{Link, LocalApic, Request};
use device::{Device, MsiMessage, MsiSink, ResetKind};
use std::sync::Arc;

struct Bench {
    bus: Arc<ApicBus>,
    cpus: Vec<(Arc<Lapic>, Arc<Link>)>,
    clock: Clock,
}

fn bench(count: u32) -> Bench {
    let clock = Clock::new(Kind::Manual);
    let bus = ApicBus::new(None);
    let cpus = (0..count)
        .map(|id| {
            let link = Arc::new(Link::new());
            let config = LapicConfig { id, bootstrap: id == 0, x2apic: true, tsc_khz: 2_000_000 };
            let lapic = Lapic::new(config, &bus, link.clone(), &clock);
            lapic.write_mmio(0xf0, 4, 0x1ff);
            (lapic, link)
        })
        .collect();
    Bench { bus, cpus, clock }
}

impl Bench {
    fn write(&self, cpu: usize, offset: u64, value: u32) {
        self.cpus[cpu].0.write_mmio(offset, 4, value.into());
    }
    fn read(&self, cpu: usize, offset: u64) -> u32 {
        self.cpus[cpu].0.read_mmio(offset, 4) as u32
    }
    fn ipi(&self, cpu: usize, destination: u32, low: u32) {
        self.write(cpu, 0x310, destination << 24);
        self.write(cpu, 0x300, low);
    }
    fn vectors(&self) -> Vec<Option<u8>> {
        self.cpus
            .iter()
            .map(|(lapic, _)| {
                let vector = lapic.acknowledge();
                if vector.is_some() {
                    lapic.write_mmio(0xb0, 4, 0);
                }
                vector
            })
            .collect()
    }
}

#[test]
fn priorities_and_eoi() {
    let b = bench(1);
    let lapic = &b.cpus[0].0;
    for vector in [0x41, 0x52, 0x55] {
        b.ipi(0, 0, 0x4000 | vector);
    }
    assert_eq!(lapic.acknowledge(), Some(0x55));
    assert_eq!(b.read(0, 0xa0), 0x50);
    assert_eq!(lapic.acknowledge(), None, "same class waits");
    b.ipi(0, 0, 0x4061);
    assert_eq!(lapic.acknowledge(), Some(0x61));
    b.write(0, 0xb0, 0);
    assert_eq!(lapic.acknowledge(), None);
    b.write(0, 0xb0, 0);
    assert_eq!(lapic.acknowledge(), Some(0x52));
    b.write(0, 0xb0, 0);
    lapic.set_cr8(4);
    assert_eq!(b.read(0, 0x80), 0x40);
    assert!(!lapic.has_interrupt());
    b.cpus[0].1.take(Request::all());
    lapic.set_cr8(3);
    assert_eq!(b.cpus[0].1.requests(), Request::INTERRUPT);
    assert_eq!(lapic.acknowledge(), Some(0x41));
}

#[test]
fn shorthands_and_destinations() {
    let b = bench(3);
    b.ipi(0, 2, 0x4040);
    assert_eq!(b.vectors(), [None, None, Some(0x40)]);
    b.ipi(1, 0, 0x44041);
    assert_eq!(b.vectors(), [None, Some(0x41), None]);
    b.ipi(1, 0, 0x84042);
    assert_eq!(b.vectors(), [Some(0x42); 3]);
    b.ipi(1, 0, 0xc4043);
    assert_eq!(b.vectors(), [Some(0x43), None, Some(0x43)]);
    b.ipi(0, 0xff, 0x4044);
    assert_eq!(b.vectors(), [Some(0x44); 3]);
    // Logical, flat model.
    for cpu in 0..3 {
        b.write(cpu, 0xd0, 1 << (24 + cpu));
    }
    b.ipi(0, 0b110, 0x4845);
    assert_eq!(b.vectors(), [None, Some(0x45), Some(0x45)]);
    // Cluster model: cluster 1, members 0 and 2.
    for cpu in 0..3 {
        b.write(cpu, 0xe0, 0);
        b.write(cpu, 0xd0, (0x10 | 1 << cpu) << 24);
    }
    b.ipi(0, 0x15, 0x4846);
    assert_eq!(b.vectors(), [Some(0x46), None, Some(0x46)]);
    b.ipi(0, 0x25, 0x4846);
    assert_eq!(b.vectors(), [None; 3]);
    // Lowest priority goes to one, and not to the busier.
    b.cpus[0].0.set_cr8(8);
    b.ipi(0, 0x13, 0x4947);
    assert_eq!(b.vectors(), [None, Some(0x47), None]);
}

#[test]
fn init_and_start_up() {
    let b = bench(2);
    b.write(1, 0x320, 0x40);
    b.ipi(0, 1, 0x4500);
    assert!(b.cpus[1].1.take(Request::INIT) == Request::INIT);
    assert_eq!(b.read(1, 0x320), 0x10000);
    assert_eq!(b.read(1, 0xf0), 0xff);
    b.ipi(0, 1, 0x8500); // deassert is ignored
    assert!(b.cpus[1].1.take(Request::INIT).is_empty());
    b.ipi(0, 1, 0x469a);
    assert_eq!(b.cpus[1].1.sipi_vector(), 0x9a);
    assert_eq!(b.cpus[1].1.take(Request::SIPI), Request::SIPI);
    b.ipi(0, 1, 0x4400);
    assert_eq!(b.cpus[1].1.take(Request::NMI), Request::NMI);
    // A software-disabled APIC takes no vectors.
    b.ipi(0, 1, 0x4050);
    assert_eq!(b.vectors(), [None, None]);
}

#[test]
fn timer_one_shot_and_periodic_are_exact() {
    let b = bench(1);
    let lapic = &b.cpus[0].0;
    b.write(0, 0x3e0, 0b1011); // divide by 1
    b.write(0, 0x320, 0x30);
    b.write(0, 0x380, 1000);
    b.clock.advance(400);
    assert_eq!(b.read(0, 0x390), 600);
    b.clock.advance(999);
    assert!(!lapic.has_interrupt());
    b.clock.advance(1000);
    assert_eq!(b.vectors(), [Some(0x30)]);
    assert_eq!(b.read(0, 0x390), 0);
    assert_eq!(b.clock.next_deadline(), None);

    b.write(0, 0x3e0, 0b0011); // divide by 16
    b.write(0, 0x320, 0x20031);
    b.write(0, 0x380, 62_500); // 1 ms
    let start = b.clock.now();
    let mut ticks = 0;
    for step in 1..=1000 {
        b.clock.advance(start + step * 1_000_000 - 1);
        assert_eq!(b.vectors(), [None], "step {step}");
        b.clock.advance(start + step * 1_000_000);
        ticks += u32::from(b.vectors() == [Some(0x31)]);
    }
    assert_eq!(ticks, 1000);
    // Masked: nothing is armed, but the count goes on.
    b.write(0, 0x320, 0x30031);
    assert_eq!(b.clock.next_deadline(), None);
    b.clock.advance(b.clock.now() + 2_250_000);
    assert_eq!(b.read(0, 0x390), 62_500 - 62_500 / 4);
    b.write(0, 0x320, 0x20031);
    assert_eq!(b.clock.next_deadline(), Some(start + 1_003_000_000));
}

#[test]
fn tsc_deadline() {
    let b = bench(1);
    let lapic = &b.cpus[0].0;
    assert!(lapic.write_msr(0x6e0, 500));
    assert_eq!(lapic.read_msr(0x6e0), Some(0), "not in deadline mode");
    b.write(0, 0x320, 0x40032);
    lapic.write_msr(0x6e0, 2_001);
    assert_eq!(lapic.read_msr(0x6e0), Some(2_001));
    b.clock.advance(1000);
    assert!(!lapic.has_interrupt());
    b.clock.advance(1001);
    assert_eq!(b.vectors(), [Some(0x32)]);
    assert_eq!(lapic.read_msr(0x6e0), Some(0));
    // With a TSC offset of -2000 the guest's 1000 is the bus's 3000.
    lapic.set_tsc_offset(2000u64.wrapping_neg());
    lapic.write_msr(0x6e0, 1000);
    b.clock.advance(1499);
    assert_eq!(b.vectors(), [None]);
    b.clock.advance(1500);
    assert_eq!(b.vectors(), [Some(0x32)]);
    // In the past: at once. Zero: never.
    lapic.write_msr(0x6e0, 1);
    b.clock.advance(1501);
    assert_eq!(b.vectors(), [Some(0x32)]);
    lapic.write_msr(0x6e0, 1 << 60);
    lapic.write_msr(0x6e0, 0);
    assert_eq!(b.clock.next_deadline(), None);
}

#[test]
fn x2apic() {
    let b = bench(2);
    for (lapic, _) in &b.cpus {
        assert_eq!(lapic.read_msr(0x802), None);
        let base = lapic.base_msr();
        assert!(!lapic.write_msr(0x1b, base & !0x800 | 0x400), "invalid mode");
        assert!(lapic.write_msr(0x1b, base | 0x400));
        assert!(!lapic.write_msr(0x1b, base), "x2APIC to xAPIC is not allowed");
    }
    let (zero, one) = (&b.cpus[0].0, &b.cpus[1].0);
    assert_eq!(one.read_msr(0x802), Some(1));
    assert_eq!(one.read_msr(0x80d), Some(2));
    assert_eq!(one.read_msr(0x80e), None);
    assert!(!one.write_msr(0x80b, 1));
    assert!(!one.write_msr(0x83f, 0x100));
    assert!(zero.write_msr(0x830, 1 << 32 | 0x50));
    assert_eq!(one.acknowledge(), Some(0x50));
    assert!(one.write_msr(0x80b, 0));
    assert!(zero.write_msr(0x830, 3 << 32 | 1 << 11 | 0x51));
    assert_eq!((zero.acknowledge(), one.acknowledge()), (Some(0x51), Some(0x51)));
    assert!(zero.write_msr(0x83f, 0x60));
    assert_eq!(zero.acknowledge(), Some(0x60));
    assert!(zero.write_msr(0x830, 0xffff_ffff << 32 | 0x61));
    assert_eq!(one.acknowledge(), Some(0x61));
}

#[test]
fn message_signalled_interrupts_and_errors() {
    let b = bench(2);
    b.bus.send(MsiMessage { address: 0xfee0_1000, data: 0x4061 });
    assert_eq!(b.vectors(), [None, Some(0x61)]);
    b.bus.send(MsiMessage { address: 0xfed0_1000, data: 0x4061 });
    assert_eq!(b.vectors(), [None, None]);
    b.bus.msi_window().write(0x1000, 4, 0x62);
    assert_eq!(b.vectors(), [None, Some(0x62)]);
    b.write(0, 0x370, 0x33);
    b.ipi(0, 1, 0x4005);
    assert_eq!(b.vectors(), [Some(0x33), None]);
    assert_eq!(b.read(0, 0x280), 0);
    b.write(0, 0x280, 0);
    assert_eq!(b.read(0, 0x280), 0x20);
    b.bus.send(MsiMessage { address: 0xfee0_0000, data: 0x0f });
    b.write(0, 0x280, 0);
    assert_eq!(b.read(0, 0x280), 0x40);
}

#[test]
fn the_8259_comes_through_lint0() {
    let clock = Clock::new(Kind::Manual);
    let pic = crate::pc::pic::Pic::new();
    let bus = ApicBus::new(Some(pic.clone()));
    let link = Arc::new(Link::new());
    let config = LapicConfig { id: 0, bootstrap: true, x2apic: false, tsc_khz: 1_000_000 };
    let lapic = Lapic::new(config, &bus, link.clone(), &clock);
    pic.set_irq(3, true);
    assert_eq!(link.take(Request::INTERRUPT), Request::INTERRUPT);
    assert!(lapic.has_interrupt());
    assert_eq!(lapic.acknowledge(), Some(3));
    assert!(!lapic.has_interrupt());
    lapic.write_mmio(0xf0, 4, 0x1ff);
    lapic.write_mmio(0x350, 4, 0x10700);
    pic.set_irq(1, true);
    assert!(!lapic.has_interrupt());
    link.take(Request::all());
    lapic.write_mmio(0x350, 4, 0x700);
    assert_eq!(link.requests(), Request::INTERRUPT);
    assert_eq!(lapic.acknowledge(), Some(1));
    // Globally disabled: the pin is INTR.
    assert!(lapic.write_msr(0x1b, 0xfee0_0000));
    pic.set_irq(0, true);
    assert_eq!(lapic.acknowledge(), Some(0));
    lapic.reset(ResetKind::Warm);
    assert_eq!(lapic.base_msr(), 0xfee0_0900);
    // LINT1 as NMI.
    lapic.write_mmio(0xf0, 4, 0x1ff);
    lapic.write_mmio(0x360, 4, 0x400);
    bus.pulse_nmi();
    assert_eq!(link.take(Request::NMI), Request::NMI);
    assert!(lapic.info("lapic").unwrap().contains("LVT1"));
}

#[test]
fn many_threads_lose_no_interrupt() {
    let b = bench(2);
    let target = b.cpus[1].0.clone();
    let senders: Vec<_> = (0..4u8)
        .map(|sender| {
            let bus = b.bus.clone();
            std::thread::spawn(move || {
                for round in 0..2000u32 {
                    let vector = 0x40 + sender * 0x20 + (round % 32) as u8;
                    while bus.is_requested(vector) {
                        std::thread::yield_now();
                    }
                    bus.send(MsiMessage { address: 0xfee0_1000, data: vector.into() });
                }
            })
        })
        .collect();
    let mut taken = 0;
    while taken < 8000 {
        if target.acknowledge().is_some() {
            target.write_mmio(0xb0, 4, 0);
            taken += 1;
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    assert!(!target.has_interrupt());
}
