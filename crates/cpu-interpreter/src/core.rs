//! One vCPU's working state.

use crate::flags::{self, mask};
use crate::tlb::{TlbSet, View};
use base::Result;
use cpu::fault::vector;
use cpu::paging::{self, CR0_AM, CR0_PE, CR4_SMAP, Paging};
use cpu::state::{PendingEvent, Segment, seg};
use cpu::{CpuState, Fault, VcpuConfig};
use memory::{FlatView, RamBlock};
use std::sync::Arc;

/// Bits of the mode word that blocks are keyed by.
pub mod mode {
    /// Code size: 0 = 16, 1 = 32, 2 = 64 bit.
    pub const CODE32: u32 = 1;
    pub const CODE64: u32 = 2;
    pub const CODE: u32 = 3;
    /// Stack pointer size in 16/32-bit code.
    pub const STACK32: u32 = 4;
    /// CS, SS, DS, ES: base 0, no limit, writable data (32-bit code only).
    pub const FLAT: u32 = 8;
    /// CS has no limit below 4 GiB, so jumps need no check.
    pub const WIDE_CS: u32 = 16;
    /// Blocks of one instruction.
    pub const SINGLE: u32 = 32;
    /// Generic handlers only (alignment checks, data breakpoints).
    pub const SLOW: u32 = 64;
}

/// A segment as address generation needs it.
#[derive(Clone, Copy, Debug)]
pub struct SegFast {
    pub base: u64,
    pub low: u64,
    pub high: u64,
    pub readable: bool,
    pub writable: bool,
}

impl SegFast {
    pub const OPEN: SegFast = SegFast { base: 0, low: 0, high: u64::MAX, readable: true, writable: true };
}

/// A TLB flush, or a change of address space (Intel SDM 3A 4.10.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Everything of the present address space but global pages.
    Local,
    /// Everything of all address spaces; the present one is this.
    All(u16),
    /// One page of the present address space, and global ones there.
    Page(u64),
    /// `context` (PCID) is the present address space now; what is known of it stays if `keep`.
    Switch { context: u16, keep: bool },
    /// Everything of an address space that is not the present one, but global pages.
    Context(u16),
    /// Likewise of all but the present one.
    OtherContexts,
}

/// Flushes since a faster engine last looked, in their order, for tables that it keeps itself.
#[derive(Debug, Default)]
pub struct FlushLog(pub Vec<Flush>);

impl FlushLog {
    const LONGEST: usize = 64;

    /// `present` is the address space after it.
    fn push(&mut self, flush: Flush, present: u16) {
        if self.0.last() == Some(&flush) {
            return;
        }
        if self.0.len() < Self::LONGEST {
            self.0.push(flush);
        } else {
            self.0.clear();
            self.0.push(Flush::All(present));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads the time-stamp counter before the guest's offset.
pub type Counter = Box<dyn Fn() -> Option<u64> + Send>;

/// A data watchpoint: DR0-3 or the debugger's.
#[derive(Clone, Copy, Debug)]
pub struct WatchPoint {
    pub start: u64,
    pub len: u64,
    pub write_only: bool,
    /// DR6 bit to set, 0 for the debugger's own.
    pub dr6: u64,
}

impl WatchPoint {
    /// Whether any of `len` bytes from `start` is watched.
    pub fn overlaps(&self, start: u64, len: u64) -> bool {
        let last = |start: u64, len: u64| start.saturating_add(len.max(1) - 1);
        start <= last(self.start, self.len) && self.start <= last(start, len)
    }
}

pub struct Core {
    /// General registers; slot 16 is always zero, those above are there so that any register
    /// number is in bounds.
    pub r: [u64; 256],
    /// Arithmetic flags; see [`crate::flags`].
    pub res: u64,
    pub aux: u64,
    pub fa: u64,
    pub fb: u64,
    pub kind: crate::flags::Kind,
    pub rip: u64,
    pub budget: i64,
    pub sc: [SegFast; 8],
    pub tlb: Box<TlbSet>,
    /// The other views; the active one's place is empty.
    parked: [Option<Box<TlbSet>>; 3],
    pub view: View,
    pub mode: u32,
    pub cpl: u8,
    /// A store hit a page with decoded code: end the block after this instruction.
    pub smc: bool,
    /// Entries after which a block is reported as [`crate::op::Stop::Warm`]; 0: never.
    pub heat_limit: u32,
    /// What a faster engine has to drop from tables of its own.
    pub flushed: FlushLog,
    pub fault: Fault,
    /// How the last generic instruction ended, and whether it faulted instead.
    pub flow: crate::exec::Flow,
    pub faulted: bool,
    /// The instruction delivered a software interrupt: no single-step trap after it.
    pub delivered: bool,
    /// Software interrupts are reported as faults (tests).
    pub report_software: bool,
    /// Budget that was taken away to end the run early.
    pub slack: i64,
    /// Where a chain left: (op index in the cache, link number).
    pub link_from: (u32, u8),
    pub goto_block: u32,
    /// All other state. `gpr`, `rip` and the arithmetic bits of `rflags` are stale here.
    pub st: CpuState,
    pub bus: cpu::CpuBus,
    pub memory_view: Arc<FlatView>,
    pub port_view: Arc<FlatView>,
    pub paging: Paging,
    pub cpuid: Arc<cpu::cpuid::CpuidTable>,
    pub features: crate::decode::Features,
    pub watchpoints: Vec<WatchPoint>,
    /// DR6 bits of traps to take after the present instruction.
    pub pending_db: u64,
    /// A debugger's watchpoint was hit.
    pub debug_hit: bool,
    /// The interrupt controller may have something.
    pub irq_hint: bool,
    pub retired: u64,
    pub monitor: Option<u64>,
    pub random: u64,
    /// A page behind empty TLB entries and blocks without memory.
    pub parking: RamBlock,
    pub simd: cpu_host::SimdContext,
    /// Scratch for the memory operand of a SIMD instruction.
    pub operand: cpu_host::Operand,
    pub thunks: Arc<cpu_host::Thunks>,
    /// Held for locked accesses that cross a page; one for all vCPUs of a machine.
    pub bus_lock: Arc<base::Mutex<()>>,
    /// How many vCPUs the machine has.
    pub vcpus: Arc<std::sync::atomic::AtomicUsize>,
    /// A faster source of [`cpu::CpuBus::tsc`]; `None` while it has nothing to say.
    pub counter: Option<Counter>,
    /// MXCSR/x87 state may be used without #NM/#UD (recomputed with the mode).
    pub ac_on: bool,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.vcpus.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Core {
    pub fn new(config: VcpuConfig, shared: crate::vcpu::Shared) -> Result<Core> {
        let parking = RamBlock::new("tlb-parking", 4096)?;
        let physical_bits = match config.cpuid.query(0x8000_0008, 0).eax & 0xff {
            0 => 36,
            bits => bits.clamp(32, 52) as u8,
        };
        let bootstrap = config.bus.apic.is_bootstrap();
        let st = CpuState::reset(bootstrap, config.cpuid.signature());
        let memory_view = config.bus.memory.snapshot();
        let port_view = config.bus.ports.snapshot();
        let mut core = Core {
            r: [0; 256],
            res: 1,
            aux: 0,
            fa: 0,
            fb: 0,
            kind: crate::flags::Kind::Explicit,
            rip: 0,
            budget: 0,
            sc: [SegFast::OPEN; 8],
            tlb: Box::new(TlbSet::new(parking)),
            parked: [None, Some(Box::new(TlbSet::new(parking))), Some(Box::new(TlbSet::new(parking)))],
            view: View::User,
            mode: 0,
            cpl: 0,
            smc: false,
            heat_limit: 0,
            flushed: FlushLog::default(),
            fault: Fault::UD,
            flow: crate::exec::Flow::Next,
            faulted: false,
            delivered: false,
            report_software: false,
            slack: 0,
            link_from: (0, 0),
            goto_block: 0,
            features: crate::decode::Features::of(&config.cpuid),
            paging: Paging { physical_bits, ..Paging::default() },
            st,
            memory_view,
            port_view,
            cpuid: config.cpuid,
            watchpoints: Vec::new(),
            pending_db: 0,
            debug_hit: false,
            irq_hint: true,
            retired: 0,
            monitor: None,
            random: 0x9e37_79b9_7f4a_7c15,
            parking,
            simd: cpu_host::SimdContext::default(),
            operand: cpu_host::Operand::default(),
            thunks: shared.thunks,
            bus_lock: shared.bus_lock,
            vcpus: shared.vcpus,
            counter: None,
            ac_on: false,
            bus: config.bus,
        };
        core.vcpus.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let state = core.st.clone();
        core.load_state(&state);
        Ok(core)
    }

    pub fn load_state(&mut self, state: &CpuState) {
        self.st = state.clone();
        self.simd.load(&state.fpu);
        self.r[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.set_rflags(state.rflags);
        self.cpl = state.cpl();
        self.pending_db = 0;
        if state.interrupt_shadow && state.pending.is_some_and(|event| event.vector == vector::DB) {
            // It waits for one instruction more.
            self.st.pending = None;
            self.pending_db = state.dr[6] & 0xe00f;
        }
        self.irq_hint = true;
        self.monitor = None;
        self.flush_tlbs(true);
        self.paging_changed();
        self.debug_changed();
        self.mode_changed();
    }

    pub fn save_state(&self) -> CpuState {
        let mut state = self.st.clone();
        state.gpr.copy_from_slice(&self.r[..16]);
        state.rip = self.rip;
        state.rflags = self.rflags();
        state.fpu = self.simd.state();
        if self.pending_db != 0 && state.pending.is_none() {
            state.dr[6] |= self.pending_db;
            state.pending = Some(PendingEvent { vector: vector::DB, error_code: None, software: false });
        }
        state
    }

    pub fn long_mode(&self) -> bool {
        self.st.efer & paging::EFER_LMA != 0
    }

    pub fn is_64bit(&self) -> bool {
        self.mode & mode::CODE == mode::CODE64
    }

    pub fn protected(&self) -> bool {
        self.st.cr0 & CR0_PE != 0 && self.st.rflags & flags::VM == 0
    }

    pub fn v86(&self) -> bool {
        self.st.rflags & flags::VM != 0
    }

    pub fn iopl(&self) -> u8 {
        (self.st.rflags >> 12 & 3) as u8
    }

    /// Size in bytes of the stack pointer.
    pub fn stack_size(&self) -> usize {
        if self.is_64bit() {
            8
        } else if self.mode & mode::STACK32 != 0 {
            4
        } else {
            2
        }
    }

    /// Reads a general register's low `size` bytes.
    #[inline(always)]
    pub fn reg(&self, index: u8, size: usize) -> u64 {
        self.r[usize::from(index)] & mask(size)
    }

    /// Writes a general register as an operand of `size` bytes (4 clears the upper half).
    #[inline(always)]
    pub fn set_reg(&mut self, index: u8, size: usize, value: u64) {
        let slot = &mut self.r[usize::from(index)];
        *slot = match size {
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// Changes part of a register without clearing the rest, as stack and string pointers do
    /// in 16-bit addressing; 4 bytes clear the upper half.
    pub fn set_pointer(&mut self, index: usize, size: usize, value: u64) {
        self.set_reg(index as u8, size, value);
    }

    /// To be called when segments, CR0, EFER, RFLAGS.VM/TF/AC, CPL or debug state changed.
    pub fn mode_changed(&mut self) {
        let st = &self.st;
        let cs = &st.seg[seg::CS];
        let protected = st.cr0 & CR0_PE != 0;
        let mut mode = 0;
        if protected && st.rflags & flags::VM == 0 {
            if st.efer & paging::EFER_LMA != 0 && cs.long() {
                mode |= mode::CODE64 | mode::WIDE_CS;
            } else if cs.big() {
                mode |= mode::CODE32;
            }
        } else if cs.big() {
            // "Unreal" code segments keep D until the next load.
            mode |= mode::CODE32;
        }
        if st.seg[seg::SS].big() {
            mode |= mode::STACK32;
        }
        self.mode = mode;
        self.cpl = if !protected {
            0
        } else if st.rflags & flags::VM != 0 {
            3
        } else {
            self.cpl
        };
        for i in 0..6 {
            self.sc[i] = self.seg_fast(i);
        }
        self.sc[6] = SegFast::OPEN;
        if self.mode & mode::CODE != mode::CODE64 {
            if self.st.seg[seg::CS].limit == u32::MAX {
                self.mode |= mode::WIDE_CS;
            }
            let flat = |s: &SegFast| s.base == 0 && s.low == 0 && s.high >= 0xffff_ffff && s.readable;
            if [seg::ES, seg::SS, seg::DS].iter().all(|&i| flat(&self.sc[i]) && self.sc[i].writable)
                && self.sc[seg::CS].base == 0
                && self.mode & mode::WIDE_CS != 0
            {
                self.mode |= mode::FLAT;
            }
        }
        self.ac_on = self.cpl == 3 && self.st.rflags & flags::AC != 0 && self.st.cr0 & CR0_AM != 0;
        if self.ac_on || !self.watchpoints.is_empty() {
            self.mode |= mode::SLOW;
        }
        if self.st.rflags & flags::TF != 0 || !self.watchpoints.is_empty() {
            self.mode |= mode::SINGLE;
        }
        self.choose_view();
    }

    fn seg_fast(&self, index: usize) -> SegFast {
        let s: &Segment = &self.st.seg[index];
        if self.mode & mode::CODE == mode::CODE64 {
            let base = if index >= seg::FS { s.base } else { 0 };
            return SegFast { base, ..SegFast::OPEN };
        }
        let base = s.base & 0xffff_ffff;
        let limit = u64::from(s.limit);
        if !self.protected() {
            return SegFast { base, low: 0, high: limit, readable: true, writable: true };
        }
        let closed = SegFast { base, low: 1, high: 0, readable: false, writable: false };
        if !s.present() || !s.is_code_or_data() {
            return closed;
        }
        let code = s.kind() & 8 != 0;
        let (low, high) = if !code && s.kind() & 4 != 0 {
            (limit + 1, if s.big() { 0xffff_ffff } else { 0xffff })
        } else {
            (0, limit)
        };
        SegFast {
            base,
            low,
            high,
            readable: !code || s.kind() & 2 != 0,
            writable: !code && s.kind() & 2 != 0,
        }
    }

    /// To be called when CR0, CR3, CR4, EFER or A20 changed (the caller flushes as needed).
    pub fn paging_changed(&mut self) {
        self.paging = Paging::of(&self.st, self.paging.physical_bits);
    }

    /// Recomputes the data watchpoints from DR7; `extra` ones of the debugger stay.
    pub fn debug_changed(&mut self) {
        self.watchpoints.retain(|w| w.dr6 == 0);
        let dr7 = self.st.dr[7];
        for i in 0..4 {
            if dr7 >> (2 * i) & 3 == 0 {
                continue;
            }
            let kind = dr7 >> (16 + 4 * i) & 3;
            if kind & 1 == 0 {
                continue;
            }
            let len = [1, 2, 8, 4][(dr7 >> (18 + 4 * i) & 3) as usize];
            let start = self.st.dr[i] & !(len - 1);
            self.watchpoints.push(WatchPoint { start, len, write_only: kind == 1, dr6: 1 << i });
        }
        self.flush_tlbs(true);
        self.mode_changed();
    }

    /// Whether instruction breakpoints are enabled in DR7.
    pub fn has_code_breakpoints(&self) -> bool {
        let dr7 = self.st.dr[7];
        (0..4).any(|i| dr7 >> (2 * i) & 3 != 0 && dr7 >> (16 + 4 * i) & 3 == 0)
    }

    /// The view that explicit accesses are made through now.
    fn wanted_view(&self) -> View {
        if self.cpl == 3 {
            View::User
        } else if self.st.cr4 & CR4_SMAP != 0 && self.st.rflags & flags::AC != 0 {
            View::SupervisorAc
        } else {
            View::Supervisor
        }
    }

    pub fn choose_view(&mut self) {
        self.set_view(self.wanted_view());
    }

    pub fn set_view(&mut self, view: View) {
        if view != self.view
            && let Some(next) = self.parked[view as usize].take()
        {
            let old = std::mem::replace(&mut self.tlb, next);
            self.parked[self.view as usize] = Some(old);
            self.view = view;
        }
    }

    pub fn flush_tlbs(&mut self, globals_too: bool) {
        let present = self.context();
        self.flushed.push(if globals_too { Flush::All(present) } else { Flush::Local }, present);
        self.drop_tlbs(globals_too);
    }

    fn drop_tlbs(&mut self, globals_too: bool) {
        self.tlb.flush(globals_too);
        for set in self.parked.iter_mut().flatten() {
            set.flush(globals_too);
        }
    }

    /// The present address space: its PCID, without CR4.PCIDE 0.
    pub fn context(&self) -> u16 {
        if self.st.cr4 & paging::CR4_PCIDE != 0 { (self.st.cr3 & 0xfff) as u16 } else { 0 }
    }

    /// CR3 was written with CR4.PCIDE set.
    pub fn switch_context(&mut self, keep: bool) {
        let context = self.context();
        self.flushed.push(Flush::Switch { context, keep }, context);
        self.drop_tlbs(false);
    }

    /// Flushes what is known of `context`; of that and all others if `None`. This side knows
    /// only the present one.
    pub fn flush_context(&mut self, context: Option<u16>) {
        let present = self.context();
        match context {
            Some(context) if context != present => self.flushed.push(Flush::Context(context), present),
            Some(_) => self.flush_tlbs(false),
            None => {
                self.flushed.push(Flush::OtherContexts, present);
                self.flush_tlbs(false);
            }
        }
    }

    pub fn flush_page(&mut self, linear: u64) {
        self.flushed.push(Flush::Page(linear), self.context());
        self.forget_page(linear);
    }

    /// The same where a faster engine has done so in tables of its own.
    pub fn forget_page(&mut self, linear: u64) {
        self.tlb.flush_page(linear);
        for set in self.parked.iter_mut().flatten() {
            set.flush_page(linear);
        }
    }

    pub fn canonical(linear: u64) -> bool {
        (linear << 16) as i64 >> 16 == linear as i64
    }

    /// Linear addresses wrap at 4 GiB outside of long mode.
    pub fn wrap(&self, linear: u64) -> u64 {
        if self.long_mode() { linear } else { linear & 0xffff_ffff }
    }

    /// The guest's time-stamp counter.
    pub fn tsc(&self) -> u64 {
        let now = self.counter.as_ref().and_then(|counter| counter());
        now.unwrap_or_else(|| self.bus.tsc()).wrapping_add(self.st.tsc_offset)
    }
}
