//! The interpreter: every mode and every instruction of the CPUID model, on any host.
//!
//! Code is decoded into blocks of [`op::Op`]s whose handlers are chosen by operation, form
//! and size; each handler ends in a call of the next one (a jump in release builds). What
//! has no handler of its own runs through [`exec`], which interprets iced's `Instruction`.

#![forbid(unsafe_code)]

mod block;
mod core;
mod decode;
mod exec;
mod fast;
mod flags;
mod memory_access;
mod op;
mod segment;
mod tier;
mod tlb;
mod vcpu;

pub mod testing;

#[cfg(test)]
mod tests;

pub use block::Mixer;
pub use core::{Core, Counter, Flush, FlushLog, mode};
pub use decode::{data_segment, may_store};
pub use exec::gpr;
pub use tier::{Pause, Ran, Single};
pub use tlb::View;
pub use vcpu::{Interpreter, InterpreterVcpu, Shared};
