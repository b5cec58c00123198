//! `nbd`: a disk of an NBD server (fixed newstyle, structured replies, block status).

mod connection;
pub mod wire;

use crate::driver::{Driver, Kind, Layer, Open};
use crate::options::Options;
use crate::types::*;
use base::{Result, bail, fail};
use connection::{Address, Answer, Connection, Exported};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::*;

pub static DRIVER: Driver = Driver {
    name: "nbd",
    kind: Kind::Protocol,
    schemes: &["nbd", "nbd+tcp", "nbd+unix"],
    open,
    ..Driver::DEFAULT
};

struct Nbd {
    address: Address,
    export: String,
    info: Exported,
    filename: String,
    /// How long requests wait for a lost server to come back.
    reconnect: Duration,
    current: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let options = &mut open.options;
        let filename = options.take_str("filename")?;
        if let Some(name) = &filename {
            parse_filename(name, options)?;
        }
        let address = take_address(options)?;
        let export = options.take_str("export")?.unwrap_or_default();
        if export.len() > MAX_NAME {
            bail!("export name too long to send to server");
        }
        let seconds =
            |options: &mut Options, key: &str| Ok::<_, base::Failure>(options.take_u64(key)?.unwrap_or(0));
        let reconnect = Duration::from_secs(seconds(options, "reconnect-delay")?.min(86400));
        let open_timeout = Duration::from_secs(seconds(options, "open-timeout")?.min(86400));
        if options.take_str("tls-creds")?.is_some() {
            bail!("TLS is not supported for nbd nodes");
        }
        if options.take_str("x-dirty-bitmap")?.is_some() {
            bail!("x-dirty-bitmap is not supported");
        }
        let begun = Instant::now();
        let (connection, info) = loop {
            match Connection::open(&address, &export).await {
                Ok(opened) => break opened,
                Err(_) if begun.elapsed() < open_timeout => {
                    tokio::time::sleep(Duration::from_millis(100)).await
                }
                Err(why) => return Err(why),
            }
        };
        if info.flags & READ_ONLY != 0 {
            open.read_only().map_err(|_| fail!("request on write denied without write permission"))?;
        }
        let filename = filename.filter(|name| name.contains("://")).unwrap_or_else(|| address.uri(&export));
        let current = tokio::sync::Mutex::new(Some(Arc::new(connection)));
        Ok(Arc::new(Nbd { address, export, info, filename, reconnect, current }) as Arc<dyn Layer>)
    })
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

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()) {
            Some(code) => {
                out.push(code);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn take_address(options: &mut Options) -> Result<Address> {
    let mut server = match options.take_table("server")? {
        Some(server) => server,
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
    server.take_str("type")?;
    let address = match (server.take_str("path")?, server.take_str("host")?) {
        (Some(_), Some(_)) => bail!("path and host may not be used at the same time"),
        (Some(path), None) => Address::Unix(path),
        (None, Some(host)) => {
            let port = server.take_str("port")?.unwrap_or_else(|| "10809".into());
            Address::Tcp(host, port.parse().map_err(|_| fail!("Invalid port '{port}'"))?)
        }
        (None, None) => bail!("NBD server address missing"),
    };
    match server.0.keys().next() {
        Some(key) => bail!("Parameter 'server.{key}' is unexpected"),
        None => Ok(address),
    }
}

impl Nbd {
    async fn connection(&self) -> IoResult<Arc<Connection>> {
        let mut current = self.current.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| connection.is_alive()) {
            return Ok(connection.clone());
        }
        *current = None;
        let begun = Instant::now();
        loop {
            if let Ok((connection, info)) = Connection::open(&self.address, &self.export).await
                && info.size == self.info.size
            {
                let connection = Arc::new(connection);
                *current = Some(connection.clone());
                return Ok(connection);
            }
            if begun.elapsed() >= self.reconnect {
                return Err(errno(libc::EIO));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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
    fn size(&self) -> u64 {
        self.info.size
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.info.alignment,
            max_transfer: MAX_PAYLOAD,
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
            if self.info.flags & SEND_WRITE_ZEROES == 0 {
                return Err(errno(libc::ENOTSUP));
            }
            let keep = if flags.contains(ZeroFlags::MAY_UNMAP) { 0 } else { FLAG_NO_HOLE };
            self.in_pieces(CMD_WRITE_ZEROES, keep, offset, len).await
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
            if !self.info.allocation {
                return Ok(whole);
            }
            let asked = len.min(u64::from(u32::MAX) & !0xffff) as u32;
            let answer = self.request(CMD_BLOCK_STATUS, FLAG_REQ_ONE, (offset, asked), &[]).await?;
            let Some((run, state)) = answer.extent.filter(|(run, _)| *run > 0) else { return Ok(whole) };
            let mut flags = StatusFlags::ALLOCATED;
            flags.set(StatusFlags::ZERO, state & STATE_ZERO != 0);
            flags.set(StatusFlags::DATA, state & STATE_HOLE == 0);
            Ok(Status { flags, len: u64::from(run).min(len), offset: Some(offset) })
        })
    }

    fn close(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            if let Some(connection) = self.current.lock().await.take() {
                connection.close().await;
            }
            Ok(())
        })
    }

    fn filename(&self) -> Option<String> {
        Some(self.filename.clone())
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
