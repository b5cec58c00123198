/// What a vCPU needs of its interrupt controller (the local APIC, with the 8259s behind
/// LINT0 as ExtINT). Implemented by the device model; all methods may be called from the
/// vCPU's own thread while others raise interrupts.
pub trait LocalApic: Send + Sync {
    /// Whether an interrupt could be delivered now if RFLAGS.IF allows it.
    fn has_interrupt(&self) -> bool;
    /// Takes the highest deliverable interrupt (from LAPIC or 8259), moving it in service.
    fn acknowledge(&self) -> Option<u8>;
    /// CR8: bits 7:4 of the task priority.
    fn cr8(&self) -> u8;
    fn set_cr8(&self, value: u8);
    /// The current IA32_APIC_BASE.
    fn base_msr(&self) -> u64;
    /// IA32_APIC_BASE, the x2APIC range (0x800-0x8ff) and IA32_TSC_DEADLINE. `None` means
    /// general protection fault.
    fn read_msr(&self, index: u32) -> Option<u64>;
    /// See [`LocalApic::read_msr`]; `false` means general protection fault.
    fn write_msr(&self, index: u32, value: u64) -> bool;
    /// The xAPIC page (offset 0..4096); only called while the APIC is enabled in xAPIC mode.
    fn read_mmio(&self, offset: u64, size: u8) -> u64;
    fn write_mmio(&self, offset: u64, size: u8, value: u64);
    /// The initial APIC id (CPUID leaf 1 and 0xb).
    fn id(&self) -> u32;
    fn is_bootstrap(&self) -> bool;
    /// The guest's TSC is now `CpuBus::tsc` plus this (engines call it when the guest writes
    /// the TSC or IA32_TSC_ADJUST); the TSC-deadline timer compares with the sum.
    fn set_tsc_offset(&self, _offset: u64) {}
}
