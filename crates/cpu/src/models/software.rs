//! What the software engines (interpreter, translator) implement.

use super::Features;
use iced_x86::CpuidFeature as F;

const INTEGER: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush fxsr \
    monitor cx16 pcid x2apic movbe popcnt tsc-deadline xsave rdrand hypervisor ss ht \
    fsgsbase tsc-adjust bmi1 smep bmi2 erms invpcid rdseed adx smap clflushopt clwb \
    umip rdpid fsrm syscall nx fxsr-opt pdpe1gb rdtscp lm lahf-lm cmp-legacy abm 3dnowprefetch \
    xsaveopt xsavec xgetbv1 arat invtsc wbnoinvd xsaveerptr topoext";

const SIMD: [(F, &str); 31] = [
    (F::MMX, "mmx"),
    (F::SSE, "sse"),
    (F::SSE, "mmxext"),
    (F::SSE2, "sse2"),
    (F::SSE3, "pni"),
    (F::SSSE3, "ssse3"),
    (F::SSE4_1, "sse4.1"),
    (F::SSE4_2, "sse4.2"),
    (F::SSE4A, "sse4a"),
    (F::AES, "aes"),
    (F::PCLMULQDQ, "pclmulqdq"),
    (F::AVX, "avx"),
    (F::AVX2, "avx2"),
    (F::FMA, "fma"),
    (F::F16C, "f16c"),
    (F::SHA, "sha-ni"),
    (F::GFNI, "gfni"),
    (F::VAES, "vaes"),
    (F::VPCLMULQDQ, "vpclmulqdq"),
    (F::AVX512F, "avx512f"),
    (F::AVX512BW, "avx512bw"),
    (F::AVX512CD, "avx512cd"),
    (F::AVX512DQ, "avx512dq"),
    (F::AVX512VL, "avx512vl"),
    (F::AVX512_IFMA, "avx512ifma"),
    (F::AVX512_VBMI, "avx512vbmi"),
    (F::AVX512_VBMI2, "avx512vbmi2"),
    (F::AVX512_VNNI, "avx512vnni"),
    (F::AVX512_BITALG, "avx512bitalg"),
    (F::AVX512_VPOPCNTDQ, "avx512-vpopcntdq"),
    (F::AVX512_BF16, "avx512-bf16"),
];

/// The software engines' features on a host whose vector unit offers `host` (ask
/// `cpu_host::host_supports`).
pub fn software_features(host: impl Fn(F) -> bool) -> Features {
    let mut features = Features::named(INTEGER);
    for (needs, name) in SIMD {
        if host(needs) {
            features = features.union(&Features::named(name));
        }
    }
    features
}
