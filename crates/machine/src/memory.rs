//! Guest RAM and ROM of one machine.

use crate::{MemoryBackend, Objects};
use base::{GIB, Mutex, Result, bail, fail};
use memory::{AddressSpace, RamBlock};
use spec::machine::MachineSpec;
use std::sync::Arc;

/// Where guest RAM lies: below and above the PCI hole under 4 GiB.
pub struct Memory {
    /// All RAM in one block, `pc.ram`; `None` without RAM (`-machine none`).
    pub ram: Option<RamBlock>,
    /// Bytes of RAM below 4 GiB.
    pub below_4g: u64,
    /// Bytes of RAM from 4 GiB up.
    pub above_4g: u64,
    roms: Mutex<Vec<Rom>>,
}

/// A ROM image and where it lies, for `info roms` and to restore it at reset.
#[derive(Clone)]
pub struct Rom {
    pub name: String,
    pub address: u64,
    pub block: RamBlock,
    pub image: Arc<[u8]>,
}

impl Memory {
    pub fn none() -> Self {
        Memory { ram: None, below_4g: 0, above_4g: 0, roms: Mutex::default() }
    }

    /// The machine's RAM: of the object that `-machine memory-backend=` names, or `pc.ram`.
    pub(crate) fn ram(spec: &MachineSpec, objects: &Objects) -> Result<RamBlock> {
        let size = spec.memory.size;
        let Some(id) = spec.options.get("memory-backend").and_then(|id| id.as_str()) else {
            if size == 0 || size > 1 << 44 {
                bail!("invalid memory size");
            }
            let ram = RamBlock::new("pc.ram", size)?;
            if spec.switch("dump-guest-core") == Some(false) {
                ram.set_dump(false)?;
            }
            if spec.switch("mem-merge") == Some(true) {
                ram.set_merge();
            }
            if spec.memory.prealloc {
                ram.populate()?;
            }
            return Ok(ram);
        };
        let backend = objects.find(id).and_then(|object| object.downcast::<MemoryBackend>().ok());
        let backend = backend.ok_or_else(|| fail!("Memory backend '{id}' not found"))?;
        if backend.block.len() != size {
            bail!("Machine memory size does not match the size of the memory backend");
        }
        backend.claim().ok_or_else(|| fail!("memory backend {id} is used multiple times"))
    }

    /// Maps RAM, at most `low_limit` bytes of it below 4 GiB.
    pub fn map(space: &AddressSpace, ram: RamBlock, low_limit: u64) -> Result<Memory> {
        let size = ram.len();
        let below_4g = size.min(low_limit);
        let above_4g = size - below_4g;
        space.edit(|edit| {
            let low = memory::Target::Ram { block: ram, offset: 0 };
            edit.map("ram-below-4g", 0, below_4g, 0, low);
            if above_4g > 0 {
                let high = memory::Target::Ram { block: ram, offset: below_4g };
                edit.map("ram-above-4g", 4 * GIB, above_4g, 0, high);
            }
        });
        Ok(Memory { ram: Some(ram), below_4g, above_4g, roms: Mutex::default() })
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.below_4g + self.above_4g
    }

    /// Remembers a ROM; it is written into its block now and at each reset.
    pub fn add_rom(&self, rom: Rom) {
        rom.block.write(0, &rom.image);
        self.roms.lock().push(rom);
    }

    pub fn roms(&self) -> Vec<Rom> {
        self.roms.lock().clone()
    }

    pub(crate) fn restore_roms(&self) {
        for rom in self.roms() {
            rom.block.write(0, &rom.image);
        }
    }
}
