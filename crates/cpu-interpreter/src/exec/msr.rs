//! Model-specific registers (SDM vol. 4, AMD APM vol. 2 appendix A).

use crate::core::Core;
use cpu::Fault;
use cpu::paging::{CR0_PG, EFER_LMA, EFER_LME, EFER_NXE};
use cpu::state::seg;

/// Registers that systems read without asking for their presence; they hold zero here.
fn reads_as_zero(index: u32) -> bool {
    matches!(
        index,
        0x17 | 0x2a | 0x34 | 0x79 | 0x140 | 0x199 | 0x19a | 0x19b | 0x19c | 0x1b0 | 0x1b2 | 0x611 | 0x639
            | 0x641 | 0x619 | 0x1d9..=0x1de
            | 0xc001_0000..=0xc001_0007 | 0xc001_0010 | 0xc001_0015 | 0xc001_001a | 0xc001_001d | 0xc001_001f | 0xc001_0055
            | 0xc001_0058 | 0xc001_0061..=0xc001_006b | 0xc001_0112..=0xc001_0114 | 0xc001_0117
            | 0xc001_0140 | 0xc001_0141 | 0xc001_1004 | 0xc001_1005 | 0xc001_1020..=0xc001_1023
            | 0xc001_1029 | 0xc001_102a | 0xc001_102c | 0xc001_102d | 0xc001_102e
    )
}

const FIXED_MTRRS: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// 8 variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 0x508;
/// 10 banks, MCG_CTL present.
const MCG_CAP: u64 = 0x10a;

fn valid_memory_type(t: u64) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

impl Core {
    fn is_intel(&self) -> bool {
        self.cpuid.query(0, 0).ebx == u32::from_le_bytes(*b"Genu")
    }

    pub fn read_msr(&mut self, index: u32) -> Result<u64, Fault> {
        let m = &self.st.msr;
        Ok(match index {
            0x10 => self.tsc(),
            0x1b | 0x6e0 | 0x800..=0x8ff => self.bus.apic.read_msr(index).ok_or(Fault::GP0)?,
            0x3a => m.feature_control,
            0x3b => m.tsc_adjust,
            0x48 => m.spec_ctrl,
            0x8b => {
                if self.is_intel() {
                    0x1_0000_0000
                } else {
                    0x0100_0065
                }
            }
            0xfe => MTRR_CAP,
            0x174 => m.sysenter_cs,
            0x175 => m.sysenter_esp,
            0x176 => m.sysenter_eip,
            0x179 => MCG_CAP,
            0x17a => m.mcg_status,
            0x17b => m.mcg_ctl,
            0x198 => 1000 | 4 << 40,
            0x1a0 => m.misc_enable,
            0x1d9 => m.debugctl,
            0x200..=0x20f => {
                let (base, mask) = m.mtrr_variable[(index as usize - 0x200) / 2];
                if index & 1 == 0 { base } else { mask }
            }
            0x277 => m.pat,
            0x2ff => m.mtrr_def_type,
            0x400..=0x427 => m.mce_banks[(index as usize - 0x400) / 4][index as usize & 3],
            0xda0 => m.xss,
            0xc000_0080 => self.st.efer,
            0xc000_0081 => m.star,
            0xc000_0082 => m.lstar,
            0xc000_0083 => m.cstar,
            0xc000_0084 => m.sfmask,
            0xc000_0100 => self.st.seg[seg::FS].base,
            0xc000_0101 => self.st.seg[seg::GS].base,
            0xc000_0102 => m.kernel_gs_base,
            0xc000_0103 => m.tsc_aux,
            _ => match FIXED_MTRRS.iter().position(|&r| r == index) {
                Some(n) => m.mtrr_fixed[n],
                None if reads_as_zero(index) => 0,
                None => return Err(Fault::GP0),
            },
        })
    }

    pub fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Fault> {
        let canonical = || if Core::canonical(value) { Ok(value) } else { Err(Fault::GP0) };
        match index {
            0x10 => {
                let old = self.tsc();
                let by = value.wrapping_sub(old);
                self.st.tsc_offset = self.st.tsc_offset.wrapping_add(by);
                self.st.msr.tsc_adjust = self.st.msr.tsc_adjust.wrapping_add(by);
            }
            0x3b => {
                let by = value.wrapping_sub(self.st.msr.tsc_adjust);
                self.st.tsc_offset = self.st.tsc_offset.wrapping_add(by);
                self.st.msr.tsc_adjust = value;
            }
            0x1b | 0x6e0 | 0x800..=0x8ff => {
                if !self.bus.apic.write_msr(index, value) {
                    return Err(Fault::GP0);
                }
                self.irq_hint = true;
                if index == 0x1b {
                    self.flush_tlbs(true);
                }
            }
            0x3a => self.st.msr.feature_control = value,
            0x48 => self.st.msr.spec_ctrl = value,
            0x49 | 0x8b | 0x79 | 0x10b => {}
            0x174 => self.st.msr.sysenter_cs = value & 0xffff_ffff,
            0x175 => self.st.msr.sysenter_esp = canonical()?,
            0x176 => self.st.msr.sysenter_eip = canonical()?,
            0x17a => self.st.msr.mcg_status = value,
            0x17b => self.st.msr.mcg_ctl = value,
            0x1a0 => self.st.msr.misc_enable = value,
            0x1d9 => self.st.msr.debugctl = value & 3,
            0x200..=0x20f => {
                let pair = &mut self.st.msr.mtrr_variable[(index as usize - 0x200) / 2];
                if index & 1 == 0 { pair.0 = value } else { pair.1 = value }
            }
            0x277 => {
                let bad = |t: u8| t > 7 || t == 2 || t == 3;
                if value.to_le_bytes().into_iter().any(bad) {
                    return Err(Fault::GP0);
                }
                self.st.msr.pat = value;
            }
            0x2ff => {
                if !valid_memory_type(value & 0xff) || value & !0xcff != 0 {
                    return Err(Fault::GP0);
                }
                self.st.msr.mtrr_def_type = value;
            }
            0x400..=0x427 => self.st.msr.mce_banks[(index as usize - 0x400) / 4][index as usize & 3] = value,
            0xda0 => {
                if value != 0 {
                    return Err(Fault::GP0);
                }
            }
            0xc000_0080 => self.write_efer(value)?,
            0xc000_0081 => self.st.msr.star = value,
            0xc000_0082 => self.st.msr.lstar = canonical()?,
            0xc000_0083 => self.st.msr.cstar = canonical()?,
            0xc000_0084 => self.st.msr.sfmask = value & 0xffff_ffff,
            0xc000_0100 => {
                let base = canonical()?;
                self.set_segment_base(seg::FS, base);
            }
            0xc000_0101 => {
                let base = canonical()?;
                self.set_segment_base(seg::GS, base);
            }
            0xc000_0102 => self.st.msr.kernel_gs_base = canonical()?,
            0xc000_0103 => self.st.msr.tsc_aux = value & 0xffff_ffff,
            _ => match FIXED_MTRRS.iter().position(|&r| r == index) {
                Some(n) => self.st.msr.mtrr_fixed[n] = value,
                None if reads_as_zero(index) => {}
                None => return Err(Fault::GP0),
            },
        }
        Ok(())
    }

    fn write_efer(&mut self, value: u64) -> Result<(), Fault> {
        let allowed = self.features.efer() | EFER_LMA;
        let changes_lme = (value ^ self.st.efer) & EFER_LME != 0;
        if value & !allowed != 0 || changes_lme && self.st.cr0 & CR0_PG != 0 {
            return Err(Fault::GP0);
        }
        let nxe = (value ^ self.st.efer) & EFER_NXE != 0;
        self.st.efer = value & !EFER_LMA | self.st.efer & EFER_LMA;
        if nxe {
            self.flush_tlbs(true);
        }
        self.paging_changed();
        Ok(())
    }
}
