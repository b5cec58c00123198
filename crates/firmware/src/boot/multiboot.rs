//! Multiboot 1 kernels (Multiboot Specification 0.6.96).

use super::elf::{self, Image};
use super::entry::Entry;
use super::plan::{Plan, Protocol};
use super::{Request, place};
use crate::e820::{self, Kind};
use base::{Result, bail, fail};
use cpu::state::gpr;

const MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header lies in this much of the file.
const SEARCH: usize = 8192;
const HAS_ADDRESSES: u32 = 1 << 16;
/// Features a loader must know: page-aligned modules, memory sizes, video mode.
const MUST: u32 = 0xffff;
const KNOWN: u32 = 3;
const LOADER_NAME: &[u8] = b"Ryokan\0";

pub struct Header {
    flags: u32,
    /// Offset in the file.
    at: usize,
    /// header, load, load end, BSS end, entry.
    addresses: [u32; 5],
}

/// The header, if there is one; an error if it asks for what is not supported.
pub fn header(kernel: &[u8]) -> Option<Result<Header>> {
    let word = |at: usize| {
        let bytes = kernel.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let at = (0..kernel.len().min(SEARCH)).step_by(4).find(|&at| {
        let sum = || Some(MAGIC.wrapping_add(word(at + 4)?).wrapping_add(word(at + 8)?));
        word(at) == Some(MAGIC) && sum() == Some(0)
    })?;
    let flags = word(at + 4)?;
    if flags & MUST & !KNOWN != 0 {
        let text = "it asks for multiboot features that are not supported";
        return Some(Err(fail!("{text} (flags {:#x})", flags & MUST & !KNOWN)));
    }
    let addresses = [12, 16, 20, 24, 28].map(|offset| word(at + offset).unwrap_or(0));
    Some(Ok(Header { flags, at, addresses }))
}

pub fn load(request: &Request<'_>, header: &Header, plan: &mut Plan, map: &[e820::Entry]) -> Result<()> {
    let entry = if header.flags & HAS_ADDRESSES != 0 {
        place_flat(&request.kernel, header, plan)?
    } else if elf::is(&request.kernel) {
        let image = Image::parse(&request.kernel)?;
        if image.is_64bit() {
            bail!("Cannot load x86-64 image, give a 32bit one.");
        }
        image.place(plan)?;
        image.entry() as u32
    } else {
        bail!("its multiboot header has no addresses, and it is no ELF file");
    };
    let modules = place_modules(request, plan)?;
    let mut line = request.kernel_name.clone().into_bytes();
    line.push(b' ');
    line.extend(request.command_line(place::COMMAND_LINE_MAX - line.len().min(0xf000) - 1)?);
    plan.add("command line", place::COMMAND_LINE, line)?;
    let ranges = memory_map(map);
    let mut info = vec![0; 120];
    let mut put = |at: usize, value: u64| info[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
    // Memory sizes, boot device unknown, command line, modules, memory map, loader's name.
    put(0, 1 | 4 | 8 | 64 | 512);
    put(4, 639);
    put(8, upper_kib(map));
    put(16, place::COMMAND_LINE);
    put(20, modules);
    put(24, place::MODULES);
    put(44, ranges.len() as u64);
    put(48, place::MEMORY_MAP);
    put(64, place::INFO + 120);
    info.extend(LOADER_NAME);
    plan.add("memory map", place::MEMORY_MAP, ranges)?;
    plan.add("multiboot information", place::INFO, info)?;
    let registers = vec![(gpr::RAX, LOADER_MAGIC), (gpr::RBX, place::INFO)];
    plan.set_entry(Entry { protocol: Protocol::Multiboot, rip: entry.into(), registers })
}

/// Loads as the header's addresses say; the entry point.
fn place_flat(kernel: &[u8], header: &Header, plan: &mut Plan) -> Result<u32> {
    let [header_at, load, load_end, bss_end, entry] = header.addresses;
    let invalid = || fail!("invalid multiboot addresses");
    let before = header_at.checked_sub(load).ok_or_else(invalid)?;
    let start = header.at.checked_sub(before as usize).ok_or_else(invalid)?;
    let rest = &kernel[start..];
    let len = match load_end {
        0 => rest.len(),
        end => end.checked_sub(load).ok_or_else(invalid)? as usize,
    };
    let bytes = rest.get(..len).ok_or_else(|| fail!("the file is cut short"))?;
    let memory = match bss_end {
        0 => len as u64,
        end => u64::from(end.checked_sub(load).ok_or_else(invalid)?).max(len as u64),
    };
    plan.add_kernel(load.into(), bytes, memory)?;
    Ok(entry)
}

/// Modules follow the kernel, each on a page; how many there are.
fn place_modules(request: &Request<'_>, plan: &mut Plan) -> Result<u64> {
    let (mut list, mut lines) = (Vec::new(), Vec::new());
    for module in &request.initrd {
        let start = plan.kernel_end();
        let end = start + module.bytes.len() as u64;
        if end > plan.top() {
            let (free, need) = (plan.top() - start, module.bytes.len());
            bail!("initrd is too large, cannot support.(max: {free}, need {need})");
        }
        plan.add("module", start, module.bytes.clone())?;
        plan.reserve_kernel(end)?;
        for word in [start, end, place::MODULE_LINES + lines.len() as u64, 0] {
            list.extend((word as u32).to_le_bytes());
        }
        lines.extend(module.line.bytes());
        lines.push(0);
    }
    if lines.len() > place::MODULE_LINES_MAX || list.len() > 0x4000 {
        bail!("initrd: too many multiboot modules");
    }
    plan.add("module list", place::MODULES, list)?;
    plan.add("module command lines", place::MODULE_LINES, lines)?;
    Ok(request.initrd.len() as u64)
}

/// KiB from 1 MiB up to the first hole.
fn upper_kib(map: &[e820::Entry]) -> u64 {
    let first = map.iter().find(|entry| entry.start == place::HIGH && entry.kind == Kind::Ram);
    first.map_or(0, |entry| entry.len >> 10)
}

fn memory_map(map: &[e820::Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in map {
        bytes.extend(20u32.to_le_bytes());
        bytes.extend(entry.to_bytes());
    }
    bytes
}
