//! A floppy drive with its medium, and the bus of up to two of them.

use super::geometry::{DriveType, Format};
use base::{Mutex, Result, bail};
use block::{Backend, FrontEnd, Media};
use device::{Bus, BusKind};
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

pub const UNITS: usize = 2;

pub struct Drive {
    pub backend: Backend,
    id: String,
    share_rw: bool,
    /// As it was asked for; `None`: what the first medium shows.
    asked: Option<DriveType>,
    /// When neither tells.
    fallback: DriveType,
    kind: OnceLock<DriveType>,
    /// The line that tells of a changed disk; a step with a disk in the drive clears it.
    changed: AtomicBool,
    /// Where the head stands.
    pub cylinder: AtomicU8,
}

impl Drive {
    pub fn new(
        backend: Backend,
        id: String,
        share_rw: bool,
        (asked, fallback): (Option<DriveType>, DriveType),
    ) -> Arc<Self> {
        let drive = Drive {
            backend,
            id,
            share_rw,
            asked,
            fallback,
            kind: OnceLock::new(),
            changed: AtomicBool::new(true),
            cylinder: AtomicU8::new(0),
        };
        let first = asked.or_else(|| drive.format().map(|format| format.drive)).unwrap_or(fallback);
        let _ = drive.kind.set(first);
        Arc::new(drive)
    }

    /// What the machine is told that the drive is.
    pub fn kind(&self) -> DriveType {
        self.kind.get().copied().unwrap_or(self.fallback)
    }

    /// The format of the medium, if there is one.
    pub fn format(&self) -> Option<Format> {
        let drive = self.asked.or(self.kind.get().copied());
        if !self.backend.is_inserted() || drive == Some(DriveType::None) {
            return None;
        }
        Format::of(self.backend.size(), drive)
            .or_else(|| Format::of(self.backend.size(), Some(self.fallback)))
    }

    pub fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// Moves the head.
    pub fn step_to(&self, cylinder: u8) {
        self.cylinder.store(cylinder, Ordering::Release);
        if self.backend.is_inserted() {
            self.changed.store(false, Ordering::Release);
        }
    }
}

/// What the block layer sees of a drive.
pub struct Front(pub Arc<Drive>);

impl FrontEnd for Front {
    fn resized(&self) {}
    fn media(&self) -> Option<&dyn Media> {
        Some(self)
    }
    fn qdev_id(&self) -> String {
        self.0.id.clone()
    }
    fn share_rw(&self) -> bool {
        self.0.share_rw
    }
    fn keeps_io_status(&self) -> bool {
        false
    }
}

impl Media for Front {
    fn changed(&self, _loaded: bool) {
        self.0.changed.store(true, Ordering::Release);
    }
}

/// The bus of a controller.
pub struct FloppyBus {
    name: String,
    drives: Mutex<[Option<Arc<Drive>>; UNITS]>,
    fallback: Mutex<DriveType>,
}

impl FloppyBus {
    pub fn new(name: String) -> Arc<Self> {
        Arc::new(FloppyBus { name, drives: Mutex::default(), fallback: Mutex::new(DriveType::D288) })
    }

    /// What a drive is that neither user nor medium tell.
    pub fn fallback(&self) -> DriveType {
        *self.fallback.lock()
    }

    pub fn set_fallback(&self, kind: Option<DriveType>) {
        *self.fallback.lock() = kind.unwrap_or(DriveType::D288);
    }

    pub fn drive(&self, unit: usize) -> Option<Arc<Drive>> {
        self.drives.lock().get(unit).cloned().flatten()
    }

    /// The wanted unit or the first free one.
    pub fn place(&self, wanted: Option<u64>) -> Result<usize> {
        let drives = self.drives.lock();
        match wanted {
            None => match drives.iter().position(Option::is_none) {
                Some(unit) => Ok(unit),
                None => bail!("Can't create floppy unit {UNITS}, bus supports only {UNITS} units"),
            },
            Some(unit) => match drives.get(unit as usize) {
                None => bail!("Can't create floppy unit {unit}, bus supports only {UNITS} units"),
                Some(Some(_)) => bail!("Floppy unit {unit} is in use"),
                Some(None) => Ok(unit as usize),
            },
        }
    }

    pub fn set(&self, unit: usize, drive: Option<Arc<Drive>>) {
        self.drives.lock()[unit] = drive;
    }
}

impl Bus for FloppyBus {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn kind(&self) -> BusKind {
        BusKind::Floppy
    }
    fn is_full(&self) -> bool {
        self.drives.lock().iter().all(Option::is_some)
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
