//! What the host's vector unit can do.

use cpu::models::{Features, Identity};
use iced_x86::CpuidFeature as F;
use std::arch::is_x86_feature_detected as has;
use std::arch::x86_64::__cpuid_count;

/// Whether the host executes instructions of this feature and this crate knows them.
pub fn host_supports(feature: F) -> bool {
    match feature {
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 => true,
        F::FPU | F::FPU287 | F::FPU387 | F::CMOV | F::MMX | F::SSE | F::SSE2 => true,
        F::SSE3 => has!("sse3"),
        F::SSSE3 => has!("ssse3"),
        F::SSE4_1 => has!("sse4.1"),
        F::SSE4_2 => has!("sse4.2"),
        F::SSE4A => has!("sse4a"),
        F::AES => has!("aes"),
        F::PCLMULQDQ => has!("pclmulqdq"),
        F::SHA => has!("sha"),
        F::GFNI => has!("gfni"),
        F::AVX => has!("avx"),
        F::AVX2 => has!("avx2"),
        F::FMA => has!("fma"),
        F::F16C => has!("f16c"),
        F::VAES => has!("vaes"),
        F::VPCLMULQDQ => has!("vpclmulqdq"),
        F::AVX512F | F::AVX512BW | F::AVX512CD | F::AVX512DQ | F::AVX512VL => has_avx512(),
        F::AVX512_IFMA => has_avx512() && has!("avx512ifma"),
        F::AVX512_VBMI => has_avx512() && has!("avx512vbmi"),
        F::AVX512_VBMI2 => has_avx512() && has!("avx512vbmi2"),
        F::AVX512_VNNI => has_avx512() && has!("avx512vnni"),
        F::AVX512_BITALG => has_avx512() && has!("avx512bitalg"),
        F::AVX512_VPOPCNTDQ => has_avx512() && has!("avx512vpopcntdq"),
        F::AVX512_BF16 => has_avx512() && has!("avx512bf16"),
        _ => false,
    }
}

/// AVX-512 as all processors but the first (Xeon Phi) have it; less is not used.
pub fn has_avx512() -> bool {
    has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl")
}

fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has CPUID.
    let r = unsafe { __cpuid_count(leaf, subleaf) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The host's CPUID feature words.
pub fn host_features() -> Features {
    Features::from_cpuid(cpuid)
}

/// Whether OF after a rotate by more than one tells of its first step, or is left alone (Intel's
/// processors: ROL and ROR by an immediate count, full turns of RCL and RCR), not of its result
/// (AMD's). The manuals leave it undefined; guests see one or the other throughout.
pub fn rotates_tell_of_first_step() -> bool {
    static ANSWER: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let mut flags: u64;
        // SAFETY: a rotate of a register and a look at the flags; the stack is used as usual.
        unsafe {
            std::arch::asm!("mov {0:l}, 0x20", "rol {0:l}, 2", "pushfq", "pop {0:r}", out(reg_abcd) flags);
        }
        flags >> 11 & 1 == 0
    });
    *ANSWER
}

/// Vendor, family, model, stepping and brand of the host processor.
pub fn host_identity() -> Identity {
    let text = |words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).take_while(|b| *b != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let [_, b, c, d] = cpuid(0, 0);
    let signature = cpuid(1, 0)[0];
    let family = signature >> 8 & 15;
    let brand: Vec<u32> = (0x8000_0002..=0x8000_0004).flat_map(|leaf| cpuid(leaf, 0)).collect();
    Identity {
        vendor: text(&[b, d, c]),
        family: if family == 15 { 15 + (signature >> 20 & 0xff) } else { family },
        model: signature >> 4 & 15 | if family == 15 || family == 6 { signature >> 12 & 0xf0 } else { 0 },
        stepping: signature & 15,
        brand: text(&brand),
    }
}
