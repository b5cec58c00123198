//! Finds out whether KVM really runs guests or only emulates them, by a guest of one SSE
//! instruction, which KVM's emulator does not know.

use crate::KvmEngine;
use base::Result;
use base::clock::{Clock, Kind};
use cpu::cpuid::{CpuidTable, Leaf};
use cpu::state::{Segment, seg};
use cpu::{CpuBus, CpuState, Engine, Exit, Link, LocalApic, Request, VcpuConfig};
use memory::{AddressSpace, RamBlock, SpaceKind};
use std::sync::Arc;
use std::time::Duration;

/// An interrupt controller that never has anything.
struct Silent;

impl LocalApic for Silent {
    fn has_interrupt(&self) -> bool {
        false
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&self, _value: u8) {}
    fn base_msr(&self) -> u64 {
        0xfee0_0900
    }
    fn read_msr(&self, _index: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _index: u32, _value: u64) -> bool {
        false
    }
    fn read_mmio(&self, _offset: u64, _size: u8) -> u64 {
        0
    }
    fn write_mmio(&self, _offset: u64, _size: u8, _value: u64) {}
    fn id(&self) -> u32 {
        0
    }
    fn is_bootstrap(&self) -> bool {
        true
    }
}

pub fn runs_sse() -> Result<bool> {
    const OSFXSR: u64 = 1 << 9;
    let engine = KvmEngine::open()?;
    let memory = AddressSpace::new(SpaceKind::Memory);
    let ram = RamBlock::new("probe", 0x2000)?;
    // paddq xmm0, xmm0; hlt
    ram.write(0x1000, &[0x66, 0x0f, 0xd4, 0xc0, 0xf4]);
    memory.edit(|edit| edit.ram(ram, 0));
    let link = Arc::new(Link::new());
    let bus = CpuBus {
        memory,
        ports: AddressSpace::new(SpaceKind::Port),
        apic: Arc::new(Silent),
        link: link.clone(),
        clock: Clock::new(Kind::Manual),
        tsc_khz: engine.tsc_khz().unwrap_or(1_000_000),
    };
    // FPU, FXSR, SSE, SSE2.
    let leaf = Leaf { eax: 0x663, ebx: 0, ecx: 0, edx: 1 | 7 << 24 };
    let cpuid =
        Arc::new(CpuidTable { leaves: vec![(0, None, Leaf { eax: 1, ..Leaf::default() }), (1, None, leaf)] });
    let mut vcpu = engine.vcpu(VcpuConfig { index: 0, bus, cpuid })?;
    let mut state = CpuState::reset(true, leaf.eax);
    state.seg[seg::CS] = Segment::real_mode(0, 0x9b);
    state.rip = 0x1000;
    state.cr4 = OSFXSR;
    vcpu.load(&state)?;
    let (done, watched) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if watched.recv_timeout(Duration::from_secs(2)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            link.post(Request::EXIT);
        }
    });
    let exit = vcpu.run();
    drop(done);
    Ok(exit == Exit::Halted)
}
