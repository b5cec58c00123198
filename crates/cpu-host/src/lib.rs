//! Runs one guest SIMD, MMX or x87 instruction on the host's own silicon (x86-64 hosts).
//!
//! At decode time [`Thunks::plan`] re-encodes an instruction with fixed registers and a fixed
//! memory buffer and makes a small piece of host code for it; [`Plan::run`] executes it any
//! number of times over a [`SimdContext`] (the guest's vector and x87 state) and an
//! [`Operand`] (the bytes of its memory operand). Results, MXCSR and x87 exceptions, flags:
//! all of it is what the silicon does.
//!
//! What the caller must do, in this order:
//! 1. at decode time: raise #UD if the guest's CPUID lacks [`Plan::features`] or no plan exists;
//! 2. per execution: check [`Plan::class`] against CR0, CR4 and XCR0 ([`Class`] says how);
//! 3. [`Plan::check_pending`], then translate the memory operand ([`Plan::memory`]), check its alignment, and probe for
//!    writing if it is written; load it into the [`Operand`] if it is read. If it is `masked`,
//!    only the bytes of [`Plan::byte_mask`] are accessed. Gathers go through [`Gather`].
//! 4. [`Plan::run`]; on `Ok(true)` store the memory operand.
//!
//! The guest's x87 and MMX registers stay in the host's between runs: call
//! [`SimdContext::sync`] before the state is read or the vCPU leaves its thread.
//!
//! FIP, FDP and FOP are the caller's: [`Plan::sets_x87_pointers`] and [`x87_opcode`] help.

mod area;
mod components;
mod context;
mod emit;
mod evex;
mod fault;
mod gather;
mod host;
mod plan;
mod shape;
mod thunk;

pub use context::{Operand, SimdContext};
pub use evex::is_compact;
pub use gather::Gather;
pub use host::{has_avx512, host_features, host_identity, host_supports, rotates_tell_of_first_step};
pub use plan::{Class, Memory, Plan, SimdFault, Thunks, Touches};
pub use shape::{is_x87_control, x87_opcode};

#[cfg(test)]
mod tests;
