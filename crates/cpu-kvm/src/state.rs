//! The complete architectural state, in and out.

use crate::segments::{from_kvm, table_from_kvm, table_to_kvm, to_kvm};
use crate::vcpu::KvmVcpu;
use crate::{msrs, xsave};
use base::{Failure, Result};
use cpu::CpuState;
use cpu::state::{PendingEvent, seg};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI, Msrs, kvm_debugregs,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xsave,
};

const AVX: u64 = 4;

fn cannot(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Failure {
    move |e| Failure::os(format!("KVM: cannot set {what}"), &e.into())
}

fn registers(state: &CpuState) -> kvm_regs {
    let g = &state.gpr;
    kvm_regs {
        rax: g[0],
        rcx: g[1],
        rdx: g[2],
        rbx: g[3],
        rsp: g[4],
        rbp: g[5],
        rsi: g[6],
        rdi: g[7],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn take_registers(r: &kvm_regs, state: &mut CpuState) {
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    state.rip = r.rip;
    state.rflags = r.rflags;
}

fn take_system(s: &kvm_sregs, state: &mut CpuState) {
    state.seg[seg::ES] = from_kvm(&s.es);
    state.seg[seg::CS] = from_kvm(&s.cs);
    state.seg[seg::SS] = from_kvm(&s.ss);
    state.seg[seg::DS] = from_kvm(&s.ds);
    state.seg[seg::FS] = from_kvm(&s.fs);
    state.seg[seg::GS] = from_kvm(&s.gs);
    state.ldtr = from_kvm(&s.ldt);
    state.tr = from_kvm(&s.tr);
    state.gdtr = table_from_kvm(&s.gdt);
    state.idtr = table_from_kvm(&s.idt);
    (state.cr0, state.cr2, state.cr3, state.cr4, state.efer) = (s.cr0, s.cr2, s.cr3, s.cr4, s.efer);
}

impl KvmVcpu {
    pub(crate) fn save_state(&self) -> CpuState {
        let mut state = CpuState::reset(true, 0);
        // KVM answers these for every vCPU that exists.
        if let Ok(regs) = self.fd.get_regs() {
            take_registers(&regs, &mut state);
        }
        if let Ok(sregs) = self.fd.get_sregs() {
            take_system(&sregs, &mut state);
        }
        if let Ok(area) = self.fd.get_xsave() {
            state.fpu = xsave::from_area(&bytes(&area));
        }
        if let Ok(xcrs) = self.fd.get_xcrs()
            && let Some(xcr) = xcrs.xcrs[..xcrs.nr_xcrs.min(16) as usize].iter().find(|xcr| xcr.xcr == 0)
        {
            state.xcr0 = xcr.value;
        }
        if let Ok(debug) = self.fd.get_debug_regs() {
            state.dr = [debug.db[0], debug.db[1], debug.db[2], debug.db[3], 0, 0, debug.dr6, debug.dr7];
        }
        if let Ok(events) = self.fd.get_vcpu_events() {
            take_events(&events, &mut state);
        }
        msrs::for_each(&mut state.msr, |index, field| {
            if let Some(value) = self.get_msr(index) {
                *field = value;
            }
        });
        state.msr.tsc_adjust = self.tsc_adjust;
        state.tsc_offset = self.tsc_offset;
        state.activity = self.activity;
        state.a20 = self.a20;
        state
    }

    pub(crate) fn load_state(&mut self, state: &CpuState) -> Result<()> {
        let mut sregs = self.fd.get_sregs().map_err(cannot("system registers"))?;
        self.put_system(&mut sregs, state);
        self.fd.set_sregs(&sregs).map_err(cannot("system registers"))?;
        self.fd.set_regs(&registers(state)).map_err(cannot("registers"))?;
        self.load_extended(state)?;
        let mut copy = state.msr.clone();
        let mut failed = None;
        msrs::for_each(&mut copy, |index, value| {
            if let Err(failure) = self.set_msr(index, *value)
                && msrs::ESSENTIAL.contains(&index)
            {
                failed.get_or_insert(failure);
            }
        });
        if let Some(failure) = failed {
            return Err(failure);
        }
        let db = [state.dr[0], state.dr[1], state.dr[2], state.dr[3]];
        let debug = kvm_debugregs { db, dr6: state.dr[6], dr7: state.dr[7], ..kvm_debugregs::default() };
        self.fd.set_debug_regs(&debug).map_err(cannot("debug registers"))?;
        self.fd.set_vcpu_events(&events(state)).map_err(cannot("events"))?;
        self.activity = state.activity;
        self.a20 = state.a20;
        self.tsc_offset = state.tsc_offset;
        self.tsc_adjust = state.msr.tsc_adjust;
        self.bus.apic.set_tsc_offset(state.tsc_offset);
        self.forget_exit(state.rflags);
        Ok(())
    }

    fn put_system(&self, s: &mut kvm_sregs, state: &CpuState) {
        s.es = to_kvm(&state.seg[seg::ES]);
        s.cs = to_kvm(&state.seg[seg::CS]);
        s.ss = to_kvm(&state.seg[seg::SS]);
        s.ds = to_kvm(&state.seg[seg::DS]);
        s.fs = to_kvm(&state.seg[seg::FS]);
        s.gs = to_kvm(&state.seg[seg::GS]);
        s.ldt = to_kvm(&state.ldtr);
        s.tr = to_kvm(&state.tr);
        s.gdt = table_to_kvm(&state.gdtr);
        s.idt = table_to_kvm(&state.idtr);
        (s.cr0, s.cr2, s.cr3, s.cr4, s.efer) = (state.cr0, state.cr2, state.cr3, state.cr4, state.efer);
        s.cr8 = u64::from(self.bus.apic.cr8() & 15);
        s.apic_base = self.kvm_apic_base();
        // What is being delivered is among the events.
        s.interrupt_bitmap = [0; 4];
    }

    fn load_extended(&mut self, state: &CpuState) -> Result<()> {
        if let Ok(mut xcrs) = self.fd.get_xcrs()
            && xcrs.nr_xcrs > 0
        {
            xcrs.nr_xcrs = 1;
            xcrs.xcrs[0].xcr = 0;
            xcrs.xcrs[0].value = state.xcr0;
            self.fd.set_xcrs(&xcrs).map_err(cannot("XCR0"))?;
        }
        let mut area = self.fd.get_xsave().map_err(cannot("the floating point state"))?;
        let mut raw = bytes(&area);
        xsave::into_area(&state.fpu, &mut raw, state.xcr0 & AVX != 0);
        for (word, bytes) in area.region.iter_mut().zip(raw.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        // SAFETY: without dynamically enabled components the area is KVM's fixed 4096 bytes.
        unsafe { self.fd.set_xsave(&area) }.map_err(cannot("the floating point state"))
    }

    pub(crate) fn get_msr(&self, index: u32) -> Option<u64> {
        let mut list = Msrs::from_entries(&[kvm_msr_entry { index, ..kvm_msr_entry::default() }]).ok()?;
        (self.fd.get_msrs(&mut list) == Ok(1)).then(|| list.as_slice()[0].data)
    }

    pub(crate) fn set_msr(&self, index: u32, data: u64) -> Result<()> {
        let refused = || base::fail!("KVM: cannot set MSR {index:#x} to {data:#x}");
        let list = Msrs::from_entries(&[kvm_msr_entry { index, data, ..kvm_msr_entry::default() }]);
        let list = list.map_err(|_| refused())?;
        if self.fd.set_msrs(&list) == Ok(1) { Ok(()) } else { Err(refused()) }
    }
}

fn bytes(area: &kvm_xsave) -> [u8; xsave::LEN] {
    let mut bytes = [0; xsave::LEN];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(&area.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn take_events(events: &kvm_vcpu_events, state: &mut CpuState) {
    state.interrupt_shadow = events.interrupt.shadow != 0;
    state.nmi_blocked = events.nmi.masked != 0;
    state.pending = if events.exception.injected != 0 {
        let error_code = (events.exception.has_error_code != 0).then_some(events.exception.error_code);
        Some(PendingEvent { vector: events.exception.nr, error_code, software: false })
    } else if events.interrupt.injected != 0 {
        let software = events.interrupt.soft != 0;
        Some(PendingEvent { vector: events.interrupt.nr, error_code: None, software })
    } else if events.nmi.injected != 0 || events.nmi.pending != 0 {
        Some(PendingEvent { vector: 2, error_code: None, software: false })
    } else {
        None
    };
}

fn events(state: &CpuState) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING,
        ..kvm_vcpu_events::default()
    };
    if state.interrupt_shadow {
        events.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
    }
    events.nmi.masked = state.nmi_blocked.into();
    match state.pending {
        Some(PendingEvent { vector: 2, software: false, .. }) => events.nmi.injected = 1,
        Some(PendingEvent { vector, error_code, software: false }) if is_exception(vector, error_code) => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = error_code.is_some().into();
            events.exception.error_code = error_code.unwrap_or(0);
        }
        Some(PendingEvent { vector, software, .. }) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
            events.interrupt.soft = software.into();
        }
        None => {}
    }
    events
}

/// Vectors below 32 are also used by interrupts of real-mode guests: an exception that pushes
/// an error code comes with one.
fn is_exception(vector: u8, error_code: Option<u32>) -> bool {
    vector < 32 && (error_code.is_some() || !matches!(vector, 8 | 10..=14 | 17 | 21))
}
