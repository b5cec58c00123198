//! One connection to an NBD server.

use super::handshake::{self, Exported, Wanted};
use super::replies::{Answer, Pending, Shared, listen};
use super::wire::*;
use crate::types::{IoResult, errno};
use base::{Failure, Mutex, Result, bail, fail};
use rustix::net::AddressFamily;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;

/// How long a server may take from the connection to the first request.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// With whether IPv4 and IPv6 addresses will do.
    Tcp {
        host: String,
        port: u16,
        families: (bool, bool),
    },
    Unix(String),
    Passed(Passed),
}

/// A socket that was connected by who passed it in: good for one connection.
#[derive(Clone, Debug)]
pub struct Passed(Arc<Mutex<Option<OwnedFd>>>);

impl Passed {
    pub fn new(fd: OwnedFd) -> Self {
        Passed(Arc::new(Mutex::new(Some(fd))))
    }

    fn connect(&self) -> std::io::Result<Socket> {
        let fd = self.0.lock().take().ok_or_else(|| errno(libc::ENOTCONN))?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        match rustix::net::getsockname(&fd)?.address_family() {
            AddressFamily::UNIX => Ok(Socket::Unix(tokio::net::UnixStream::from_std(fd.into())?)),
            AddressFamily::INET | AddressFamily::INET6 => {
                Ok(Socket::Tcp(tokio::net::TcpStream::from_std(fd.into())?))
            }
            _ => Err(errno(libc::EAFNOSUPPORT)),
        }
    }
}

impl PartialEq for Passed {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Passed {}

impl Address {
    /// `None`: no name says how to come there.
    pub fn uri(&self, export: &str) -> Option<String> {
        Some(match self {
            Address::Tcp { host, port, .. } => {
                format!("nbd://{host}:{port}/{export}").trim_end_matches('/').to_string()
            }
            Address::Unix(path) if export.is_empty() => format!("nbd+unix://?socket={path}"),
            Address::Unix(path) => format!("nbd+unix:///{export}?socket={path}"),
            Address::Passed(_) => return None,
        })
    }

    async fn connect(&self) -> std::io::Result<Socket> {
        match self {
            Address::Tcp { host, port, families } => {
                let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
                let will_do = |at: &SocketAddr| if at.is_ipv4() { families.0 } else { families.1 };
                let places: Vec<SocketAddr> = found.filter(will_do).collect();
                if places.is_empty() {
                    return Err(std::io::ErrorKind::AddrNotAvailable.into());
                }
                let stream = tokio::net::TcpStream::connect(&places[..]).await?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Address::Unix(path) => Ok(Socket::Unix(tokio::net::UnixStream::connect(path).await?)),
            Address::Passed(passed) => passed.connect(),
        }
    }
}

enum Socket {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

fn boxed(
    read: impl AsyncRead + Send + Unpin + 'static,
    write: impl AsyncWrite + Send + Unpin + 'static,
) -> (Reader, Writer) {
    (Box::new(read), Box::new(write))
}

/// The greeting and, where wanted, TLS.
async fn enter(mut socket: Socket, wanted: &Wanted) -> Result<(Reader, Writer)> {
    match &mut socket {
        Socket::Tcp(stream) => begin(stream, wanted).await?,
        Socket::Unix(stream) => begin(stream, wanted).await?,
    }
    match (socket, &wanted.tls) {
        (Socket::Tcp(stream), None) => {
            let (read, write) = stream.into_split();
            Ok(boxed(read, write))
        }
        (Socket::Unix(stream), None) => {
            let (read, write) = stream.into_split();
            Ok(boxed(read, write))
        }
        (Socket::Tcp(stream), Some((credentials, host))) => {
            let (read, write) = tokio::io::split(credentials.connect(stream, host).await?);
            Ok(boxed(read, write))
        }
        (Socket::Unix(stream), Some((credentials, host))) => {
            let (read, write) = tokio::io::split(credentials.connect(stream, host).await?);
            Ok(boxed(read, write))
        }
    }
}

async fn begin(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), wanted: &Wanted) -> Result<()> {
    handshake::greet(stream).await?;
    if wanted.tls.is_some() {
        handshake::start_tls(stream).await?;
    }
    Ok(())
}

pub struct Connection {
    shared: Arc<Shared>,
    writer: tokio::sync::Mutex<Writer>,
    next: AtomicU64,
    reader: tokio::task::JoinHandle<()>,
}

impl Connection {
    /// Fails where the server has not answered within `patience`.
    pub async fn open(
        address: &Address,
        wanted: &Wanted,
        patience: Duration,
    ) -> Result<(Connection, Exported)> {
        let opening = async {
            let connected = address.connect().await;
            let socket = connected.map_err(|error| match address {
                Address::Tcp { host, port, .. } if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
                    fail!(
                        "address resolution failed for {host}:{port}: Address family for hostname not supported"
                    )
                }
                Address::Tcp { host, port, .. } => {
                    Failure::os(format!("Failed to connect to '{host}:{port}'"), &error)
                }
                Address::Unix(path) => Failure::os(format!("Failed to connect to '{path}'"), &error),
                Address::Passed(_) => Failure::os("Failed to use the socket", &error),
            })?;
            let (reader, writer) = enter(socket, wanted).await?;
            Connection::over(reader, writer, wanted).await
        };
        let opened = tokio::time::timeout(patience, opening).await;
        opened.unwrap_or_else(|_| bail!("The NBD server does not answer"))
    }

    /// Negotiates over a stream on which the greeting is done.
    pub(super) async fn over(
        mut reader: Reader,
        mut writer: Writer,
        wanted: &Wanted,
    ) -> Result<(Connection, Exported)> {
        let info = handshake::choose(&mut reader, &mut writer, wanted).await?;
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            alive: AtomicBool::new(true),
            structured: info.structured,
            context: info.context,
            alignment: info.alignment,
        });
        let listener = shared.clone();
        let reader = tokio::spawn(async move {
            // Whatever ended the connection, its requests fail.
            let _ = listen(tokio::io::BufReader::new(reader), &listener).await;
            listener.alive.store(false, Ordering::Release);
            for (_, pending) in listener.pending.lock().drain() {
                let _ = pending.done.send(Err(errno(libc::EIO)));
            }
        });
        let writer = tokio::sync::Mutex::new(writer);
        Ok((Connection { shared, writer, next: AtomicU64::new(1), reader }, info))
    }

    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    pub async fn request(
        &self,
        command: u16,
        flags: u16,
        range: (u64, u32),
        data: &[u8],
    ) -> IoResult<Answer> {
        let cookie = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        let (offset, len) = range;
        let mut answer = Answer::default();
        if command == CMD_READ {
            answer.data = Some(vec![0; len as usize]);
        }
        let pending = Pending { command, offset, len, answer, error: None, covered: 0, done: tx };
        self.shared.pending.lock().insert(cookie, pending);
        let mut head = REQUEST_MAGIC.to_be_bytes().to_vec();
        head.extend(flags.to_be_bytes());
        head.extend(command.to_be_bytes());
        head.extend(cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        head.extend(len.to_be_bytes());
        head.extend_from_slice(data);
        let sent = async {
            let mut writer = self.writer.lock().await;
            writer.write_all(&head).await?;
            writer.flush().await
        };
        let sent: std::io::Result<()> = sent.await;
        if sent.is_err() || !self.is_alive() {
            self.shared.alive.store(false, Ordering::Release);
            self.shared.pending.lock().remove(&cookie);
            return Err(errno(libc::EIO));
        }
        rx.await.unwrap_or_else(|_| Err(errno(libc::EIO)))
    }

    pub async fn close(&self) {
        let mut head = REQUEST_MAGIC.to_be_bytes().to_vec();
        head.extend([0, 0]);
        head.extend(CMD_DISC.to_be_bytes());
        head.extend([0; 20]);
        let mut writer = self.writer.lock().await;
        // The server may be gone already.
        let _ = writer.write_all(&head).await;
        let _ = writer.shutdown().await;
        self.reader.abort();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
