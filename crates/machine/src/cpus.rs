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

/// What the TSC of software CPUs counts at, in kHz.
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

/// What vCPUs are made of.
pub(crate) struct Maker<'a> {
    pub smp: &'a Smp,
    pub model: &'a Arc<CpuModel>,
    pub engine: &'a dyn Engine,
    pub services: &'a Services,
    pub apics: &'a Arc<ApicBus>,
    pub requests: &'a Arc<Requests>,
    pub tree: &'a Tree,
}

impl Maker<'_> {
    /// Makes the CPUs present at start, parked.
    pub fn make_all(&self) -> Result<()> {
        for (index, place) in places(self.smp).into_iter().enumerate().take(self.smp.cpus as usize) {
            self.make(index, place)?;
        }
        Ok(())
    }

    fn make(&self, index: usize, place: Place) -> Result<()> {
        let link = Arc::new(Link::new());
        let clock = &self.services.clocks.virtual_;
        let tsc_khz = self.engine.tsc_khz().unwrap_or(TSC_KHZ);
        let config = LapicConfig {
            id: place.apic_id,
            bootstrap: index == 0,
            x2apic: self.model.features.contains("x2apic"),
            tsc_khz,
        };
        let bus = CpuBus {
            memory: self.services.memory.clone(),
            ports: self.services.ports.clone(),
            apic: Lapic::new(config, self.apics, link.clone(), clock),
            link: link.clone(),
            clock: clock.clone(),
            tsc_khz,
        };
        let cpuid = Arc::new(self.model.table(&topology(self.smp), place.apic_id));
        let vcpu = self.engine.vcpu(VcpuConfig { index, bus, cpuid })?;
        let gate = self.requests.gate.clone();
        let handle = VcpuHandle::start(index, place.apic_id, link, vcpu, gate, self.requests.clone())?;
        let path = self.tree.free_path("/machine/unattached", "device");
        let object = CpuObject { model: self.model.clone(), place, handle: handle.clone() };
        self.tree.insert(&path, Arc::new(object));
        handle.set_path(path);
        self.requests.vcpus.lock().push(handle);
        Ok(())
    }
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
