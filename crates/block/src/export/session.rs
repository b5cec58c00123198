//! A client of the NBD server: its requests.

use super::nbd::{Export, Server};
use super::negotiation::{Agreed, Context, invalid, negotiate};
use super::outbox::{Outbox, Part};
use crate::buffers::{self, Lent};
use crate::graph::Node;
use crate::protocols::nbd::wire::*;
use crate::types::*;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub(super) type Stream = Box<dyn Duplex>;

/// Requests of one client that are worked on at once.
const PARALLEL: u32 = 16;
/// Bytes of requests read at once.
const READ_AHEAD: usize = 64 << 10;
/// Extents told in one block status.
const MAX_EXTENTS: usize = 1024;
const NEGOTIATION: Duration = Duration::from_secs(10);
/// How long a client may take for its last replies, and for the end of the stream.
const FAREWELL: Duration = Duration::from_millis(100);

pub(super) async fn serve(
    server: &Server,
    stream: Stream,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut agreed = Agreed::default();
    let negotiated = tokio::select! {
        result = tokio::time::timeout(NEGOTIATION, negotiate(server, stream, &mut agreed)) => result,
        _ = stop.changed() => return Ok(()),
    };
    let Ok(negotiated) = negotiated else { return Ok(()) };
    let Some((seat, stream)) = negotiated? else { return Ok(()) };
    let mut gone = seat.stop.subscribe();
    if *gone.borrow() {
        return Ok(());
    }
    let (reader, writer) = tokio::io::split(stream);
    let (outbox, ending) = (Outbox::new(writer), watch::channel(false).0);
    let session = Arc::new(Session { export: seat.clone(), agreed, outbox, ending });
    let slots = Arc::new(Semaphore::new(PARALLEL as usize));
    let ended = tokio::select! {
        result = session.requests(reader, &slots) => result,
        _ = stop.changed() => Ok(()),
        _ = gone.changed() => Ok(()),
    };
    // Requests in progress end before the export may go; a client that does not read its
    // answers holds up nothing.
    session.ending.send_replace(true);
    let _ = slots.acquire_many(PARALLEL).await;
    let _ = tokio::time::timeout(FAREWELL, session.outbox.shutdown()).await;
    drop(seat);
    ended
}

struct Session {
    export: Arc<Export>,
    agreed: Agreed,
    outbox: Outbox<tokio::io::WriteHalf<Stream>>,
    ending: watch::Sender<bool>,
}

struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl Session {
    async fn requests(
        self: &Arc<Self>,
        reader: tokio::io::ReadHalf<Stream>,
        slots: &Arc<Semaphore>,
    ) -> io::Result<()> {
        // Small requests that came together are taken by one system call.
        let mut reader = tokio::io::BufReader::with_capacity(READ_AHEAD, reader);
        loop {
            let mut head = [0; 28];
            reader.read_exact(&mut head).await?;
            if be(&head[..4]) != u64::from(REQUEST_MAGIC) {
                return Err(invalid());
            }
            let request = Request {
                flags: be(&head[4..6]) as u16,
                command: be(&head[6..8]) as u16,
                cookie: be(&head[8..16]),
                offset: be(&head[16..24]),
                len: be(&head[24..28]) as u32,
            };
            if request.command == CMD_DISC {
                return Ok(());
            }
            let mut data = Lent::default();
            if request.command == CMD_WRITE {
                if request.len > MAX_PAYLOAD {
                    return Err(invalid());
                }
                data = buffers::take(request.len as usize);
                reader.read_exact(&mut data).await?;
            }
            let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
            let session = self.clone();
            self.export.setup.backend.thread().handle().spawn(async move {
                // A client that no longer reads ends its session by itself.
                let _ = session.answer(request, data, slot).await;
            });
        }
    }

    async fn answer(&self, request: Request, data: Lent, slot: OwnedSemaphorePermit) -> io::Result<()> {
        let mut parts = match self.perform(&request, data).await {
            Ok(chunks) => self.reply(&request, chunks),
            Err(error) => vec![self.refusal(&request, to_wire(errno_of(&error)))],
        };
        if let Some(last) = parts.last_mut() {
            last.slot = Some(slot);
        }
        self.put(parts).await
    }

    /// Kind and body of each chunk of the reply; for data, the body is only that.
    async fn perform(&self, request: &Request, data: Lent) -> io::Result<Vec<(u16, Lent)>> {
        let &Request { flags, command, offset, len, .. } = request;
        let bytes = u64::from(len);
        let writes = matches!(command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if writes && !self.export.is_writable() {
            return Err(errno(libc::EPERM));
        }
        let limited = if matches!(command, CMD_READ | CMD_WRITE) { bytes } else { 0 };
        let disk = self.export.setup.backend.access(writes, limited).await?;
        if command != CMD_FLUSH && offset.checked_add(bytes).is_none_or(|end| end > disk.size()) {
            return Err(errno(if writes { libc::ENOSPC } else { libc::EINVAL }));
        }
        let known = match command {
            CMD_READ => FLAG_FUA | FLAG_DF,
            CMD_WRITE_ZEROES => FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
            CMD_BLOCK_STATUS => FLAG_FUA | FLAG_REQ_ONE,
            _ => FLAG_FUA,
        };
        if flags & !known != 0 {
            return Err(errno(libc::EINVAL));
        }
        if len == 0 && matches!(command, CMD_READ | CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES) {
            return Ok(Vec::new());
        }
        let fua = flags & FLAG_FUA != 0 || self.export.setup.writethrough;
        match command {
            CMD_READ => {
                if len > MAX_PAYLOAD {
                    return Err(errno(libc::EINVAL));
                }
                let mut out = buffers::take(len as usize);
                disk.read(offset, &mut out).await?;
                return Ok(vec![(CHUNK_DATA, out)]);
            }
            CMD_WRITE => {
                let mut how = WriteFlags::empty();
                how.set(WriteFlags::FUA, fua);
                disk.write(offset, &data, how).await?;
            }
            CMD_WRITE_ZEROES => {
                let mut how = ZeroFlags::empty();
                how.set(ZeroFlags::FUA, fua);
                how.set(ZeroFlags::MAY_UNMAP, flags & FLAG_NO_HOLE == 0);
                how.set(ZeroFlags::NO_FALLBACK, flags & FLAG_FAST_ZERO != 0);
                disk.write_zeroes(offset, bytes, how).await?;
            }
            CMD_TRIM => {
                disk.discard(offset, bytes).await?;
                if fua {
                    disk.flush().await?;
                }
            }
            CMD_FLUSH => disk.flush().await?,
            CMD_CACHE => {}
            CMD_BLOCK_STATUS => {
                if !self.agreed.structured || self.agreed.contexts.is_empty() || len == 0 {
                    return Err(errno(libc::EINVAL));
                }
                let one = flags & FLAG_REQ_ONE != 0;
                let mut chunks = Vec::new();
                for (id, context) in self.agreed.contexts.iter().enumerate() {
                    let mut out = (id as u32).to_be_bytes().to_vec();
                    for (len, state) in extents(&disk.node(), context, offset, bytes, one).await? {
                        out.extend((len as u32).to_be_bytes());
                        out.extend(state.to_be_bytes());
                    }
                    chunks.push((CHUNK_STATUS, out.into()));
                }
                return Ok(chunks);
            }
            _ => return Err(errno(libc::EINVAL)),
        }
        Ok(Vec::new())
    }

    fn reply(&self, request: &Request, mut chunks: Vec<(u16, Lent)>) -> Vec<Part> {
        if !self.agreed.structured {
            let mut head = SIMPLE_MAGIC.to_be_bytes().to_vec();
            head.extend(0u32.to_be_bytes());
            head.extend(request.cookie.to_be_bytes());
            let data = chunks.pop().map_or_else(Lent::default, |(_, data)| data);
            return vec![Part { head, body: data, slot: None }];
        }
        if chunks.is_empty() {
            chunks.push((CHUNK_NONE, Lent::default()));
        }
        let last = chunks.len() - 1;
        let part = |(index, (kind, body)): (usize, (u16, Lent))| {
            let place = (kind == CHUNK_DATA).then(|| request.offset.to_be_bytes());
            let place = place.as_ref().map_or(&[][..], |place| &place[..]);
            let mut head = STRUCTURED_MAGIC.to_be_bytes().to_vec();
            head.extend((if index == last { CHUNK_DONE } else { 0 }).to_be_bytes());
            head.extend(kind.to_be_bytes());
            head.extend(request.cookie.to_be_bytes());
            head.extend(((place.len() + body.len()) as u32).to_be_bytes());
            head.extend(place);
            Part { head, body, slot: None }
        };
        chunks.into_iter().enumerate().map(part).collect()
    }

    async fn put(&self, parts: Vec<Part>) -> io::Result<()> {
        let mut ending = self.ending.subscribe();
        let late = async {
            let _ = ending.wait_for(|ending| *ending).await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            biased;
            result = self.outbox.put(parts) => result,
            _ = late => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn refusal(&self, request: &Request, error: u32) -> Part {
        let mut out = Vec::new();
        if self.agreed.structured {
            out.extend(STRUCTURED_MAGIC.to_be_bytes());
            out.extend(CHUNK_DONE.to_be_bytes());
            out.extend(CHUNK_ERROR.to_be_bytes());
            out.extend(request.cookie.to_be_bytes());
            out.extend(6u32.to_be_bytes());
            out.extend(error.to_be_bytes());
            out.extend(0u16.to_be_bytes());
        } else {
            out.extend(SIMPLE_MAGIC.to_be_bytes());
            out.extend(error.to_be_bytes());
            out.extend(request.cookie.to_be_bytes());
        }
        Part { head: out, ..Part::default() }
    }
}

async fn extents(
    node: &Arc<Node>,
    context: &Context,
    offset: u64,
    len: u64,
    one: bool,
) -> io::Result<Vec<(u64, u32)>> {
    let mut all: Vec<(u64, u32)> = Vec::new();
    let mut at = offset;
    while at < offset + len {
        let left = offset + len - at;
        let (run, state) = match context {
            Context::Bitmap(bitmap) => {
                let (dirty, run) = bitmap.run(at, left);
                (run, u32::from(dirty))
            }
            Context::Allocation => {
                let (zero, run) = crate::jobs::known_zero(node, at, left).await?;
                let (data, run) = crate::jobs::allocated(node, at, run).await?;
                let zero_bit = if zero { STATE_ZERO } else { 0 };
                let hole = if zero || !data { STATE_HOLE } else { 0 };
                (run, zero_bit | hole)
            }
            Context::Depth => depth(node, at, left).await?,
        };
        let run = run.clamp(1, left).min(u64::from(u32::MAX) >> 1);
        let full = all.len() == MAX_EXTENTS || (one && !all.is_empty());
        match all.last_mut() {
            Some(last) if last.1 == state => last.0 += run,
            _ if full => break,
            _ => all.push((run, state)),
        }
        at += run;
    }
    Ok(all)
}

/// In which image of the chain a range is allocated, 1 for the first; 0 for none.
async fn depth(node: &Arc<Node>, at: u64, len: u64) -> io::Result<(u64, u32)> {
    let (mut node, mut len, mut depth) = (node.skip_filters(), len, 1);
    loop {
        let status = node.block_status(at, len).await?;
        len = len.min(status.len);
        if status.flags.contains(StatusFlags::ALLOCATED) {
            return Ok((len, depth));
        }
        match node.backing() {
            Some(next) => node = next.skip_filters(),
            None => return Ok((len, 0)),
        }
        depth += 1;
    }
}
