//! The firmware configuration device: ports 510h/511h and the DMA register at 514h.

mod items;
mod standard;
#[cfg(test)]
mod tests;

pub use items::{Items, key};
pub use standard::{Boot, fill, put_kernel};

use base::{Mutex, Result};
use device::{BusKind, Device, Model, Property, PropertyKind, ResetKind, Services};
use memory::{AddressSpace, Handler, Target};
use std::any::Any;
use std::sync::Arc;

const SELECTOR_PORT: u64 = 0x510;
const DMA_PORT: u64 = 0x514;
/// What the DMA register reads as: its presence.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

pub static MODEL: Model = Model {
    name: "fw_cfg_io",
    aliases: &[],
    description: "",
    bus: BusKind::System,
    parent: "fw_cfg",
    properties: &[&[Property::new("dma_enabled", PropertyKind::Bool, "on", "offer the DMA interface")]],
    user_creatable: false,
    hotpluggable: false,
    create: |props, wiring| {
        let device = FwCfg::new(wiring.services.memory.clone(), props.bool("dma_enabled"));
        device.map(&wiring.services.ports);
        Ok(device)
    },
};

#[derive(Default)]
struct Cursor {
    key: u16,
    offset: usize,
    data: Option<Arc<[u8]>>,
    /// High half of the DMA descriptor's address, until the low half starts the transfer.
    dma_high: u32,
}

/// The device. Files and items may be set until the guest runs, and by the board at reset.
pub struct FwCfg {
    items: Mutex<Items>,
    cursor: Mutex<Cursor>,
    memory: Arc<AddressSpace>,
    dma: bool,
}

struct SelectorPorts(Arc<FwCfg>);
struct DmaPorts(Arc<FwCfg>);

impl FwCfg {
    pub fn new(memory: Arc<AddressSpace>, dma: bool) -> Arc<Self> {
        let mut items = Items::default();
        items.set(key::SIGNATURE, *b"QEMU");
        items.set(key::ID, (1 | u32::from(dma) << 1).to_le_bytes());
        let device = FwCfg { items: Mutex::new(items), cursor: Mutex::default(), memory, dma };
        device.select(0);
        Arc::new(device)
    }

    /// The device as a board makes it, from the shared services.
    pub fn create(services: &Services) -> Arc<Self> {
        let device = FwCfg::new(services.memory.clone(), true);
        device.map(&services.ports);
        device
    }

    /// Puts the registers into a port space.
    pub fn map(self: &Arc<Self>, ports: &AddressSpace) {
        ports.edit(|edit| {
            edit.io("fwcfg", SELECTOR_PORT, 2, Arc::new(SelectorPorts(self.clone())));
            if self.dma {
                edit.io("fwcfg.dma", DMA_PORT, 8, Arc::new(DmaPorts(self.clone())));
            }
        });
    }

    /// Changes items; see [`Items`].
    pub fn edit<R>(&self, change: impl FnOnce(&mut Items) -> R) -> R {
        change(&mut self.items.lock())
    }

    /// Adds a file; the name must not exist yet.
    pub fn add_file(&self, name: &str, data: impl Into<Arc<[u8]>>) -> Result<()> {
        self.edit(|items| items.add_file(name, data))
    }

    /// Names an option ROM that SeaBIOS runs: `vgaroms/<name>` before, `genroms/<name>`
    /// after device initialisation.
    pub fn add_option_rom(&self, name: &str, vga: bool, data: Vec<u8>) -> Result<()> {
        let folder = if vga { "vgaroms" } else { "genroms" };
        self.add_file(&format!("{folder}/{name}"), data)
    }

    fn select(&self, key: u16) {
        let data = self.items.lock().get(key);
        let mut cursor = self.cursor.lock();
        *cursor = Cursor { key, offset: 0, data, dma_high: cursor.dma_high };
    }

    fn next_byte(&self) -> u8 {
        let mut cursor = self.cursor.lock();
        let at = cursor.offset;
        let byte = cursor.data.as_ref().and_then(|data| data.get(at)).copied();
        if byte.is_some() {
            cursor.offset += 1;
        }
        byte.unwrap_or(0)
    }

    fn write_dma(&self, offset: u64, size: u8, value: u64) {
        let address = {
            let mut cursor = self.cursor.lock();
            let high = std::mem::take(&mut cursor.dma_high);
            match (offset, size) {
                (0, 4) => {
                    cursor.dma_high = (value as u32).swap_bytes();
                    return;
                }
                (4, 4) => u64::from(high) << 32 | u64::from((value as u32).swap_bytes()),
                (0, 8) => value.swap_bytes(),
                _ => return,
            }
        };
        self.transfer(address);
    }

    /// Carries out the descriptor at `address`: control, length (32 bits each) and address
    /// (64 bits), big endian.
    fn transfer(&self, address: u64) {
        const ERROR: u32 = 1;
        const READ: u32 = 2;
        const SKIP: u32 = 4;
        const SELECT: u32 = 8;
        const WRITE: u32 = 16;
        if !self.is_ram(address, 16) {
            return;
        }
        let mut descriptor = [0; 16];
        self.memory.read(address, &mut descriptor);
        let [c0, c1, c2, c3, l0, l1, l2, l3, rest @ ..] = descriptor;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let to = u64::from_be_bytes(rest);
        if control & SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = if control & READ != 0 {
            self.copy_out(to, length)
        } else if control & WRITE != 0 {
            length == 0 // no item is writable
        } else {
            if control & SKIP != 0 {
                self.advance(length);
            }
            true
        };
        let status = if done { 0 } else { ERROR };
        self.memory.write(address, &status.to_be_bytes());
    }

    /// Copies `length` bytes of the selected item to guest RAM, zeroes past its end.
    /// Transfers to anything but RAM fail.
    fn copy_out(&self, to: u64, length: u32) -> bool {
        const STEP: usize = 64 << 10;
        let (data, from) = {
            let cursor = self.cursor.lock();
            (cursor.data.clone(), cursor.offset)
        };
        let data = data.as_deref().and_then(|data| data.get(from..)).unwrap_or(&[]);
        let zeroes = [0; 4096];
        let (mut at, mut done, length) = (to, 0usize, length as usize);
        while done < length {
            let step = match data.get(done..) {
                Some(rest) if !rest.is_empty() => &rest[..rest.len().min(length - done).min(STEP)],
                _ => &zeroes[..zeroes.len().min(length - done)],
            };
            if !self.is_ram(at, step.len() as u64) {
                return false;
            }
            self.memory.write(at, step);
            done += step.len();
            at = at.wrapping_add(step.len() as u64);
        }
        self.advance(length as u32);
        true
    }

    fn advance(&self, by: u32) {
        let mut cursor = self.cursor.lock();
        let len = cursor.data.as_ref().map_or(0, |data| data.len());
        cursor.offset = cursor.offset.saturating_add(by as usize).min(len);
    }

    fn is_ram(&self, address: u64, len: u64) -> bool {
        let view = self.memory.view();
        let Some(last) = address.checked_add(len.max(1) - 1) else { return false };
        let mut at = address;
        loop {
            match view.find(at) {
                Some(range) if matches!(range.target, Target::Ram { .. }) => {
                    if range.last >= last {
                        return true;
                    }
                    at = range.last + 1;
                }
                _ => return false,
            }
        }
    }
}

impl Handler for SelectorPorts {
    fn read(&self, _offset: u64, size: u8) -> u64 {
        // Only the data register reads, and only bytes.
        if size == 1 { self.0.next_byte().into() } else { 0 }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if (offset, size) == (0, 2) {
            self.0.select(value as u16);
        }
    }
}

impl Handler for DmaPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let wanted = DMA_SIGNATURE.iter().skip(offset as usize).take(size.into()).enumerate();
        wanted.fold(0, |value, (i, &byte)| value | u64::from(byte) << (8 * i))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.write_dma(offset, size, value);
    }
}

impl Device for FwCfg {
    fn model(&self) -> &'static Model {
        &MODEL
    }

    fn reset(&self, _kind: ResetKind) {
        self.cursor.lock().dma_high = 0;
        self.select(0);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl std::fmt::Debug for FwCfg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FwCfg(key {:#x})", self.cursor.lock().key)
    }
}
