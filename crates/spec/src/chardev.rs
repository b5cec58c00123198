use crate::SocketAddress;

/// A character device back end with its id (`-chardev`, `chardev-add`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chardev {
    pub id: String,
    pub kind: ChardevKind,
    pub log: Option<ChardevLog>,
    /// Command line only: make `<id>-base` and a multiplexer `<id>` over it.
    pub mux: bool,
}

/// A copy of everything the front end writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevLog {
    pub file: String,
    pub append: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChardevKind {
    Null,
    File {
        out: String,
        input: Option<String>,
        append: bool,
    },
    Socket(ChardevSocket),
    Udp {
        remote: SocketAddress,
        local: Option<SocketAddress>,
    },
    Pty,
    /// `signal`: whether Ctrl-C and Ctrl-\ on the terminal still end the process.
    Stdio {
        signal: bool,
    },
    /// Two FIFOs `<path>.in` and `<path>.out`, else `path` for both directions.
    Pipe {
        path: String,
    },
    /// Size in bytes, a power of two.
    Ringbuf {
        size: u64,
    },
    Mux {
        chardev: String,
    },
    /// A host terminal line.
    Serial {
        path: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevSocket {
    pub addr: SocketAddress,
    pub server: bool,
    /// A server waits for its first client before it is ready.
    pub wait: bool,
    pub nodelay: bool,
    pub telnet: bool,
    /// A client tries again every so many seconds after a loss; 0 means never.
    pub reconnect: u64,
}

impl Chardev {
    pub fn new(id: impl Into<String>, kind: ChardevKind) -> Self {
        Chardev { id: id.into(), kind, log: None, mux: false }
    }
}

impl ChardevKind {
    /// The name of the kind on the command line and in `query-chardev-backends`.
    pub fn name(&self) -> &'static str {
        match self {
            ChardevKind::Null => "null",
            ChardevKind::File { .. } => "file",
            ChardevKind::Socket(_) => "socket",
            ChardevKind::Udp { .. } => "udp",
            ChardevKind::Pty => "pty",
            ChardevKind::Stdio { .. } => "stdio",
            ChardevKind::Pipe { .. } => "pipe",
            ChardevKind::Ringbuf { .. } => "ringbuf",
            ChardevKind::Mux { .. } => "mux",
            ChardevKind::Serial { .. } => "serial",
        }
    }
}
