//! Which MSRs hold which parts of the state.

use cpu::state::Msrs;

pub const TSC: u32 = 0x10;
pub const APIC_BASE: u32 = 0x1b;
pub const TSC_ADJUST: u32 = 0x3b;
pub const TSC_DEADLINE: u32 = 0x6e0;
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8ff;

/// Those without which a guest cannot go on as before: refusing them is an error.
pub const ESSENTIAL: [u32; 9] =
    [0x174, 0x175, 0x176, 0x277, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102];

const FIXED_MTRRS: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// Calls `each` with every MSR's index and its field.
pub fn for_each(msrs: &mut Msrs, mut each: impl FnMut(u32, &mut u64)) {
    each(0x174, &mut msrs.sysenter_cs);
    each(0x175, &mut msrs.sysenter_esp);
    each(0x176, &mut msrs.sysenter_eip);
    each(0x277, &mut msrs.pat);
    each(0xc000_0081, &mut msrs.star);
    each(0xc000_0082, &mut msrs.lstar);
    each(0xc000_0083, &mut msrs.cstar);
    each(0xc000_0084, &mut msrs.sfmask);
    each(0xc000_0102, &mut msrs.kernel_gs_base);
    each(0xc000_0103, &mut msrs.tsc_aux);
    each(0x1a0, &mut msrs.misc_enable);
    each(0x1d9, &mut msrs.debugctl);
    each(0x2ff, &mut msrs.mtrr_def_type);
    for (index, field) in FIXED_MTRRS.into_iter().zip(&mut msrs.mtrr_fixed) {
        each(index, field);
    }
    for (index, (base, mask)) in (0x200..).step_by(2).zip(&mut msrs.mtrr_variable) {
        each(index, base);
        each(index + 1, mask);
    }
    each(0x17a, &mut msrs.mcg_status);
    each(0x17b, &mut msrs.mcg_ctl);
    for (index, bank) in (0x400..).step_by(4).zip(&mut msrs.mce_banks) {
        for (index, field) in (index..).zip(bank) {
            each(index, field);
        }
    }
    each(0xda0, &mut msrs.xss);
    each(0x48, &mut msrs.spec_ctrl);
    each(0x3a, &mut msrs.feature_control);
    each(0x9e, &mut msrs.smbase);
}
