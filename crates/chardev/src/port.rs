use crate::registry::Device;
use crate::{Event, FrontEnd, Params};
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;

/// A front end's hold on its character device. Clones are the same hold; the device is free
/// again when the last is dropped. Every call returns at once, from any thread.
#[derive(Clone)]
pub struct Port(Arc<Hold>);

struct Hold {
    device: Arc<Device>,
    tag: u32,
    runtime: Handle,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.device.hub.release(self.tag);
    }
}

impl Port {
    pub(crate) fn new(device: Arc<Device>, tag: u32, runtime: Handle) -> Self {
        Port(Arc::new(Hold { device, tag, runtime }))
    }

    /// The id of the character device.
    pub fn label(&self) -> &str {
        &self.0.device.id
    }

    /// Attaches the front end. It is held weakly: the front end owns its port, not the reverse.
    /// When the back end is open already, [`Event::Opened`] follows soon.
    pub fn connect(&self, front: &Arc<impl FrontEnd + 'static>) {
        let weak: Weak<dyn FrontEnd> = Arc::downgrade(front) as Weak<dyn FrontEnd>;
        self.attach(weak, true);
    }

    /// As [`Port::connect`], but on a multiplexer a front end that is there already keeps the
    /// input.
    pub fn connect_behind(&self, front: &Arc<impl FrontEnd + 'static>) {
        let weak: Weak<dyn FrontEnd> = Arc::downgrade(front) as Weak<dyn FrontEnd>;
        self.join(weak, true, false);
    }

    /// As [`Port::connect`], for a front end that the guest has yet to open ([`Port::set_open`]).
    pub fn connect_closed(&self, front: &Arc<impl FrontEnd + 'static>) {
        let weak: Weak<dyn FrontEnd> = Arc::downgrade(front) as Weak<dyn FrontEnd>;
        self.attach(weak, false);
    }

    /// As [`Port::connect`] with the open state given, for a trait object held weakly.
    pub fn attach(&self, front: Weak<dyn FrontEnd>, open: bool) {
        self.join(front, open, open);
    }

    fn join(&self, front: Weak<dyn FrontEnd>, open: bool, take_focus: bool) {
        let hold = &self.0;
        let mux = hold.device.backend.max_fronts() > 1;
        hold.device.hub.connect(hold.tag, front, open, mux && take_focus);
        let device = hold.device.clone();
        hold.runtime.spawn(async move {
            device.hub.announce();
            device.backend.accept_input();
        });
    }

    /// Output. Returns how many bytes were taken; after a short write [`FrontEnd::writable`]
    /// tells when there is room again. A socket without a client takes and drops everything.
    pub fn write(&self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let device = &self.0.device;
        // Marked before the attempt, so that room made meanwhile is not missed.
        let mut taken = device.write(bytes);
        if taken < bytes.len() {
            device.hub.set_blocked(self.0.tag);
            taken += device.write(&bytes[taken..]);
        }
        taken
    }

    /// The front end has room for input again.
    pub fn accept_input(&self) {
        self.0.device.hub.room.notify_one();
        self.0.device.backend.accept_input();
    }

    /// Whether the guest side is open, as `query-chardev` tells it.
    pub fn set_open(&self, open: bool) {
        self.0.device.hub.set_front_open(self.0.tag, open);
    }

    /// Whether the back end is there (a client is connected).
    pub fn is_open(&self) -> bool {
        self.0.device.hub.is_open()
    }

    pub fn set_params(&self, params: Params) {
        self.0.device.backend.set_params(params);
    }

    pub fn set_break(&self, on: bool) {
        self.0.device.backend.set_break(on);
    }

    /// Whether a terminal echoes what is typed (a monitor with line editing wants that off).
    pub fn set_echo(&self, on: bool) {
        self.0.device.backend.set_echo(on);
    }

    /// Whether all output has left for the other side.
    pub fn drained(&self) -> bool {
        self.0.device.backend.drained()
    }
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Port({})", self.0.device.id)
    }
}

const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Port>();
    let _ = Event::Opened;
};
