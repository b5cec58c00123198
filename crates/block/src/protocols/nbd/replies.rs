//! Answers of a server, which is not trusted.

use super::wire::*;
use crate::types::{IoResult, errno};
use base::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;

/// Room for what a chunk has besides its payload.
const CHUNK_EXTRA: u32 = 64;
/// A block status chunk above this is refused; a server was asked for one extent.
const MAX_STATUS: u32 = 1 << 20;

/// What came back for a request.
#[derive(Debug, Default)]
pub struct Answer {
    pub data: Option<Vec<u8>>,
    /// First extent of a block status: length, state.
    pub extent: Option<(u32, u32)>,
}

pub(super) struct Pending {
    pub command: u16,
    pub offset: u64,
    pub len: u32,
    pub answer: Answer,
    pub error: Option<i32>,
    /// Bytes of a read that chunks have brought.
    pub covered: u64,
    pub done: oneshot::Sender<IoResult<Answer>>,
}

pub(super) struct Shared {
    pub pending: Mutex<HashMap<u64, Pending>>,
    pub alive: AtomicBool,
    pub structured: bool,
    /// The number of the metadata context.
    pub context: Option<u32>,
    pub alignment: u32,
}

fn wrong() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Reads answers until the connection ends or the server says what makes no sense.
pub(super) async fn listen(mut reader: impl AsyncRead + Unpin, shared: &Shared) -> io::Result<()> {
    loop {
        match reader.read_u32().await? {
            SIMPLE_MAGIC => simple(&mut reader, shared).await?,
            STRUCTURED_MAGIC if shared.structured => structured(&mut reader, shared).await?,
            _ => return Err(wrong()),
        }
    }
}

async fn simple(reader: &mut (impl AsyncRead + Unpin), shared: &Shared) -> io::Result<()> {
    let error = reader.read_u32().await?;
    let cookie = reader.read_u64().await?;
    let mut pending = shared.pending.lock().remove(&cookie).ok_or_else(wrong)?;
    if error != 0 {
        pending.error = Some(from_wire(error));
    } else if shared.structured && matches!(pending.command, CMD_READ | CMD_BLOCK_STATUS) {
        pending.fail();
        return Err(wrong());
    } else if let Some(data) = &mut pending.answer.data {
        if let Err(error) = reader.read_exact(data).await {
            pending.fail();
            return Err(error);
        }
        pending.covered = data.len() as u64;
    }
    pending.finish();
    Ok(())
}

async fn structured(reader: &mut (impl AsyncRead + Unpin), shared: &Shared) -> io::Result<()> {
    let flags = reader.read_u16().await?;
    let kind = reader.read_u16().await?;
    let cookie = reader.read_u64().await?;
    let len = reader.read_u32().await?;
    let limit = match kind {
        CHUNK_DATA => MAX_PAYLOAD + CHUNK_EXTRA,
        CHUNK_STATUS => MAX_STATUS,
        _ => MAX_NAME as u32 + CHUNK_EXTRA,
    };
    if len > limit || !shared.pending.lock().contains_key(&cookie) {
        return Err(wrong());
    }
    let mut body = vec![0; len as usize];
    reader.read_exact(&mut body).await?;
    let mut pending = shared.pending.lock().remove(&cookie).ok_or_else(wrong)?;
    if pending.take_chunk(kind, flags, &body, shared).is_none() {
        pending.fail();
        return Err(wrong());
    }
    match flags & CHUNK_DONE {
        0 => drop(shared.pending.lock().insert(cookie, pending)),
        _ => pending.finish(),
    }
    Ok(())
}

impl Pending {
    /// Takes a chunk in; `None` if it makes no sense.
    fn take_chunk(&mut self, kind: u16, flags: u16, body: &[u8], shared: &Shared) -> Option<()> {
        match kind {
            CHUNK_NONE => (body.is_empty() && flags & CHUNK_DONE != 0).then_some(()),
            CHUNK_DATA if self.command == CMD_READ => {
                let (at, data) = (be(body.get(..8)?), &body[8..]);
                self.part(at, data.len() as u64)?.copy_from_slice(data);
                Some(())
            }
            CHUNK_HOLE if self.command == CMD_READ && body.len() == 12 => {
                self.part(be(&body[..8]), be(&body[8..]))?.fill(0);
                Some(())
            }
            CHUNK_STATUS if self.command == CMD_BLOCK_STATUS => self.take_status(body, shared),
            _ if kind & CHUNK_FAILED != 0 => self.take_error(kind, body),
            _ => None,
        }
    }

    /// The part of the read's buffer that a chunk is for; never empty.
    fn part(&mut self, at: u64, len: u64) -> Option<&mut [u8]> {
        let from = usize::try_from(at.checked_sub(self.offset)?).ok()?;
        let to = from.checked_add(usize::try_from(len).ok()?)?;
        self.covered += len;
        self.answer.data.as_mut()?.get_mut(from..to).filter(|part| !part.is_empty())
    }

    fn take_status(&mut self, body: &[u8], shared: &Shared) -> Option<()> {
        let whole = body.len() >= 12 && (body.len() - 4).is_multiple_of(8);
        if !whole || Some(be(&body[..4]) as u32) != shared.context || self.answer.extent.is_some() {
            return None;
        }
        let (len, state) = (be(&body[4..8]) as u32, be(&body[8..12]) as u32);
        if len == 0 {
            return None;
        }
        // A server may tell of more than was asked, or of less than can be used.
        let (len, unit) = (len.min(self.len), shared.alignment);
        let usable = len - len % unit;
        self.answer.extent = Some(if usable > 0 { (usable, state) } else { (unit, 0) });
        Some(())
    }

    /// Error number, then a message; with [`CHUNK_ERROR_OFFSET`] the place after it.
    fn take_error(&mut self, kind: u16, body: &[u8]) -> Option<()> {
        let (code, message) = (be(body.get(..4)?) as u32, be(body.get(4..6)?) as usize);
        let tail = body.len().checked_sub(6 + message)?;
        let fits = match kind {
            CHUNK_ERROR => tail == 0,
            CHUNK_ERROR_OFFSET => {
                let place = be(body.get(6 + message..)?);
                tail == 8 && (self.offset..=self.offset + u64::from(self.len)).contains(&place)
            }
            _ => true,
        };
        if code == 0 || !fits {
            return None;
        }
        self.error = self.error.or(Some(from_wire(code)));
        Some(())
    }

    fn fail(mut self) {
        self.error = Some(libc::EIO);
        self.finish();
    }

    fn finish(self) {
        let short = self.command == CMD_READ && self.covered != u64::from(self.len);
        let silent = self.command == CMD_BLOCK_STATUS && self.answer.extent.is_none();
        let result = match self.error {
            Some(code) => Err(errno(code)),
            None if short || silent => Err(errno(libc::EIO)),
            None => Ok(self.answer),
        };
        // Nobody waits for a request that was dropped.
        let _ = self.done.send(result);
    }
}
