//! ICH9 (Intel 316972): LPC bridge with interrupt router and ACPI block, and SMBus controller.

use super::IsaBus;
use super::acpi_pm::{AcpiPm, Layout};
use super::pirq::Router;
use super::smbus::SmbusHost;
use super::window::Window;
use base::{Mutex, Result};
use device::pci::{Identity, PciCore, PciFunction, RegionKind};
use device::{Bus, Device, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use memory::Handler;
use std::any::Any;
use std::sync::Arc;

const PROPERTIES: &[Property] = &[
    Property::new("disable_s3", PropertyKind::U8, "0", "Hide suspend to RAM"),
    Property::new("disable_s4", PropertyKind::U8, "0", "Hide suspend to disk"),
    Property::new("s4_val", PropertyKind::U8, "2", "SLP_TYP value of S4"),
];

pub static MODEL: Model =
    super::chip("ICH9-LPC", "ICH9 LPC bridge", &[PROPERTIES, device::pci::PROPERTIES], create);

const PM_BASE: u16 = 0x40;
const ACPI_CNTL: u16 = 0x44;
const ACPI_ENABLE: u32 = 0x80;
const PIRQ_A: u16 = 0x60;
const PIRQ_E: u16 = 0x68;
const RCBA: u16 = 0xf0;
const RCBA_SIZE: usize = 16 << 10;
const SCI_IRQ: usize = 9;
/// I/O APIC pin of PIRQA.
const FIRST_PIN: usize = 16;
const SMI_APMC_ENABLE: u32 = 1 << 5;
/// General control and status: the watchdog must not reboot (there is none).
const GCS: usize = 0x3410;
const GCS_NO_REBOOT: u8 = 1 << 5;
/// Device interrupt route registers of devices 31, 30, 29, 28, 27, 26, 25.
const ROUTES: [(u8, usize); 6] =
    [(31, 0x3140), (29, 0x3144), (28, 0x3146), (27, 0x3148), (26, 0x314c), (25, 0x3150)];

pub struct Ich9Lpc {
    core: Arc<PciCore>,
    acpi: Arc<AcpiPm>,
    isa: Arc<IsaBus>,
    router: Arc<Router<8>>,
    chip: Arc<ChipConfig>,
    pm: Arc<PmBlock>,
    pm_window: Window,
    chip_window: Window,
}

/// The root complex register block.
struct ChipConfig(Mutex<Vec<u8>>);

impl ChipConfig {
    fn reset(&self) {
        let mut bytes = self.0.lock();
        bytes.fill(0);
        for (_, at) in ROUTES {
            bytes[at..at + 2].copy_from_slice(&0x3210u16.to_le_bytes());
        }
        bytes[GCS] = GCS_NO_REBOOT;
    }

    /// The PIRQ (0 = A) that a pin of a slot leads to. Slots up to 24 and 30 rotate over E-H,
    /// the others go by their route register: the ACPI tables must say the same.
    fn pirq(&self, slot: u8, pin: u8) -> usize {
        let Some((_, at)) = ROUTES.iter().find(|&&(device, _)| device == slot) else {
            return usize::from(slot + pin) % 4 + 4;
        };
        let bytes = self.0.lock();
        let route = u16::from_le_bytes([bytes[*at], bytes[at + 1]]);
        usize::from(route >> (u32::from(pin) * 4) & 7)
    }
}

impl Handler for ChipConfig {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let bytes = self.0.lock();
        (0..size).fold(0, |value, i| {
            let byte = bytes.get(offset as usize + usize::from(i)).copied().unwrap_or(0);
            value | u64::from(byte) << (i * 8)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut bytes = self.0.lock();
        for i in 0..size {
            if let Some(byte) = bytes.get_mut(offset as usize + usize::from(i)) {
                *byte = (value >> (i * 8)) as u8;
            }
        }
        bytes[GCS] |= GCS_NO_REBOOT;
    }
}

/// The 128 ports at PMBASE.
struct PmBlock {
    pm: Arc<dyn Handler>,
    gpe: Arc<dyn Handler>,
    smi_enable: Mutex<u32>,
}

impl Handler for PmBlock {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset {
            0x00..0x10 => self.pm.read(offset, size),
            0x20..0x30 => self.gpe.read(offset - 0x20, size),
            0x30..0x34 => u64::from(*self.smi_enable.lock()) >> ((offset - 0x30) * 8),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match offset {
            0x00..0x10 => self.pm.write(offset, size, value),
            0x20..0x30 => self.gpe.write(offset - 0x20, size, value),
            0x30 if size == 4 => *self.smi_enable.lock() = value as u32 | SMI_APMC_ENABLE,
            _ => {}
        }
    }

    fn max_access(&self) -> u8 {
        4
    }
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("ICH9-LPC", Identity::new(0x8086, 0x2918, 2, 0x06_0100), props, wiring)?;
    core.init(PM_BASE, &[1]);
    core.set_writable(PM_BASE, &[0x80, 0xff]);
    core.set_writable(ACPI_CNTL, &[0x87]);
    for base in [PIRQ_A, PIRQ_E] {
        core.init(base, &[0x80; 4]);
        core.set_writable(base, &[0x8f; 4]);
    }
    core.set_writable(RCBA, &[0x01, 0xc0, 0xff, 0xff]);
    let layout = Layout {
        gpe_bytes: 8,
        acpi_enable: 2,
        acpi_disable: 3,
        s3_disabled: props.u64("disable_s3") != 0,
        s4_disabled: props.u64("disable_s4") != 0,
        s4_type: props.u64("s4_val") as u8,
    };
    let services = wiring.services;
    let acpi = AcpiPm::new(layout, wiring.clock(), wiring.irq(SCI_IRQ), services.power.clone());
    services.ports.edit(|edit| edit.io("apm-io", 0xb2, 2, acpi.apm_ports()));
    let chip = Arc::new(ChipConfig(Mutex::new(vec![0; RCBA_SIZE])));
    chip.reset();
    let router = Arc::new(Router::<8>::new(services.irqs.clone(), Some(FIRST_PIN)));
    let (to, by) = (router.clone(), chip.clone());
    core.bus().set_route(Box::new(move |slot, pin, level| to.set_wire(by.pirq(slot, pin), level)));
    let pm = Arc::new(PmBlock {
        pm: acpi.pm_ports(),
        gpe: acpi.gpe_ports(),
        smi_enable: Mutex::new(SMI_APMC_ENABLE),
    });
    Ok(Arc::new(Ich9Lpc {
        pm_window: Window::ports(services, "ich9-pm", 128, pm.clone()),
        chip_window: Window::memory(services, "lpc-rcrb-mmio", RCBA_SIZE as u64, chip.clone()),
        core,
        acpi,
        isa: IsaBus::new(&wiring.bus_name("isa", 0)),
        router,
        chip,
        pm,
    }))
}

impl Ich9Lpc {
    pub fn acpi(&self) -> &Arc<AcpiPm> {
        &self.acpi
    }

    fn update(&self) {
        let enabled = self.core.get(ACPI_CNTL, 1) & ACPI_ENABLE != 0;
        let base = u64::from(self.core.get(PM_BASE, 2) & 0xff80);
        self.pm_window.place((enabled && base != 0).then_some(base));
        let rcba = self.core.get(RCBA, 4);
        self.chip_window.place((rcba & 1 != 0).then_some(u64::from(rcba & 0xffff_c000)));
        self.router.set_routes(std::array::from_fn(|i| {
            let register = if i < 4 { PIRQ_A + i as u16 } else { PIRQ_E + i as u16 - 4 };
            self.core.get(register, 1) as u8
        }));
    }
}

impl PciFunction for Ich9Lpc {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.core.config_write(offset, size, value);
        if offset >= PM_BASE {
            self.update();
        }
    }
}

impl Device for Ich9Lpc {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.acpi.reset();
        self.chip.reset();
        *self.pm.smi_enable.lock() = SMI_APMC_ENABLE;
        self.update();
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        vec![self.isa.clone()]
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub static SMBUS_MODEL: Model =
    super::chip("ICH9-SMB", "ICH9 SMBUS Bridge", &[device::pci::PROPERTIES], create_smbus);

const HOST_CONFIG: u16 = 0x40;

/// SMBus controller: the registers are seen through BAR 4 while enabled.
pub struct Ich9Smbus {
    core: Arc<PciCore>,
    host: Arc<SmbusHost>,
}

struct Gated {
    core: Arc<PciCore>,
    host: Arc<SmbusHost>,
}

impl Handler for Gated {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let enabled = self.core.get(HOST_CONFIG, 1) & 1 != 0;
        if enabled { self.host.read(offset, size) } else { u64::MAX }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if self.core.get(HOST_CONFIG, 1) & 1 != 0 {
            self.host.write(offset, size, value);
        }
    }

    fn max_access(&self) -> u8 {
        1
    }
}

fn create_smbus(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("ICH9-SMB", Identity::new(0x8086, 0x2930, 2, 0x0c_0500), props, wiring)?;
    core.set_interrupt_pin(1);
    core.set_writable(HOST_CONFIG, &[0x07]);
    let line = Arc::downgrade(&core);
    let host = SmbusHost::new(move |level| {
        if let Some(core) = line.upgrade() {
            core.set_intx(level);
        }
    });
    let gated = Arc::new(Gated { core: core.clone(), host: host.clone() });
    core.add_io_bar(4, RegionKind::Io, 64, gated);
    Ok(Arc::new(Ich9Smbus { core, host }))
}

impl PciFunction for Ich9Smbus {
    fn core(&self) -> &PciCore {
        &self.core
    }
}

impl Device for Ich9Smbus {
    fn model(&self) -> &'static Model {
        &SMBUS_MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.host.reset();
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
