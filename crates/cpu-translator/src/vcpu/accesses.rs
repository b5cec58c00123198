//! Accesses that the tables know nothing of.

use super::*;

/// What became of a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    Done,
    /// The entry is good for one access.
    Once(u64),
    /// The access is the interpreter's.
    No,
    /// The present block may have ended.
    Ended,
}

impl TranslatorVcpu {
    pub(super) fn missed(&mut self, rip: &mut u64, key: u32) -> Result<Next, Exit> {
        self.counts.misses += 1;
        let (place, alive) = self.site();
        let site = self.exits.get(place).site;
        *rip = site.rip;
        let Kind::Access { write, table } = site.kind else { return self.interpret_at(place, alive, key) };
        let address = self.state.get().s0;
        let view = self.interpreter.core().view as usize;
        let known = if write && site.once != 0 && self.shared.is_alone() {
            let stamp = self.stamp();
            self.beside.as_mut().and_then(|beside| beside.entry(view, address, stamp))
        } else {
            None
        };
        let filled = match known {
            Some(entry) => Fill::Once(entry),
            None => self.fill(address, write, table),
        };
        if let Fill::Once(entry) = filled
            && site.once != 0
            && !self.is_revoked()
        {
            let state = self.state.get();
            (state.s0, state.s1) = (address, entry);
            self.counting.owed = site.left;
            return Ok(Next::Host(self.host(site.once)));
        }
        if matches!(filled, Fill::Done | Fill::Ended) {
            if !alive || filled == Fill::Ended || self.is_revoked() {
                self.leave_at(&site);
                self.store_state(site.rip);
                return Ok(Next::Loop);
            }
            self.counting.owed = site.left;
            return Ok(Next::Host(self.host(site.retry)));
        }
        if site.plain != NONE {
            self.leave_at(&site);
            return Ok(match self.plain(site.rip, key) {
                Some((_, host)) => Next::Host(host),
                None => {
                    self.store_state(site.rip);
                    Next::Loop
                }
            });
        }
        self.interpret_at(place, alive, key)
    }

    /// Makes the page of `linear` known to the tables.
    pub(crate) fn fill(&mut self, linear: u64, write: bool, table: bool) -> Fill {
        let core = self.interpreter.core_mut();
        if !Core::canonical(linear) {
            return Fill::No;
        }
        let Ok(mapping) = core.paging.walk(&core.memory_view, linear, core.access(write)) else {
            return Fill::No;
        };
        if core.bus.apic_offset(mapping.page).is_some() {
            return Fill::No;
        }
        let Some((ram, offset, writable)) = core.memory_view.memory_page(mapping.page) else {
            return Fill::No;
        };
        let view = core.view;
        let host = ram.page(offset).as_ptr() as usize;
        let watch = ram.watch(offset);
        let may_write = writable && mapping.write_now && watch.is_empty();
        if table && !may_write {
            if write && writable && mapping.write_now && watch == Watch::CODE {
                return self.once(linear, host, ram, offset);
            }
            return Fill::No;
        }
        if mapping.size > 4096 {
            self.tables.note_large(linear, mapping.size);
        }
        let gs = self.tables.gs(view);
        if may_write {
            self.shared.note_writer(&self.peer, host, gs, linear & !0xfff);
        }
        self.tables.fill(view, linear, host, may_write, mapping.global);
        if may_write {
            std::sync::atomic::fence(Ordering::SeqCst);
            if !ram.watch(offset).is_empty() {
                self.shared.form.protect(gs, linear, host);
                return if table { Fill::No } else { Fill::Done };
            }
        }
        Fill::Done
    }

    /// A store to a page with code: whether it can be made beside the code.
    pub(super) fn once(&mut self, linear: u64, host: usize, ram: RamBlock, offset: u64) -> Fill {
        let mut cache = self.shared.cache();
        let granules = cache.granules(host);
        if granules != 0 && granules >> ((linear & 0xfff) / 64) & 1 == 0 {
            cache.wrote_beside(host, BATCH / 4);
            if cache.is_restless(host) {
                self.shared.leave_unwatched(&mut cache, ram, offset & !0xfff);
                return Fill::Ended;
            }
        }
        drop(cache);
        // Without code on the page its watch is better dropped, by a store that is noted.
        if !self.shared.is_alone() || granules == 0 {
            return Fill::No;
        }
        let (view, stamp) = (self.interpreter.core().view as usize, self.stamp());
        let mut beside = Beside::new(view, linear, ram, offset, granules, stamp);
        let entry = beside.entry(view, linear, stamp);
        self.beside = Some(beside);
        entry.map_or(Fill::No, Fill::Once)
    }

    pub(super) fn stamp(&self) -> Stamp {
        (self.tables.epoch, self.shared.ended.load(Ordering::SeqCst), self.made)
    }
}
