//! The PC's classic devices: interrupt controllers, timers, keyboard controller, ports.
//!
//! Each device is made by `new` (typed configuration, lines and clocks), attached to an
//! address space by `map`, and never calls a line back into itself: lines lead to interrupt
//! controllers, whose locks rank above all devices'.

pub mod apic;
pub mod debug;
pub mod dma;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod owed;
pub mod parallel;
pub mod pic;
pub mod pit;
pub mod port92;
pub(crate) mod range;
pub mod rtc;
pub mod uart;
pub mod watchdog;

use device::Model;
pub use range::{Range, byte_range};

/// The models of this folder.
pub fn models() -> Vec<&'static Model> {
    vec![
        &uart::MODEL,
        &parallel::MODEL,
        &debug::DEBUGCON,
        &debug::DEBUG_EXIT,
        &debug::PVPANIC,
        &watchdog::MODEL,
        &pic::MODEL,
        &pit::MODEL,
        &rtc::MODEL,
        &i8042::MODEL,
        &port92::MODEL,
        &dma::MODEL,
        &debug::LEGACY,
        &hpet::MODEL,
        &ioapic::MODEL,
        &apic::MODEL,
    ]
}

#[cfg(test)]
mod tests;
