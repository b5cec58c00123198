//! From a [`MachineSpec`] to a [`Machine`].

use crate::board::NoneBoard;
use crate::machine::{Machine, Parts};
use crate::qtest_engine::QtestEngine;
use crate::requests::Requests;
use crate::{Devices, Host, Memory};
use base::{Result, bail};
use device::{IrqLine, MsiMessage, MsiSink, Services};
use memory::{AddressSpace, SpaceKind};
use spec::machine::{Accel, MachineKind, MachineSpec};
use std::sync::Arc;

struct NoMsi;

impl MsiSink for NoMsi {
    fn send(&self, _message: MsiMessage) {}
}

/// Builds the machine, stopped in `prelaunch`. [`Machine::start`] lets it run.
pub fn build(spec: MachineSpec, host: &Host) -> Result<Arc<Machine>> {
    let engine = choose_engine(&spec.accels)?;
    let requests = Requests::new(host.notices.clone());
    let services = Services {
        memory: AddressSpace::new(SpaceKind::Memory),
        ports: AddressSpace::new(SpaceKind::Port),
        clocks: host.clocks.clone(),
        irqs: (0..24).map(|_| IrqLine::unconnected()).collect(),
        msi: Arc::new(NoMsi),
        power: requests.clone(),
        notices: host.notices.clone(),
        backends: Arc::new(host.clone()),
    };
    match spec.kind {
        MachineKind::None => none(spec, host, services, engine, requests),
        _ => bail!("machine type '{}' is not there yet", spec.type_name),
    }
}

fn none(
    spec: MachineSpec,
    host: &Host,
    services: Services,
    engine: Arc<dyn cpu::Engine>,
    requests: Arc<Requests>,
) -> Result<Arc<Machine>> {
    let devices = Devices::new(Vec::new(), services.clone(), host.tree.clone(), spec.globals.clone());
    Ok(Machine::new(Parts {
        spec,
        services,
        memory: Memory::none(),
        devices,
        tree: host.tree.clone(),
        engine,
        cpuid: Arc::default(),
        board: Box::new(NoneBoard),
        requests,
    }))
}

fn choose_engine(accels: &[Accel]) -> Result<Arc<dyn cpu::Engine>> {
    for accel in accels {
        match accel.name.as_str() {
            "qtest" => return Ok(Arc::new(QtestEngine)),
            other => bail!("invalid accelerator {other}"),
        }
    }
    Ok(Arc::new(QtestEngine))
}
