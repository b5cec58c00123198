//! Booting a kernel without firmware: Linux (bzImage, vmlinux), PVH and multiboot kernels.
//!
//! [`Request::plan`] says what goes where and how the bootstrap processor starts. At every
//! reset the board calls [`chipset::program`] (what a firmware does to the chipset, shadow
//! RAM included), [`Plan::write`], [`chipset::cpu`] on every processor's state and
//! [`Plan::enter`] on the bootstrap processor's.

pub(crate) mod bzimage;
pub mod chipset;
mod elf;
mod entry;
mod multiboot;
mod plan;
mod pvh;
#[cfg(test)]
mod tests;

pub use plan::{Plan, Protocol};

use crate::platform::Platform;
use crate::{acpi, e820, rom, smbios};
use base::{Failure, MIB, Result, bail, fail};
use std::path::Path;

/// Fixed places below 640 KiB.
mod place {
    /// Interrupt vectors of real mode.
    pub const VECTORS: u64 = 0;
    pub const BDA: u64 = 0x400;
    pub const GDT: u64 = 0x500;
    /// Zero page, PVH start info or multiboot information.
    pub const INFO: u64 = 0x7000;
    pub const PAGE_TABLES: u64 = 0x9000;
    pub const MEMORY_MAP: u64 = 0x1_0000;
    pub const MODULES: u64 = 0x1_8000;
    pub const COMMAND_LINE: u64 = 0x2_0000;
    pub const COMMAND_LINE_MAX: usize = 0xffff;
    /// Command lines of multiboot modules.
    pub const MODULE_LINES: u64 = 0x3_0000;
    pub const MODULE_LINES_MAX: usize = 0xffff;
    pub const RSDP: u64 = 0xf_0000;
    pub const SMBIOS_ENTRY: u64 = 0xf_0040;
    pub const SMBIOS_TABLES: u64 = 0xf_0080;
    /// Where vectors of PCs customarily lead if there is no service.
    pub const NO_SERVICE: u64 = 0xf_ff53;
    /// Where kernels may be loaded.
    pub const HIGH: u64 = 0x10_0000;
}

/// A BIOS service that there is not: returns with the carry flag set.
///
/// `push bp; mov bp, sp; or byte [bp + 6], 1; pop bp; iret`
const NO_SERVICE: [u8; 9] = [0x55, 0x89, 0xe5, 0x80, 0x4e, 6, 1, 0x5d, 0xcf];

/// Largest kernel and initrd files that are read.
const MAX_FILE: u64 = 2048 * MIB;

/// A kernel to boot, with the names that error texts give.
pub struct Request<'a> {
    pub platform: &'a Platform,
    pub kernel_name: String,
    pub kernel: Vec<u8>,
    /// One initrd, or the modules of a multiboot kernel.
    pub initrd: Vec<Module>,
    pub command_line: String,
    /// The CPU model has long mode.
    pub long_mode: bool,
    pub acpi: Option<&'a acpi::Tables>,
    pub smbios: Option<&'a smbios::Tables>,
}

/// An initrd or multiboot module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// File name and arguments, as the user gave them.
    pub line: String,
    pub bytes: Vec<u8>,
}

/// Reads a kernel file (`-kernel`).
pub fn read_kernel(path: &str) -> Result<Vec<u8>> {
    rom::read_limited(Path::new(path), MAX_FILE)
        .map_err(|e| e.within(format!("could not open kernel file '{path}'")))
}

/// Reads `-initrd`: one file, or for multiboot kernels `file args,file args...`.
pub fn read_initrd(option: &str, kernel: &[u8]) -> Result<Vec<Module>> {
    let read = |path: &str, line: &str| {
        let bytes = rom::read_limited(Path::new(path), MAX_FILE)
            .map_err(|e| e.within(format!("error reading initrd {path}")))?;
        Ok(Module { line: line.to_string(), bytes })
    };
    if multiboot::header(kernel).is_none() {
        return Ok(vec![read(option, option)?]);
    }
    let lines = option.split(',').map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| read(line.split(' ').next().unwrap_or(line), line)).collect()
}

impl Request<'_> {
    /// Decides where everything goes. Errors name the kernel or the initrd.
    pub fn plan(&self) -> Result<Plan> {
        let acpi_len = self.acpi.map_or(0, acpi::Tables::len).next_multiple_of(64 << 10);
        let Some(top) = self.platform.ram_low.checked_sub(acpi_len).filter(|&top| top >= 4 * MIB) else {
            bail!("not enough memory to boot a kernel");
        };
        let top = top & !0xffff;
        let mut plan = Plan::new(self.platform.ram_low, top);
        self.firmware_data(&mut plan, top)?;
        let map = e820::complete(self.platform, (top, acpi_len));
        self.kernel(&mut plan, &map).map_err(|e| self.explain(e))?;
        Ok(plan)
    }

    fn kernel(&self, plan: &mut Plan, map: &[e820::Entry]) -> Result<()> {
        if bzimage::is(&self.kernel) {
            return bzimage::load(self, plan, map);
        }
        if let Some(header) = multiboot::header(&self.kernel) {
            return multiboot::load(self, &header?, plan, map);
        }
        if elf::is(&self.kernel) {
            let image = elf::Image::parse(&self.kernel)?;
            return match image.pvh_entry()? {
                Some(entry) => pvh::load(self, &image, entry, plan, map),
                None => bzimage::load_vmlinux(self, &image, plan, map),
            };
        }
        bail!("not a Linux bzImage, ELF (PVH) or multiboot kernel")
    }

    /// Errors about the initrd speak for themselves; others are about the kernel.
    fn explain(&self, failure: Failure) -> Failure {
        if failure.text.starts_with("initrd") {
            return failure;
        }
        failure.within(format!("could not load kernel '{}'", self.kernel_name))
    }

    /// What a firmware leaves in memory: vectors, BIOS data area, ACPI and SMBIOS tables.
    fn firmware_data(&self, plan: &mut Plan, tables_at: u64) -> Result<()> {
        // Kernels that ask the BIOS from real mode (Xen) hear that it knows nothing.
        let [low, high, ..] = (place::NO_SERVICE & 0xffff).to_le_bytes();
        plan.add("interrupt vectors", place::VECTORS, [low, high, 0x00, 0xf0].repeat(256))?;
        plan.add("BIOS services", place::NO_SERVICE, NO_SERVICE.to_vec())?;
        let mut bda = vec![0; 0x100];
        // COM1, segment of the extended data area, KiB of conventional memory.
        if self.platform.isa.serial[0] {
            bda[0..2].copy_from_slice(&0x3f8u16.to_le_bytes());
        }
        bda[0x0e..0x10].copy_from_slice(&((e820::EBDA >> 4) as u16).to_le_bytes());
        bda[0x13..0x15].copy_from_slice(&639u16.to_le_bytes());
        plan.add("BIOS data area", place::BDA, bda)?;
        plan.add("extended BIOS data area", e820::EBDA, vec![1])?;
        if let Some(acpi) = self.acpi {
            let (tables, rsdp) = acpi.place(tables_at);
            plan.add_tables("ACPI tables", tables_at, tables)?;
            plan.add("RSDP", place::RSDP, rsdp)?;
            plan.rsdp = Some(place::RSDP);
        }
        if let Some(smbios) = self.smbios {
            let entry = smbios.entry_point(place::SMBIOS_TABLES as u32);
            plan.add("SMBIOS entry point", place::SMBIOS_ENTRY, entry.to_vec())?;
            plan.add("SMBIOS tables", place::SMBIOS_TABLES, smbios.structures().to_vec())?;
        }
        Ok(())
    }

    /// The command line, NUL-terminated, checked against the kernel's limit.
    fn command_line(&self, limit: usize) -> Result<Vec<u8>> {
        let len = self.command_line.len();
        let limit = limit.min(place::COMMAND_LINE_MAX);
        if len > limit {
            bail!("the command line is too long ({len} bytes; at most {limit} are possible)");
        }
        if self.command_line.contains('\0') {
            bail!("the command line contains a NUL character");
        }
        let mut bytes = self.command_line.clone().into_bytes();
        bytes.push(0);
        Ok(bytes)
    }

    /// Puts the initrd as high as possible at or below `max`; its address and length.
    fn place_initrd(&self, plan: &mut Plan, max: u64) -> Result<Option<(u64, u64)>> {
        let module = match &self.initrd[..] {
            [] => return Ok(None),
            [module] => module,
            _ => bail!("initrd: this kernel takes one initrd only"),
        };
        let need = module.bytes.len() as u64;
        if need == 0 {
            return Ok(None);
        }
        let end = max.saturating_add(1).min(plan.top());
        let free = end.saturating_sub(plan.kernel_end());
        let start = end.checked_sub(need).map(|start| start & !0xfff);
        let start = start
            .filter(|&start| start >= plan.kernel_end())
            .ok_or_else(|| fail!("initrd is too large, cannot support.(max: {free}, need {need})"))?;
        plan.add("initrd", start, module.bytes.clone())?;
        Ok(Some((start, need)))
    }
}
