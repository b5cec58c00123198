use crate::Backend;
use crate::address;
use crate::hub::Hub;
use crate::link::Link;
use crate::registry::{Host, Made};
use crate::stream::Stream;
use base::{Failure, Mutex, Result, bail};
use rustix::net::{SocketFlags, accept_with, sockopt};
use spec::SocketAddress;
use spec::chardev::ChardevSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

struct Socket(Arc<Shared>);

struct Shared {
    stream: Arc<Stream>,
    spec: ChardevSocket,
    filename: Mutex<String>,
    disconnected: String,
    path: Option<std::path::PathBuf>,
}

impl Backend for Socket {
    fn write(&self, bytes: &[u8]) -> usize {
        self.0.stream.write(bytes)
    }

    fn filename(&self) -> String {
        self.0.filename.lock().clone()
    }

    fn drained(&self) -> bool {
        self.0.stream.drained()
    }

    fn close(&self) {
        if let Some(path) = &self.0.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn new(hub: &Arc<Hub>, spec: &ChardevSocket, listener: Option<&OwnedFd>) -> Arc<Self> {
        let disconnected = format!("disconnected:{}", address_name(spec, listener));
        let path = match &spec.addr {
            SocketAddress::Unix(unix) if spec.server && !unix.abstract_name => {
                // A daemon changes its directory.
                std::path::absolute(&unix.path).ok()
            }
            _ => None,
        };
        Arc::new(Shared {
            stream: Stream::new(hub.clone(), spec.telnet),
            spec: spec.clone(),
            filename: Mutex::new(disconnected.clone()),
            disconnected,
            path,
        })
    }

    fn open(&self, fd: OwnedFd) -> Result<Arc<Link>> {
        if self.spec.nodelay {
            let _ = sockopt::set_tcp_nodelay(&fd, true);
        }
        let protocol = if self.spec.telnet { "telnet" } else { "tcp" };
        let name = address::connected_name(&fd, protocol, self.spec.server);
        let link = Arc::new(Link::new(fd)?);
        *self.filename.lock() = name;
        self.stream.open(link.clone());
        Ok(link)
    }

    async fn carry(&self, link: Arc<Link>) {
        self.stream.carry(&link).await;
        *self.filename.lock() = self.disconnected.clone();
        self.stream.close();
    }

    async fn connect(&self) -> Result<OwnedFd> {
        match &self.spec.addr {
            SocketAddress::Inet(inet) => address::connect_inet(inet).await,
            SocketAddress::Unix(unix) => address::connect_unix(unix).await,
            SocketAddress::Fd(fd) => bail!("File descriptor '{}' cannot be connected again", fd.name),
        }
    }
}

/// The address as `query-chardev` shows it, with the real port of a listener.
fn address_name(spec: &ChardevSocket, listener: Option<&OwnedFd>) -> String {
    let server = if spec.server { ",server=on" } else { "" };
    match &spec.addr {
        SocketAddress::Inet(inet) => {
            let protocol = if spec.telnet { "telnet" } else { "tcp" };
            let place = listener.and_then(address::local_inet);
            let place = place.unwrap_or_else(|| format!("{}:{}", inet.host, inet.port));
            format!("{protocol}:{place}{server}")
        }
        SocketAddress::Unix(unix) => {
            let name = if unix.abstract_name { ",abstract=on" } else { "" };
            let tight = if unix.abstract_name && unix.tight { ",tight=on" } else { "" };
            format!("unix:{}{name}{tight}{server}", unix.path)
        }
        SocketAddress::Fd(fd) => format!("fd:{}{server}", fd.name),
    }
}

fn check(spec: &ChardevSocket) -> Result<()> {
    if spec.server && spec.reconnect > 0 {
        bail!("'reconnect' option is incompatible with socket in server listen mode");
    }
    if spec.reconnect > 0 && matches!(spec.addr, SocketAddress::Fd(_)) {
        bail!("'reconnect' option is incompatible with 'fd' socket address");
    }
    if !spec.server && spec.wait {
        bail!("'wait' option is incompatible with socket in client connect mode");
    }
    Ok(())
}

fn take_socket(host: &dyn Host, name: &str, server: bool) -> Result<OwnedFd> {
    let fd = host.take_fd(name)?;
    if !base::fd::is_socket(fd.as_fd()) {
        bail!("File descriptor '{name}' is not a socket");
    }
    if sockopt::socket_acceptconn(&fd).unwrap_or(false) != server {
        let kind = if server { "a listening" } else { "a connected" };
        bail!("File descriptor '{name}' is not {kind} socket");
    }
    rustix::io::ioctl_fionbio(&fd, true).map_err(std::io::Error::from)?;
    Ok(fd)
}

pub(crate) async fn open(
    runtime: &Handle,
    host: &dyn Host,
    hub: &Arc<Hub>,
    spec: &ChardevSocket,
) -> Result<Made> {
    check(spec)?;
    if spec.server {
        open_server(runtime, host, hub, spec).await
    } else {
        open_client(runtime, host, hub, spec).await
    }
}

async fn open_server(
    runtime: &Handle,
    host: &dyn Host,
    hub: &Arc<Hub>,
    spec: &ChardevSocket,
) -> Result<Made> {
    let listener = match &spec.addr {
        SocketAddress::Inet(inet) => address::listen_inet(inet).await?,
        SocketAddress::Unix(unix) => address::listen_unix(unix)?,
        SocketAddress::Fd(fd) => take_socket(host, &fd.name, true)?,
    };
    let shared = Shared::new(hub, spec, Some(&listener));
    let made = Socket(shared.clone());
    let listener =
        crate::link::watch(listener).map_err(|(_, e)| Failure::os("Failed to listen on socket", &e))?;
    let mut first = None;
    if spec.wait {
        host.info(&format!("QEMU waiting for connection on: {}", shared.disconnected));
        first = Some(accept(&listener).await?);
    }
    let task = runtime.spawn(async move {
        loop {
            let client = match first.take() {
                Some(client) => client,
                None => match accept(&listener).await {
                    Ok(client) => client,
                    Err(_) => return,
                },
            };
            if let Ok(link) = shared.open(client) {
                shared.carry(link).await;
            }
        }
    });
    Ok(Made { tasks: vec![task], ..Made::new(made) })
}

async fn accept(listener: &AsyncFd<OwnedFd>) -> Result<OwnedFd> {
    loop {
        let mut ready = listener.readable().await?;
        match accept_with(listener.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => return Ok(fd),
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            // Out of descriptors or memory, or the client is gone already: not for ever.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn open_client(
    runtime: &Handle,
    host: &dyn Host,
    hub: &Arc<Hub>,
    spec: &ChardevSocket,
) -> Result<Made> {
    let shared = Shared::new(hub, spec, None);
    let made = Socket(shared.clone());
    let task = if spec.reconnect > 0 {
        let pause = Duration::from_secs(spec.reconnect);
        runtime.spawn(async move {
            loop {
                if let Ok(fd) = shared.connect().await
                    && let Ok(link) = shared.open(fd)
                {
                    shared.carry(link).await;
                }
                tokio::time::sleep(pause).await;
            }
        })
    } else {
        let fd = match &spec.addr {
            SocketAddress::Fd(fd) => take_socket(host, &fd.name, false)?,
            _ => shared.connect().await?,
        };
        let link = shared.open(fd)?;
        runtime.spawn(async move { shared.carry(link).await })
    };
    Ok(Made { tasks: vec![task], ..Made::new(made) })
}
