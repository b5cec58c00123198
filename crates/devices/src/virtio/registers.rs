//! The two register interfaces of a virtio PCI function: legacy (virtio 1.2 §4.1.4.10) and
//! modern (§4.1.4.3 ff.).

use super::link::{Link, STATUS_DRIVER_OK, STATUS_NEEDS_RESET};
use super::queue::{NO_VECTOR, Queue};
use super::{Virtio, features};
use base::{Mutex, MutexGuard};
use device::pci::PciCore;
use memory::Handler;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const STATUS_FEATURES_OK: u8 = 8;

/// Where the parts of the modern interface lie in their BAR, 4 KiB each.
pub const COMMON: u64 = 0;
pub const ISR: u64 = 0x1000;
pub const DEVICE: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;
pub const MODERN_SIZE: u64 = 0x4000;
/// Bytes between two queues' notification addresses.
pub const NOTIFY_STEP: u64 = 4;

/// State that both interfaces show.
pub struct Registers {
    pub core: Arc<PciCore>,
    pub link: Arc<Link>,
    pub device: Arc<dyn Virtio>,
    /// Transport features offered beside the device's.
    pub transport_features: u64,
    pub selectors: Mutex<Selectors>,
}

#[derive(Default)]
pub struct Selectors {
    device_features: u32,
    driver_features: u32,
    queue: u16,
    /// What the driver has written, before it is accepted.
    accepted: u64,
}

impl Registers {
    pub fn offered(&self) -> u64 {
        self.device.features() | self.transport_features
    }

    pub fn reset(&self) {
        self.device.reset();
        *self.selectors.lock() = Selectors::default();
        self.link.reset();
    }

    fn status(&self) -> u8 {
        self.link.status.load(Ordering::Acquire)
    }

    fn set_status(&self, value: u8, legacy: bool) {
        if value == 0 {
            return self.reset();
        }
        let old = self.status();
        let mut new = value | old & STATUS_NEEDS_RESET;
        if new & !old & STATUS_FEATURES_OK != 0 {
            let accepted = self.selectors.lock().accepted;
            let modern_ok = legacy || accepted & features::VERSION_1 != 0;
            if accepted & !self.offered() != 0 || !modern_ok {
                new &= !STATUS_FEATURES_OK;
            }
        }
        let starts = new & !old & STATUS_DRIVER_OK != 0;
        if starts || new & !old & STATUS_FEATURES_OK != 0 {
            self.accept();
        }
        self.link.status.store(new, Ordering::Release);
        if starts {
            self.device.start(self.link.accepted.load(Ordering::Acquire));
        }
    }

    fn accept(&self) {
        let accepted = self.selectors.lock().accepted & self.offered();
        self.link.accepted.store(accepted, Ordering::Release);
        for queue in &self.link.queues {
            queue.lock().event_idx = accepted & features::EVENT_IDX != 0;
        }
    }

    fn selected(&self) -> Option<MutexGuard<'_, Queue>> {
        let queue = self.selectors.lock().queue;
        self.link.queues.get(usize::from(queue)).map(Mutex::lock)
    }

    fn checked_vector(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.core.msix_vectors() { vector } else { NO_VECTOR }
    }

    fn notify(&self, queue: u64) {
        let exists = (queue as usize) < self.link.queues.len();
        if exists && !self.link.is_broken() && self.link.dma().is_allowed() {
            self.device.notify(queue as usize);
        }
    }

    fn read_config(&self, offset: u64, size: u8) -> u64 {
        let config = self.device.config();
        (0..size).fold(0, |value, i| {
            let byte = config.get((offset + u64::from(i)) as usize).copied().unwrap_or(0);
            value | u64::from(byte) << (i * 8)
        })
    }

    fn write_config(&self, offset: u64, size: u8, value: u64) {
        let end = offset + u64::from(size);
        if end <= self.device.config().len() as u64 {
            self.device.write_config(offset as usize, &value.to_le_bytes()[..usize::from(size)]);
        }
    }

    fn read_common(&self, offset: u64) -> u64 {
        let word = |selector: u32, features: u64| match selector {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        match offset {
            0x00 => self.selectors.lock().device_features.into(),
            0x04 => {
                let selector = self.selectors.lock().device_features;
                word(selector, self.offered())
            }
            0x08 => self.selectors.lock().driver_features.into(),
            0x0c => {
                let selectors = self.selectors.lock();
                word(selectors.driver_features, selectors.accepted)
            }
            0x10 => self.link.config_vector.load(Ordering::Acquire).into(),
            0x12 => self.link.queues.len() as u64,
            0x14 => self.status().into(),
            0x15 => self.link.generation.load(Ordering::Acquire).into(),
            0x16 => self.selectors.lock().queue.into(),
            0x18.. => self.read_queue(offset),
            _ => 0,
        }
    }

    fn read_queue(&self, offset: u64) -> u64 {
        let number = self.selectors.lock().queue;
        let Some(queue) = self.selected() else { return 0 };
        match offset {
            0x18 => queue.size.into(),
            0x1a => queue.vector.into(),
            0x1c => queue.ready.into(),
            0x1e => number.into(),
            0x20 => queue.desc & 0xffff_ffff,
            0x24 => queue.desc >> 32,
            0x28 => queue.avail & 0xffff_ffff,
            0x2c => queue.avail >> 32,
            0x30 => queue.used & 0xffff_ffff,
            0x34 => queue.used >> 32,
            _ => 0,
        }
    }

    fn write_common(&self, offset: u64, value: u64) {
        match offset {
            0x00 => self.selectors.lock().device_features = value as u32,
            0x08 => self.selectors.lock().driver_features = value as u32,
            0x0c if self.status() & STATUS_FEATURES_OK == 0 => {
                let mut selectors = self.selectors.lock();
                match selectors.driver_features {
                    0 => selectors.accepted = selectors.accepted >> 32 << 32 | value & 0xffff_ffff,
                    1 => selectors.accepted = selectors.accepted & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            0x10 => {
                let vector = self.checked_vector(value as u16);
                self.link.config_vector.store(vector, Ordering::Release);
            }
            0x14 => self.set_status(value as u8, false),
            0x16 => self.selectors.lock().queue = value as u16,
            0x18.. => self.write_queue(offset, value),
            _ => {}
        }
    }

    fn write_queue(&self, offset: u64, value: u64) {
        let Some(mut queue) = self.selected() else { return };
        let set_low = |old: u64| old >> 32 << 32 | value & 0xffff_ffff;
        let set_high = |old: u64| old & 0xffff_ffff | value << 32;
        match offset {
            0x1a => queue.vector = self.checked_vector(value as u16),
            0x1c => queue.ready = value == 1,
            _ if queue.ready => {}
            0x18 => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            0x20 => queue.desc = set_low(queue.desc),
            0x24 => queue.desc = set_high(queue.desc),
            0x28 => queue.avail = set_low(queue.avail),
            0x2c => queue.avail = set_high(queue.avail),
            0x30 => queue.used = set_low(queue.used),
            0x34 => queue.used = set_high(queue.used),
            _ => {}
        }
    }
}

/// The modern interface: one memory BAR with four parts.
pub struct Modern(pub Arc<Registers>);

impl Handler for Modern {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset {
            COMMON..ISR => {
                // Registers are 1, 2 or 4 bytes; a wider read takes its neighbours along.
                let first = self.0.read_common(offset);
                match (offset, size) {
                    (0x10 | 0x18 | 0x1c, 4) => first | self.0.read_common(offset + 2) << 16,
                    (0x14, 2) => first | self.0.read_common(0x15) << 8,
                    (0x14, 4) => first | self.0.read_common(0x15) << 8 | self.0.read_common(0x16) << 16,
                    _ => first,
                }
            }
            ISR => self.0.link.take_isr().into(),
            DEVICE..NOTIFY => self.0.read_config(offset - DEVICE, size),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match offset {
            COMMON..ISR => self.0.write_common(offset, value),
            DEVICE..NOTIFY => self.0.write_config(offset - DEVICE, size, value),
            NOTIFY..MODERN_SIZE => self.0.notify((offset - NOTIFY) / NOTIFY_STEP),
            _ => {}
        }
    }

    fn max_access(&self) -> u8 {
        4
    }
}

/// The legacy interface: one I/O BAR, the device's configuration after the header.
pub struct Legacy(pub Arc<Registers>);

impl Legacy {
    /// Bytes of the header; two vectors more while MSI-X is enabled.
    fn header(&self) -> u64 {
        if self.0.core.msix_enabled() { 24 } else { 20 }
    }
}

impl Handler for Legacy {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let header = self.header();
        if offset >= header {
            return self.0.read_config(offset - header, size);
        }
        match offset {
            0x00 => self.0.offered() & 0xffff_ffff,
            0x04 => self.0.selectors.lock().accepted & 0xffff_ffff,
            0x08 => self.0.selected().map_or(0, |queue| queue.desc >> 12),
            0x0c => self.0.selected().map_or(0, |queue| queue.max_size.into()),
            0x0e => self.0.selectors.lock().queue.into(),
            0x12 => self.0.status().into(),
            0x13 => self.0.link.take_isr().into(),
            0x14 => self.0.link.config_vector.load(Ordering::Acquire).into(),
            0x16 => self.0.selected().map_or(NO_VECTOR, |queue| queue.vector).into(),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let header = self.header();
        if offset >= header {
            return self.0.write_config(offset - header, size, value);
        }
        match offset {
            0x04 => {
                self.0.selectors.lock().accepted = value & 0xffff_ffff;
                self.0.accept();
            }
            0x08 if value == 0 => self.0.reset(),
            0x08 => {
                if let Some(mut queue) = self.0.selected() {
                    queue.size = queue.max_size;
                    queue.place_legacy((value & 0xffff_ffff) << 12);
                }
            }
            0x0e => self.0.selectors.lock().queue = value as u16,
            0x10 => self.0.notify(value & 0xffff),
            0x12 => self.0.set_status(value as u8, true),
            0x14 => {
                let vector = self.0.checked_vector(value as u16);
                self.0.link.config_vector.store(vector, Ordering::Release);
            }
            0x16 => {
                let vector = self.0.checked_vector(value as u16);
                if let Some(mut queue) = self.0.selected() {
                    queue.vector = vector;
                }
            }
            _ => {}
        }
    }

    fn max_access(&self) -> u8 {
        4
    }
}
