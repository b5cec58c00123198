//! The vCPUs of a board: APIC ids from the topology, threads, and their place in the object
//! tree.

use crate::requests::Requests;
use crate::vcpu::VcpuHandle;
use base::{Result, bail};
use cpu::models::{CpuModel, Property, Topology};
use cpu::{CpuBus, Engine, Link, VcpuConfig};
use device::Services;
use devices::pc::apic::{ApicBus, Lapic, LapicConfig};
use qom::{Object, PropertyInfo, Tree};
use serde_json::Value;
use spec::machine::Smp;
use std::sync::Arc;

/// vCPUs that one machine may have.
pub const MAX_CPUS: u32 = 255;

/// Frequency of the guest's TSC: the host's own, so that guests see what they expect.
pub const TSC_KHZ: u64 = 2_000_000;

/// Where a CPU sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub socket: u32,
    pub die: u32,
    pub core: u32,
    pub thread: u32,
    pub apic_id: u32,
}

/// `-smp` as CPUID and APIC ids need it.
pub fn topology(smp: &Smp) -> Topology {
    Topology { sockets: smp.sockets, dies: smp.dies, cores: smp.cores, threads: smp.threads }
}

/// Places of CPUs 0 to maxcpus-1.
pub fn places(smp: &Smp) -> Vec<Place> {
    let (threads, cores, dies) = (smp.threads.max(1), smp.cores.max(1), smp.dies.max(1));
    let place = |index: u32| Place {
        thread: index % threads,
        core: index / threads % cores,
        die: index / (threads * cores) % dies,
        socket: index / (threads * cores * dies),
        apic_id: topology(smp).apic_id(index),
    };
    (0..smp.maxcpus).map(place).collect()
}

/// Checks `-smp` against what a board can do.
pub(crate) fn check(smp: &Smp) -> Result<()> {
    if smp.cpus == 0 || smp.cpus > smp.maxcpus {
        bail!("maxcpus must be equal to or greater than smp");
    }
    if smp.maxcpus > MAX_CPUS {
        bail!("Invalid SMP CPUs {}. The max CPUs supported by machine is {MAX_CPUS}", smp.maxcpus);
    }
    Ok(())
}

/// Makes the CPUs present at start, parked.
pub(crate) fn create(
    smp: &Smp,
    model: &Arc<CpuModel>,
    engine: &Arc<dyn Engine>,
    services: &Services,
    apics: &Arc<ApicBus>,
    requests: &Arc<Requests>,
    tree: &Tree,
) -> Result<()> {
    let tsc_khz = engine.tsc_khz().unwrap_or(TSC_KHZ);
    for (index, place) in places(smp).into_iter().enumerate().take(smp.cpus as usize) {
        let link = Arc::new(Link::new());
        let config = LapicConfig {
            id: place.apic_id,
            bootstrap: index == 0,
            x2apic: model.features.contains("x2apic"),
            tsc_khz,
        };
        let apic = Lapic::new(config, apics, link.clone(), &services.clocks.virtual_);
        let bus = CpuBus {
            memory: services.memory.clone(),
            ports: services.ports.clone(),
            apic,
            link: link.clone(),
            clock: services.clocks.virtual_.clone(),
            tsc_khz,
        };
        let cpuid = Arc::new(model.table(&topology(smp), place.apic_id));
        let vcpu = engine.vcpu(VcpuConfig { index, bus, cpuid })?;
        let handle =
            VcpuHandle::start(index, place.apic_id, link, vcpu, requests.gate.clone(), requests.clone())?;
        let path = tree.free_path("/machine/unattached", "device");
        tree.insert(&path, Arc::new(CpuObject { model: model.clone(), place, handle: handle.clone() }));
        handle.set_path(path);
        requests.vcpus.lock().push(handle);
    }
    Ok(())
}

/// A CPU in the object tree: its place and its features.
struct CpuObject {
    model: Arc<CpuModel>,
    place: Place,
    handle: Arc<VcpuHandle>,
}

const NUMBERS: [&str; 5] = ["socket-id", "die-id", "core-id", "thread-id", "apic-id"];

impl Object for CpuObject {
    fn type_name(&self) -> String {
        format!("{}-x86_64-cpu", self.model.name)
    }

    fn properties(&self) -> Vec<PropertyInfo> {
        let mut all = vec![PropertyInfo::new("type", "string")];
        all.extend(["realized", "hotplugged", "hotpluggable"].map(|name| PropertyInfo::new(name, "bool")));
        all.extend(NUMBERS.map(|name| PropertyInfo::new(name, "int")));
        all.push(PropertyInfo::new("unavailable-features", "strList"));
        all.extend(self.model.properties().into_iter().map(|(name, value)| {
            let kind = match value {
                Property::Bool(_) => "bool",
                Property::Number(_) => "int",
                Property::Text(_) => "string",
            };
            PropertyInfo::new(name, kind)
        }));
        all
    }

    fn get(&self, name: &str) -> Result<Value> {
        let place = &self.place;
        Ok(match name {
            "type" => self.type_name().into(),
            "realized" => true.into(),
            "hotplugged" => false.into(),
            "hotpluggable" => (self.handle.index != 0).into(),
            "socket-id" => place.socket.into(),
            "die-id" => place.die.into(),
            "core-id" => place.core.into(),
            "thread-id" => place.thread.into(),
            "apic-id" => place.apic_id.into(),
            "unavailable-features" => self.model.unavailable.clone().into(),
            _ => {
                let found = self.model.properties().into_iter().find(|(property, _)| *property == name);
                match found.ok_or_else(|| Tree::no_property(name))?.1 {
                    Property::Bool(on) => on.into(),
                    Property::Number(number) => number.into(),
                    Property::Text(text) => text.into(),
                }
            }
        })
    }
}
