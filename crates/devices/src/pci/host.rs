//! Host side of both chipsets: configuration mechanism 1 (PCI 3.0 §3.2.2.3.2) and the reset
//! control register that lies inside its port range.

use base::Mutex;
use device::pci::PciBus;
use device::{Bus, BusKind, Device, Model, Power, Props, ResetCause, ResetKind, Services, Wiring};
use memory::Handler;
use std::any::Any;
use std::sync::Arc;

const fn host_model(
    name: &'static str,
    create: fn(&Props, &mut Wiring<'_>) -> base::Result<Arc<dyn Device>>,
) -> Model {
    Model {
        name,
        aliases: &[],
        description: "Host bridge",
        bus: BusKind::System,
        parent: "pci-host-bridge",
        properties: &[],
        user_creatable: false,
        hotpluggable: false,
        create,
    }
}

pub static I440FX_HOST: Model = host_model("i440FX-pcihost", |_, wiring| Ok(Host::i440fx(wiring.services)));
pub static Q35_HOST: Model = host_model("q35-pcihost", |_, wiring| Ok(Host::q35(wiring.services)));

const CONFIG_ENABLE: u32 = 1 << 31;
const RESET_CPU: u8 = 1 << 2;

/// The PCI host: owner of the root bus and of ports 0xcf8 to 0xcff.
pub struct Host {
    model: &'static Model,
    bus: Arc<PciBus>,
    ports: Arc<Ports>,
}

struct Ports {
    bus: Arc<PciBus>,
    power: Arc<dyn Power>,
    /// Bits of the reset control register that are kept.
    reset_kept: u8,
    state: Mutex<PortState>,
}

#[derive(Default)]
struct PortState {
    address: u32,
    reset_control: u8,
}

impl Host {
    /// i440FX: conventional bus `pci.0`.
    pub fn i440fx(services: &Services) -> Arc<Self> {
        Host::new(services, &I440FX_HOST, PciBus::new("pci.0", false, Box::new(|_, _, _| ())), 0x02)
    }

    /// Q35: PCI Express root complex `pcie.0`.
    pub fn q35(services: &Services) -> Arc<Self> {
        Host::new(services, &Q35_HOST, PciBus::new("pcie.0", true, Box::new(|_, _, _| ())), 0x0a)
    }

    fn new(services: &Services, model: &'static Model, bus: Arc<PciBus>, reset_kept: u8) -> Arc<Self> {
        let ports = Arc::new(Ports {
            bus: bus.clone(),
            power: services.power.clone(),
            reset_kept,
            state: Mutex::default(),
        });
        services.ports.edit(|edit| edit.io("pci-conf", 0xcf8, 8, ports.clone()));
        Arc::new(Host { model, bus, ports })
    }

    pub fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }
}

impl Ports {
    /// The function and register that CONFIG_ADDRESS and the port select.
    fn target(&self, port: u64) -> Option<(Arc<PciBus>, u8, u16)> {
        let address = self.state.lock().address;
        if address & CONFIG_ENABLE == 0 {
            return None;
        }
        let bus = self.bus.find_bus(0, (address >> 16) as u8)?;
        Some((bus, (address >> 8) as u8, (address & 0xfc) as u16 + (port & 3) as u16))
    }
}

impl Handler for Ports {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (0, 4) => self.state.lock().address.into(),
            (1, 1) => self.state.lock().reset_control.into(),
            (4.., _) => match self.target(offset) {
                Some((bus, at, register)) => bus.config_read(at, register, size).into(),
                None => u64::MAX,
            },
            _ => u64::MAX,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (0, 4) => self.state.lock().address = value as u32,
            (1, 1) if value as u8 & RESET_CPU != 0 => self.power.request_reset(ResetCause::Guest),
            (1, 1) => self.state.lock().reset_control = value as u8 & self.reset_kept,
            (4.., _) => {
                if let Some((bus, at, register)) = self.target(offset) {
                    bus.config_write(at, register, size, value as u32);
                }
            }
            _ => {}
        }
    }

    fn max_access(&self) -> u8 {
        4
    }
}

impl Device for Host {
    fn model(&self) -> &'static Model {
        self.model
    }
    fn reset(&self, _kind: ResetKind) {
        *self.ports.state.lock() = PortState::default();
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        vec![self.bus.clone()]
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
