//! The NBD server: listener, exports, clients.

use super::session::{self, Stream};
use crate::backend::Backend;
use crate::bitmap::DirtyBitmap;
use crate::graph::Graph;
use crate::notice::Notice;
use base::{Failure, Mutex, Result, bail, fail};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Where to listen.
pub enum Listen {
    /// Host ("" is all), first and last port to try, whether IPv4 and IPv6 addresses will do.
    Tcp {
        host: String,
        port: u16,
        to: u16,
        family: (bool, bool),
    },
    Unix(String),
    /// A listening socket that was passed in.
    TcpSocket(std::net::TcpListener),
    UnixSocket(std::os::unix::net::UnixListener),
}

/// With which credentials clients are let in.
pub struct Tls {
    pub credentials: Arc<tls::Credentials>,
    /// Who may come in; without it, everybody with a certificate of the CA.
    pub authorise: Option<Arc<dyn tls::Authorise>>,
}

/// How a disk is exported.
pub struct ExportSetup {
    /// The export's id; often the same as `name`.
    pub id: String,
    pub name: String,
    pub description: Option<String>,
    pub backend: Backend,
    pub writable: bool,
    /// Shown as `qemu:dirty-bitmap:NAME`.
    pub bitmaps: Vec<Arc<DirtyBitmap>>,
    /// Show `qemu:allocation-depth`.
    pub depth: bool,
    /// The back end was made for this export and goes with it.
    pub owns_backend: bool,
    /// Every write is on stable storage when it is answered.
    pub writethrough: bool,
    /// Where the back end's requests run, kept until the export has gone.
    pub iothread: base::Mutex<Option<Arc<crate::graph::IoThread>>>,
}

/// An exported disk.
pub struct Export {
    pub setup: ExportSetup,
    clients: AtomicUsize,
    /// Tells sessions to end.
    pub(super) stop: watch::Sender<bool>,
}

impl Export {
    pub fn is_writable(&self) -> bool {
        self.setup.writable && !self.setup.backend.is_read_only()
    }

    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Acquire)
    }

    /// It takes no new clients and goes when the last one has.
    pub fn is_shutting_down(&self) -> bool {
        *self.stop.borrow()
    }

    fn answers_to(&self, name: &str) -> bool {
        self.setup.name == name && !self.is_shutting_down()
    }
}

/// A client's hold on its export: while it lasts, the export is in use.
pub(super) struct Seat(Arc<Export>);

impl std::ops::Deref for Seat {
    type Target = Arc<Export>;

    fn deref(&self) -> &Arc<Export> {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A running server. It ends by [`Server::stop`].
pub struct Server {
    graph: std::sync::Weak<Graph>,
    exports: Mutex<Vec<Arc<Export>>>,
    stop: watch::Sender<bool>,
    /// As many as there may be clients.
    places: Arc<Semaphore>,
    tls: Option<Tls>,
    /// "inet" with host and port, or "unix" with its path.
    address: Mutex<String>,
    unix_path: Option<String>,
}

impl Server {
    /// Starts listening. `limit` is how many clients may be connected, 0 for any number;
    /// with `tls`, clients have to use TLS.
    pub async fn start(
        graph: &Arc<Graph>,
        listen: Listen,
        limit: usize,
        tls: Option<Tls>,
    ) -> Result<Arc<Server>> {
        if let Some(tls) = &tls {
            tls.credentials.expect(tls::Endpoint::Server)?;
        }
        if graph.exports.server.lock().is_some() {
            bail!("NBD server already running");
        }
        let (unix_path, listener) = bind(listen).await?;
        let server = Arc::new(Server {
            graph: Arc::downgrade(graph),
            exports: Mutex::default(),
            stop: watch::channel(false).0,
            places: Arc::new(Semaphore::new(if limit == 0 { Semaphore::MAX_PERMITS } else { limit })),
            tls,
            address: Mutex::new(listener.address()),
            unix_path,
        });
        let handle = graph.main_thread().handle().clone();
        let (accepting, mut stopped) = (Arc::downgrade(&server), server.stop.subscribe());
        let places = server.places.clone();
        handle.spawn(async move {
            loop {
                // Without a free place clients wait in the listener's queue.
                let next = async {
                    let place = places.clone().acquire_owned().await.ok();
                    (place, listener.accept().await)
                };
                let (place, stream) = tokio::select! {
                    next = next => next,
                    _ = stopped.changed() => return,
                };
                let Some(server) = accepting.upgrade() else { return };
                match stream {
                    Ok(stream) => server.welcome(stream, place),
                    // Out of descriptors: wait for some to become free.
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                }
            }
        });
        let mut slot = graph.exports.server.lock();
        if slot.is_some() {
            bail!("NBD server already running");
        }
        *slot = Some(server.clone());
        Ok(server)
    }

    /// "host:port" or the socket's path.
    pub fn address(&self) -> String {
        self.address.lock().clone()
    }

    pub(super) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Serves one client over a stream that is there already, until it leaves.
    pub async fn attend(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let stop = self.stop.subscribe();
        // Whatever a client does wrong ends its own session only.
        let _ = session::serve(self, Box::new(stream), stop).await;
    }

    fn welcome(self: &Arc<Self>, stream: Stream, place: Option<OwnedSemaphorePermit>) {
        let server = self.clone();
        tokio::spawn(async move {
            server.attend(stream).await;
            drop(place);
        });
    }

    /// Adds an export.
    pub fn add(&self, setup: ExportSetup) -> Result<Arc<Export>> {
        let mut exports = self.exports.lock();
        if exports.iter().any(|export| export.setup.id == setup.id) {
            bail!("Block export id '{}' is already in use", setup.id);
        }
        if exports.iter().any(|export| export.answers_to(&setup.name)) {
            bail!("NBD server already has export named '{}'", setup.name);
        }
        if setup.name.len() > crate::protocols::nbd::wire::MAX_NAME {
            bail!("export name '{}' too long", setup.name);
        }
        if setup.description.as_ref().is_some_and(|text| text.len() > crate::protocols::nbd::wire::MAX_NAME) {
            bail!("description '{}' too long", setup.description.unwrap_or_default());
        }
        setup.bitmaps.iter().for_each(|bitmap| bitmap.set_busy(true));
        let export = Arc::new(Export { setup, clients: AtomicUsize::new(0), stop: watch::channel(false).0 });
        exports.push(export.clone());
        Ok(export)
    }

    /// All exports, also those that are shutting down.
    pub fn exports(&self) -> Vec<Arc<Export>> {
        self.exports.lock().clone()
    }

    /// What clients get by that name.
    pub fn find(&self, name: &str) -> Option<Arc<Export>> {
        self.exports.lock().iter().find(|export| export.answers_to(name)).cloned()
    }

    /// The same, now in use. A client has it before it is told that it may send requests.
    pub(super) fn seat(&self, name: &str) -> Option<Seat> {
        let exports = self.exports.lock();
        let export = exports.iter().find(|export| export.answers_to(name))?.clone();
        export.clients.fetch_add(1, Ordering::AcqRel);
        Some(Seat(export))
    }

    /// Begins to take an export away, `force` although clients use it; [`Server::close`] ends it.
    pub fn shut(&self, id: &str, force: bool) -> Result<Arc<Export>> {
        let exports = self.exports.lock();
        let found = exports.iter().find(|export| export.setup.id == id);
        let Some(export) = found else { bail!("Export '{id}' is not found") };
        if export.is_shutting_down() {
            bail!("Export '{id}' is already shutting down");
        }
        if export.clients() > 0 && !force {
            return Err(Failure::new(format!("export '{id}' still in use"))
                .hint("Use mode='hard' to force client disconnect"));
        }
        export.stop.send_replace(true);
        Ok(export.clone())
    }

    /// Takes an export away: its clients are disconnected, their requests have ended.
    pub async fn close(&self, export: &Arc<Export>) {
        {
            // Who is being seated is counted before the mark is set, and waited for.
            let _exports = self.exports.lock();
            export.stop.send_replace(true);
        }
        let haste = crate::Haste::through(&export.setup.backend);
        while export.clients() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        drop(haste);
        {
            let mut exports = self.exports.lock();
            let before = exports.len();
            exports.retain(|one| !Arc::ptr_eq(one, export));
            if exports.len() == before {
                return;
            }
        }
        export.setup.bitmaps.iter().for_each(|bitmap| bitmap.set_busy(false));
        if export.setup.owns_backend {
            export.setup.backend.delete();
        }
        // Sessions that are ending may have the export yet.
        drop(export.setup.iothread.lock().take());
        if let Some(graph) = self.graph.upgrade() {
            graph.notices.send(Notice::ExportDeleted { id: export.setup.id.clone() });
        }
    }

    /// Takes away what is exported of a back end whose medium goes.
    pub async fn medium_goes(&self, backend: &Backend) {
        for export in self.exports() {
            if export.setup.backend.same(backend) {
                self.close(&export).await;
            }
        }
    }

    /// Ends everything: clients are disconnected, requests in progress have ended.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        for export in self.exports() {
            self.close(&export).await;
        }
        if let Some(path) = &self.unix_path {
            let _ = std::fs::remove_file(path);
        }
        if let Some(graph) = self.graph.upgrade() {
            *graph.exports.server.lock() = None;
        }
    }
}

enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Listener {
    async fn accept(&self) -> std::io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Listener::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }

    fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(|addr| addr.to_string()).unwrap_or_default(),
            Listener::Unix(listener) => listener
                .local_addr()
                .ok()
                .and_then(|addr| addr.as_pathname().map(|path| path.display().to_string()))
                .unwrap_or_default(),
        }
    }
}

/// Why a name was not found, less what the standard library says before it.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.rsplit(": ").next().unwrap_or(&text).to_string()
}

/// Listens at the first of these places where that is possible; `only_6`: not for IPv4 by the way.
fn bind_first(places: &[std::net::SocketAddr], only_6: bool) -> std::io::Result<tokio::net::TcpListener> {
    let bind = |place: &std::net::SocketAddr| {
        let socket = match place.is_ipv4() {
            true => tokio::net::TcpSocket::new_v4()?,
            false => tokio::net::TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        if !place.is_ipv4() {
            rustix::net::sockopt::set_ipv6_v6only(&socket, only_6)?;
        }
        socket.bind(*place)?;
        socket.listen(1024)
    };
    let mut last = std::io::ErrorKind::AddrNotAvailable.into();
    for place in places {
        match bind(place) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn bind(listen: Listen) -> Result<(Option<String>, Listener)> {
    let failed = |error: std::io::Error| Failure::os("Failed to bind socket", &error);
    match listen {
        Listen::Tcp { host, port, to, family } => {
            let host = match host.as_str() {
                "" if family.1 => "::".to_string(),
                "" => "0.0.0.0".to_string(),
                _ => host,
            };
            let found = tokio::net::lookup_host((host.as_str(), port)).await;
            let found: Vec<std::net::SocketAddr> = found
                .map_err(|error| fail!("address resolution failed for {host}:{port}: {}", reason(&error)))?
                .filter(|address| if address.is_ipv4() { family.0 } else { family.1 })
                .collect();
            if found.is_empty() {
                bail!(
                    "address resolution failed for {host}:{port}: Address family for hostname not supported"
                );
            }
            let mut last = None;
            for port in port..=to.max(port) {
                let places: Vec<_> =
                    found.iter().map(|one| std::net::SocketAddr::new(one.ip(), port)).collect();
                match bind_first(&places, !family.0) {
                    Ok(listener) => return Ok((None, Listener::Tcp(listener))),
                    Err(error) => last = Some(error),
                }
            }
            Err(match last {
                Some(error) => failed(error),
                None => Failure::new("Failed to find an available port"),
            })
        }
        Listen::Unix(path) => {
            // A socket that a dead process left behind is replaced.
            if std::os::unix::net::UnixStream::connect(&path).is_err() {
                use std::os::unix::fs::FileTypeExt;
                if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket()) {
                    let _ = std::fs::remove_file(&path);
                }
            }
            let bound = tokio::net::UnixListener::bind(&path);
            let listener =
                bound.map_err(|error| Failure::os(format!("Failed to bind socket to {path}"), &error))?;
            Ok((Some(path), Listener::Unix(listener)))
        }
        Listen::TcpSocket(socket) => {
            socket.set_nonblocking(true).map_err(failed)?;
            Ok((None, Listener::Tcp(tokio::net::TcpListener::from_std(socket).map_err(failed)?)))
        }
        Listen::UnixSocket(socket) => {
            socket.set_nonblocking(true).map_err(failed)?;
            Ok((None, Listener::Unix(tokio::net::UnixListener::from_std(socket).map_err(failed)?)))
        }
    }
}
