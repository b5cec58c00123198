//! Which instructions and control bits the CPUID model has.

use cpu::cpuid::CpuidTable;
use cpu::models::{Features as Bits, Word, executes, software_features};
use cpu::paging::*;
use cpu::xsave;
use iced_x86::{CpuidFeature, Instruction};

#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// One bit for each of iced's classes of instructions.
    known: [u64; 4],
    bits: Bits,
}

impl Features {
    /// An empty table (tests) means: all that the interpreter knows.
    pub fn of(table: &CpuidTable) -> Self {
        let bits = if table.leaves.is_empty() {
            software_features(|_| true).union(&Bits::named("xsaves"))
        } else {
            Bits::of_table(table)
        };
        let mut known = [0; 4];
        for class in CpuidFeature::values().filter(|&class| has(&bits, class)) {
            known[class as usize / 64] |= 1 << (class as usize % 64);
        }
        Features { known, bits }
    }

    /// Whether the model has every feature that `i` needs.
    pub fn allows(&self, i: &Instruction) -> bool {
        // Without their features these two are BSF and BSR.
        matches!(i.mnemonic(), iced_x86::Mnemonic::Tzcnt | iced_x86::Mnemonic::Lzcnt)
            || i.cpuid_features().iter().all(|&class| self.has(class))
    }

    /// TZCNT is known as such.
    pub fn tzcnt(&self) -> bool {
        self.has(CpuidFeature::BMI1)
    }

    /// LZCNT is known as such.
    pub fn lzcnt(&self) -> bool {
        self.has(CpuidFeature::LZCNT)
    }

    fn has(&self, class: CpuidFeature) -> bool {
        self.known[class as usize / 64] >> (class as usize % 64) & 1 != 0
    }

    /// XCR0 bits that may be set.
    pub fn xcr0(&self) -> u64 {
        let one = |class, bits| if self.has(class) { bits } else { 0 };
        let (avx, avx512) = (one(CpuidFeature::AVX, xsave::AVX), one(CpuidFeature::AVX512F, xsave::AVX512));
        xsave::X87 | xsave::SSE | avx | avx512
    }

    /// EFER bits that may be set.
    pub fn efer(&self) -> u64 {
        let bit = |n: u32| u64::from(self.bits.word(Word::Ext1Edx) >> n & 1);
        bit(11) * EFER_SCE | bit(29) * EFER_LME | bit(20) * EFER_NXE | bit(25) << 14
    }

    /// CR4 bits that may be set.
    pub fn cr4(&self) -> u64 {
        let bit = |word, n: u32| u64::from(self.bits.word(word) >> n & 1);
        // VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE
        let mut bits = 0x1df & !(CR4_PSE | CR4_PAE | CR4_PGE | CR4_VME | CR4_PVI);
        bits |= bit(Word::Leaf1Edx, 1) * (CR4_VME | CR4_PVI);
        bits |= bit(Word::Leaf1Edx, 3) * CR4_PSE;
        bits |= bit(Word::Leaf1Edx, 6) * CR4_PAE;
        bits |= bit(Word::Leaf1Edx, 13) * CR4_PGE;
        bits |= bit(Word::Leaf1Edx, 24) * (CR4_OSFXSR | CR4_OSXMMEXCPT);
        bits |= bit(Word::Leaf7Ecx, 2) * CR4_UMIP;
        bits |= bit(Word::Leaf7Ebx, 0) * CR4_FSGSBASE;
        bits |= bit(Word::Leaf1Ecx, 17) * CR4_PCIDE;
        bits |= bit(Word::Leaf1Ecx, 26) * CR4_OSXSAVE;
        bits |= bit(Word::Leaf7Ebx, 7) * CR4_SMEP;
        bits | bit(Word::Leaf7Ebx, 20) * CR4_SMAP
    }
}

fn has(bits: &Bits, class: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match class {
        INTEL8086_ONLY | UDBG => true,
        // They execute as NOPs where they are not known.
        CET_IBT | CET_SS => true,
        PREFETCHW if bits.contains("lm") => true,
        _ => executes(bits, class),
    }
}
