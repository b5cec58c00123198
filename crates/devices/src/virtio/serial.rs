//! virtio-serial (virtio 1.2 §5.3): the console device and its bus of ports.

mod port;
#[cfg(test)]
mod tests;

pub use port::{CONSOLE, PORT};

use super::pci::{Generation, Shape, VirtioPci};
use super::{Link, Virtio};
use base::notice::Notices;
use base::{Mutex, Result, bail};
use device::{Bus, BusKind, Device, Hotplug, Model, Property, PropertyKind, Props, Wiring};
use port::Port;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};

const PROPERTIES: &[Property] = &[
    Property::new("max_ports", PropertyKind::U32, "31", "Most ports"),
    Property::new(
        "emergency-write",
        PropertyKind::Bool,
        "on",
        "Offer output through the configuration space",
    ),
    Property::new("vectors", PropertyKind::U32, "2", "MSI-X vectors"),
];

three_models!("virtio-serial-pci", "virtio-serial", "Virtio serial bus", [PROPERTIES], create);

const F_MULTIPORT: u64 = 1 << 1;
const F_EMERGENCY_WRITE: u64 = 1 << 2;
const CONFIG_BYTES: usize = 12;
const CONFIG_EMERGENCY: usize = 8;
const QUEUE_SIZE: u16 = 128;
const CONTROL_TO_DRIVER: usize = 2;
const CONTROL_FROM_DRIVER: usize = 3;
/// Messages that wait for control buffers.
const MAX_WAITING: usize = 1024;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_REMOVE: u16 = 2;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The bus that ports sit on, and the device behind it.
pub struct SerialBus {
    me: Weak<SerialBus>,
    name: String,
    max_ports: u32,
    emergency_write: bool,
    notices: Notices,
    link: OnceLock<Arc<Link>>,
    ports: Mutex<BTreeMap<u32, Arc<Port>>>,
    control: Mutex<Control>,
}

#[derive(Default)]
struct Control {
    /// The driver said that it is ready for ports.
    ready: bool,
    waiting: VecDeque<Vec<u8>>,
}

fn create(
    model: &'static Model,
    generation: Generation,
    props: &Props,
    wiring: &mut Wiring<'_>,
) -> Result<Arc<dyn Device>> {
    let max_ports = props.u64("max_ports");
    if !(1..=511).contains(&max_ports) {
        bail!("maximum ports supported: 511");
    }
    let bus = Arc::new_cyclic(|me| SerialBus {
        me: me.clone(),
        name: wiring.bus_name("virtio-serial-bus", 0),
        max_ports: max_ports as u32,
        emergency_write: props.bool("emergency-write"),
        notices: wiring.services.notices.clone(),
        link: OnceLock::new(),
        ports: Mutex::default(),
        control: Mutex::default(),
    });
    let vectors = props.u64("vectors").min(2048) as u16;
    let shape = Shape { model, generation, class: 0x07_8000, legacy_id: 0x1003, vectors };
    VirtioPci::create(shape, bus, props, wiring)
}

/// The receive queue of a port; its transmit queue is the next.
fn receive_queue(id: u32) -> usize {
    if id == 0 { 0 } else { (id as usize + 1) * 2 }
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

impl SerialBus {
    fn port(&self, id: u32) -> Option<Arc<Port>> {
        self.ports.lock().get(&id).cloned()
    }

    fn all(&self) -> Vec<Arc<Port>> {
        self.ports.lock().values().cloned().collect()
    }

    /// Whether the driver knows more than the first port.
    fn is_multiport(&self) -> bool {
        self.link.get().is_some_and(|link| link.has_feature(F_MULTIPORT))
    }

    fn choose_id(&self, wanted: Option<u32>, is_console: bool) -> Result<u32> {
        let ports = self.ports.lock();
        let id = match wanted {
            Some(0) if !is_console => bail!(
                "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility."
            ),
            Some(id) if id >= self.max_ports => {
                bail!("Out-of-range port id specified, max. allowed: {}", self.max_ports - 1)
            }
            Some(id) if ports.contains_key(&id) => bail!("A port already exists at id {id}"),
            Some(id) => id,
            None => match (u32::from(!is_console)..self.max_ports).find(|id| !ports.contains_key(id)) {
                Some(id) => id,
                None => bail!("Maximum port limit for this device reached"),
            },
        };
        Ok(id)
    }

    fn add(&self, port: Arc<Port>) {
        let id = port.id;
        self.ports.lock().insert(id, port);
        if self.control.lock().ready {
            self.tell(message(id, PORT_ADD, 1));
        }
    }

    fn remove(&self, id: u32) {
        self.ports.lock().remove(&id);
        if self.control.lock().ready {
            self.tell(message(id, PORT_REMOVE, 1));
        }
    }

    /// Sends a control message, now or when the driver has room.
    fn tell(&self, message: Vec<u8>) {
        if !self.is_multiport() {
            return;
        }
        let mut control = self.control.lock();
        if control.waiting.len() < MAX_WAITING {
            control.waiting.push_back(message);
        }
        self.flush(&mut control);
    }

    fn flush(&self, control: &mut Control) {
        let Some(link) = self.link.get() else { return };
        while let Some(message) = control.waiting.front() {
            let Some(chain) = link.pop(CONTROL_TO_DRIVER) else { return };
            let len = message.len().min(usize::try_from(chain.writable_len()).unwrap_or(usize::MAX));
            let stored = chain.write(link.dma(), 0, &message[..len]);
            link.push(&chain, if stored.is_some() { len as u32 } else { 0 });
            control.waiting.pop_front();
        }
    }

    fn take_messages(&self) {
        let Some(link) = self.link.get() else { return };
        while let Some(chain) = link.pop(CONTROL_FROM_DRIVER) {
            let mut bytes = [0; 8];
            let read = chain.read(link.dma(), 0, &mut bytes);
            link.push(&chain, 0);
            if read.is_some() {
                let value = u64::from_le_bytes(bytes);
                self.message(value as u32, (value >> 32) as u16, (value >> 48) as u16);
            }
        }
    }

    fn message(&self, id: u32, event: u16, value: u16) {
        if event == DEVICE_READY {
            self.control.lock().ready = value != 0;
            if value != 0 {
                self.all().iter().for_each(|port| self.tell(message(port.id, PORT_ADD, 1)));
            }
            return;
        }
        let Some(port) = self.port(id) else { return };
        match event {
            PORT_READY if value != 0 => self.introduce(&port),
            PORT_OPEN => port.guest_opened(value != 0),
            _ => {}
        }
    }

    /// Tells the driver what a port is that it has taken up.
    fn introduce(&self, port: &Port) {
        if port.is_console {
            self.tell(message(port.id, CONSOLE_PORT, 1));
        }
        if !port.name.is_empty() {
            self.tell([&message(port.id, PORT_NAME, 1)[..], port.name.as_bytes()].concat());
        }
        if port.is_host_open() {
            self.tell(message(port.id, PORT_OPEN, 1));
        }
    }

    fn host_opened(&self, id: u32, open: bool) {
        if self.control.lock().ready {
            self.tell(message(id, PORT_OPEN, open.into()));
        }
    }
}

impl Virtio for SerialBus {
    fn number(&self) -> u16 {
        3
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let pairs = if self.max_ports > 1 { self.max_ports + 1 } else { 1 };
        vec![QUEUE_SIZE; pairs as usize * 2]
    }

    fn features(&self) -> u64 {
        let mut features = if self.max_ports > 1 { F_MULTIPORT } else { 0 };
        if self.emergency_write {
            features |= F_EMERGENCY_WRITE;
        }
        features
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_BYTES];
        config[4..8].copy_from_slice(&self.max_ports.to_le_bytes());
        config
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) {
        if offset == CONFIG_EMERGENCY
            && self.emergency_write
            && let Some(port) = self.port(0)
            && port.is_console
        {
            port.emergency(bytes[0]);
        }
    }

    fn connect(&self, link: &Arc<Link>) {
        let _ = self.link.set(link.clone());
    }

    fn start(&self, _features: u64) {
        if !self.is_multiport()
            && let Some(port) = self.port(0)
        {
            port.guest_opened(true);
        }
    }

    fn notify(&self, queue: usize) {
        let multiport = self.is_multiport();
        match queue {
            CONTROL_TO_DRIVER if multiport => self.flush(&mut self.control.lock()),
            CONTROL_FROM_DRIVER if multiport => self.take_messages(),
            _ => {
                let pair = (queue / 2) as u32;
                let id = if pair == 0 { 0 } else { pair - 1 };
                let Some(port) = self.port(id) else { return };
                if queue.is_multiple_of(2) { port.room_for_input() } else { port.pump() }
            }
        }
    }

    fn reset(&self) {
        *self.control.lock() = Control::default();
        self.all().iter().for_each(|port| port.reset());
    }

    fn pause(&self) {
        self.all().iter().for_each(|port| port.set_paused(true));
    }

    fn resume(&self) {
        self.all().iter().for_each(|port| port.set_paused(false));
    }

    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        self.me.upgrade().map(|bus| bus as Arc<dyn Bus>).into_iter().collect()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Bus for SerialBus {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn kind(&self) -> BusKind {
        BusKind::VirtioSerial
    }
    fn hotplug(&self) -> Hotplug {
        Hotplug::AtOnce
    }
    fn is_full(&self) -> bool {
        self.ports.lock().len() >= self.max_ports as usize
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
