//! The PC boards: i440FX with PIIX3/PIIX4 (`pc`) and Q35 with ICH9 (`q35`).

mod boot;
mod flash;
mod onboard;
mod tables;

use super::Board;
use crate::machine::Parts;
use crate::requests::Requests;
use crate::{Devices, Host, Machine, Memory, cpus, drives};
use base::{GIB, MIB, Result};
use boot::Boot;
use cpu::Engine;
use cpu::models::CpuModel;
use device::pci::PciBus;
use device::{IrqLine, MsiSink, Services};
use devices::pc::apic::ApicBus;
use devices::pc::ioapic::IoApic;
use devices::pc::pic::Pic;
use devices::pci::AcpiPm;
use firmware::{Chipset, Platform};
use memory::{AddressSpace, SpaceKind};
use serde_json::{Map, Value};
use spec::machine::{MachineKind, MachineSpec};
use std::sync::Arc;

/// A PC.
pub(crate) struct PcBoard {
    pci: Arc<PciBus>,
    pm: Arc<AcpiPm>,
    apics: Arc<ApicBus>,
    boot: Boot,
}

/// Interrupt controllers and the lines that lead to them.
pub(crate) struct Interrupts {
    pub pic: Arc<Pic>,
    pub apics: Arc<ApicBus>,
    pub ioapic: Arc<IoApic>,
}

impl Interrupts {
    fn new() -> Self {
        let pic = Pic::new();
        let apics = ApicBus::new(Some(pic.clone()));
        let ioapic = IoApic::new(&apics, 0x20);
        Interrupts { pic, apics, ioapic }
    }

    /// Global system interrupts: 0 to 15 reach both controllers (0 as pin 2 of the I/O
    /// APIC), the rest only the I/O APIC.
    fn lines(&self) -> Arc<[IrqLine]> {
        let line = |number: usize| {
            let (pic, ioapic) = (self.pic.clone(), self.ioapic.clone());
            IrqLine::new(move |level| {
                if number < 16 && number != 2 {
                    pic.set_irq(number as u8, level);
                }
                // The 8259's input 2 is its cascade; HPET comparators may drive pin 2.
                ioapic.set_irq(if number == 0 { 2 } else { number }, level);
            })
        };
        (0..24).map(line).collect()
    }
}

/// Builds a PC, devices and vCPUs reset, ready to start.
pub(crate) fn build(
    spec: MachineSpec,
    host: &Host,
    engine: Arc<dyn Engine>,
    model: Arc<CpuModel>,
    requests: Arc<Requests>,
    disks_open: &dyn Fn(),
) -> Result<Arc<Machine>> {
    cpus::check(&spec.smp)?;
    let chipset = chipset_of(&spec);
    let interrupts = Interrupts::new();
    let services = Services {
        memory: AddressSpace::new(SpaceKind::Memory),
        ports: AddressSpace::new(SpaceKind::Port),
        clocks: host.clocks.clone(),
        irqs: interrupts.lines(),
        msi: interrupts.apics.clone() as Arc<dyn MsiSink>,
        power: requests.clone(),
        notices: host.notices.clone(),
        backends: Arc::new(host.clone()),
    };
    let ram = Memory::ram(&spec, &host.objects)?;
    let memory = Memory::map(&services.memory, ram, ram_limit(chipset, ram.len()))?;
    services.memory.edit(|edit| {
        let window = interrupts.apics.msi_window();
        edit.map("apic-msi", 0xfee0_0000, MIB, 2, memory::Edit::io_target(window));
    });
    interrupts.pic.map(&services.ports);
    interrupts.ioapic.map(&services.memory, firmware::platform::IOAPIC.into());
    let maker = cpus::Maker {
        smp: &spec.smp,
        model: &model,
        engine: &*engine,
        services: &services,
        apics: &interrupts.apics,
        requests: &requests,
        tree: &host.tree,
    };
    maker.make_all()?;
    let devices = Devices::new(devices::models(), services.clone(), host.tree.clone(), spec.globals.clone());
    devices.check_globals(&spec.places.globals)?;
    let onboard = onboard::create(&spec, chipset, &services, &devices, &interrupts)?;
    let mut platform = platform(&spec, chipset, &memory, &onboard, &model);
    tables::numa(&spec, &mut platform)?;
    let boot = Boot::prepare(&spec, platform, &memory, &services, &devices, &model)?;
    let drives = drives::open(host, &spec)?;
    disks_open();
    let drives = flash::attach(&spec, &services, &devices, drives)?;
    onboard::attach_drives(&spec, &devices, &onboard.pci, drives)?;
    let board = PcBoard { pci: onboard.pci, pm: onboard.pm, apics: interrupts.apics.clone(), boot };
    devices.add_asked(&spec)?;
    onboard::tell_firmware(&devices);
    devices.set_complete();
    let cpuid = Arc::new(model.table(&cpus::topology(&spec.smp), 0));
    let machine = Machine::new(Parts {
        spec,
        services,
        memory,
        devices,
        tree: host.tree.clone(),
        engine,
        cpuid,
        cpu_model: Some(model),
        board: Box::new(board),
        requests,
    });
    machine.reset_everything(device::ResetKind::Cold);
    Ok(machine)
}

fn chipset_of(spec: &MachineSpec) -> Chipset {
    if spec.kind == MachineKind::Q35 { Chipset::Q35 } else { Chipset::I440fx }
}

/// RAM below 4 GiB: the PCI hole begins there.
fn ram_limit(chipset: Chipset, size: u64) -> u64 {
    match chipset {
        Chipset::I440fx if size >= 0xe000_0000 => 3 * GIB,
        Chipset::I440fx => 0xe000_0000,
        Chipset::Q35 if size >= 0xb000_0000 => 2 * GIB,
        Chipset::Q35 => 0xb000_0000,
    }
}

fn platform(
    spec: &MachineSpec,
    chipset: Chipset,
    memory: &Memory,
    onboard: &onboard::Onboard,
    model: &CpuModel,
) -> Platform {
    let mut platform = Platform::new(chipset, spec.smp.maxcpus, memory.size());
    platform.ram_low = memory.below_4g;
    platform.ram_high = memory.above_4g;
    for (index, (slot, place)) in platform.cpus.iter_mut().zip(cpus::places(&spec.smp)).enumerate() {
        slot.apic_id = place.apic_id;
        slot.present = index < spec.smp.cpus as usize;
    }
    platform.isa = onboard.isa;
    platform.phys_bits = model.phys_bits as u8;
    // Waking from S3 begins in a firmware.
    platform.s3 = boot::direct_kernel(spec).is_none();
    platform
}

impl Board for PcBoard {
    fn after_reset(&self, machine: &Machine) -> Result<()> {
        self.boot.after_reset(machine)
    }

    fn power_button(&self, _machine: &Machine) {
        self.pm.power_button();
    }

    fn woken(&self, _machine: &Machine) {
        self.pm.wake(false);
    }

    fn inject_nmi(&self, _machine: &Machine) {
        self.apics.pulse_nmi();
    }

    fn pci_roots(&self) -> Vec<Arc<PciBus>> {
        vec![self.pci.clone()]
    }
}

fn no_props() -> Map<String, Value> {
    Map::new()
}
