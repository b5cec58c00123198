//! Which engines this build has, and which one `-accel` chooses.

use crate::qtest_engine::QtestEngine;
use base::{Result, bail, fail};
use cpu::Engine;
use cpu::models::{Offer, software_features};
use spec::machine::Accel;
use std::sync::Arc;

/// Accelerator names that are accepted.
pub const NAMES: &[&str] = &["kvm", "tcg", "translator", "interpreter", "qtest"];

/// Without `-accel`: KVM where it runs operating systems, else software.
fn default_names() -> Vec<&'static str> {
    if cpu_kvm::KvmEngine::is_complete() { vec!["kvm", "tcg"] } else { vec!["tcg"] }
}

/// The first accelerator of the list that works here.
pub(crate) fn choose(accels: &[Accel]) -> Result<Arc<dyn Engine>> {
    let defaults: Vec<Accel> = if accels.is_empty() {
        let plain = |name: &str| Accel { name: name.into(), options: spec::Tree::new() };
        default_names().into_iter().map(plain).collect()
    } else {
        Vec::new()
    };
    let mut why = None;
    for accel in accels.iter().chain(&defaults) {
        let options = software_options(accel)?;
        match make(&accel.name, options) {
            Ok(engine) => return Ok(engine),
            Err(failure) => why = why.or(Some(failure)),
        }
    }
    Err(why.unwrap_or_else(|| fail!("no accelerator found")))
}

/// The translator's options; an error for an engine that does not have them.
fn software_options(accel: &Accel) -> Result<cpu_translator::Options> {
    let mut options = cpu_translator::Options::default();
    for (key, value) in &accel.options {
        let value = value.as_str().unwrap_or_default();
        let translates = matches!(accel.name.as_str(), "tcg" | "translator");
        match key.as_str() {
            "tb-size" if translates => options.cache_size = cache_size(value)?,
            "perfmap" if translates => options.perf_map = matches!(value, "on" | "yes" | "true" | "y"),
            "tables" if translates => options.tables = Some(tables(value)?),
            "thread" | "split-wx" if translates => {}
            "kernel-irqchip" if accel.name == "kvm" => {}
            _ => bail!("Property '{}-accel.{key}' not found", accel.name),
        }
    }
    Ok(options)
}

/// How linear pages are looked up: `tables`.
fn tables(value: &str) -> Result<cpu_translator::Form> {
    match value {
        "flat" => Ok(cpu_translator::Form::Flat),
        "hashed" => Ok(cpu_translator::Form::Hashed),
        _ => bail!("Parameter 'tables' expects 'flat' or 'hashed'"),
    }
}

/// `tb-size` in MiB; 0 stands for the default.
fn cache_size(value: &str) -> Result<usize> {
    match value.parse::<usize>() {
        Ok(0) => Ok(cpu_translator::Options::default().cache_size),
        Ok(size @ 1..=1024) => Ok(size << 20),
        _ => bail!("Parameter 'tb-size' expects a size from 1 to 1024 MiB"),
    }
}

fn make(name: &str, options: cpu_translator::Options) -> Result<Arc<dyn Engine>> {
    match name {
        "qtest" => Ok(Arc::new(QtestEngine)),
        "kvm" => Ok(Arc::new(cpu_kvm::KvmEngine::open()?)),
        "translator" => Ok(Arc::new(cpu_translator::Translator::with(options)?)),
        "interpreter" => Ok(Arc::new(cpu_interpreter::Interpreter::new()?)),
        // The best software engine that this host allows.
        "tcg" => match cpu_translator::Translator::with(options) {
            Ok(translator) => Ok(Arc::new(translator)),
            Err(_) => Ok(Arc::new(cpu_interpreter::Interpreter::new()?)),
        },
        _ => {
            let failure = fail!("invalid accelerator {name}");
            match spec::nearest(name, NAMES.iter().copied()) {
                Some(near) => Err(failure.hint(format!("the nearest is '{near}'"))),
                None => bail!("invalid accelerator {name}"),
            }
        }
    }
}

/// What an engine can give a guest.
pub fn offer(engine: &str) -> Offer {
    if engine == "kvm"
        && let Ok(offer) = cpu_kvm::KvmEngine::offer()
    {
        return offer;
    }
    Offer {
        engine: engine.to_string(),
        features: software_features(cpu_host::host_supports),
        host: None,
        phys_bits: 40,
    }
}
