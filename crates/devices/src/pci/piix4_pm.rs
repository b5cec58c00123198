use super::acpi_hotplug::{self, AcpiHotplug};
use super::acpi_pm::{AcpiPm, Layout};
use super::smbus::SmbusHost;
use super::window::Window;
use base::Result;
use device::pci::{Identity, PciCore, PciFunction};
use device::{Device, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use std::any::Any;
use std::sync::Arc;

const PROPERTIES: &[Property] = &[
    Property::new("disable_s3", PropertyKind::U8, "0", "Hide suspend to RAM"),
    Property::new("disable_s4", PropertyKind::U8, "0", "Hide suspend to disk"),
    Property::new("s4_val", PropertyKind::U8, "2", "SLP_TYP value of S4"),
];

/// PIIX4 power management function (Intel 82371AB, function 3).
pub static MODEL: Model = super::chip("PIIX4_PM", "PM", &[PROPERTIES, device::pci::PROPERTIES], create);

const PM_BASE: u16 = 0x40;
const DEVACTB_HIGH: u16 = 0x5b;
const PM_REG_MISC: u16 = 0x80;
const SMBUS_BASE: u16 = 0x90;
const SMBUS_CONFIG: u16 = 0xd2;
/// GPE block and SCI are fixed on this board.
pub const GPE_BASE: u64 = 0xafe0;
const SCI_IRQ: usize = 9;

pub struct Piix4Pm {
    core: Arc<PciCore>,
    acpi: Arc<AcpiPm>,
    smbus: Arc<SmbusHost>,
    hotplug: Arc<AcpiHotplug>,
    pm_window: Window,
    smbus_window: Window,
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("PIIX4_PM", Identity::new(0x8086, 0x7113, 3, 0x06_8000), props, wiring)?;
    core.init(0x06, &[0x80, 0x02]);
    core.set_interrupt_pin(1);
    core.init(PM_BASE, &[1]);
    core.set_writable(PM_BASE, &[0xc0, 0xff]);
    core.set_writable(0x58, &[0xff, 0xff, 0xff, 0]);
    // APMC_EN reads as set: there is no SMM, firmware must not set it up.
    core.init(DEVACTB_HIGH, &[2]);
    core.set_writable(PM_REG_MISC, &[1]);
    core.init(SMBUS_BASE, &[1]);
    core.set_writable(SMBUS_BASE, &[0xf0, 0xff]);
    core.set_writable(SMBUS_CONFIG, &[0x0f]);
    let layout = Layout {
        gpe_bytes: 2,
        acpi_enable: 0xf1,
        acpi_disable: 0xf0,
        s3_disabled: props.u64("disable_s3") != 0,
        s4_disabled: props.u64("disable_s4") != 0,
        s4_type: props.u64("s4_val") as u8,
    };
    let services = wiring.services;
    let acpi = AcpiPm::new(layout, wiring.clock(), wiring.irq(SCI_IRQ), services.power.clone());
    let smbus = SmbusHost::new(|_| ());
    let hotplug = AcpiHotplug::new(core.bus(), acpi.clone(), services.power.clone());
    services.ports.edit(|edit| {
        edit.io("acpi-gpe0", GPE_BASE, 4, acpi.gpe_ports());
        edit.io("apm-io", 0xb2, 2, acpi.apm_ports());
        edit.io("acpi-pci-hotplug", acpi_hotplug::PORT, acpi_hotplug::SIZE, hotplug.clone());
    });
    core.bus().set_slot_control(hotplug.clone());
    Ok(Arc::new(Piix4Pm {
        pm_window: Window::ports(services, "piix4-pm", 64, acpi.pm_ports()),
        smbus_window: Window::ports(services, "pm-smbus", 64, smbus.clone()),
        core,
        acpi,
        smbus,
        hotplug,
    }))
}

impl Piix4Pm {
    pub fn acpi(&self) -> &Arc<AcpiPm> {
        &self.acpi
    }

    fn update(&self) {
        let shown = |base: u16, enabled: bool| {
            enabled.then(|| u64::from(self.core.get(base, 2) & 0xffc0)).filter(|&at| at != 0)
        };
        self.pm_window.place(shown(PM_BASE, self.core.get(PM_REG_MISC, 1) & 1 != 0));
        self.smbus_window.place(shown(SMBUS_BASE, self.core.get(SMBUS_CONFIG, 1) & 1 != 0));
    }
}

impl PciFunction for Piix4Pm {
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

impl Device for Piix4Pm {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.acpi.reset();
        self.smbus.reset();
        self.hotplug.reset();
        self.update();
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
