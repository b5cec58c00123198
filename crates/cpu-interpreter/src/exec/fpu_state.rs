//! FXSAVE and FXRSTOR, x87 environments, MXCSR (SDM vol. 1 ch. 8 and 10).

use super::{Done, Flow};
use crate::core::Core;
use crate::op::Op;
use cpu::Fault;
use cpu::fault::vector;
use cpu::paging::*;
use cpu::state::FpuState;
use cpu::xsave::{SSE, X87};
use iced_x86::{Code, Instruction, Mnemonic};

pub(super) const MXCSR_MASK: u32 = 0xffff;

impl Core {
    /// A copy of the x87 state and MXCSR.
    pub(super) fn x87(&mut self) -> FpuState {
        self.simd.sync();
        self.simd.x87()
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
    pub(super) fn legacy_image(&self, fpu: &FpuState, wide: bool) -> [u8; 160] {
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

    pub(super) fn parse_legacy(fpu: &mut FpuState, image: &[u8], wide: bool) {
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

    pub(super) fn xmm_count(&self) -> usize {
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
        let fpu = self.x87();
        let mut image = [0u8; 416];
        image[..160].copy_from_slice(&self.legacy_image(&fpu, wide));
        let len = 160 + 16 * self.xmm_count();
        self.simd.save_component(1, &mut image[160..len]);
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
        self.restore_legacy(&image, (X87 | SSE, X87 | SSE), wide, Some(mxcsr));
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
        let mut fpu = self.x87();
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
            fpu = FpuState { mxcsr: fpu.mxcsr, st, ..FpuState::default() };
        } else {
            fpu.fcw |= 0x3f;
            fpu.fsw &= !0x8080;
        }
        self.simd.set_x87(&fpu);
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
        let mut fpu = self.x87();
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
        self.simd.set_x87(&fpu);
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

pub(super) fn u64_of(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(all)
}
