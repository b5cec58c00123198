use crate::Backend;
use crate::address;
use crate::hub::Hub;
use crate::registry::Made;
use base::{Failure, Result, bail};
use rustix::net::SendFlags;
use spec::SocketAddress;
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;

/// The largest datagram.
const DATAGRAM: usize = 65_536;

struct Udp {
    socket: Arc<UdpSocket>,
}

impl Backend for Udp {
    /// One write is one datagram; like any datagram it may get lost.
    fn write(&self, bytes: &[u8]) -> usize {
        for datagram in bytes.chunks(DATAGRAM / 2) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::send(&*self.socket, datagram, flags);
        }
        bytes.len()
    }

    fn filename(&self) -> String {
        "udp".into()
    }
}

pub(crate) async fn open(
    runtime: &Handle,
    hub: &Arc<Hub>,
    remote: &SocketAddress,
    local: Option<&SocketAddress>,
) -> Result<Made> {
    let SocketAddress::Inet(remote) = remote else { bail!("udp: remote address must be of type inet") };
    let to = address::resolve(remote, "localhost").await?[0];
    let from = match local {
        Some(SocketAddress::Inet(local)) => {
            let all = address::resolve(local, if to.is_ipv4() { "0.0.0.0" } else { "::" }).await?;
            let same = all.iter().find(|a| a.is_ipv4() == to.is_ipv4());
            *same.unwrap_or(&all[0])
        }
        Some(_) => bail!("udp: local address must be of type inet"),
        None if to.is_ipv4() => ([0, 0, 0, 0], 0).into(),
        None => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(from).await.map_err(|e| Failure::os("Failed to bind socket", &e))?;
    let named = format!("Failed to connect to '{}:{}'", remote.host, remote.port);
    socket.connect(to).await.map_err(|e| Failure::os(named, &e))?;
    let socket = Arc::new(socket);
    let (hub, reading) = (hub.clone(), socket.clone());
    let task = runtime.spawn(async move {
        let mut buf = vec![0; DATAGRAM];
        loop {
            hub.wait_room().await;
            // An error is the echo of a datagram that nobody received.
            let Ok(got) = reading.recv(&mut buf).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let mut bytes = &buf[..got];
            while !bytes.is_empty() {
                let room = hub.wait_room().await.min(bytes.len());
                hub.receive(&bytes[..room], Vec::new());
                bytes = &bytes[room..];
            }
        }
    });
    Ok(Made { tasks: vec![task], ..Made::new(Udp { socket }) })
}
