//! Which CPUID bit an instruction needs.

use super::feature::{Feature, Features, find};
use iced_x86::CpuidFeature as F;
use std::sync::LazyLock;

/// The name of the feature that brings instructions of this class; `Err(always)` for classes
/// without a bit: present in every model we have, or in none.
pub(super) fn feature_name(feature: F) -> Result<&'static str, bool> {
    Ok(match feature {
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::CPUID => return Err(true),
        F::PAUSE | F::FPU287 | F::FPU387 | F::MULTIBYTENOP | F::SMM | F::RDPMC => return Err(true),
        F::X64 => "lm",
        F::FPU => "fpu",
        F::CX8 => "cx8",
        F::TSC => "tsc",
        F::MSR => "msr",
        F::CMOV => "cmov",
        F::MMX => "mmx",
        F::FXSR => "fxsr",
        F::SSE => "sse",
        F::SSE2 => "sse2",
        F::SSE3 => "pni",
        F::SSSE3 => "ssse3",
        F::SSE4_1 => "sse4.1",
        F::SSE4_2 => "sse4.2",
        F::SSE4A => "sse4a",
        F::AES => "aes",
        F::PCLMULQDQ => "pclmulqdq",
        F::SHA => "sha-ni",
        F::GFNI => "gfni",
        F::AVX => "avx",
        F::AVX2 => "avx2",
        F::FMA => "fma",
        F::F16C => "f16c",
        F::VAES => "vaes",
        F::VPCLMULQDQ => "vpclmulqdq",
        F::AVX512F => "avx512f",
        F::AVX512BW => "avx512bw",
        F::AVX512CD => "avx512cd",
        F::AVX512DQ => "avx512dq",
        F::AVX512VL => "avx512vl",
        F::AVX512_IFMA => "avx512ifma",
        F::AVX512_VBMI => "avx512vbmi",
        F::AVX512_VBMI2 => "avx512vbmi2",
        F::AVX512_VNNI => "avx512vnni",
        F::AVX512_BITALG => "avx512bitalg",
        F::AVX512_VPOPCNTDQ => "avx512-vpopcntdq",
        F::AVX512_BF16 => "avx512-bf16",
        F::ADX => "adx",
        F::BMI1 => "bmi1",
        F::BMI2 => "bmi2",
        F::LZCNT => "abm",
        F::POPCNT => "popcnt",
        F::MOVBE => "movbe",
        F::CMPXCHG16B => "cx16",
        F::CLFSH => "clflush",
        F::CLFLUSHOPT => "clflushopt",
        F::CLWB => "clwb",
        F::CLZERO => "clzero",
        F::FSGSBASE => "fsgsbase",
        F::INVPCID => "invpcid",
        F::MONITOR => "monitor",
        F::PREFETCHW => "3dnowprefetch",
        F::RDPID => "rdpid",
        F::RDRAND => "rdrand",
        F::RDSEED => "rdseed",
        F::RDTSCP => "rdtscp",
        F::SEP => "sep",
        F::SMAP => "smap",
        F::SYSCALL => "syscall",
        F::SVM => "svm",
        F::VMX => "vmx",
        F::XSAVE => "xsave",
        F::XSAVEC => "xsavec",
        F::XSAVEOPT => "xsaveopt",
        F::XSAVES => "xsaves",
        F::WBNOINVD => "wbnoinvd",
        F::SERIALIZE => "serialize",
        F::MOVDIRI => "movdiri",
        F::MOVDIR64B => "movdir64b",
        _ => return Err(false),
    })
}

/// What each class needs, by its number.
static NEEDS: LazyLock<Vec<Result<Feature, bool>>> = LazyLock::new(|| {
    F::values().map(|class| feature_name(class).and_then(|name| find(name).ok_or(false))).collect()
});

/// Whether a CPU with these features executes instructions of iced's class `class`.
pub fn executes(features: &Features, class: F) -> bool {
    match NEEDS[class as usize] {
        Err(always) => always,
        Ok(feature) => features.has(feature),
    }
}
