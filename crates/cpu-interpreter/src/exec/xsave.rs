//! XSAVE, XSAVEOPT, XSAVEC, XSAVES and their restores (SDM vol. 1 §13.7 to §13.12).

use super::fpu_state::{MXCSR_MASK, u64_of};
use super::{Done, Flow};
use crate::core::Core;
use crate::op::Op;
use cpu::Fault;
use cpu::paging::*;
use cpu::state::FpuState;
use cpu::xsave::{self, AVX, COMPONENTS, Component, LEGACY, SSE, X87};
use iced_x86::{Instruction, Mnemonic};

/// Bytes of the largest component.
const LARGEST: usize = 1024;
/// Bytes of all components of the extended region.
const EXTENDED: usize = 1856;
/// MXCSR in its initial state.
const FRESH_MXCSR: u32 = 0x1f80;
/// Where the header stands.
const HEADER: usize = 512;

impl Core {
    /// State components that are not in their initial configuration.
    pub(super) fn in_use(&mut self) -> u64 {
        let fpu = self.x87();
        let mut used = 0;
        if fpu.fcw != 0x37f
            || fpu.fsw != 0
            || fpu.ftw != 0
            || fpu.st != [[0; 16]; 8]
            || (fpu.fip, fpu.fdp, fpu.fop) != (0, 0, 0)
        {
            used |= X87;
        }
        if fpu.mxcsr != FRESH_MXCSR || self.simd.uses_component(1) {
            used |= SSE;
        }
        let known = if self.simd.avx512 { COMPONENTS.len() } else { 1 };
        let more = COMPONENTS[..known].iter().filter(|c| self.simd.uses_component(c.number));
        more.fold(used, |used, c| used | c.mask())
    }

    /// XGETBV, XSETBV.
    pub(super) fn extended_control(&mut self, write: bool) -> Done {
        if self.st.cr4 & CR4_OSXSAVE == 0 {
            return Err(Fault::UD);
        }
        let index = self.r[1] as u32;
        if !write {
            let value = match index {
                0 => self.st.xcr0,
                1 => self.st.xcr0 & self.in_use(),
                _ => return Err(Fault::GP0),
            };
            self.r[0] = value & 0xffff_ffff;
            self.r[2] = value >> 32;
            return Ok(Flow::Next);
        }
        self.privileged()?;
        let value = self.reg(0, 4) | self.r[2] << 32;
        if index != 0 || !xsave::is_valid(value, self.features.xcr0()) {
            return Err(Fault::GP0);
        }
        self.st.xcr0 = value;
        Ok(Flow::End)
    }

    fn requested(&self) -> u64 {
        self.reg(0, 4) | self.reg(2, 4) << 32
    }

    fn check_xsave(&self) -> Result<(), Fault> {
        if self.st.cr4 & CR4_OSXSAVE == 0 {
            return Err(Fault::UD);
        }
        if self.st.cr0 & CR0_TS != 0 { Err(Fault::NM) } else { Ok(()) }
    }

    pub(super) fn xsave(&mut self, i: &Instruction, op: &Op) -> Done {
        use Mnemonic::*;
        self.check_xsave()?;
        let m = i.mnemonic();
        let supervisor = matches!(m, Xsaves | Xsaves64);
        if supervisor && self.cpl != 0 {
            return Err(Fault::GP0);
        }
        let compact = supervisor || matches!(m, Xsavec | Xsavec64);
        let optimised = compact || matches!(m, Xsaveopt | Xsaveopt64);
        let wide = matches!(m, Xsave64 | Xsaveopt64 | Xsavec64 | Xsaves64);
        let wanted = self.requested() & self.st.xcr0;
        let linear = self.operand(op, LEGACY, true)?;
        if linear & 63 != 0 {
            return Err(Fault::GP0);
        }
        let used = self.in_use();
        let stored = if optimised { wanted & used } else { wanted };
        let layout = compact.then_some(wanted);
        // Nothing is written unless all can be.
        self.probe_write(linear, LEGACY)?;
        for component in xsave::present(stored) {
            let at = self.wrap(linear.wrapping_add(component.place(layout) as u64));
            self.probe_write(at, component.size)?;
        }
        let mut image = [0u8; LEGACY];
        // What is not stored keeps its bytes.
        self.read_bytes(linear, &mut image)?;
        let legacy = self.legacy_image(&self.simd.x87(), wide);
        if stored & X87 != 0 {
            image[..24].copy_from_slice(&legacy[..24]);
            image[32..160].copy_from_slice(&legacy[32..160]);
        }
        if wanted & (SSE | AVX) != 0 && (!compact || stored & SSE != 0 || !optimised) {
            image[24..32].copy_from_slice(&legacy[24..32]);
        }
        if stored & SSE != 0 {
            self.simd.save_component(1, &mut image[160..160 + 16 * self.xmm_count()]);
        }
        let old = u64_of(&image[HEADER..HEADER + 8]);
        let new = if compact { wanted & used } else { old & !wanted | wanted & used };
        image[HEADER..HEADER + 8].copy_from_slice(&new.to_le_bytes());
        if compact {
            image[HEADER + 8..HEADER + 16].copy_from_slice(&(wanted | 1 << 63).to_le_bytes());
        }
        self.write_bytes(linear, &image)?;
        for component in xsave::present(stored) {
            let at = self.wrap(linear.wrapping_add(component.place(layout) as u64));
            let mut bytes = [0u8; LARGEST];
            let len = self.component_len(&component);
            self.simd.save_component(component.number, &mut bytes[..len]);
            self.write_bytes(at, &bytes[..len])?;
        }
        Ok(Flow::Next)
    }

    /// Bytes of a component that the present mode accesses.
    fn component_len(&self, component: &Component) -> usize {
        match (component.number, self.is_64bit()) {
            (2 | 6, false) => component.size / 2,
            (7, false) => 0,
            _ => component.size,
        }
    }

    pub(super) fn xrstor(&mut self, i: &Instruction, op: &Op) -> Done {
        use Mnemonic::*;
        self.check_xsave()?;
        let supervisor = matches!(i.mnemonic(), Xrstors | Xrstors64);
        if supervisor && self.cpl != 0 {
            return Err(Fault::GP0);
        }
        let wide = matches!(i.mnemonic(), Xrstor64 | Xrstors64);
        let linear = self.operand(op, LEGACY, false)?;
        if linear & 63 != 0 {
            return Err(Fault::GP0);
        }
        let mut image = [0u8; LEGACY];
        self.read_bytes(linear, &mut image)?;
        let (present, layout) = (u64_of(&image[512..520]), u64_of(&image[520..528]));
        let compact = layout >> 63 != 0;
        let components = layout & !(1 << 63);
        let bad_header = if compact {
            components & !self.st.xcr0 != 0 || present & !components != 0
        } else {
            supervisor || layout != 0 || present & !self.st.xcr0 != 0 || u64_of(&image[528..536]) != 0
        };
        if bad_header || image[536..576].iter().any(|&b| b != 0) && compact {
            return Err(Fault::GP0);
        }
        let wanted = self.requested() & self.st.xcr0;
        let load = wanted & present;
        let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
        let takes_mxcsr = if compact { load & SSE != 0 } else { wanted & (SSE | AVX) != 0 };
        if takes_mxcsr && mxcsr & !MXCSR_MASK != 0 {
            return Err(Fault::GP0);
        }
        let mxcsr = match takes_mxcsr {
            true => Some(mxcsr),
            false => (compact && wanted & SSE != 0).then_some(FRESH_MXCSR),
        };
        let layout = compact.then_some(components);
        // Nothing is loaded unless all can be.
        let mut bytes = [0u8; EXTENDED];
        let mut next = 0;
        for component in xsave::present(load) {
            let at = self.wrap(linear.wrapping_add(component.place(layout) as u64));
            let len = self.component_len(&component);
            self.read_bytes(at, &mut bytes[next..next + len])?;
            next += len;
        }
        self.restore_legacy(&image, (wanted, load), wide, mxcsr);
        let mut from = &bytes[..next];
        for component in xsave::present(wanted) {
            let len = self.component_len(&component);
            if load & component.mask() != 0 {
                self.simd.load_component(component.number, &from[..len]);
                from = &from[len..];
            } else if component.number < 5 || self.simd.avx512 {
                self.simd.load_component(component.number, &[0; LARGEST][..len]);
            }
        }
        self.simd.settle_avx512();
        Ok(Flow::Next)
    }

    /// x87 and XMM registers from the legacy region, or their initial state; MXCSR, if given.
    pub(super) fn restore_legacy(
        &mut self,
        image: &[u8],
        (wanted, load): (u64, u64),
        wide: bool,
        mxcsr: Option<u32>,
    ) {
        let mut fpu = self.x87();
        if wanted & X87 != 0 {
            if load & X87 != 0 {
                Core::parse_legacy(&mut fpu, &image[..160], wide);
            } else {
                fpu = FpuState { mxcsr: fpu.mxcsr, ..FpuState::default() };
            }
        }
        fpu.mxcsr = mxcsr.unwrap_or(fpu.mxcsr);
        self.simd.set_x87(&fpu);
        let len = 16 * self.xmm_count();
        if load & SSE != 0 {
            self.simd.load_component(1, &image[160..160 + len]);
        } else if wanted & SSE != 0 {
            self.simd.load_component(1, &[0; 256][..len]);
        }
    }
}
