//! Register numbers (xAPIC offset / 16 = x2APIC MSR - 0x800) and bits.

pub const ID: u32 = 0x02;
pub const VERSION: u32 = 0x03;
pub const TPR: u32 = 0x08;
pub const APR: u32 = 0x09;
pub const PPR: u32 = 0x0a;
pub const EOI: u32 = 0x0b;
pub const LDR: u32 = 0x0d;
pub const DFR: u32 = 0x0e;
pub const SVR: u32 = 0x0f;
pub const ISR: u32 = 0x10;
pub const TMR: u32 = 0x18;
pub const IRR: u32 = 0x20;
pub const ESR: u32 = 0x28;
pub const ICR_LOW: u32 = 0x30;
pub const ICR_HIGH: u32 = 0x31;
pub const LVT_TIMER: u32 = 0x32;
pub const LVT_ERROR: u32 = 0x37;
pub const TIMER_INITIAL: u32 = 0x38;
pub const TIMER_CURRENT: u32 = 0x39;
pub const TIMER_DIVIDE: u32 = 0x3e;
pub const SELF_IPI: u32 = 0x3f;

/// Indices into the LVT array (register - LVT_TIMER).
pub mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const ERROR: usize = 5;
    pub const COUNT: usize = 6;
    /// Writable bits of each entry.
    pub const WRITABLE: [u32; COUNT] = [0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff];
    pub const MASKED: u32 = 1 << 16;
    pub const LEVEL: u32 = 1 << 15;
    pub const REMOTE_IRR: u32 = 1 << 14;
}

pub const SVR_ENABLE: u32 = 1 << 8;
/// xAPIC version 0x14, six LVT entries.
pub const VERSION_VALUE: u32 = 0x14 | 5 << 16;

pub mod apic_base {
    pub const BOOTSTRAP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
}

pub mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// IA32_APIC_BASE and IA32_TSC_DEADLINE.
pub const MSR_APIC_BASE: u32 = 0x1b;
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First MSR of the x2APIC range.
pub const MSR_X2APIC: u32 = 0x800;
