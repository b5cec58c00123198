//! PVH kernels (Xen `docs/misc/pvh.pandoc`, `public/arch-x86/hvm/start_info.h`).

use super::elf::Image;
use super::entry::Entry;
use super::plan::{Plan, Protocol};
use super::{Request, place};
use crate::e820;
use base::Result;
use cpu::state::gpr;

const MAGIC: u32 = 0x336e_c578;

pub fn load(
    request: &Request<'_>,
    image: &Image<'_>,
    entry: u32,
    plan: &mut Plan,
    map: &[e820::Entry],
) -> Result<()> {
    image.place(plan)?;
    let line = request.command_line(usize::MAX)?;
    plan.add("command line", place::COMMAND_LINE, line)?;
    let initrd = request.place_initrd(plan, u32::MAX.into())?;
    if let Some((start, len)) = initrd {
        let words = [start, len, 0, 0];
        plan.add("module list", place::MODULES, words.into_iter().flat_map(u64::to_le_bytes).collect())?;
    }
    let mut ranges = Vec::new();
    for entry in map {
        ranges.extend(entry.to_bytes());
        ranges.extend([0; 4]);
    }
    plan.add("memory map", place::MEMORY_MAP, ranges)?;
    // Version 1: magic, version, flags, modules; list, command line, RSDP, map; entries.
    let mut info = Vec::new();
    for word in [MAGIC, 1, 0, u32::from(initrd.is_some())] {
        info.extend(word.to_le_bytes());
    }
    let list = initrd.map_or(0, |_| place::MODULES);
    for word in [list, place::COMMAND_LINE, plan.rsdp.unwrap_or(0), place::MEMORY_MAP, map.len() as u64] {
        info.extend(word.to_le_bytes());
    }
    plan.add("start info", place::INFO, info)?;
    let registers = vec![(gpr::RBX, place::INFO)];
    plan.set_entry(Entry { protocol: Protocol::Pvh, rip: entry.into(), registers })
}
