//! One connection to an NBD server.

use super::wire::*;
use crate::types::{IoResult, errno};
use base::{Failure, Mutex, Result, bail, fail};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(String, u16),
    Unix(String),
}

impl Address {
    pub fn uri(&self, export: &str) -> String {
        match self {
            Address::Tcp(host, port) => {
                format!("nbd://{host}:{port}/{export}").trim_end_matches('/').to_string()
            }
            Address::Unix(path) => format!("nbd+unix:///{export}?socket={path}"),
        }
    }

    async fn connect(&self) -> std::io::Result<(Reader, Writer)> {
        match self {
            Address::Tcp(host, port) => {
                let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let (read, write) = stream.into_split();
                Ok((Box::new(read), Box::new(write)))
            }
            Address::Unix(path) => {
                let (read, write) = tokio::net::UnixStream::connect(path).await?.into_split();
                Ok((Box::new(read), Box::new(write)))
            }
        }
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// What the server said of the export.
#[derive(Clone, Copy, Debug)]
pub struct Exported {
    pub size: u64,
    pub flags: u16,
    /// Smallest request in bytes.
    pub alignment: u32,
    pub structured: bool,
    /// `base:allocation` can be asked for.
    pub allocation: bool,
}

/// What came back for a request.
#[derive(Debug, Default)]
pub struct Answer {
    pub data: Option<Vec<u8>>,
    /// First extent of a block status: length, state.
    pub extent: Option<(u32, u32)>,
}

struct Pending {
    offset: u64,
    len: u32,
    answer: Answer,
    error: Option<i32>,
    done: oneshot::Sender<IoResult<Answer>>,
}

struct Shared {
    pending: Mutex<HashMap<u64, Pending>>,
    alive: AtomicBool,
}

pub struct Connection {
    shared: Arc<Shared>,
    writer: tokio::sync::Mutex<Writer>,
    next: AtomicU64,
    reader: tokio::task::JoinHandle<()>,
}

fn io(error: std::io::Error) -> Failure {
    Failure::os("Failed to read from the NBD server", &error)
}

async fn option(writer: &mut Writer, kind: u32, body: &[u8]) -> Result<()> {
    let mut out = OPT_MAGIC.to_be_bytes().to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    writer.write_all(&out).await.map_err(io)
}

async fn reply(reader: &mut Reader, kind: u32) -> Result<(u32, Vec<u8>)> {
    if reader.read_u64().await.map_err(io)? != REP_MAGIC || reader.read_u32().await.map_err(io)? != kind {
        bail!("Unexpected option reply from the NBD server");
    }
    let code = reader.read_u32().await.map_err(io)?;
    let len = reader.read_u32().await.map_err(io)?;
    if len > 1 << 16 {
        bail!("NBD server sent an option reply of {len} bytes");
    }
    let mut body = vec![0; len as usize];
    reader.read_exact(&mut body).await.map_err(io)?;
    Ok((code, body))
}

fn be(data: &[u8]) -> u64 {
    data.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Connection {
    pub async fn open(address: &Address, export: &str) -> Result<(Connection, Exported)> {
        let connected = address.connect().await;
        let (mut reader, mut writer) = connected.map_err(|error| match address {
            Address::Tcp(host, port) => Failure::os(format!("Failed to connect to '{host}:{port}'"), &error),
            Address::Unix(path) => Failure::os(format!("Failed to connect to '{path}'"), &error),
        })?;
        let info = negotiate(&mut reader, &mut writer, export).await?;
        let shared = Arc::new(Shared { pending: Mutex::default(), alive: AtomicBool::new(true) });
        let listener = shared.clone();
        let reader = tokio::spawn(async move {
            let end = listen(reader, &listener).await;
            listener.alive.store(false, Ordering::Release);
            for (_, pending) in listener.pending.lock().drain() {
                let _ = pending.done.send(Err(errno(libc::EIO)));
            }
            drop(end);
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
        self.shared.pending.lock().insert(cookie, Pending { offset, len, answer, error: None, done: tx });
        let mut head = REQUEST_MAGIC.to_be_bytes().to_vec();
        head.extend(flags.to_be_bytes());
        head.extend(command.to_be_bytes());
        head.extend(cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        head.extend(len.to_be_bytes());
        head.extend_from_slice(data);
        let sent = self.writer.lock().await.write_all(&head).await;
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

async fn negotiate(reader: &mut Reader, writer: &mut Writer, export: &str) -> Result<Exported> {
    if reader.read_u64().await.map_err(io)? != MAGIC {
        bail!("Bad initial magic received");
    }
    if reader.read_u64().await.map_err(io)? != OPT_MAGIC {
        bail!("Bad server magic received");
    }
    let flags = reader.read_u16().await.map_err(io)?;
    if flags & FIXED_NEWSTYLE == 0 {
        bail!("Server does not support the fixed newstyle handshake");
    }
    writer.write_u32(u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES))).await.map_err(io)?;
    option(writer, OPT_STRUCTURED_REPLY, &[]).await?;
    let structured = reply(reader, OPT_STRUCTURED_REPLY).await?.0 == REP_ACK;
    let mut info = Exported { size: 0, flags: 0, alignment: 1, structured, allocation: false };
    if structured {
        let context = b"base:allocation";
        let mut body = (export.len() as u32).to_be_bytes().to_vec();
        body.extend(export.as_bytes());
        body.extend(1u32.to_be_bytes());
        body.extend((context.len() as u32).to_be_bytes());
        body.extend(context);
        option(writer, OPT_SET_META, &body).await?;
        loop {
            match reply(reader, OPT_SET_META).await? {
                (REP_META, _) => info.allocation = true,
                _ => break,
            }
        }
    }
    let mut body = (export.len() as u32).to_be_bytes().to_vec();
    body.extend(export.as_bytes());
    body.extend(1u16.to_be_bytes());
    body.extend(INFO_BLOCK_SIZE.to_be_bytes());
    option(writer, OPT_GO, &body).await?;
    loop {
        let (code, body) = reply(reader, OPT_GO).await?;
        match code {
            REP_ACK => break,
            REP_INFO if body.len() >= 12 && be(&body[..2]) == u64::from(INFO_EXPORT) => {
                info.size = be(&body[2..10]);
                info.flags = be(&body[10..12]) as u16;
            }
            REP_INFO if body.len() >= 14 && be(&body[..2]) == u64::from(INFO_BLOCK_SIZE) => {
                let least = be(&body[2..6]) as u32;
                if !least.is_power_of_two() || least > 65536 {
                    bail!("server minimum block size {least} is not a power of two");
                }
                info.alignment = least;
            }
            REP_INFO => {}
            REP_ERR_UNKNOWN => bail!("Requested export not available"),
            code if code & REP_ERR != 0 => {
                bail!("NBD server refused the export: {}", String::from_utf8_lossy(&body))
            }
            _ => bail!("Unexpected reply from the NBD server"),
        }
    }
    if info.flags & HAS_FLAGS == 0 || info.size > i64::MAX as u64 {
        return Err(fail!("NBD server sent an impossible export"));
    }
    Ok(info)
}

/// Reads answers until the connection ends.
async fn listen(mut reader: Reader, shared: &Shared) -> std::io::Result<()> {
    let wrong = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    loop {
        match reader.read_u32().await? {
            SIMPLE_MAGIC => {
                let error = reader.read_u32().await?;
                let cookie = reader.read_u64().await?;
                let mut pending = shared.pending.lock().remove(&cookie).ok_or_else(wrong)?;
                if error != 0 {
                    pending.error = Some(from_wire(error));
                } else if let Some(data) = &mut pending.answer.data {
                    reader.read_exact(data).await?;
                }
                finish(pending);
            }
            STRUCTURED_MAGIC => {
                let flags = reader.read_u16().await?;
                let kind = reader.read_u16().await?;
                let cookie = reader.read_u64().await?;
                let len = reader.read_u32().await?;
                if len > MAX_PAYLOAD + 64 {
                    return Err(wrong());
                }
                let mut body = vec![0; len as usize];
                reader.read_exact(&mut body).await?;
                let mut pending = shared.pending.lock().remove(&cookie).ok_or_else(wrong)?;
                chunk(&mut pending, kind, &body).ok_or_else(wrong)?;
                if flags & CHUNK_DONE != 0 {
                    finish(pending);
                } else {
                    shared.pending.lock().insert(cookie, pending);
                }
            }
            _ => return Err(wrong()),
        }
    }
}

/// Takes a chunk in; `None` if it makes no sense.
fn chunk(pending: &mut Pending, kind: u16, body: &[u8]) -> Option<()> {
    match kind {
        CHUNK_NONE => Some(()),
        CHUNK_DATA => {
            let at = be(body.get(..8)?).checked_sub(pending.offset)? as usize;
            let data = pending.answer.data.as_mut()?;
            data.get_mut(at..at.checked_add(body.len() - 8)?)?.copy_from_slice(&body[8..]);
            Some(())
        }
        CHUNK_HOLE => {
            let at = be(body.get(..8)?).checked_sub(pending.offset)? as usize;
            let len = be(body.get(8..12)?) as usize;
            pending.answer.data.as_mut()?.get_mut(at..at.checked_add(len)?)?.fill(0);
            Some(())
        }
        CHUNK_STATUS => {
            let extent = (be(body.get(4..8)?) as u32, be(body.get(8..12)?) as u32);
            pending.answer.extent = Some((extent.0.min(pending.len), extent.1));
            Some(())
        }
        _ if kind & 1 << 15 != 0 => {
            pending.error = Some(from_wire(be(body.get(..4)?) as u32));
            Some(())
        }
        _ => None,
    }
}

fn finish(pending: Pending) {
    let result = match pending.error {
        Some(code) => Err(errno(code)),
        None => Ok(pending.answer),
    };
    // Nobody waits for a request that was dropped.
    let _ = pending.done.send(result);
}
