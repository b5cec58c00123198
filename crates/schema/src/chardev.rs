//! Character devices.

use crate::commands;
use qapi::{Command, Describe};

commands![QueryChardev, QueryChardevBackends, ChardevAdd, ChardevRemove, RingbufWrite, RingbufRead,];

/// The character devices.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<ChardevInfo>, preconfig)]
pub struct QueryChardev {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevInfo {
    pub label: String,
    /// what it is connected to
    pub filename: String,
    /// the device or the guest has opened its end
    pub frontend_open: bool,
}

/// The kinds of character device that can be made.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<ChardevBackendInfo>, preconfig)]
pub struct QueryChardevBackends {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevBackendInfo {
    pub name: String,
}

/// Makes a character device.
#[derive(Command, Debug, Clone)]
#[command(reply = ChardevReturn)]
pub struct ChardevAdd {
    pub id: String,
    pub backend: ChardevBackend,
}

#[derive(Describe, Debug, Clone, Default, PartialEq)]
pub struct ChardevReturn {
    /// the terminal that was allocated, for kind `pty`
    pub pty: Option<String>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(tag = "type", data = "data")]
pub enum ChardevBackend {
    File(ChardevFile),
    Serial(ChardevHostdev),
    Pipe(ChardevHostdev),
    Socket(ChardevSocket),
    Udp(ChardevUdp),
    Pty(ChardevCommon),
    Null(ChardevCommon),
    Mux(ChardevMux),
    Stdio(ChardevStdio),
    Ringbuf(ChardevRingbuf),
    /// old name of ringbuf
    #[qapi(features("deprecated"))]
    Memory(ChardevRingbuf),
}

/// What every kind takes.
#[derive(Describe, Debug, Clone, Default, PartialEq)]
pub struct ChardevCommon {
    /// gets a copy of all output
    pub logfile: Option<String>,
    /// append to the log file instead of truncating it
    pub logappend: Option<bool>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevFile {
    /// file to read from
    #[qapi(name = "in")]
    pub input: Option<String>,
    /// file to write to
    pub out: String,
    /// append instead of truncating
    pub append: Option<bool>,
    #[qapi(flatten)]
    pub common: ChardevCommon,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevHostdev {
    /// path on the host
    pub device: String,
    #[qapi(flatten)]
    pub common: ChardevCommon,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevSocket {
    pub addr: SocketAddressLegacy,
    /// listen instead of connecting (default true)
    pub server: Option<bool>,
    /// wait for a client before the command returns (default false)
    pub wait: Option<bool>,
    /// send small pieces at once
    pub nodelay: Option<bool>,
    /// talk telnet
    pub telnet: Option<bool>,
    /// seconds after which a lost connection is tried again; 0 is never
    pub reconnect: Option<i64>,
    #[qapi(flatten)]
    pub common: ChardevCommon,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevUdp {
    pub remote: SocketAddressLegacy,
    pub local: Option<SocketAddressLegacy>,
    #[qapi(flatten)]
    pub common: ChardevCommon,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevMux {
    /// the character device to share
    pub chardev: String,
    #[qapi(flatten)]
    pub common: ChardevCommon,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevStdio {
    /// Ctrl-C ends the process
    pub signal: Option<bool>,
    #[qapi(flatten)]
    pub common: ChardevCommon,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ChardevRingbuf {
    /// bytes, a power of two (default 65536)
    pub size: Option<i64>,
    #[qapi(flatten)]
    pub common: ChardevCommon,
}

/// A socket address with its data in a member of its own.
#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(tag = "type", data = "data", tag_name = "SocketAddressType")]
pub enum SocketAddressLegacy {
    Inet(InetSocketAddress),
    Unix(UnixSocketAddress),
    Fd(FdSocketAddress),
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct InetSocketAddress {
    pub host: String,
    pub port: String,
    pub numeric: Option<bool>,
    /// highest port to try when listening
    pub to: Option<u16>,
    pub ipv4: Option<bool>,
    pub ipv6: Option<bool>,
    pub keep_alive: Option<bool>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct UnixSocketAddress {
    pub path: String,
    /// a name in Linux's abstract name space
    #[qapi(name = "abstract")]
    pub is_abstract: Option<bool>,
    /// an abstract name without padding
    pub tight: Option<bool>,
}

/// A descriptor given before by `getfd`, or inherited (then its number).
#[derive(Describe, Debug, Clone, PartialEq)]
pub struct FdSocketAddress {
    pub str: String,
}

/// Removes a character device that nothing uses.
#[derive(Command, Debug, Clone)]
pub struct ChardevRemove {
    pub id: String,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataFormat {
    Utf8,
    Base64,
}

/// Appends to a ring buffer; what is oldest is lost when it is full.
#[derive(Command, Debug, Clone)]
pub struct RingbufWrite {
    pub device: String,
    pub data: String,
    /// of `data` (default utf8)
    pub format: Option<DataFormat>,
}

/// Takes data out of a ring buffer.
#[derive(Command, Debug, Clone)]
#[command(reply = String)]
pub struct RingbufRead {
    pub device: String,
    /// most bytes to take
    pub size: i64,
    /// of the reply (default utf8)
    pub format: Option<DataFormat>,
}
