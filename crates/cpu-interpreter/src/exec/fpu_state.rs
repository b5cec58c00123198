//! FXSAVE, XSAVE and their kin; x87 environments; MXCSR (SDM vol. 1 ch. 8, 10 and 13).

use super::{Done, Flow};
use crate::core::Core;
use crate::op::Op;
use cpu::Fault;
use cpu::fault::vector;
use cpu::paging::*;
use cpu::state::FpuState;
use iced_x86::{Code, Instruction, Mnemonic};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
const MXCSR_MASK: u32 = 0xffff;

impl Core {
    /// State components that are not in their initial configuration.
    pub(super) fn in_use(&mut self) -> u64 {
        let fpu = self.fpu();
        let mut used = 0;
        let fresh = FpuState::default();
        if fpu.fcw != fresh.fcw
            || fpu.fsw != 0
            || fpu.ftw != 0
            || fpu.st != fresh.st
            || (fpu.fip, fpu.fdp, fpu.fop) != (0, 0, 0)
        {
            used |= X87;
        }
        if fpu.ymm.iter().any(|y| y[0] | y[1] != 0) || fpu.mxcsr != fresh.mxcsr {
            used |= SSE;
        }
        if fpu.ymm.iter().any(|y| y[2] | y[3] != 0) {
            used |= AVX;
        }
        used
    }

    /// A copy of the x87 and vector state.
    pub fn fpu(&mut self) -> FpuState {
        self.simd.sync();
        self.simd.state()
    }

    fn set_fpu(&mut self, fpu: &FpuState) {
        self.simd.load(fpu);
    }

    fn check_x87(&self) -> Result<(), Fault> {
        if self.st.cr0 & (CR0_EM | CR0_TS) != 0 { Err(Fault::NM) } else { Ok(()) }
    }

    /// `None`: not one of these instructions.
    pub(super) fn fpu_state(&mut self, i: &Instruction, op: &Op) -> Option<Done> {
        use Mnemonic::*;
        Some(match i.mnemonic() {
            Fxsave | Fxsave64 => self.fxsave(op, i.mnemonic() == Fxsave64),
            Fxrstor | Fxrstor64 => self.fxrstor(op, i.mnemonic() == Fxrstor64),
            Ldmxcsr | Stmxcsr | Vldmxcsr | Vstmxcsr => self.mxcsr(i, op),
            Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xsaves | Xsaves64 => {
                self.xsave(i, op)
            }
            Xrstor | Xrstor64 | Xrstors | Xrstors64 => self.xrstor(i, op),
            Fnsave | Fnstenv => self.store_environment(i, op),
            Frstor | Fldenv => self.load_environment(i, op),
            _ => return None,
        })
    }

    fn mxcsr(&mut self, i: &Instruction, op: &Op) -> Done {
        let vex = matches!(i.mnemonic(), Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr);
        self.check_class(if vex { cpu_host::Class::Avx } else { cpu_host::Class::Sse })?;
        if matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr) {
            let linear = self.operand(op, 4, false)?;
            let value = self.read(linear, 4)? as u32;
            if value & !MXCSR_MASK != 0 {
                return Err(Fault::GP0);
            }
            self.simd.set_mxcsr(value);
        } else {
            let linear = self.operand(op, 4, true)?;
            let value = u64::from(self.simd.mxcsr());
            self.write(linear, 4, value)?;
        }
        Ok(Flow::Next)
    }

    /// The 160 bytes of legacy x87/MXCSR state at the start of an FXSAVE or XSAVE image.
    fn legacy_image(&self, fpu: &FpuState, wide: bool) -> [u8; 160] {
        let mut image = [0; 160];
        image[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
        image[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
        image[4] = fpu.ftw;
        image[6..8].copy_from_slice(&fpu.fop.to_le_bytes());
        if wide {
            image[8..16].copy_from_slice(&fpu.fip.to_le_bytes());
            image[16..24].copy_from_slice(&fpu.fdp.to_le_bytes());
        } else {
            image[8..12].copy_from_slice(&(fpu.fip as u32).to_le_bytes());
            image[12..14].copy_from_slice(&fpu.fcs.to_le_bytes());
            image[16..20].copy_from_slice(&(fpu.fdp as u32).to_le_bytes());
            image[20..22].copy_from_slice(&fpu.fds.to_le_bytes());
        }
        image[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for (k, register) in fpu.st.iter().enumerate() {
            image[32 + 16 * k..42 + 16 * k].copy_from_slice(&register[..10]);
        }
        image
    }

    fn parse_legacy(fpu: &mut FpuState, image: &[u8], wide: bool) {
        let u16_at = |k: usize| u16::from_le_bytes([image[k], image[k + 1]]);
        let u32_at = |k: usize| u32::from(u16_at(k)) | u32::from(u16_at(k + 2)) << 16;
        let u64_at = |k: usize| u64::from(u32_at(k)) | u64::from(u32_at(k + 4)) << 32;
        fpu.fcw = u16_at(0) & 0x1f7f | 0x40;
        fpu.fsw = u16_at(2);
        fpu.ftw = image[4];
        fpu.fop = u16_at(6) & 0x7ff;
        if wide {
            fpu.fip = u64_at(8);
            fpu.fdp = u64_at(16);
            (fpu.fcs, fpu.fds) = (0, 0);
        } else {
            fpu.fip = u64::from(u32_at(8));
            fpu.fcs = u16_at(12);
            fpu.fdp = u64::from(u32_at(16));
            fpu.fds = u16_at(20);
        }
        for (k, register) in fpu.st.iter_mut().enumerate() {
            register[..10].copy_from_slice(&image[32 + 16 * k..42 + 16 * k]);
        }
    }

    fn xmm_count(&self) -> usize {
        if self.is_64bit() { 16 } else { 8 }
    }

    fn fxsave(&mut self, op: &Op, wide: bool) -> Done {
        self.check_x87()?;
        let linear = self.operand(op, 512, true)?;
        if linear & 15 != 0 {
            return Err(Fault::GP0);
        }
        // The unused end is touched as well.
        self.probe_write(linear, 512)?;
        let fpu = self.fpu();
        let legacy = self.legacy_image(&fpu, wide);
        let mut image = [0u8; 416];
        image[..160].copy_from_slice(&legacy);
        let count = self.xmm_count();
        for (k, y) in fpu.ymm.iter().take(count).enumerate() {
            put_xmm(&mut image[160 + 16 * k..176 + 16 * k], &y[..2]);
        }
        let len = if count == 16 { 416 } else { 288 };
        self.write_bytes(linear, &image[..len])?;
        Ok(Flow::Next)
    }

    fn fxrstor(&mut self, op: &Op, wide: bool) -> Done {
        self.check_x87()?;
        let linear = self.operand(op, 512, false)?;
        if linear & 15 != 0 {
            return Err(Fault::GP0);
        }
        let mut image = [0u8; 512];
        self.read_bytes(linear, &mut image)?;
        let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(Fault::GP0);
        }
        let mut fpu = self.fpu();
        Core::parse_legacy(&mut fpu, &image[..160], wide);
        fpu.mxcsr = mxcsr;
        let count = self.xmm_count();
        for (k, y) in fpu.ymm.iter_mut().take(count).enumerate() {
            get_xmm(&image[160 + 16 * k..176 + 16 * k], &mut y[..2]);
        }
        self.set_fpu(&fpu);
        Ok(Flow::Next)
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

    fn xsave(&mut self, i: &Instruction, op: &Op) -> Done {
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
        let linear = self.operand(op, 576, true)?;
        if linear & 63 != 0 {
            return Err(Fault::GP0);
        }
        let used = self.in_use();
        let fpu = self.fpu();
        let stored = if optimised { wanted & used } else { wanted };
        let area = 576 + if wanted & AVX != 0 { 256 } else { 0 };
        let mut image = vec![0u8; area];
        // What is not stored keeps its bytes.
        self.probe_write(linear, 1)?;
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
                put_xmm(&mut image[160 + 16 * k..176 + 16 * k], &y[..2]);
            }
        }
        if stored & AVX != 0 {
            for (k, y) in fpu.ymm.iter().take(count).enumerate() {
                put_xmm(&mut image[576 + 16 * k..592 + 16 * k], &y[2..]);
            }
        }
        let old = u64_of(&image[512..520]);
        let new = if compact { wanted & used } else { old & !wanted | wanted & used };
        image[512..520].copy_from_slice(&new.to_le_bytes());
        if compact {
            image[520..528].copy_from_slice(&(wanted | 1 << 63).to_le_bytes());
        }
        self.write_bytes(linear, &image)?;
        Ok(Flow::Next)
    }

    fn xrstor(&mut self, i: &Instruction, op: &Op) -> Done {
        use Mnemonic::*;
        self.check_xsave()?;
        let supervisor = matches!(i.mnemonic(), Xrstors | Xrstors64);
        if supervisor && self.cpl != 0 {
            return Err(Fault::GP0);
        }
        let wide = matches!(i.mnemonic(), Xrstor64 | Xrstors64);
        let linear = self.operand(op, 576, false)?;
        if linear & 63 != 0 {
            return Err(Fault::GP0);
        }
        let mut image = [0u8; 832];
        self.read_bytes(linear, &mut image[..576])?;
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
        if load & AVX != 0 {
            let at = self.wrap(linear.wrapping_add(576));
            self.read_bytes(at, &mut image[576..])?;
        }
        let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
        let takes_mxcsr = if compact { load & SSE != 0 } else { wanted & (SSE | AVX) != 0 };
        if takes_mxcsr && mxcsr & !MXCSR_MASK != 0 {
            return Err(Fault::GP0);
        }
        let mut fpu = self.fpu();
        let fresh = FpuState::default();
        if wanted & X87 != 0 {
            if load & X87 != 0 {
                Core::parse_legacy(&mut fpu, &image[..160], wide);
            } else {
                fpu = FpuState { mxcsr: fpu.mxcsr, ymm: fpu.ymm, ..fresh.clone() };
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
                get_xmm(&image[160 + 16 * k..176 + 16 * k], &mut y[..2]);
            } else if wanted & SSE != 0 {
                y[..2].fill(0);
            }
            if load & AVX != 0 {
                get_xmm(&image[576 + 16 * k..592 + 16 * k], &mut y[2..]);
            } else if wanted & AVX != 0 {
                y[2..].fill(0);
            }
        }
        self.set_fpu(&fpu);
        Ok(Flow::Next)
    }

    // ---- x87 environments ----

    fn environment_size(i: &Instruction) -> usize {
        match i.code() {
            Code::Fnstenv_m14byte | Code::Fldenv_m14byte | Code::Fnsave_m94byte | Code::Frstor_m94byte => 2,
            _ => 4,
        }
    }

    fn store_environment(&mut self, i: &Instruction, op: &Op) -> Done {
        self.check_x87()?;
        let word = Core::environment_size(i);
        let all = i.mnemonic() == Mnemonic::Fnsave;
        let len = 7 * word + if all { 80 } else { 0 };
        let linear = self.operand(op, len, true)?;
        let mut fpu = self.fpu();
        let mut image = [0u8; 108];
        let words = environment_words(&fpu, word, self.st.cr0 & CR0_PE != 0 && !self.v86());
        for (k, w) in words.iter().enumerate() {
            image[k * word..(k + 1) * word].copy_from_slice(&w.to_le_bytes()[..word]);
        }
        for k in 0..8 {
            image[7 * word + 10 * k..7 * word + 10 * k + 10].copy_from_slice(&fpu.st[k][..10]);
        }
        self.write_bytes(linear, &image[..len])?;
        if all {
            // TOP becomes 0, the (empty) registers stay where they are.
            let top = usize::from(fpu.fsw >> 11 & 7);
            let st = std::array::from_fn(|p| fpu.st[(p + 8 - top) & 7]);
            fpu = FpuState { mxcsr: fpu.mxcsr, ymm: fpu.ymm, st, ..FpuState::default() };
        } else {
            fpu.fcw |= 0x3f;
            fpu.fsw &= !0x8080;
        }
        self.set_fpu(&fpu);
        Ok(Flow::Next)
    }

    fn load_environment(&mut self, i: &Instruction, op: &Op) -> Done {
        self.check_x87()?;
        if self.simd.x87_pending() {
            return Err(Fault::plain(vector::MF));
        }
        let word = Core::environment_size(i);
        let all = i.mnemonic() == Mnemonic::Frstor;
        let len = 7 * word + if all { 80 } else { 0 };
        let linear = self.operand(op, len, false)?;
        let mut image = [0u8; 108];
        self.read_bytes(linear, &mut image[..len])?;
        let word_at = |k: usize| {
            let mut bytes = [0; 4];
            bytes[..word].copy_from_slice(&image[k * word..(k + 1) * word]);
            u32::from_le_bytes(bytes)
        };
        let mut fpu = self.fpu();
        let old_top = usize::from(fpu.fsw >> 11 & 7);
        fpu.fcw = word_at(0) as u16 & 0x1f7f | 0x40;
        fpu.fsw = word_at(1) as u16;
        let tags = word_at(2) as u16;
        fpu.ftw = (0..8).fold(0, |t, k| t | u8::from(tags >> (2 * k) & 3 != 3) << k);
        let new_top = usize::from(fpu.fsw >> 11 & 7);
        let protected = self.st.cr0 & CR0_PE != 0 && !self.v86();
        fpu.fip = u64::from(word_at(3));
        fpu.fdp = u64::from(word_at(5));
        if protected {
            fpu.fcs = word_at(4) as u16;
            fpu.fds = word_at(6) as u16;
            if word == 4 {
                fpu.fop = (word_at(4) >> 16) as u16 & 0x7ff;
            }
        } else {
            let high = |w: u32| u64::from(w >> 12 & if word == 4 { 0xffff } else { 0xf }) << 16;
            fpu.fip = fpu.fip & 0xffff | high(word_at(4));
            fpu.fdp = fpu.fdp & 0xffff | high(word_at(6));
            fpu.fop = word_at(4) as u16 & 0x7ff;
        }
        if all {
            for k in 0..8 {
                fpu.st[k][..10].copy_from_slice(&image[7 * word + 10 * k..7 * word + 10 * k + 10]);
            }
        } else {
            // Registers are stored relative to TOP, which has changed under them.
            let physical: [[u8; 16]; 8] = std::array::from_fn(|p| fpu.st[(p + 8 - old_top) & 7]);
            fpu.st = std::array::from_fn(|k| physical[(k + new_top) & 7]);
        }
        self.set_fpu(&fpu);
        Ok(Flow::Next)
    }
}

/// The seven words of an x87 environment in the format of `word` bytes.
fn environment_words(fpu: &FpuState, word: usize, protected: bool) -> [u32; 7] {
    let top = usize::from(fpu.fsw >> 11 & 7);
    let mut tags = 0u32;
    for p in 0..8 {
        let tag = if fpu.ftw >> p & 1 == 0 { 3 } else { tag_of(&fpu.st[(p + 8 - top) & 7]) };
        tags |= tag << (2 * p);
    }
    let high = if word == 4 { 0xffff_0000u32 } else { 0 };
    let (fip, fdp) = (fpu.fip as u32, fpu.fdp as u32);
    let fop = u32::from(fpu.fop);
    let tail = if protected {
        let (cs, ds) = (u32::from(fpu.fcs), u32::from(fpu.fds));
        [fip, cs | fop << 16, fdp, ds | high]
    } else if word == 4 {
        [fip & 0xffff | high, (fip >> 16) << 12 | fop, fdp & 0xffff | high, (fdp >> 16) << 12]
    } else {
        [fip & 0xffff, (fip >> 4 & 0xf000) | fop, fdp & 0xffff, fdp >> 4 & 0xf000]
    };
    [u32::from(fpu.fcw) | high, u32::from(fpu.fsw) | high, tags | high, tail[0], tail[1], tail[2], tail[3]]
}

/// Full tag of a register that is not empty: 0 valid, 1 zero, 2 special.
fn tag_of(register: &[u8; 16]) -> u32 {
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    let significand = u64_of(&register[..8]);
    match (exponent, significand) {
        (0, 0) => 1,
        (0 | 0x7fff, _) => 2,
        (_, s) if s >> 63 == 0 => 2,
        _ => 0,
    }
}

fn u64_of(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(all)
}

fn put_xmm(to: &mut [u8], words: &[u64]) {
    to[..8].copy_from_slice(&words[0].to_le_bytes());
    to[8..16].copy_from_slice(&words[1].to_le_bytes());
}

fn get_xmm(from: &[u8], words: &mut [u64]) {
    words[0] = u64_of(&from[..8]);
    words[1] = u64_of(&from[8..16]);
}
