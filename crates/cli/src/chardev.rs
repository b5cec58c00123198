//! `-chardev` and the short forms of `-serial`, `-monitor`, `-qmp`, ...

use crate::builder::Builder;
use crate::params::Params;
use crate::{Help, keys as k};
use base::{Result, bail, fail};
use spec::chardev::{ChardevLog, ChardevSocket};
use spec::size::parse_size;
use spec::socket::{InetAddress, UnixAddress};
use spec::{Chardev, ChardevKind, SocketAddress};

/// The kinds that `-chardev` knows.
pub const KINDS: [&str; 12] =
    ["null", "socket", "udp", "ringbuf", "memory", "file", "stdio", "pty", "pipe", "mux", "serial", "tty"];

impl Builder {
    pub fn chardev(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::CHARDEV)?;
        if params.help || matches!(params.get("backend"), Some("help" | "?")) {
            self.ask(Help::Chardevs);
            return Ok(());
        }
        let id = params.get("id").ok_or_else(|| fail!("chardev: no id specified"))?;
        if self.chardevs.iter().any(|(c, _)| c.get("id") == Some(id)) {
            bail!("Duplicate ID '{id}' for chardev");
        }
        self.chardevs.push((params, self.place.clone()));
        Ok(())
    }
}

/// From the keys of `-chardev`.
pub(crate) fn from_params(params: &Params) -> Result<Chardev> {
    let id = params.owned("id").ok_or_else(|| fail!("chardev: no id specified"))?;
    let backend = params.get("backend").ok_or_else(|| fail!("chardev: \"{id}\" missing backend"))?;
    let path = |what: &str| params.owned("path").ok_or_else(|| fail!("chardev: {what} given"));
    let kind = match backend {
        "null" => ChardevKind::Null,
        "pty" => ChardevKind::Pty,
        "socket" => ChardevKind::Socket(socket(params)?),
        "udp" => udp(params)?,
        "file" => ChardevKind::File {
            out: path("file: no filename")?,
            input: params.owned("input-path"),
            append: params.flag("append") == Some(true),
        },
        "pipe" => ChardevKind::Pipe { path: path("pipe: no device path")? },
        "serial" | "tty" => ChardevKind::Serial { path: path("serial/tty: no device path")? },
        "stdio" => ChardevKind::Stdio { signal: params.flag("signal") != Some(false) },
        "ringbuf" | "memory" => {
            let size = params.get("size").and_then(|s| parse_size(s, 1));
            ChardevKind::Ringbuf { size: size.unwrap_or(65536) }
        }
        "mux" => {
            let base = params.owned("chardev").ok_or_else(|| fail!("chardev: mux: no chardev given"))?;
            ChardevKind::Mux { chardev: base }
        }
        other => return Err(unknown_kind(other)),
    };
    check_keys(backend, params)?;
    let append = params.flag("logappend") == Some(true);
    let log = params.owned("logfile").map(|file| ChardevLog { file, append });
    if log.is_none() && append {
        bail!("'logappend' needs 'logfile'");
    }
    Ok(Chardev { id, kind, log, mux: params.flag("mux") == Some(true) })
}

fn unknown_kind(name: &str) -> base::Failure {
    const ELSEWHERE: [&str; 9] =
        ["vc", "parallel", "parport", "msmouse", "wctablet", "braille", "spicevmc", "spiceport", "testdev"];
    if ELSEWHERE.contains(&name) {
        return fail!("character device backend type '{name}' is not supported by Ryokan");
    }
    let failure = fail!("'{name}' is not a valid char driver name");
    match spec::nearest(name, KINDS) {
        Some(near) => failure.hint(format!("Did you mean '{near}'?")),
        None => failure,
    }
}

/// A key that the kind does not have is a mistake, too.
fn check_keys(backend: &str, params: &Params) -> Result<()> {
    let own: &[&str] = match backend {
        "socket" => &[
            "path",
            "host",
            "port",
            "fd",
            "to",
            "ipv4",
            "ipv6",
            "server",
            "wait",
            "delay",
            "nodelay",
            "reconnect",
            "telnet",
            "abstract",
            "tight",
        ],
        "udp" => &["host", "port", "localaddr", "localport", "ipv4", "ipv6"],
        "file" => &["path", "input-path", "append"],
        "pipe" | "serial" | "tty" => &["path"],
        "stdio" => &["signal"],
        "ringbuf" | "memory" => &["size"],
        "mux" => &["chardev"],
        _ => &[],
    };
    let common = ["backend", "id", "mux", "logfile", "logappend"];
    let fits = |key: &str| common.contains(&key) || own.contains(&key);
    match params.list.iter().find(|(key, _)| !fits(key)) {
        Some((key, _)) => bail!("Parameter '{key}' does not belong to chardev kind '{backend}'"),
        None => Ok(()),
    }
}

fn inet(params: &Params, host: Option<&str>, port: &str) -> Result<InetAddress> {
    Ok(InetAddress {
        host: host.unwrap_or_default().to_string(),
        port: port.to_string(),
        to: params.number("to")?,
        ipv4: params.flag("ipv4"),
        ipv6: params.flag("ipv6"),
        keep_alive: None,
    })
}

fn socket(params: &Params) -> Result<ChardevSocket> {
    let addr = match (params.get("path"), params.get("fd"), params.get("host"), params.get("port")) {
        (Some(path), None, None, None) => SocketAddress::Unix(UnixAddress {
            path: path.into(),
            abstract_name: params.flag("abstract") == Some(true),
            tight: params.flag("tight") != Some(false),
        }),
        (None, Some(fd), None, None) => SocketAddress::fd(fd),
        (None, None, host, Some(port)) => SocketAddress::Inet(inet(params, host, port)?),
        (None, None, Some(_), None) => bail!("chardev: socket: no port given"),
        (None, None, None, None) => bail!("chardev: socket: no path, host or fd given"),
        _ => bail!("None or one of 'path', 'fd' or 'host' option required."),
    };
    let server = params.flag("server") == Some(true);
    let delay = params.flag("delay");
    Ok(ChardevSocket {
        addr,
        server,
        wait: params.flag("wait").unwrap_or(server),
        nodelay: delay.map(|d| !d).or(params.flag("nodelay")).unwrap_or(false),
        telnet: params.flag("telnet") == Some(true),
        reconnect: params.number("reconnect")?.unwrap_or(0),
    })
}

fn udp(params: &Params) -> Result<ChardevKind> {
    let port = params.get("port").filter(|p| !p.is_empty());
    let port = port.ok_or_else(|| fail!("chardev: udp: remote port not specified"))?;
    let host = params.get("host").filter(|h| !h.is_empty()).unwrap_or("localhost");
    let local = (params.get("localaddr"), params.get("localport"));
    let local = match local {
        (None, None) => None,
        (addr, port) => Some(SocketAddress::Inet(inet(params, addr, port.unwrap_or("0"))?)),
    };
    Ok(ChardevKind::Udp { remote: SocketAddress::Inet(inet(params, Some(host), port)?), local })
}

/// A short form as a character device of the given id. `mon:` in front makes it a multiplexer
/// with a monitor.
pub(crate) fn short_form(text: &str, id: &str) -> Result<Chardev> {
    let (text, mux) = match text.strip_prefix("mon:") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let mut params = short_params(text)?;
    params.set("id", id);
    if mux {
        params.set("mux", "on");
        if text == "stdio" {
            // Ctrl-C goes to the guest.
            params.set("signal", "off");
        }
    }
    from_params(&params)
}

/// The debugger's device from its short form: a TCP port is served without waiting.
pub fn gdb_device(text: &str) -> Result<Chardev> {
    match text.starts_with("tcp:") {
        true => short_form(&format!("{text},wait=off,nodelay=on,server=on"), "gdb"),
        false => short_form(text, "gdb"),
    }
}

fn short_params(text: &str) -> Result<Params> {
    let mut params = Params::default();
    if matches!(text, "null" | "pty" | "stdio" | "ringbuf") {
        params.set("backend", text);
        return Ok(params);
    }
    if text.starts_with("/dev/") {
        params.set("backend", "serial");
        params.set("path", text);
        return Ok(params);
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(unknown_kind(text));
    };
    match scheme {
        "file" | "pipe" => {
            params.set("backend", scheme);
            params.set("path", rest);
        }
        "tcp" | "telnet" | "unix" => {
            let (place, options) = rest.split_once(',').unwrap_or((rest, ""));
            params = Params::parse_rest(options, &k::CHARDEV)?;
            params.set("backend", "socket");
            if scheme == "unix" {
                // The key of the first value may be written out.
                params.set("path", place.strip_prefix("path=").unwrap_or(place));
            } else {
                let (host, port) = host_port(place).ok_or_else(|| fail!("'{place}' is not HOST:PORT"))?;
                params.set("host", host);
                params.set("port", port);
            }
            if scheme == "telnet" {
                params.set("telnet", "on");
            }
        }
        "udp" => {
            params.set("backend", "udp");
            let (remote, local) = match rest.split_once('@') {
                Some((remote, local)) => (remote, Some(local)),
                None => (rest, None),
            };
            let bad = |p: &str| fail!("'{p}' is not [HOST]:PORT");
            let (host, port) = host_port(remote).ok_or_else(|| bad(remote))?;
            params.set("host", host);
            params.set("port", port);
            if let Some(local) = local {
                let (host, port) = host_port(local).ok_or_else(|| bad(local))?;
                params.set("localaddr", host);
                params.set("localport", port);
            }
        }
        other => return Err(unknown_kind(other)),
    }
    Ok(params)
}

/// `host:port` or `[v6]:port`.
fn host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    (!port.is_empty()).then_some((host, port))
}
