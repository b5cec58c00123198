//! The cache of decoded blocks of one vCPU.

use crate::core::Core;
use crate::op::{Op, Stop};
use crate::tlb::code_index;
use cpu::state::seg;
use iced_x86::Instruction;
use memory::{HostPage, UNWATCHED};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where a block's bytes came from, to see whether they are still the same.
#[derive(Clone, Copy)]
pub struct CodePage {
    pub page: HostPage,
    pub version: &'static AtomicU32,
    /// Guest physical address of the page.
    pub physical: u64,
}

/// What entering a block needs.
pub struct Head {
    pub rip: u64,
    pub start: u32,
    pub len: u32,
    pub count: u32,
    pub mode: u32,
    pub first: CodePage,
    pub seen: Cell<u32>,
    /// Entries so far while a faster engine waits for warm blocks ([`COLD`]: never reported).
    pub heat: Cell<u32>,
    /// The page that the last instruction crosses into. Such blocks are never linked.
    pub second: Option<(CodePage, Cell<u32>)>,
    /// The code bytes: range in [`Cache::bytes`].
    pub bytes: (u32, u16),
    /// The page is [`UNWATCHED`]: `seen` is no version, and the bytes are compared at each entry.
    /// Such blocks end with their first store.
    pub checked: bool,
}

impl Head {
    /// Whether the bytes of the first page, from byte `at`, are still those of the block.
    pub fn holds(&self, cache: &Cache, at: usize) -> bool {
        let (start, len) = (self.bytes.0 as usize, usize::from(self.bytes.1).min(4096 - at));
        cache.bytes.get(start..start + len).is_some_and(|bytes| self.first.page.holds(at, bytes))
    }

    /// Whether the bytes of the second page are still those of the block, which begins at byte
    /// `at` of the first.
    pub fn holds_second(&self, cache: &Cache, at: usize) -> bool {
        let (start, end) = (self.bytes.0 as usize, self.bytes.0 as usize + usize::from(self.bytes.1));
        let Some((second, _)) = &self.second else { return true };
        cache.bytes.get(start + 4096 - at..end).is_some_and(|bytes| second.page.holds(0, bytes))
    }
}

/// [`Head::heat`] of a block that a faster engine has refused.
pub const COLD: u32 = u32::MAX;

type Key = (u64, u64, u32);

const JUMP_SLOTS: usize = 4096;
const MAX_OPS: usize = 1 << 18;

#[derive(Default)]
pub struct Cache {
    pub ops: Vec<Op>,
    pub insns: Vec<Instruction>,
    /// Slot 0 is never used: link 0 means "not linked".
    pub heads: Vec<Head>,
    pub bytes: Vec<u8>,
    /// Room for the instructions of the block that is being decoded.
    pub decoded: Vec<Instruction>,
    /// How to run the SIMD and x87 instructions.
    pub plans: Vec<cpu_host::Plan>,
    map: HashMap<Key, u32, std::hash::BuildHasherDefault<Mixer>>,
    jumps: Vec<Cell<u32>>,
    pub flushes: u64,
}

/// A multiplying hasher for the block map; keys are not chosen by an adversary's wish to
/// collide with more than its own vCPU.
#[derive(Default)]
pub struct Mixer(u64);

impl std::hash::Hasher for Mixer {
    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    #[inline]
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

impl Cache {
    /// The long lists have their room at once: it costs nothing until it is used, and they need
    /// not move while they grow.
    pub fn new() -> Self {
        let cache = Cache {
            ops: Vec::with_capacity(MAX_OPS + MAX_OPS / 64),
            insns: Vec::with_capacity(MAX_OPS + MAX_OPS / 64),
            heads: Vec::with_capacity(MAX_OPS / 2),
            bytes: Vec::with_capacity(4 * MAX_OPS),
            jumps: vec![Cell::new(0); JUMP_SLOTS],
            ..Cache::default()
        };
        memory::prefer_large_pages(&cache.ops);
        memory::prefer_large_pages(&cache.insns);
        memory::prefer_large_pages(&cache.heads);
        cache
    }

    pub fn is_full(&self) -> bool {
        self.ops.len() >= MAX_OPS
    }

    pub fn clear(&mut self) {
        self.ops.clear();
        self.insns.clear();
        self.heads.clear();
        self.bytes.clear();
        self.plans.clear();
        self.map.clear();
        self.jumps.iter().for_each(|slot| slot.set(0));
        self.flushes += 1;
    }

    fn slot(&self, rip: u64) -> &Cell<u32> {
        &self.jumps[(rip ^ rip >> 12) as usize % JUMP_SLOTS]
    }

    /// The block that was last found at `rip`, unverified (0: none).
    #[inline(always)]
    pub fn guess(&self, rip: u64) -> u32 {
        self.jumps.get((rip ^ rip >> 12) as usize % JUMP_SLOTS).map_or(0, Cell::get)
    }

    pub fn find(&self, physical: u64, rip: u64, mode: u32) -> Option<u32> {
        let block = self.map.get(&(physical, rip, mode)).copied()?;
        self.slot(rip).set(block);
        Some(block)
    }

    /// Adds a block whose ops and bytes were appended already.
    pub fn add(&mut self, physical: u64, head: Head) -> u32 {
        let key = (physical, head.rip, head.mode);
        let block = self.heads.len() as u32;
        self.slot(head.rip).set(block);
        self.heads.push(head);
        self.map.insert(key, block);
        block
    }

    pub fn forget(&mut self, physical: u64, rip: u64, mode: u32) {
        self.map.remove(&(physical, rip, mode));
        self.slot(rip).set(0);
    }
}

impl Core {
    /// Whether linear page of `rip` is known to lead to `physical` (a page) for execution.
    #[inline(always)]
    pub fn executes_at(&self, rip: u64, physical: u64) -> bool {
        let mut linear = rip.wrapping_add(self.sc[seg::CS].base);
        if self.mode & 3 != 2 {
            linear &= 0xffff_ffff;
        }
        let entry = &self.tlb.code[code_index(linear)];
        entry.tag == linear & !0xfff && entry.physical == physical
    }
}

/// Runs block `block` after the checks that every entry makes.
#[inline(always)]
pub fn enter(core: &mut Core, cache: &Cache, block: u32) -> Stop {
    let Some(head) = cache.heads.get(block as usize) else { return Stop::Resolve };
    enter_head(core, cache, head, block)
}

#[inline(always)]
pub fn enter_head<'a>(core: &mut Core, cache: &'a Cache, head: &'a Head, block: u32) -> Stop {
    core.budget -= i64::from(head.count);
    if core.budget < 0 || !core.bus.link.requests().is_empty() {
        core.budget += i64::from(head.count);
        core.rip = head.rip;
        return Stop::Poll;
    }
    let version = head.first.version.load(Ordering::Acquire);
    if version != head.seen.get() && !(head.checked && still_holds(core, cache, head, version)) {
        core.budget += i64::from(head.count);
        core.rip = head.rip;
        core.goto_block = block;
        return Stop::Stale;
    }
    if core.heat_limit != 0 {
        let heat = head.heat.get();
        if heat < core.heat_limit {
            head.heat.set(heat + 1);
        } else if heat != COLD {
            core.budget += i64::from(head.count);
            core.rip = head.rip;
            core.goto_block = block;
            return Stop::Warm;
        }
    }
    let start = head.start as usize;
    let Some(ops) = cache.ops.get(start..start + head.len as usize) else { return Stop::Resolve };
    #[cfg(tail_dispatch)]
    {
        let [op, rest @ ..] = ops else { return Stop::Resolve };
        (op.run)(core, cache, op, rest)
    }
    #[cfg(not(tail_dispatch))]
    {
        let _ = ops;
        core.goto_block = block;
        Stop::Goto
    }
}

/// Whether a block of an unwatched page has the bytes that it was made of.
#[inline(never)]
fn still_holds(core: &Core, cache: &Cache, head: &Head, version: u32) -> bool {
    let at = (head.rip.wrapping_add(core.sc[seg::CS].base) & 0xfff) as usize;
    version & UNWATCHED != 0 && head.holds(cache, at)
}

/// Leaves the block through link `n` of `op` to `target`.
#[inline(always)]
pub fn follow<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, n: usize, target: u64) -> Stop {
    let block = op.links[n].get();
    if block != 0
        && let Some(head) = cache.heads.get(block as usize)
        && (op.aux & crate::op::FAR_LINK[n] == 0 || core.executes_at(target, head.first.physical))
    {
        return enter_head(core, cache, head, block);
    }
    core.rip = target;
    core.link_from = (op.extra, n as u8);
    Stop::Link
}

/// Leaves the block to an address that was computed.
#[inline(always)]
pub fn follow_indirect(core: &mut Core, cache: &Cache, target: u64) -> Stop {
    let block = cache.guess(target);
    if block != 0
        && let Some(head) = cache.heads.get(block as usize)
        && head.rip == target
        && head.mode == core.mode
        && head.second.is_none()
        && core.executes_at(target, head.first.physical)
    {
        return enter_head(core, cache, head, block);
    }
    core.rip = target;
    Stop::Resolve
}
