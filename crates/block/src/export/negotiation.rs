//! What a client and the server agree on before requests come (fixed newstyle).

use super::nbd::{Export, Seat, Server};
use super::session::Stream;
use crate::protocols::nbd::wire::*;
use base::Failure;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A metadata context a client asked for; its number is its place in the list.
#[derive(Clone)]
pub(super) enum Context {
    Allocation,
    Depth,
    Bitmap(Arc<crate::DirtyBitmap>),
}

/// What holds for the requests of one client.
#[derive(Default)]
pub(super) struct Agreed {
    pub structured: bool,
    pub contexts: Vec<Context>,
    contexts_of: String,
}

impl Agreed {
    /// Contexts chosen for another export are of no use with `export`.
    fn settle(&mut self, export: &Export) {
        if self.contexts_of != export.setup.name {
            self.contexts.clear();
        }
    }
}

pub(super) fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// The export a client chose and the stream, now perhaps inside TLS. `None`: the client went
/// away properly.
pub(super) async fn negotiate(
    server: &Server,
    mut stream: Stream,
    agreed: &mut Agreed,
) -> io::Result<Option<(Seat, Stream)>> {
    let mut hello = MAGIC.to_be_bytes().to_vec();
    hello.extend(OPT_MAGIC.to_be_bytes());
    hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&hello).await?;
    let client = stream.read_u32().await?;
    if client & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(invalid());
    }
    if server.tls().is_some() {
        match secure(server, stream).await? {
            Some(secured) => stream = secured,
            None => return Ok(None),
        }
    }
    let trailer = if client & u32::from(NO_ZEROES) == 0 { 124 } else { 0 };
    Ok(options(server, &mut stream, trailer, agreed).await?.map(|export| (export, stream)))
}

/// The next option; `None` if it is too long to go on.
async fn next_option(stream: &mut Stream) -> io::Result<Option<(u32, Vec<u8>)>> {
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
    Ok(Some((option, body)))
}

/// Before TLS a client may only ask for it or leave.
async fn secure(server: &Server, mut stream: Stream) -> io::Result<Option<Stream>> {
    let Some(tls) = server.tls() else { return Ok(None) };
    loop {
        let Some((option, body)) = next_option(&mut stream).await? else { return Ok(None) };
        match option {
            OPT_STARTTLS if body.is_empty() => {
                reply(&mut stream, option, REP_ACK, &[]).await?;
                let accepted = tls.credentials.accept(stream, tls.authorise.as_deref()).await;
                let refused = |why: Failure| io::Error::other(why.to_string());
                return Ok(Some(Box::new(accepted.map_err(refused)?)));
            }
            OPT_STARTTLS => reply(&mut stream, option, REP_ERR_INVALID, b"unexpected data").await?,
            OPT_ABORT => {
                reply(&mut stream, option, REP_ACK, &[]).await?;
                return Ok(None);
            }
            // There is no way to tell an error.
            OPT_EXPORT_NAME => return Ok(None),
            _ => reply(&mut stream, option, REP_ERR_TLS_REQD, b"not permitted before TLS").await?,
        }
    }
}

async fn options(
    server: &Server,
    stream: &mut Stream,
    trailer: usize,
    agreed: &mut Agreed,
) -> io::Result<Option<Seat>> {
    loop {
        let Some((option, body)) = next_option(stream).await? else { return Ok(None) };
        match option {
            OPT_EXPORT_NAME => {
                let name = String::from_utf8_lossy(&body);
                let Some(export) = server.seat(&name) else { return Ok(None) };
                agreed.settle(&export);
                let mut out = export.setup.backend.size().to_be_bytes().to_vec();
                out.extend(flags_of(&export, agreed.structured).to_be_bytes());
                out.resize(out.len() + trailer, 0);
                stream.write_all(&out).await?;
                stream.flush().await?;
                return Ok(Some(export));
            }
            OPT_ABORT => {
                reply(stream, option, REP_ACK, &[]).await?;
                return Ok(None);
            }
            OPT_LIST if body.is_empty() => list(server, stream).await?,
            OPT_STRUCTURED_REPLY if body.is_empty() => {
                agreed.structured = true;
                reply(stream, option, REP_ACK, &[]).await?;
            }
            OPT_INFO | OPT_GO => {
                let Some(export) = info(server, stream, option, &body, agreed).await? else { continue };
                if option == OPT_GO {
                    agreed.settle(&export);
                    return Ok(Some(export));
                }
            }
            OPT_LIST_META | OPT_SET_META if !agreed.structured => {
                reply(stream, option, REP_ERR_INVALID, b"structured replies come first").await?
            }
            OPT_LIST_META | OPT_SET_META => meta(server, stream, option, &body, agreed).await?,
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                reply(stream, option, REP_ERR_INVALID, b"unexpected data").await?
            }
            OPT_STARTTLS if server.tls().is_some() => {
                reply(stream, option, REP_ERR_INVALID, b"TLS is in use already").await?
            }
            OPT_STARTTLS => reply(stream, option, REP_ERR_POLICY, b"TLS is not configured").await?,
            _ => reply(stream, option, REP_ERR_UNSUP, b"unsupported option").await?,
        }
    }
}

async fn list(server: &Server, stream: &mut Stream) -> io::Result<()> {
    for export in server.exports() {
        let name = export.setup.name.as_bytes();
        let mut out = (name.len() as u32).to_be_bytes().to_vec();
        out.extend(name);
        out.extend(export.setup.description.as_deref().unwrap_or("").as_bytes());
        reply(stream, OPT_LIST, REP_SERVER, &out).await?;
    }
    reply(stream, OPT_LIST, REP_ACK, &[]).await
}

async fn reply(stream: &mut Stream, option: u32, kind: u32, body: &[u8]) -> io::Result<()> {
    let mut out = REP_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    stream.write_all(&out).await?;
    stream.flush().await
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
) -> io::Result<Option<Seat>> {
    let Some(name) = take_name(&mut body) else {
        reply(stream, option, REP_ERR_INVALID, b"bad name length").await?;
        return Ok(None);
    };
    let count = body.get(..2).map(be);
    let numbers = body.get(2..).unwrap_or_default().chunks_exact(2);
    if count != Some(numbers.len() as u64) || !numbers.remainder().is_empty() {
        reply(stream, option, REP_ERR_INVALID, b"bad number of information requests").await?;
        return Ok(None);
    }
    let wanted: Vec<u16> = numbers.map(|pair| be(pair) as u16).collect();
    let name = String::from_utf8_lossy(name).into_owned();
    let Some(export) = server.seat(&name) else {
        let text = format!("export '{}' not present", shown(&name));
        reply(stream, option, REP_ERR_UNKNOWN, text.as_bytes()).await?;
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

/// A name for an error text: long ones are cut.
fn shown(name: &str) -> String {
    const LONGEST: usize = 80;
    match name.len() < LONGEST {
        true => name.to_string(),
        false => format!("{}...", &name[..name.floor_char_boundary(LONGEST)]),
    }
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
        body.is_empty().then_some((name, queries))
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

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn long_names_are_cut_at_a_letter() {
        assert_eq!(shown(&"a".repeat(79)), "a".repeat(79));
        assert_eq!(shown(&"a".repeat(80)), "a".repeat(80) + "...");
        assert_eq!(shown(&format!("a{}", "\u{e4}".repeat(2048))), format!("a{}...", "\u{e4}".repeat(39)));
    }
}
