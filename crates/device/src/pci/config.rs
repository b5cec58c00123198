use base::{Result, bail};
use memory::{MappingId, Target};

/// Configuration header registers (PCI 3.0 §6.1).
pub mod regs {
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const REVISION: u16 = 0x08;
    pub const CACHE_LINE: u16 = 0x0c;
    pub const HEADER_TYPE: u16 = 0x0e;
    pub const BAR0: u16 = 0x10;
    pub const SUBSYSTEM: u16 = 0x2c;
    pub const ROM: u16 = 0x30;
    pub const CAPABILITIES: u16 = 0x34;
    pub const INTERRUPT_LINE: u16 = 0x3c;
    pub const INTERRUPT_PIN: u16 = 0x3d;

    pub const COMMAND_IO: u16 = 1;
    pub const COMMAND_MEMORY: u16 = 2;
    pub const COMMAND_MASTER: u16 = 4;
    pub const COMMAND_SERR: u16 = 1 << 8;
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
    pub const STATUS_INTERRUPT: u16 = 1 << 3;
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;

    /// Index of the expansion ROM among the regions.
    pub const ROM_INDEX: usize = 6;
}

/// Who a function is (PCI 3.0 §6.2.1).
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
}

impl Identity {
    /// An identity with the customary subsystem 1af4:1100.
    pub const fn new(vendor: u16, device: u16, revision: u8, class: u32) -> Self {
        Identity { vendor, device, revision, class, subsystem: (0x1af4, 0x1100) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    Io,
    Memory32,
    Memory32Prefetch,
    Memory64,
    Memory64Prefetch,
    Rom,
}

impl RegionKind {
    pub fn is_64(self) -> bool {
        matches!(self, RegionKind::Memory64 | RegionKind::Memory64Prefetch)
    }

    fn flags(self) -> u32 {
        match self {
            RegionKind::Io => 1,
            RegionKind::Memory32 | RegionKind::Rom => 0,
            RegionKind::Memory32Prefetch => 8,
            RegionKind::Memory64 => 4,
            RegionKind::Memory64Prefetch => 12,
        }
    }
}

/// A base address register as `query-pci` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// 0-5, or 6 for the expansion ROM.
    pub index: usize,
    pub kind: RegionKind,
    pub size: u64,
    /// Where it is decoded at present, if anywhere.
    pub address: Option<u64>,
}

pub(super) struct Bar {
    pub kind: RegionKind,
    pub size: u64,
    pub target: Target,
    pub name: String,
    /// Present mapping and its address.
    pub mapped: Option<(MappingId, u64)>,
}

/// Registers with their write laws; knows no address space.
pub(super) struct Space {
    bytes: Vec<u8>,
    /// Bits that software may change.
    writable: Vec<u8>,
    /// Bits that writing one clears.
    clearable: Vec<u8>,
    /// Values after reset.
    initial: Vec<u8>,
    next_capability: u16,
}

impl Space {
    pub fn new(size: usize) -> Self {
        let zero = || vec![0; size];
        Space { bytes: zero(), writable: zero(), clearable: zero(), initial: zero(), next_capability: 0x40 }
    }

    fn slice(from: &[u8], offset: u16, size: usize) -> u32 {
        let at = usize::from(offset);
        let mut value = [0; 4];
        if let Some(bytes) = at.checked_add(size).and_then(|end| from.get(at..end)) {
            value[..size].copy_from_slice(bytes);
            u32::from_le_bytes(value)
        } else {
            u32::MAX
        }
    }

    /// Reads 1, 2 or 4 bytes; all ones past the end.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        Self::slice(&self.bytes, offset, usize::from(size.min(4)))
    }

    /// The device's own change of a register.
    pub fn set(&mut self, offset: u16, size: u8, value: u32) {
        let at = usize::from(offset);
        if let Some(to) = self.bytes.get_mut(at..at + usize::from(size)) {
            to.copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
        }
    }

    /// Sets a register's value now and after reset.
    pub fn init(&mut self, offset: u16, bytes: &[u8]) {
        let at = usize::from(offset);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.initial[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn set_writable(&mut self, offset: u16, mask: &[u8]) {
        let at = usize::from(offset);
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    pub fn set_clearable(&mut self, offset: u16, mask: &[u8]) {
        let at = usize::from(offset);
        self.clearable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// A write by software.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        for i in 0..usize::from(size.min(4)) {
            let at = usize::from(offset) + i;
            let new = (value >> (i * 8)) as u8;
            let Some(byte) = self.bytes.get_mut(at) else { return };
            let mask = self.writable[at];
            *byte = (*byte & !mask) | (new & mask);
            *byte &= !(new & self.clearable[at]);
        }
    }

    /// Puts the capability into the list: at the next free place or, with `at`, at that one.
    pub fn add_capability(&mut self, id: u8, at: Option<u16>, body: &[u8]) -> Result<u16> {
        let at = at.unwrap_or_else(|| self.next_capability.next_multiple_of(4));
        let end = usize::from(at) + 2 + body.len();
        if at < 0x40 || end > 0x100 {
            bail!("PCI capability {id:#x} does not fit");
        }
        let head = self.bytes[usize::from(regs::CAPABILITIES)];
        self.init(at, &[id, head]);
        self.init(at + 2, body);
        self.init(regs::CAPABILITIES, &[at as u8]);
        let status = self.bytes[usize::from(regs::STATUS)] | regs::STATUS_CAPABILITIES as u8;
        self.init(regs::STATUS, &[status]);
        self.next_capability = self.next_capability.max(end as u16);
        Ok(at)
    }

    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial);
    }

    pub fn init_bar(&mut self, index: usize, kind: RegionKind, size: u64) {
        let mask = !(size - 1);
        if index == regs::ROM_INDEX {
            self.set_writable(regs::ROM, &((mask as u32 & !0x7ff) | 1).to_le_bytes());
            return;
        }
        let at = regs::BAR0 + index as u16 * 4;
        self.init(at, &kind.flags().to_le_bytes());
        let flags = if kind == RegionKind::Io { 3 } else { 15 };
        self.set_writable(at, &(mask as u32 & !flags).to_le_bytes());
        if kind.is_64() {
            self.set_writable(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
    }

    /// Where a BAR decodes at present (PCI 3.0 §6.2.5; a base of 0 or one that ends at or
    /// past the top of its space decodes nothing).
    pub fn decoded(&self, index: usize, bar: &Bar) -> Option<u64> {
        let command = self.read(regs::COMMAND, 2) as u16;
        let enable = if bar.kind == RegionKind::Io { regs::COMMAND_IO } else { regs::COMMAND_MEMORY };
        if command & enable == 0 {
            return None;
        }
        let at = if index == regs::ROM_INDEX { regs::ROM } else { regs::BAR0 + index as u16 * 4 };
        let low = self.read(at, 4);
        let base = match bar.kind {
            RegionKind::Rom if low & 1 == 0 => return None,
            RegionKind::Rom => u64::from(low & !0x7ff),
            RegionKind::Io => u64::from(low & !3),
            kind if kind.is_64() => u64::from(low & !15) | u64::from(self.read(at + 4, 4)) << 32,
            _ => u64::from(low & !15),
        };
        let last = base.checked_add(bar.size - 1)?;
        let end = match bar.kind {
            RegionKind::Io => 0xffff,
            kind if kind.is_64() => u64::MAX - 1,
            _ => u64::from(u32::MAX) - 1,
        };
        (base != 0 && last <= end).then_some(base)
    }
}
