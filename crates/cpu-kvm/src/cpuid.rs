//! The CPU model cut down to what the host can run.

use base::{Result, fail};
use cpu::cpuid::{CpuidTable, Leaf};
use cpu::models::{Features, Identity, Offer};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX bits that Ryokan itself provides: x2APIC, TSC deadline; and "hypervisor".
const OURS: u32 = 1 << 21 | 1 << 24 | 1 << 31;
const MONITOR: u32 = 1 << 3;
/// State components that [`cpu::CpuState`] holds: x87, SSE, AVX.
const COMPONENTS: u32 = 7;

/// Leaf 7 features whose state [`cpu::CpuState`] does not hold.
mod stateful {
    /// MPX, AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL.
    pub const EBX: u32 =
        1 << 14 | 1 << 16 | 1 << 17 | 1 << 21 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30 | 1 << 31;
    /// AVX512-VBMI, PKU, CET shadow stack, VBMI2, VNNI, BITALG, VPOPCNTDQ.
    pub const ECX: u32 = 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 14;
    /// AVX512 4VNNIW, 4FMAPS, VP2INTERSECT, CET branch tracking, AMX.
    pub const EDX: u32 = 1 << 2 | 1 << 3 | 1 << 8 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25;
}

/// `wanted` without features that KVM does not support.
pub fn mask(wanted: &CpuidTable, supported: &[kvm_cpuid_entry2]) -> CpuidTable {
    let mut table = wanted.clone();
    for (leaf, subleaf, value) in &mut table.leaves {
        let sub = subleaf.unwrap_or(0);
        let host = supported.iter().find(|e| e.function == *leaf && (e.index == sub || subleaf.is_none()));
        let host = host.map_or(Leaf::default(), |e| Leaf { eax: e.eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx });
        match (*leaf, sub) {
            (1, _) => {
                value.ecx &= (host.ecx | OURS) & !MONITOR;
                value.edx &= host.edx;
            }
            (7, 0) => {
                value.ebx &= host.ebx & !stateful::EBX;
                value.ecx &= host.ecx & !stateful::ECX;
                value.edx &= host.edx & !stateful::EDX;
            }
            (7, 1) => {
                value.eax &= host.eax;
                value.ebx &= host.ebx;
                value.ecx &= host.ecx;
                value.edx &= host.edx;
            }
            (0xd, 0) => {
                value.eax &= host.eax & COMPONENTS;
                value.edx = 0;
            }
            (0xd, 1) => {
                value.eax &= host.eax & !0x18; // no supervisor components
                value.ecx = 0;
                value.edx = 0;
            }
            (0x8000_0001, _) => {
                value.ecx &= host.ecx;
                value.edx &= host.edx;
            }
            (0x8000_0007, _) => value.edx &= host.edx,
            (0x8000_0008, _) => value.ebx &= host.ebx,
            _ => {}
        }
    }
    table
}

/// What remains of every feature word, and the host's identity.
pub fn offer(supported: &[kvm_cpuid_entry2]) -> Offer {
    let all = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
    let query = |leaf: u32, sub: u32| {
        let subleaf = supported.iter().any(|e| e.function == leaf && e.index > 0).then_some(sub);
        let table = mask(&CpuidTable { leaves: vec![(leaf, subleaf, all)] }, supported);
        let value = table.leaves[0].2;
        let host = supported.iter().find(|e| e.function == leaf).map_or(0, |e| e.eax);
        // Words that `mask` does not know are KVM's own (paravirtual features) or need
        // hardware behind them (leaf 6).
        match leaf {
            0 | 0x8000_0000 => [host, 0, 0, 0],
            1 | 7 | 0xd | 0x8000_0001 | 0x8000_0007 | 0x8000_0008 => {
                [value.eax, value.ebx, value.ecx, value.edx]
            }
            _ => [0; 4],
        }
    };
    let word = |leaf: u32| {
        let entry = supported.iter().find(|e| e.function == leaf);
        entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    let text = |words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).to_string()
    };
    let [_, b, c, d] = word(0);
    let [signature, ..] = word(1);
    let brand: Vec<u32> = (0x8000_0002..=0x8000_0004).flat_map(word).collect();
    let base = signature >> 8 & 15;
    let identity = Identity {
        vendor: text(&[b, d, c]),
        family: if base == 15 { base + (signature >> 20 & 255) } else { base },
        model: (signature >> 4 & 15) | (signature >> 16 & 15) << 4,
        stepping: signature & 15,
        brand: text(&brand),
    };
    let phys_bits = match word(0x8000_0008)[0] & 255 {
        0 => 36,
        bits => bits,
    };
    Offer { engine: "KVM".into(), features: Features::from_cpuid(query), host: Some(identity), phys_bits }
}

/// KVM's form of a table.
pub fn entries(table: &CpuidTable) -> Result<CpuId> {
    let entries: Vec<_> = table
        .leaves
        .iter()
        .map(|&(function, index, leaf)| kvm_cpuid_entry2 {
            function,
            index: index.unwrap_or(0),
            flags: if index.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            padding: [0; 3],
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| fail!("KVM: too many CPUID leaves"))
}
