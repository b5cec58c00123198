//! System state between the interpreter's core and the state page.

use crate::layout::{Identity, State, System, slot_of};
use crate::system_stubs;
use crate::tables::Tables;
use cpu::paging::{CR4_SMAP, CR4_TSD, EFER_SCE};
use cpu::state::seg;
use cpu_interpreter::{Core, View};

const ARITH: u64 = 0x8d5;
const IF: u64 = 0x200;
const RF: u64 = 0x1_0000;

/// RDTSC needs no privilege that is missing.
pub fn may_count(core: &Core) -> bool {
    core.st.cr4 & CR4_TSD == 0 || core.cpl == 0
}

/// What never changes.
pub fn prepare(state: &mut State, exits: &[usize], counter: u64) {
    for (to, from) in state.system.exits.iter_mut().zip(exits) {
        *to = *from as u64;
    }
    state.system.counter = counter;
    forget_identities(&mut state.system);
}

/// The core's state to the page.
pub fn load(state: &mut State, core: &Core) {
    let s = &mut state.system;
    let flags = core.st.rflags;
    s.flags = flags & !(ARITH | IF | RF);
    s.iflag = (flags >> 8) as u8 & 2;
    s.hint = u8::from(core.irq_hint);
    s.ring = 0;
    s.view_changed = 0;
    s.other_gs = core.st.msr.kernel_gs_base;
    let selector = |n: usize| u32::from(core.st.seg[n].selector);
    s.selectors = [selector(seg::CS), selector(seg::SS)];
    s.data_selectors = [seg::ES, seg::DS, seg::FS, seg::GS].map(selector);
    s.control = [core.st.cr0, core.st.cr2, core.st.cr3, core.st.cr4];
}

/// What control and model-specific registers make of it.
pub fn load_registers(state: &mut State, core: &Core, tables: &Tables) {
    let s = &mut state.system;
    let inner = if core.st.cr4 & CR4_SMAP != 0 { View::SupervisorAc } else { View::Supervisor };
    let gs = |view| tables.gs(view) as u64;
    s.views = [gs(View::User), gs(View::Supervisor), gs(inner)];
    let identified = [core.st.cr4, core.st.xcr0, core.st.msr.xss, core.bus.apic.base_msr()];
    if s.identified != identified {
        s.identified = identified;
        forget_identities(s);
    }
    s.lstar = core.st.msr.lstar;
    let (inner, outer) = ((core.st.msr.star >> 32) as u16 & 0xfffc, (core.st.msr.star >> 48) as u16);
    s.inner_selectors = [inner, inner.wrapping_add(8)].map(u32::from);
    s.outer_selectors = [outer.wrapping_add(16) | 3, outer.wrapping_add(8) | 3].map(u32::from);
    s.kept = !(core.st.msr.sfmask | RF);
    s.counter_offset = core.st.tsc_offset;
    s.counter_id = core.st.msr.tsc_aux;
    let enabled = core.st.efer & EFER_SCE != 0;
    let slow = s.exits[crate::layout::reason::SLOW as usize];
    s.stub_syscall = if enabled { system_stubs::syscall() } else { slow };
    s.stub_sysret = if enabled { system_stubs::sysret() } else { slow };
}

fn forget_identities(s: &mut System) {
    for (n, identity) in s.identities.iter_mut().enumerate() {
        // Of another slot.
        identity.asked = n as u64 ^ 1;
    }
}

/// What is asked of CPUID now.
pub fn asks(core: &Core) -> u64 {
    core.r[0] & 0xffff_ffff | core.r[1] << 32
}

/// Notes what CPUID answered.
pub fn identify(state: &mut State, core: &Core, asked: u64) {
    let slot = slot_of(asked as u32, (asked >> 32) as u32);
    let answer = [0, 3, 1, 2].map(|n: usize| core.r[n] as u32);
    state.system.identities[slot] = Identity { asked, answer, spare: 0 };
}

/// The page's state to the core. `true`: the ring was changed.
pub fn store(state: &mut State, core: &mut Core) -> bool {
    let s = &mut state.system;
    core.st.rflags = core.st.rflags & ARITH | s.flags | u64::from(s.iflag) << 8;
    core.st.msr.kernel_gs_base = s.other_gs;
    // Only SWAPGS, WRFSBASE and WRGSBASE change them. (`st` has the whole bases, also in code
    // that is not of 64 bits.)
    for (n, base) in [seg::FS, seg::GS].into_iter().zip(state.seg_base) {
        if core.sc[n].base != base {
            core.st.seg[n].base = base;
            core.sc[n].base = base;
        }
    }
    let ring = std::mem::take(&mut s.ring);
    match ring {
        0 if s.view_changed != 0 => core.choose_view(),
        0 => {}
        1 => core.finish_syscall(),
        _ => core.finish_sysret(),
    }
    s.view_changed = 0;
    ring != 0
}
