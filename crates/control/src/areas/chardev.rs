use crate::{Call, Routes};
use base::{Failure, Result, fail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schema::chardev::*;
use spec::chardev::{ChardevLog, ChardevSocket as SocketSpec};
use spec::socket::{InetAddress, UnixAddress};
use spec::{Chardev, ChardevKind, SocketAddress};

pub fn route(routes: &mut Routes) {
    routes.add(query_chardev);
    routes.add(query_chardev_backends);
    routes.add(chardev_add);
    routes.add(chardev_remove);
    routes.add(ringbuf_write);
    routes.add(ringbuf_read);
}

async fn query_chardev(call: Call, _: QueryChardev) -> Result<Vec<ChardevInfo>> {
    let info = |info: chardev::Info| ChardevInfo {
        label: info.label,
        filename: info.filename,
        frontend_open: info.frontend_open,
    };
    Ok(call.world().host.chardevs.query().into_iter().map(info).collect())
}

async fn query_chardev_backends(_: Call, _: QueryChardevBackends) -> Result<Vec<ChardevBackendInfo>> {
    Ok(chardev::KINDS.iter().map(|name| ChardevBackendInfo { name: name.to_string() }).collect())
}

async fn chardev_add(call: Call, command: ChardevAdd) -> Result<ChardevReturn> {
    let spec = chardev_spec(&call, command.id, command.backend)?;
    let added = call.world().host.chardevs.add(&spec).await?;
    Ok(ChardevReturn { pty: added.pty })
}

async fn chardev_remove(call: Call, command: ChardevRemove) -> Result<()> {
    call.world().host.chardevs.remove(&command.id).await
}

fn chardev_spec(call: &Call, id: String, backend: ChardevBackend) -> Result<Chardev> {
    let (kind, common) = match backend {
        ChardevBackend::File(file) => {
            let append = file.append.unwrap_or(false);
            (ChardevKind::File { out: file.out, input: file.input, append }, file.common)
        }
        ChardevBackend::Serial(line) => (ChardevKind::Serial { path: line.device }, line.common),
        ChardevBackend::Pipe(pipe) => (ChardevKind::Pipe { path: pipe.device }, pipe.common),
        ChardevBackend::Socket(socket) => {
            let common = socket.common.clone();
            (ChardevKind::Socket(socket_spec(call, socket)?), common)
        }
        ChardevBackend::Udp(udp) => {
            let remote = address(call, udp.remote)?;
            let local = udp.local.map(|local| address(call, local)).transpose()?;
            (ChardevKind::Udp { remote, local }, udp.common)
        }
        ChardevBackend::Pty(common) => (ChardevKind::Pty, common),
        ChardevBackend::Null(common) => (ChardevKind::Null, common),
        ChardevBackend::Mux(mux) => (ChardevKind::Mux { chardev: mux.chardev }, mux.common),
        ChardevBackend::Stdio(stdio) => {
            (ChardevKind::Stdio { signal: stdio.signal.unwrap_or(true) }, stdio.common)
        }
        ChardevBackend::Ringbuf(ring) | ChardevBackend::Memory(ring) => {
            let size = u64::try_from(ring.size.unwrap_or(65536));
            let size = size.map_err(|_| fail!("size of ringbuf chardev must be power of two"))?;
            (ChardevKind::Ringbuf { size }, ring.common)
        }
    };
    let append = common.logappend.unwrap_or(false);
    let log = common.logfile.map(|file| ChardevLog { file, append });
    Ok(Chardev { log, ..Chardev::new(id, kind) })
}

fn socket_spec(call: &Call, socket: ChardevSocket) -> Result<SocketSpec> {
    let server = socket.server.unwrap_or(true);
    let reconnect = socket.reconnect.unwrap_or(0);
    let reconnect = u64::try_from(reconnect).map_err(|_| Failure::expects("reconnect", "a time"))?;
    if server && reconnect > 0 {
        return Err(fail!("'reconnect' option is incompatible with socket in server listen mode"));
    }
    if !server && socket.wait == Some(true) {
        return Err(fail!("'wait' option is incompatible with socket in client connect mode"));
    }
    Ok(SocketSpec {
        addr: address(call, socket.addr)?,
        server,
        wait: socket.wait.unwrap_or(false),
        nodelay: socket.nodelay.unwrap_or(false),
        telnet: socket.telnet.unwrap_or(false),
        reconnect,
    })
}

fn address(call: &Call, address: SocketAddressLegacy) -> Result<SocketAddress> {
    Ok(match address {
        SocketAddressLegacy::Inet(inet) => SocketAddress::Inet(InetAddress {
            host: inet.host,
            port: inet.port,
            to: inet.to,
            ipv4: inet.ipv4,
            ipv6: inet.ipv6,
            keep_alive: inet.keep_alive,
        }),
        SocketAddressLegacy::Unix(unix) => SocketAddress::Unix(UnixAddress {
            path: unix.path,
            abstract_name: unix.is_abstract.unwrap_or(false),
            tight: unix.tight.unwrap_or(true),
        }),
        SocketAddressLegacy::Fd(fd) if fd.str.starts_with(|c: char| c.is_ascii_digit()) => {
            SocketAddress::fd(fd.str)
        }
        SocketAddressLegacy::Fd(fd) => {
            let named = call.take_named(&fd.str);
            let named =
                named.ok_or_else(|| fail!("File descriptor named '{}' has not been found", fd.str))?;
            SocketAddress::fd(call.world().inherited.put(named))
        }
    })
}

async fn ringbuf_write(call: Call, command: RingbufWrite) -> Result<()> {
    let bytes = match command.format.unwrap_or(DataFormat::Utf8) {
        DataFormat::Utf8 => command.data.into_bytes(),
        DataFormat::Base64 => {
            STANDARD.decode(command.data).map_err(|_| fail!("Parameter 'data' expects valid base64"))?
        }
    };
    call.world().host.chardevs.ringbuf_write(&command.device, &bytes)
}

async fn ringbuf_read(call: Call, command: RingbufRead) -> Result<String> {
    let text = command.format.unwrap_or(DataFormat::Utf8) == DataFormat::Utf8;
    let size = u64::try_from(command.size).unwrap_or(0);
    let bytes = call.world().host.chardevs.ringbuf_read(&command.device, size, text)?;
    Ok(match text {
        true => String::from_utf8_lossy(&bytes).into_owned(),
        false => STANDARD.encode(bytes),
    })
}
