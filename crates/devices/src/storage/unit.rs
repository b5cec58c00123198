//! `ide-hd` and `ide-cd`: drives on an IDE or SATA bus.

use super::ata::{Drive, Identity};
use super::cdrom::{Cdrom, Names};
use super::geometry::TRANSLATION;
use super::{BLOCK, BOOT, Conf, ERRORS, GEOMETRY, Runs, claim, wait_idle};
use base::{Mutex, Result, bail};
use block::{FrontEnd, Media};
use device::{Bus, BusKind, Device, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use serde_json::Value;
use std::any::Any;
use std::sync::Arc;

const ANY_UNIT: u64 = u32::MAX as u64;
/// The version that drives of this family report.
const VERSION: &str = "2.5+";

const COMMON: &[Property] = &[
    Property::new(
        "unit",
        PropertyKind::U32,
        "4294967295",
        "Place on the bus; the first free one if not given",
    ),
    Property::unset("ver", PropertyKind::Str, "Firmware version, up to 8 characters"),
    Property::new("wwn", PropertyKind::U64, "0", "World wide name"),
    Property::unset("serial", PropertyKind::Str, "Serial number, up to 20 characters"),
    Property::unset("model", PropertyKind::Str, "Model name, up to 40 characters"),
];

const ROTATION: &[Property] =
    &[Property::new("rotation_rate", PropertyKind::U16, "0", "Turns a minute; 1: not rotating")];

const fn model(
    name: &'static str,
    description: &'static str,
    properties: &'static [&'static [Property]],
    create: fn(&Props, &mut Wiring<'_>) -> Result<Arc<dyn Device>>,
) -> Model {
    Model {
        name,
        aliases: &[],
        description,
        bus: BusKind::Ide,
        parent: "ide-device",
        properties,
        user_creatable: true,
        hotpluggable: false,
        create,
    }
}

pub static HD: Model = model(
    "ide-hd",
    "virtual IDE disk",
    &[BLOCK, ERRORS, BOOT, GEOMETRY, TRANSLATION, COMMON, ROTATION],
    |props, wiring| create(&HD, props, wiring),
);
pub static CD: Model =
    model("ide-cd", "virtual IDE CD-ROM", &[BLOCK, ERRORS, BOOT, COMMON], |props, wiring| {
        create(&CD, props, wiring)
    });

/// A bus with one or two drives.
pub struct IdeBus {
    name: String,
    /// Number of the bus on its controller.
    index: usize,
    sata: bool,
    drives: Mutex<Vec<Option<Arc<Drive>>>>,
}

impl IdeBus {
    pub fn new(name: String, index: usize, units: usize, sata: bool) -> Arc<Self> {
        Arc::new(IdeBus { name, index, sata, drives: Mutex::new(vec![None; units]) })
    }

    pub fn drive(&self, unit: usize) -> Option<Arc<Drive>> {
        self.drives.lock().get(unit).cloned().flatten()
    }

    fn free_unit(&self, wanted: u64) -> Result<usize> {
        let drives = self.drives.lock();
        if wanted == ANY_UNIT {
            return match drives.iter().position(Option::is_none) {
                Some(unit) => Ok(unit),
                None => {
                    bail!("Can't create IDE unit {}, bus supports only {} units", drives.len(), drives.len())
                }
            };
        }
        match usize::try_from(wanted).ok().and_then(|unit| Some((unit, drives.get(unit)?))) {
            None => bail!("Can't create IDE unit {wanted}, bus supports only {} units", drives.len()),
            Some((unit, Some(_))) => bail!("IDE unit {unit} is in use"),
            Some((unit, None)) => Ok(unit),
        }
    }
}

impl Bus for IdeBus {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn kind(&self) -> BusKind {
        BusKind::Ide
    }
    fn is_full(&self) -> bool {
        self.drives.lock().iter().all(Option::is_some)
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A drive as a device of the machine.
struct Unit {
    model: &'static Model,
    bus: Arc<IdeBus>,
    unit: usize,
    drive: Arc<Drive>,
}

/// What the block layer sees of a drive.
struct Front {
    drive: Arc<Drive>,
    id: String,
}

fn create(model: &'static Model, props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let bus: Arc<IdeBus> = wiring.bus()?;
    let unit = bus.free_unit(props.u64("unit"))?;
    let is_cd = std::ptr::eq(model, &CD);
    let mut conf = Conf::new(props, model.name)?;
    if conf.logical != 512 {
        bail!("logical_block_size must be 512 for IDE");
    }
    let text = |name: &str, max: usize, default: String| -> Result<String> {
        match props.str(name).filter(|text| !text.is_empty()) {
            Some(text) if text.len() > max => bail!("{name} is longer than {max} characters"),
            Some(text) => Ok(text.to_string()),
            None => Ok(default),
        }
    };
    let product = if is_cd { "QEMU DVD-ROM" } else { "QEMU HARDDISK" };
    let identity = Identity {
        serial: text("serial", 20, format!("QM{:05}", bus.index * 2 + unit + 1))?,
        model: text("model", 40, product.to_string())?,
        version: text("ver", 8, VERSION.to_string())?,
        wwn: props.u64("wwn"),
        rotation: props.u64("rotation_rate") as u16,
        sata: bus.sata,
    };
    if is_cd {
        conf.discard_granularity = 0;
    }
    let backend = match claim(props, wiring, model.name, Runs::MAIN)? {
        Some(backend) => backend,
        None if is_cd => wiring.services.backends.empty_drive()?,
        None => bail!("No drive specified"),
    };
    let id = wiring.id.map_or_else(|| wiring.qom_path.clone(), str::to_string);
    if is_cd {
        backend.set_read_only(true);
    } else {
        conf.settle_geometry(props, &backend);
    }
    let names =
        Names { vendor: "QEMU".into(), product: identity.model.clone(), revision: identity.version.clone() };
    let cdrom =
        is_cd.then(|| Cdrom::new(backend.clone(), names, id.clone(), wiring.services.notices.clone()));
    let drive = Arc::new(Drive::new(backend, conf, identity, cdrom));
    if let Err(why) = attach(&drive, id, is_cd) {
        drive.backend.detach();
        return Err(why);
    }
    bus.drives.lock()[unit] = Some(drive.clone());
    Ok(Arc::new(Unit { model, bus, unit, drive }))
}

fn attach(drive: &Arc<Drive>, id: String, is_cd: bool) -> Result<()> {
    if !is_cd && !drive.backend.is_inserted() {
        bail!("Device needs media, but drive is empty");
    }
    if !is_cd && drive.backend.is_read_only() {
        bail!("Block node is read-only");
    }
    drive.backend.attach(Arc::new(Front { drive: drive.clone(), id }))
}

impl Device for Unit {
    fn model(&self) -> &'static Model {
        self.model
    }
    fn reset(&self, _kind: ResetKind) {
        self.drive.reset(true);
    }
    fn pause(&self) {
        wait_idle(&self.drive.backend);
    }
    fn unplug(&self) {
        self.bus.drives.lock()[self.unit] = None;
        wait_idle(&self.drive.backend);
        self.drive.backend.detach();
    }
    fn dynamic_property(&self, name: &str) -> Option<Value> {
        match name {
            "unit" => Some(self.unit.into()),
            _ => self.drive.conf.told(name, &self.drive.backend),
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FrontEnd for Front {
    fn resized(&self) {}
    fn media(&self) -> Option<&dyn Media> {
        self.drive.cdrom.as_ref().map(|cdrom| cdrom as &dyn Media)
    }
    fn qdev_id(&self) -> String {
        self.id.clone()
    }
    fn share_rw(&self) -> bool {
        self.drive.conf.share_rw
    }
}
