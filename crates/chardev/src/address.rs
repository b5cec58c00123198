//! Listening, connecting, and the names of both ends.

use base::{Failure, Result, fail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, bind, getpeername, getsockname,
    listen, socket_with, sockopt,
};
use spec::socket::{InetAddress, UnixAddress};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The addresses of a host and port; an empty host means `default`.
pub(crate) async fn resolve(addr: &InetAddress, default: &str) -> Result<Vec<SocketAddr>> {
    let failed = |why: &str| fail!("address resolution failed for {}:{}: {why}", addr.host, addr.port);
    let port: u16 = match addr.port.as_str() {
        "" => 0,
        text => text.parse().map_err(|_| failed("Servname not supported for ai_socktype"))?,
    };
    let host = if addr.host.is_empty() { default } else { &addr.host };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let found = tokio::net::lookup_host((host, port)).await.map_err(|e| {
        let text = e.to_string();
        failed(text.strip_prefix("failed to lookup address information: ").unwrap_or(&text))
    })?;
    let (v4, v6) = match (addr.ipv4, addr.ipv6) {
        (Some(true), None) => (true, false),
        (None, Some(true)) => (false, true),
        (v4, v6) => (v4.unwrap_or(true), v6.unwrap_or(true)),
    };
    let kept: Vec<SocketAddr> = found.filter(|a| if a.is_ipv4() { v4 } else { v6 }).collect();
    if kept.is_empty() {
        return Err(failed("Address family for hostname not supported"));
    }
    Ok(kept)
}

pub(crate) fn unix_address(addr: &UnixAddress) -> Result<SocketAddrUnix> {
    // sun_path is 108 bytes with its final zero.
    if addr.path.len() >= 108 {
        return Err(
            fail!("UNIX socket path '{}' is too long", addr.path).hint("Path must be less than 108 bytes")
        );
    }
    let made = if addr.abstract_name {
        let mut name = addr.path.clone().into_bytes();
        if !addr.tight {
            name.resize(107, 0);
        }
        SocketAddrUnix::new_abstract_name(&name)
    } else {
        SocketAddrUnix::new(addr.path.as_str())
    };
    made.map_err(|e| Failure::os(format!("UNIX socket path '{}'", addr.path), &e.into()))
}

pub(crate) fn listen_unix(addr: &UnixAddress) -> Result<OwnedFd> {
    let at = unix_address(addr)?;
    let failed = |e: Errno| Failure::os(format!("Failed to bind socket to {}", addr.path), &e.into());
    if !addr.abstract_name && std::fs::symlink_metadata(&addr.path).is_ok() {
        std::fs::remove_file(&addr.path)
            .map_err(|e| Failure::os(format!("Failed to unlink socket {}", addr.path), &e))?;
    }
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None).map_err(failed)?;
    bind(&fd, &at).map_err(failed)?;
    listen(&fd, 1).map_err(|e| Failure::os("Failed to listen on socket", &e.into()))?;
    Ok(fd)
}

pub(crate) async fn listen_inet(addr: &InetAddress) -> Result<OwnedFd> {
    let places =
        resolve(addr, "::").await.or_else(|e| if addr.host.is_empty() { Ok(vec![]) } else { Err(e) })?;
    let any = (addr.host.is_empty() && addr.ipv6 != Some(true)).then(|| {
        let port = addr.port.parse().unwrap_or(0);
        SocketAddr::from(([0, 0, 0, 0], port))
    });
    let mut last = Errno::ADDRNOTAVAIL;
    for place in places.into_iter().chain(any) {
        let first = place.port();
        for port in first..=addr.to.unwrap_or(first).max(first) {
            let at = SocketAddr::new(place.ip(), port);
            match listen_at(at, addr.host.is_empty() && addr.ipv4 != Some(false)) {
                Ok(fd) => return Ok(fd),
                Err(e) => last = e,
            }
        }
    }
    Err(Failure::os("Failed to find an available port", &last.into()))
}

fn listen_at(at: SocketAddr, dual: bool) -> Result<OwnedFd, Errno> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, FLAGS, None)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, !dual)?;
    }
    sockopt::set_socket_reuseaddr(&fd, true)?;
    bind(&fd, &at)?;
    listen(&fd, 1)?;
    Ok(fd)
}

pub(crate) async fn connect_unix(addr: &UnixAddress) -> Result<OwnedFd> {
    let to = unix_address(addr)?;
    let failed = |e: Errno| Failure::os(format!("Failed to connect to '{}'", addr.path), &e.into());
    loop {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None).map_err(failed)?;
        match rustix::net::connect(&fd, &to) {
            Ok(()) => return Ok(fd),
            // The listener's backlog is full.
            Err(Errno::AGAIN) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            Err(e) => return Err(failed(e)),
        }
    }
}

pub(crate) async fn connect_inet(addr: &InetAddress) -> Result<OwnedFd> {
    let mut last = Errno::CONNREFUSED;
    for place in resolve(addr, "localhost").await? {
        match connect_at(place).await {
            Ok(fd) => {
                let _ = sockopt::set_socket_keepalive(&fd, addr.keep_alive == Some(true));
                return Ok(fd);
            }
            Err(e) => last = e,
        }
    }
    Err(Failure::os(format!("Failed to connect to '{}:{}'", addr.host, addr.port), &last.into()))
}

async fn connect_at(place: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if place.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, FLAGS, None)?;
    match rustix::net::connect(&fd, &place) {
        Ok(()) => return Ok(fd),
        Err(Errno::INPROGRESS) => {}
        Err(e) => return Err(e),
    }
    let waiting = crate::link::watch(fd)
        .map_err(|(_, e)| e)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let _ready = waiting.writable().await.map_err(|_| Errno::IO)?;
    sockopt::socket_error(waiting.get_ref())??;
    drop(_ready);
    Ok(waiting.into_inner())
}

/// "tcp:h:p,server=on <-> h:p", "unix:/path,server=on": a live connection.
pub(crate) fn connected_name(fd: impl AsFd, protocol: &str, server: bool) -> String {
    let listening = if server { ",server=on" } else { "" };
    let Ok(local) = getsockname(&fd) else { return "unknown".into() };
    if local.address_family() == AddressFamily::UNIX {
        return format!("unix:{}{listening}", unix_path(local));
    }
    let peer = getpeername(&fd).ok().flatten();
    match (SocketAddr::try_from(local), peer.map(SocketAddr::try_from)) {
        (Ok(local), Some(Ok(peer))) => format!("{protocol}:{local}{listening} <-> {peer}"),
        _ => "unknown".into(),
    }
}

pub(crate) fn unix_path(addr: SocketAddrAny) -> String {
    let Ok(addr) = SocketAddrUnix::try_from(addr) else { return String::new() };
    match addr.path() {
        Some(path) => path.to_string_lossy().into_owned(),
        None => addr.abstract_name().map(|n| String::from_utf8_lossy(n).into_owned()).unwrap_or_default(),
    }
}

/// Where a listening Internet socket really listens, as "host:port".
pub(crate) fn local_inet(fd: impl AsFd) -> Option<String> {
    Some(SocketAddr::try_from(getsockname(fd).ok()?).ok()?.to_string())
}
