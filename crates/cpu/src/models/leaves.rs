//! From a resolved model to the CPUID leaves of one vCPU (SDM vol. 2A CPUID; AMD APM vol. 3
//! appendix E).

use super::feature::{Features, INFO, Word};
use super::{CpuModel, Identity};
use crate::cpuid::{CpuidTable, Leaf};
use crate::xsave;

/// How a machine's vCPUs are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub sockets: u32,
    pub dies: u32,
    pub cores: u32,
    pub threads: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Topology { sockets: 1, dies: 1, cores: 1, threads: 1 }
    }
}

/// Bits that hold numbers below `count`.
fn bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

impl Topology {
    pub fn thread_bits(&self) -> u32 {
        bits(self.threads)
    }
    pub fn core_bits(&self) -> u32 {
        self.thread_bits() + bits(self.cores)
    }
    /// Bits of the APIC id below the package number.
    pub fn package_bits(&self) -> u32 {
        self.core_bits() + bits(self.dies)
    }
    fn per_package(&self) -> u32 {
        self.dies.max(1).saturating_mul(self.cores.max(1)).saturating_mul(self.threads.max(1))
    }

    /// APIC id of the vCPU with this index: package, die, core, thread from the top.
    pub fn apic_id(&self, index: u32) -> u32 {
        let threads = self.threads.max(1);
        let cores = self.cores.max(1);
        let dies = self.dies.max(1);
        let (thread, rest) = (index % threads, index / threads);
        let (core, rest) = (rest % cores, rest / cores);
        let (die, package) = (rest % dies, rest / dies);
        package << self.package_bits() | die << self.core_bits() | core << self.thread_bits() | thread
    }
}

/// One cache: (type 1 data 2 code 3 both, level, KiB, ways).
const CACHES: [(u32, u32, u32, u32); 4] = [(1, 1, 32, 8), (2, 1, 32, 8), (3, 2, 4096, 16), (3, 3, 16384, 16)];
const LINE: u32 = 64;

struct Builder<'a> {
    model: &'a CpuModel,
    topology: &'a Topology,
    apic_id: u32,
    /// Highest basic leaf.
    level: u32,
    leaves: Vec<(u32, Option<u32>, Leaf)>,
}

impl CpuModel {
    /// CPUID.1:EAX.
    pub fn signature(&self) -> u32 {
        let Identity { family, model, stepping, .. } = self.identity;
        let (low, high) = if family > 15 { (15, family - 15) } else { (family, 0) };
        high << 20 | (model >> 4 & 15) << 16 | low << 8 | (model & 15) << 4 | stepping & 15
    }

    /// The table of the vCPU with this APIC id.
    pub fn table(&self, topology: &Topology, apic_id: u32) -> CpuidTable {
        let level = if topology.dies > 1 && self.level >= 0xb { self.level.max(0x1f) } else { self.level };
        let mut builder = Builder { model: self, topology, apic_id, level, leaves: Vec::new() };
        builder.basic();
        builder.hypervisor();
        builder.extended();
        let mut leaves = builder.leaves;
        leaves.retain(|&(leaf, _, _)| match leaf >> 28 {
            0 => leaf <= level,
            4 => true,
            _ => leaf <= self.xlevel,
        });
        leaves.sort_by_key(|&(leaf, subleaf, _)| (leaf, subleaf));
        CpuidTable { leaves }
    }
}

fn text(bytes: &[u8]) -> u32 {
    let mut word = [b' '; 4];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u32::from_le_bytes(word)
}

impl Builder<'_> {
    fn add(&mut self, leaf: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.leaves.push((leaf, subleaf, Leaf { eax, ebx, ecx, edx }));
    }

    fn word(&self, word: Word) -> u32 {
        self.model.features.word(word)
    }

    fn has(&self, name: &str) -> bool {
        self.model.features.contains(name)
    }

    fn vendor(&self) -> [u32; 3] {
        let v = self.model.identity.vendor.as_bytes();
        [0, 4, 8].map(|at| text(v.get(at..).unwrap_or_default()))
    }

    fn is_amd(&self) -> bool {
        self.model.identity.vendor == "AuthenticAMD"
    }

    fn basic(&mut self) {
        let [b, d, c] = self.vendor();
        self.add(0, None, [self.level, b, c, d]);
        let logical = self.topology.per_package();
        let mut edx = self.word(Word::Leaf1Edx);
        let mut ebx = self.apic_id << 24 | if self.has("clflush") { LINE / 8 << 8 } else { 0 };
        if logical > 1 {
            ebx |= logical.min(255) << 16;
            edx |= 1 << 28;
        }
        self.add(1, None, [self.model.signature(), ebx, self.word(Word::Leaf1Ecx), edx]);
        if !self.is_amd() {
            // 4-way TLBs for 4 KiB pages, and "see leaf 4" for the caches.
            self.add(2, None, [0x00ff_0001, 0, 0, 0]);
            self.caches(4);
        }
        if self.has("monitor") {
            self.add(5, None, [0, 0, 3, 0]);
        }
        self.add(6, None, [self.word(Word::Leaf6Eax), 0, 0, 0]);
        let highest_subleaf = u32::from(self.word(Word::Leaf7Sub1Eax) != 0);
        let seven = [
            highest_subleaf,
            self.word(Word::Leaf7Ebx),
            self.word(Word::Leaf7Ecx),
            self.word(Word::Leaf7Edx),
        ];
        self.add(7, Some(0), seven);
        self.add(7, Some(1), [self.word(Word::Leaf7Sub1Eax), 0, 0, 0]);
        self.topology_leaf(0xb, &[(1, self.topology.thread_bits()), (2, self.topology.package_bits())]);
        if self.topology.dies > 1 {
            let t = self.topology;
            self.topology_leaf(0x1f, &[(1, t.thread_bits()), (2, t.core_bits()), (5, t.package_bits())]);
        }
        if self.has("xsave") {
            self.xsave();
        }
    }

    /// Leaves 4 (Intel) and 0x8000001D (AMD).
    fn caches(&mut self, leaf: u32) {
        let amd = leaf >= 0x8000_0000;
        for (i, (kind, level, kib, ways)) in (0u32..).zip(CACHES) {
            let share_bits =
                if level < 3 { self.topology.thread_bits() } else { self.topology.package_bits() };
            let sharing = if amd && level < 3 { self.topology.threads.max(1) } else { 1 << share_bits };
            let sets = kib * 1024 / (ways * LINE);
            let package_cores = 1u32 << (self.topology.package_bits() - self.topology.thread_bits());
            let cores = if amd { 0 } else { (package_cores - 1).min(63) << 26 };
            let eax = kind | level << 5 | 1 << 8 | (sharing - 1).min(4095) << 14 | cores;
            let edx = if level == 3 { 6 } else { 0 };
            self.add(leaf, Some(i), [eax, LINE - 1 | (ways - 1) << 22, sets - 1, edx]);
        }
    }

    fn topology_leaf(&mut self, leaf: u32, levels: &[(u32, u32)]) {
        for (i, &(kind, shift)) in (0u32..).zip(levels) {
            let count = match kind {
                1 => self.topology.threads.max(1),
                2 if leaf == 0x1f => self.topology.threads.max(1) * self.topology.cores.max(1),
                _ => self.topology.per_package(),
            };
            self.add(leaf, Some(i), [shift, count, kind << 8 | i, self.apic_id]);
        }
        let end = levels.len() as u32;
        // Beyond the last level: type 0, but the x2APIC id still stands in EDX.
        self.add(leaf, Some(end), [0, 0, end, self.apic_id]);
    }

    fn xsave(&mut self) {
        let mut components = xsave::X87 | xsave::SSE;
        if self.has("avx") {
            components |= xsave::AVX;
        }
        if self.has("avx512f") {
            components |= xsave::AVX512;
        }
        let full = xsave::standard_size(components) as u32;
        self.add(0xd, Some(0), [components as u32, full, full, 0]);
        let compact = if self.has("xsavec") { xsave::compacted_size(components) as u32 } else { 0 };
        self.add(0xd, Some(1), [self.word(Word::Xsave), compact, 0, 0]);
        for component in xsave::COMPONENTS.iter().filter(|c| components & c.mask() != 0) {
            let (size, offset) = (component.size as u32, component.offset as u32);
            self.add(0xd, Some(component.number), [size, offset, 0, 0]);
        }
    }

    fn hypervisor(&mut self) {
        if !self.has("hypervisor") {
            return;
        }
        let signature: &[u8; 12] = if self.model.shows_kvm { b"KVMKVMKVM\0\0\0" } else { b"TCGTCGTCGTCG" };
        let [b, c, d] = [0, 4, 8].map(|at| text(&signature[at..at + 4]));
        self.add(0x4000_0000, None, [0x4000_0001, b, c, d]);
        let features = if self.model.shows_kvm { self.word(Word::Kvm) } else { 0 };
        self.add(0x4000_0001, None, [features, 0, 0, 0]);
    }

    fn extended(&mut self) {
        let [b, d, c] = self.vendor();
        let amd = self.is_amd();
        self.add(
            0x8000_0000,
            None,
            if amd { [self.model.xlevel, b, c, d] } else { [self.model.xlevel, 0, 0, 0] },
        );
        let logical = self.topology.per_package();
        let mut ecx = self.word(Word::Ext1Ecx);
        let mut edx = self.word(Word::Ext1Edx);
        if amd {
            // AMD repeats leaf 1's EDX here but for a few bits.
            edx |= self.word(Word::Leaf1Edx) & 0x0183_f3ff;
            if logical > 1 {
                ecx |= 2;
            }
        }
        let signature = if amd { self.model.signature() } else { 0 };
        self.add(0x8000_0001, None, [signature, 0, ecx, edx]);
        let mut brand = [0u8; 48];
        for (to, from) in brand.iter_mut().zip(self.model.identity.brand.bytes()) {
            *to = from;
        }
        for (leaf, part) in (0x8000_0002..).zip(brand.chunks_exact(16)) {
            let word = |i: usize| u32::from_le_bytes([part[i], part[i + 1], part[i + 2], part[i + 3]]);
            self.add(leaf, None, [word(0), word(4), word(8), word(12)]);
        }
        if amd {
            let l1 = |kib: u32, ways: u32| kib << 24 | ways << 16 | 1 << 8 | LINE;
            self.add(0x8000_0005, None, [0x01ff_01ff, 0x01ff_01ff, l1(32, 8), l1(32, 8)]);
        }
        let (l2, l3) = (CACHES[2].2, CACHES[3].2);
        let l3_word = if amd { l3 / 512 << 18 | 8 << 12 | 1 << 8 | LINE } else { 0 };
        self.add(
            0x8000_0006,
            None,
            [
                0,
                0x4200_4200 & if amd { !0 } else { 0 },
                l2 << 16 | 8 << 12 | LINE | u32::from(amd) << 8,
                l3_word,
            ],
        );
        self.add(0x8000_0007, None, [0, 0, 0, self.word(Word::Ext7Edx)]);
        let linear = if self.has("la57") {
            57
        } else if self.has("lm") {
            48
        } else {
            32
        };
        let physical = if self.has("lm") {
            self.model.phys_bits
        } else if self.has("pse36") || self.has("pae") {
            36
        } else {
            32
        };
        let cores = if logical > 1 { self.topology.package_bits() << 12 | (logical - 1).min(255) } else { 0 };
        self.add(0x8000_0008, None, [linear << 8 | physical, self.word(Word::Ext8Ebx), cores, 0]);
        if self.has("svm") {
            self.add(0x8000_000a, None, [1, 16, 0, self.word(Word::Svm)]);
        }
        if self.has("topoext") {
            self.caches(0x8000_001d);
            let t = self.topology;
            let core = self.apic_id >> t.thread_bits() & ((1 << (t.core_bits() - t.thread_bits())) - 1);
            let node = self.apic_id >> t.package_bits();
            self.add(
                0x8000_001e,
                None,
                [self.apic_id, core & 0xff | (t.threads.max(1) - 1).min(255) << 8, node & 0xff, 0],
            );
        }
    }
}

impl CpuidTable {
    /// The features of a table, for engines that derive their own switches.
    pub fn features(&self) -> Features {
        Features::from_cpuid(|leaf, subleaf| {
            let l = self.query(leaf, subleaf);
            [l.eax, l.ebx, l.ecx, l.edx]
        })
    }
}

const _: () = assert!(INFO.len() == super::feature::WORDS);
