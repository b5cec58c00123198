//! `nbd`: a disk of an NBD server (fixed newstyle, structured replies, block status).

mod connection;
mod handshake;
mod replay;
mod replies;
pub mod wire;

use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::Graph;
use crate::options::Options;
use crate::protocols::percent_decode;
use crate::types::*;
use base::{Result, bail, fail};
use connection::{Address, Connection, PATIENCE, Passed};
use handshake::{Exported, Wanted};
pub use replay::replay;
use replies::Answer;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use wire::*;

pub static DRIVER: Driver = Driver {
    name: "nbd",
    kind: Kind::Protocol,
    schemes: &["nbd", "nbd+tcp", "nbd+unix"],
    open,
    ..Driver::DEFAULT
};

/// Between two attempts to reach a server.
const RETRY: Duration = Duration::from_millis(100);

struct Nbd {
    address: Address,
    wanted: Wanted,
    info: Exported,
    filename: Option<String>,
    /// How long requests wait for a lost server to come back.
    reconnect: Duration,
    link: tokio::sync::Mutex<Link>,
    /// How many want requests to fail rather than wait.
    given_up: AtomicUsize,
    /// `given_up` has changed.
    woken: Notify,
}

/// The connection in use, or since when there is none.
struct Link {
    current: Option<Arc<Connection>>,
    lost: Option<Instant>,
    tried: Option<Instant>,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let options = &mut open.options;
        let filename = options.take_str("filename")?;
        if let Some(name) = &filename {
            parse_filename(name, options)?;
        }
        let given = |key: &str| options.get("server").is_some_and(|server| server.get(key).is_some());
        let by_family = given("ipv4") || given("ipv6");
        let address = take_address(options, &open.graph)?;
        let seconds = |options: &mut Options, key: &str| {
            let seconds = options.take_u64(key)?.unwrap_or(0);
            Ok::<_, base::Failure>(Duration::from_secs(seconds.min(u64::from(u32::MAX))))
        };
        let reconnect = seconds(options, "reconnect-delay")?;
        let open_timeout = seconds(options, "open-timeout")?;
        let wanted = take_wanted(options, open.graph.vault(), &address)?;
        let (connection, info) = connect(&address, &wanted, open_timeout).await?;
        if info.flags & READ_ONLY != 0 {
            open.read_only().map_err(|_| fail!("request on write denied without write permission"))?;
        }
        // A name cannot say which kinds of addresses were asked for.
        let filename = filename.filter(|name| name.contains("://"));
        let filename = filename.or_else(|| address.uri(&wanted.export).filter(|_| !by_family));
        let link =
            tokio::sync::Mutex::new(Link { current: Some(Arc::new(connection)), lost: None, tried: None });
        let (given_up, woken) = Default::default();
        let layer = Nbd { address, wanted, info, filename, reconnect, link, given_up, woken };
        Ok(Arc::new(layer) as Arc<dyn Layer>)
    })
}

/// The first connection: tried once, or again and again until `limit` is over.
async fn connect(address: &Address, wanted: &Wanted, limit: Duration) -> Result<(Connection, Exported)> {
    let begun = Instant::now();
    loop {
        let patience = match limit.is_zero() {
            true => PATIENCE,
            false => PATIENCE.min(limit.saturating_sub(begun.elapsed())),
        };
        let why = match Connection::open(address, wanted, patience).await {
            Ok(opened) => return Ok(opened),
            Err(why) => why,
        };
        if begun.elapsed() + RETRY >= limit {
            return Err(why);
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn take_wanted(options: &mut Options, vault: &dyn crate::Vault, address: &Address) -> Result<Wanted> {
    let export = options.take_str("export")?.unwrap_or_default();
    if export.len() > MAX_NAME {
        bail!("export name too long to send to server");
    }
    let hostname = options.take_str("tls-hostname")?;
    let tls = match options.take_str("tls-creds")? {
        None if hostname.is_some() => bail!("tls-hostname may only be used with tls-creds"),
        None => None,
        Some(id) => {
            let credentials = vault.credentials(&id)?;
            credentials.expect(tls::Endpoint::Client)?;
            let host = match (hostname, address) {
                (Some(host), _) => host,
                (None, Address::Tcp { host, .. }) => host.clone(),
                (None, Address::Unix(_) | Address::Passed(_)) => {
                    bail!("tls-hostname is needed to check the certificate of a server on a UNIX socket")
                }
            };
            Some((credentials, host))
        }
    };
    let bitmap = options.take_str("x-dirty-bitmap")?;
    if bitmap.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
        bail!("x-dirty-bitmap query too long to send to server");
    }
    let context_needed = bitmap.is_some();
    let context = bitmap.unwrap_or_else(|| "base:allocation".into());
    Ok(Wanted { export, tls, context, context_needed })
}

/// Puts what a file name says into options.
fn parse_filename(name: &str, options: &mut Options) -> Result<()> {
    if let Some((scheme, rest)) = name.split_once("://") {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        if !export.is_empty() {
            options.set("export", percent_decode(export));
        }
        if scheme == "nbd+unix" {
            let socket = query.split('&').find_map(|part| part.strip_prefix("socket="));
            let socket = socket.ok_or_else(|| fail!("nbd+unix URI without a socket parameter"))?;
            options.set("path", percent_decode(socket));
            return Ok(());
        }
        let (host, port) =
            match host.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']')) {
                Some((host, port)) => (host, port),
                None => (host, "10809"),
            };
        options.set("host", if host.is_empty() { "localhost" } else { host.trim_matches(['[', ']']) });
        options.set("port", port);
        return Ok(());
    }
    let rest = name
        .strip_prefix("nbd:")
        .ok_or_else(|| fail!("File name string for new protocols must start with 'nbd:'"))?;
    let (place, export) = match rest.split_once(":exportname=") {
        Some((place, export)) => (place, Some(export)),
        None => (rest, None),
    };
    if let Some(export) = export {
        options.set("export", export);
    }
    match place.strip_prefix("unix:") {
        Some(path) => options.set("path", path),
        None => {
            let (host, port) =
                place.rsplit_once(':').ok_or_else(|| fail!("No port specified for nbd server"))?;
            options.set("host", host);
            options.set("port", port);
        }
    }
    Ok(())
}

fn take_address(options: &mut Options, graph: &Graph) -> Result<Address> {
    let mut server = match options.take_table("server")? {
        Some(_) if ["host", "port", "path"].iter().any(|key| options.contains(key)) => {
            bail!("Cannot use 'server' and path/host/port at the same time")
        }
        Some(mut server) => {
            let kinds = [("inet", "host"), ("unix", "path"), ("fd", "str"), ("vsock", "cid")];
            let Some(needed) = server.take_word("type", &kinds)? else {
                bail!("Parameter 'type' is missing")
            };
            match needed {
                "host" | "path" => server,
                "str" => {
                    let name = server.need_str("str")?;
                    server.finish_in("server")?;
                    return Ok(Address::Passed(Passed::new(graph.take_fd(&name)?)));
                }
                _ => bail!("the address of an NBD server must be of type 'inet', 'unix' or 'fd'"),
            }
        }
        None => {
            let mut server = Options::new();
            for key in ["host", "port", "path"] {
                if let Some(value) = options.take(key) {
                    server.set(key, value);
                }
            }
            server
        }
    };
    let address = match (server.take_str("path")?, server.take_str("host")?) {
        (Some(_), Some(_)) => bail!("path and host may not be used at the same time"),
        (Some(path), None) => Address::Unix(path),
        (None, Some(host)) => {
            let port = server.take_str("port")?.unwrap_or_else(|| "10809".into());
            let port = port.parse().map_err(|_| fail!("Invalid port '{port}'"))?;
            Address::Tcp { host, port, families: server.take_families()? }
        }
        (None, None) => bail!("NBD server address missing"),
    };
    server.finish_in("server")?;
    Ok(address)
}

impl Nbd {
    /// The connection; a lost one is made again. Requests wait for that until the delay is
    /// over, afterwards they fail at once while an attempt is made now and then.
    async fn connection(&self) -> IoResult<Arc<Connection>> {
        let mut link = self.link.lock().await;
        if let Some(connection) = link.current.as_ref().filter(|connection| connection.is_alive()) {
            return Ok(connection.clone());
        }
        link.current = None;
        let lost = *link.lost.get_or_insert_with(Instant::now);
        loop {
            let woken = self.woken.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let late = self.is_late(lost);
            if late && link.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
                return Err(errno(libc::EIO));
            }
            let limit = self.reconnect.saturating_sub(lost.elapsed()).max(Duration::from_secs(1));
            let attempt = tokio::select! {
                attempt = Connection::open(&self.address, &self.wanted, limit.min(PATIENCE)) => attempt.ok(),
                () = &mut woken => None,
            };
            link.tried = Some(Instant::now());
            if let Some((connection, info)) = attempt
                && self.is_same(&info)
            {
                let connection = Arc::new(connection);
                *link = Link { current: Some(connection.clone()), lost: None, tried: None };
                return Ok(connection);
            }
            if self.is_late(lost) {
                return Err(errno(libc::EIO));
            }
            // Woken in between, too.
            let _ = tokio::time::timeout(RETRY, woken).await;
        }
    }

    /// Whether a server lost since then is not waited for any longer.
    fn is_late(&self, lost: Instant) -> bool {
        self.given_up.load(Ordering::Acquire) > 0 || lost.elapsed() >= self.reconnect
    }

    /// A server that came back must still serve what the users of the node rely on.
    fn is_same(&self, info: &Exported) -> bool {
        info.size == self.info.size
            && info.flags == self.info.flags
            && info.alignment <= self.info.alignment
            && info.max_payload >= self.info.max_payload
            && info.context == self.info.context
    }

    /// Sends a request, again after a reconnect.
    async fn request(&self, command: u16, flags: u16, range: (u64, u32), data: &[u8]) -> IoResult<Answer> {
        loop {
            let connection = self.connection().await?;
            match connection.request(command, flags, range, data).await {
                Err(_) if !connection.is_alive() && !self.reconnect.is_zero() => {}
                other => return other,
            }
        }
    }

    fn flag(&self, on: bool, capability: u16, flag: u16) -> u16 {
        if on && self.info.flags & capability != 0 { flag } else { 0 }
    }
}

impl Layer for Nbd {
    fn give_up(&self, on: bool) {
        match on {
            true => self.given_up.fetch_add(1, Ordering::AcqRel),
            false => self.given_up.fetch_sub(1, Ordering::AcqRel),
        };
        self.woken.notify_waiters();
    }

    fn size(&self) -> u64 {
        self.info.size
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.info.alignment,
            max_transfer: self.info.max_payload,
            fua: self.info.flags & SEND_FUA != 0,
            ..Limits::default()
        }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let answer = self.request(CMD_READ, 0, (offset, buf.len() as u32), &[]).await?;
            let data = answer.data.filter(|data| data.len() == buf.len()).ok_or_else(|| errno(libc::EIO))?;
            buf.copy_from_slice(&data);
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let fua = self.flag(flags.contains(WriteFlags::FUA), SEND_FUA, FLAG_FUA);
            self.request(CMD_WRITE, fua, (offset, data.len() as u32), data).await.map(drop)
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let fast = flags.contains(ZeroFlags::NO_FALLBACK);
            let needed = if fast { SEND_WRITE_ZEROES | FAST_ZERO } else { SEND_WRITE_ZEROES };
            if self.info.flags & needed != needed {
                return Err(errno(libc::ENOTSUP));
            }
            let keep = if flags.contains(ZeroFlags::MAY_UNMAP) { 0 } else { FLAG_NO_HOLE };
            let how = keep | if fast { FLAG_FAST_ZERO } else { 0 };
            self.in_pieces(CMD_WRITE_ZEROES, how, offset, len).await
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if self.info.flags & SEND_TRIM == 0 {
                return Ok(());
            }
            self.in_pieces(CMD_TRIM, 0, offset, len).await
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            if self.info.flags & SEND_FLUSH == 0 {
                return Ok(());
            }
            self.request(CMD_FLUSH, 0, (0, 0), &[]).await.map(drop)
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let whole =
                Status { flags: StatusFlags::DATA | StatusFlags::ALLOCATED, len, offset: Some(offset) };
            if self.info.context.is_none() {
                return Ok(whole);
            }
            let asked = len.min(u64::from(u32::MAX) & !0xffff) as u32;
            let answer = self.request(CMD_BLOCK_STATUS, FLAG_REQ_ONE, (offset, asked), &[]).await?;
            let (run, state) = answer.extent.ok_or_else(|| errno(libc::EIO))?;
            // What a bitmap has marked is told as not allocated.
            let marked = self.wanted.context_needed && state & STATE_HOLE != 0;
            let mut flags = if marked { StatusFlags::empty() } else { StatusFlags::ALLOCATED };
            flags.set(StatusFlags::ZERO, state & STATE_ZERO != 0);
            flags.set(StatusFlags::DATA, state & STATE_HOLE == 0);
            Ok(Status { flags, len: u64::from(run).min(len), offset: Some(offset) })
        })
    }

    /// The server decides; users who want no more than there is have it.
    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            if size > self.info.size {
                bail!("Cannot grow NBD nodes");
            }
            if how.exact && size != self.info.size {
                bail!("Cannot resize NBD nodes");
            }
            Ok(())
        })
    }

    fn close(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            if let Some(connection) = self.link.lock().await.current.take() {
                connection.close().await;
            }
            Ok(())
        })
    }

    fn filename(&self) -> Option<String> {
        self.filename.clone()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Nbd {
    async fn in_pieces(&self, command: u16, flags: u16, offset: u64, len: u64) -> IoResult {
        let mut at = offset;
        while at < offset + len {
            let piece = (offset + len - at).min(1 << 30) as u32;
            self.request(command, flags, (at, piece), &[]).await?;
            at += u64::from(piece);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
