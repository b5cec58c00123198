//! `scsi-hd` and `scsi-cd` as devices of the machine.

use super::ScsiBus;
use super::disk::{Lun, Names};
use crate::storage::cdrom::{Cdrom, Names as DriveNames};
use crate::storage::{BLOCK, BOOT, Conf, ERRORS, GEOMETRY, claim, wait_idle};
use base::{Result, bail};
use block::{FrontEnd, Media};
use device::{BusKind, Device, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use serde_json::Value;
use std::any::Any;
use std::sync::{Arc, Weak};

const ANY: u64 = u32::MAX as u64;

const COMMON: &[Property] = &[
    Property::new("channel", PropertyKind::U32, "0", "Channel of the bus"),
    Property::new("scsi-id", PropertyKind::U32, "4294967295", "Target; the first free one if not given"),
    Property::new("lun", PropertyKind::U32, "4294967295", "Logical unit; the first free one if not given"),
    Property::unset("ver", PropertyKind::Str, "Version, up to 4 characters"),
    Property::unset("serial", PropertyKind::Str, "Serial number, up to 36 characters"),
    Property::unset("vendor", PropertyKind::Str, "Vendor, up to 8 characters"),
    Property::unset("product", PropertyKind::Str, "Product, up to 16 characters"),
    Property::unset("device_id", PropertyKind::Str, "Name in the device identification page"),
    Property::new("wwn", PropertyKind::U64, "0", "World wide name"),
    Property::new("port_wwn", PropertyKind::U64, "0", "World wide name of the port"),
    Property::new("port_index", PropertyKind::U16, "0", "Number of the port on its device"),
    Property::new("scsi_version", PropertyKind::I32, "5", "Version that INQUIRY claims"),
    Property::new("max_io_size", PropertyKind::U64, "2147483647", "Longest transfer in bytes"),
];

const DISK: &[Property] = &[
    Property::new("removable", PropertyKind::Bool, "off", "The medium can be removed"),
    Property::new("dpofua", PropertyKind::Bool, "off", "Announce forced unit access"),
    Property::new("max_unmap_size", PropertyKind::U64, "1073741824", "Longest unmap in bytes"),
    Property::new("rotation_rate", PropertyKind::U16, "0", "Turns a minute; 1: not rotating"),
];

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
        bus: BusKind::Scsi,
        parent: "scsi-disk-base",
        properties,
        user_creatable: true,
        hotpluggable: true,
        create,
    }
}

pub static HD: Model =
    model("scsi-hd", "virtual SCSI disk", &[BLOCK, ERRORS, BOOT, GEOMETRY, COMMON, DISK], |props, wiring| {
        create(&HD, props, wiring)
    });
pub static CD: Model =
    model("scsi-cd", "virtual SCSI CD-ROM", &[BLOCK, ERRORS, BOOT, COMMON], |props, wiring| {
        create(&CD, props, wiring)
    });

struct Unit {
    model: &'static Model,
    bus: Arc<ScsiBus>,
    at: (u8, u16),
    lun: Arc<Lun>,
}

struct Front {
    lun: Arc<Lun>,
    bus: Weak<ScsiBus>,
    at: (u8, u16),
}

fn text(props: &Props, name: &str, max: usize, default: &str) -> Result<String> {
    match props.str(name).filter(|text| !text.is_empty()) {
        Some(text) if text.len() > max => bail!("{name} is longer than {max} characters"),
        Some(text) => Ok(text.to_string()),
        None => Ok(default.to_string()),
    }
}

fn create(model: &'static Model, props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let bus: Arc<ScsiBus> = wiring.bus()?;
    let is_cd = std::ptr::eq(model, &CD);
    let given = |name: &str| Some(props.u64(name)).filter(|&number| number != ANY);
    let at = bus.place(props.u64("channel"), given("scsi-id"), given("lun"))?;
    let mut conf = Conf::new(props, model.name)?;
    if conf.serial.len() > 36 {
        bail!("The serial number can't be longer than 36 characters");
    }
    conf.default_granularity(props, 4096);
    if is_cd {
        conf.discard_granularity = 0;
    }
    let id = wiring.id.map_or_else(|| wiring.qom_path.clone(), str::to_string);
    let names = Names {
        vendor: text(props, "vendor", 8, "QEMU")?,
        product: text(props, "product", 16, if is_cd { "QEMU CD-ROM" } else { "QEMU HARDDISK" })?,
        version: text(props, "ver", 4, "2.5+")?,
        device_id: text(props, "device_id", 255, if conf.serial.is_empty() { "" } else { &conf.serial })?,
        wwn: props.u64("wwn"),
        port_wwn: props.u64("port_wwn"),
        port_index: props.u64("port_index") as u16,
        scsi_version: u8::try_from(props.i64("scsi_version"))
            .map_err(|_| base::fail!("scsi_version must be between 0 and 255"))?,
        removable: is_cd || props.bool("removable"),
        dpofua: props.bool("dpofua"),
        rotation: props.u64("rotation_rate") as u16,
        max_unmap: props.u64("max_unmap_size"),
        max_io: props.u64("max_io_size"),
    };
    let runs = bus.runs();
    let backend = match claim(props, wiring, model.name, runs.clone())? {
        Some(backend) => backend,
        None if is_cd => wiring.services.backends.empty_drive()?,
        None => bail!("drive property not set"),
    };
    if let Some(thread) = &runs.thread {
        backend.set_thread(thread);
    }
    let cdrom = is_cd.then(|| {
        backend.set_read_only(true);
        let names = DriveNames {
            vendor: names.vendor.clone(),
            product: names.product.clone(),
            revision: names.version.clone(),
        };
        Cdrom::new(backend.clone(), names, id.clone(), wiring.services.notices.clone())
    });
    let lun = Arc::new(Lun::new(backend, conf, names, cdrom, id));
    let front = Front { lun: lun.clone(), bus: Arc::downgrade(&bus), at };
    let attached = if is_cd || lun.backend.is_inserted() {
        lun.backend.attach(Arc::new(front))
    } else {
        Err(base::fail!("Device needs media, but drive is empty"))
    };
    if let Err(why) = attached {
        release(&lun.backend);
        return Err(why);
    }
    bus.insert(at, lun.clone());
    Ok(Arc::new(Unit { model, bus, at, lun }))
}

/// Lets go of a back end, which is on the block layer's thread again.
fn release(backend: &block::Backend) {
    if let Some(graph) = backend.graph() {
        backend.set_thread(graph.main_thread());
    }
    backend.detach();
}

impl Device for Unit {
    fn model(&self) -> &'static Model {
        self.model
    }
    fn reset(&self, _kind: ResetKind) {
        self.lun.reset();
    }
    fn pause(&self) {
        wait_idle(&self.lun.backend);
    }
    fn unplug(&self) {
        self.bus.remove(self.at);
        wait_idle(&self.lun.backend);
        release(&self.lun.backend);
    }
    fn dynamic_property(&self, name: &str) -> Option<Value> {
        match name {
            "scsi-id" => Some(self.at.0.into()),
            "lun" => Some(self.at.1.into()),
            _ => self.lun.conf.told(name, &self.lun.backend),
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FrontEnd for Front {
    fn resized(&self) {
        if self.lun.cdrom.is_some() {
            return;
        }
        self.lun.size_changed();
        if let Some(bus) = self.bus.upgrade()
            && let Some(host) = bus.host.upgrade()
        {
            host.resized(self.at.0, self.at.1);
        }
    }
    fn media(&self) -> Option<&dyn Media> {
        match &self.lun.cdrom {
            Some(cdrom) => Some(cdrom),
            None if self.lun.names.removable => Some(&*self.lun),
            None => None,
        }
    }
    fn qdev_id(&self) -> String {
        self.lun.id.clone()
    }
    fn share_rw(&self) -> bool {
        self.lun.conf.share_rw
    }
}
