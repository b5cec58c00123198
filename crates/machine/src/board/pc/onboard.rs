//! The devices that a PC board always has, and those made for `-serial`, `-drive` and the like.

use super::{Interrupts, no_props};
use crate::Devices;
use crate::drives::{Drive, Interface};
use base::{Result, bail, fail};
use device::pci::PciBus;
use device::{Bus, IrqLine, Services};
use devices::pc::debug::LegacyPorts;
use devices::pc::dma::IsaDma;
use devices::pc::hpet::{Hpet, HpetConfig, HpetLines};
use devices::pc::i8042::I8042;
use devices::pc::pit::{LostTicks, Pit};
use devices::pc::port92::Port92;
use devices::pc::rtc::{DriftFix, Rtc, RtcBase, RtcConfig};
use devices::pci::{self, AcpiPm, Host as PciHost, IsaBus};
use devices::storage::{self, Geometry, Translation, floppy};
use firmware::{Chipset, IsaDevices};
use memory::Dma;
use serde_json::{Map, Value};
use spec::machine::{MachineKind, MachineSpec, RtcBase as SpecBase, RtcClock};
use std::sync::Arc;

/// Equipment byte (CMOS 14h): a floating-point unit and a PS/2 mouse.
const EQUIPMENT: u8 = 0x06;

/// What the board keeps of its own devices.
pub(crate) struct Onboard {
    pub pci: Arc<PciBus>,
    pub pm: Arc<AcpiPm>,
    pub isa: IsaDevices,
}

pub(crate) fn create(
    spec: &MachineSpec,
    chipset: Chipset,
    services: &Services,
    devices: &Devices,
    interrupts: &Interrupts,
) -> Result<Onboard> {
    devices.adopt(interrupts.pic.clone(), None);
    devices.adopt(interrupts.ioapic.clone(), None);
    for apic in interrupts.apics.lapics().iter() {
        devices.adopt(apic.clone(), None);
    }
    let (pci, pm) = chips(chipset, services, devices)?;
    let isa_bus = match devices.buses().into_iter().find(|bus| bus.name() == "isa.0") {
        Some(bus) => bus,
        None => {
            let bus: Arc<dyn Bus> = IsaBus::new("isa.0");
            devices.add_bus(bus.clone());
            bus
        }
    };
    let isa = legacy(spec, services, devices, interrupts, &isa_bus)?;
    Ok(Onboard { pci, pm, isa })
}

/// Host bridge and chipset functions at their customary places.
fn chips(chipset: Chipset, services: &Services, devices: &Devices) -> Result<(Arc<PciBus>, Arc<AcpiPm>)> {
    let (host, functions): (_, &[(&str, &str)]) = match chipset {
        Chipset::I440fx => (
            PciHost::i440fx(services),
            &[("i440FX", "0"), ("PIIX3", "1"), ("piix3-ide", "1.1"), ("PIIX4_PM", "1.3")],
        ),
        Chipset::Q35 => (
            PciHost::q35(services),
            &[("mch", "0"), ("ICH9-LPC", "1f.0"), ("ich9-ahci", "1f.2"), ("ICH9-SMB", "1f.3")],
        ),
    };
    let bus = host.bus().clone();
    devices.adopt(host, None);
    let as_bus: Arc<dyn Bus> = bus.clone();
    if !devices.buses().iter().any(|other| other.name() == as_bus.name()) {
        devices.add_bus(as_bus.clone());
    }
    let mut pm = None;
    for (name, at) in functions {
        if devices.model(name).is_none() {
            continue;
        }
        let mut props = no_props();
        props.insert("addr".into(), (*at).into());
        if at.contains('.') || *at == "1" {
            props.insert("multifunction".into(), true.into());
        }
        let entry = devices.make(name, &as_bus, props)?;
        pm = pm.or_else(|| pci::acpi_pm(&*entry.device));
    }
    match pm {
        Some(pm) => Ok((bus, pm)),
        None => bail!("the chipset has no power management function"),
    }
}

fn legacy(
    spec: &MachineSpec,
    services: &Services,
    devices: &Devices,
    interrupts: &Interrupts,
    isa_bus: &Arc<dyn Bus>,
) -> Result<IsaDevices> {
    let clock = &services.clocks.virtual_;
    let irq = |number: usize| services.irqs.get(number).map_or_else(IrqLine::unconnected, IrqLine::another);
    let timer_irq = irq(0);
    let pit = Pit::new(clock, timer_irq.clone(), LostTicks::default());
    let (pic, ioapic) = (interrupts.pic.clone(), interrupts.ioapic.clone());
    let tick_waits = move || pic.is_pending(0) || ioapic.is_pending(2);
    let ticks = interrupts.apics.ticks();
    pit.set_pending_probe(tick_waits.clone(), ticks.clone());
    pit.map(&services.ports);
    devices.adopt_wired(pit.clone(), Some("isa.0"), vec![timer_irq]);
    let rtc_irq = irq(8);
    let rtc = Rtc::new(rtc_config(spec, services), rtc_irq.clone(), &services.notices);
    rtc.map(&services.ports);
    boot_order(spec, spec.boot.once.as_deref().or(spec.boot.order.as_deref()), &rtc);
    cmos_sizes(spec, &rtc);
    devices.adopt_wired(rtc, Some("isa.0"), vec![rtc_irq]);
    if spec.switch("hpet").unwrap_or(true) {
        let hpet = hpet(services, devices, &pit, irq(8));
        hpet.set_pending_probe(tick_waits, ticks.clone());
        let (hpet, pit) = (Arc::downgrade(&hpet), Arc::downgrade(&pit));
        ticks.on_taken(move || {
            let more = pit.upgrade().is_some_and(|pit| pit.catch_up());
            more | hpet.upgrade().is_some_and(|hpet| hpet.catch_up())
        });
    } else {
        let pit = Arc::downgrade(&pit);
        ticks.on_taken(move || pit.upgrade().is_some_and(|pit| pit.catch_up()));
    }
    let [keyboard_irq, mouse_irq] = [1, 12].map(irq);
    let keyboard = I8042::new(keyboard_irq.clone(), mouse_irq.clone(), services.power.clone());
    keyboard.map(&services.ports);
    devices.adopt_wired(keyboard, Some("isa.0"), vec![keyboard_irq, mouse_irq]);
    let dma = IsaDma::new(Dma::new(services.memory.clone(), true));
    dma.map(&services.ports);
    if let Ok(bus) = isa_bus.clone().as_any().downcast::<IsaBus>() {
        bus.set_dma(dma.clone());
    }
    devices.adopt(dma, Some("isa.0"));
    let ports = LegacyPorts::new(irq(13));
    ports.map(&services.ports);
    devices.adopt(ports, Some("isa.0"));
    let port92 = Port92::new(services.power.clone());
    port92.map(&services.ports);
    devices.adopt(port92, Some("isa.0"));
    let mut isa =
        IsaDevices { i8042: true, hpet: spec.switch("hpet").unwrap_or(true), ..IsaDevices::default() };
    for (index, chardev) in spec.serials.iter().enumerate() {
        let Some(chardev) = chardev else { continue };
        if index >= isa.serial.len() {
            bail!("the board has {} serial ports", isa.serial.len());
        }
        let mut props = no_props();
        props.insert("index".into(), index.into());
        props.insert("chardev".into(), chardev.as_str().into());
        devices.make("isa-serial", isa_bus, props)?;
        isa.serial[index] = true;
    }
    for (index, chardev) in spec.parallels.iter().enumerate() {
        let Some(chardev) = chardev else { continue };
        if index >= isa.parallel.len() {
            bail!("the board has {} parallel ports", isa.parallel.len());
        }
        let mut props = no_props();
        props.insert("index".into(), index.into());
        props.insert("chardev".into(), chardev.as_str().into());
        devices.make("isa-parallel", isa_bus, props)?;
        isa.parallel[index] = true;
    }
    if let Some(chardev) = &spec.debugcon {
        let mut props = no_props();
        props.insert("chardev".into(), chardev.as_str().into());
        devices.make("isa-debugcon", isa_bus, props)?;
    }
    isa.floppy = floppy_controller(spec, devices, isa_bus)?;
    Ok(isa)
}

/// The i440FX board has a floppy controller, Q35 one for drives that are asked for. Whether
/// there will be one.
fn floppy_controller(spec: &MachineSpec, devices: &Devices, isa_bus: &Arc<dyn Bus>) -> Result<bool> {
    if spec.kind == MachineKind::Pc || spec.has_drive("floppy") {
        devices.make("isa-fdc", isa_bus, no_props())?;
        return Ok(true);
    }
    Ok(spec.has_device(&["isa-fdc"]))
}

/// Tells the firmware in CMOS which floppy drives and fixed disks there are.
pub(crate) fn tell_firmware(devices: &Devices) {
    let entries = devices.entries();
    let Some(rtc) = entries.iter().find_map(|entry| entry.device.as_any().downcast_ref::<Rtc>()) else {
        return;
    };
    if let Some(kinds) = entries.iter().find_map(|entry| floppy::drive_types(&*entry.device)) {
        floppy_types(rtc, kinds);
    }
    if let Some(disks) = entries.iter().find_map(|entry| storage::fixed_disks(&*entry.device)) {
        disk_types(rtc, disks);
    }
}

/// Kinds in 10h, their number in the equipment byte.
fn floppy_types(rtc: &Rtc, kinds: [floppy::DriveType; 2]) {
    let [first, second] = kinds.map(floppy::DriveType::cmos);
    rtc.set_cmos(0x10, first << 4 | second);
    let count = u8::from(first != 0) + u8::from(second != 0);
    // Bit 0: there are drives; bits 6 and 7: how many more than one.
    let drives = if count == 0 { 0 } else { 1 | (count - 1) << 6 };
    rtc.set_cmos(0x14, EQUIPMENT | drives);
}

/// Kinds of the first two in 12h, 19h and 1Ah, their parameters from 1Bh and 24h on;
/// translations of all four in 39h.
fn disk_types(rtc: &Rtc, disks: [Option<(Geometry, Translation)>; 4]) {
    /// The parameters tell all.
    const USER_DEFINED: u8 = 47;
    let (mut kinds, mut translations) = (0, 0);
    for (place, disk) in (0u8..).zip(disks) {
        let Some((geometry, translation)) = disk else { continue };
        translations |= (translation as u8) << (place * 2);
        if place >= 2 {
            continue;
        }
        kinds |= 0xf0 >> (place * 4);
        rtc.set_cmos(0x19 + place, USER_DEFINED);
        let [low, high, ..] = geometry.cylinders.to_le_bytes();
        // No write precompensation, the landing zone behind the last cylinder.
        let control = 0xc0 | u8::from(geometry.heads > 8) << 3;
        let (heads, sectors) = (geometry.heads as u8, geometry.sectors as u8);
        let parameters = [low, high, heads, 0xff, 0xff, control, low, high, sectors];
        for (index, value) in (0x1b + place * 9..).zip(parameters) {
            rtc.set_cmos(index, value);
        }
    }
    rtc.set_cmos(0x12, kinds);
    rtc.set_cmos(0x39, translations);
}

fn hpet(services: &Services, devices: &Devices, pit: &Arc<Pit>, rtc_irq: IrqLine) -> Arc<Hpet> {
    let timer_irq = services.irqs.first().cloned().unwrap_or_else(IrqLine::unconnected);
    let lines =
        HpetLines { legacy: [timer_irq, rtc_irq], irqs: services.irqs.clone(), msi: services.msi.clone() };
    let hpet = Hpet::new(&HpetConfig::default(), &services.clocks.virtual_, lines);
    let pit = pit.clone();
    hpet.on_legacy(move |on| pit.set_irq_enabled(!on));
    hpet.map(&services.memory, firmware::platform::HPET.into());
    devices.adopt(hpet.clone(), None);
    hpet
}

fn rtc_config(spec: &MachineSpec, services: &Services) -> RtcConfig {
    let clocks = &services.clocks;
    RtcConfig {
        base: match spec.rtc.base {
            SpecBase::Utc => RtcBase::Utc,
            SpecBase::LocalTime => RtcBase::Local(base::clock::local_offset()),
            SpecBase::Date(seconds) => RtcBase::Date(seconds),
        },
        drift_fix: if spec.rtc.slew { DriftFix::Slew } else { DriftFix::None },
        clock: match spec.rtc.clock {
            RtcClock::Host => clocks.host.clone(),
            RtcClock::Realtime => clocks.realtime.clone(),
            RtcClock::Virtual => clocks.virtual_.clone(),
        },
        virtual_clock: clocks.virtual_.clone(),
        qom_path: "/machine/unattached/rtc".into(),
    }
}

/// `-boot once=` holds for the first start only: from the second reset on, `order=` does.
pub(crate) fn restore_boot_order(spec: &MachineSpec, devices: &Devices) {
    for entry in devices.entries() {
        if let Some(rtc) = entry.device.as_any().downcast_ref::<Rtc>() {
            boot_order(spec, spec.boot.order.as_deref(), rtc);
        }
    }
}

/// `-boot order=`: the nibbles that the firmware reads from CMOS 3Dh and 38h.
fn boot_order(spec: &MachineSpec, order: Option<&str>, rtc: &Rtc) {
    let order = order.unwrap_or("cad");
    let code = |letter: u8| match letter {
        b'a' | b'b' => 1,
        b'c' => 2,
        b'd' => 3,
        b'n' => 4,
        _ => 0,
    };
    let mut codes = order.bytes().map(code).chain(std::iter::repeat(0));
    let mut next = || codes.next().unwrap_or(0);
    let (first, second, third) = (next(), next(), next());
    rtc.set_cmos(0x3d, second << 4 | first);
    // Bit 0: do not check the floppy's signature.
    let unchecked = spec.switch("fd-bootchk") == Some(false);
    rtc.set_cmos(0x38, third << 4 | u8::from(unchecked));
}

/// Equipment and memory sizes where old firmware and systems look for them.
fn cmos_sizes(spec: &MachineSpec, rtc: &Rtc) {
    let low = spec.memory.size.min(super::ram_limit(super::chipset_of(spec), spec.memory.size));
    let high = spec.memory.size - low;
    let word = |index: u8, value: u64| {
        let value = value.min(0xffff) as u16;
        rtc.set_cmos(index, value as u8);
        rtc.set_cmos(index + 1, (value >> 8) as u8);
    };
    word(0x15, 640);
    let extended = low.saturating_sub(1 << 20) >> 10;
    word(0x17, extended);
    word(0x30, extended);
    word(0x34, low.saturating_sub(16 << 20) >> 16);
    word(0x5b, high >> 16);
    rtc.set_cmos(0x5d, (high >> 32) as u8);
    rtc.set_cmos(0x5f, (spec.smp.cpus - 1).min(255) as u8);
    rtc.set_cmos(0x14, EQUIPMENT);
}

/// One controller for each SCSI bus up to the last that drives are asked for on; gives the
/// names of the buses.
fn scsi_buses(devices: &Devices, pci: &Arc<PciBus>, drives: &[Drive]) -> Result<Vec<String>> {
    let asked = drives.iter().filter(|drive| drive.interface == Interface::Scsi).map(|drive| drive.bus);
    let count = asked.max().map_or(0, |last| last + 1);
    let bus: Arc<dyn Bus> = pci.clone();
    let make = |_| {
        let entry = devices.make("lsi53c895a", &bus, no_props())?;
        Ok(entry.device.buses().first().map(|bus| bus.name()).unwrap_or_default())
    };
    (0..count).map(make).collect()
}

/// Devices for `-drive if=ide|virtio|floppy|scsi|pflash`.
pub(crate) fn attach_drives(
    spec: &MachineSpec,
    devices: &Devices,
    pci: &Arc<PciBus>,
    mut drives: Vec<Drive>,
) -> Result<()> {
    let scsi = scsi_buses(devices, pci, &drives)?;
    // Customary: floppy drives are made unit by unit, whatever was asked for first.
    drives.sort_by_key(|drive| (drive.interface == Interface::Floppy).then_some(drive.unit));
    let ide_buses = if spec.kind == MachineKind::Pc { 2 } else { 6 };
    for drive in drives {
        let option = drive.option.clone();
        let blame = |failure: base::Failure| match &option {
            Some(option) => failure.within(option),
            None => failure,
        };
        let mut asked: Map<String, Value> = drive.device_props.clone();
        let driver = match drive.interface {
            Interface::None => continue,
            Interface::Ide if drive.bus >= ide_buses => {
                let (bus, unit) = (drive.bus, drive.unit);
                return Err(blame(fail!("machine type does not support if=ide,bus={bus},unit={unit}")));
            }
            Interface::Ide => {
                asked.insert("bus".into(), format!("ide.{}", drive.bus).into());
                if spec.kind == MachineKind::Pc {
                    asked.insert("unit".into(), drive.unit.into());
                }
                if drive.is_cdrom { "ide-cd" } else { "ide-hd" }
            }
            Interface::Virtio => "virtio-blk-pci",
            Interface::Floppy => {
                asked.insert("unit".into(), drive.unit.into());
                "floppy"
            }
            Interface::Scsi => {
                asked.insert("bus".into(), scsi[drive.bus as usize].as_str().into());
                asked.insert("scsi-id".into(), drive.unit.into());
                if drive.is_cdrom { "scsi-cd" } else { "scsi-hd" }
            }
            other => return Err(blame(fail!("machine type does not support if={}", other.name()))),
        };
        asked.insert("driver".into(), driver.into());
        asked.insert("drive".into(), drive.backend.name().into());
        match drive.interface {
            // As if a -device had asked for it.
            Interface::Virtio => devices.add(&asked).map_err(blame)?,
            _ => devices.add_for_drive(&asked)?,
        };
    }
    Ok(())
}
