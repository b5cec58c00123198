use crate::Backend;
use crate::hub::Hub;
use crate::link::Link;
use crate::registry::{Host, Made};
use crate::stream::Stream;
use base::fd::fdset_number;
use base::{Failure, Result};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Takes everything, gives nothing.
pub(crate) struct Null;

impl Backend for Null {
    fn write(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn filename(&self) -> String {
        "null".into()
    }
}

/// What opening a path needs.
pub(crate) struct Opener<'a> {
    pub host: &'a dyn Host,
    pub runtime: &'a Handle,
}

impl Opener<'_> {
    pub fn open(&self, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let opened = match fdset_number(path) {
            Some(set) => self.host.open_fdset(set, flags).map(|f| f.fd),
            None => rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, mode),
        };
        opened.map_err(|e| Failure::os(format!("Could not open '{path}'"), &e.into()))
    }

    fn link(&self, path: &str, fd: OwnedFd) -> Result<Arc<Link>> {
        let _runtime = self.runtime.enter();
        let plain =
            rustix::fs::fstat(&fd).is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_file());
        let link = if plain { Ok(Link::direct(fd)) } else { Link::new(fd) };
        link.map(Arc::new).map_err(|e| Failure::os(format!("Could not open '{path}'"), &e))
    }
}

struct Streamed {
    stream: Arc<Stream>,
    name: &'static str,
}

impl Backend for Streamed {
    fn write(&self, bytes: &[u8]) -> usize {
        self.stream.write(bytes)
    }

    fn filename(&self) -> String {
        self.name.into()
    }

    fn drained(&self) -> bool {
        self.stream.drained()
    }
}

fn streamed(
    runtime: &Handle,
    hub: &Arc<Hub>,
    name: &'static str,
    input: Option<Arc<Link>>,
    output: Arc<Link>,
) -> Made {
    let stream = Stream::new(hub.clone(), false);
    stream.open(output.clone());
    let moving = stream.clone();
    let task = runtime.spawn(async move { moving.carry_apart(input.as_deref(), &output).await });
    Made { tasks: vec![task], ..Made::new(Streamed { stream, name }) }
}

/// `file`: output to `out` (truncated unless appended to), input from another file if named.
pub(crate) fn open_file(
    opener: Opener<'_>,
    hub: &Arc<Hub>,
    (out, input, append): (&str, Option<&str>, bool),
) -> Result<Made> {
    let kind = if append { OFlags::APPEND } else { OFlags::TRUNC };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | kind;
    let fd = opener.open(out, flags, Mode::from_raw_mode(0o666))?;
    let output = opener.link(out, fd)?;
    let input = match input {
        Some(path) => {
            let fd = opener.open(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
            Some(opener.link(path, fd)?)
        }
        None => None,
    };
    Ok(streamed(opener.runtime, hub, "file", input, output))
}

/// `pipe`: the FIFOs `<path>.in` and `<path>.out`, else `path` both ways.
pub(crate) fn open_pipe(opener: Opener<'_>, hub: &Arc<Hub>, path: &str) -> Result<Made> {
    let both = OFlags::RDWR | OFlags::NONBLOCK;
    let open = |path: &str| opener.open(path, both, Mode::empty());
    let pair = (open(&format!("{path}.in")), open(&format!("{path}.out")));
    let (input, output) = match pair {
        (Ok(input), Ok(output)) => (opener.link(path, input)?, opener.link(path, output)?),
        _ => {
            let link = opener.link(path, open(path)?)?;
            (link.clone(), link)
        }
    };
    Ok(streamed(opener.runtime, hub, "pipe", Some(input), output))
}
