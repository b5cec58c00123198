use base::bail;
use device::{BusKind, Device, Model, Property, Props, Wiring};
use memory::Handler;
use std::sync::Arc;

/// A range of ports or addresses whose accesses two methods of a device answer.
pub struct Range<D> {
    pub device: Arc<D>,
    /// (device, offset in the range, size in bytes)
    pub read: fn(&D, u64, u8) -> u64,
    pub write: fn(&D, u64, u8, u64),
    /// Largest and smallest access the device takes, in bytes.
    pub max: u8,
    pub min: u8,
}

impl<D: Send + Sync> Handler for Range<D> {
    fn read(&self, offset: u64, size: u8) -> u64 {
        (self.read)(&self.device, offset, size)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        (self.write)(&self.device, offset, size, value);
    }
    fn max_access(&self) -> u8 {
        self.max
    }
    fn min_access(&self) -> u8 {
        self.min
    }
}

/// A range of byte registers; wider accesses are split.
pub fn byte_range<D: Send + Sync + 'static>(
    device: &Arc<D>,
    read: fn(&D, u64, u8) -> u64,
    write: fn(&D, u64, u8, u64),
) -> Arc<dyn Handler> {
    Arc::new(Range { device: device.clone(), read, write, max: 1, min: 1 })
}

/// The record of a device that only a board makes.
pub(crate) const fn board_model(
    name: &'static str,
    description: &'static str,
    bus: BusKind,
    parent: &'static str,
) -> Model {
    Model {
        name,
        aliases: &[],
        description,
        bus,
        parent,
        properties: &[],
        user_creatable: false,
        hotpluggable: false,
        create: only_board,
    }
}

/// The record of an ISA device that `-device` may make.
pub(super) const fn isa_model(
    name: &'static str,
    description: &'static str,
    properties: &'static [&'static [Property]],
    create: fn(&Props, &mut Wiring<'_>) -> base::Result<Arc<dyn Device>>,
) -> Model {
    Model {
        name,
        aliases: &[],
        description,
        bus: BusKind::Isa,
        parent: "isa-device",
        properties,
        user_creatable: true,
        hotpluggable: false,
        create,
    }
}

fn only_board(_: &Props, _: &mut Wiring<'_>) -> base::Result<Arc<dyn Device>> {
    bail!("the device is part of the board and cannot be created separately")
}
