use super::geometry::{Geometry, Translation};
use base::{Failure, Result, bail, fail};
use block::{Backend, Haste, IoThread, OnError};
use device::{Property, PropertyKind, Props, Wiring};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

const ON_ERROR: PropertyKind =
    PropertyKind::Enum("BlockdevOnError", &["auto", "report", "ignore", "enospc", "stop"]);

/// The properties of every drive of the machine: which drive it is, what it tells the guest of it,
/// and how it is used. (Customary order: `info qtree` shows it.)
pub const BLOCK: &[Property] = &[
    Property::unset("drive", PropertyKind::Drive, "Node name or ID of a block device to use as a backend"),
    Property::new(
        "backend_defaults",
        PropertyKind::OnOffAuto,
        "auto",
        "Take block sizes from a back end that tells its own (no kind of x86 hosts does)",
    ),
    Property::new("logical_block_size", PropertyKind::Size, "0", "A power of two between 512 B and 2 MiB"),
    Property::new("physical_block_size", PropertyKind::Size, "0", "A power of two between 512 B and 2 MiB"),
    Property::new("min_io_size", PropertyKind::Size, "0", "Minimum good request size"),
    Property::new("opt_io_size", PropertyKind::Size, "0", "Optimal request size"),
    Property::new("discard_granularity", PropertyKind::Size, "4294967295", "Smallest discardable unit"),
    Property::new("write-cache", PropertyKind::OnOffAuto, "auto", "Volatile write cache"),
    Property::new("share-rw", PropertyKind::Bool, "off", "Others may write the same image"),
    Property::new("account-invalid", PropertyKind::OnOffAuto, "auto", "Invalid requests count as accesses"),
    Property::new("account-failed", PropertyKind::OnOffAuto, "auto", "Failed requests count in latencies"),
];

/// For drives that ask what is to become of errors.
pub const ERRORS: &[Property] = &[
    Property::new("rerror", ON_ERROR, "auto", "What to do about read errors"),
    Property::new("werror", ON_ERROR, "auto", "What to do about write errors"),
];

/// For what firmware can boot from.
pub const BOOT: &[Property] = &[Property::unset("bootindex", PropertyKind::I32, "Place in the boot order")];

/// A disk's checked settings.
#[derive(Clone, Debug)]
pub struct Conf {
    /// Bytes.
    pub logical: u32,
    pub physical: u32,
    pub min_io: u32,
    pub opt_io: u32,
    /// Bytes; 0: no discard.
    pub discard_granularity: u32,
    pub serial: String,
    pub share_rw: bool,
    geometry: Option<Geometry>,
    /// For firmware; settled for IDE disks.
    pub translation: Translation,
}

const DEFAULT_GRANULARITY: u64 = u32::MAX as u64;

fn block_size(props: &Props, name: &str, unset: u32) -> Result<u32> {
    let value = props.u64(name);
    if value == 0 {
        return Ok(unset);
    }
    if !(512..=2 << 20).contains(&value) || !value.is_power_of_two() {
        bail!("parameter {name} must be a power of 2 between 512 and 2097152");
    }
    Ok(value as u32)
}

impl Conf {
    pub fn new(props: &Props, model: &str) -> Result<Self> {
        let in_32_bits = |name: &str, value: u64| {
            let max = u32::MAX;
            u32::try_from(value)
                .map_err(|_| fail!("Property {model}.{name} doesn't take value {value} (maximum: {max})"))
        };
        // An ATA disk's head is a number of four bits.
        let max_heads = if model == "ide-hd" { 16 } else { 255 };
        let logical = block_size(props, "logical_block_size", 512)?;
        let physical = block_size(props, "physical_block_size", 512)?;
        if logical > physical {
            bail!("logical_block_size > physical_block_size not supported");
        }
        let io_size = |name: &str| -> Result<u32> {
            let value = props.u64(name);
            if !value.is_multiple_of(logical.into()) {
                bail!("{name} must be a multiple of logical_block_size");
            }
            in_32_bits(name, value)
        };
        let min_io = io_size("min_io_size")?;
        // Guests learn of it as a 16-bit number of blocks.
        if min_io / logical > u32::from(u16::MAX) {
            bail!("min_io_size must not exceed {} logical blocks", u16::MAX);
        }
        let granularity = match props.opt_u64("discard_granularity").unwrap_or(DEFAULT_GRANULARITY) {
            DEFAULT_GRANULARITY => u64::from(logical),
            value => value,
        };
        if !granularity.is_multiple_of(logical.into()) {
            bail!("discard_granularity must be a multiple of logical_block_size");
        }
        Ok(Conf {
            logical,
            physical,
            min_io,
            opt_io: io_size("opt_io_size")?,
            discard_granularity: in_32_bits("discard_granularity", granularity)?,
            serial: props.str("serial").unwrap_or_default().to_string(),
            share_rw: props.bool("share-rw"),
            geometry: Geometry::given(props, max_heads)?,
            translation: Translation::None,
        })
    }

    /// What is discarded at least where nobody says, if that is not a block. Bytes.
    pub fn default_granularity(&mut self, props: &Props, bytes: u32) {
        if props.opt_u64("discard_granularity").is_none_or(|value| value == DEFAULT_GRANULARITY) {
            self.discard_granularity = bytes.max(self.logical);
        }
    }

    /// Properties whose values are those in use, not those given; `backend` is that of the disk.
    pub fn told(&self, name: &str, backend: &Backend) -> Option<Value> {
        match name {
            "drive" => Some(backend.label().into()),
            "logical_block_size" => Some(self.logical.into()),
            "physical_block_size" => Some(self.physical.into()),
            _ => None,
        }
    }

    /// The given geometry, else the customary translation of the size.
    pub fn geometry(&self, bytes: u64) -> Geometry {
        self.geometry.unwrap_or_else(|| Geometry::of_size(bytes))
    }

    /// Decides on geometry and translation once and for all.
    pub fn settle_geometry(&mut self, props: &Props, backend: &Backend) {
        let (geometry, translation) = Geometry::settle(self.geometry, props, backend);
        (self.geometry, self.translation) = (Some(geometry), translation);
    }
}

/// Where a front end runs its requests.
#[derive(Clone)]
pub struct Runs {
    pub thread: Option<IoThread>,
    /// What is said of a medium that another device uses on a thread of its own.
    pub refusal: &'static str,
}

impl Runs {
    /// On the thread of the block layer.
    pub const MAIN: Runs = Runs { thread: None, refusal: "Cannot change iothread of active block backend" };
}

/// Claims the drive of a disk, if one is named, and applies the properties of [`BLOCK`]
/// and [`ERRORS`] to it. Nothing stays claimed on failure.
pub fn claim(props: &Props, wiring: &Wiring<'_>, kind: &str, runs: Runs) -> Result<Option<Backend>> {
    let Some(backend) = wiring.drive(props, "drive", kind)? else { return Ok(None) };
    backend.check_unused()?;
    let applied = match backend.is_on_other_thread(runs.thread.as_ref()) {
        true => Err(fail!("{}", runs.refusal)),
        false => apply(&backend, props),
    };
    match applied {
        Ok(()) => Ok(Some(backend)),
        Err(why) => {
            backend.detach();
            Err(why)
        }
    }
}

fn apply(backend: &Backend, props: &Props) -> Result<()> {
    match props.str("write-cache") {
        Some("on") => backend.set_write_cache(true),
        Some("off") => backend.set_write_cache(false),
        _ => {}
    }
    let flag = |name: &str| match props.str(name) {
        Some("on") => Some(true),
        Some("off") => Some(false),
        _ => None,
    };
    backend.stats().set_accounting(flag("account-invalid"), flag("account-failed"));
    let (mut read, mut write) = backend.error_policy();
    for (name, policy) in [("rerror", &mut read), ("werror", &mut write)] {
        if let Some(chosen) = props.str(name).and_then(OnError::parse) {
            *policy = chosen;
        }
    }
    backend.set_error_policy(read, write);
    Ok(())
}

/// The object that `iothread=` names. Holding it keeps it from being deleted.
pub fn iothread(props: &Props, wiring: &Wiring<'_>) -> Result<Option<Arc<IoThread>>> {
    let Some(id) = props.str("iothread").filter(|id| !id.is_empty()) else { return Ok(None) };
    let object = wiring.services.backends.object(id).ok_or_else(|| Failure::device_not_found(id))?;
    let wrong = |_| fail!("Invalid parameter type for 'iothread', expected: iothread");
    object.downcast::<IoThread>().map(Some).map_err(wrong)
}

/// Waits for requests in flight, except those that the error policy holds until the machine
/// is continued.
pub fn wait_idle(backend: &Backend) {
    let _haste = Haste::below(backend.node());
    let held = || backend.io_status().is_some_and(|status| status != block::IoStatus::Ok);
    while backend.in_flight() > 0 && !held() {
        std::thread::sleep(Duration::from_micros(100));
    }
}
