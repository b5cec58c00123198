//! XSAVE, XSAVEOPT, XSAVEC, XSAVES and their restores (SDM vol. 1 §13.7 to §13.12).

use super::fpu_state::{MXCSR_MASK, get_words, put_words, u64_of};
use super::{Done, Flow};
use crate::core::Core;
use crate::op::Op;
use cpu::Fault;
use cpu::paging::*;
use cpu::state::FpuState;
use cpu::xsave::{self, AVX, COMPONENTS, Component, LEGACY, SSE, X87};
use iced_x86::{Instruction, Mnemonic};

/// Words of the largest component.
const LARGEST: usize = 128;
/// Where the header stands.
const HEADER: usize = 512;

impl Core {
    /// State components that are not in their initial configuration.
    pub(super) fn in_use(&mut self) -> u64 {
        let fpu = self.fpu();
        let mut used = 0;
        if fpu.fcw != 0x37f
            || fpu.fsw != 0
            || fpu.ftw != 0
            || fpu.st != [[0; 16]; 8]
            || (fpu.fip, fpu.fdp, fpu.fop) != (0, 0, 0)
        {
            used |= X87;
        }
        if fpu.ymm.iter().any(|y| y[0] | y[1] != 0) || fpu.mxcsr != 0x1f80 {
            used |= SSE;
        }
        if fpu.ymm.iter().any(|y| y[2] | y[3] != 0) {
            used |= AVX;
        }
        if self.simd.avx512 {
            let zero = |words: &[u64]| words.iter().all(|&word| word == 0);
            let more = COMPONENTS[1..].iter().filter(|c| !zero(&words(&fpu, c)[..c.size / 8]));
            used |= more.fold(0, |used, c| used | c.mask());
        }
        used
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
        let places: Vec<_> = if compact {
            xsave::compacted(wanted).collect()
        } else {
            COMPONENTS.into_iter().filter(|c| wanted & c.mask() != 0).map(|c| (c, c.offset)).collect()
        };
        // Nothing is written unless all can be.
        self.probe_write(linear, LEGACY)?;
        for (component, at) in places.iter().filter(|(c, _)| stored & c.mask() != 0) {
            let at = self.wrap(linear.wrapping_add(*at as u64));
            self.probe_write(at, component.size)?;
        }
        let fpu = self.fpu();
        let mut image = [0u8; LEGACY];
        // What is not stored keeps its bytes.
        self.read_bytes(linear, &mut image)?;
        let legacy = self.legacy_image(&fpu, wide);
        if stored & X87 != 0 {
            image[..24].copy_from_slice(&legacy[..24]);
            image[32..160].copy_from_slice(&legacy[32..160]);
        }
        if wanted & (SSE | AVX) != 0 && (!compact || stored & SSE != 0 || !optimised) {
            image[24..32].copy_from_slice(&legacy[24..32]);
        }
        let count = self.xmm_count();
        if stored & SSE != 0 {
            for (k, y) in fpu.ymm.iter().take(count).enumerate() {
                put_words(&mut image[160 + 16 * k..176 + 16 * k], &y[..2]);
            }
        }
        let old = u64_of(&image[HEADER..HEADER + 8]);
        let new = if compact { wanted & used } else { old & !wanted | wanted & used };
        image[HEADER..HEADER + 8].copy_from_slice(&new.to_le_bytes());
        if compact {
            image[HEADER + 8..HEADER + 16].copy_from_slice(&(wanted | 1 << 63).to_le_bytes());
        }
        self.write_bytes(linear, &image)?;
        for (component, at) in places.iter().filter(|(c, _)| stored & c.mask() != 0) {
            let at = self.wrap(linear.wrapping_add(*at as u64));
            self.save_component(&fpu, component, at)?;
        }
        Ok(Flow::Next)
    }

    /// Writes a component of the extended region. Outside of 64-bit mode, registers that do not
    /// exist keep their bytes.
    fn save_component(&mut self, fpu: &FpuState, component: &Component, linear: u64) -> Result<(), Fault> {
        let mut bytes = [0u8; 8 * LARGEST];
        let len = self.component_len(component);
        put_words(&mut bytes[..len], &words(fpu, component));
        self.write_bytes(linear, &bytes[..len])
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
        let mut fpu = self.fpu();
        let places: Vec<_> = if compact {
            xsave::compacted(components).collect()
        } else {
            COMPONENTS.into_iter().map(|c| (c, c.offset)).collect()
        };
        for (component, at) in places.iter().filter(|(c, _)| load & c.mask() != 0) {
            let at = self.wrap(linear.wrapping_add(*at as u64));
            self.restore_component(&mut fpu, component, at)?;
        }
        for component in COMPONENTS.iter().filter(|c| wanted & !load & c.mask() != 0) {
            let len = self.component_len(component) / 8;
            set_words(&mut fpu, component, &[0; LARGEST][..len]);
        }
        if takes_mxcsr && mxcsr & !MXCSR_MASK != 0 {
            return Err(Fault::GP0);
        }
        let fresh = FpuState::default();
        if wanted & X87 != 0 {
            if load & X87 != 0 {
                Core::parse_legacy(&mut fpu, &image[..160], wide);
            } else {
                fpu = FpuState { mxcsr: fpu.mxcsr, ymm: fpu.ymm, avx512: fpu.avx512, ..fresh.clone() };
            }
        }
        if takes_mxcsr {
            fpu.mxcsr = mxcsr;
        } else if compact && wanted & SSE != 0 {
            fpu.mxcsr = fresh.mxcsr;
        }
        let count = self.xmm_count();
        for (k, y) in fpu.ymm.iter_mut().take(count).enumerate() {
            if load & SSE != 0 {
                get_words(&image[160 + 16 * k..176 + 16 * k], &mut y[..2]);
            } else if wanted & SSE != 0 {
                y[..2].fill(0);
            }
        }
        self.set_fpu(&fpu);
        Ok(Flow::Next)
    }

    fn restore_component(
        &mut self,
        fpu: &mut FpuState,
        component: &Component,
        linear: u64,
    ) -> Result<(), Fault> {
        let mut bytes = [0u8; 8 * LARGEST];
        let len = self.component_len(component);
        self.read_bytes(linear, &mut bytes[..len])?;
        let mut words = [0; LARGEST];
        get_words(&bytes[..len], &mut words);
        set_words(fpu, component, &words[..len / 8]);
        Ok(())
    }
}

/// The words of a component of the extended region, in the order of the area; zeroes follow.
fn words(fpu: &FpuState, component: &Component) -> [u64; LARGEST] {
    let mut words = [0; LARGEST];
    let from = match component.number {
        2 => {
            for (to, y) in words.chunks_exact_mut(2).zip(&fpu.ymm) {
                to.copy_from_slice(&y[2..]);
            }
            return words;
        }
        5 => &fpu.avx512.opmask[..],
        6 => fpu.avx512.zmm_hi256.as_flattened(),
        _ => fpu.avx512.hi16_zmm.as_flattened(),
    };
    words[..from.len()].copy_from_slice(from);
    words
}

/// Sets the first words of a component of the extended region.
fn set_words(fpu: &mut FpuState, component: &Component, words: &[u64]) {
    let to = match component.number {
        2 => {
            for (y, from) in fpu.ymm.iter_mut().zip(words.chunks_exact(2)) {
                y[2..].copy_from_slice(from);
            }
            return;
        }
        5 => &mut fpu.avx512.opmask[..],
        6 => fpu.avx512.zmm_hi256.as_flattened_mut(),
        _ => fpu.avx512.hi16_zmm.as_flattened_mut(),
    };
    to[..words.len()].copy_from_slice(words);
}
