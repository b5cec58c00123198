//! The hardware engine: guest code runs on the host's processor through Linux KVM.
//!
//! The interrupt controllers are Ryokan's own device models, as with the other engines: KVM
//! is used without its in-kernel chips. Interrupts go in with `KVM_INTERRUPT`, APIC and TSC
//! registers come out as MSR exits.
//!
//! [`KvmEngine::open`] says in one sentence why KVM cannot be used, if so.

mod cpuid;
mod engine;
mod kick;
mod msrs;
mod probe;
mod segments;
mod slots;
mod state;
mod sys;
#[cfg(test)]
mod tests;
mod vcpu;
mod xsave;

pub use engine::KvmEngine;
