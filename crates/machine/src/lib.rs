//! The assembly: boards (`pc`, `q35`, `none`), the builder, the one list of models, the
//! run-state machine and the vCPU threads.
//!
//! Everything above (control plane, debugger, migration) reaches a machine through
//! [`Machine`]; nothing here knows QMP.

#![forbid(unsafe_code)]

mod balloon;
mod board;
mod builder;
pub mod cpus;
mod devices;
mod drives;
pub mod engines;
mod host;
mod machine;
mod memory;
mod notice;
mod objects;
mod qtest_engine;
mod requests;
pub mod runstate;
mod shown;
mod vcpu;

pub use board::Board;
pub use builder::{build, build_noting};
pub use devices::{Devices, Entry};
pub use drives::add_drive;
pub use host::{Host, block_clock, clocks};
pub use machine::Machine;
pub use memory::{Memory, Rom};
pub use notice::{Cause, Notice};
pub use objects::{MemoryBackend, ObjectType, Objects, Secret};
pub use runstate::RunState;
pub use vcpu::VcpuHandle;

#[cfg(test)]
mod tests;
