//! Which blocks run often, so that their look-ups begin with a remembered page, and which of
//! their instructions should not (see [`crate::translate`]).

use crate::cache::{Cache, Key, Kind, Mixed, NONE, Site};
use crate::layout::{FAR_LIMIT, NEAR, NEAR_SIZE, NEAR_SLOTS, State};
use crate::tables::Tables;
use cpu_interpreter::Mixer;
use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The slot of all accesses whose base is RSP, in any code.
pub const STACK: u32 = 0;
/// Blocks that are translated anew when one of them was found running.
const AROUND: usize = 8;
/// For how long blocks keep their slots after all were dealt out.
const TERM: Duration = Duration::from_secs(5);
/// Filled slots of a vCPU; what was filled before is emptied when somebody looks.
const KEPT: usize = 256;
/// They come too often if it takes less than this.
const TOO_SOON: Duration = Duration::from_nanos(100 * FAR_LIMIT as u64);

/// Blocks that run often, by their key.
pub struct Near {
    /// The addresses of instructions that go to other pages all the time.
    far: Mixed<Key, Vec<u64>>,
    /// Blocks that were found running once.
    seen: HashSet<Key, BuildHasherDefault<Mixer>>,
    /// The next slot to be dealt out.
    pub next: u32,
    /// When that was the first one.
    since: Instant,
    /// All blocks count as such (tests).
    pub always: bool,
}

impl Default for Near {
    fn default() -> Near {
        Near {
            far: Mixed::default(),
            seen: HashSet::default(),
            next: STACK + 1,
            since: Instant::now(),
            always: false,
        }
    }
}

impl Near {
    /// `None`: the block does not run often; else its instructions that get no slot.
    pub fn far(&self, key: &Key) -> Option<&[u64]> {
        let known = self.far.get(key).map(Vec::as_slice);
        if self.always { known.or(Some(&[])) } else { known }
    }

    /// Blocks that run often, and accesses in them that get no slot any more.
    pub fn counts(&self) -> (usize, usize) {
        (self.far.len(), self.far.values().map(Vec::len).sum())
    }

    /// Whether all slots have been dealt out.
    fn is_full(&self) -> bool {
        self.next >= NEAR_SLOTS
    }

    pub fn clear(&mut self) {
        self.far.clear();
        self.seen.clear();
        (self.next, self.since) = (STACK + 1, Instant::now());
    }
}

impl Cache {
    /// Block `id` was found running. If it was before, it and those that it leads to run often.
    /// `true`: blocks ended, to be translated anew.
    pub fn runs_often(&mut self, id: u32) -> bool {
        let Some(block) = self.blocks.get(id as usize).filter(|block| block.alive) else { return false };
        if self.near.seen.insert(block.key) {
            return false;
        }
        if self.near.is_full() {
            return self.deal_anew();
        }
        let mut found = vec![id];
        let mut at = 0;
        while at < found.len() && found.len() < AROUND {
            for site in self.sites_of(found[at]) {
                if matches!(site.kind, Kind::Link { .. }) && site.next != NONE && !found.contains(&site.next)
                {
                    found.push(site.next);
                }
            }
            at += 1;
        }
        let mut ended = false;
        for id in found {
            let Some(block) = self.blocks.get(id as usize).filter(|block| block.alive) else { continue };
            let key = block.key;
            if self.near.far.contains_key(&key) || !self.looks_up(id) {
                continue;
            }
            self.near.far.insert(key, Vec::new());
            self.invalidate(id);
            ended = true;
        }
        ended
    }

    /// Other code may run often now: after a while all slots are dealt out anew.
    fn deal_anew(&mut self) -> bool {
        if self.near.since.elapsed() < TERM {
            return false;
        }
        let keys: Vec<Key> = self.near.far.keys().copied().collect();
        for key in keys {
            if let Some(id) = self.find(&key) {
                self.invalidate(id);
            }
        }
        self.near.clear();
        true
    }

    fn sites_of(&self, id: u32) -> &[Site] {
        let sites = &self.blocks[id as usize].sites;
        &self.sites[sites.start as usize..sites.end as usize]
    }

    fn looks_up(&self, id: u32) -> bool {
        self.sites_of(id).iter().any(|site| matches!(site.kind, Kind::Access { .. }))
    }

    /// The instruction at `rip` of block `id` gets no slot any more.
    pub fn goes_far(&mut self, id: u32, rip: u64) {
        let Some(block) = self.blocks.get(id as usize).filter(|block| block.alive) else { return };
        self.near.far.entry(block.key).or_default().push(rip);
        self.invalidate(id);
    }
}

/// The filled slots of a vCPU, and how fast look-ups leave their pages.
#[derive(Default)]
pub struct Filled {
    /// What slots remember, the latest last; and which, as the GS base and the offset from [`NEAR`].
    pages: Vec<u64>,
    places: Vec<(usize, u32)>,
    sieve: Sieve,
    /// Since when `State::fars` is counted down, if nothing else happened.
    since: Option<Instant>,
    /// [`crate::shared::Shared::revoked`] when they were looked at.
    revoked: u64,
}

impl Filled {
    /// Empties the slots whose entries may be gone from the tables; `revoked`: of writable pages, by
    /// another vCPU.
    pub fn follow(&mut self, state: &mut State, tables: &mut Tables, revoked: u64) {
        let all = tables.gone.all || revoked != self.revoked;
        if !all && tables.gone.pages.is_empty() {
            return;
        }
        self.revoked = revoked;
        self.collect(state, tables);
        if all {
            self.empty(self.pages.len());
        } else if tables.gone.pages.iter().any(|&(first, bytes)| bytes > 4096 || self.sieve.may_have(first))
            && let Some(last) = self.pages.iter().rposition(|&page| tables.gone.has(page))
        {
            // Rare enough to be done roughly.
            self.empty(last + 1);
        }
        tables.gone.all = false;
        tables.gone.pages.clear();
    }

    /// Empties the `count` slots that were filled first.
    fn empty(&mut self, count: usize) {
        for (gs, offset) in self.places.drain(..count) {
            slot_page(gs, offset).store(NOWHERE, Ordering::Relaxed);
        }
        self.pages.drain(..count);
        self.sieve = Sieve::default();
        self.pages.iter().for_each(|&page| self.sieve.add(page));
    }

    /// Takes over what translated code has noted.
    fn collect(&mut self, state: &mut State, tables: &Tables) {
        let filled = &state.filled[(state.fars as usize).min(FAR_LIMIT)..];
        if filled.is_empty() {
            return;
        }
        for &offset in filled.iter().rev() {
            for gs in tables.all_views() {
                let page = slot_page(gs, offset).load(Ordering::Relaxed);
                if page != NOWHERE {
                    self.pages.push(page);
                    self.sieve.add(page);
                    self.places.push((gs, offset));
                }
            }
        }
        state.fars = FAR_LIMIT as u64;
        self.since = None;
        if self.pages.len() > KEPT {
            self.empty(self.pages.len() - KEPT / 2);
        }
    }

    /// [`FAR_LIMIT`] look-ups have left their pages. `true`: that was too fast.
    pub fn note(&mut self, state: &mut State, tables: &Tables) -> bool {
        let since = self.since;
        self.collect(state, tables);
        let now = Instant::now();
        self.since = Some(now);
        since.is_some_and(|since| now - since < TOO_SOON)
    }
}

/// Tells of most pages that are not in a set that they are not.
#[derive(Default)]
struct Sieve([u64; 8]);

impl Sieve {
    fn add(&mut self, page: u64) {
        self.0[(page >> 18) as usize % 8] |= 1 << (page >> 12 & 63);
    }

    fn may_have(&self, page: u64) -> bool {
        self.0[(page >> 18) as usize % 8] >> (page >> 12 & 63) & 1 != 0
    }
}

impl Tables {
    /// Makes all slots empty.
    pub fn prepare_slots(&self) {
        for gs in self.all_views() {
            for slot in 0..2 * NEAR_SLOTS {
                slot_page(gs, slot * NEAR_SIZE as u32).store(NOWHERE, Ordering::Relaxed);
            }
        }
    }
}

/// What was taken from the tables since the slots were looked at.
#[derive(Default)]
pub struct Gone {
    /// Any pages.
    pub all: bool,
    /// Ranges of pages: the first, and their bytes.
    pages: Vec<(u64, u64)>,
}

impl Gone {
    pub fn note(&mut self, first: u64, bytes: u64) {
        if self.pages.len() < 8 {
            self.pages.push((first, bytes));
        } else {
            self.all = true;
        }
    }

    fn has(&self, page: u64) -> bool {
        self.pages.iter().any(|&(first, bytes)| page.wrapping_sub(first) < bytes)
    }
}

/// No canonical address is in this page, and with any entry the sum is none either.
const NOWHERE: u64 = 1 << 63;

/// The page that the slot at `offset` from [`NEAR`] remembers.
fn slot_page(gs: usize, offset: u32) -> &'static AtomicU64 {
    const SIZE: usize = 2 * NEAR_SLOTS as usize * NEAR_SIZE as usize;
    let at = gs + NEAR as usize + (offset as usize & !7) % SIZE;
    // SAFETY: an aligned word of the view's slots, which live as long as the vCPU.
    unsafe { AtomicU64::from_ptr(at as *mut u64) }
}
