//! From a [`MachineSpec`] to a [`Machine`].

use crate::board::NoneBoard;
use crate::machine::{Machine, Parts};
use crate::requests::Requests;
use crate::{Devices, Host, Memory, board, engines};
use base::Result;
use device::{IrqLine, MsiMessage, MsiSink, Services};
use memory::{AddressSpace, SpaceKind};
use spec::machine::{MachineKind, MachineSpec};
use std::sync::Arc;

struct NoMsi;

impl MsiSink for NoMsi {
    fn send(&self, _message: MsiMessage) {}
}

/// Builds the machine, stopped in `prelaunch`. [`Machine::start`] lets it run.
pub fn build(spec: MachineSpec, host: &Host) -> Result<Arc<Machine>> {
    build_noting(spec, host, &|| {})
}

/// As [`build`]; `disks_open` is called when the images of all `-drive`s are open and devices
/// are made next.
pub fn build_noting(spec: MachineSpec, host: &Host, disks_open: &dyn Fn()) -> Result<Arc<Machine>> {
    let engine = engines::choose(&spec.accels)?;
    let requests = Requests::new(host.notices.clone());
    match spec.kind {
        MachineKind::None => none(spec, host, engine, requests, disks_open),
        MachineKind::Pc | MachineKind::Q35 => {
            let asked = cpu::models::Request::parse(spec.cpu.as_deref().unwrap_or("qemu64"));
            let model = asked.and_then(|asked| asked.resolve(&engines::offer(engine.name())));
            let place = spec.places.cpu.as_deref();
            let model = Arc::new(model.map_err(|f| place.map_or(f.clone(), |place| f.within(place)))?);
            board::pc::build(spec, host, engine, model, requests, disks_open)
        }
    }
}

fn none(
    spec: MachineSpec,
    host: &Host,
    engine: Arc<dyn cpu::Engine>,
    requests: Arc<Requests>,
    disks_open: &dyn Fn(),
) -> Result<Arc<Machine>> {
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
    let devices = Devices::new(devices::models(), services.clone(), host.tree.clone(), spec.globals.clone());
    drop(crate::drives::open(host, &spec)?);
    disks_open();
    devices.add_asked(&spec)?;
    Ok(Machine::new(Parts {
        spec,
        services,
        memory: Memory::none(),
        devices,
        tree: host.tree.clone(),
        engine,
        cpuid: Arc::default(),
        cpu_model: None,
        board: Box::new(NoneBoard),
        requests,
    }))
}
