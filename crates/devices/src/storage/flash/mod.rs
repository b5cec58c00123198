//! `cfi.pflash01`: parallel flash in which firmware lies and keeps its variables.
//!
//! Reads of the contents are reads of memory; a command makes the whole chip answer by itself
//! until it is sent back. What is programmed or erased is written to the drive at once.

mod chip;
#[cfg(test)]
mod tests;

use super::BLOCK;
use crate::pc::range::board_model;
use base::{Mutex, Result, bail};
use block::{Backend, FrontEnd};
use chip::{Chip, Effect};
use device::{BusKind, Device, Model, Property, PropertyKind, ResetKind};
use memory::{AddressSpace, Edit, Handler, MappingId, RamBlock, Target};
use std::any::Any;
use std::sync::{Arc, OnceLock, Weak};

pub use chip::SECTOR;

const PROPERTIES: &[Property] = &[
    Property::unset("name", PropertyKind::Str, "Name of the memory"),
    Property::unset("num-blocks", PropertyKind::U32, "Sectors"),
    Property::new("sector-length", PropertyKind::U64, "4096", "Bytes of a sector"),
    Property::new("width", PropertyKind::U8, "1", "Bytes of the bus"),
];

pub static MODEL: Model = Model {
    properties: &[&[BLOCK[0]], PROPERTIES],
    ..board_model("cfi.pflash01", "parallel flash, Intel command set", BusKind::System, "sys-bus-device")
};

/// Drives are written in units of this size.
const UNIT: u64 = 512;

/// A flash chip of the board.
pub struct Flash {
    backend: Backend,
    block: RamBlock,
    chip: Mutex<Chip>,
    place: OnceLock<Place>,
}

/// Where a chip is mapped, and what answers there.
struct Place {
    space: Arc<AddressSpace>,
    mapping: MappingId,
    /// While reads give the contents, and while they do not.
    contents: Target,
    answers: Target,
}

/// What the block layer sees.
struct Front(String);

/// What the address space sees.
struct Pins(Weak<Flash>);

impl Flash {
    /// Takes the drive, for the chip `name` at the place `path` of the object tree, and reads
    /// its contents.
    ///
    /// # Errors
    /// A size that is no multiple of [`SECTOR`]; what the drive's reads and locks give.
    pub fn new(name: &str, path: &str, backend: Backend) -> Result<Arc<Flash>> {
        let len = backend.size();
        if len == 0 || !len.is_multiple_of(SECTOR) {
            bail!(
                "system firmware block device {} has invalid size {len}; its size must be a non-zero \
                 multiple of {SECTOR:#x}",
                backend.name()
            );
        }
        backend.attach(Arc::new(Front(path.to_string())))?;
        let chip = Mutex::new(Chip::new(len, backend.is_read_only()));
        match contents(name, &backend, len) {
            Ok(block) => Ok(Arc::new(Flash { backend, block, chip, place: OnceLock::new() })),
            Err(why) => {
                backend.detach();
                Err(why)
            }
        }
    }

    /// The contents; their length is the chip's.
    pub fn block(&self) -> RamBlock {
        self.block
    }

    /// Maps the chip; once.
    pub fn map(self: &Arc<Self>, space: &Arc<AddressSpace>, start: u64) {
        let handler: Arc<dyn Handler> = Arc::new(Pins(Arc::downgrade(self)));
        let contents = Target::RomDevice { block: self.block, offset: 0, handler: handler.clone() };
        let mapping =
            space.edit(|edit| edit.map(self.block.name(), start, self.block.len(), 1, contents.clone()));
        let _ = self.place.set(Place {
            space: space.clone(),
            mapping,
            contents,
            answers: Edit::io_target(handler),
        });
    }

    /// Lets reads go to the contents or to the chip.
    fn show(&self, contents: bool) {
        if let Some(place) = self.place.get() {
            let target = if contents { &place.contents } else { &place.answers };
            place.space.edit(|edit| edit.retarget(place.mapping, target.clone()));
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut chip = self.chip.lock();
        let shown = chip.shows_array();
        let effect = chip.write(offset, size, value);
        let shows = chip.shows_array();
        drop(chip);
        self.apply(&effect);
        if shows != shown {
            self.show(shows);
        }
    }

    /// Changes the contents, here and on the drive.
    fn apply(&self, effect: &Effect) {
        let (start, end) = match effect {
            Effect::None => return,
            Effect::Erase(sector) => {
                self.block.write(*sector, &[0xff; SECTOR as usize]);
                (*sector, *sector + SECTOR)
            }
            Effect::Program(values) => {
                let (mut start, mut end) = (self.block.len(), 0);
                for (at, bytes) in values {
                    self.block.write(*at, bytes);
                    (start, end) = (start.min(*at), end.max(at + bytes.len() as u64));
                }
                (start & !(UNIT - 1), end.next_multiple_of(UNIT))
            }
        };
        let mut bytes = vec![0; (end - start) as usize];
        self.block.read(start, &mut bytes);
        if self.backend.write_blocking(start, bytes).is_err() {
            self.chip.lock().failed(matches!(effect, Effect::Erase(_)));
        }
    }
}

/// The drive's bytes as memory.
fn contents(name: &str, backend: &Backend, len: u64) -> Result<RamBlock> {
    let bytes = backend
        .read_blocking(0, len as usize)
        .map_err(|why| base::Failure::os(format!("can't read block backend '{}'", backend.name()), &why))?;
    let block = RamBlock::new(name, len)?;
    block.write(0, &bytes);
    Ok(block)
}

impl Handler for Pins {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.upgrade().map_or(0, |flash| {
            let chip = flash.chip.lock();
            if !chip.shows_array() {
                return chip.read(offset, size);
            }
            // The chip was just sent back.
            drop(chip);
            let mut bytes = [0; 8];
            flash.block.read(offset, &mut bytes[..usize::from(size)]);
            u64::from_le_bytes(bytes)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(flash) = self.0.upgrade() {
            flash.write(offset, size, value);
        }
    }

    fn max_access(&self) -> u8 {
        4
    }
}

impl Device for Flash {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _: ResetKind) {
        self.chip.lock().reset();
        self.show(true);
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FrontEnd for Front {
    fn resized(&self) {}
    fn qdev_id(&self) -> String {
        self.0.clone()
    }
    fn keeps_io_status(&self) -> bool {
        false
    }
}
