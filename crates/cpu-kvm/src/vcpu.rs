//! One vCPU: the run loop.

use crate::engine::Inner;
use crate::kick::Kick;
use crate::sys::{self, RunArea};
use crate::{cpuid, msrs};
use base::{Failure, Result, bail};
use cpu::engine::DebugPlan;
use cpu::state::Activity;
use cpu::{CpuBus, CpuState, Exit, Request, Vcpu, VcpuConfig};
use kvm_bindings as kvm;
use kvm_ioctls::VcpuFd;
use std::io::ErrorKind;
use std::sync::Arc;

pub(crate) struct KvmVcpu {
    pub(crate) area: RunArea,
    pub(crate) fd: VcpuFd,
    kick: Arc<Kick>,
    engine: Arc<Inner>,
    pub(crate) bus: CpuBus,
    signature: u32,
    pub(crate) activity: Activity,
    pub(crate) a20: bool,
    pub(crate) tsc_offset: u64,
    pub(crate) tsc_adjust: u64,
    /// The TSC offset KVM has; `None`: not set yet.
    tsc_set: Option<u64>,
    /// The last exit was an access that KVM completes at the next entry.
    unfinished: bool,
    apic_base: u64,
}

/// What the loop does after an exit.
enum Next {
    Again,
    Leave(Exit),
}

impl KvmVcpu {
    pub(crate) fn new(engine: Arc<Inner>, config: VcpuConfig) -> Result<Self> {
        let index = config.index;
        let cannot =
            move |e: kvm_ioctls::Error| Failure::os(format!("KVM: cannot create CPU {index}"), &e.into());
        let mut fd = engine.vm.create_vcpu(index as u64).map_err(cannot)?;
        let model = cpuid::mask(&config.cpuid, &engine.supported);
        fd.set_cpuid2(&cpuid::entries(&model)?).map_err(cannot)?;
        let area = RunArea::new(&mut fd, engine.run_size);
        let kick = Arc::new(Kick::new(area.immediate_exit()));
        let for_link = kick.clone();
        config.bus.link.set_kicker(move |new| {
            if new {
                for_link.kick();
            }
        });
        let signature = model.signature();
        let state = CpuState::reset(config.bus.apic.is_bootstrap(), signature);
        let mut vcpu = KvmVcpu {
            area,
            fd,
            kick,
            engine,
            bus: config.bus,
            signature,
            activity: state.activity,
            a20: true,
            tsc_offset: 0,
            tsc_adjust: 0,
            tsc_set: None,
            unfinished: false,
            apic_base: 0,
        };
        vcpu.load(&state)?;
        Ok(vcpu)
    }

    fn run_until(&mut self) -> Exit {
        if let Err(failure) = self.sync_tsc() {
            return Exit::Broken(failure.text);
        }
        loop {
            // Cleared before the requests are read: a kick that comes later sets it again.
            self.area.set_immediate_exit(false);
            if let Some(exit) = self.take_requests() {
                return exit;
            }
            match self.activity {
                Activity::Running => {}
                Activity::Halted if self.wakes() => self.activity = Activity::Running,
                Activity::Halted | Activity::WaitForSipi => return Exit::Halted,
                Activity::Shutdown => return Exit::TripleFault,
            }
            if let Err(error) = self.inject() {
                return Exit::Broken(format!("KVM: cannot inject an interrupt: {error}"));
            }
            let changes = self.engine.slots.changes();
            match self.enter() {
                Ok(true) => match self.handle_exit(changes) {
                    Next::Again => {}
                    Next::Leave(exit) => return exit,
                },
                Ok(false) => {}
                Err(error) => return Exit::Broken(format!("KVM: cannot run the guest: {error}")),
            }
        }
    }

    /// Runs guest code; false: interrupted before anything needed user space.
    fn enter(&mut self) -> std::io::Result<bool> {
        let priority = self.bus.apic.cr8() & 15;
        self.area.get_mut().cr8 = priority.into();
        let result = self.area.enter(&self.fd);
        let after = self.area.get().cr8 as u8 & 15;
        if after != priority {
            self.bus.apic.set_cr8(after);
        }
        match result {
            Ok(()) => {
                self.unfinished = false;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted || e.kind() == ErrorKind::WouldBlock => {
                self.unfinished = false;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    fn take_requests(&mut self) -> Option<Exit> {
        let asked = self.bus.link.requests();
        if asked.is_empty() {
            return None;
        }
        self.bus.link.take(Request::INTERRUPT | Request::FLUSH | Request::SMI | Request::MCE);
        let broken = |failure: Failure| Some(Exit::Broken(failure.text));
        if asked.contains(Request::INIT) {
            self.bus.link.take(Request::INIT);
            if let Err(failure) = self.change(|state, vcpu| {
                state.init(vcpu.bus.apic.is_bootstrap(), vcpu.signature);
            }) {
                return broken(failure);
            }
        }
        if asked.contains(Request::SIPI) {
            self.bus.link.take(Request::SIPI);
            if self.activity == Activity::WaitForSipi
                && let Err(failure) = self.change(|state, vcpu| state.sipi(vcpu.bus.link.sipi_vector()))
            {
                return broken(failure);
            }
        }
        // INIT masks NMIs until the start-up IPI.
        let nmi = self.bus.link.take(asked & Request::NMI);
        if !nmi.is_empty() && self.activity != Activity::WaitForSipi {
            self.finish_access();
            if let Err(error) = self.fd.nmi() {
                return Some(Exit::Broken(format!("KVM: cannot inject an NMI: {error}")));
            }
            self.activity = Activity::Running;
        }
        if asked.contains(Request::EXIT) {
            self.bus.link.take(Request::EXIT);
            self.finish_access();
            return Some(Exit::Asked);
        }
        None
    }

    fn change(&mut self, change: impl FnOnce(&mut CpuState, &Self)) -> Result<()> {
        self.finish_access();
        let mut state = self.save();
        change(&mut state, self);
        self.load(&state)?;
        self.sync_tsc()
    }

    /// Lets KVM complete the access that the last exit was about, so that the state is that
    /// of an instruction boundary.
    fn finish_access(&mut self) {
        // An access in several pieces exits for each.
        for _ in 0..64 {
            if !self.unfinished {
                return;
            }
            self.area.set_immediate_exit(true);
            let changes = self.engine.slots.changes();
            if !self.enter().unwrap_or(false) {
                break;
            }
            self.handle_exit(changes);
        }
        self.unfinished = false;
        self.area.set_immediate_exit(false);
    }

    fn wakes(&self) -> bool {
        self.area.get().if_flag != 0 && self.bus.apic.has_interrupt()
    }

    /// Hands KVM an interrupt if it can take one now, or asks it to say when.
    fn inject(&mut self) -> std::io::Result<()> {
        let mut wanted = self.bus.apic.has_interrupt();
        let run = self.area.get();
        if wanted && run.ready_for_interrupt_injection != 0 && run.if_flag != 0 && !self.unfinished {
            if let Some(vector) = self.bus.apic.acknowledge() {
                sys::interrupt(&self.fd, vector)?;
            }
            self.area.get_mut().ready_for_interrupt_injection = 0;
            wanted = self.bus.apic.has_interrupt();
        }
        self.area.get_mut().request_interrupt_window = wanted.into();
        Ok(())
    }

    fn handle_exit(&mut self, changes: u64) -> Next {
        match self.area.get().exit_reason {
            kvm::KVM_EXIT_IO => self.port_access(),
            kvm::KVM_EXIT_MMIO => self.memory_access(),
            kvm::KVM_EXIT_X86_RDMSR => self.read_msr(),
            kvm::KVM_EXIT_X86_WRMSR => self.write_msr(),
            kvm::KVM_EXIT_HLT => {
                self.activity = Activity::Halted;
                Next::Again
            }
            kvm::KVM_EXIT_IRQ_WINDOW_OPEN | kvm::KVM_EXIT_INTR | kvm::KVM_EXIT_SET_TPR => Next::Again,
            kvm::KVM_EXIT_DEBUG => Next::Leave(Exit::Debug),
            kvm::KVM_EXIT_SHUTDOWN => {
                self.activity = Activity::Shutdown;
                Next::Leave(Exit::TripleFault)
            }
            kvm::KVM_EXIT_INTERNAL_ERROR if self.engine.slots.changed_since(changes) => {
                std::thread::yield_now();
                Next::Again
            }
            reason => Next::Leave(Exit::Broken(self.explain(reason))),
        }
    }

    fn explain(&self, reason: u32) -> String {
        let run = self.area.get();
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        // SAFETY: KVM fills the member that the exit reason names; plain integers.
        let detail = unsafe {
            match reason {
                kvm::KVM_EXIT_INTERNAL_ERROR => {
                    format!("internal error {}", run.__bindgen_anon_1.internal.suberror)
                }
                kvm::KVM_EXIT_FAIL_ENTRY => {
                    let code = run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason;
                    format!("the processor refuses the guest's state (reason {code:#x})")
                }
                _ => format!("unexpected exit {reason}"),
            }
        };
        format!("KVM: {detail} at RIP {rip:#x}")
    }

    fn port_access(&mut self) -> Next {
        // SAFETY: the exit reason says that this member is filled; plain integers.
        let io = unsafe { self.area.get().__bindgen_anon_1.io };
        let size = io.size;
        let bus = self.bus.clone();
        let len = usize::from(size) * io.count as usize;
        let Some(data) = self.area.data(io.data_offset, len) else {
            return Next::Leave(Exit::Broken("KVM: a port access lies outside its area".into()));
        };
        for element in data.chunks_mut(size.max(1).into()) {
            let mut word = [0; 4];
            if u32::from(io.direction) == kvm::KVM_EXIT_IO_IN {
                word = bus.port_read(io.port, size).to_le_bytes();
                element.copy_from_slice(&word[..element.len()]);
            } else {
                word[..element.len()].copy_from_slice(element);
                bus.port_write(io.port, size, u32::from_le_bytes(word));
            }
        }
        self.unfinished = true;
        Next::Again
    }

    fn memory_access(&mut self) -> Next {
        // SAFETY: the exit reason says that this member is filled; plain integers.
        let mut mmio = unsafe { self.area.get().__bindgen_anon_1.mmio };
        let len = (mmio.len as usize).min(mmio.data.len());
        let mut at = 0;
        while at < len {
            let size = if len.is_power_of_two() { len } else { 1 };
            let address = mmio.phys_addr.wrapping_add(at as u64);
            let mut word = [0; 8];
            if mmio.is_write != 0 {
                word[..size].copy_from_slice(&mmio.data[at..at + size]);
                self.bus.store(address, size as u8, u64::from_le_bytes(word));
            } else {
                word = self.bus.load(address, size as u8).to_le_bytes();
                mmio.data[at..at + size].copy_from_slice(&word[..size]);
            }
            at += size;
        }
        self.area.get_mut().__bindgen_anon_1.mmio = mmio;
        self.unfinished = true;
        Next::Again
    }

    fn read_msr(&mut self) -> Next {
        // SAFETY: the exit reason says that this member is filled; plain integers.
        let mut msr = unsafe { self.area.get().__bindgen_anon_1.msr };
        let value = match msr.index {
            msrs::TSC_ADJUST => Some(self.tsc_adjust),
            index if is_apic_msr(index) => self.bus.apic.read_msr(index),
            _ => None,
        };
        msr.error = u8::from(value.is_none());
        msr.data = value.unwrap_or(0);
        self.area.get_mut().__bindgen_anon_1.msr = msr;
        self.unfinished = true;
        Next::Again
    }

    fn write_msr(&mut self) -> Next {
        // SAFETY: the exit reason says that this member is filled; plain integers.
        let mut msr = unsafe { self.area.get().__bindgen_anon_1.msr };
        let value = msr.data;
        let done = match msr.index {
            msrs::TSC => {
                let old = self.bus.tsc().wrapping_add(self.tsc_offset);
                self.move_tsc(value.wrapping_sub(old));
                true
            }
            msrs::TSC_ADJUST => {
                self.move_tsc(value.wrapping_sub(self.tsc_adjust));
                true
            }
            index if is_apic_msr(index) => self.bus.apic.write_msr(index, value),
            _ => false,
        };
        msr.error = u8::from(!done);
        self.area.get_mut().__bindgen_anon_1.msr = msr;
        self.unfinished = true;
        if done && msr.index == msrs::APIC_BASE {
            self.finish_access();
            self.sync_apic_base();
        }
        if done
            && matches!(msr.index, msrs::TSC | msrs::TSC_ADJUST)
            && let Err(failure) = self.sync_tsc()
        {
            return Next::Leave(Exit::Broken(failure.text));
        }
        Next::Again
    }

    fn move_tsc(&mut self, by: u64) {
        self.tsc_offset = self.tsc_offset.wrapping_add(by);
        self.tsc_adjust = self.tsc_adjust.wrapping_add(by);
        self.bus.apic.set_tsc_offset(self.tsc_offset);
    }

    /// CPUID tells whether the APIC is enabled.
    fn sync_apic_base(&mut self) {
        let base = self.kvm_apic_base();
        if base != self.apic_base
            && let Ok(mut sregs) = self.fd.get_sregs()
        {
            sregs.apic_base = base;
            if self.fd.set_sregs(&sregs).is_ok() {
                self.apic_base = base;
            }
        }
    }

    /// The APIC base as KVM may know it: it need not hear of x2APIC mode.
    pub(crate) fn kvm_apic_base(&self) -> u64 {
        const X2APIC: u64 = 1 << 10;
        self.bus.apic.base_msr() & !X2APIC
    }

    /// Gives KVM the TSC offset that makes the guest's TSC follow the machine's clock.
    fn sync_tsc(&mut self) -> Result<()> {
        let base = self.engine.tsc_base(&self.bus.clock, self.bus.tsc_khz);
        let offset = base.wrapping_add(self.tsc_offset);
        if self.tsc_set == Some(offset) {
            return Ok(());
        }
        if sys::set_tsc_offset(&self.fd, offset).is_err() {
            // Linux before 5.16: write the counter itself.
            let value = self.bus.tsc().wrapping_add(self.tsc_offset);
            self.set_msr(msrs::TSC, value)?;
        }
        self.tsc_set = Some(offset);
        self.check_tsc();
        Ok(())
    }

    /// Some hosts' KVM (PVM) cannot move the guest's TSC: then the guest's is what it is.
    fn check_tsc(&mut self) {
        let Some(actual) = self.get_msr(msrs::TSC) else { return };
        let offset = actual.wrapping_sub(self.bus.tsc());
        let far = offset.wrapping_sub(self.tsc_offset) as i64;
        if far.unsigned_abs() > 100 * self.bus.tsc_khz {
            self.tsc_offset = offset;
            self.bus.apic.set_tsc_offset(offset);
        }
    }

    /// After a state was loaded, what KVM last said about interrupts is out of date.
    pub(crate) fn forget_exit(&mut self, rflags: u64) {
        const IF: u64 = 1 << 9;
        let run = self.area.get_mut();
        run.ready_for_interrupt_injection = 0;
        run.if_flag = u8::from(rflags & IF != 0);
        self.unfinished = false;
        self.apic_base = self.kvm_apic_base();
    }
}

fn is_apic_msr(index: u32) -> bool {
    matches!(index, msrs::APIC_BASE | msrs::TSC_DEADLINE | msrs::X2APIC_FIRST..=msrs::X2APIC_LAST)
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Exit {
        self.kick.enter();
        let exit = self.run_until();
        self.kick.leave();
        exit
    }

    fn save(&self) -> CpuState {
        self.save_state()
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        self.load_state(state)
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        let found = self.fd.translate_gva(linear).ok()?;
        (found.valid != 0).then_some(found.physical_address)
    }

    fn set_debug(&mut self, plan: &DebugPlan) -> Result<()> {
        if plan.breakpoints.len() + plan.watchpoints.len() > 4 {
            bail!("KVM has four hardware breakpoints; more are not possible");
        }
        let mut debug = kvm::kvm_guest_debug::default();
        if plan.single_step {
            debug.control |= kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_SINGLESTEP;
        }
        let mut dr7 = 0x400u64;
        let execute = plan.breakpoints.iter().map(|&at| (at, 0u64));
        let mut all: Vec<(u64, u64)> = execute.collect();
        for &(at, len, on_write) in &plan.watchpoints {
            let size = match len {
                1 => 0,
                2 => 1,
                4 => 3,
                8 => 2,
                _ => bail!("watchpoints of {len} bytes are not possible with KVM"),
            };
            all.push((at, size << 2 | if on_write { 1 } else { 3 }));
        }
        for (i, (at, kind)) in all.iter().enumerate() {
            debug.arch.debugreg[i] = *at;
            dr7 |= 2 << (2 * i) | kind << (16 + 4 * i);
        }
        if !all.is_empty() {
            debug.control |= kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[7] = dr7;
        }
        self.fd.set_guest_debug(&debug).map_err(|e| Failure::os("KVM: cannot set breakpoints", &e.into()))
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.cut();
    }
}
