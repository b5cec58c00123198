//! Translated blocks, shared by the vCPUs of a machine: where they are, what leads to them,
//! and how they end when their bytes change.

use crate::area::Area;
use crate::layout::INDIRECT_SLOTS;
use crate::near::Near;
use crate::stubs::Stubs;
use crate::tables::branch_slot;
use cpu_interpreter::Mixer;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::time::{Duration, Instant};

/// (host address of the first byte, RIP, mode key)
pub type Key = (usize, u64, u32);

/// Where the flags are when a link is gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFlags {
    /// Nobody asks for them.
    Dead,
    /// In the host's.
    Live,
    /// In the state page: they may be asked for, or not.
    Away,
}

impl LinkFlags {
    pub fn live(live: bool) -> LinkFlags {
        if live { LinkFlags::Live } else { LinkFlags::Dead }
    }
}

/// What a way out of a block stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A memory access; `table`: through the table of writable pages.
    Access { write: bool, table: bool },
    /// On at the same instruction in the variant without groups.
    Plain { patch: u32 },
    /// The interpreter executes the instruction.
    Interpret,
    /// Likewise; the block goes on only if the x87 state is in the host's registers then.
    X87,
    /// An indirect branch, and what it did to RSP (the branch may turn out to fault).
    Indirect { moved: i32 },
    /// A direct branch to `target`.
    ///
    /// `patch` is the rel32 of the jump; `id` (if the target lies in another page) the word
    /// that is compared with the page's id, or its negative. `polls`: a loop may be closed here.
    Link { target: u64, patch: u32, id: u32, flags: LinkFlags, polls: bool },
    /// The head of a block.
    Head,
    /// A loop has run for many rounds: it is to be translated anew.
    Hot,
    /// Many look-ups have left the page of their slot.
    Far,
    /// The page that the last instruction reaches into is not known to be the same.
    Crossing,
    /// The bytes that a block of an unwatched page was made from are others now.
    Stale,
}

/// A way out of a block. Places are offsets from the area's start.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    pub kind: Kind,
    pub block: u32,
    /// The instruction.
    pub rip: u64,
    /// Instructions of the block from this one on.
    pub left: u16,
    pub len: u8,
    /// Where the access is tried again.
    pub retry: u32,
    /// Where the block goes on after the instruction; 0: nowhere.
    pub next: u32,
    /// The stub that leaves for the interpreter.
    pub stub: u32,
    /// Where an access goes on whose address and table entry are in the scratch registers.
    pub once: u32,
    /// For the first access of a group: the way to the variant without groups.
    pub plain: u32,
}

/// What is known of a block that branches to its own start; see `crate::translate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Cold,
    /// It was found running, so many times more since, and counts its rounds.
    Measured(u8),
    /// It has done many rounds at a stretch.
    Hot,
    /// It does not.
    Short,
}

/// How often a loop that counts its rounds is found running before it counts as [`Stage::Short`].
const PATIENCE: u8 = 8;

/// [`Site::block`] of a link that leads nowhere now.
pub const NONE: u32 = u32::MAX;

pub struct Block {
    pub key: Key,
    /// Offsets of the entries: for indirect branches, with a poll, without.
    pub indirect: u32,
    pub poll: u32,
    pub body: u32,
    /// Where its own branch back to its start goes; 0: as any other.
    pub turn: u32,
    pub end: u32,
    /// Its code that is seldom run.
    pub cold: std::ops::Range<u32>,
    /// Entries that load the flags from the state page first, with a poll and without; 0: the block
    /// needs none.
    pub restoring: [u32; 2],
    /// First and last guest byte, from the start of the page of `key.0`; the last may lie in
    /// the next page.
    pub span: (u16, u16),
    /// The host page of the bytes beyond the first page; 0: there are none.
    pub second: usize,
    pub instructions: u16,
    pub alive: bool,
    /// Its sites.
    pub sites: std::ops::Range<u32>,
    /// Link sites that jump here.
    pub incoming: Vec<u32>,
    /// (host offset, site) of instructions that may fault on the host, ascending.
    pub faults: Vec<(u32, u32)>,
    /// The guest bytes of the block's span.
    pub bytes: Box<[u8]>,
}

impl Block {
    pub fn empty() -> Block {
        Block {
            key: (0, 0, 0),
            indirect: 0,
            poll: 0,
            body: 0,
            turn: 0,
            end: 0,
            cold: 0..0,
            restoring: [0; 2],
            span: (0, 0),
            second: 0,
            instructions: 0,
            alive: false,
            sites: 0..0,
            incoming: Vec::new(),
            faults: Vec::new(),
            bytes: Box::default(),
        }
    }
}

impl Block {
    /// The host pages that it was made from.
    fn pages(&self) -> impl Iterator<Item = usize> + use<> {
        std::iter::once(self.key.0 & !0xfff).chain((self.second != 0).then_some(self.second))
    }

    /// First and last guest byte within `host`, one of its pages.
    fn span_in(&self, host: usize) -> (u16, u16) {
        match (host == self.key.0 & !0xfff, host == self.second) {
            (true, true) => (0, 4095),
            (_, true) => (0, self.span.1 - 4096),
            _ => (self.span.0, self.span.1.min(4095)),
        }
    }
}

/// The granules that hold bytes `first` to `last` of a page.
fn granules((first, last): (u16, u16)) -> u64 {
    (first / 64..=last / 64).fold(0, |bits, granule| bits | 1 << granule)
}

/// A host page with translated code.
#[derive(Default)]
pub struct Page {
    pub blocks: Vec<u32>,
    /// Granules of 64 bytes that blocks were made from.
    pub granules: u64,
    /// How often writes have ended blocks here.
    rewrites: u32,
    /// How often a watched write did not concern any block.
    besides: u32,
    /// Since when the page has not been watched any more.
    unwatched: Option<Instant>,
}

/// Rewrites, or writes beside code, after which a page is not watched any more: its blocks
/// compare their bytes themselves (see [`memory::UNWATCHED`]).
const REWRITES: u32 = 16;
const BESIDES: u32 = 64;
/// How long another vCPU may still be within a block that relies on the watch.
const FAREWELL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    pub translated: u64,
    pub instructions: u64,
    pub invalidated: u64,
    pub flushes: u64,
    pub links: u64,
    pub host_bytes: u64,
}

pub type Mixed<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

pub struct Cache {
    pub area: Area,
    pub stubs: Stubs,
    pub blocks: Vec<Block>,
    pub sites: Vec<Site>,
    map: Mixed<Key, u32>,
    pub pages: Mixed<usize, Page>,
    /// Loops that were found running.
    stages: Mixed<Key, Stage>,
    pub near: Near,
    ids: Mixed<(u64, u64), u32>,
    /// Blocks by the host offset of their first byte, ascending.
    order: Vec<(u32, u32)>,
    /// GS bases of all views of all vCPUs, whose branch tables may lead here.
    pub views: Vec<usize>,
    pub statistics: Statistics,
    /// [`crate::Options::always_watch`].
    pub always_watch: bool,
    perf_map: Option<std::io::BufWriter<std::fs::File>>,
}

impl Cache {
    pub fn new(mut area: Area) -> base::Result<Cache> {
        let stubs = Stubs::make(&mut area)?;
        let cache = Cache {
            area,
            stubs,
            // The room costs nothing until it is used, and they need not move while they grow.
            blocks: Vec::with_capacity(1 << 16),
            sites: Vec::with_capacity(1 << 19),
            map: Mixed::default(),
            pages: Mixed::default(),
            stages: Mixed::default(),
            near: Near::default(),
            ids: Mixed::default(),
            order: Vec::with_capacity(1 << 16),
            views: Vec::new(),
            statistics: Statistics::default(),
            always_watch: false,
            perf_map: None,
        };
        memory::prefer_large_pages(&cache.blocks);
        memory::prefer_large_pages(&cache.sites);
        Ok(cache)
    }

    /// From now on the names of blocks go where `perf` looks for those of generated code.
    pub fn map_for_perf(&mut self) -> base::Result<()> {
        let name = format!("/tmp/perf-{}.map", std::process::id());
        // Never through somebody else's link.
        let _ = std::fs::remove_file(&name);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&name);
        let file = file.map_err(|e| base::Failure::os(format!("cannot create '{name}'"), &e))?;
        self.perf_map = Some(std::io::BufWriter::new(file));
        Ok(())
    }

    pub fn host(&self, offset: u32) -> usize {
        self.area.execute + offset as usize
    }

    pub fn find(&self, key: &Key) -> Option<u32> {
        self.map.get(key).copied()
    }

    /// The id of a (linear page, host page) pair.
    pub fn pair(&mut self, linear: u64, host: usize) -> u32 {
        let next = self.ids.len() as u32 + 1;
        *self.ids.entry((linear & !0xfff, host as u64 & !0xfff)).or_insert(next)
    }

    /// Whether writes to the page of `host` are so many that it should not be watched.
    pub fn is_restless(&self, host: usize) -> bool {
        let page = self.pages.get(&(host & !0xfff));
        !self.always_watch && page.is_some_and(|page| page.rewrites >= REWRITES || page.besides >= BESIDES)
    }

    /// Notes `count` writes to the page of `host` that did not concern any block.
    pub fn wrote_beside(&mut self, host: usize, count: u32) {
        if let Some(page) = self.pages.get_mut(&(host & !0xfff)) {
            page.besides += count;
        }
    }

    /// Ends the blocks of the page of `host`, which shall not be watched. `true`: nobody (or,
    /// if `alone`, nobody else) can rely on the watch any more.
    pub fn leave_unwatched(&mut self, host: usize, alone: bool) -> bool {
        let page = self.pages.entry(host & !0xfff).or_default();
        let since = *page.unwatched.get_or_insert_with(Instant::now);
        self.end_page(host);
        alone || since.elapsed() > FAREWELL
    }

    /// Ends the blocks of the page of `host`, which is to be watched again.
    pub fn watch_again(&mut self, host: usize) {
        self.end_page(host);
        self.pages.remove(&(host & !0xfff));
    }

    fn end_page(&mut self, host: usize) {
        let Some(page) = self.pages.get_mut(&(host & !0xfff)) else { return };
        page.granules = 0;
        for id in std::mem::take(&mut page.blocks) {
            self.invalidate(id);
        }
    }

    /// Registers a block whose code lies in the area and whose sites were pushed.
    pub fn add(&mut self, block: Block) -> u32 {
        let id = self.blocks.len() as u32;
        for host in block.pages() {
            let page = self.pages.entry(host).or_default();
            page.blocks.push(id);
            page.granules |= granules(block.span_in(host));
        }
        if let Some(map) = &mut self.perf_map {
            use std::io::Write;
            for part in [block.indirect..block.end, block.cold.clone()] {
                let (at, len) = (self.area.execute + part.start as usize, part.len());
                // A full disk must not end the guest.
                let _ = writeln!(map, "{at:x} {len:x} guest:{:#x}", block.key.1).and_then(|()| map.flush());
            }
        }
        self.map.insert(block.key, id);
        self.order.push((block.indirect, id));
        self.statistics.translated += 1;
        self.statistics.instructions += u64::from(block.instructions);
        self.statistics.host_bytes += u64::from(block.end - block.indirect) + block.cold.len() as u64;
        self.blocks.push(block);
        id
    }

    /// Connects link `site` with `block`; `pair` is the id of the target's page if it is
    /// another one.
    pub fn link(&mut self, site: u32, block: u32) {
        let at = &mut self.sites[site as usize];
        let (target, patch, id, polls) = match at.kind {
            Kind::Link { target, patch, id, flags, polls } => {
                (target, patch, (id != 0).then_some((id, flags)), polls)
            }
            // It begins below what the block may have reached before.
            Kind::Plain { patch } => (0, patch, None, true),
            _ => return,
        };
        let away = matches!(id, Some((_, LinkFlags::Away)));
        if at.next != NONE {
            return;
        }
        let target_block = &mut self.blocks[block as usize];
        let restoring = target_block.restoring[usize::from(!polls)];
        let entry = match (at.block == block && target_block.turn != 0, polls) {
            (true, _) => target_block.turn,
            _ if away && restoring != 0 => restoring,
            (_, true) => target_block.poll,
            _ => target_block.body,
        };
        at.next = block;
        target_block.incoming.push(site);
        self.area.patch(self.area.execute + patch as usize, entry.wrapping_sub(patch + 4));
        if let Some((id, flags)) = id {
            let host = self.blocks[block as usize].key.0;
            let pair = self.pair(target, host);
            let negated = flags == LinkFlags::Live;
            self.area
                .patch(self.area.execute + id as usize, if negated { pair.wrapping_neg() } else { pair });
        }
        self.statistics.links += 1;
    }

    /// Connects a link that may lead to another block now.
    pub fn relink(&mut self, site: u32, block: u32) {
        let old = self.sites[site as usize].next;
        if old != NONE {
            self.blocks[old as usize].incoming.retain(|&other| other != site);
            self.unlink(site);
        }
        self.link(site, block);
    }

    fn unlink(&mut self, site: u32) {
        let at = &mut self.sites[site as usize];
        let (patch, id) = match at.kind {
            Kind::Link { patch, id, flags, .. } => (patch, (id != 0).then_some((id, flags))),
            Kind::Plain { patch } => (patch, None),
            _ => return,
        };
        at.next = NONE;
        let stub = at.stub;
        if let Some((id, flags)) = id {
            let none = if flags == LinkFlags::Live { 1 } else { u32::MAX };
            self.area.patch(self.area.execute + id as usize, none);
        }
        self.area.patch(self.area.execute + patch as usize, stub.wrapping_sub(patch + 4));
    }

    /// Ends a block, a loop that is to be translated anew.
    pub fn heat(&mut self, id: u32) {
        // All may have been forgotten meanwhile.
        let Some(block) = self.blocks.get(id as usize) else { return };
        self.stages.insert(block.key, Stage::Hot);
        self.invalidate(id);
    }

    pub fn stage(&self, key: &Key) -> Stage {
        self.stages.get(key).copied().unwrap_or_default()
    }

    /// Something was asked of the vCPU while it ran the block. `true`: the block ended, because
    /// it is a loop that is to be translated anew.
    pub fn sampled(&mut self, id: u32) -> bool {
        let Some(block) = self.blocks.get(id as usize) else { return false };
        if !block.alive || !block.incoming.iter().any(|&site| self.sites[site as usize].block == id) {
            return false;
        }
        let key = block.key;
        let (next, ends) = match self.stage(&key) {
            Stage::Cold => (Stage::Measured(0), true),
            Stage::Measured(PATIENCE) => (Stage::Short, true),
            Stage::Measured(n) => (Stage::Measured(n + 1), false),
            done => (done, false),
        };
        self.stages.insert(key, next);
        if ends {
            self.invalidate(id);
        }
        ends
    }

    /// Ends a block: nothing leads to it any more.
    pub fn invalidate(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        if !std::mem::replace(&mut block.alive, false) {
            return;
        }
        let (key, indirect) = (block.key, block.indirect);
        for site in std::mem::take(&mut block.incoming) {
            if self.sites[site as usize].next == id {
                self.unlink(site);
            }
        }
        if self.map.get(&key) == Some(&id) {
            self.map.remove(&key);
        }
        let (entry, unknown) = (self.host(indirect) as u64, self.stubs.exits[3] as u64);
        let slot = (key.1 as usize % INDIRECT_SLOTS) as u32;
        for &gs in &self.views {
            let cell = branch_slot(gs, slot);
            let order = std::sync::atomic::Ordering::SeqCst;
            let _ = cell.compare_exchange(entry, unknown, order, order);
        }
        self.statistics.invalidated += 1;
    }

    /// `len` bytes of guest memory at `host` (within one page) were written. `true`: no
    /// translated code is left on the page.
    pub fn written(&mut self, host: usize, len: usize) -> bool {
        let page_address = host & !0xfff;
        let page = self.pages.entry(page_address).or_default();
        let (first, last) = ((host & 0xfff) as u16, ((host & 0xfff) + len.max(1) - 1).min(4095) as u16);
        let mut touched = 0u64;
        for granule in first / 64..=last / 64 {
            touched |= 1 << granule;
        }
        if page.granules & touched == 0 {
            page.besides += 1;
            return page.blocks.is_empty();
        }
        let blocks = std::mem::take(&mut page.blocks);
        let (hit, kept): (Vec<u32>, Vec<u32>) = blocks.into_iter().partition(|&id| {
            let span = self.blocks[id as usize].span_in(page_address);
            span.0 <= last && first <= span.1
        });
        let empty = kept.is_empty();
        page.granules = 0;
        for &id in &kept {
            page.granules |= granules(self.blocks[id as usize].span_in(page_address));
        }
        page.blocks = kept;
        if !hit.is_empty() {
            page.rewrites += 1;
        }
        for id in hit {
            self.invalidate(id);
        }
        empty
    }

    /// Granules of 64 bytes of the page of `host` that blocks were made from; 0: none.
    pub fn granules(&self, host: usize) -> u64 {
        self.pages.get(&(host & !0xfff)).map_or(0, |page| page.granules)
    }

    /// The block whose code, that which is often run, holds the host address.
    pub fn block_at(&self, host: usize) -> Option<u32> {
        if !self.area.contains(host) {
            return None;
        }
        let offset = (host - self.area.execute) as u32;
        let at = self.order.partition_point(|&(start, _)| start <= offset).checked_sub(1)?;
        let id = self.order[at].1;
        (offset < self.blocks[id as usize].end).then_some(id)
    }

    /// The site of the instruction at a host address that faulted.
    pub fn fault_site(&self, host: usize) -> Option<u32> {
        let block = &self.blocks[self.block_at(host)? as usize];
        let offset = (host - self.area.execute) as u32;
        let at = block.faults.binary_search_by_key(&offset, |f| f.0).ok()?;
        Some(block.faults[at].1)
    }

    /// Forgets everything. No vCPU may be in translated code.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.sites.clear();
        self.map.clear();
        self.ids.clear();
        self.order.clear();
        self.pages.clear();
        self.stages.clear();
        self.near.clear();
        self.area.clear();
        self.statistics.flushes += 1;
    }
}
