//! Blocks by their place: found, made, ended.

use super::*;

/// What was found at a place: good while nothing changed that it came from.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    rip: u64,
    key: u32,
    /// [`Tables::epoch`].
    epoch: u64,
    /// [`Shared::ended`] if there is a block, else [`Shared::added`].
    stamp: u64,
    /// The block's entry with a poll; 0: there is none.
    host: usize,
}

impl TranslatorVcpu {
    /// Host address of the guest code at `rip`, and the block of RAM.
    pub(super) fn code_at(&mut self, rip: u64) -> Option<(usize, RamBlock, u64)> {
        let core = self.interpreter.core_mut();
        let physical = core.translate_code(rip).ok()?;
        let (block, offset, _) = core.memory_view.memory_page(physical)?;
        Some((block.page(offset).as_ptr() as usize | (rip & 0xfff) as usize, block, offset))
    }

    /// An entry (with a poll) of the block at `rip`; translated now if `warm`.
    pub(crate) fn locate(&mut self, rip: u64, key: u32, warm: bool) -> Option<usize> {
        self.follow_flushes();
        self.note_key(key);
        let found = match self.placed(rip, key) {
            Some(found) => found,
            None => self.branch(rip, key),
        };
        match found {
            None if warm => self.make(rip, key),
            found => found,
        }
    }

    /// What is remembered of the place: `None`: nothing.
    pub(super) fn placed(&self, rip: u64, key: u32) -> Option<Option<usize>> {
        let place = &self.places[(rip ^ rip >> 9) as usize % PLACES];
        if place.rip != rip || place.key != key || place.epoch != self.tables.epoch {
            return None;
        }
        let counter = if place.host == 0 { &self.shared.added } else { &self.shared.ended };
        (place.stamp == counter.load(Ordering::SeqCst)).then_some((place.host != 0).then_some(place.host))
    }

    pub(super) fn note_place(&mut self, rip: u64, key: u32, stamp: u64, host: usize) {
        self.places[(rip ^ rip >> 9) as usize % PLACES] =
            Place { rip, key, epoch: self.tables.epoch, stamp, host };
    }

    pub(super) fn make(&mut self, rip: u64, key: u32) -> Option<usize> {
        let (host, ram, offset) = self.code_at(rip)?;
        let shared = self.shared.clone();
        let mut cache = shared.cache();
        if let Some(block) = cache.find(&(host, rip, key)) {
            return Some(cache.host(cache.blocks[block as usize].poll));
        }
        if cache.area.room() < LARGEST {
            shared.flush(&mut cache);
            self.renew(shared.generation.load(Ordering::SeqCst));
        }
        let block = self.translate(&mut cache, (host, ram, offset), rip, key)?;
        Some(cache.host(cache.blocks[block as usize].poll))
    }

    pub(super) fn translate(
        &mut self,
        cache: &mut Cache,
        (host, ram, offset): (usize, RamBlock, u64),
        rip: u64,
        key: u32,
    ) -> Option<u32> {
        self.made += 1;
        self.shared.added.fetch_add(1, Ordering::SeqCst);
        ram.set_code_observer(self.shared.clone());
        let checked = self.interpreter.core().watch_code(ram, offset) & UNWATCHED != 0;
        let mut bytes = [0u8; 4096 + TAIL];
        ram.page(offset).read(0, &mut bytes[..4096]);
        let second = if crosses(&bytes[..4096], rip, key) {
            self.second_page(cache, rip, key, &mut bytes[4096..])
        } else {
            None
        };
        let stage = match cache.stage(&(host, rip, key)) {
            Stage::Cold if self.shared.measures || key & key::COUNTED != 0 => Stage::Measured(0),
            stage => stage,
        };
        let source = Source {
            core: self.interpreter.core(),
            bytes: &bytes,
            second,
            host: host & !0xfff,
            rip,
            key,
            exact: self.shared.exact || key & key::COUNTED != 0,
            checked,
            stage,
            ahead: Cell::new((u16::MAX, 0)),
        };
        self.builder.build(&source, cache)
    }

    /// Reads the start of the page behind that of `rip`: its host address and id.
    pub(super) fn second_page(
        &mut self,
        cache: &mut Cache,
        rip: u64,
        key: u32,
        bytes: &mut [u8],
    ) -> Option<(usize, u32)> {
        let linear = (rip & !0xfff).wrapping_add(4096);
        // No instruction of 32-bit code reaches beyond 4 GiB.
        if linear >> 32 != 0 && key & mode::CODE != mode::CODE64 {
            return None;
        }
        let (host, ram, offset) = self.code_at(linear)?;
        ram.set_code_observer(self.shared.clone());
        if self.interpreter.core().watch_code(ram, offset) & UNWATCHED != 0 {
            return None;
        }
        ram.page(offset).read(0, bytes);
        Some((host, cache.pair(linear, host)))
    }

    /// The block at `rip` without groups, and its entry.
    pub(super) fn plain(&mut self, rip: u64, key: u32) -> Option<(u32, usize)> {
        let key = key | key::PLAIN;
        let (host, ram, offset) = self.code_at(rip)?;
        let shared = self.shared.clone();
        let mut cache = shared.cache();
        let found = match cache.find(&(host, rip, key)) {
            Some(block) => block,
            None => {
                if cache.area.room() < LARGEST {
                    return None;
                }
                self.translate(&mut cache, (host, ram, offset), rip, key)?
            }
        };
        self.revoked = shared.revoked.load(Ordering::SeqCst);
        Some((found, cache.host(cache.blocks[found as usize].poll)))
    }

    /// A block whose instruction reaches into another page was refused: the page that is there
    /// now becomes known if it is the same.
    pub(super) fn check_crossing(&mut self, place: usize, alive: bool) -> Next {
        let site = self.exits.get(place).site;
        self.store_state(site.rip);
        let linear = (site.rip & !0xfff).wrapping_add(4096);
        if !alive {
            return Next::Loop;
        }
        let now = self.code_at(linear).map_or(0, |(host, _, _)| host);
        let mut cache = self.shared.cache();
        if cache.blocks[site.block as usize].second != now {
            cache.invalidate(site.block);
            self.shared.ended.fetch_add(1, Ordering::SeqCst);
            return Next::Loop;
        }
        let pair = cache.pair(linear, now);
        drop(cache);
        self.note_code(linear, pair);
        Next::Loop
    }

    /// A loop that has run for many rounds is translated anew.
    pub(super) fn heated(&mut self, place: usize, alive: bool, key: u32) -> Next {
        let site = self.exits.get(place).site;
        self.counting.owed = 0;
        if alive {
            self.shared.cache().heat(site.block);
            self.shared.ended.fetch_add(1, Ordering::SeqCst);
            if let Some(host) = self.make(site.rip, key) {
                self.revoked = self.shared.revoked.load(Ordering::SeqCst);
                return Next::Host(host);
            }
        }
        self.store_state(site.rip);
        Next::Loop
    }

    /// Many look-ups have left the page of their slot, the last one at this site.
    pub(super) fn went_far(&mut self, place: usize, alive: bool) -> Next {
        let site = self.exits.get(place).site;
        if self.filled.note(self.state.get(), &self.tables) && alive {
            self.shared.cache().goes_far(site.block, site.rip);
            self.shared.ended.fetch_add(1, Ordering::SeqCst);
        }
        if !alive || self.is_revoked() {
            self.leave_at(&site);
            self.store_state(site.rip);
            return Next::Loop;
        }
        // What it does is right still.
        self.counting.owed = site.left;
        Next::Host(self.host(site.retry))
    }

    /// A block's bytes are others now: it ends.
    pub(super) fn end_stale(&mut self, place: usize) -> Next {
        let site = self.exits.get(place).site;
        self.store_state(site.rip);
        self.shared.cache().invalidate(site.block);
        self.shared.ended.fetch_add(1, Ordering::SeqCst);
        Next::Loop
    }

    pub(super) fn note_code(&mut self, linear: u64, pair: u32) {
        let view = self.interpreter.core().view;
        let global = self.note_mapping(linear);
        self.tables.set_code(view, linear, pair, global);
    }

    /// Whether the code page of `linear`, just translated, is global.
    pub(super) fn note_mapping(&mut self, linear: u64) -> bool {
        let (global, size) = self.interpreter.core().code_mapping(linear);
        if size > 4096 {
            self.tables.note_large(linear, size);
        }
        global
    }

    /// The entry of the block at `target`. Notes where indirect branches there go.
    pub(super) fn branch(&mut self, target: u64, key: u32) -> Option<usize> {
        let (added, ended) =
            (self.shared.added.load(Ordering::SeqCst), self.shared.ended.load(Ordering::SeqCst));
        let (host, _, _) = self.code_at(target)?;
        let global = self.note_mapping(target);
        let mut cache = self.shared.cache();
        let Some(block) = cache.find(&(host, target, key)) else {
            drop(cache);
            self.note_place(target, key, added, 0);
            return None;
        };
        let b = &cache.blocks[block as usize];
        let (indirect, poll) = (cache.host(b.indirect), cache.host(b.poll));
        // Under the lock: an invalidation that follows finds the entry.
        let view = self.interpreter.core().view;
        self.tables.set_branch(view, target, indirect, global);
        let pair = cache.pair(target, host);
        drop(cache);
        self.tables.set_code(view, target, pair, global);
        self.revoked = self.shared.revoked.load(Ordering::SeqCst);
        self.note_place(target, key, ended, poll);
        Some(poll)
    }
}
