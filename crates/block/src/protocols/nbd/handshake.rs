//! The client's side of the negotiation (fixed newstyle).

use super::connection::{Reader, Writer};
use super::wire::*;
use base::{Failure, Result, bail, fail};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What a client asks a server for.
#[derive(Clone)]
pub struct Wanted {
    pub export: String,
    /// Credentials, and the host name the server's certificate must be for.
    pub tls: Option<(Arc<tls::Credentials>, String)>,
    /// The metadata context that block status is asked of.
    pub context: String,
    /// Failing to get `context` is an error.
    pub context_needed: bool,
}

/// What the server said of the export.
#[derive(Clone, Copy, Debug)]
pub struct Exported {
    pub size: u64,
    pub flags: u16,
    /// Smallest request in bytes.
    pub alignment: u32,
    /// Longest payload in bytes.
    pub max_payload: u32,
    pub structured: bool,
    /// The number of the metadata context that can be asked for.
    pub context: Option<u32>,
}

fn io(error: std::io::Error) -> Failure {
    Failure::os("Failed to read from the NBD server", &error)
}

async fn option(writer: &mut (impl AsyncWrite + Unpin), kind: u32, body: &[u8]) -> Result<()> {
    let mut out = OPT_MAGIC.to_be_bytes().to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    let sent = async {
        writer.write_all(&out).await?;
        writer.flush().await
    };
    sent.await.map_err(|error| Failure::os("Failed to write to the NBD server", &error))
}

async fn reply(reader: &mut (impl AsyncRead + Unpin), kind: u32) -> Result<(u32, Vec<u8>)> {
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

/// A refusal in the server's words.
fn refused(what: &str, code: u32, body: &[u8]) -> Failure {
    if code == REP_ERR_TLS_REQD {
        return fail!("server requires TLS for {what}").hint("Did you forget a valid tls-creds?");
    }
    let said: String = String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(4096).collect();
    match said.as_str() {
        "" => fail!("NBD server refused {what} (error {})", code & !REP_ERR),
        said => fail!("NBD server refused {what}: {said}"),
    }
}

/// The greeting; afterwards options may be sent.
pub(super) async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
    if stream.read_u64().await.map_err(io)? != MAGIC {
        bail!("Bad initial magic received");
    }
    if stream.read_u64().await.map_err(io)? != OPT_MAGIC {
        bail!("Bad server magic received");
    }
    let flags = stream.read_u16().await.map_err(io)?;
    if flags & FIXED_NEWSTYLE == 0 {
        bail!("Server does not support the fixed newstyle handshake");
    }
    stream.write_u32(u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES))).await.map_err(io)
}

/// Asks for TLS, which then begins on the stream.
pub(super) async fn start_tls(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
    option(stream, OPT_STARTTLS, &[]).await?;
    match reply(stream, OPT_STARTTLS).await? {
        (REP_ACK, body) if body.is_empty() => Ok(()),
        (code, body) if code & REP_ERR != 0 => Err(refused("TLS", code, &body)),
        _ => bail!("Unexpected answer to the request for TLS from the NBD server"),
    }
}

fn with_name(name: &str) -> Vec<u8> {
    let mut body = (name.len() as u32).to_be_bytes().to_vec();
    body.extend(name.as_bytes());
    body
}

/// Everything up to the first request.
pub(super) async fn choose(reader: &mut Reader, writer: &mut Writer, wanted: &Wanted) -> Result<Exported> {
    option(writer, OPT_STRUCTURED_REPLY, &[]).await?;
    let structured = match reply(reader, OPT_STRUCTURED_REPLY).await? {
        (REP_ACK, body) if body.is_empty() => true,
        (code @ REP_ERR_TLS_REQD, body) => return Err(refused("structured replies", code, &body)),
        (code, _) if code & REP_ERR != 0 => false,
        _ => bail!("Unexpected answer to the request for structured replies from the NBD server"),
    };
    let context = if structured { set_context(reader, writer, wanted).await? } else { None };
    if wanted.context_needed && context.is_none() {
        bail!("requested x-dirty-bitmap {} not found", wanted.context);
    }
    let mut body = with_name(&wanted.export);
    body.extend(1u16.to_be_bytes());
    body.extend(INFO_BLOCK_SIZE.to_be_bytes());
    option(writer, OPT_GO, &body).await?;
    let mut info =
        Exported { size: 0, flags: 0, alignment: 1, max_payload: MAX_PAYLOAD, structured, context };
    loop {
        let (code, body) = reply(reader, OPT_GO).await?;
        match code {
            REP_ACK => break,
            REP_INFO => take_info(&mut info, &body)?,
            REP_ERR_UNKNOWN => bail!("Requested export not available"),
            REP_ERR_UNSUP => return by_name(reader, writer, wanted, info).await,
            code if code & REP_ERR != 0 => return Err(refused("the export", code, &body)),
            _ => bail!("Unexpected reply from the NBD server"),
        }
    }
    checked(info)
}

/// The old way to choose an export, for servers that do not know OPT_GO.
async fn by_name(
    reader: &mut Reader,
    writer: &mut Writer,
    wanted: &Wanted,
    mut info: Exported,
) -> Result<Exported> {
    option(writer, OPT_EXPORT_NAME, wanted.export.as_bytes()).await?;
    let gone = |_| fail!("Requested export not available");
    info.size = reader.read_u64().await.map_err(gone)?;
    info.flags = reader.read_u16().await.map_err(io)?;
    checked(info)
}

fn checked(info: Exported) -> Result<Exported> {
    if info.flags & HAS_FLAGS == 0 || info.size > i64::MAX as u64 {
        bail!("NBD server sent an impossible export");
    }
    if !info.size.is_multiple_of(u64::from(info.alignment)) {
        bail!("export length {} is not multiple of minimum block size {}", info.size, info.alignment);
    }
    Ok(info)
}

fn take_info(info: &mut Exported, body: &[u8]) -> Result<()> {
    match (body.get(..2).map(be), body.len()) {
        (Some(kind), 12) if kind == u64::from(INFO_EXPORT) => {
            info.size = be(&body[2..10]);
            info.flags = be(&body[10..12]) as u16;
        }
        (Some(kind), 14) if kind == u64::from(INFO_BLOCK_SIZE) => {
            let least = be(&body[2..6]) as u32;
            if !least.is_power_of_two() || least > 65536 {
                bail!("server minimum block size {least} is not a power of two");
            }
            let most = be(&body[10..14]) as u32;
            if most < least {
                bail!("server maximum block size {most} is below its minimum {least}");
            }
            info.alignment = least;
            info.max_payload = most.min(MAX_PAYLOAD) / least * least;
        }
        (Some(kind), _) if kind == u64::from(INFO_EXPORT) || kind == u64::from(INFO_BLOCK_SIZE) => {
            bail!("NBD server sent information of {} bytes", body.len())
        }
        (None, _) => bail!("NBD server sent information of {} bytes", body.len()),
        _ => {}
    }
    Ok(())
}

async fn set_context(reader: &mut Reader, writer: &mut Writer, wanted: &Wanted) -> Result<Option<u32>> {
    let mut body = with_name(&wanted.export);
    body.extend(1u32.to_be_bytes());
    body.extend(with_name(&wanted.context));
    option(writer, OPT_SET_META, &body).await?;
    let mut found = None;
    loop {
        let (code, body) = reply(reader, OPT_SET_META).await?;
        match code {
            REP_META if body.len() > 4 && &body[4..] == wanted.context.as_bytes() && found.is_none() => {
                found = Some(be(&body[..4]) as u32);
            }
            REP_META => bail!("NBD server chose a metadata context that was not asked for"),
            REP_ACK => return Ok(found),
            // Without contexts, or without this export: the choice of the export will tell.
            code if code & REP_ERR != 0 => return Ok(None),
            _ => bail!("Unexpected reply from the NBD server"),
        }
    }
}
