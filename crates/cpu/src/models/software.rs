//! What the software engines (interpreter, translator) implement.

use super::Features;
use super::requirement::feature_name;
use iced_x86::CpuidFeature as F;

const INTEGER: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush fxsr \
    monitor cx16 pcid x2apic movbe popcnt tsc-deadline xsave rdrand hypervisor ss ht \
    fsgsbase tsc-adjust bmi1 smep bmi2 erms invpcid rdseed adx smap clflushopt clwb \
    umip rdpid fsrm syscall nx fxsr-opt pdpe1gb rdtscp lm lahf-lm cmp-legacy abm 3dnowprefetch \
    xsaveopt xsavec xgetbv1 arat invtsc wbnoinvd xsaveerptr topoext";

const SIMD: [F; 30] = [
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::SSE4A,
    F::AES,
    F::PCLMULQDQ,
    F::AVX,
    F::AVX2,
    F::FMA,
    F::F16C,
    F::SHA,
    F::GFNI,
    F::VAES,
    F::VPCLMULQDQ,
    F::AVX512F,
    F::AVX512BW,
    F::AVX512CD,
    F::AVX512DQ,
    F::AVX512VL,
    F::AVX512_IFMA,
    F::AVX512_VBMI,
    F::AVX512_VBMI2,
    F::AVX512_VNNI,
    F::AVX512_BITALG,
    F::AVX512_VPOPCNTDQ,
    F::AVX512_BF16,
];

/// The software engines' features on a host whose vector unit offers `host` (ask
/// `cpu_host::host_supports`).
pub fn software_features(host: impl Fn(F) -> bool) -> Features {
    let mut features = Features::named(INTEGER);
    for class in SIMD.into_iter().filter(|&class| host(class)) {
        features = features.union(&Features::named(feature_name(class).unwrap_or_default()));
    }
    if features.contains("sse") {
        features = features.union(&Features::named("mmxext"));
    }
    features
}
