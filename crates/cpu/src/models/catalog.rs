//! The named CPU models (the processors' own CPUID, as QEMU's models of the same names show it).

use super::{Features, Offer};

/// One published state of a model; later ones change earlier ones.
pub(super) struct Version {
    pub number: u32,
    /// A name of its own, such as `Haswell-IBRS`.
    pub alias: &'static str,
    pub add: &'static str,
    pub remove: &'static str,
    /// Empty: as before.
    pub model_id: &'static str,
    pub stepping: Option<u32>,
    /// The model number, where it became another.
    pub number_of_model: Option<u32>,
}

pub(super) struct Model {
    pub name: &'static str,
    pub level: u32,
    pub xlevel: u32,
    pub vendor: &'static str,
    /// Family, model, stepping.
    pub signature: (u32, u32, u32),
    pub model_id: &'static str,
    pub features: &'static [&'static str],
    /// From version 2 on.
    pub versions: &'static [Version],
}

const INTEL: &str = "GenuineIntel";
const AMD: &str = "AuthenticAMD";

const I486: &str = "fpu vme pse";
const PENTIUM: &str = "fpu vme pse de tsc msr mce cx8 mmx apic";
const PENTIUM2: &str = "pae sep mtrr pge mca cmov pat pse36 fxsr";
const PPRO: &str = "fpu de pse tsc msr mce cx8 pge cmov pat fxsr mmx sse sse2 pae sep apic";
/// EDX of leaf 1 of every 64-bit server model.
const BASE64: &str =
    "vme sse2 sse fxsr mmx clflush pse36 pat cmov mca pge mtrr sep apic cx8 mce pae msr tsc pse de fpu";
const LONG: &str = "lm nx syscall";
const NEHALEM: &str = "popcnt sse4.2 sse4.1 cx16 ssse3 pni lahf-lm";
const SANDY: &str = "avx xsave aes tsc-deadline x2apic pclmulqdq rdtscp xsaveopt arat";
const IVY: &str = "f16c rdrand fsgsbase smep erms";
const HASWELL: &str = "fma movbe pcid abm bmi1 avx2 bmi2 invpcid hle rtm";
const BROADWELL: &str = "rdseed adx smap 3dnowprefetch";
const SKYLAKE: &str = "xsavec xgetbv1";
const SKYLAKE_SERVER: &str = "pdpe1gb clflushopt clwb pku avx512f avx512dq avx512cd avx512bw avx512vl";
const ICELAKE_SERVER: &str = "avx512vnni avx512vbmi avx512vbmi2 avx512bitalg avx512-vpopcntdq gfni vaes vpclmulqdq \
    umip la57 wbnoinvd spec-ctrl ssbd";
const BULLDOZER: &str = "avx xsave aes popcnt sse4.2 sse4.1 cx16 ssse3 pclmulqdq pni pdpe1gb rdtscp fma4 xop \
    3dnowprefetch misalignsse sse4a abm svm lahf-lm npt nrip-save";
const ZEN: &str = "rdrand f16c avx xsave aes popcnt movbe sse4.2 sse4.1 cx16 fma ssse3 monitor pclmulqdq pni rdtscp \
    pdpe1gb fxsr-opt mmxext topoext osvw 3dnowprefetch misalignsse sse4a abm cr8legacy svm lahf-lm fsgsbase bmi1 avx2 \
    smep bmi2 rdseed adx smap clflushopt sha-ni xsavec xgetbv1 arat npt nrip-save xsaveopt";
const ZEN2: &str = "umip rdpid clwb perfctr-core clzero xsaveerptr wbnoinvd ibpb amd-stibp";
const ZEN3: &str = "pcid invpcid erms fsrm pku ibrs amd-ssbd";
const QEMU_ID: &str = "QEMU Virtual CPU version 2.5+";

const fn version(
    number: u32,
    alias: &'static str,
    add: &'static str,
    remove: &'static str,
    model_id: &'static str,
) -> Version {
    Version { number, alias, add, remove, model_id, stepping: None, number_of_model: None }
}

macro_rules! models {
    ($($name:literal $level:literal $xlevel:literal $vendor:ident $signature:tt $id:expr, [$($features:expr),*], [$($version:expr),*];)*) => {
        pub(super) static MODELS: &[Model] = &[$(Model {
            name: $name,
            level: $level,
            xlevel: $xlevel,
            vendor: $vendor,
            signature: $signature,
            model_id: $id,
            features: &[$($features),*],
            versions: &[$($version),*],
        }),*];
    };
}

models! {
    "qemu64" 0xd 0x8000000a AMD (15, 107, 1) QEMU_ID,
        [PPRO, "mtrr clflush mca pse36 pni cx16", LONG, "lahf-lm svm"], [];
    "phenom" 5 0x8000001a AMD (16, 2, 3) "AMD Phenom(tm) 9550 Quad-Core Processor",
        [PPRO, "mtrr clflush mca pse36 vme pni monitor cx16 popcnt", LONG,
         "3dnow 3dnowext mmxext fxsr-opt pdpe1gb rdtscp lahf-lm abm sse4a svm npt lbrv"], [];
    "core2duo" 10 0x80000008 INTEL (6, 15, 11) "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz",
        [PPRO, "vme mtrr clflush mca pse36 acpi ss pni monitor ssse3 cx16", LONG, "lahf-lm"], [];
    "kvm64" 0xd 0x80000008 INTEL (15, 6, 1) "Common KVM processor",
        [PPRO, "vme mtrr clflush mca pse36 pni cx16", LONG], [];
    "qemu32" 4 0x80000004 INTEL (6, 6, 3) QEMU_ID, [PPRO, "pni"], [];
    "kvm32" 5 0x80000008 INTEL (15, 6, 1) "Common 32-bit KVM processor",
        [PPRO, "vme mtrr clflush mca pse36 pni"], [];
    "coreduo" 10 0x80000008 INTEL (6, 14, 8) "Genuine Intel(R) CPU           T2600  @ 2.16GHz",
        [PPRO, "vme mtrr clflush mca acpi ss pni monitor nx"], [];
    "486" 1 0 INTEL (4, 8, 0) "", [I486], [];
    "pentium" 1 0 INTEL (5, 4, 3) "", [PENTIUM], [];
    "pentium2" 2 0 INTEL (6, 5, 2) "", [PENTIUM, PENTIUM2], [];
    "pentium3" 3 0 INTEL (6, 7, 3) "", [PENTIUM, PENTIUM2, "sse"], [];
    "athlon" 2 0x80000008 AMD (6, 2, 3) QEMU_ID,
        [PPRO, "pse36 vme mtrr mca mmxext 3dnow 3dnowext"], [];
    "n270" 10 0x80000008 INTEL (6, 28, 2) "Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
        [PPRO, "vme mtrr clflush mca acpi ss pni monitor ssse3 movbe nx lahf-lm"], [];
    "Conroe" 10 0x80000008 INTEL (6, 15, 3) "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
        [BASE64, LONG, "ssse3 pni lahf-lm"], [];
    "Penryn" 10 0x80000008 INTEL (6, 23, 3) "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
        [BASE64, LONG, "sse4.1 cx16 ssse3 pni lahf-lm"], [];
    "Nehalem" 11 0x80000008 INTEL (6, 26, 3) "Intel Core i7 9xx (Nehalem Class Core i7)",
        [BASE64, LONG, NEHALEM],
        [version(2, "Nehalem-IBRS", "spec-ctrl", "", "Intel Core i7 9xx (Nehalem Core i7, IBRS update)")];
    "Westmere" 11 0x80000008 INTEL (6, 44, 1) "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
        [BASE64, LONG, NEHALEM, "aes pclmulqdq arat"],
        [version(2, "Westmere-IBRS", "spec-ctrl", "", "Westmere E56xx/L56xx/X56xx (IBRS update)")];
    "SandyBridge" 0xd 0x80000008 INTEL (6, 42, 1) "Intel Xeon E312xx (Sandy Bridge)",
        [BASE64, LONG, NEHALEM, SANDY],
        [version(2, "SandyBridge-IBRS", "spec-ctrl", "", "Intel Xeon E312xx (Sandy Bridge, IBRS update)")];
    "IvyBridge" 0xd 0x80000008 INTEL (6, 58, 9) "Intel Xeon E3-12xx v2 (Ivy Bridge)",
        [BASE64, LONG, NEHALEM, SANDY, IVY],
        [version(2, "IvyBridge-IBRS", "spec-ctrl", "", "Intel Xeon E3-12xx v2 (Ivy Bridge, IBRS)")];
    "Haswell" 0xd 0x80000008 INTEL (6, 60, 4) "Intel Core Processor (Haswell)",
        [BASE64, LONG, NEHALEM, SANDY, IVY, HASWELL],
        [Version { stepping: Some(1), ..version(2, "Haswell-noTSX", "", "hle rtm", "Intel Core Processor (Haswell, no TSX)") },
         Version { stepping: Some(4), ..version(3, "Haswell-IBRS", "hle rtm spec-ctrl", "", "Intel Core Processor (Haswell, IBRS)") },
         Version { stepping: Some(1), ..version(4, "Haswell-noTSX-IBRS", "", "hle rtm", "Intel Core Processor (Haswell, no TSX, IBRS)") }];
    "Broadwell" 0xd 0x80000008 INTEL (6, 61, 2) "Intel Core Processor (Broadwell)",
        [BASE64, LONG, NEHALEM, SANDY, IVY, HASWELL, BROADWELL],
        [version(2, "Broadwell-noTSX", "", "hle rtm", "Intel Core Processor (Broadwell, no TSX)"),
         version(3, "Broadwell-IBRS", "hle rtm spec-ctrl", "", "Intel Core Processor (Broadwell, IBRS)"),
         version(4, "Broadwell-noTSX-IBRS", "", "hle rtm", "Intel Core Processor (Broadwell, no TSX, IBRS)")];
    "Skylake-Client" 0xd 0x80000008 INTEL (6, 94, 3) "Intel Core Processor (Skylake)",
        [BASE64, LONG, NEHALEM, SANDY, IVY, HASWELL, BROADWELL, SKYLAKE],
        [version(2, "Skylake-Client-IBRS", "spec-ctrl", "", "Intel Core Processor (Skylake, IBRS)"),
         version(3, "Skylake-Client-noTSX-IBRS", "", "hle rtm", "Intel Core Processor (Skylake, IBRS, no TSX)"),
         version(4, "", "xsaves", "", "")];
    "Skylake-Server" 0xd 0x80000008 INTEL (6, 85, 4) "Intel Xeon Processor (Skylake)",
        [BASE64, LONG, NEHALEM, SANDY, IVY, HASWELL, BROADWELL, SKYLAKE, SKYLAKE_SERVER],
        [version(2, "Skylake-Server-IBRS", "spec-ctrl", "clflushopt", "Intel Xeon Processor (Skylake, IBRS)"),
         version(3, "Skylake-Server-noTSX-IBRS", "", "hle rtm", "Intel Xeon Processor (Skylake, IBRS, no TSX)"),
         version(4, "", "", "", ""), version(5, "", "xsaves", "", "")];
    "Cascadelake-Server" 0xd 0x80000008 INTEL (6, 85, 6) "Intel Xeon Processor (Cascadelake)",
        [BASE64, LONG, NEHALEM, SANDY, IVY, HASWELL, BROADWELL, SKYLAKE, SKYLAKE_SERVER, "avx512vnni spec-ctrl ssbd"],
        [version(2, "", "arch-capabilities", "", ""), version(3, "Cascadelake-Server-noTSX", "", "hle rtm", ""),
         version(4, "", "", "", ""), version(5, "", "xsaves", "", "")];
    "Icelake-Server" 0xd 0x80000008 INTEL (6, 134, 0) "Intel Xeon Processor (Icelake)",
        [BASE64, LONG, NEHALEM, SANDY, IVY, HASWELL, BROADWELL, SKYLAKE, SKYLAKE_SERVER, ICELAKE_SERVER],
        [version(2, "Icelake-Server-noTSX", "", "hle rtm", ""), version(3, "", "arch-capabilities", "", ""),
         Version { number_of_model: Some(106), ..version(4, "", "avx512ifma fsrm rdpid sha-ni", "", "") },
         version(5, "", "xsaves", "", ""), version(6, "", "", "", "")];
    "Opteron_G1" 5 0x80000008 AMD (15, 6, 1) "AMD Opteron 240 (Gen 1 Class Opteron)", [BASE64, LONG, "pni"], [];
    "Opteron_G2" 5 0x80000008 AMD (15, 6, 1) "AMD Opteron 22xx (Gen 2 Class Opteron)",
        [BASE64, LONG, "cx16 pni svm lahf-lm"], [];
    "Opteron_G3" 5 0x80000008 AMD (16, 2, 3) "AMD Opteron 23xx (Gen 3 Class Opteron)",
        [BASE64, LONG, "popcnt cx16 monitor pni rdtscp svm misalignsse sse4a abm lahf-lm"], [];
    "Opteron_G4" 0xd 0x8000001a AMD (21, 1, 2) "AMD Opteron 62xx class CPU", [BASE64, LONG, BULLDOZER], [];
    "Opteron_G5" 0xd 0x8000001a AMD (21, 2, 0) "AMD Opteron 63xx class CPU",
        [BASE64, LONG, BULLDOZER, "f16c fma tbm"], [];
    "EPYC" 0xd 0x8000001e AMD (23, 1, 2) "AMD EPYC Processor", [BASE64, LONG, ZEN],
        [version(2, "EPYC-IBPB", "ibpb", "", "AMD EPYC Processor (with IBPB)"),
         version(3, "", "perfctr-core clzero xsaveerptr xsaves", "", "AMD EPYC Processor")];
    "EPYC-Rome" 0xd 0x8000001e AMD (23, 49, 0) "AMD EPYC-Rome Processor", [BASE64, LONG, ZEN, ZEN2],
        [version(2, "", "ibrs amd-ssbd", "", "")];
    "EPYC-Milan" 0xd 0x8000001e AMD (25, 1, 1) "AMD EPYC-Milan Processor", [BASE64, LONG, ZEN, ZEN2, ZEN3],
        [version(2, "", "vaes vpclmulqdq stibp amd-psfd", "", "")];
}

/// A model of the catalog at one version.
pub(super) struct Chosen {
    pub model: &'static Model,
    pub features: Features,
    pub model_id: &'static str,
    /// Family, model, stepping.
    pub signature: (u32, u32, u32),
}

impl Model {
    fn at(&'static self, number: u32) -> Chosen {
        let base =
            self.features.iter().fold(Features::default(), |all, names| all.union(&Features::named(names)));
        let start =
            Chosen { model: self, features: base, model_id: self.model_id, signature: self.signature };
        self.versions.iter().filter(|v| v.number <= number).fold(start, |mut chosen, v| {
            chosen.features =
                chosen.features.union(&Features::named(v.add)).without(&Features::named(v.remove));
            if !v.model_id.is_empty() {
                chosen.model_id = v.model_id;
            }
            let (family, model, stepping) = chosen.signature;
            chosen.signature = (family, v.number_of_model.unwrap_or(model), v.stepping.unwrap_or(stepping));
            chosen
        })
    }

    fn numbers(&self) -> impl Iterator<Item = (u32, &'static str)> {
        std::iter::once((1, "")).chain(self.versions.iter().map(|v| (v.number, v.alias)))
    }
}

/// Every catalog name: (name, model, version, name it stands for).
fn names() -> impl Iterator<Item = (String, &'static Model, u32, Option<String>)> {
    MODELS.iter().flat_map(|model| {
        let plain = (model.name.to_owned(), model, 1, Some(format!("{}-v1", model.name)));
        std::iter::once(plain).chain(model.numbers().flat_map(move |(number, alias)| {
            let full = format!("{}-v{number}", model.name);
            let second = (!alias.is_empty()).then(|| (alias.to_owned(), model, number, Some(full.clone())));
            std::iter::once((full, model, number, None)).chain(second)
        }))
    })
}

/// The catalog model of that name, version (`-v2`) or version alias.
pub(super) fn find(name: &str) -> Option<Chosen> {
    names().find(|n| n.0 == name).map(|(_, model, number, _)| model.at(number))
}

/// Names of models without versions, for hints.
pub(super) fn plain_names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.name).chain(["base", "max", "host"])
}

/// A CPU model as `query-cpu-definitions` and `-cpu help` list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    pub name: String,
    /// `<name>-x86_64-cpu`.
    pub typename: String,
    pub description: String,
    /// Features of the model that the engine lacks.
    pub unavailable_features: Vec<&'static str>,
    /// Same CPUID on every host and engine version (false only for `host` and `max`).
    pub migration_safe: bool,
    pub is_static: bool,
    pub alias_of: Option<String>,
    pub deprecated: bool,
}

/// All models with what `offer` lacks of them, by name.
pub fn definitions(offer: &Offer) -> Vec<Definition> {
    let definition = |name: String, description: &str, wanted: Features, alias_of| Definition {
        typename: format!("{name}-x86_64-cpu"),
        description: description.to_owned(),
        unavailable_features: wanted.without(&offer.features).list(),
        migration_safe: true,
        is_static: false,
        alias_of,
        deprecated: false,
        name,
    };
    let mut list: Vec<Definition> = names()
        .map(|(name, model, number, alias_of)| {
            let chosen = model.at(number);
            definition(name, chosen.model_id, chosen.features, alias_of)
        })
        .collect();
    let none = Features::default();
    list.push(Definition {
        is_static: true,
        ..definition("base".into(), "base CPU model type with no features enabled", none, None)
    });
    let dynamic = |name: &str, text: &str| Definition {
        migration_safe: false,
        ..definition(name.into(), text, none, None)
    };
    list.push(dynamic("max", "Enables all features supported by the accelerator in the current host"));
    if offer.host.is_some() {
        list.push(dynamic("host", "processor with all supported host features"));
    }
    list.sort_by_key(|d| d.name.to_lowercase());
    list
}
