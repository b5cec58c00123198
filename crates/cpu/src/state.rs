//! Architectural state of one logical processor (Intel SDM vol. 3A ch. 2, AMD APM vol. 2).

use serde::{Deserialize, Serialize};

/// Indices into [`CpuState::gpr`], in encoding order.
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Indices into [`CpuState::seg`], in encoding order.
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Descriptor bits 40..=55 shifted down: type(0-3) S(4) DPL(5-6) P(7) AVL(12) L(13) D/B(14) G(15).
    pub access: u16,
}

impl Segment {
    pub const fn real_mode(selector: u16, access: u16) -> Self {
        Segment { selector, base: (selector as u64) << 4, limit: 0xffff, access }
    }
    pub fn kind(&self) -> u8 {
        (self.access & 0xf) as u8
    }
    pub fn is_code_or_data(&self) -> bool {
        self.access & 0x10 != 0
    }
    pub fn dpl(&self) -> u8 {
        ((self.access >> 5) & 3) as u8
    }
    pub fn present(&self) -> bool {
        self.access & 0x80 != 0
    }
    pub fn long(&self) -> bool {
        self.access & 0x2000 != 0
    }
    pub fn big(&self) -> bool {
        self.access & 0x4000 != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    pub base: u64,
    pub limit: u16,
}

/// What AVX-512 adds to the AVX state, by its XSAVE components (SDM vol. 1 §13.5.5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Avx512State {
    /// Component 5: K0..K7.
    pub opmask: [u64; 8],
    /// Component 6: bits 511:256 of ZMM0..ZMM15.
    pub zmm_hi256: [[u64; 4]; 16],
    /// Component 7: ZMM16..ZMM31.
    pub hi16_zmm: [[u64; 8]; 16],
}

/// x87, SSE, AVX and AVX-512 state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// ST(0)..ST(7) relative to TOP (as FXSAVE stores them): 80-bit values, low 10 bytes used.
    pub st: [[u8; 16]; 8],
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged tag word (FXSAVE form): bit i set = *physical* register i not empty.
    pub ftw: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub fcs: u16,
    pub fds: u16,
    pub mxcsr: u32,
    /// YMM0..YMM15 as four little-endian quadwords; XMM is the low half.
    pub ymm: [[u64; 4]; 16],
    pub avx512: Avx512State,
}

impl Default for FpuState {
    fn default() -> Self {
        FpuState {
            st: [[0; 16]; 8],
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            fcs: 0,
            fds: 0,
            mxcsr: 0x1f80,
            ymm: [[0; 4]; 16],
            avx512: Avx512State::default(),
        }
    }
}

/// Model-specific registers that are plain state (the APIC's live in [`crate::LocalApic`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST; the guest TSC is the bus's TSC plus [`CpuState::tsc_offset`].
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub debugctl: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    /// (base, mask) pairs.
    pub mtrr_variable: [(u64, u64); 8],
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    /// CTL, STATUS, ADDR, MISC of each bank.
    pub mce_banks: [[u64; 4]; 10],
    pub xss: u64,
    pub spec_ctrl: u64,
    pub feature_control: u64,
    pub smbase: u64,
}

/// What the processor is doing between instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    #[default]
    Running,
    /// After HLT (or MWAIT): waits for an interrupt.
    Halted,
    /// An application processor after INIT: waits for a start-up IPI.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// An exception or interrupt that was recognised but not yet delivered (KVM may hold one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvent {
    pub vector: u8,
    pub error_code: Option<u32>,
    pub software: bool,
}

/// The complete architectural state of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    pub gpr: [u64; 16],
    pub rip: u64,
    /// Bit 1 is always set.
    pub rflags: u64,
    pub seg: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// DR0-3, DR6 and DR7 at their own indices (4 and 5 unused).
    pub dr: [u64; 8],
    pub xcr0: u64,
    pub fpu: FpuState,
    pub msr: Msrs,
    /// Added to [`crate::CpuBus::tsc`] to give the guest's TSC.
    pub tsc_offset: u64,
    pub activity: Activity,
    /// STI or MOV SS shadow: interrupts are held off for one instruction.
    pub interrupt_shadow: bool,
    /// Between NMI delivery and IRET.
    pub nmi_blocked: bool,
    pub pending: Option<PendingEvent>,
    /// Address line 20 enabled.
    pub a20: bool,
}

impl CpuState {
    /// State after power-up or RESET (SDM vol. 3A §9.1.1): F000:FFF0, real mode. The
    /// bootstrap processor runs, others wait for SIPI. RDX holds the family/model/stepping
    /// signature (CPUID.1:EAX).
    pub fn reset(bootstrap: bool, signature: u32) -> Self {
        let data = Segment::real_mode(0, 0x93);
        let mut state = CpuState {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: 2,
            seg: [data; 6],
            ldtr: Segment { limit: 0xffff, access: 0x82, ..Segment::default() },
            tr: Segment { limit: 0xffff, access: 0x8b, ..Segment::default() },
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            xcr0: 1,
            fpu: FpuState { fcw: 0x37f, ..FpuState::default() },
            msr: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, smbase: 0x30000, ..Msrs::default() },
            tsc_offset: 0,
            activity: if bootstrap { Activity::Running } else { Activity::WaitForSipi },
            interrupt_shadow: false,
            nmi_blocked: false,
            pending: None,
            a20: true,
        };
        state.seg[seg::CS] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, access: 0x9b };
        state.gpr[gpr::RDX] = u64::from(signature);
        state
    }

    /// What INIT does (SDM vol. 3A §9.1, table 9-1): like reset, but x87/SSE state, MSRs,
    /// the TSC and CR0's CD and NW keep their values.
    pub fn init(&mut self, bootstrap: bool, signature: u32) {
        let old = self.clone();
        *self = CpuState::reset(bootstrap, signature);
        self.cr0 = 0x10 | (old.cr0 & 0x6000_0000);
        self.fpu = old.fpu;
        self.msr = old.msr;
        self.xcr0 = old.xcr0;
        self.tsc_offset = old.tsc_offset;
        self.a20 = old.a20;
    }

    /// What a start-up IPI with `vector` does: real mode at vector:0000.
    pub fn sipi(&mut self, vector: u8) {
        let selector = u16::from(vector) << 8;
        self.seg[seg::CS] = Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, access: 0x9b };
        self.rip = 0;
        self.activity = Activity::Running;
    }

    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        self.seg[seg::SS].dpl()
    }

    /// EFER.LMA.
    pub fn long_mode_active(&self) -> bool {
        self.efer & (1 << 10) != 0
    }

    /// Running 64-bit code (LMA and CS.L).
    pub fn is_64bit(&self) -> bool {
        self.long_mode_active() && self.seg[seg::CS].long()
    }
}
