use serde::{Deserialize, Serialize};

/// Where a socket listens or connects (QAPI `SocketAddress`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SocketAddress {
    Inet(InetAddress),
    Unix(UnixAddress),
    Fd(FdAddress),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InetAddress {
    /// Host name or numeric address; empty means every local address.
    pub host: String,
    /// Port number or service name.
    pub port: String,
    /// A listening socket tries the ports from `port` to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    #[serde(default, rename = "keep-alive", skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixAddress {
    pub path: String,
    /// A name in Linux's abstract socket name space instead of a path.
    #[serde(default, rename = "abstract")]
    pub abstract_name: bool,
    /// Whether an abstract name is passed without padding to full length.
    #[serde(default = "yes")]
    pub tight: bool,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdAddress {
    /// An inherited descriptor's number or the name given to it by `getfd`.
    #[serde(rename = "str")]
    pub name: String,
}

impl SocketAddress {
    pub fn inet(host: impl Into<String>, port: impl ToString) -> Self {
        SocketAddress::Inet(InetAddress { host: host.into(), port: port.to_string(), ..Default::default() })
    }

    pub fn unix(path: impl Into<String>) -> Self {
        SocketAddress::Unix(UnixAddress { path: path.into(), abstract_name: false, tight: true })
    }

    pub fn fd(name: impl ToString) -> Self {
        SocketAddress::Fd(FdAddress { name: name.to_string() })
    }
}
