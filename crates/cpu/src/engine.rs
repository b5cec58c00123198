//! The three engines' common traits.

use crate::{CpuState, Link, LocalApic};
use base::clock::Clock;
use base::{Result, bail};
use memory::AddressSpace;
use std::sync::Arc;

/// All that a vCPU can reach; the same for every engine.
#[derive(Clone)]
pub struct CpuBus {
    /// Physical memory. The page at the APIC base is intercepted by [`CpuBus::load`].
    pub memory: Arc<AddressSpace>,
    pub ports: Arc<AddressSpace>,
    pub apic: Arc<dyn LocalApic>,
    pub link: Arc<Link>,
    /// The clock the TSC counts: the machine's virtual clock.
    pub clock: Clock,
    /// TSC frequency in kHz.
    pub tsc_khz: u64,
}

impl CpuBus {
    /// Reads 1, 2, 4 or 8 bytes of physical memory as the CPU does: xAPIC page first.
    pub fn load(&self, address: u64, size: u8) -> u64 {
        match self.apic_offset(address) {
            Some(offset) => self.apic.read_mmio(offset, size),
            None => self.memory.load(address, size),
        }
    }

    /// See [`CpuBus::load`].
    pub fn store(&self, address: u64, size: u8, value: u64) {
        match self.apic_offset(address) {
            Some(offset) => self.apic.write_mmio(offset, size, value),
            None => self.memory.store(address, size, value),
        }
    }

    /// Offset in the xAPIC page if `address` lies there and xAPIC mode is on.
    pub fn apic_offset(&self, address: u64) -> Option<u64> {
        let base = self.apic.base_msr();
        let enabled_xapic = base & 0xc00 == 0x800;
        (enabled_xapic && (address ^ base) & !0xfff & 0xf_ffff_ffff_ffff == 0).then_some(address & 0xfff)
    }

    /// IN of 1, 2 or 4 bytes.
    pub fn port_read(&self, port: u16, size: u8) -> u32 {
        self.ports.load(u64::from(port), size) as u32
    }

    /// OUT of 1, 2 or 4 bytes.
    pub fn port_write(&self, port: u16, size: u8, value: u32) {
        self.ports.store(u64::from(port), size, u64::from(value));
    }

    /// The TSC before [`CpuState::tsc_offset`].
    pub fn tsc(&self) -> u64 {
        (u128::from(self.clock.now()) * u128::from(self.tsc_khz) / 1_000_000) as u64
    }
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// [`crate::Request::EXIT`] was posted (and has been taken).
    Asked,
    /// HLT or MWAIT with nothing to deliver, or waiting for SIPI: wait on the [`Link`], then
    /// run again.
    Halted,
    /// Triple fault: the board resets.
    TripleFault,
    /// A breakpoint or single step that the debugger asked for.
    Debug,
    /// The engine cannot go on; the text says why (run state `internal-error`).
    Broken(String),
}

/// How a window of [`Vcpu::run_exactly`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Instructions retired in it.
    pub retired: u64,
    /// Why it ended early; `None` after exactly as many instructions as were asked for.
    pub exit: Option<Exit>,
}

/// What the debugger wants of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugPlan {
    /// Stop with [`Exit::Debug`] after one instruction.
    pub single_step: bool,
    /// Linear addresses at which to stop before executing.
    pub breakpoints: Vec<u64>,
    /// (linear address, length, on write only) at which to stop after the access.
    pub watchpoints: Vec<(u64, u64, bool)>,
}

/// One virtual CPU of an engine. Used by one thread at a time.
pub trait Vcpu: Send {
    /// Runs guest code until something else is needed.
    fn run(&mut self) -> Exit;
    /// The architectural state at the present instruction boundary.
    fn save(&self) -> CpuState;
    fn load(&mut self, state: &CpuState) -> Result<()>;
    /// Translates a linear address with the present paging state, without side effects;
    /// `None` if not mapped.
    fn translate(&self, linear: u64) -> Option<u64>;
    fn set_debug(&mut self, plan: &DebugPlan) -> Result<()>;
    /// Guest instructions retired so far, if the engine counts them.
    fn retired(&self) -> Option<u64> {
        None
    }
    /// Runs `instructions` instructions, no more and, unless an exit comes first, no fewer, so
    /// that every engine passes through the same states at the same counts:
    ///
    /// - An instruction counts when it retires: a REP instruction when it has ended, HLT and
    ///   INT n too; one that faults does not, nor does the delivery of any event.
    /// - The window ends right behind its last instruction. Traps of that instruction, and
    ///   faults of the next one, belong to the next window; so does the [`Exit::Halted`] of a
    ///   HLT that is the last.
    /// - Requests on the [`Link`] are taken at the start of the window; later ones stay posted
    ///   for the next ([`crate::Request::FLUSH`] is obeyed at once). [`Exit::Asked`] comes at
    ///   the start only, with nothing executed.
    /// - From a [`crate::Request::INTERRUPT`] (or [`Vcpu::load`]) on, across windows, the
    ///   interrupt controller is asked before the first instruction at which the guest accepts
    ///   interrupts, again after each that was delivered, until it has none.
    ///
    /// The TSC stands still if the bus's clock is a manual one. Errors: the engine does not
    /// count.
    fn run_exactly(&mut self, _instructions: u64) -> Result<Window> {
        bail!("this engine does not count instructions");
    }
}

/// What a vCPU is made from.
#[derive(Clone)]
pub struct VcpuConfig {
    pub index: usize,
    pub bus: CpuBus,
    pub cpuid: Arc<crate::cpuid::CpuidTable>,
}

/// A way to execute guest code.
pub trait Engine: Send + Sync {
    /// `kvm`, `translator` or `interpreter`.
    fn name(&self) -> &'static str;
    /// A vCPU in its reset state.
    fn vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>>;
    /// The frequency at which guests' TSCs count with this engine, in kHz, if the engine does
    /// not leave it to the board.
    fn tsc_khz(&self) -> Option<u64> {
        None
    }
    /// A line or more for `info accel` / `info jit`.
    fn report(&self) -> String {
        String::new()
    }
}
