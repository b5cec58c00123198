//! The x86-64 CPU as every engine sees it: architectural state, models, and the traits.
//!
//! - [`state`]: [`CpuState`], the complete architectural state of one vCPU. Engines, the
//!   debugger, migration and `info registers` exchange it.
//! - [`engine`]: [`Engine`] makes [`Vcpu`]s; [`CpuBus`] is all a vCPU can reach.
//! - [`link`]: [`Link`], what other threads ask of a running vCPU.
//! - [`apic`]: [`LocalApic`], what a vCPU needs of its interrupt controller.
//!
//! CPUID models and feature names, page walks and fault codes also belong here: they are
//! the same for all engines.

#![forbid(unsafe_code)]

pub mod apic;
pub mod cpuid;
pub mod engine;
pub mod fault;
pub mod link;
pub mod models;
pub mod paging;
pub mod state;
pub mod xsave;

pub use apic::LocalApic;
pub use engine::{CpuBus, Engine, Exit, Vcpu, VcpuConfig, Window};
pub use fault::Fault;
pub use link::{Link, Request};
pub use state::CpuState;
