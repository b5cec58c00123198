//! A machine without CPU for tests of device models: spaces, clocks by hand, recorded lines.

use base::clock::{Clock, Kind};
use base::notice::Notices;
use block::{Graph, Options, Setup};
use device::{
    Backends, Bus, BusNumbers, Clocks, Device, IrqLine, Model, MsiMessage, MsiSink, Power, Props, ResetCause,
    Services, ShutdownCause, Wiring,
};
use memory::{AddressSpace, RamBlock, SpaceKind};
use serde_json::{Map, Value};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub struct Recorder {
    pub messages: Mutex<Vec<MsiMessage>>,
    pub asked: Mutex<Vec<String>>,
    pub ejected: Mutex<Vec<Arc<dyn Device>>>,
    pub objects: Mutex<BTreeMap<String, Arc<dyn Any + Send + Sync>>>,
    graph: Mutex<Option<Arc<Graph>>>,
    chardevs: Mutex<Option<(chardev::Chardevs, tokio::runtime::Handle)>>,
}

struct NoHost;

impl chardev::Host for NoHost {
    fn take_fd(&self, name: &str) -> base::Result<std::os::fd::OwnedFd> {
        base::bail!("no descriptor '{name}'")
    }
    fn open_fdset(&self, _: u64, _: rustix::fs::OFlags) -> Result<base::fd::SetFd, rustix::io::Errno> {
        Err(rustix::io::Errno::BADF)
    }
    fn info(&self, _: &str) {}
    fn escape(&self, _: chardev::Escape) {}
}

impl MsiSink for Recorder {
    fn send(&self, message: MsiMessage) {
        self.messages.lock().unwrap().push(message);
    }
}

impl Recorder {
    fn graph(&self) -> Arc<Graph> {
        let make = || Graph::new(Notices::new(), Clock::new(Kind::Realtime), base::fd::FdSets::new());
        self.graph.lock().unwrap().get_or_insert_with(make).clone()
    }

    /// Character devices on a runtime of their own.
    pub fn chardevs(&self) -> chardev::Chardevs {
        let mut slot = self.chardevs.lock().unwrap();
        let make = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let handle = runtime.handle().clone();
            std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
            (chardev::Chardevs::new(handle.clone(), Arc::new(NoHost)), handle)
        };
        slot.get_or_insert_with(make).0.clone()
    }

    /// Makes a ring buffer as a character device.
    pub fn add_ringbuf(&self, id: &str) -> chardev::Chardevs {
        let chardevs = self.chardevs();
        let handle = self.chardevs.lock().unwrap().as_ref().unwrap().1.clone();
        let (tx, rx) = std::sync::mpsc::channel();
        let (at, kind) = (chardevs.clone(), spec::ChardevKind::Ringbuf { size: 4096 });
        let device = spec::Chardev::new(id, kind);
        handle.spawn(async move { tx.send(at.add(&device).await).unwrap() });
        rx.recv().unwrap().unwrap();
        chardevs
    }

    fn note(&self, what: &str) {
        self.asked.lock().unwrap().push(what.to_string());
    }
}

impl Power for Recorder {
    fn request_reset(&self, _: ResetCause) {
        self.note("reset");
    }
    fn request_shutdown(&self, _: ShutdownCause) {
        self.note("shutdown");
    }
    fn request_suspend(&self) {
        self.note("suspend");
    }
    fn guest_panicked(&self, loaded: bool) {
        self.note(if loaded { "crash loaded" } else { "panicked" });
    }
    fn watchdog_expired(&self) {
        self.note("watchdog");
    }
    fn exit(&self, status: i32) {
        self.note(&format!("exit {status}"));
    }
    fn set_a20(&self, enabled: bool) {
        self.note(if enabled { "a20 on" } else { "a20 off" });
    }
    fn a20(&self) -> bool {
        true
    }
    fn inject_nmi(&self) {}
    fn ejected(&self, device: Arc<dyn Device>) {
        self.ejected.lock().unwrap().push(device);
    }
}

impl Backends for Recorder {
    fn chardev(&self, name: &str) -> base::Result<chardev::Port> {
        self.chardevs().claim(name)
    }
    fn drive(&self, name: &str, _: &str) -> base::Result<block::Backend> {
        let graph = self.graph();
        graph.device_drive(name)?.ok_or_else(|| base::fail!("can't find value '{name}'"))
    }
    fn empty_drive(&self) -> base::Result<block::Backend> {
        block::Backend::new(&self.graph(), Setup::default())
    }
    fn object(&self, id: &str) -> Option<Arc<dyn Any + Send + Sync>> {
        self.objects.lock().unwrap().get(id).cloned()
    }
}

pub struct Testbed {
    pub services: Services,
    pub recorder: Arc<Recorder>,
    pub ram: RamBlock,
    pub levels: Arc<Mutex<[bool; 24]>>,
}

impl Testbed {
    /// 16 MiB of RAM at 0.
    pub fn new() -> Self {
        let recorder = Arc::new(Recorder::default());
        let levels = Arc::new(Mutex::new([false; 24]));
        let line = |irq: usize| {
            let levels = levels.clone();
            IrqLine::new(move |level| levels.lock().unwrap()[irq] = level)
        };
        let memory = AddressSpace::new(SpaceKind::Memory);
        let ram = RamBlock::new("pc.ram", 16 << 20).unwrap();
        memory.edit(|edit| edit.ram(ram, 0));
        let clock = || Clock::new(Kind::Manual);
        let services = Services {
            memory,
            ports: AddressSpace::new(SpaceKind::Port),
            clocks: Clocks { virtual_: clock(), realtime: clock(), host: clock() },
            irqs: (0..24).map(line).collect(),
            msi: recorder.clone(),
            power: recorder.clone(),
            notices: Notices::new(),
            backends: recorder.clone(),
        };
        Testbed { services, recorder, ram, levels }
    }

    pub fn try_make(
        &self,
        model: &'static Model,
        bus: Arc<dyn Bus>,
        given: &[(&str, &str)],
    ) -> base::Result<Arc<dyn Device>> {
        let given: Map<String, Value> =
            given.iter().map(|&(name, value)| (name.to_string(), value.into())).collect();
        let props = Props::check(model, &given)?;
        let mut wiring = Wiring {
            services: &self.services,
            bus,
            bus_numbers: &BusNumbers::default(),
            id: Some("dev0"),
            qom_path: "/machine/peripheral/dev0".into(),
            hotplugged: false,
            outputs: Default::default(),
        };
        let device = (model.create)(&props, &mut wiring)?;
        if let Some(function) = device.pci() {
            function.core().attach(device.clone());
        }
        device.reset(device::ResetKind::Cold);
        Ok(device)
    }

    /// A drive of that name over a raw image file with this content.
    pub fn drive(&self, name: &str, content: &[u8]) -> (block::Backend, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let options = serde_json::json!({"driver": "raw", "node-name": format!("{name}-node"),
            "file": {"driver": "file", "filename": file.path()}});
        (self.drive_over(name, options), file)
    }

    /// A drive over a node with these options; without medium if they are null.
    pub fn drive_over(&self, name: &str, options: Value) -> block::Backend {
        let graph = self.recorder.graph();
        let backend = block::Backend::new(&graph, Setup { name: name.into(), ..Setup::default() }).unwrap();
        if !options.is_null() {
            self.insert(&backend, options);
        }
        backend
    }

    /// Puts a medium into a drive.
    pub fn insert(&self, backend: &block::Backend, options: Value) {
        let graph = self.recorder.graph();
        let at = graph.clone();
        let node = graph.block_on(async move { at.add(Options::json(options)).await }).unwrap();
        backend.insert(&node).unwrap();
    }

    pub fn make(&self, model: &'static Model, bus: Arc<dyn Bus>, given: &[(&str, &str)]) -> Arc<dyn Device> {
        self.try_make(model, bus, given).unwrap()
    }

    pub fn level(&self, irq: usize) -> bool {
        self.levels.lock().unwrap()[irq]
    }

    pub fn port_in(&self, port: u64, size: u8) -> u64 {
        self.services.ports.load(port, size)
    }

    pub fn port_out(&self, port: u64, size: u8, value: u64) {
        self.services.ports.store(port, size, value);
    }
}

/// A small xorshift generator for fuzz loops.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
