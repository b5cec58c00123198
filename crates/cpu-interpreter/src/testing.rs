//! An interpreter vCPU without a machine, for tests and the judge: one instruction at a
//! time, with its exception *before* delivery through the IDT.

use crate::vcpu::{InterpreterVcpu, Shared};
use base::Result;
use base::clock::{Clock, Kind};
use cpu::cpuid::CpuidTable;
use cpu::{CpuBus, CpuState, Fault, Link, LocalApic, Vcpu, VcpuConfig};
use memory::{AddressSpace, SpaceKind};
use std::sync::Arc;

/// A local APIC that never interrupts.
pub struct QuietApic;

impl LocalApic for QuietApic {
    fn has_interrupt(&self) -> bool {
        false
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&self, _: u8) {}
    fn base_msr(&self) -> u64 {
        0xfee0_0100
    }
    fn read_msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _: u32, _: u64) -> bool {
        false
    }
    fn read_mmio(&self, _: u64, _: u8) -> u64 {
        0
    }
    fn write_mmio(&self, _: u64, _: u8, _: u64) {}
    fn id(&self) -> u32 {
        0
    }
    fn is_bootstrap(&self) -> bool {
        true
    }
}

/// A bus over `memory` with no ports and no interrupts.
pub fn quiet_bus(memory: Arc<AddressSpace>) -> CpuBus {
    CpuBus {
        memory,
        ports: AddressSpace::new(SpaceKind::Port),
        apic: Arc::new(QuietApic),
        link: Arc::new(Link::new()),
        clock: Clock::new(Kind::Realtime),
        tsc_khz: 1_000_000,
    }
}

/// Executes single instructions. An empty [`CpuidTable`] stands for every feature that the
/// interpreter (on this host) knows.
pub struct Stepper(InterpreterVcpu);

impl Stepper {
    pub fn new(memory: Arc<AddressSpace>, cpuid: Arc<CpuidTable>, state: &CpuState) -> Result<Self> {
        Self::with_bus(quiet_bus(memory), cpuid, state)
    }

    pub fn with_bus(bus: CpuBus, cpuid: Arc<CpuidTable>, state: &CpuState) -> Result<Self> {
        let mut vcpu = InterpreterVcpu::new(VcpuConfig { index: 0, bus, cpuid }, Shared::new()?)?;
        vcpu.core.report_software = true;
        vcpu.load(state)?;
        vcpu.core.memory_map_changed();
        Ok(Stepper(vcpu))
    }

    /// Executes one instruction (of a REP instruction: one iteration). `Err`: the exception
    /// it raised; the state is then that before the instruction (INT3 and INTO: after it).
    pub fn step(&mut self) -> Result<(), Fault> {
        self.0.step()
    }

    pub fn state(&self) -> CpuState {
        self.0.save()
    }

    pub fn load(&mut self, state: &CpuState) -> Result<()> {
        self.0.load(state)
    }

    /// Lets INT n, INT3 and INTO go through the IDT instead of reporting them.
    pub fn accept_software_interrupts(&mut self) {
        self.0.core.report_software = false;
    }

    /// The vCPU itself, to run blocks of code (it stops at HLT with [`cpu::Exit::Halted`]).
    pub fn vcpu(&mut self) -> &mut InterpreterVcpu {
        &mut self.0
    }
}

/// Page tables at 0x1000: 4 GiB of linear addresses mapped one to one by 2 MiB pages, for
/// every privilege. Needs RAM up to 0x8000.
pub fn identity_tables(memory: &AddressSpace) {
    memory.store(0x1000, 8, 0x2007);
    for gib in 0..4u64 {
        memory.store(0x2000 + 8 * gib, 8, 0x3007 + 0x1000 * gib);
        for k in 0..512 {
            memory.store(0x3000 + 0x1000 * gib + 8 * k, 8, (gib << 30 | k << 21) | 0xe7);
        }
    }
}

/// 64-bit code at `rip` and privilege `cpl` over [`identity_tables`], flat segments, SSE and
/// AVX on, no IDT.
pub fn long_mode_state(rip: u64, stack: u64, cpl: u8) -> CpuState {
    use cpu::paging::*;
    use cpu::state::{Segment, seg};
    let mut state = CpuState::reset(true, 0);
    let dpl = u16::from(cpl) << 5;
    let data = Segment { selector: 0x10 | u16::from(cpl), base: 0, limit: u32::MAX, access: 0xc093 | dpl };
    state.seg = [data; 6];
    state.seg[seg::CS] =
        Segment { selector: 8 | u16::from(cpl), base: 0, limit: u32::MAX, access: 0xa09b | dpl };
    state.cr0 = CR0_PG | CR0_PE | CR0_NE | CR0_WP | CR0_MP | 0x10;
    state.cr3 = 0x1000;
    state.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    state.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    state.xcr0 = 7;
    state.rip = rip;
    state.gpr[4] = stack;
    state
}
