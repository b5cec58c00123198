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
    if cpu_kvm::KvmEngine::is_complete() { vec!["kvm", "interpreter"] } else { vec!["interpreter"] }
}

/// The first accelerator of the list that works here.
pub(crate) fn choose(accels: &[Accel]) -> Result<Arc<dyn Engine>> {
    let names: Vec<&str> = if accels.is_empty() {
        default_names()
    } else {
        accels.iter().map(|accel| accel.name.as_str()).collect()
    };
    let mut why = None;
    for name in names {
        match make(name) {
            Ok(engine) => return Ok(engine),
            Err(failure) => why = why.or(Some(failure)),
        }
    }
    Err(why.unwrap_or_else(|| fail!("no accelerator found")))
}

fn make(name: &str) -> Result<Arc<dyn Engine>> {
    match name {
        "qtest" => Ok(Arc::new(QtestEngine)),
        "kvm" => Ok(Arc::new(cpu_kvm::KvmEngine::open()?)),
        "translator" => Ok(Arc::new(cpu_translator::Translator::new()?)),
        "tcg" | "interpreter" => Ok(Arc::new(cpu_interpreter::Interpreter::new()?)),
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
