//! `isa-fdc`, the floppy disk controller, and `floppy`, a drive on its bus.

mod controller;
mod drive;
mod geometry;
#[cfg(test)]
mod tests;
mod transfer;

pub use drive::FloppyBus;
pub use geometry::DriveType;

use crate::pc::range::byte_range;
use crate::pci::IsaBus;
use crate::storage::{BLOCK, Conf, Runs, claim};
use base::{Result, bail, fail};
use block::{Backend, OnError};
use controller::Fdc;
use device::{Bus, BusKind, Device, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use drive::{Drive, Front, UNITS};
use serde_json::Value;
use std::any::Any;
use std::sync::Arc;

const TYPE: PropertyKind = PropertyKind::Enum("FdcDriveType", &["144", "288", "120", "none", "auto"]);
const ANY_UNIT: u64 = u32::MAX as u64;

const CONTROLLER: &[Property] = &[
    Property::new("iobase", PropertyKind::U32, "0x3f0", "First port"),
    Property::new("irq", PropertyKind::U32, "6", "Interrupt"),
    Property::new("dma", PropertyKind::U32, "2", "DMA channel"),
    Property::unset("driveA", PropertyKind::Drive, "Drive of unit 0"),
    Property::unset("driveB", PropertyKind::Drive, "Drive of unit 1"),
    Property::new("fdtypeA", TYPE, "auto", "Kind of unit 0, if it is made by driveA"),
    Property::new("fdtypeB", TYPE, "auto", "Kind of unit 1, if it is made by driveB"),
    Property::unset("bootindexA", PropertyKind::I32, "Place of unit 0 in the boot order"),
    Property::unset("bootindexB", PropertyKind::I32, "Place of unit 1 in the boot order"),
    Property::new("fallback", TYPE, "288", "Kind of a drive that no medium tells"),
];

const UNIT: &[Property] = &[Property::new(
    "unit",
    PropertyKind::U32,
    "4294967295",
    "Place on the bus; the first free one if not given",
)];

const KIND: &[Property] = &[Property::new("drive-type", TYPE, "auto", "Kind of the drive")];

pub static CONTROLLER_MODEL: Model = Model {
    name: "isa-fdc",
    aliases: &[],
    description: "virtual floppy controller",
    bus: BusKind::Isa,
    parent: "isa-device",
    properties: &[CONTROLLER],
    user_creatable: true,
    hotpluggable: false,
    create,
};

pub static DRIVE_MODEL: Model = Model {
    name: "floppy",
    aliases: &[],
    description: "virtual floppy drive",
    bus: BusKind::Floppy,
    parent: "device",
    properties: &[UNIT, BLOCK, KIND],
    user_creatable: true,
    hotpluggable: false,
    create: create_drive,
};

pub struct Controller {
    fdc: Arc<Fdc>,
}

struct Unit {
    bus: Arc<FloppyBus>,
    unit: usize,
    conf: Conf,
    drive: Arc<Drive>,
}

/// The kinds of the two drives of a controller.
pub fn drive_types(device: &dyn Device) -> Option<[DriveType; UNITS]> {
    let controller = device.as_any().downcast_ref::<Controller>()?;
    let kind = |unit| controller.fdc.bus.drive(unit).map_or(DriveType::None, |drive| drive.kind());
    Some([kind(0), kind(1)])
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let isa: Arc<IsaBus> = wiring.bus()?;
    let dma = isa.dma().ok_or_else(|| fail!("isa-fdc needs the board's DMA controller"))?;
    let channel = props.u64("dma") as usize;
    if channel >= 4 {
        bail!("Property 'isa-fdc.dma' doesn't take value '{channel}'");
    }
    let (base, irq) = (props.u64("iobase"), props.u64("irq") as usize);
    if base > 0xfff8 || irq >= 16 {
        bail!("isa-fdc: there is no such port or interrupt");
    }
    let bus = FloppyBus::new(wiring.bus_name("floppy-bus", 0));
    bus.set_fallback(DriveType::parse(props.str("fallback").unwrap_or_default()));
    let fdc = Fdc::new(bus.clone(), wiring.irq(irq), (dma, channel), wiring.clock());
    for (unit, (drive, kind)) in [("driveA", "fdtypeA"), ("driveB", "fdtypeB")].into_iter().enumerate() {
        if let Some(backend) = wiring.drive(props, drive, "isa-fdc")? {
            let kind = DriveType::parse(props.str(kind).unwrap_or_default());
            install(&bus, unit, backend, false, kind, wiring)?;
        }
    }
    let registers = |first: u64| {
        byte_range(
            &Arc::new(Window { fdc: fdc.clone(), first }),
            |w: &Window, at, _| w.fdc.read(w.first + at).into(),
            |w: &Window, at, _, value| w.fdc.write(w.first + at, value as u8),
        )
    };
    // Port 6 is the fixed disks'.
    wiring.services.ports.edit(|edit| {
        edit.io("fdc", base + 1, 5, registers(1));
        edit.io("fdc", base + 7, 1, registers(7));
    });
    Ok(Arc::new(Controller { fdc }))
}

/// Some of the controller's ports.
struct Window {
    fdc: Arc<Fdc>,
    first: u64,
}

fn install(
    bus: &Arc<FloppyBus>,
    unit: usize,
    backend: Backend,
    share_rw: bool,
    kind: Option<DriveType>,
    wiring: &Wiring<'_>,
) -> Result<Arc<Drive>> {
    let id = wiring.id.map_or_else(|| wiring.qom_path.clone(), str::to_string);
    let drive = Drive::new(backend, id, share_rw, (kind, bus.fallback()));
    if let Err(why) = drive.backend.attach(Arc::new(Front(drive.clone()))) {
        drive.backend.detach();
        return Err(why);
    }
    bus.set(unit, Some(drive.clone()));
    Ok(drive)
}

fn create_drive(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let bus: Arc<FloppyBus> = wiring.bus()?;
    let claimed = claim(props, wiring, "floppy", Runs::MAIN)?;
    let (unit, conf) = match suit(props, &bus, claimed.as_ref()) {
        Ok(suits) => suits,
        Err(why) => {
            claimed.inspect(Backend::detach);
            return Err(why);
        }
    };
    let backend = match claimed {
        Some(backend) => backend,
        None => wiring.services.backends.empty_drive()?,
    };
    // What cannot be read or written is the guest's affair.
    backend.set_error_policy(OnError::Report, OnError::Report);
    let kind = DriveType::parse(props.str("drive-type").unwrap_or_default());
    let drive = install(&bus, unit, backend, conf.share_rw, kind, wiring)?;
    Ok(Arc::new(Unit { bus, unit, conf, drive }))
}

/// The place on the bus and the settings of a drive, or why there cannot be such a one.
fn suit(props: &Props, bus: &FloppyBus, backend: Option<&Backend>) -> Result<(usize, Conf)> {
    let unit = bus.place(Some(props.u64("unit")).filter(|&unit| unit != ANY_UNIT))?;
    let conf = Conf::new(props, "floppy")?;
    if (conf.logical, conf.physical) != (512, 512) {
        bail!("Physical and logical block size must be 512 for floppy");
    }
    match backend.map(Backend::error_policy) {
        Some((_, write)) if !matches!(write, OnError::Report | OnError::Enospc) => {
            bail!("fdc doesn't support drive option werror")
        }
        Some((read, _)) if read != OnError::Report => bail!("fdc doesn't support drive option rerror"),
        _ => Ok((unit, conf)),
    }
}

impl Device for Controller {
    fn model(&self) -> &'static Model {
        &CONTROLLER_MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.fdc.power_on();
    }
    fn pause(&self) {
        self.fdc.wait_idle();
    }
    fn unplug(&self) {
        self.fdc.power_on();
        self.fdc.wait_idle();
        for unit in 0..UNITS {
            if let Some(drive) = self.fdc.bus.drive(unit) {
                self.fdc.bus.set(unit, None);
                drive.backend.detach();
            }
        }
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        vec![self.fdc.bus.clone()]
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Device for Unit {
    fn model(&self) -> &'static Model {
        &DRIVE_MODEL
    }
    fn reset(&self, _kind: ResetKind) {}
    fn unplug(&self) {
        let Some(drive) = self.bus.drive(self.unit).filter(|drive| Arc::ptr_eq(drive, &self.drive)) else {
            return;
        };
        self.bus.set(self.unit, None);
        crate::storage::wait_idle(&drive.backend);
        drive.backend.detach();
    }
    fn dynamic_property(&self, name: &str) -> Option<Value> {
        match name {
            "unit" => Some(self.unit.into()),
            "drive-type" => Some(self.drive.kind().name().into()),
            _ => self.conf.told(name, &self.drive.backend),
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
