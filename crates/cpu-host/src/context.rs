//! The guest's vector and x87 state in the form thunks work on.

use crate::fault::{self, DEFAULT_MXCSR};
use cpu::state::{Avx512State, FpuState};
use std::arch::asm;
use std::mem::offset_of;

/// The bytes of one instruction's memory operand, from its lowest address.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Operand(pub [u8; 64]);

impl Default for Operand {
    fn default() -> Self {
        Operand([0; 64])
    }
}

/// The FXSAVE64 image (SDM vol. 1 §10.5.1.2); only its x87 part is used.
#[derive(Clone)]
#[repr(C, align(16))]
struct Image {
    fcw: u16,
    fsw: u16,
    ftw: u8,
    reserved: u8,
    fop: u16,
    fip: u64,
    fdp: u64,
    mxcsr: u32,
    mxcsr_mask: u32,
    st: [[u8; 16]; 8],
    rest: [u8; 352],
}

/// The guest's vector, opmask, MXCSR, x87 and MMX state.
///
/// The vector registers always stand in memory. The x87 and MMX registers move into the host
/// thread's own with the first x87 or MMX instruction and stay there until
/// [`SimdContext::sync`]; Rust code does not use them. MXCSR's exception flags gather in the
/// host's MXCSR in the same way while its control bits are those that Rust code runs with.
#[repr(C, align(64))]
pub struct SimdContext {
    /// ZMM0..ZMM31; YMM is the low half, XMM the low quarter.
    pub zmm: [[u64; 8]; 32],
    /// K0..K7.
    pub opmask: [u64; 8],
    /// AVX-512 state (opmasks, ZMM16 and up, bits 511:256 of the others) may be other than zero.
    pub avx512: bool,
    image: Image,
    /// Thunks' canonical GPRs: RAX, RCX, RDX, R10, R11.
    pub(crate) gpr: [u64; 5],
    /// Thunks' canonical opmasks: K1..K4.
    pub(crate) masks: [u64; 4],
    pub(crate) flags: u64,
    mxcsr: u32,
    pub(crate) faulted: u8,
    live: bool,
    /// MXCSR's sticky flags are in the host's MXCSR (only while its control bits are Rust's).
    mxcsr_live: bool,
    /// The guest's FCW, also while live.
    fcw: u16,
    /// Last x87 instruction's opcode and pointers, kept by the interpreter.
    pub fop: u16,
    pub fcs: u16,
    pub fds: u16,
    pub fip: u64,
    pub fdp: u64,
}

pub(crate) const IMAGE_SIZE: usize = size_of::<Image>();
const _: () = assert!(IMAGE_SIZE == 512);
pub(crate) const ZMM_OFFSET: usize = offset_of!(SimdContext, zmm);
pub(crate) const MASKS_OFFSET: usize = offset_of!(SimdContext, masks);
pub(crate) const GPR_OFFSET: usize = offset_of!(SimdContext, gpr);
pub(crate) const FLAGS_OFFSET: usize = offset_of!(SimdContext, flags);
pub(crate) const MXCSR_OFFSET: usize = offset_of!(SimdContext, mxcsr);
pub(crate) const FAULTED_OFFSET: usize = offset_of!(SimdContext, faulted);

impl Default for SimdContext {
    fn default() -> Self {
        SimdContext::from(&FpuState::default())
    }
}

impl From<&FpuState> for SimdContext {
    fn from(state: &FpuState) -> Self {
        let (mut zmm, more) = ([[0; 8]; 32], &state.avx512);
        for (n, register) in zmm.iter_mut().enumerate() {
            match (state.ymm.get(n), more.zmm_hi256.get(n)) {
                (Some(low), Some(high)) => {
                    register[..4].copy_from_slice(low);
                    register[4..].copy_from_slice(high);
                }
                _ => *register = more.hi16_zmm[n - 16],
            }
        }
        let image = Image {
            fcw: 0,
            fsw: 0,
            ftw: 0,
            reserved: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: DEFAULT_MXCSR,
            mxcsr_mask: 0,
            st: [[0; 16]; 8],
            rest: [0; 352],
        };
        let mut context = SimdContext {
            zmm,
            opmask: more.opmask,
            avx512: *more != Avx512State::default(),
            image,
            gpr: [0; 5],
            masks: [0; 4],
            flags: 2,
            mxcsr: 0,
            faulted: 0,
            live: false,
            mxcsr_live: false,
            fcw: 0,
            fop: 0,
            fcs: 0,
            fds: 0,
            fip: 0,
            fdp: 0,
        };
        context.set_x87(state);
        context
    }
}

impl SimdContext {
    /// Where registers stand, for code that moves them itself.
    pub const ZMM: usize = ZMM_OFFSET;
    pub const OPMASK: usize = offset_of!(SimdContext, opmask);

    /// Replaces everything. x87 state that is live on this thread is dropped.
    pub fn load(&mut self, state: &FpuState) {
        self.sync();
        *self = SimdContext::from(state);
    }

    /// The x87 state and MXCSR, vector registers left out (zero). The context must be synced.
    pub fn x87(&self) -> FpuState {
        debug_assert!(!self.live, "x87 state is still in the host's registers");
        let mut st = self.image.st;
        for register in &mut st {
            register[10..].fill(0);
        }
        FpuState {
            st,
            fcw: self.fcw,
            fsw: self.image.fsw,
            ftw: self.image.ftw,
            fop: self.fop,
            fip: self.fip,
            fdp: self.fdp,
            fcs: self.fcs,
            fds: self.fds,
            mxcsr: self.mxcsr(),
            ..FpuState::default()
        }
    }

    /// Replaces the x87 state and MXCSR and leaves the vector registers alone. x87 state that is
    /// live on this thread is dropped.
    pub fn set_x87(&mut self, state: &FpuState) {
        self.sync();
        self.image.fcw = state.fcw;
        // ES and B say whether an unmasked exception is pending, whatever was loaded.
        let pending = if state.fsw & !state.fcw & 0x3f != 0 { 0x8080 } else { 0 };
        self.image.fsw = state.fsw & !0x8080 | pending;
        self.image.ftw = state.ftw;
        self.image.st = state.st;
        self.mxcsr = state.mxcsr & 0xffff;
        self.fcw = state.fcw;
        (self.fop, self.fip, self.fdp) = (state.fop, state.fip, state.fdp);
        (self.fcs, self.fds) = (state.fcs, state.fds);
    }

    /// The state in its exchange form. The context must be synced.
    pub fn state(&self) -> FpuState {
        FpuState {
            ymm: std::array::from_fn(|n| self.ymm(n)),
            avx512: Avx512State {
                opmask: self.opmask,
                zmm_hi256: std::array::from_fn(|n| half(&self.zmm[n], 4)),
                hi16_zmm: std::array::from_fn(|n| self.zmm[16 + n]),
            },
            ..self.x87()
        }
    }

    /// YMM register `n`, 0 to 15.
    pub fn ymm(&self, n: usize) -> [u64; 4] {
        half(&self.zmm[n & 31], 0)
    }

    pub fn mxcsr(&self) -> u32 {
        if self.mxcsr_live { fault::host_mxcsr() & 0xffff } else { self.mxcsr }
    }

    /// Whether MXCSR's control bits are what Rust code runs with.
    #[inline]
    pub(crate) fn has_default_mxcsr(&self) -> bool {
        self.mxcsr & 0xffc0 == DEFAULT_MXCSR
    }

    /// Lets the host's MXCSR be the guest's; its control bits are the default.
    #[inline]
    pub(crate) fn enter_mxcsr(&mut self) {
        if !self.mxcsr_live {
            fault::set_host_mxcsr(self.mxcsr);
            self.mxcsr_live = true;
        }
    }

    /// With other control bits: runs `thunk` under the guest's MXCSR. Reports an unmasked
    /// exception.
    pub(crate) fn under_guest_mxcsr(&mut self, recovery: usize, thunk: impl FnOnce(&mut Self)) -> bool {
        fault::set_host_mxcsr(self.mxcsr);
        if self.mxcsr & 0x1f80 == 0x1f80 {
            thunk(self);
        } else {
            fault::with_recovery(recovery, || thunk(self));
        }
        if self.faulted == 0 {
            self.mxcsr = fault::host_mxcsr() & 0xffff;
        }
        fault::set_host_mxcsr(DEFAULT_MXCSR);
        std::mem::take(&mut self.faulted) != 0
    }

    /// Sets MXCSR; bits 16 and up are reserved and dropped (the caller raises #GP first).
    pub fn set_mxcsr(&mut self, value: u32) {
        self.mxcsr = value & 0xffff;
        self.mxcsr_live = false;
    }

    /// The x87 control word.
    pub fn fcw(&self) -> u16 {
        self.fcw
    }

    /// The x87 status word.
    pub fn fsw(&self) -> u16 {
        if self.live { host_fsw() } else { self.image.fsw }
    }

    /// Whether an unmasked x87 exception is pending (FSW.ES): the next waiting x87 or MMX
    /// instruction raises #MF.
    pub fn x87_pending(&self) -> bool {
        self.fcw & 0x3f != 0x3f && self.fsw() & 0x80 != 0
    }

    /// Whether x87 state is in the host thread's registers.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Brings MXCSR's flags back from the host's, which Rust's own arithmetic would add to.
    #[inline]
    pub fn sync_mxcsr(&mut self) {
        self.mxcsr = self.mxcsr();
        self.mxcsr_live = false;
    }

    /// Brings MXCSR, x87 and MMX state back from the host's registers. Must be called on the
    /// thread that ran the last instruction, before the vCPU's run ends or code that computes
    /// with floating point (a device's) is called.
    #[inline]
    pub fn sync(&mut self) {
        self.sync_mxcsr();
        if self.live {
            self.unload();
        }
    }

    /// Puts x87 state into the host's registers if it is not there.
    #[inline]
    pub(crate) fn enter_x87(&mut self) {
        if !self.live {
            self.install();
        }
    }

    #[cold]
    fn unload(&mut self) {
        // SAFETY: the image is 512 bytes, aligned to 16. FNINIT leaves an empty x87 stack, as
        // the ABI demands of code that does not use it.
        unsafe {
            asm!("fxsave64 [{0}]", "fninit", in(reg) &raw mut self.image, options(nostack));
        }
        self.live = false;
        self.fcw = self.image.fcw;
    }

    #[cold]
    fn install(&mut self) {
        // FXRSTOR loads MXCSR as well.
        self.sync_mxcsr();
        self.image.mxcsr = DEFAULT_MXCSR;
        self.image.fcw = self.fcw;
        self.image.fop = 0;
        self.image.fip = 0;
        self.image.fdp = 0;
        // SAFETY: the image is 512 bytes, aligned to 16, its MXCSR is valid. All registers that
        // FXRSTOR loads are declared clobbered.
        unsafe {
            asm!("fninit", "fxrstor64 [{0}]", in(reg) &raw const self.image,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, options(nostack));
        }
        self.live = true;
    }

    /// After an instruction that may have changed FCW on the host.
    pub(crate) fn reload_fcw(&mut self) {
        let mut word = 0u16;
        // SAFETY: stores two bytes; FNSTCW raises nothing.
        unsafe {
            asm!("fnstcw [{0}]", in(reg) &raw mut word, options(nostack));
        }
        self.fcw = word;
    }
}

/// Four words of a register from word `from` (0 or 4) on.
fn half(register: &[u64; 8], from: usize) -> [u64; 4] {
    std::array::from_fn(|k| register[from + k])
}

/// The x87 status word of the host thread.
pub(crate) fn host_fsw() -> u16 {
    let word: u16;
    // SAFETY: FNSTSW AX raises nothing and writes AX only.
    unsafe {
        asm!("fnstsw ax", out("ax") word, options(nomem, nostack));
    }
    word
}
