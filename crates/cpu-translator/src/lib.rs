//! The translator: x86-64 guest code as x86-64 host code.
//!
//! - [`layout`]: the state page and tables that generated code addresses through GS.
//! - [`translate`]: guest instructions to host instructions.
//! - [`cache`], [`shared`]: blocks of all vCPUs, their links and their end.
//! - [`tables`]: linear pages to host pages.
//! - [`vcpu`]: the run loop, over the interpreter's.

mod area;
mod asm;
mod beside;
mod cache;
mod counted;
mod direct;
mod exits;
mod layout;
mod near;
mod ports;
mod restless;
mod sampler;
mod shared;
mod signals;
mod string_stubs;
mod stubs;
mod system;
mod system_stubs;
mod tables;
mod time;
mod translate;
mod vcpu;
mod writers;

use base::{Result, bail};
use cpu::{Engine, Vcpu, VcpuConfig};
use std::sync::Arc;

pub use tables::Form;

/// Size of the code cache, in bytes, unless another is asked for.
const CACHE_SIZE: usize = 128 << 20;
/// Executions in the interpreter after which a block is translated.
const WARM: u32 = 24;

/// The translator as an [`Engine`]; one for each machine.
pub struct Translator(Arc<shared::Shared>);

/// What can be chosen about the translator.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of the code cache.
    pub cache_size: usize,
    /// Executions before a block is translated.
    pub warm: u32,
    /// Names of blocks go to `/tmp/perf-PID.map`, where `perf` looks for them.
    pub perf_map: bool,
    /// Flags are kept even where no guest instruction can see them (lock-step tests).
    pub exact_flags: bool,
    /// How linear pages are looked up; `None`: as the host allows.
    pub tables: Option<Form>,
    /// Pages with code stay watched however often they are written to (tests that place their
    /// programs in the same pages over and over).
    pub always_watch: bool,
    /// Code need not be found running to remember pages (tests).
    pub always_near: bool,
    /// Loops need not be found running to count their rounds (tests).
    pub measure_loops: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_size: CACHE_SIZE,
            warm: WARM,
            perf_map: false,
            exact_flags: false,
            tables: None,
            always_watch: false,
            always_near: false,
            measure_loops: false,
        }
    }
}

impl Translator {
    pub fn new() -> Result<Translator> {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Result<Translator> {
        check_host()?;
        signals::install()?;
        let form = tables::Form::for_host(options.tables)?;
        let shared = shared::Shared::new(options, form)?;
        Ok(Translator(Arc::new(shared)))
    }
}

/// Whether this host has what generated code is made of.
fn check_host() -> Result<()> {
    const HWCAP2_FSGSBASE: u64 = 2;
    if !std::arch::is_x86_feature_detected!("avx")
        || !std::arch::is_x86_feature_detected!("bmi1")
        || !std::arch::is_x86_feature_detected!("bmi2")
    {
        bail!("the translator needs a host with AVX, BMI1 and BMI2");
    }
    // SAFETY: reads an entry of the auxiliary vector.
    let enabled = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    if enabled & HWCAP2_FSGSBASE == 0 {
        bail!("the translator needs FSGSBASE (Linux 5.9 or newer on a processor that has it)");
    }
    Ok(())
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        "translator"
    }

    fn vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>> {
        Ok(Box::new(vcpu::TranslatorVcpu::new(config, self.0.clone())?))
    }

    fn report(&self) -> String {
        self.0.report()
    }
}

#[cfg(test)]
mod tests;
