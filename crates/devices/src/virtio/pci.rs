use super::registers::{
    COMMON, DEVICE, ISR, Legacy, MODERN_SIZE, Modern, NOTIFY, NOTIFY_STEP, Registers, Selectors,
};
use super::{Link, Virtio, features};
use base::{Mutex, Result, bail};
use device::pci::{Identity, PciCore, PciFunction, RegionKind};
use device::{Bus, Device, Model, Property, PropertyKind, Props, ResetKind, Wiring};
use memory::Handler;
use serde_json::Value;
use std::any::Any;
use std::sync::Arc;

/// Which interfaces a model's name promises.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Both, as the properties say (`virtio-blk-pci`).
    Generic,
    /// `-transitional`
    Transitional,
    /// `-non-transitional`
    NonTransitional,
}

/// Properties of every virtio PCI function.
pub const PROPERTIES: &[Property] = &[
    Property::new("indirect_desc", PropertyKind::Bool, "on", "Offer indirect descriptors"),
    Property::new("event_idx", PropertyKind::Bool, "on", "Offer event indices"),
    Property::new("any_layout", PropertyKind::Bool, "on", "Offer arbitrary descriptor layouts"),
];

/// Which interface, for models that leave the choice.
pub const CHOICE: &[Property] = &[
    Property::new("disable-legacy", PropertyKind::OnOffAuto, "auto", "Without the legacy interface"),
    Property::new("disable-modern", PropertyKind::Bool, "off", "Without the modern interface"),
];

/// What a virtio device needs of its PCI function.
pub struct Shape {
    pub model: &'static Model,
    pub generation: Generation,
    /// PCI class.
    pub class: u32,
    /// PCI device number of the transitional function (modern ones derive theirs).
    pub legacy_id: u16,
    /// MSI-X vectors.
    pub vectors: u16,
}

const CAPABILITY_VENDOR: u8 = 9;
const PCI_CFG: u8 = 5;
const MODERN_BAR: u8 = 4;

/// A virtio device behind PCI.
pub struct VirtioPci {
    model: &'static Model,
    core: Arc<PciCore>,
    registers: Arc<Registers>,
    modern: Arc<Modern>,
    /// Offset of the capability that gives access through configuration space.
    window: Option<u16>,
}

impl VirtioPci {
    pub fn create(
        shape: Shape,
        device: Arc<dyn Virtio>,
        props: &Props,
        wiring: &Wiring<'_>,
    ) -> Result<Arc<dyn Device>> {
        let name = shape.model.name;
        let (legacy, modern) = match shape.generation {
            Generation::Transitional => (true, true),
            Generation::NonTransitional => (false, true),
            // Behind a PCI Express port there may be no room for I/O BARs.
            Generation::Generic => {
                let behind_port = wiring.pci_bus()?.is_express() && wiring.bus.name() != "pcie.0";
                (!props.on_off_auto("disable-legacy", behind_port), !props.bool("disable-modern"))
            }
        };
        if !legacy && !modern {
            bail!("device cannot work as neither modern nor legacy mode is enabled");
        }
        let number = device.number();
        let mut identity = if legacy {
            Identity { subsystem: (0x1af4, number), ..Identity::new(0x1af4, shape.legacy_id, 0, shape.class) }
        } else {
            Identity::new(0x1af4, 0x1040 + number, 1, shape.class)
        };
        if !legacy {
            identity.subsystem = (0x1af4, 0x1100);
        }
        let core = PciCore::new(name, identity, props, wiring)?;
        core.set_interrupt_pin(1);
        if shape.vectors > 0 {
            core.add_msix(1, shape.vectors)?;
        }
        let link = Link::new(core.clone(), &device.queue_sizes());
        let registers = Arc::new(Registers {
            core: core.clone(),
            link: link.clone(),
            device: device.clone(),
            transport_features: transport_features(props, modern),
            selectors: Mutex::new(Selectors::default()),
        });
        let modern_part = Arc::new(Modern(registers.clone()));
        let mut window = None;
        if modern {
            window = Some(add_capabilities(&core, registers.link.queues.len() as u64)?);
            core.add_io_bar(
                MODERN_BAR.into(),
                RegionKind::Memory64Prefetch,
                MODERN_SIZE,
                modern_part.clone(),
            );
        }
        if legacy {
            let size = (24 + device.config().len() as u64).next_power_of_two().max(32);
            core.add_io_bar(0, RegionKind::Io, size, Arc::new(Legacy(registers.clone())));
        }
        device.connect(&link);
        Ok(Arc::new(VirtioPci { model: shape.model, core, registers, modern: modern_part, window }))
    }

    pub fn device(&self) -> &Arc<dyn Virtio> {
        &self.registers.device
    }

    pub fn link(&self) -> &Arc<Link> {
        &self.registers.link
    }

    /// What the access capability selects (virtio 1.2 §4.1.4.9): BAR, offset, length.
    fn window_target(&self, at: u16) -> Option<(u64, u8)> {
        let bar = self.core.get(at + 4, 1) as u8;
        let (offset, len) = (self.core.get(at + 8, 4), self.core.get(at + 12, 4));
        let fits = matches!(len, 1 | 2 | 4) && u64::from(offset) + u64::from(len) <= MODERN_SIZE;
        let aligned = len != 0 && offset.is_multiple_of(len);
        (bar == MODERN_BAR && fits && aligned).then_some((offset.into(), len as u8))
    }
}

fn transport_features(props: &Props, modern: bool) -> u64 {
    let mut offered = 0;
    for (name, bit) in [
        ("indirect_desc", features::INDIRECT_DESC),
        ("event_idx", features::EVENT_IDX),
        ("any_layout", features::ANY_LAYOUT),
    ] {
        if props.bool(name) {
            offered |= bit;
        }
    }
    if modern { offered | features::VERSION_1 } else { offered }
}

/// The five structures of the modern interface (virtio 1.2 §4.1.4); gives the offset of the
/// one that opens a window in configuration space.
fn add_capabilities(core: &PciCore, queues: u64) -> Result<u16> {
    let body = |kind: u8, bar: u8, offset: u64, len: u64, more: &[u8]| {
        let mut body = vec![16 + more.len() as u8, kind, bar, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((len as u32).to_le_bytes());
        body.extend(more);
        body
    };
    let step = (NOTIFY_STEP as u32).to_le_bytes();
    core.add_capability(CAPABILITY_VENDOR, &body(1, MODERN_BAR, COMMON, 0x1000, &[]))?;
    core.add_capability(CAPABILITY_VENDOR, &body(3, MODERN_BAR, ISR, 0x1000, &[]))?;
    core.add_capability(CAPABILITY_VENDOR, &body(4, MODERN_BAR, DEVICE, 0x1000, &[]))?;
    let notify = (queues * NOTIFY_STEP).next_multiple_of(0x1000);
    core.add_capability(CAPABILITY_VENDOR, &body(2, MODERN_BAR, NOTIFY, notify, &step))?;
    let at = core.add_capability(CAPABILITY_VENDOR, &body(PCI_CFG, 0, 0, 0, &[0; 4]))?;
    core.set_writable(at + 4, &[0xff]);
    core.set_writable(at + 8, &[0xff; 12]);
    Ok(at)
}

impl PciFunction for VirtioPci {
    fn core(&self) -> &PciCore {
        &self.core
    }

    fn config_read(&self, offset: u16, size: u8) -> u32 {
        if let Some(at) = self.window
            && offset < at + 20
            && offset + u16::from(size) > at + 16
            && let Some((target, len)) = self.window_target(at)
        {
            let value = self.modern.read(target, len);
            self.core.set(at + 16, 4, value as u32);
        }
        self.core.config_read(offset, size)
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.core.config_write(offset, size, value);
        if let Some(at) = self.window
            && offset < at + 20
            && offset + u16::from(size) > at + 16
            && let Some((target, len)) = self.window_target(at)
        {
            self.modern.write(target, len, u64::from(self.core.get(at + 16, 4)) & ((1 << (len * 8)) - 1));
        }
    }
}

impl Device for VirtioPci {
    fn model(&self) -> &'static Model {
        self.model
    }
    fn reset(&self, kind: ResetKind) {
        self.registers.reset();
        self.registers.device.machine_reset(kind);
        self.core.reset();
    }
    fn pause(&self) {
        self.registers.device.pause();
    }
    fn resume(&self) {
        self.registers.device.resume();
    }
    fn unplug(&self) {
        self.core.unplug();
        self.registers.device.unplug();
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        self.registers.device.buses()
    }
    fn inner_type(&self) -> Option<&'static str> {
        Some(match self.registers.device.number() {
            2 => "virtio-blk-device",
            3 => "virtio-serial-device",
            4 => "virtio-rng-device",
            5 => "virtio-balloon-device",
            8 => "virtio-scsi-device",
            _ => return None,
        })
    }
    fn dynamic_property(&self, name: &str) -> Option<Value> {
        self.registers.device.dynamic_property(name)
    }
    fn dynamic_properties(&self) -> &'static [(&'static str, &'static str)] {
        self.registers.device.dynamic_properties()
    }
    fn set_dynamic_property(&self, name: &str, value: &Value) -> Option<Result<()>> {
        self.registers.device.set_dynamic_property(name, value)
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
