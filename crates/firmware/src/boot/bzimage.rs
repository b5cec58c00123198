//! The Linux x86 boot protocol (kernel documentation, `arch/x86/boot.rst`), 2.06 and later.

use super::elf::Image;
use super::entry::Entry;
use super::plan::{Plan, Protocol};
use super::{Request, place};
use crate::e820;
use base::{Result, bail, fail};
use cpu::state::gpr;

/// Offsets in the file's first sectors and, from the header on, in the zero page.
mod at {
    pub const ACPI_RSDP: usize = 0x70;
    pub const E820_COUNT: usize = 0x1e8;
    pub const HEADER: usize = 0x1f1;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP_LEN: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADER: usize = 0x210;
    pub const LOAD_FLAGS: usize = 0x211;
    pub const RAMDISK: usize = 0x218;
    pub const COMMAND_LINE: usize = 0x228;
    pub const INITRD_MAX: usize = 0x22c;
    pub const ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const XLOAD_FLAGS: usize = 0x236;
    pub const COMMAND_LINE_SIZE: usize = 0x238;
    pub const PREFERRED: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const HEADER_END: usize = 0x290;
    pub const E820: usize = 0x2d0;
}
const E820_MAX: usize = 128;
/// A loader without an assigned number.
const UNREGISTERED_LOADER: u8 = 0xff;

struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let field = self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
        field.unwrap_or([0; N])
    }
    fn u8(&self, at: usize) -> u8 {
        self.bytes::<1>(at)[0]
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
    fn version(&self) -> u16 {
        self.u16(at::VERSION)
    }

    /// Memory up to which the kernel unpacks itself, loaded at [`place::HIGH`].
    fn memory_end(&self) -> Result<u64> {
        if self.version() < 0x20a {
            return Ok(0);
        }
        let alignment = u64::from(self.u32(at::ALIGNMENT)).max(1);
        let start = match self.u8(at::RELOCATABLE) {
            0 => Some(self.u64(at::PREFERRED)),
            _ => place::HIGH.checked_next_multiple_of(alignment).map(|at| at.max(self.u64(at::PREFERRED))),
        };
        start
            .and_then(|start| start.checked_add(self.u32(at::INIT_SIZE).into()))
            .ok_or_else(|| fail!("invalid kernel header"))
    }
}

pub fn is(kernel: &[u8]) -> bool {
    let header = Header(kernel);
    header.bytes(at::MAGIC) == *b"HdrS" && header.u16(at::BOOT_FLAG) == 0xaa55
}

/// The real-mode part and the rest, if they are there.
pub fn parts(kernel: &[u8]) -> Option<(&[u8], &[u8])> {
    let sectors = match Header(kernel).u8(at::HEADER) {
        0 => 4,
        sectors => usize::from(sectors),
    };
    kernel.split_at_checked((sectors + 1) * 512).filter(|(_, payload)| payload.len() > 0x200)
}

pub fn load(request: &Request<'_>, plan: &mut Plan, map: &[e820::Entry]) -> Result<()> {
    let kernel = &request.kernel[..];
    let header = Header(kernel);
    let version = header.version();
    if version < 0x206 {
        bail!("its boot protocol, {}.{:02}, is older than 2.06", version >> 8, version & 0xff);
    }
    let header_end = at::MAGIC + usize::from(header.u8(at::JUMP_LEN));
    let payload = parts(kernel).map(|(_, payload)| payload);
    let Some(payload) = payload.filter(|_| header_end <= kernel.len()) else {
        bail!("invalid kernel header");
    };
    if header.u8(at::LOAD_FLAGS) & 1 == 0 {
        bail!("it is a zImage, which loads below 1 MiB; only bzImages are supported");
    }
    plan.add_kernel(place::HIGH, payload, 0)?;
    plan.reserve_kernel(header.memory_end()?)?;
    let mut page = vec![0; 4096];
    let header_end = header_end.min(at::HEADER_END);
    page[at::HEADER..header_end].copy_from_slice(&kernel[at::HEADER..header_end]);
    let limit = header.u32(at::COMMAND_LINE_SIZE) as usize;
    let initrd_max = header.u32(at::INITRD_MAX).into();
    finish_page(request, plan, map, page, (limit, initrd_max))?;
    let long = request.long_mode && version >= 0x20c && header.u16(at::XLOAD_FLAGS) & 1 != 0;
    let (protocol, rip) = match long {
        true => (Protocol::Linux64, place::HIGH + 0x200),
        false => (Protocol::Linux32, place::HIGH),
    };
    plan.set_entry(Entry { protocol, rip, registers: vec![(gpr::RSI, place::INFO)] })
}

/// An uncompressed 64-bit kernel without a PVH note, entered as after unpacking.
pub fn load_vmlinux(
    request: &Request<'_>,
    image: &Image<'_>,
    plan: &mut Plan,
    map: &[e820::Entry],
) -> Result<()> {
    if !image.is_64bit() {
        bail!("Error loading uncompressed kernel without PVH ELF Note");
    }
    if !request.long_mode {
        bail!("it is a 64-bit kernel, but the CPU model has no long mode");
    }
    image.place(plan)?;
    let mut page = vec![0; 4096];
    page[at::BOOT_FLAG..at::BOOT_FLAG + 2].copy_from_slice(&0xaa55u16.to_le_bytes());
    page[at::MAGIC..at::MAGIC + 4].copy_from_slice(b"HdrS");
    page[at::VERSION..at::VERSION + 2].copy_from_slice(&0x20cu16.to_le_bytes());
    page[at::ALIGNMENT..at::ALIGNMENT + 4].copy_from_slice(&0x100_0000u32.to_le_bytes());
    finish_page(request, plan, map, page, (2047, u32::MAX.into()))?;
    let rip = image.physical_entry();
    plan.set_entry(Entry { protocol: Protocol::Linux64, rip, registers: vec![(gpr::RSI, place::INFO)] })
}

/// Fills in what the loader tells and places zero page, command line and initrd.
fn finish_page(
    request: &Request<'_>,
    plan: &mut Plan,
    map: &[e820::Entry],
    mut page: Vec<u8>,
    (line_limit, initrd_max): (usize, u64),
) -> Result<()> {
    let line = request.command_line(line_limit)?;
    plan.add("command line", place::COMMAND_LINE, line)?;
    page[at::LOADER] = UNREGISTERED_LOADER;
    page[at::COMMAND_LINE..at::COMMAND_LINE + 4].copy_from_slice(&(place::COMMAND_LINE as u32).to_le_bytes());
    if let Some((start, len)) = request.place_initrd(plan, initrd_max)? {
        page[at::RAMDISK..at::RAMDISK + 4].copy_from_slice(&(start as u32).to_le_bytes());
        page[at::RAMDISK + 4..at::RAMDISK + 8].copy_from_slice(&(len as u32).to_le_bytes());
    }
    if let Some(rsdp) = plan.rsdp {
        page[at::ACPI_RSDP..at::ACPI_RSDP + 8].copy_from_slice(&rsdp.to_le_bytes());
    }
    let map = &map[..map.len().min(E820_MAX)];
    page[at::E820_COUNT] = map.len() as u8;
    for (i, entry) in map.iter().enumerate() {
        let at = at::E820 + 20 * i;
        page[at..at + 20].copy_from_slice(&entry.to_bytes());
    }
    plan.add("zero page", place::INFO, page)
}
