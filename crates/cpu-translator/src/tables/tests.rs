//! The tables against a model of what a processor's TLB may hold.

use super::*;
use crate::Options;
use crate::shared::{Peer, Shared};
use memory::{CodeObserver, RamBlock, Watch};
use std::collections::HashSet;
use std::sync::Arc;

const PAGES: u64 = 24;
const HOSTS: u64 = 16;
const CONTEXTS: u64 = 20;

/// Where a translation holds: in one address space, or (`None`) in all.
type Holds = Option<u16>;

struct Rig {
    tables: Tables,
    shared: Shared,
    peer: Arc<Peer>,
    ram: RamBlock,
    present: u16,
    /// What is known of a page in a view, and where it holds: its host page. (Without a flush
    /// between, there may be several.)
    known: HashSet<(Holds, u64, usize, u64)>,
    seed: u64,
}

const SEEN: [View; 2] = [View::User, View::Supervisor];

fn linear(page: u64) -> u64 {
    0x7fff_0000_0000 + page * 4096
}

impl Rig {
    fn new(form: Form) -> Rig {
        let ram = RamBlock::new("test", HOSTS * 4096).unwrap();
        let tables = Tables::new(form, 8).unwrap();
        let shared = Shared::new(Options { cache_size: 1 << 20, ..Options::default() }, form).unwrap();
        let gs = [View::User, View::Supervisor, View::SupervisorAc].map(|view| tables.gs(view));
        let peer =
            Peer { gs, link: Default::default(), inside: Default::default(), counters: Default::default() };
        let peer = Arc::new(peer);
        shared.join(peer.clone());
        Rig { tables, shared, peer, ram, present: 0, known: HashSet::new(), seed: 0x9e37_79b9_7f4a_7c15 }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 16) % limit
    }

    fn fill(&mut self, page: u64, host: u64, global: bool, view: View) {
        let holds = (!global).then_some(self.present);
        let address = self.ram.page(host * 4096).as_ptr() as usize;
        let writable = self.ram.watch(host * 4096).is_empty();
        self.known.insert((holds, page, view as usize, host));
        self.shared.note_writer(&self.peer, address, self.tables.gs(view), linear(page));
        self.tables.fill(view, linear(page), address, writable, global);
        if !page.is_multiple_of(3) {
            self.tables.set_code(view, linear(page), (1 + page * HOSTS + host) as u32, global);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Holds, u64) -> bool) {
        self.known.retain(|(holds, page, ..)| keep(holds, *page));
    }

    fn switch(&mut self, context: u16, keep: bool) {
        if !keep {
            self.retain(|holds, _| *holds != Some(context));
        }
        self.tables.switch(context, keep, &self.shared);
        self.present = context;
    }

    fn step(&mut self) {
        let (page, host, present) = (self.below(PAGES), self.below(HOSTS), self.present);
        let context = self.below(CONTEXTS) as u16;
        match self.below(20) {
            0..10 => {
                let (global, view) = (page < 4 && self.below(2) == 0, SEEN[self.below(2) as usize]);
                self.fill(page, host, global, view);
            }
            10 => {
                self.retain(|holds, other| other != page || holds.is_some_and(|holds| holds != present));
                if !self.tables.flush_plain_page(linear(page)) {
                    self.tables.flush_page(linear(page));
                }
            }
            11..15 => self.switch(context, true),
            15 => self.switch(context, false),
            16 => {
                self.ram.set_watch(host * 4096, Watch::CODE);
                self.shared.armed(self.ram, host * 4096);
            }
            17 => self.ram.clear_code_watch(host * 4096),
            18 if self.below(4) == 0 => {
                self.retain(|holds, _| holds.is_none() || *holds == Some(present));
                self.tables.forget_context(None);
            }
            18 if self.below(8) == 0 => {
                self.retain(|_, _| false);
                self.tables.start(present);
            }
            18 => {
                self.retain(|holds, _| *holds != Some(present));
                self.tables.flush(false);
            }
            _ if context != present => {
                self.retain(|holds, _| *holds != Some(context));
                self.tables.forget_context(Some(context));
            }
            _ => {}
        }
    }

    /// What the tables hold of `page`: the entries for reading and writing, 0 for none.
    fn held(&self, page: u64, view: View) -> [u64; 2] {
        let (form, gs) = (self.tables.spaces[0].form, self.tables.gs(view));
        [false, true].map(|write| {
            let tag = form == Form::Flat
                || form.tag(gs, linear(page), write).load(Ordering::SeqCst) == linear(page).wrapping_neg();
            if tag { form.entry(gs, linear(page), write).load(Ordering::SeqCst) } else { 0 }
        })
    }

    /// Pages that the tables hold, all of which the model allows.
    fn check(&self, round: u64) -> usize {
        let mut count = 0;
        for (page, view) in (0..PAGES).flat_map(|page| SEEN.map(|view| (page, view))) {
            let allowed = |host| {
                let holds = [None, Some(self.present)];
                holds.into_iter().any(|holds| self.known.contains(&(holds, page, view as usize, host)))
            };
            for (write, entry) in self.held(page, view).into_iter().enumerate().filter(|(_, e)| *e != 0) {
                let host = entry.wrapping_add(linear(page)).wrapping_sub(1);
                let host = (host - self.ram.host_address() as u64) / 4096;
                assert!(allowed(host), "round {round}: page {page} {view:?} leads to {host}");
                let watched = !self.ram.watch(host * 4096).is_empty();
                assert!(write == 0 || !watched, "round {round}: page {page} may be written");
                count += 1;
            }
            let id = code_slot(self.tables.gs(view), map_slot(linear(page))).load(Ordering::SeqCst);
            let pair = (u64::from(id).wrapping_sub(1) / HOSTS, u64::from(id).wrapping_sub(1) % HOSTS);
            assert!(
                id == 0 || pair.0 == page && allowed(pair.1),
                "round {round}: page {page} has code {pair:?}"
            );
        }
        count
    }
}

fn holds_no_more_than_a_tlb(form: Form) {
    let mut rig = Rig::new(form);
    let held: usize = (0..60_000)
        .map(|round| {
            rig.step();
            rig.check(round)
        })
        .sum();
    assert!(held > 60_000, "the tables are empty nearly always: {held}");
}

#[test]
fn flat_tables_hold_no_more_than_a_tlb() {
    holds_no_more_than_a_tlb(Form::Flat);
}

#[test]
fn hashed_tables_hold_no_more_than_a_tlb() {
    holds_no_more_than_a_tlb(Form::Hashed);
}

#[test]
fn an_address_space_comes_back_as_it_was_left() {
    for form in [Form::Flat, Form::Hashed] {
        let mut rig = Rig::new(form);
        rig.fill(7, 1, false, View::User);
        rig.fill(8, 2, false, View::User);
        rig.tables.set_branch(View::User, linear(7) + 5, 0x1234, false);
        rig.switch(1, true);
        assert_eq!(rig.held(7, View::User), [0, 0]);
        rig.fill(7, 3, false, View::User);
        rig.shared.armed(rig.ram, 5 * 4096);
        rig.switch(0, true);
        assert!(rig.held(7, View::User).iter().all(|entry| *entry != 0));
        let branch = branch_slot(rig.tables.gs(View::User), (linear(7) + 5) as u32 & 0xffff);
        assert_eq!(branch.load(Ordering::SeqCst), 0x1234);
        // A watch was armed on what may be written through it; a block has ended.
        rig.switch(1, true);
        rig.ram.set_watch(2 * 4096, Watch::CODE);
        rig.shared.armed(rig.ram, 2 * 4096);
        rig.shared.ended.fetch_add(1, Ordering::SeqCst);
        rig.switch(0, true);
        assert!(rig.held(8, View::User)[0] != 0 && rig.held(8, View::User)[1] == 0);
        assert_eq!(branch.load(Ordering::SeqCst), 8);
        // Without "keep", nothing is left.
        rig.switch(1, true);
        rig.switch(0, false);
        assert_eq!(rig.held(8, View::User), [0, 0]);
    }
}

/// Two pages that lead to page 1 of memory are set aside; then it is the same page of memory at many
/// other addresses, none for long.
fn with_forgotten_writers(form: Form) -> Rig {
    let mut rig = Rig::new(form);
    rig.fill(7, 1, false, View::User);
    rig.fill(8, 1, false, View::User);
    rig.switch(1, true);
    for page in 100..200 {
        rig.fill(page, 1, false, View::User);
        rig.tables.flush_page(linear(page));
    }
    rig
}

impl Rig {
    fn watch_page_1(&self) {
        self.ram.set_watch(4096, Watch::CODE);
        self.shared.armed(self.ram, 4096);
    }
}

#[test]
fn what_was_set_aside_is_not_written_through_once_it_is_forgotten_who_writes() {
    for form in [Form::Flat, Form::Hashed] {
        let mut rig = with_forgotten_writers(form);
        rig.watch_page_1();
        rig.switch(0, true);
        for page in [7, 8] {
            assert!(rig.held(page, View::User)[1] == 0, "{form:?}: page {page} may be written");
        }
        // Without a watch: no entry that nobody would find.
        let mut rig = with_forgotten_writers(form);
        rig.switch(0, true);
        rig.watch_page_1();
        for page in [7, 8] {
            assert!(rig.held(page, View::User)[1] == 0, "{form:?}: page {page} may still be written");
        }
    }
}
