//! The engine and its run loop.

use crate::block::{self, Cache};
use crate::core::{Core, WatchPoint, mode};
use crate::decode;
use crate::flags;
use crate::op::Stop;
use crate::segment::Source;
use base::Result;
use cpu::engine::DebugPlan;
use cpu::fault::{Escalation, escalate, vector};
use cpu::state::Activity;
use cpu::{CpuState, Engine, Exit, Fault, Request, Vcpu, VcpuConfig, Window};
use memory::UNWATCHED;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Instructions between two returns to the run loop (requests are seen at each block).
///
/// Handlers end in a call of the next one. LLVM makes jumps of these calls, but nothing obliges
/// it to: a chain is so short that were none of them a jump, a vCPU's stack of 16 MiB would
/// suffice for frames of 1 KiB.
pub(crate) const BUDGET: i64 = 1 << 14;

/// What all vCPUs of one engine share.
#[derive(Clone)]
pub struct Shared {
    pub bus_lock: Arc<base::Mutex<()>>,
    pub thunks: Arc<cpu_host::Thunks>,
    /// How many vCPUs there are.
    pub vcpus: Arc<AtomicUsize>,
}

impl Shared {
    pub fn new() -> Result<Shared> {
        Ok(Shared {
            bus_lock: Arc::new(base::Mutex::new(())),
            thunks: Arc::new(cpu_host::Thunks::new()?),
            vcpus: Arc::default(),
        })
    }
}

/// The interpreter as an [`Engine`]; one for each machine.
pub struct Interpreter(Shared);

impl Interpreter {
    pub fn new() -> Result<Self> {
        Ok(Interpreter(Shared::new()?))
    }
}

impl Engine for Interpreter {
    fn name(&self) -> &'static str {
        "interpreter"
    }

    fn vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>> {
        Ok(Box::new(InterpreterVcpu::new(config, self.0.clone())?))
    }
}

/// Makes stores of other vCPUs that were issued before they could see a new code watch
/// visible before the watched bytes are read.
///
/// A vCPU stores, then loads the page's watch byte; x86 may let the load pass the store. The
/// decoder sets the watch, then reads the bytes. A barrier on *every* thread between the two
/// leaves only two cases for a store: it is visible to the decoder, or its thread sees the
/// watch. Without expedited barriers a store may stay unseen by the decoder for the few
/// nanoseconds that a store buffer takes to drain.
pub fn drain_stores() {
    use rustix::thread::{MembarrierCommand, membarrier};
    if membarrier(MembarrierCommand::PrivateExpedited).is_err()
        && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
    {
        let _ = membarrier(MembarrierCommand::PrivateExpedited);
    }
}

/// One virtual CPU.
pub struct InterpreterVcpu {
    pub(crate) core: Core,
    pub(crate) cache: Cache,
    plan: DebugPlan,
    nmi_pending: bool,
    /// A breakpoint that was reported at this address: the next run steps over it.
    reported: Option<u64>,
    entered: bool,
}

impl InterpreterVcpu {
    pub fn new(config: VcpuConfig, shared: Shared) -> Result<Self> {
        Ok(InterpreterVcpu {
            core: Core::new(config, shared)?,
            cache: Cache::new(),
            plan: DebugPlan::default(),
            nmi_pending: false,
            reported: None,
            entered: false,
        })
    }

    pub(crate) fn has_nmi(&self) -> bool {
        self.nmi_pending
    }

    /// Blocks decoded and whole flushes, for reports.
    pub fn cache_report(&self) -> (usize, u64) {
        (self.cache.heads.len(), self.cache.flushes)
    }

    fn enter(&mut self) {
        if !std::mem::replace(&mut self.entered, true) {
            self.core.memory_map_changed();
        }
    }

    fn run_inner(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.attend() {
                return exit;
            }
            if let Err(exit) = self.round(self.stepping(), BUDGET) {
                return exit;
            }
        }
    }

    /// Executes blocks of up to `limit` instructions together, or one instruction where that
    /// is needed, after [`Self::attend`].
    pub(crate) fn round(&mut self, single: bool, limit: i64) -> Result<Stop, Exit> {
        if single && let Some(exit) = self.breakpoint() {
            return Err(exit);
        }
        let tf = self.core.st.rflags & flags::TF != 0;
        self.core.delivered = false;
        let stop = self.execute(single, limit);
        let stepped = !stop.is_early();
        if let Some(exit) = self.settle(stop, tf) {
            return Err(exit);
        }
        if std::mem::take(&mut self.core.debug_hit) || self.plan.single_step && stepped {
            return Err(Exit::Debug);
        }
        Ok(stop)
    }

    /// [`Vcpu::run_exactly`] until `goal` instructions have been retired.
    fn run_window(&mut self, goal: u64) -> Option<Exit> {
        self.attend_requests().or_else(|| self.go_to(goal))
    }

    /// On until `goal` instructions have been retired; requests wait.
    pub(crate) fn go_to(&mut self, goal: u64) -> Option<Exit> {
        let mut later = Request::empty();
        let mut short = false;
        let exit = loop {
            let left = goal.wrapping_sub(self.core.retired);
            if left == 0 {
                break None;
            }
            later |= self.postpone();
            if let Some(exit) = self.attend_events() {
                break Some(exit);
            }
            let single = short || self.stepping();
            let limit = i64::try_from(left).map_or(BUDGET, |left| left.min(BUDGET));
            match self.round(single, limit) {
                // Nothing asks: the next block may have more instructions than are left.
                Ok(Stop::Poll) => short = limit < BUDGET && self.core.bus.link.requests().is_empty(),
                Ok(_) => {}
                Err(exit) => break Some(exit),
            }
        };
        later |= self.postpone();
        if !later.is_empty() {
            self.core.bus.link.post(later);
        }
        exit
    }

    /// Takes requests that came in during a window; returns those to be met after it.
    pub fn postpone(&mut self) -> Request {
        if self.core.bus.link.requests().is_empty() {
            return Request::empty();
        }
        let mut taken = self.core.bus.link.take(Request::all());
        if taken.contains(Request::FLUSH) {
            self.core.memory_map_changed();
            taken.remove(Request::FLUSH);
        }
        taken
    }

    pub(crate) fn stepping(&self) -> bool {
        self.core.st.rflags & flags::RF != 0 || self.steps_without_resume()
    }

    /// [`Self::stepping`], were RFLAGS.RF clear.
    pub(crate) fn steps_without_resume(&self) -> bool {
        self.core.st.interrupt_shadow
            || self.plan.single_step
            || !self.plan.breakpoints.is_empty()
            || self.core.mode & mode::SINGLE != 0
            || self.core.has_code_breakpoints()
    }

    /// Instruction breakpoints, the debugger's and the guest's.
    fn breakpoint(&mut self) -> Option<Exit> {
        let linear = self.core.linear_rip(self.core.rip);
        let skip = self.reported.take() == Some(linear);
        if !skip && self.plan.breakpoints.contains(&linear) {
            self.reported = Some(linear);
            return Some(Exit::Debug);
        }
        if self.core.st.rflags & flags::RF != 0 || !self.core.has_code_breakpoints() {
            return None;
        }
        let (dr, dr7) = (self.core.st.dr, self.core.st.dr[7]);
        let hits = (0..4)
            .filter(|&n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 0 && dr[n] == linear)
            .fold(0, |bits, n| bits | 1 << n);
        if hits == 0 {
            return None;
        }
        self.deliver(Fault { vector: vector::DB, error: None, payload: hits })
    }

    /// Executes from `rip` until something else is needed.
    fn execute(&mut self, single: bool, limit: i64) -> Stop {
        let core = &mut self.core;
        let shadow = std::mem::take(&mut core.st.interrupt_shadow);
        // RF lasts for one instruction; IRET may set it anew.
        let resume = core.st.rflags & flags::RF;
        core.st.rflags &= !resume;
        if self.cache.is_full() {
            self.cache.clear();
        }
        let heat_limit = core.heat_limit;
        if single {
            core.mode |= mode::SINGLE;
            core.heat_limit = 0;
        }
        core.budget = if single { 1 } else { limit };
        core.slack = 0;
        let start = core.budget;
        let stop = match find(core, &mut self.cache) {
            Ok(block) => drive(core, &self.cache, block),
            Err(fault) => {
                core.fault = fault;
                Stop::Fault
            }
        };
        let ran = start - core.budget - core.slack;
        core.retired = core.retired.wrapping_add(ran as u64);
        // A branch that was executed alone goes as far as the head of the next block.
        let stop = if single && ran != 0 && stop.is_early() { Stop::Resolve } else { stop };
        if single {
            core.mode_changed();
            core.heat_limit = heat_limit;
        }
        if stop.is_early() {
            core.st.interrupt_shadow |= shadow && single;
            core.st.rflags |= resume;
        } else if stop == Stop::Fault {
            core.st.rflags |= resume;
        }
        if stop == Stop::Link && !single {
            self.link();
        }
        stop
    }

    /// Connects the branch that led here with the block at `rip`.
    fn link(&mut self) {
        let (op, n) = self.core.link_from;
        let ended = self.core.budget <= 0;
        if ended || self.cache.is_full() || self.core.bus.link.requests().bits() != 0 {
            return;
        }
        let Ok(block) = find(&mut self.core, &mut self.cache) else { return };
        let head = &self.cache.heads[block as usize];
        if head.second.is_none()
            && head.first.physical != u64::MAX
            && let Some(op) = self.cache.ops.get(op as usize)
        {
            op.links[usize::from(n & 1)].set(block);
        }
    }

    /// What follows a stop.
    pub(crate) fn settle(&mut self, stop: Stop, tf: bool) -> Option<Exit> {
        if tf && !self.core.delivered && !stop.is_early() && stop != Stop::Fault {
            self.core.pending_db |= 1 << 14;
        }
        match stop {
            Stop::Fault => {
                let fault = self.core.fault;
                self.core.pending_db = 0;
                return self.deliver(fault);
            }
            Stop::Stale => self.renew(),
            Stop::Halt => self.core.st.activity = Activity::Halted,
            _ => {}
        }
        None
    }

    /// A block's page was written: keeps the block if its own bytes are the same.
    fn renew(&mut self) {
        let block = self.core.goto_block;
        let Some(head) = self.cache.heads.get(block as usize) else { return };
        let version = match self.core.memory_view.memory_page(head.first.physical) {
            Some((ram, offset, _)) if ram.page(offset) == head.first.page => {
                self.core.watch_code(ram, offset)
            }
            _ => head.first.version.load(std::sync::atomic::Ordering::Acquire),
        };
        let at = (head.rip.wrapping_add(self.core.sc[1].base) & 0xfff) as usize;
        let same = head.checked == (version & UNWATCHED != 0);
        if same && head.second.is_none() && head.holds(&self.cache, at) {
            head.seen.set(version & !UNWATCHED);
            return;
        }
        let (physical, rip, mode) = (head.first.physical | at as u64, head.rip, head.mode);
        self.cache.forget(physical, rip, mode);
    }

    /// Requests, traps and interrupts, before the next instruction.
    pub(crate) fn attend(&mut self) -> Option<Exit> {
        self.attend_requests().or_else(|| self.attend_events())
    }

    pub(crate) fn attend_requests(&mut self) -> Option<Exit> {
        if self.core.bus.link.requests().is_empty() { None } else { self.take_requests() }
    }

    pub(crate) fn attend_events(&mut self) -> Option<Exit> {
        let core = &mut self.core;
        if let Some(event) = core.st.pending.take() {
            // DR6 tells already what a debug exception was for.
            let payload = if event.vector == vector::PF { core.st.cr2 } else { 0 };
            let fault = Fault { vector: event.vector, error: event.error_code, payload };
            return self.deliver(fault);
        }
        match core.st.activity {
            Activity::WaitForSipi | Activity::Shutdown => return Some(Exit::Halted),
            _ => {}
        }
        if core.pending_db != 0 && !core.st.interrupt_shadow {
            let payload = std::mem::take(&mut core.pending_db);
            return self.deliver(Fault { vector: vector::DB, error: None, payload });
        }
        if core.st.interrupt_shadow {
            return None;
        }
        if self.nmi_pending && !core.st.nmi_blocked {
            self.nmi_pending = false;
            core.st.activity = Activity::Running;
            core.st.nmi_blocked = true;
            return self.inject(vector::NMI);
        }
        if core.irq_hint && core.st.rflags & flags::IF != 0 {
            if let Some(vector) = core.bus.apic.acknowledge() {
                core.st.activity = Activity::Running;
                return self.inject(vector);
            }
            core.irq_hint = false;
        }
        (core.st.activity == Activity::Halted).then_some(Exit::Halted)
    }

    fn take_requests(&mut self) -> Option<Exit> {
        let link = self.core.bus.link.clone();
        let taken = link.take(
            Request::INTERRUPT
                | Request::NMI
                | Request::INIT
                | Request::SIPI
                | Request::FLUSH
                | Request::SMI
                | Request::MCE,
        );
        if taken.contains(Request::FLUSH) {
            self.core.memory_map_changed();
        }
        if taken.contains(Request::INTERRUPT) {
            self.core.irq_hint = true;
        }
        if taken.contains(Request::NMI) {
            self.nmi_pending = true;
        }
        if taken.contains(Request::INIT) {
            self.core.simd.sync();
            let mut state = self.core.save_state();
            let bootstrap = self.core.bus.apic.is_bootstrap();
            state.init(bootstrap, self.core.cpuid.signature());
            self.nmi_pending = false;
            self.core.load_state(&state);
        }
        if taken.contains(Request::SIPI) && self.core.st.activity == Activity::WaitForSipi {
            self.core.simd.sync();
            let mut state = self.core.save_state();
            state.sipi(link.sipi_vector());
            self.core.load_state(&state);
        }
        link.take(Request::EXIT).contains(Request::EXIT).then_some(Exit::Asked)
    }

    /// Delivers an NMI or an external interrupt.
    fn inject(&mut self, vector: u8) -> Option<Exit> {
        self.core.simd.sync_mxcsr();
        match self.core.interrupt(vector, None, Source::Hardware) {
            Ok(()) => None,
            Err(fault) => self.deliver_after(None, fault),
        }
    }

    /// Delivers an exception of the instruction at `rip`.
    fn deliver(&mut self, fault: Fault) -> Option<Exit> {
        self.deliver_after(None, fault)
    }

    fn deliver_after(&mut self, mut first: Option<Fault>, mut fault: Fault) -> Option<Exit> {
        for _ in 0..4 {
            match escalate(first, fault) {
                Escalation::TripleFault => {
                    self.core.st.activity = Activity::Shutdown;
                    return Some(Exit::TripleFault);
                }
                Escalation::DoubleFault => fault = Fault::coded(vector::DF, 0),
                Escalation::Serial(_) => {}
            }
            let core = &mut self.core;
            match fault.vector {
                vector::PF => core.st.cr2 = fault.payload,
                vector::DB => {
                    core.st.dr[6] |= fault.payload;
                    core.st.dr[7] &= !(1 << 13);
                }
                _ => {}
            }
            let trap = matches!(fault.vector, vector::BP | vector::OF)
                // Instruction breakpoints are faults, but do not set RF (SDM 3, 17.3.1.1).
                || fault.vector == vector::DB && fault.payload & 1 << 13 == 0;
            if !trap && fault.vector != vector::DF {
                core.st.rflags |= flags::RF;
            }
            match core.interrupt(fault.vector, fault.error, Source::Hardware) {
                Ok(()) => {
                    // A trap after HLT ends it.
                    if core.st.activity == Activity::Halted {
                        core.st.activity = Activity::Running;
                    }
                    return None;
                }
                Err(second) => {
                    first = Some(fault);
                    fault = second;
                }
            }
        }
        self.core.st.activity = Activity::Shutdown;
        Some(Exit::TripleFault)
    }

    /// One instruction, for tests: its exception instead of its delivery.
    pub(crate) fn step(&mut self) -> Result<(), Fault> {
        loop {
            let stop = self.execute(true, 1);
            self.core.simd.sync();
            match stop {
                Stop::Fault => return Err(self.core.fault),
                Stop::Stale => self.renew(),
                Stop::Poll => {
                    let _ = self.core.bus.link.take(Request::all());
                }
                Stop::Halt => {
                    self.core.st.activity = Activity::Halted;
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }
}

/// The block at `rip`, decoded if need be.
fn find(core: &mut Core, cache: &mut Cache) -> Result<u32, Fault> {
    let rip = core.rip;
    let guess = cache.guess(rip);
    if guess != 0
        && let Some(head) = cache.heads.get(guess as usize)
        && head.rip == rip
        && head.mode == core.mode
        && head.second.is_none()
        && core.executes_at(rip, head.first.physical)
        && (core.mode & mode::WIDE_CS != 0 || rip <= u64::from(core.st.seg[1].limit))
    {
        return Ok(guess);
    }
    let linear = core.linear_rip(rip);
    let physical = core.translate_code(linear)?;
    let in_limit = core.mode & mode::WIDE_CS != 0 || rip <= u64::from(core.st.seg[1].limit);
    if in_limit && let Some(block) = cache.find(physical, rip, core.mode) {
        if second_page_holds(core, cache, block, linear)? {
            return Ok(block);
        }
        cache.forget(physical, rip, core.mode);
    }
    decode::build(core, cache, rip)
}

/// Whether a block's last instruction still crosses into the same page with the same bytes.
fn second_page_holds(core: &mut Core, cache: &Cache, block: u32, linear: u64) -> Result<bool, Fault> {
    let head = &cache.heads[block as usize];
    let Some((second, seen)) = &head.second else { return Ok(true) };
    let (second, seen) = (*second, seen.get());
    let next = core.wrap((linear & !0xfff).wrapping_add(4096));
    if core.translate_code(next)? != second.physical {
        return Ok(false);
    }
    let version = second.version.load(std::sync::atomic::Ordering::Acquire);
    Ok(version == seen || version & UNWATCHED != 0 && head.holds_second(cache, (linear & 0xfff) as usize))
}

/// Runs a chain of blocks.
fn drive(core: &mut Core, cache: &Cache, block: u32) -> Stop {
    #[cfg(tail_dispatch)]
    {
        block::enter(core, cache, block)
    }
    #[cfg(not(tail_dispatch))]
    {
        let mut stop = block::enter(core, cache, block);
        while stop == Stop::Goto {
            let Some(head) = cache.heads.get(core.goto_block as usize) else { return Stop::Resolve };
            let start = head.start as usize;
            stop = Stop::Resolve;
            for op in &cache.ops[start..start + head.len as usize] {
                stop = (op.run)(core, cache, op, &[]);
                if stop != Stop::Next {
                    break;
                }
            }
        }
        stop
    }
}

impl Vcpu for InterpreterVcpu {
    fn run(&mut self) -> Exit {
        self.enter();
        let exit = self.run_inner();
        self.core.simd.sync();
        exit
    }

    fn save(&self) -> CpuState {
        self.core.save_state()
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        self.core.load_state(state);
        self.reported = None;
        self.nmi_pending = false;
        Ok(())
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        self.core.paging.peek(&self.core.bus.memory.view(), linear)
    }

    fn set_debug(&mut self, plan: &DebugPlan) -> Result<()> {
        self.core.watchpoints.retain(|w| w.dr6 != 0);
        for &(start, len, write_only) in &plan.watchpoints {
            self.core.watchpoints.push(WatchPoint { start, len: len.max(1), write_only, dr6: 0 });
        }
        self.plan = plan.clone();
        self.core.flush_tlbs(true);
        self.core.mode_changed();
        Ok(())
    }

    fn retired(&self) -> Option<u64> {
        Some(self.core.retired)
    }

    fn run_exactly(&mut self, instructions: u64) -> Result<Window> {
        self.enter();
        let start = self.core.retired;
        let heat_limit = std::mem::take(&mut self.core.heat_limit);
        let exit = self.run_window(start.wrapping_add(instructions));
        self.core.heat_limit = heat_limit;
        self.core.simd.sync();
        Ok(Window { retired: self.core.retired.wrapping_sub(start), exit })
    }
}
