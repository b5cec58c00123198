//! CPUID feature bits by name (Intel SDM vol. 2A CPUID, AMD APM vol. 3 appendix E; the names
//! are those of QEMU's command line, QMP and libvirt).

use crate::cpuid::CpuidTable;

/// A 32-bit register of CPUID that consists of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    Leaf1Edx,
    Leaf1Ecx,
    Leaf7Ebx,
    Leaf7Ecx,
    Leaf7Edx,
    Leaf7Sub1Eax,
    Ext1Edx,
    Ext1Ecx,
    Ext7Edx,
    Ext8Ebx,
    Kvm,
    Svm,
    Xsave,
    Leaf6Eax,
}

pub const WORDS: usize = 14;

/// Where a word stands in CPUID: (leaf, subleaf, register) and the names of its bits, from
/// bit 0, separated by blanks; `-` for bits without a name.
pub struct WordInfo {
    pub word: Word,
    pub leaf: u32,
    pub subleaf: Option<u32>,
    pub register: &'static str,
    names: &'static str,
}

const fn info(
    word: Word,
    leaf: u32,
    subleaf: Option<u32>,
    register: &'static str,
    names: &'static str,
) -> WordInfo {
    WordInfo { word, leaf, subleaf, register, names }
}

pub static INFO: [WordInfo; WORDS] = [
    info(
        Word::Leaf1Edx,
        1,
        None,
        "EDX",
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr \
         sse sse2 ss ht tm ia64 pbe",
    ),
    info(
        Word::Leaf1Ecx,
        1,
        None,
        "ECX",
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid dca sse4.1 \
         sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor",
    ),
    info(
        Word::Leaf7Ebx,
        7,
        Some(0),
        "EBX",
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - avx512f avx512dq rdseed adx \
         smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    info(
        Word::Leaf7Ecx,
        7,
        Some(0),
        "ECX",
        "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni avx512bitalg - \
         avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks",
    ),
    info(
        Word::Leaf7Edx,
        7,
        Some(0),
        "EDX",
        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - tsx-ldtrk - - \
         arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp - arch-capabilities core-capability ssbd",
    ),
    info(Word::Leaf7Sub1Eax, 7, Some(1), "EAX", "- - - - avx-vnni avx512-bf16"),
    info(
        Word::Ext1Edx,
        0x8000_0001,
        None,
        "EDX",
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    info(
        Word::Ext1Ecx,
        0x8000_0001,
        None,
        "ECX",
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
    ),
    info(Word::Ext7Edx, 0x8000_0007, None, "EDX", "- - - - - - - - invtsc"),
    info(
        Word::Ext8Ebx,
        0x8000_0008,
        None,
        "EBX",
        "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - - - - - - - - amd-ssbd virt-ssbd \
         amd-no-ssb - amd-psfd",
    ),
    info(
        Word::Kvm,
        0x4000_0001,
        None,
        "EAX",
        "kvmclock kvm-nopiodelay kvm-mmu - kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - kvm-pv-tlb-flush \
         kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id \
         - - - - - - - - kvmclock-stable-bit",
    ),
    info(
        Word::Svm,
        0x8000_000a,
        None,
        "EDX",
        "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - pause-filter - pfthreshold \
         avic - v-vmsave-vmload vgif - - - - - - - - - - - svme-addr-chk",
    ),
    info(Word::Xsave, 0xd, Some(1), "EAX", "xsaveopt xsavec xgetbv1 xsaves xfd"),
    info(Word::Leaf6Eax, 6, None, "EAX", "- - arat"),
];

/// Second names of features.
const ALIASES: [(&str, &str); 9] = [
    ("sse3", "pni"),
    ("i64", "lm"),
    ("xd", "nx"),
    ("ffxsr", "fxsr-opt"),
    ("pclmuldq", "pclmulqdq"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("lahf", "lahf-lm"),
    ("kvm-clock", "kvmclock"),
];

impl WordInfo {
    /// (bit, name) of all named bits.
    pub fn names(&self) -> impl Iterator<Item = (u32, &'static str)> {
        (0u32..).zip(self.names.split_ascii_whitespace()).filter(|(_, name)| *name != "-")
    }

    /// `CPUID.07H:EBX` with the subleaf left out, as messages name it.
    pub fn place(&self) -> String {
        format!("CPUID.{:02X}H:{}", self.leaf, self.register)
    }
}

/// One feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    pub word: Word,
    pub bit: u32,
    pub name: &'static str,
}

/// The feature of that name; `_` and `-` are the same.
pub fn find(name: &str) -> Option<Feature> {
    let name = name.replace('_', "-");
    let wanted = ALIASES.iter().find(|a| a.0 == name).map_or(name.as_str(), |a| a.1);
    all().find(|f| f.name == wanted)
}

/// Every named feature, by word and bit.
pub fn all() -> impl Iterator<Item = Feature> {
    INFO.iter().flat_map(|i| i.names().map(|(bit, name)| Feature { word: i.word, bit, name }))
}

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features([u32; WORDS]);

impl Features {
    /// Named features, separated by blanks.
    ///
    /// # Panics
    /// On an unknown name: for constant lists only.
    pub fn named(names: &str) -> Features {
        let mut features = Features::default();
        for name in names.split_ascii_whitespace() {
            let feature = find(name).unwrap_or_else(|| panic!("no CPU feature {name}"));
            features.set(feature, true);
        }
        features
    }

    /// From what CPUID returns: `query(leaf, subleaf)` gives [EAX, EBX, ECX, EDX].
    pub fn from_cpuid(query: impl Fn(u32, u32) -> [u32; 4]) -> Features {
        Features::gather(|leaf, subleaf| {
            let limit = query(leaf & 0xffff_0000, 0)[0];
            if leaf <= limit { query(leaf, subleaf) } else { [0; 4] }
        })
    }

    /// What the leaves of `table` show.
    pub fn of_table(table: &CpuidTable) -> Features {
        Features::gather(|leaf, subleaf| {
            let leaf = table.query(leaf, subleaf);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        })
    }

    fn gather(query: impl Fn(u32, u32) -> [u32; 4]) -> Features {
        let mut features = Features::default();
        for info in &INFO {
            let register = ["EAX", "EBX", "ECX", "EDX"].iter().position(|r| *r == info.register).unwrap_or(0);
            features.0[info.word as usize] = query(info.leaf, info.subleaf.unwrap_or(0))[register];
        }
        features
    }

    pub fn word(&self, word: Word) -> u32 {
        self.0[word as usize]
    }

    pub fn set_word(&mut self, word: Word, value: u32) {
        self.0[word as usize] = value;
    }

    pub fn has(&self, feature: Feature) -> bool {
        self.word(feature.word) >> feature.bit & 1 != 0
    }

    /// Whether the feature of that name is in the set.
    pub fn contains(&self, name: &str) -> bool {
        find(name).is_some_and(|f| self.has(f))
    }

    pub fn set(&mut self, feature: Feature, on: bool) {
        let word = &mut self.0[feature.word as usize];
        *word = *word & !(1 << feature.bit) | u32::from(on) << feature.bit;
    }

    pub fn union(&self, other: &Features) -> Features {
        Features(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    pub fn intersection(&self, other: &Features) -> Features {
        Features(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// What is in `self` and not in `other`.
    pub fn without(&self, other: &Features) -> Features {
        Features(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// Names of the named bits of the set.
    pub fn list(&self) -> Vec<&'static str> {
        all().filter(|f| self.has(*f)).map(|f| f.name).collect()
    }
}
