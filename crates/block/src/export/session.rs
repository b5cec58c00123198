//! A client of the NBD server: negotiation, then requests.

use super::nbd::{Export, Server};
use crate::graph::Node;
use crate::protocols::nbd::wire::*;
use crate::types::*;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Semaphore, watch};

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub(super) type Stream = Box<dyn Duplex>;

/// Requests of one client that are worked on at once.
const PARALLEL: u32 = 16;
/// Bytes of requests read at once.
const READ_AHEAD: usize = 64 << 10;
/// Extents told in one block status.
const MAX_EXTENTS: usize = 1024;
const NEGOTIATION: std::time::Duration = std::time::Duration::from_secs(10);

/// A metadata context a client asked for; its number is its place in the list.
#[derive(Clone)]
enum Context {
    Allocation,
    Depth,
    Bitmap(Arc<crate::DirtyBitmap>),
}

#[derive(Default)]
struct Agreed {
    structured: bool,
    contexts: Vec<Context>,
    contexts_of: String,
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

fn be(data: &[u8]) -> u64 {
    data.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub(super) async fn serve(
    server: &Server,
    mut stream: Stream,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut agreed = Agreed::default();
    let negotiated = tokio::select! {
        result = tokio::time::timeout(NEGOTIATION, negotiate(server, &mut stream, &mut agreed)) => result,
        _ = stop.changed() => return Ok(()),
    };
    let Ok(export) = negotiated else { return Ok(()) };
    let Some(export) = export? else { return Ok(()) };
    let mut gone = export.stop.subscribe();
    if *gone.borrow() {
        return Ok(());
    }
    export.joined(true);
    let (reader, writer) = tokio::io::split(stream);
    let session = Arc::new(Session { export: export.clone(), agreed, writer: Mutex::new(writer) });
    let slots = Arc::new(Semaphore::new(PARALLEL as usize));
    let ended = tokio::select! {
        result = session.requests(reader, &slots) => result,
        _ = stop.changed() => Ok(()),
        _ = gone.changed() => Ok(()),
    };
    // Requests in progress end before the export may go.
    let _ = slots.acquire_many(PARALLEL).await;
    let _ = session.writer.lock().await.shutdown().await;
    export.joined(false);
    ended
}

async fn reply(stream: &mut Stream, option: u32, kind: u32, body: &[u8]) -> io::Result<()> {
    let mut out = REP_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    stream.write_all(&out).await
}

fn flags_of(export: &Export, structured: bool) -> u16 {
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CACHE;
    if export.is_writable() {
        flags |= SEND_TRIM | SEND_WRITE_ZEROES | FAST_ZERO;
    } else {
        flags |= READ_ONLY;
    }
    // All connections go through the same nodes, so a flush on one is one for all.
    flags |= MULTI_CONN;
    if structured {
        flags |= SEND_DF;
    }
    flags
}

async fn negotiate(
    server: &Server,
    stream: &mut Stream,
    agreed: &mut Agreed,
) -> io::Result<Option<Arc<Export>>> {
    let mut hello = MAGIC.to_be_bytes().to_vec();
    hello.extend(OPT_MAGIC.to_be_bytes());
    hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&hello).await?;
    let client = stream.read_u32().await?;
    if client & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(invalid());
    }
    loop {
        if stream.read_u64().await? != OPT_MAGIC {
            return Err(invalid());
        }
        let option = stream.read_u32().await?;
        let len = stream.read_u32().await?;
        if len > 1 << 16 {
            reply(stream, option, REP_ERR_TOO_BIG, b"option is too long").await?;
            return Ok(None);
        }
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body).await?;
        match option {
            OPT_EXPORT_NAME => {
                let name = String::from_utf8_lossy(&body);
                let Some(export) = server.find(&name) else { return Ok(None) };
                let mut out = export.setup.backend.size().to_be_bytes().to_vec();
                out.extend(flags_of(&export, agreed.structured).to_be_bytes());
                if client & u32::from(NO_ZEROES) == 0 {
                    out.extend([0; 124]);
                }
                stream.write_all(&out).await?;
                return Ok(Some(export));
            }
            OPT_ABORT => {
                reply(stream, option, REP_ACK, &[]).await?;
                return Ok(None);
            }
            OPT_LIST if body.is_empty() => {
                for export in server.exports() {
                    let name = export.setup.name.as_bytes();
                    let mut out = (name.len() as u32).to_be_bytes().to_vec();
                    out.extend(name);
                    out.extend(export.setup.description.as_deref().unwrap_or("").as_bytes());
                    reply(stream, option, REP_SERVER, &out).await?;
                }
                reply(stream, option, REP_ACK, &[]).await?;
            }
            OPT_STRUCTURED_REPLY if body.is_empty() => {
                agreed.structured = true;
                reply(stream, option, REP_ACK, &[]).await?;
            }
            OPT_INFO | OPT_GO => {
                let Some(export) = info(server, stream, option, &body, agreed).await? else { continue };
                if option == OPT_GO {
                    if agreed.contexts_of != export.setup.name {
                        agreed.contexts.clear();
                    }
                    return Ok(Some(export));
                }
            }
            OPT_LIST_META | OPT_SET_META => meta(server, stream, option, &body, agreed).await?,
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                reply(stream, option, REP_ERR_INVALID, b"unexpected data").await?
            }
            _ => reply(stream, option, REP_ERR_UNSUP, b"unsupported option").await?,
        }
    }
}

/// Takes a string with its length from the front of `body`.
fn take_name<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = be(body.get(..4)?) as usize;
    let name = body.get(4..4usize.checked_add(len)?)?;
    *body = &body[4 + len..];
    (len <= MAX_NAME).then_some(name)
}

async fn info(
    server: &Server,
    stream: &mut Stream,
    option: u32,
    mut body: &[u8],
    agreed: &Agreed,
) -> io::Result<Option<Arc<Export>>> {
    let Some(name) = take_name(&mut body) else {
        reply(stream, option, REP_ERR_INVALID, b"bad name length").await?;
        return Ok(None);
    };
    let count = body.get(..2).map_or(0, be) as usize;
    let wanted: Vec<u16> =
        body.get(2..).unwrap_or_default().chunks_exact(2).take(count).map(|pair| be(pair) as u16).collect();
    let name = String::from_utf8_lossy(name).into_owned();
    let Some(export) = server.find(&name) else {
        reply(stream, option, REP_ERR_UNKNOWN, format!("export '{name}' not present").as_bytes()).await?;
        return Ok(None);
    };
    if wanted.contains(&INFO_NAME) {
        reply(stream, option, REP_INFO, &[&INFO_NAME.to_be_bytes()[..], name.as_bytes()].concat()).await?;
    }
    if let Some(text) = export.setup.description.as_deref().filter(|_| wanted.contains(&INFO_DESCRIPTION)) {
        reply(stream, option, REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes()[..], text.as_bytes()].concat())
            .await?;
    }
    let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1u32, 4096, MAX_PAYLOAD] {
        sizes.extend(size.to_be_bytes());
    }
    reply(stream, option, REP_INFO, &sizes).await?;
    let mut out = INFO_EXPORT.to_be_bytes().to_vec();
    out.extend(export.setup.backend.size().to_be_bytes());
    out.extend(flags_of(&export, agreed.structured).to_be_bytes());
    reply(stream, option, REP_INFO, &out).await?;
    reply(stream, option, REP_ACK, &[]).await?;
    Ok(Some(export))
}

async fn meta(
    server: &Server,
    stream: &mut Stream,
    option: u32,
    mut body: &[u8],
    agreed: &mut Agreed,
) -> io::Result<()> {
    let parsed = (|| {
        let name = String::from_utf8_lossy(take_name(&mut body)?).into_owned();
        let count = be(body.get(..4)?);
        body = &body[4..];
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(String::from_utf8_lossy(take_name(&mut body)?).into_owned());
        }
        Some((name, queries))
    })();
    let Some((name, queries)) = parsed else {
        return reply(stream, option, REP_ERR_INVALID, b"malformed request").await;
    };
    let Some(export) = server.find(&name) else {
        return reply(stream, option, REP_ERR_UNKNOWN, b"export not present").await;
    };
    let mut known = vec![("base:allocation".to_string(), Context::Allocation)];
    if export.setup.depth {
        known.push(("qemu:allocation-depth".into(), Context::Depth));
    }
    for bitmap in &export.setup.bitmaps {
        known.push((
            format!("qemu:dirty-bitmap:{}", bitmap.name().unwrap_or_default()),
            Context::Bitmap(bitmap.clone()),
        ));
    }
    let listing = option == OPT_LIST_META;
    let fits = |name: &str| {
        let exact = queries.iter().any(|query| query == name);
        let space = queries.iter().any(|query| query.ends_with(':') && name.starts_with(query.as_str()));
        exact || (listing && (queries.is_empty() || space))
    };
    let chosen: Vec<_> = known.into_iter().filter(|(name, _)| fits(name)).collect();
    for (id, (name, _)) in chosen.iter().enumerate() {
        let id = if listing { 0 } else { id as u32 };
        reply(stream, option, REP_META, &[&id.to_be_bytes()[..], name.as_bytes()].concat()).await?;
    }
    if !listing {
        agreed.contexts = chosen.into_iter().map(|(_, context)| context).collect();
        agreed.contexts_of = name;
    }
    reply(stream, option, REP_ACK, &[]).await
}

struct Session {
    export: Arc<Export>,
    agreed: Agreed,
    writer: Mutex<tokio::io::WriteHalf<Stream>>,
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
            let mut data = Vec::new();
            if request.command == CMD_WRITE {
                if request.len > MAX_PAYLOAD {
                    return Err(invalid());
                }
                data = vec![0; request.len as usize];
                reader.read_exact(&mut data).await?;
            }
            let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
            let session = self.clone();
            self.export.setup.backend.thread().handle().spawn(async move {
                // A client that no longer reads ends its session by itself.
                let _ = session.answer(request, data).await;
                drop(slot);
            });
        }
    }

    async fn answer(&self, request: Request, data: Vec<u8>) -> io::Result<()> {
        match self.perform(&request, data).await {
            Ok(chunks) => self.send(&request, chunks).await,
            Err(error) => self.send_error(&request, to_wire(errno_of(&error))).await,
        }
    }

    async fn perform(&self, request: &Request, data: Vec<u8>) -> io::Result<Vec<(u16, Vec<u8>)>> {
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
        let fua = flags & FLAG_FUA != 0 || self.export.setup.writethrough;
        match command {
            CMD_READ => {
                if len > MAX_PAYLOAD {
                    return Err(errno(libc::EINVAL));
                }
                let mut out = offset.to_be_bytes().to_vec();
                out.resize(8 + len as usize, 0);
                disk.read(offset, &mut out[8..]).await?;
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
                    chunks.push((CHUNK_STATUS, out));
                }
                return Ok(chunks);
            }
            _ => return Err(errno(libc::EINVAL)),
        }
        Ok(Vec::new())
    }

    async fn send(&self, request: &Request, chunks: Vec<(u16, Vec<u8>)>) -> io::Result<()> {
        let mut out = Vec::new();
        if !self.agreed.structured {
            out.extend(SIMPLE_MAGIC.to_be_bytes());
            out.extend(0u32.to_be_bytes());
            out.extend(request.cookie.to_be_bytes());
            if let Some((CHUNK_DATA, data)) = chunks.first() {
                out.extend_from_slice(&data[8..]);
            }
            return self.writer.lock().await.write_all(&out).await;
        }
        let chunks = if chunks.is_empty() { vec![(CHUNK_NONE, Vec::new())] } else { chunks };
        let last = chunks.len() - 1;
        for (index, (kind, body)) in chunks.into_iter().enumerate() {
            out.extend(STRUCTURED_MAGIC.to_be_bytes());
            out.extend((if index == last { CHUNK_DONE } else { 0 }).to_be_bytes());
            out.extend(kind.to_be_bytes());
            out.extend(request.cookie.to_be_bytes());
            out.extend((body.len() as u32).to_be_bytes());
            out.extend(body);
        }
        self.writer.lock().await.write_all(&out).await
    }

    async fn send_error(&self, request: &Request, error: u32) -> io::Result<()> {
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
        self.writer.lock().await.write_all(&out).await
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
