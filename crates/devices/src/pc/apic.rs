//! Local APICs and the bus between them (Intel SDM vol. 3A ch. 11), with xAPIC and x2APIC
//! interfaces.
//!
//! What other processors touch of a local APIC (request register, identification, enables)
//! is atomic, so vCPU threads and devices deliver without a lock; only the timer and the
//! register interface of the own vCPU take one.

mod bus;
mod interface;
mod local;
mod register;
mod timer;

pub use bus::{ApicBus, DeliveryMode, Interrupt};
pub use local::{Lapic, LapicConfig, MODEL};

#[cfg(test)]
mod tests;
