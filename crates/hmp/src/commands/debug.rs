use crate::Session;
use crate::parse::Args;
use base::Result;
use spec::chardev::ChardevSocket;
use spec::socket::{InetAddress, UnixAddress};
use spec::{Chardev, ChardevKind, SocketAddress};

/// The character device that `gdbserver` makes.
const NAME: &str = "gdb";

pub async fn gdbserver(session: Session, args: Args) -> Result<String> {
    let device = args.text("device").unwrap_or("tcp::1234");
    let chardevs = &session.control.world().host.chardevs;
    let debugger = session.control.debugger();
    if device == "none" {
        debugger.close();
        if chardevs.exists(NAME) {
            chardevs.remove(NAME).await?;
        }
        return Ok("Disabled gdbserver\n".into());
    }
    let Some(addr) = address(device) else {
        return Ok(format!("Could not open gdbserver on device '{device}'\n"));
    };
    debugger.close();
    if chardevs.exists(NAME) {
        chardevs.remove(NAME).await?;
    }
    let socket =
        ChardevSocket { addr, server: true, wait: false, nodelay: true, telnet: false, reconnect: 0 };
    chardevs.add(&Chardev::new(NAME, ChardevKind::Socket(socket))).await?;
    debugger.open(chardevs.claim(NAME)?);
    Ok(format!("Waiting for gdb connection on device '{device}'\n"))
}

/// `tcp:[HOST]:PORT` or `unix:PATH`.
fn address(device: &str) -> Option<SocketAddress> {
    if let Some(path) = device.strip_prefix("unix:") {
        return Some(SocketAddress::Unix(UnixAddress { path: path.into(), ..Default::default() }));
    }
    let (host, port) = device.strip_prefix("tcp:")?.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some(SocketAddress::Inet(InetAddress { host: host.into(), port: port.into(), ..Default::default() }))
}
