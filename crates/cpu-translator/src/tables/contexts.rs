//! Address spaces (PCIDs) other than the present one: what the tables knew of them is set
//! aside, and brought back when the guest returns to one without a flush.

use super::*;
use crate::shared::Shared;

/// Address spaces that are kept; pages that a kept one may have in a view.
const KEPT: usize = 16;
const PAGES: usize = 512;
/// Pages of [`Contexts::mixed`].
const MIXED: usize = 64;

#[derive(Default)]
pub(super) struct Contexts {
    present: u16,
    /// The one left last is the last.
    kept: Vec<Kept>,
    /// Pages that were flushed, or found to be global, since the logs of local pages were
    /// emptied: such a log does not say whether their entries are local.
    mixed: Vec<u64>,
    /// Flushes of pages with code.
    code_flushes: u64,
}

/// What was known of an address space, and what it relies on.
struct Kept {
    context: u16,
    relied: Relied,
    views: [Aside; VIEWS],
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Relied {
    /// [`Shared::revoked`], [`Shared::forgotten`]: for entries for writing.
    writing: [u64; 2],
    /// For code and branches: [`Shared::ended`], [`Shared::generation`], flushes of such pages.
    code: [u64; 3],
}

#[derive(Default)]
struct Aside {
    /// Linear page, entry, and whether it is also that for writing.
    pages: Vec<(u64, u64, bool)>,
    /// Slots and what they held.
    code: Vec<(u32, u32)>,
    branches: Vec<(u32, u64)>,
}

fn writing(shared: &Shared) -> [u64; 2] {
    [&shared.revoked, &shared.forgotten].map(|count| count.load(Ordering::SeqCst))
}

impl Contexts {
    pub(super) fn note_mixed(&mut self, page: u64) {
        if self.mixed.len() <= MIXED {
            self.mixed.push(page);
        }
    }

    pub(super) fn note_code_flush(&mut self) {
        self.code_flushes += 1;
    }

    /// Local pages are not known any more.
    pub(super) fn forget_mixed(&mut self) {
        self.mixed.clear();
    }

    pub(super) fn forget_code(&mut self) {
        for aside in self.kept.iter_mut().flat_map(|kept| &mut kept.views) {
            aside.code.clear();
            aside.branches.clear();
        }
    }

    /// Forgets all but the present address space.
    pub(super) fn forget_others(&mut self) {
        self.kept.clear();
    }

    pub(super) fn forget(&mut self, context: u16) {
        self.kept.retain(|kept| kept.context != context);
    }

    fn relied(&self, shared: &Shared) -> Relied {
        let (ended, generation) = (&shared.ended, &shared.generation);
        Relied {
            writing: writing(shared),
            code: [ended.load(Ordering::SeqCst), generation.load(Ordering::SeqCst), self.code_flushes],
        }
    }
}

impl Tables {
    /// Everything is forgotten; `context` is the present address space.
    pub fn start(&mut self, context: u16) {
        self.flush(true);
        self.contexts.present = context;
    }

    /// Forgets an address space, or all, other than the present one.
    pub fn forget_context(&mut self, context: Option<u16>) {
        match context {
            Some(context) => self.contexts.forget(context),
            None => self.contexts.forget_others(),
        }
    }

    /// `context` becomes the present address space; what was known of it stays if `keep`.
    pub fn switch(&mut self, context: u16, keep: bool, shared: &Shared) {
        if context == self.contexts.present {
            return if keep { self.epoch += 1 } else { self.flush(false) };
        }
        if !keep {
            self.contexts.forget(context);
        }
        self.set_aside(shared);
        self.contexts.present = context;
        let place = self.contexts.kept.iter().position(|kept| kept.context == context);
        if let Some(kept) = place.map(|place| self.contexts.kept.remove(place)) {
            self.bring_back(kept, shared);
        }
    }

    /// Empties the tables of what is local to the present address space and keeps it.
    fn set_aside(&mut self, shared: &Shared) {
        let many = self.spaces.iter().any(|space| space.logs[0].pages.len() > PAGES);
        if many || self.contexts.mixed.len() > MIXED {
            return self.flush(false);
        }
        self.flushes += 1;
        self.epoch += 1;
        self.gone.all = true;
        let relied = self.contexts.relied(shared);
        let (unknown, mixed) = (self.unknown, std::mem::take(&mut self.contexts.mixed));
        let views = self.spaces.each_mut().map(|space| space.set_aside(unknown, &mixed));
        if self.contexts.kept.len() == KEPT {
            self.contexts.kept.remove(0);
        }
        self.contexts.kept.push(Kept { context: self.contexts.present, relied, views });
    }

    fn bring_back(&mut self, kept: Kept, shared: &Shared) {
        let writable = kept.relied.writing == writing(shared);
        for (space, aside) in self.spaces.iter_mut().zip(&kept.views) {
            space.bring_back(&aside.pages, writable);
        }
        // A watch that was armed meanwhile either finds the entries, or is found here.
        std::sync::atomic::fence(Ordering::SeqCst);
        if writable && kept.relied.writing != writing(shared) {
            for (space, aside) in self.spaces.iter().zip(&kept.views) {
                aside.pages.iter().for_each(|(page, ..)| space.form.clear(space.gs, *page, true));
            }
        }
        // Under the lock: a block that ends finds the branches that lead to it.
        let _cache = shared.cache();
        if kept.relied.code == self.contexts.relied(shared).code {
            for (space, aside) in self.spaces.iter_mut().zip(&kept.views) {
                space.bring_back_code(aside);
            }
        }
    }
}

impl Space {
    fn set_aside(&mut self, unknown: u64, mixed: &[u64]) -> Aside {
        let (form, gs, log) = (self.form, self.gs, &mut self.logs[0]);
        let mut aside = Aside::default();
        for page in log.pages.drain(..) {
            let (read, write) = (form.take(gs, page, false), form.take(gs, page, true));
            if read != 0 && !mixed.contains(&page) {
                // Another entry for writing is older, and perhaps global.
                aside.pages.push((page, read, write == read));
            }
        }
        for slot in log.code.drain(..) {
            let id = code_slot(gs, slot).swap(0, Ordering::AcqRel);
            if id != 0 {
                aside.code.push((slot, id));
            }
        }
        for slot in log.branches.drain(..) {
            let host = branch_slot(gs, slot).swap(unknown, Ordering::AcqRel);
            if host != unknown {
                aside.branches.push((slot, host));
            }
        }
        aside
    }

    fn bring_back(&mut self, pages: &[(u64, u64, bool)], writable: bool) {
        for &(page, entry, write) in pages {
            self.form.set(self.gs, page, false, entry);
            if writable && write {
                self.form.set(self.gs, page, true, entry);
            }
            self.logs[0].pages.push(page);
        }
    }

    fn bring_back_code(&mut self, aside: &Aside) {
        for &(slot, id) in &aside.code {
            code_slot(self.gs, slot).store(id, Ordering::Release);
            self.logs[0].code.push(slot);
        }
        for &(slot, host) in &aside.branches {
            branch_slot(self.gs, slot).store(host, Ordering::Release);
            self.logs[0].branches.push(slot);
        }
    }
}
