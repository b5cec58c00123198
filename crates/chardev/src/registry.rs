use crate::hub::Hub;
use crate::mux::{Escape, Mux};
use crate::port::Port;
use crate::{Backend, file, pty, ringbuf, serial, socket, stdio, udp};
use base::fd::SetFd;
use base::{Failure, Mutex, Result, bail, fail};
use rustix::fs::{Mode, OFlags};
use spec::{Chardev, ChardevKind};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// The kinds that can be made, as `query-chardev-backends` lists them.
pub const KINDS: [&str; 12] =
    ["null", "socket", "udp", "ringbuf", "memory", "file", "stdio", "pty", "pipe", "mux", "serial", "tty"];

/// What character devices need from the program around them.
pub trait Host: Send + Sync {
    /// Gives away the descriptor of `fd=<name>`: an inherited number, or a name given by `getfd`.
    fn take_fd(&self, name: &str) -> Result<OwnedFd>;

    /// Opens `/dev/fdset/<set>`.
    fn open_fdset(&self, set: u64, flags: OFlags) -> Result<SetFd, rustix::io::Errno>;

    /// Something for the person at the terminal ("waiting for connection on ...").
    fn info(&self, text: &str);

    /// A multiplexer's escape sequence that concerns the whole program.
    fn escape(&self, what: Escape);
}

/// A line of `query-chardev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    pub label: String,
    pub filename: String,
    pub frontend_open: bool,
}

/// What `chardev-add` returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// The terminal's path, for a pty.
    pub pty: Option<String>,
}

/// A made back end.
pub(crate) struct Made {
    pub backend: Box<dyn Backend>,
    pub tasks: Vec<JoinHandle<()>>,
    pub pty: Option<String>,
}

impl Made {
    pub fn new(backend: impl Backend + 'static) -> Self {
        Made { backend: Box::new(backend), tasks: Vec::new(), pty: None }
    }
}

pub(crate) struct Device {
    pub id: String,
    pub hub: Arc<Hub>,
    pub backend: Box<dyn Backend>,
    log: Option<Mutex<File>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Device {
    pub fn write(&self, bytes: &[u8]) -> usize {
        let taken = self.backend.write(bytes);
        if let Some(log) = &self.log {
            // A log that cannot be written must not stop the guest.
            let _ = log.lock().write_all(&bytes[..taken]);
        }
        taken
    }

    fn info(&self) -> Info {
        Info {
            label: self.id.clone(),
            filename: self.backend.filename(),
            frontend_open: self.hub.front_open(),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.tasks.lock().iter().for_each(|t| t.abort());
    }
}

/// All character devices of a virtual machine, in the order of their making. Clones are the
/// same set.
#[derive(Clone)]
pub struct Chardevs(Arc<Shared>);

struct Shared {
    runtime: Handle,
    host: Arc<dyn Host>,
    table: Mutex<Vec<(String, Option<Arc<Device>>)>>,
    stdio_taken: Arc<AtomicBool>,
    escape: AtomicU8,
}

impl Chardevs {
    /// Back ends will run on `runtime`.
    pub fn new(runtime: Handle, host: Arc<dyn Host>) -> Self {
        Chardevs(Arc::new(Shared {
            runtime,
            host,
            table: Mutex::default(),
            stdio_taken: Arc::default(),
            escape: AtomicU8::new(1),
        }))
    }

    /// The character that introduces a multiplexer's commands (`-echr`; Ctrl-A to begin with),
    /// for multiplexers made from now on.
    pub fn set_escape(&self, escape: u8) {
        self.0.escape.store(escape, Ordering::Relaxed);
    }

    /// Makes a character device. Returns when it is usable: listening, or connected, or (a
    /// server that waits) when its first client is there.
    pub async fn add(&self, spec: &Chardev) -> Result<Added> {
        if !spec::id_wellformed(&spec.id) && !spec.id.starts_with("compat_") {
            return Err(Failure::expects("id", "an identifier"));
        }
        if !spec.mux {
            return self.add_one(spec).await;
        }
        let base = Chardev { id: format!("{}-base", spec.id), mux: false, ..spec.clone() };
        let added = self.add_one(&base).await?;
        let mux = Chardev::new(&spec.id, ChardevKind::Mux { chardev: base.id.clone() });
        match self.add_one(&mux).await {
            Ok(_) => Ok(added),
            Err(failure) => {
                self.remove(&base.id).await?;
                Err(failure)
            }
        }
    }

    async fn add_one(&self, spec: &Chardev) -> Result<Added> {
        {
            let mut table = self.0.table.lock();
            if table.iter().any(|(id, _)| *id == spec.id) {
                bail!("Chardev '{}' already exists", spec.id);
            }
            table.push((spec.id.clone(), None));
        }
        let place = Place { shared: &self.0, id: &spec.id };
        let hub = Hub::new();
        let log = match &spec.log {
            Some(log) => Some(Mutex::new(self.0.open_log(log)?)),
            None => None,
        };
        let made = self.make(&spec.kind, &hub).await?;
        let device =
            Device { id: spec.id.clone(), hub, backend: made.backend, log, tasks: Mutex::new(made.tasks) };
        place.fill(Arc::new(device));
        Ok(Added { pty: made.pty })
    }

    async fn make(&self, kind: &ChardevKind, hub: &Arc<Hub>) -> Result<Made> {
        let shared = &self.0;
        match kind {
            ChardevKind::Null => Ok(Made::new(file::Null)),
            ChardevKind::File { out, input, append } => {
                file::open_file(shared.opener(), hub, (out, input.as_deref(), *append))
            }
            ChardevKind::Pipe { path } => file::open_pipe(shared.opener(), hub, path),
            ChardevKind::Socket(socket) => socket::open(&shared.runtime, &*shared.host, hub, socket).await,
            ChardevKind::Udp { remote, local } => {
                udp::open(&shared.runtime, hub, remote, local.as_ref()).await
            }
            ChardevKind::Pty => pty::open(&shared.runtime, hub),
            ChardevKind::Stdio { signal } => {
                stdio::open(&shared.runtime, hub, *signal, shared.stdio_taken.clone())
            }
            ChardevKind::Ringbuf { size } => ringbuf::open(hub, *size),
            ChardevKind::Serial { path } => serial::open(&shared.runtime, hub, path),
            ChardevKind::Mux { chardev } => {
                let missing = |_| fail!("mux: base chardev {chardev} not found");
                if self.find(chardev).map_err(missing)?.backend.max_fronts() > 1 {
                    bail!("mux: base chardev {chardev} is a multiplexer itself");
                }
                let base = self.claim(chardev)?;
                let escape = shared.escape.load(Ordering::Relaxed);
                Ok(Mux::over(base, &shared.runtime, hub, shared.host.clone(), escape))
            }
        }
    }

    fn find(&self, id: &str) -> Result<Arc<Device>> {
        let table = self.0.table.lock();
        let found = table.iter().find(|(name, _)| name == id).and_then(|(_, device)| device.clone());
        found.ok_or_else(|| fail!("Chardev '{id}' not found"))
    }

    pub fn exists(&self, id: &str) -> bool {
        self.find(id).is_ok()
    }

    /// Reserves a character device for a front end, which then connects through the port.
    pub fn claim(&self, id: &str) -> Result<Port> {
        let device = self.find(id)?;
        let tag = device.hub.claim(device.backend.max_fronts());
        let tag = tag.ok_or_else(|| fail!("chardev '{id}' is in use"))?;
        Ok(Port::new(device, tag, self.0.runtime.clone()))
    }

    /// Closes a character device that no front end holds. Its descriptors are closed when this
    /// returns.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let device = self.find(id)?;
        if device.hub.is_claimed() {
            bail!("Chardev '{id}' is busy");
        }
        self.0.table.lock().retain(|(name, _)| name != id);
        let tasks = std::mem::take(&mut *device.tasks.lock());
        drop(device);
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        Ok(())
    }

    pub fn query(&self) -> Vec<Info> {
        self.0.table.lock().iter().filter_map(|(_, d)| d.as_ref()).map(|d| d.info()).collect()
    }

    /// The terminal path of a pty, the address of a socket: as [`Chardevs::query`] tells it.
    pub fn filename(&self, id: &str) -> Result<String> {
        Ok(self.find(id)?.backend.filename())
    }

    /// Appends to a ring buffer, dropping the oldest bytes when full.
    pub fn ringbuf_write(&self, id: &str, bytes: &[u8]) -> Result<()> {
        let device = self.find(id).map_err(|_| fail!("Device '{id}' not found"))?;
        let ring = device.backend.ringbuf().ok_or_else(|| fail!("{id} is not a ringbuf device"))?;
        ring.append(bytes);
        Ok(())
    }

    /// Takes up to `size` bytes out of a ring buffer. With `text` a character is never cut in
    /// two, and the rest of one whose beginning was overwritten is dropped.
    pub fn ringbuf_read(&self, id: &str, size: u64, text: bool) -> Result<Vec<u8>> {
        let device = self.find(id).map_err(|_| fail!("Device '{id}' not found"))?;
        let ring = device.backend.ringbuf().ok_or_else(|| fail!("{id} is not a ringbuf device"))?;
        if size == 0 {
            bail!("size must be greater than zero");
        }
        Ok(ring.take(usize::try_from(size).unwrap_or(usize::MAX), text))
    }

    /// Waits until all output has left, at most `limit`. Returns whether it has.
    pub async fn drain(&self, limit: Duration) -> bool {
        let all = || self.0.table.lock().iter().filter_map(|(_, d)| d.as_ref()).all(|d| d.backend.drained());
        let wait = async {
            while !all() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// Closes everything, busy or not: terminals get their settings back, socket paths go away.
    pub async fn close_all(&self) {
        let table = std::mem::take(&mut *self.0.table.lock());
        for (_, device) in table.iter().rev() {
            let Some(device) = device else { continue };
            let tasks = std::mem::take(&mut *device.tasks.lock());
            for task in tasks {
                task.abort();
                let _ = task.await;
            }
            device.backend.close();
        }
    }
}

impl Shared {
    fn opener(&self) -> file::Opener<'_> {
        file::Opener { host: &*self.host, runtime: &self.runtime }
    }

    fn open_log(&self, log: &spec::chardev::ChardevLog) -> Result<File> {
        let mode = if log.append { OFlags::APPEND } else { OFlags::TRUNC };
        let flags = OFlags::WRONLY | OFlags::CREATE | mode;
        let fd = self.opener().open(&log.file, flags, Mode::from_raw_mode(0o666))?;
        let file = File::from(fd);
        if !log.append {
            // A descriptor from a set was not truncated by opening.
            let _ = file.set_len(0);
        }
        Ok(file)
    }
}

/// A name reserved in the table while its back end is being made.
struct Place<'a> {
    shared: &'a Shared,
    id: &'a str,
}

impl Place<'_> {
    fn fill(self, device: Arc<Device>) {
        let mut table = self.shared.table.lock();
        if let Some(entry) = table.iter_mut().find(|(id, _)| id == self.id) {
            entry.1 = Some(device);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.table.lock().retain(|(id, device)| id != self.id || device.is_some());
    }
}
