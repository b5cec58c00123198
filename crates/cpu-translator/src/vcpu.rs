//! One vCPU: translated code where it is warm, the interpreter everywhere else.

use crate::beside::{BATCH, Beside, Stamp};
use crate::cache::{Cache, Kind, NONE};
use crate::counted::Counting;
use crate::exits::Exits;
use crate::layout::{MASK, reason};
use crate::shared::{Peer, Shared, StatePage};
use crate::signals;
use crate::system;
use crate::tables::Tables;
use crate::tables::branch_slot;
use crate::translate::{Builder, LARGEST, Source, TAIL, key};
use base::Result;
use cpu::engine::DebugPlan;
use cpu::paging::{CR0_EM, CR0_TS, CR4_FSGSBASE, CR4_OSFXSR, CR4_OSXSAVE};
use cpu::{CpuState, Exit, Vcpu, VcpuConfig, Window};
use cpu_interpreter::{Core, InterpreterVcpu, Ran, mode};
use iced_x86::Mnemonic;
use memory::{RamBlock, UNWATCHED, Watch};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const CF_TO_SF: u64 = 0xd5;
/// Places of which is remembered what was found there.
const PLACES: usize = 512;

/// What was found at a place: good while nothing changed that it came from.
#[derive(Clone, Copy, Default)]
struct Place {
    rip: u64,
    key: u32,
    /// [`Tables::epoch`].
    epoch: u64,
    /// [`Shared::ended`] if there is a block, else [`Shared::added`].
    stamp: u64,
    /// The block's entry with a poll; 0: there is none.
    host: usize,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub entries: u64,
    pub misses: u64,
    pub slow: u64,
    pub links: u64,
    pub indirect: u64,
    pub polls: u64,
    pub budgets: u64,
    pub faults: u64,
    pub rounds: u64,
}

pub struct TranslatorVcpu {
    pub(crate) interpreter: InterpreterVcpu,
    pub(crate) shared: Arc<Shared>,
    peer: Arc<Peer>,
    tables: Tables,
    pub(crate) state: StatePage,
    builder: Builder,
    pub(crate) exits: Exits,
    /// Where branches go whose target is not known, and the start of translated code.
    unknown: usize,
    area: usize,
    generation: u64,
    /// [`Shared::revoked`] when the present block was entered.
    revoked: u64,
    beside: Option<Beside>,
    /// Blocks that this vCPU made.
    made: u64,
    /// What was found at some places a moment ago.
    places: Box<[Place; PLACES]>,
    /// The last key of each view.
    keys: [u32; 3],
    enter: usize,
    thread: Option<std::thread::ThreadId>,
    gs: usize,
    /// The last block for a fast way back to it: (address of the first byte, ...).
    pub counts: Counts,
    pub(crate) counting: Counting,
}

/// What became of a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Done,
    /// The entry is good for one access.
    Once(u64),
    /// The access is the interpreter's.
    No,
    /// The present block may have ended.
    Ended,
}

/// Where a piece of translated code leads.
pub(crate) enum Next {
    /// On at this host address.
    Host(usize),
    /// Likewise, in a block of another key (at the interpreter's `rip`).
    Other(usize, u32),
    /// To the run loop; the interpreter's state is up to date.
    Loop,
}

impl TranslatorVcpu {
    pub fn new(config: VcpuConfig, shared: Arc<Shared>) -> Result<TranslatorVcpu> {
        let link = config.bus.link.clone();
        let mut interpreter = InterpreterVcpu::new(config, shared.interpreter.clone())?;
        let (stubs, area) = {
            let cache = shared.cache();
            (cache.stubs, cache.area.execute)
        };
        let tables = Tables::new(shared.form, stubs.exits[reason::INDIRECT as usize])?;
        let mut state = StatePage::new(&tables);
        state.get().link = std::ptr::from_ref(link.cell()) as u64;
        state.get().host_mxcsr = 0x1f80;
        state.get().masks = MASK;
        let views = [
            cpu_interpreter::View::User,
            cpu_interpreter::View::Supervisor,
            cpu_interpreter::View::SupervisorAc,
        ];
        crate::system::prepare(state.get(), &stubs.exits, shared.time.cell());
        let peer = Arc::new(Peer {
            gs: views.map(|view| tables.gs(view)),
            link,
            inside: Default::default(),
            counters: Default::default(),
        });
        shared.join(peer.clone());
        let time = shared.clone();
        interpreter.core_mut().counter = Some(Box::new(move || time.time.read()));
        interpreter.core_mut().heat_limit = shared.warm.load(Ordering::Relaxed);
        let form = shared.form;
        Ok(TranslatorVcpu {
            interpreter,
            generation: shared.generation.load(Ordering::SeqCst),
            shared,
            peer,
            tables,
            state,
            builder: Builder::new(form),
            exits: Exits::default(),
            unknown: stubs.exits[reason::INDIRECT as usize],
            area,
            revoked: 0,
            beside: None,
            made: 0,
            places: Box::new([Place::default(); PLACES]),
            keys: [0; 3],
            enter: stubs.enter,
            thread: None,
            gs: 0,
            counts: Counts::default(),
            counting: Counting::default(),
        })
    }

    /// The mode key of blocks now; `None`: this code is the interpreter's.
    pub(crate) fn key(&self) -> Option<u32> {
        let core = self.interpreter.core();
        const FLAT: u32 = mode::CODE32 | mode::FLAT | mode::WIDE_CS | mode::STACK32;
        let plain = core.mode & (mode::SINGLE | mode::SLOW) == 0;
        let wide = core.mode & mode::CODE == mode::CODE64;
        if !plain || !wide && core.mode & (FLAT | mode::CODE) != FLAT || self.interpreter.is_stepping() {
            return None;
        }
        let st = &core.st;
        let mut bits = core.mode & mode::CODE;
        if !wide {
            for (n, open) in [(4, key::FS_OPEN), (5, key::GS_OPEN)] {
                let s = &core.sc[n];
                if s.low == 0 && s.high >= 0xffff_ffff && s.readable && s.writable {
                    bits |= open;
                }
            }
        }
        if st.cr0 & (CR0_EM | CR0_TS) == 0 {
            bits |= key::X87;
            if st.cr4 & CR4_OSFXSR != 0 {
                bits |= key::SSE;
            }
            if st.cr4 & CR4_OSXSAVE != 0 && st.xcr0 & 6 == 6 {
                bits |= key::AVX;
            }
        }
        if core.cpl == 0 {
            bits |= key::SUPERVISOR;
        }
        if st.cr4 & CR4_FSGSBASE != 0 {
            bits |= key::BASES;
        }
        if self.counting.on {
            bits |= key::COUNTED;
        } else if system::may_count(core) && self.shared.time.line().is_some() {
            bits |= key::COUNTER;
        }
        Some(bits)
    }

    /// Translated code begins or goes on with another key: what leads to blocks by their
    /// address alone must lead to blocks of this key.
    fn note_key(&mut self, key: u32) {
        let view = self.interpreter.core().view as usize;
        if self.keys[view] != key {
            self.keys[view] = key;
            if view != 0 {
                self.keys[1] = key;
                self.keys[2] = key;
            }
            self.tables.forget_code();
        }
    }

    /// After translated code: the ring and the view that it changed.
    fn follow_ring(&mut self, key: u32) -> u32 {
        let state = self.state.get();
        if state.system.ring == 0 && state.system.view_changed == 0 {
            return key;
        }
        let core = self.interpreter.core_mut();
        let changed = system::store(state, core);
        self.gs = self.tables.gs(core.view);
        if !changed {
            return key;
        }
        let key = self.key().unwrap_or(key ^ key::SUPERVISOR);
        self.note_key(key);
        key
    }

    fn run_inner(&mut self) -> Exit {
        let mut warm = false;
        loop {
            if let Some(exit) = self.interpreter.look_up() {
                return exit;
            }
            if let Some(key) = self.key() {
                let rip = self.interpreter.core().rip;
                match self.locate(rip, key, warm) {
                    Some(host) => {
                        if let Err(exit) = self.execute(host, key) {
                            return exit;
                        }
                        warm = false;
                        continue;
                    }
                    None if warm => self.interpreter.leave_cold(),
                    None => {}
                }
            } else if warm {
                self.interpreter.leave_cold();
            }
            self.counts.rounds += 1;
            match self.interpreter.interpret() {
                Ok(is_warm) => warm = is_warm,
                Err(exit) => return exit,
            }
        }
    }

    /// Host address of the guest code at `rip`, and the block of RAM.
    fn code_at(&mut self, rip: u64) -> Option<(usize, RamBlock, u64)> {
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
    fn placed(&self, rip: u64, key: u32) -> Option<Option<usize>> {
        let place = &self.places[(rip ^ rip >> 9) as usize % PLACES];
        if place.rip != rip || place.key != key || place.epoch != self.tables.epoch {
            return None;
        }
        let counter = if place.host == 0 { &self.shared.added } else { &self.shared.ended };
        (place.stamp == counter.load(Ordering::SeqCst)).then_some((place.host != 0).then_some(place.host))
    }

    fn note_place(&mut self, rip: u64, key: u32, stamp: u64, host: usize) {
        self.places[(rip ^ rip >> 9) as usize % PLACES] =
            Place { rip, key, epoch: self.tables.epoch, stamp, host };
    }

    fn make(&mut self, rip: u64, key: u32) -> Option<usize> {
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

    fn translate(
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
        let second = if (rip & 0xfff) as usize > 4096 - TAIL {
            self.second_page(cache, rip, &mut bytes[4096..])
        } else {
            None
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
            ahead: Cell::new((u16::MAX, 0)),
        };
        self.builder.build(&source, cache)
    }

    /// Reads the start of the page behind that of `rip`: its host address and id.
    fn second_page(&mut self, cache: &mut Cache, rip: u64, bytes: &mut [u8]) -> Option<(usize, u32)> {
        let linear = (rip & !0xfff).wrapping_add(4096);
        let (host, ram, offset) = self.code_at(linear)?;
        ram.set_code_observer(self.shared.clone());
        if self.interpreter.core().watch_code(ram, offset) & UNWATCHED != 0 {
            return None;
        }
        ram.page(offset).read(0, bytes);
        Some((host, cache.pair(linear, host)))
    }

    /// A block whose instruction reaches into another page was refused: the page that is there
    /// now becomes known if it is the same.
    fn check_crossing(&mut self, place: usize, alive: bool) -> Next {
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

    /// A block's bytes are others now: it ends.
    fn end_stale(&mut self, place: usize) -> Next {
        let site = self.exits.get(place).site;
        self.store_state(site.rip);
        self.shared.cache().invalidate(site.block);
        self.shared.ended.fetch_add(1, Ordering::SeqCst);
        Next::Loop
    }

    /// The cache was flushed: what points into it is void.
    fn renew(&mut self, generation: u64) {
        self.generation = generation;
        self.tables.forget_code();
        self.exits.clear();
        self.places.fill(Place::default());
    }

    /// Brings the interpreter's flushes to the tables. `true`: there were some.
    fn follow_flushes(&mut self) -> bool {
        let flushed = &mut self.interpreter.core_mut().flushed;
        if flushed.is_empty() {
            return false;
        }
        let (local, global) = (std::mem::take(&mut flushed.local), std::mem::take(&mut flushed.global));
        if local || global {
            self.tables.flush(global);
        }
        for page in flushed.pages.drain(..) {
            if !global {
                self.tables.flush_page(page);
            }
        }
        true
    }

    /// The interpreter's state to the state page.
    fn load_state(&mut self, all: bool) {
        self.follow_flushes();
        let core = self.interpreter.core_mut();
        core.simd.sync_mxcsr();
        let state = self.state.get();
        state.gpr.copy_from_slice(&core.r[..16]);
        let arith = core.rflags();
        state.flags = (arith & CF_TO_SF) << 8 | (arith >> 11 & 1);
        state.seg_base = [core.sc[4].base, core.sc[5].base];
        state.ymm = core.simd.ymm.as_ptr() as u64;
        state.upper = core.simd.ymm.iter().fold(0, |all, r| all | r[2] | r[3]);
        state.upper = u64::from(state.upper != 0);
        state.mxcsr = core.simd.mxcsr();
        state.x87 = u32::from(core.simd.is_live() && core.simd.fcw() & 0x3f == 0x3f);
        state.fip = core.simd.fip;
        state.fdp = core.simd.fdp;
        state.fop = u64::from(core.simd.fop);
        system::load(state, core);
        if all {
            system::load_registers(state, core, &self.tables);
        }
    }

    /// The state page to the interpreter's state.
    pub(crate) fn store_state(&mut self, rip: u64) {
        let core = self.interpreter.core_mut();
        let state = self.state.get();
        core.r[..16].copy_from_slice(&state.gpr);
        core.set_arithmetic((state.flags >> 8 & CF_TO_SF) | (state.flags & 1) << 11);
        core.simd.set_mxcsr(state.mxcsr);
        if state.x87 != 0 {
            if core.simd.fip != state.fip {
                core.simd.fip = state.fip;
                core.simd.fcs = core.st.seg[cpu::state::seg::CS].selector;
            }
            if core.simd.fdp != state.fdp {
                core.simd.fdp = state.fdp;
                core.simd.fds = core.st.seg[cpu::state::seg::DS].selector;
            }
            core.simd.fop = state.fop as u16;
        }
        system::store(state, core);
        core.rip = rip;
    }

    /// Runs translated code from `host`; `false`: it was flushed meanwhile.
    fn enter(&mut self, host: usize) -> bool {
        let gs = self.tables.gs(self.interpreter.core().view);
        if gs != self.gs {
            // SAFETY: GS is not used by the host's code on this thread; FSGSBASE was found
            // enabled when the engine was made.
            unsafe { std::arch::asm!("wrgsbase {}", in(reg) gs, options(nomem, nostack, preserves_flags)) };
            self.gs = gs;
        }
        let inside = self.peer.inside.load(Ordering::Relaxed);
        self.peer.inside.store(inside + 1, Ordering::SeqCst);
        let generation = self.shared.generation.load(Ordering::SeqCst);
        let valid = generation == self.generation;
        if valid {
            // SAFETY: `enter` is the entry stub, which follows the sysv64 ABI; `host` is an
            // entry or resumption point of a block that was not flushed, as checked after the
            // vCPU was marked as inside. GS addresses this vCPU's state page and tables.
            unsafe {
                let enter: extern "sysv64" fn(usize) = std::mem::transmute(self.enter);
                enter(host);
            }
        }
        self.peer.inside.store(inside + 2, Ordering::Release);
        if !valid {
            self.renew(generation);
        }
        valid
    }

    /// Runs translated code until the run loop is needed.
    pub(crate) fn execute(&mut self, mut host: usize, mut key: u32) -> Result<(), Exit> {
        if !self.counting.on {
            self.shared.time.steer(&self.interpreter.core().bus);
        }
        self.load_state(true);
        self.counts.entries += 1;
        self.revoked = self.shared.revoked.load(Ordering::SeqCst);
        let mut rip = self.interpreter.core().rip;
        loop {
            if !self.enter(host) {
                // Nothing ran since `rip` was noted.
                self.give_back(self.counting.owed);
                self.store_state(rip);
                return Ok(());
            }
            key = self.follow_ring(key);
            let next = match self.state.get().reason {
                reason::MISS => self.missed(&mut rip, key)?,
                reason::SLOW => {
                    self.counts.slow += 1;
                    let (place, alive) = self.site();
                    rip = self.exits.get(place).site.rip;
                    match self.exits.get(place).site.kind {
                        Kind::Crossing => {
                            self.give_back(self.exits.get(place).site.left);
                            self.check_crossing(place, alive)
                        }
                        Kind::Stale => {
                            self.give_back(self.exits.get(place).site.left);
                            self.end_stale(place)
                        }
                        _ => self.interpret_at(place, alive, key)?,
                    }
                }
                reason::LINK => self.linked(&mut rip, key),
                reason::INDIRECT => self.branched(&mut rip, key)?,
                reason::FAULT => self.faulted(&mut rip)?,
                reason::BUDGET => {
                    self.counts.budgets += 1;
                    let place = self.site().0;
                    let site = self.exits.get(place).site;
                    rip = site.rip;
                    self.leave_at(&site);
                    self.store_state(rip);
                    Next::Loop
                }
                _ => {
                    self.counts.polls += 1;
                    let place = self.site().0;
                    rip = self.exits.get(place).site.rip;
                    self.store_state(rip);
                    Next::Loop
                }
            };
            match next {
                Next::Host(next) => host = next,
                Next::Other(next, other) => {
                    (host, key) = (next, other);
                    rip = self.interpreter.core().rip;
                }
                Next::Loop => return Ok(()),
            }
        }
    }

    /// The site that was left through: its place in `exits`, and whether its block is alive.
    fn site(&mut self) -> (usize, bool) {
        let number = self.state.get().site;
        self.exits.place(number, &self.shared)
    }

    fn missed(&mut self, rip: &mut u64, key: u32) -> Result<Next, Exit> {
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

    pub(crate) fn host(&self, offset: u32) -> usize {
        self.area + offset as usize
    }

    /// Whether look-ups that the present block made may be void. (Then it is entered anew.)
    pub(crate) fn is_revoked(&self) -> bool {
        self.shared.revoked.load(Ordering::SeqCst) != self.revoked
    }

    /// The block at `rip` without groups, and its entry.
    fn plain(&mut self, rip: u64, key: u32) -> Option<(u32, usize)> {
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
        Some((found, cache.host(cache.blocks[found as usize].body)))
    }

    /// Makes the page of `linear` known to the tables.
    fn fill(&mut self, linear: u64, write: bool, table: bool) -> Fill {
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
            self.shared.note_writer(host, gs, linear & !0xfff);
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
    fn once(&mut self, linear: u64, host: usize, ram: RamBlock, offset: u64) -> Fill {
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

    fn stamp(&self) -> Stamp {
        (self.tables.epoch, self.shared.ended.load(Ordering::SeqCst), self.made)
    }

    /// The instruction of a site is executed by the interpreter.
    fn interpret_at(&mut self, place: usize, alive: bool, key: u32) -> Result<Next, Exit> {
        if let Some(next) = self.port(place, alive) {
            return Ok(next);
        }
        let left = self.exits.get(place).site.left;
        let before = self.interpreter.core().retired;
        let next = self.interpret_site(place, alive, key);
        let done = self.interpreter.core().retired.wrapping_sub(before) as u16;
        match next {
            Ok(Next::Host(_)) => self.counting.owed = left - 1,
            _ => self.give_back(left - done),
        }
        next
    }

    fn interpret_site(&mut self, place: usize, alive: bool, key: u32) -> Result<Next, Exit> {
        let site = self.exits.get(place).site;
        self.store_state(site.rip);
        if !alive || !self.exits.decode(place, &self.shared, self.interpreter.core()) {
            return Ok(Next::Loop);
        }
        let Some(single) = &self.exits.get(place).single else { return Ok(Next::Loop) };
        let ended = self.shared.ended.load(Ordering::SeqCst);
        let asked = (single.instruction().mnemonic() == Mnemonic::Cpuid)
            .then(|| system::asks(self.interpreter.core()));
        let ran = self.interpreter.run_single(single)?;
        if let Some(asked) = asked
            && ran == Ran::Next
        {
            system::identify(self.state.get(), self.interpreter.core(), asked);
        }
        if self.interpreter.must_look_up() {
            return Ok(Next::Loop);
        }
        if ran == Ran::Elsewhere || site.next == 0 {
            return Ok(self.go_on());
        }
        if self.is_revoked() || ran == Ran::End && self.key() != Some(key) {
            return Ok(Next::Loop);
        }
        if self.shared.ended.load(Ordering::SeqCst) != ended
            && !self.shared.cache().blocks[site.block as usize].alive
        {
            return Ok(Next::Loop);
        }
        // Look-ups that the block made are void after a flush.
        if self.follow_flushes() {
            return Ok(self.go_on());
        }
        self.load_state(ran == Ran::End);
        if site.kind == Kind::X87 && self.state.get().x87 == 0 {
            return Ok(Next::Loop);
        }
        Ok(Next::Host(self.host(site.next)))
    }

    /// On at the interpreter's `rip`, as an indirect branch goes there.
    fn go_on(&mut self) -> Next {
        let Some(key) = self.key() else { return Next::Loop };
        self.note_key(key);
        self.load_state(true);
        let rip = self.interpreter.core().rip;
        let state = self.state.get();
        (state.s0, state.flags_away) = (rip, 0);
        self.revoked = self.shared.revoked.load(Ordering::SeqCst);
        let slot = branch_slot(self.tables.gs(self.interpreter.core().view), (rip & 0xffff) as u32);
        let host = slot.load(Ordering::Acquire) as usize;
        if host != self.unknown {
            return Next::Other(host, key);
        }
        match self.branch(rip, key) {
            Some(host) => Next::Other(host, key),
            None => Next::Loop,
        }
    }

    fn linked(&mut self, rip: &mut u64, key: u32) -> Next {
        self.counts.links += 1;
        self.counting.owed = 0;
        let number = self.state.get().site;
        let (site, alive) = {
            let cache = self.shared.cache();
            let site = cache.sites[number as usize];
            (site, cache.blocks[site.block as usize].alive)
        };
        if let Kind::Plain { .. } = site.kind {
            *rip = site.rip;
            let Some((block, entry)) = self.plain(site.rip, key) else {
                self.store_state(site.rip);
                return Next::Loop;
            };
            let mut cache = self.shared.cache();
            if alive && cache.blocks[block as usize].alive && cache.sites[number as usize].next != block {
                cache.relink(number, block);
            }
            return Next::Host(entry);
        }
        let Kind::Link { target, id, polls, .. } = site.kind else { return Next::Loop };
        *rip = target;
        if let Some((host, _, _)) = self.code_at(target) {
            let mut cache = self.shared.cache();
            if let Some(block) = cache.find(&(host, target, key)) {
                if alive && cache.sites[number as usize].next != block {
                    cache.relink(number, block);
                }
                let pair = if id != 0 { cache.pair(target, host) } else { 0 };
                let b = &cache.blocks[block as usize];
                let entry = if polls { b.poll } else { b.body };
                let entry = cache.host(entry);
                drop(cache);
                if id != 0 {
                    self.note_code(target, pair);
                }
                self.revoked = self.shared.revoked.load(Ordering::SeqCst);
                return Next::Host(entry);
            }
        }
        self.store_state(target);
        Next::Loop
    }

    fn note_code(&mut self, linear: u64, pair: u32) {
        let view = self.interpreter.core().view;
        let global = self.note_mapping(linear);
        self.tables.set_code(view, linear, pair, global);
    }

    /// Whether the code page of `linear`, just translated, is global.
    fn note_mapping(&mut self, linear: u64) -> bool {
        let (global, size) = self.interpreter.core().code_mapping(linear);
        if size > 4096 {
            self.tables.note_large(linear, size);
        }
        global
    }

    fn branched(&mut self, rip: &mut u64, key: u32) -> Result<Next, Exit> {
        self.counts.indirect += 1;
        self.counting.owed = 0;
        let target = self.state.get().s0;
        if !Core::canonical(target) {
            return self.undo_branch(rip, key);
        }
        *rip = target;
        let absent = self.placed(target, key) == Some(None);
        match if absent { None } else { self.branch(target, key) } {
            Some(host) => Ok(Next::Host(host)),
            None => {
                self.store_state(target);
                Ok(Next::Loop)
            }
        }
    }

    /// The target of an indirect branch is no address: as if it had not begun, the interpreter
    /// executes it.
    fn undo_branch(&mut self, rip: &mut u64, key: u32) -> Result<Next, Exit> {
        let number = self.state.get().branch & !(1 << 31);
        let (place, alive) = self.exits.place(number, &self.shared);
        let site = self.exits.get(place).site;
        let Kind::Indirect { moved } = site.kind else {
            return Err(Exit::Broken(format!("a branch from nowhere to {:#x}", self.state.get().s0)));
        };
        *rip = site.rip;
        let state = self.state.get();
        let stack = state.gpr[4];
        state.gpr[4] = stack.wrapping_sub(i64::from(moved) as u64);
        if moved < 0 {
            let before = state.overwritten;
            let _ = self.interpreter.core_mut().write(stack, 8, before);
        }
        self.interpret_at(place, alive, key)
    }

    /// The entry of the block at `target`. Notes where indirect branches there go.
    fn branch(&mut self, target: u64, key: u32) -> Option<usize> {
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

    fn faulted(&mut self, rip: &mut u64) -> Result<Next, Exit> {
        self.counts.faults += 1;
        let at = self.state.get().fault_rip as usize;
        let cache = self.shared.cache();
        match cache.fault_site(at).map(|site| cache.sites[site as usize]) {
            Some(site) => {
                *rip = site.rip;
                self.counting.owed = site.left;
                // Its stub brings saved flags back and comes here again.
                Ok(Next::Host(cache.host(site.stub)))
            }
            None => Err(Exit::Broken(format!("the host refused translated code at {at:#x}"))),
        }
    }
}

impl TranslatorVcpu {
    fn tell_counts(&self) {
        let counters = &self.peer.counters;
        counters.fills.store(self.tables.fills, Ordering::Relaxed);
        counters.flushes.store(self.tables.flushes, Ordering::Relaxed);
        counters.rounds.store(self.counts.rounds, Ordering::Relaxed);
        counters.entries.store(self.counts.entries, Ordering::Relaxed);
    }

    /// Makes the present thread ready to run translated code.
    pub(crate) fn settle_thread(&mut self) -> Result<(), Exit> {
        let thread = std::thread::current().id();
        if self.thread != Some(thread) {
            let cache = self.shared.cache();
            let (area, exit) = (&cache.area, cache.stubs.exits[reason::FAULT as usize]);
            if let Err(failure) = signals::prepare_thread(area.execute, area.size, exit) {
                return Err(Exit::Broken(failure.to_string()));
            }
            drop(cache);
            self.thread = Some(thread);
            self.gs = 0;
            self.interpreter.begin();
        }
        Ok(())
    }
}

impl Vcpu for TranslatorVcpu {
    fn run(&mut self) -> Exit {
        if let Err(exit) = self.settle_thread() {
            return exit;
        }
        self.shared.time.resume(&self.interpreter.core().bus);
        let exit = self.run_inner();
        self.shared.time.pause();
        self.interpreter.core_mut().simd.sync();
        self.tell_counts();
        exit
    }

    fn save(&self) -> CpuState {
        self.interpreter.save()
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        self.shared.time.forget();
        self.interpreter.load(state)
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        self.interpreter.translate(linear)
    }

    fn set_debug(&mut self, plan: &DebugPlan) -> Result<()> {
        self.interpreter.set_debug(plan)
    }

    fn run_exactly(&mut self, instructions: u64) -> Result<Window> {
        self.run_window(instructions)
    }
}

impl Drop for TranslatorVcpu {
    fn drop(&mut self) {
        if std::env::var_os("RYOKAN_JIT_COUNTS").is_some() {
            eprintln!("{:?} fills {} flushes {}", self.counts, self.tables.fills, self.tables.flushes);
        }
        self.shared.leave(&self.peer);
    }
}
