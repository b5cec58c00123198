//! One vCPU: translated code where it is warm, the interpreter everywhere else.

mod accesses;
mod find;
mod ways;

pub(crate) use accesses::Fill;
use find::Place;

use crate::beside::{BATCH, Beside, Stamp};
use crate::cache::{Cache, Kind, NONE, Stage};
use crate::counted::Counting;
use crate::exits::Exits;
use crate::layout::{CF_TO_SF, FAR_LIMIT, MASK, NO_SEGMENT, reason};
use crate::near::Filled;
use crate::shared::{Peer, Shared, StatePage};
use crate::signals;
use crate::system;
use crate::tables::{self, Tables, branch_slot};
use crate::translate::{Builder, LARGEST, Source, TAIL, crosses, key};
use base::Result;
use cpu::engine::DebugPlan;
use cpu::paging::{CR0_EM, CR0_TS, CR4_FSGSBASE, CR4_OSFXSR, CR4_OSXSAVE};
use cpu::xsave::AVX512;
use cpu::{CpuState, Exit, Vcpu, VcpuConfig, Window};
use cpu_interpreter::{Core, Flush, InterpreterVcpu, Ran, mode};
use iced_x86::{Instruction, Mnemonic};
use memory::{RamBlock, UNWATCHED, Watch};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Places of which is remembered what was found there.
const PLACES: usize = 512;

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
    /// Pieces interpreted, and turns of the run loop.
    pub rounds: u64,
    pub turns: u64,
}

pub struct TranslatorVcpu {
    pub(crate) interpreter: InterpreterVcpu,
    pub(crate) shared: Arc<Shared>,
    peer: Arc<Peer>,
    /// Number of what sets its word in `tables::asked`.
    kicker: u64,
    pub(crate) tables: Tables,
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
    filled: Filled,
    thread: Option<std::thread::ThreadId>,
    gs: usize,
    /// The last block for a fast way back to it: (address of the first byte, ...).
    pub counts: Counts,
    pub(crate) counting: Counting,
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
        state.get().host_mxcsr = 0x1f80;
        state.get().masks = MASK;
        state.get().fars = FAR_LIMIT as u64;
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
        let asked = tables::asked(peer.gs[0]);
        asked.store(1, Ordering::SeqCst);
        let kicker = peer.link.set_kicker(move |_| asked.store(1, Ordering::SeqCst));
        let form = shared.form;
        Ok(TranslatorVcpu {
            interpreter,
            generation: shared.generation.load(Ordering::SeqCst),
            shared,
            peer,
            kicker,
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
            filled: Filled::default(),
            thread: None,
            gs: 0,
            counts: Counts::default(),
            counting: Counting::default(),
        })
    }

    fn is_stepping(&self) -> bool {
        match self.counting.on {
            true => self.interpreter.is_stepping(),
            false => self.interpreter.is_stepping_but_for_resume(),
        }
    }

    /// The mode key of blocks now; `None`: this code is the interpreter's.
    pub(crate) fn key(&self) -> Option<u32> {
        let core = self.interpreter.core();
        const FLAT: u32 = mode::CODE32 | mode::FLAT | mode::WIDE_CS | mode::STACK32;
        let plain = core.mode & (mode::SINGLE | mode::SLOW) == 0;
        let wide = core.mode & mode::CODE == mode::CODE64;
        if !plain || !wide && core.mode & (FLAT | mode::CODE) != FLAT || self.is_stepping() {
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
                if st.xcr0 & AVX512 == AVX512 {
                    bits |= key::AVX512;
                }
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
    pub(crate) fn note_key(&mut self, key: u32) {
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
            self.counts.turns += 1;
            if self.counts.turns.is_multiple_of(16) {
                self.shared.review();
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
        let mut log = std::mem::take(&mut flushed.0);
        for flush in log.drain(..) {
            match flush {
                Flush::Local => self.tables.flush(false),
                Flush::All(context) => self.tables.start(context),
                Flush::Page(page) => self.tables.flush_page(page),
                Flush::Switch { context, keep } => self.tables.switch(context, keep, &self.shared),
                Flush::Context(context) => self.tables.forget_context(Some(context)),
                Flush::OtherContexts => self.tables.forget_context(None),
            }
        }
        self.interpreter.core_mut().flushed.0 = log;
        true
    }

    /// The interpreter's state to the state page.
    fn load_state(&mut self, all: bool) {
        self.follow_flushes();
        let core = self.interpreter.core_mut();
        core.simd.sync_mxcsr();
        let state = self.state.get();
        state.gpr.copy_from_slice(&core.r[..16]);
        state.set_flags(core.rflags());
        state.seg_base = [core.sc[4].base, core.sc[5].base];
        state.vectors = core.simd.zmm.as_ptr() as u64;
        state.avx512 = u64::from(core.simd.avx512);
        let words = if core.simd.avx512 { 2..8 } else { 2..4 };
        let upper = |all, r: &[u64; 8]| r[words.clone()].iter().fold(all, |all, word| all | word);
        state.upper = u64::from(core.simd.zmm[..16].iter().fold(0, upper) != 0);
        state.mxcsr = core.simd.mxcsr();
        state.x87 = u32::from(core.simd.is_live() && core.simd.fcw() & 0x3f == 0x3f);
        state.fip = core.simd.fip;
        state.fdp = core.simd.fdp;
        state.fop = u64::from(core.simd.fop);
        state.fdp_segment = NO_SEGMENT;
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
            if let Some(segment) = core.st.seg.get(state.fdp_segment as usize) {
                core.simd.fdp = state.fdp;
                core.simd.fds = segment.selector;
            }
            core.simd.fop = state.fop as u16;
        }
        system::store(state, core);
        core.rip = rip;
    }

    /// Translated code need not look if nothing is asked any more.
    fn look_who_asks(&mut self) {
        let asked = tables::asked(self.gs);
        if asked.load(Ordering::Relaxed) == 0 {
            return;
        }
        // Whoever asks does so before he sets this.
        asked.store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !self.peer.link.requests().is_empty() {
            asked.store(1, Ordering::SeqCst);
        }
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
        self.look_who_asks();
        let inside = self.peer.inside.load(Ordering::Relaxed);
        self.peer.inside.store(inside + 1, Ordering::SeqCst);
        let revoked = self.shared.revoked.load(Ordering::SeqCst);
        self.filled.follow(self.state.get(), &mut self.tables, revoked);
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
                        Kind::Hot => self.heated(place, alive, key),
                        Kind::Far => self.went_far(place, alive),
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
                    let site = self.exits.get(place).site;
                    rip = site.rip;
                    self.store_state(rip);
                    let mut cache = self.shared.cache();
                    let often = cache.runs_often(site.block);
                    let ended = cache.sampled(site.block) | often;
                    drop(cache);
                    if often {
                        self.shared.sample_on();
                    }
                    if ended {
                        self.shared.ended.fetch_add(1, Ordering::SeqCst);
                    }
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

    pub(crate) fn host(&self, offset: u32) -> usize {
        self.area + offset as usize
    }

    /// Whether look-ups that the present block made may be void. (Then it is entered anew.)
    pub(crate) fn is_revoked(&self) -> bool {
        self.shared.revoked.load(Ordering::SeqCst) != self.revoked
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
        self.peer.link.forget_kicker(self.kicker);
        self.shared.leave(&self.peer);
    }
}
