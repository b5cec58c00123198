//! `info tlb` and `info mem`: the page tables as the CPU would walk them (SDM vol. 3A ch. 4).

use super::push;
use crate::Session;
use crate::commands::registers::state;
use crate::parse::Args;
use base::Result;
use cpu::CpuState;
use memory::AddressSpace;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries looked at before giving up: tables may refer to themselves.
const MAX_ENTRIES: u64 = 1 << 22;

/// A mapped page: linear address, entry, size, rights of all levels together.
struct Leaf {
    linear: u64,
    entry: u64,
    size: u64,
    rights: u64,
}

struct Walk<'a> {
    space: &'a AddressSpace,
    /// (log2 of the page size, index bits) of each level, top first.
    levels: Vec<(u32, u32)>,
    entry_size: u8,
    large_at: &'a [usize],
    looked: u64,
}

impl Walk<'_> {
    fn table(
        &mut self,
        level: usize,
        table: u64,
        linear: u64,
        rights: u64,
        each: &mut dyn FnMut(Leaf) -> bool,
    ) -> bool {
        let (shift, bits) = self.levels[level];
        for index in 0..1u64 << bits {
            self.looked += 1;
            if self.looked > MAX_ENTRIES {
                return false;
            }
            let entry = self.space.load(table + index * u64::from(self.entry_size), self.entry_size);
            if entry & PRESENT == 0 {
                continue;
            }
            let at = canonical(linear | index << shift, self.levels.len());
            // PAE's top level has no rights of its own.
            let own = if self.levels.len() == 3 && level == 0 { WRITE | USER } else { entry };
            let rights = rights & own & (WRITE | USER);
            let last = level + 1 == self.levels.len();
            if last || (entry & LARGE != 0 && self.large_at.contains(&level)) {
                if !each(Leaf { linear: at, entry, size: 1 << shift, rights }) {
                    return false;
                }
            } else if !self.table(level + 1, entry & ADDRESS, at, rights, each) {
                return false;
            }
        }
        true
    }
}

fn canonical(linear: u64, levels: usize) -> u64 {
    let bits = match levels {
        4 => 48,
        5 => 57,
        _ => return linear,
    };
    ((linear << (64 - bits)) as i64 >> (64 - bits)) as u64
}

/// Calls `each` for every mapped page in ascending order; `None` without paging.
fn walk(session: &Session, s: &CpuState, each: &mut dyn FnMut(Leaf) -> bool) -> Option<bool> {
    let space = &session.machine().services.memory;
    if s.cr0 >> 31 & 1 == 0 {
        return None;
    }
    let pae = s.cr4 >> 5 & 1 != 0;
    let long = s.efer >> 10 & 1 != 0;
    let five = long && s.cr4 >> 12 & 1 != 0;
    let (levels, entry_size, large_at): (Vec<(u32, u32)>, u8, &[usize]) = match (long, pae) {
        (true, _) if five => (vec![(48, 9), (39, 9), (30, 9), (21, 9), (12, 9)], 8, &[2, 3]),
        (true, _) => (vec![(39, 9), (30, 9), (21, 9), (12, 9)], 8, &[1, 2]),
        (false, true) => (vec![(30, 2), (21, 9), (12, 9)], 8, &[1]),
        (false, false) if s.cr4 >> 4 & 1 != 0 => (vec![(22, 10), (12, 10)], 4, &[0]),
        (false, false) => (vec![(22, 10), (12, 10)], 4, &[]),
    };
    let root = match (long, pae) {
        (true, _) => s.cr3 & ADDRESS,
        (false, true) => s.cr3 & 0xffff_ffe0,
        (false, false) => s.cr3 & 0xffff_f000,
    };
    let mut walk = Walk { space, levels, entry_size, large_at, looked: 0 };
    Some(walk.table(0, root, 0, WRITE | USER, each))
}

pub async fn tlb(session: Session, _: Args) -> Result<String> {
    let s = state(&session, session.cpu())?;
    let mut out = String::new();
    let done = walk(&session, &s, &mut |leaf| {
        let flags: String =
            [(63, 'X'), (8, 'G'), (7, 'P'), (6, 'D'), (5, 'A'), (4, 'C'), (3, 'T'), (2, 'U'), (1, 'W')]
                .iter()
                .map(|&(bit, letter)| if leaf.entry >> bit & 1 != 0 { letter } else { '-' })
                .collect();
        let physical = leaf.entry & ADDRESS & !(leaf.size - 1);
        push(&mut out, &format!("{:016x}: {physical:016x} {flags}\n", leaf.linear))
    });
    Ok(if done.is_none() { "PG disabled\n".into() } else { out })
}

pub async fn mem(session: Session, _: Args) -> Result<String> {
    let s = state(&session, session.cpu())?;
    let mut out = String::new();
    let mut run: Option<(u64, u64, u64)> = None;
    let show = |out: &mut String, (start, size, rights): (u64, u64, u64)| {
        let user = if rights & USER != 0 { 'u' } else { '-' };
        let write = if rights & WRITE != 0 { 'w' } else { '-' };
        push(out, &format!("{start:016x}-{:016x} {size:016x} {user}r{write}\n", start.wrapping_add(size)))
    };
    let done = walk(&session, &s, &mut |leaf| match &mut run {
        Some((start, size, rights)) if start.wrapping_add(*size) == leaf.linear && *rights == leaf.rights => {
            *size += leaf.size;
            true
        }
        _ => {
            let last = run.replace((leaf.linear, leaf.size, leaf.rights));
            last.is_none_or(|last| show(&mut out, last))
        }
    });
    if let Some(last) = run {
        show(&mut out, last);
    }
    Ok(if done.is_none() { "PG disabled\n".into() } else { out })
}
