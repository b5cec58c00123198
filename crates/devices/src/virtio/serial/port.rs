use super::{SerialBus, receive_queue};
use crate::virtio::Chain;
use base::notice::Notices;
use base::{Mutex, Result, fail};
use chardev::{Event, FrontEnd};
use device::{BusKind, Device, Model, Notice, Property, PropertyKind, Props, ResetKind, Wiring};
use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

const PROPERTIES: &[Property] = &[
    Property::unset("chardev", PropertyKind::Chardev, "ID of a chardev to use as a backend"),
    Property::new(
        "nr",
        PropertyKind::U32,
        "4294967295",
        "Number of the port; the first free one if not given",
    ),
    Property::unset("name", PropertyKind::Str, "Name that the guest finds the port by"),
];

const fn model(name: &'static str, create: fn(&Props, &mut Wiring<'_>) -> Result<Arc<dyn Device>>) -> Model {
    Model {
        name,
        aliases: &[],
        description: "",
        bus: BusKind::VirtioSerial,
        parent: "virtio-serial-port",
        properties: &[PROPERTIES],
        user_creatable: true,
        hotpluggable: true,
        create,
    }
}

pub static PORT: Model = model("virtserialport", |props, wiring| create(&PORT, false, props, wiring));
pub static CONSOLE: Model = model("virtconsole", |props, wiring| create(&CONSOLE, true, props, wiring));

/// Input held for the guest.
const HELD: usize = 4096;
/// Output read from one buffer at a time.
const CHUNK: u64 = 16 << 10;

/// One port: a pair of queues and a character device.
pub struct Port {
    bus: Weak<SerialBus>,
    pub id: u32,
    pub is_console: bool,
    pub name: String,
    device_id: Option<String>,
    notices: Notices,
    chardev: Option<chardev::Port>,
    state: Mutex<State>,
    output: Mutex<Output>,
}

#[derive(Default)]
struct State {
    guest_open: bool,
    host_open: bool,
    paused: bool,
    held: VecDeque<u8>,
}

#[derive(Default)]
struct Output {
    /// A buffer of which this many bytes were taken.
    stalled: Option<(Chain, u64)>,
}

/// The device of the machine.
struct PortDevice {
    model: &'static Model,
    bus: Arc<SerialBus>,
    port: Arc<Port>,
}

fn create(
    model: &'static Model,
    is_console: bool,
    props: &Props,
    wiring: &mut Wiring<'_>,
) -> Result<Arc<dyn Device>> {
    let bus: Arc<SerialBus> = wiring.bus()?;
    let wanted = u32::try_from(props.u64("nr")).map_err(|_| fail!("port number out of range"))?;
    let id = bus.choose_id((wanted != u32::MAX).then_some(wanted), is_console)?;
    let chardev = wiring.chardev(props, "chardev")?;
    let port = Arc::new(Port {
        bus: Arc::downgrade(&bus),
        id,
        is_console,
        name: props.str("name").unwrap_or_default().to_string(),
        device_id: wiring.id.map(str::to_string),
        notices: bus.notices.clone(),
        // A console is always open, another port when its other side is there.
        state: Mutex::new(State { host_open: is_console, ..State::default() }),
        output: Mutex::default(),
        chardev,
    });
    bus.add(port.clone());
    if let Some(chardev) = &port.chardev {
        if is_console {
            chardev.connect(&port);
        } else {
            chardev.connect_closed(&port);
        }
    }
    Ok(Arc::new(PortDevice { model, bus, port }))
}

impl Port {
    pub fn is_host_open(&self) -> bool {
        self.state.lock().host_open
    }

    /// The guest opened or closed its side.
    pub fn guest_opened(&self, open: bool) {
        let before = std::mem::replace(&mut self.state.lock().guest_open, open);
        if before == open {
            return;
        }
        if !open {
            self.state.lock().held.clear();
        }
        if let Some(chardev) = self.chardev.as_ref().filter(|_| !self.is_console) {
            chardev.set_open(open);
        }
        if let Some(id) = self.device_id.clone() {
            self.notices.send(Notice::PortChanged { id, open });
        }
        if open {
            self.room_for_input();
        }
    }

    pub fn reset(&self) {
        self.output.lock().stalled = None;
        self.state.lock().held.clear();
        self.guest_opened(false);
    }

    pub fn set_paused(&self, paused: bool) {
        self.state.lock().paused = paused;
        if !paused {
            self.pump();
            self.room_for_input();
        }
    }

    /// A byte that the guest writes past the queues.
    pub fn emergency(&self, byte: u8) {
        if let Some(chardev) = &self.chardev {
            chardev.write(&[byte]);
        }
    }

    /// The guest may have made room: hands over what is held, then asks for more.
    pub fn room_for_input(&self) {
        self.deliver();
        if let Some(chardev) = &self.chardev {
            chardev.accept_input();
        }
    }

    fn deliver(&self) {
        let Some(bus) = self.bus.upgrade() else { return };
        let Some(link) = bus.link.get() else { return };
        let mut state = self.state.lock();
        while !state.held.is_empty() && !state.paused {
            let Some(chain) = link.pop(receive_queue(self.id)) else { return };
            let room = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX);
            let len = state.held.len().min(room);
            let bytes: Vec<u8> = state.held.drain(..len).collect();
            let stored = chain.write(link.dma(), 0, &bytes);
            link.push(&chain, if stored.is_some() { len as u32 } else { 0 });
        }
    }

    /// Moves the guest's output to the character device until one of them has enough.
    pub fn pump(&self) {
        let Some(bus) = self.bus.upgrade() else { return };
        let Some(link) = bus.link.get() else { return };
        let mut output = self.output.lock();
        loop {
            if self.state.lock().paused {
                return;
            }
            let next = output.stalled.take().or_else(|| Some((link.pop(receive_queue(self.id) + 1)?, 0)));
            let Some((chain, mut done)) = next else { return };
            let len = chain.readable_len();
            while done < len {
                let mut bytes = vec![0; (len - done).min(CHUNK) as usize];
                if chain.read(link.dma(), done, &mut bytes).is_none() {
                    break;
                }
                let taken = self.chardev.as_ref().map_or(bytes.len(), |chardev| chardev.write(&bytes));
                done += taken as u64;
                if taken < bytes.len() {
                    output.stalled = Some((chain, done));
                    return;
                }
            }
            link.push(&chain, 0);
        }
    }
}

impl FrontEnd for Port {
    fn can_receive(&self) -> usize {
        let Some(bus) = self.bus.upgrade() else { return 0 };
        let Some(link) = bus.link.get() else { return 0 };
        let ready = link.is_live() && link.has_available(receive_queue(self.id));
        let state = self.state.lock();
        if ready && state.guest_open && !state.paused { HELD.saturating_sub(state.held.len()) } else { 0 }
    }

    fn receive(&self, bytes: &[u8], _fds: Vec<OwnedFd>) {
        self.state.lock().held.extend(bytes);
        self.deliver();
    }

    fn event(&self, event: Event) {
        let open = match event {
            Event::Opened => true,
            Event::Closed => false,
            _ => return,
        };
        if self.is_console {
            return;
        }
        let before = std::mem::replace(&mut self.state.lock().host_open, open);
        if before != open
            && let Some(bus) = self.bus.upgrade()
        {
            bus.host_opened(self.id, open);
        }
    }

    fn writable(&self) {
        self.pump();
    }
}

impl Device for PortDevice {
    fn model(&self) -> &'static Model {
        self.model
    }
    /// The bus resets its ports.
    fn reset(&self, _kind: ResetKind) {}
    fn unplug(&self) {
        self.bus.remove(self.port.id);
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
