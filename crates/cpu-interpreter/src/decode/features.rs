//! Which instructions and control bits the CPUID model has.

use cpu::cpuid::CpuidTable;
use cpu::paging::*;
use cpu::xsave;
use iced_x86::{CpuidFeature, Instruction};

#[derive(Clone, Copy, Debug)]
pub struct Features {
    ecx1: u32,
    edx1: u32,
    ebx7: u32,
    ecx7: u32,
    eax71: u32,
    ecx81: u32,
    edx81: u32,
    eaxd1: u32,
    ebx88: u32,
}

impl Features {
    /// An empty table (tests) means: all that the interpreter knows.
    pub fn of(table: &CpuidTable) -> Self {
        if table.leaves.is_empty() {
            return Features {
                ecx1: u32::MAX,
                edx1: u32::MAX,
                ebx7: u32::MAX,
                ecx7: u32::MAX,
                eax71: u32::MAX,
                ecx81: u32::MAX,
                edx81: u32::MAX,
                eaxd1: u32::MAX,
                ebx88: u32::MAX,
            };
        }
        let has = |leaf: u32| table.leaves.iter().any(|&(l, _, _)| l == leaf);
        let of = |leaf, sub| if has(leaf) { table.query(leaf, sub) } else { Default::default() };
        Features {
            ecx1: of(1, 0).ecx,
            edx1: of(1, 0).edx,
            ebx7: of(7, 0).ebx,
            ecx7: of(7, 0).ecx,
            eax71: of(7, 1).eax,
            ecx81: of(0x8000_0001, 0).ecx,
            edx81: of(0x8000_0001, 0).edx,
            eaxd1: of(0xd, 1).eax,
            ebx88: of(0x8000_0008, 0).ebx,
        }
    }

    /// Whether the model has every feature that `i` needs.
    pub fn allows(&self, i: &Instruction) -> bool {
        // Without their features these two are BSF and BSR.
        matches!(i.mnemonic(), iced_x86::Mnemonic::Tzcnt | iced_x86::Mnemonic::Lzcnt)
            || i.cpuid_features().iter().all(|&f| self.has(f))
    }

    /// TZCNT is known as such.
    pub fn tzcnt(&self) -> bool {
        self.has(CpuidFeature::BMI1)
    }

    /// LZCNT is known as such.
    pub fn lzcnt(&self) -> bool {
        self.has(CpuidFeature::LZCNT)
    }

    fn has(&self, feature: CpuidFeature) -> bool {
        use CpuidFeature::*;
        let bit = |word: u32, n: u32| word >> n & 1 != 0;
        match feature {
            INTEL8086 | INTEL8086_ONLY | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | SMM | RDPMC
            | MULTIBYTENOP | PAUSE | CPUID | UDBG | FPU287 | FPU387 => true,
            FPU => bit(self.edx1, 0),
            TSC => bit(self.edx1, 4),
            MSR => bit(self.edx1, 5),
            CX8 => bit(self.edx1, 8),
            SEP => bit(self.edx1, 11),
            CMOV => bit(self.edx1, 15),
            CLFSH => bit(self.edx1, 19),
            MMX => bit(self.edx1, 23),
            FXSR => bit(self.edx1, 24),
            SSE => bit(self.edx1, 25),
            SSE2 => bit(self.edx1, 26),
            SSE3 => bit(self.ecx1, 0),
            PCLMULQDQ => bit(self.ecx1, 1),
            MONITOR => bit(self.ecx1, 3),
            SSSE3 => bit(self.ecx1, 9),
            FMA => bit(self.ecx1, 12),
            CMPXCHG16B => bit(self.ecx1, 13),
            SSE4_1 => bit(self.ecx1, 19),
            SSE4_2 => bit(self.ecx1, 20),
            MOVBE => bit(self.ecx1, 22),
            POPCNT => bit(self.ecx1, 23),
            AES => bit(self.ecx1, 25),
            XSAVE => bit(self.ecx1, 26),
            AVX => bit(self.ecx1, 28),
            F16C => bit(self.ecx1, 29),
            RDRAND => bit(self.ecx1, 30),
            FSGSBASE => bit(self.ebx7, 0),
            BMI1 => bit(self.ebx7, 3),
            AVX2 => bit(self.ebx7, 5),
            BMI2 => bit(self.ebx7, 8),
            INVPCID => bit(self.ebx7, 10),
            RDSEED => bit(self.ebx7, 18),
            ADX => bit(self.ebx7, 19),
            SMAP => bit(self.ebx7, 20),
            CLFLUSHOPT => bit(self.ebx7, 23),
            CLWB => bit(self.ebx7, 24),
            SHA => bit(self.ebx7, 29),
            PREFETCHWT1 => bit(self.ecx7, 0),
            RDPID => bit(self.ecx7, 22),
            AVX512F => bit(self.ebx7, 16),
            AVX512DQ => bit(self.ebx7, 17),
            AVX512_IFMA => bit(self.ebx7, 21),
            AVX512CD => bit(self.ebx7, 28),
            AVX512BW => bit(self.ebx7, 30),
            AVX512VL => bit(self.ebx7, 31),
            AVX512_VBMI => bit(self.ecx7, 1),
            AVX512_VBMI2 => bit(self.ecx7, 6),
            AVX512_VNNI => bit(self.ecx7, 11),
            AVX512_BITALG => bit(self.ecx7, 12),
            AVX512_VPOPCNTDQ => bit(self.ecx7, 14),
            AVX512_BF16 => bit(self.eax71, 5),
            VAES => bit(self.ecx7, 9),
            VPCLMULQDQ => bit(self.ecx7, 10),
            GFNI => bit(self.ecx7, 8),
            // Executes as NOP where it is not known.
            CET_IBT | CET_SS => true,
            LZCNT => bit(self.ecx81, 5),
            SSE4A => bit(self.ecx81, 6),
            PREFETCHW => bit(self.ecx81, 8) || bit(self.edx81, 29),
            D3NOW | D3NOWEXT => false,
            SYSCALL => bit(self.edx81, 11),
            RDTSCP => bit(self.edx81, 27),
            WBNOINVD => bit(self.ebx88, 9),
            XSAVEOPT => bit(self.eaxd1, 0),
            XSAVEC => bit(self.eaxd1, 1),
            XSAVES => bit(self.eaxd1, 3),
            _ => false,
        }
    }

    /// XCR0 bits that may be set.
    pub fn xcr0(&self) -> u64 {
        let avx = if self.ecx1 >> 28 & 1 != 0 { xsave::AVX } else { 0 };
        let avx512 = if self.ebx7 >> 16 & 1 != 0 { xsave::AVX512 } else { 0 };
        xsave::X87 | xsave::SSE | avx | avx512
    }

    /// EFER bits that may be set.
    pub fn efer(&self) -> u64 {
        let bit = |n: u32| u64::from(self.edx81 >> n & 1);
        bit(11) * EFER_SCE | bit(29) * EFER_LME | bit(20) * EFER_NXE | bit(25) << 14
    }

    /// CR4 bits that may be set.
    pub fn cr4(&self) -> u64 {
        let bit = |word: u32, n: u32| u64::from(word >> n & 1);
        // VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE
        let mut bits = 0x1df & !(CR4_PSE | CR4_PAE | CR4_PGE | CR4_VME | CR4_PVI);
        bits |= bit(self.edx1, 1) * (CR4_VME | CR4_PVI);
        bits |= bit(self.edx1, 3) * CR4_PSE;
        bits |= bit(self.edx1, 6) * CR4_PAE;
        bits |= bit(self.edx1, 13) * CR4_PGE;
        bits |= bit(self.edx1, 24) * (CR4_OSFXSR | CR4_OSXMMEXCPT);
        bits |= bit(self.ecx7, 2) * CR4_UMIP;
        bits |= bit(self.ebx7, 0) * CR4_FSGSBASE;
        bits |= bit(self.ecx1, 17) * CR4_PCIDE;
        bits |= bit(self.ecx1, 26) * CR4_OSXSAVE;
        bits |= bit(self.ebx7, 7) * CR4_SMEP;
        bits | bit(self.ebx7, 20) * CR4_SMAP
    }
}
