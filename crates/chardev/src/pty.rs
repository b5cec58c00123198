use crate::Backend;
use crate::hub::Hub;
use crate::link::Link;
use crate::registry::Made;
use crate::stream::Stream;
use base::{Failure, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// How often it is looked whether somebody has opened the terminal; the kernel does not tell.
const LOOK: Duration = Duration::from_millis(100);

struct Pty {
    stream: Arc<Stream>,
    path: String,
}

impl Backend for Pty {
    fn write(&self, bytes: &[u8]) -> usize {
        self.stream.write(bytes)
    }

    fn filename(&self) -> String {
        format!("pty:{}", self.path)
    }

    fn drained(&self) -> bool {
        self.stream.drained()
    }
}

fn open_raw() -> Result<(OwnedFd, String), rustix::io::Errno> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname(&master, Vec::new())?.into_string().map_err(|_| rustix::io::Errno::INVAL)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(&path, flags, Mode::empty())?;
    let mut settings = tcgetattr(&slave)?;
    settings.make_raw();
    tcsetattr(&slave, OptionalActions::Flush, &settings)?;
    Ok((master, path))
}

/// Whether nobody has the terminal open.
fn hung_up(master: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(master, PollFlags::empty())];
    poll(&mut fds, Some(&rustix::time::Timespec::default())).is_ok_and(|n| n > 0)
        && fds[0].revents().contains(PollFlags::HUP)
}

pub(crate) fn open(runtime: &Handle, hub: &Arc<Hub>) -> Result<Made> {
    let (master, path) = open_raw().map_err(|e| Failure::os("Failed to create PTY", &e.into()))?;
    let stream = Stream::new(hub.clone(), false);
    let moving = stream.clone();
    let task = runtime.spawn(async move {
        loop {
            while hung_up(&master) {
                tokio::time::sleep(LOOK).await;
            }
            // Registered anew each time, because a hang-up stays in the registration.
            let Ok(link) = fcntl_dupfd_cloexec(&master, 3).map_err(Into::into).and_then(Link::new) else {
                return;
            };
            let link = Arc::new(link);
            moving.open(link.clone());
            let gone = async {
                // Somebody may leave while the front end does not read.
                while !hung_up(&master) {
                    tokio::time::sleep(LOOK * 10).await;
                }
                tokio::time::sleep(LOOK).await;
            };
            tokio::select! {
                () = moving.carry(&link) => {}
                () = gone => {}
            }
            moving.close();
        }
    });
    Ok(Made { tasks: vec![task], pty: Some(path.clone()), ..Made::new(Pty { stream, path }) })
}
