//! The silicon as judge of the software engines.
//!
//! A [`Case`] is a piece of code with all registers and memory it starts from. [`Native`] runs
//! cases on the host CPU in a sandboxed child process; [`Rig`] runs them in any engine (the
//! same [`cpu::Engine`] trait for interpreter and translator) as user code of a small 64-bit
//! guest. Both give an [`Outcome`]; [`compare`] tells where they differ, leaving out what the
//! architecture leaves undefined. [`Generator`] makes cases: single instructions over every
//! encoding, or snippets of several.
//!
//! Engines are also judged by each other: [`Pair`] runs any bytes as guest code in two of them,
//! [`lockstep`] two whole machines.
//!
//! Every case ends in an exception: its code is followed by INT3 wherever it may run on, and
//! faults end it early. Address space, selectors and flags are those of a Linux process, so
//! that even error codes and fault addresses agree.

mod case;
mod compare;
mod generate;
mod liberties;
pub mod lockstep;
mod native;
mod pair;
mod rig;
mod rng;
mod run;

pub use case::{Case, Outcome, Patch, layout};
pub use compare::{Difference, compare};
pub use generate::{Family, Generator};
pub use native::{DIED, Native, TIMED_OUT};
pub use pair::Pair;
pub use rig::{NullApic, Rig};
pub use rng::Rng;
pub use run::{Report, Subject, judge, listing};

#[cfg(test)]
mod tests;
