use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// At most so many descriptors are taken with one read; the kernel closes the rest.
const MAX_FDS: usize = 16;

/// An open descriptor that is read and written without blocking.
pub(crate) struct Link {
    io: Io,
    socket: bool,
    unix: bool,
}

enum Io {
    Polled(AsyncFd<OwnedFd>),
    /// A regular file or /dev/null: always ready.
    Direct(OwnedFd),
}

/// Registers a descriptor with the runtime.
// The constructor is deprecated because a type's descriptor might change; an OwnedFd's cannot.
#[allow(deprecated)]
pub(crate) fn watch(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    AsyncFd::try_new(fd).map_err(|refused| refused.into_parts())
}

impl Link {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        let socket = FileType::from_raw_mode(stat.st_mode).is_socket();
        let unix =
            socket && rustix::net::getsockname(&fd)?.address_family() == rustix::net::AddressFamily::UNIX;
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::registered(fd, socket, unix)
    }

    fn registered(fd: OwnedFd, socket: bool, unix: bool) -> io::Result<Self> {
        let io = match watch(fd) {
            Ok(polled) => Io::Polled(polled),
            Err((fd, error)) if Errno::from_io_error(&error) == Some(Errno::PERM) => Io::Direct(fd),
            Err((_, error)) => return Err(error),
        };
        Ok(Link { io, socket, unix })
    }

    /// A regular file: never waited for.
    pub fn direct(fd: OwnedFd) -> Self {
        Link { io: Io::Direct(fd), socket: false, unix: false }
    }

    /// A standard stream. Terminals and pipes are opened anew, because O_NONBLOCK would show in
    /// every process that shares the open file.
    pub fn standard(fd: OwnedFd, mode: OFlags) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if kind.is_socket() {
            // Sockets are used with MSG_DONTWAIT.
            let unix = rustix::net::getsockname(&fd)?.address_family() == rustix::net::AddressFamily::UNIX;
            return Self::registered(fd, true, unix);
        }
        if kind.is_file() || kind.is_dir() {
            return Ok(Link { io: Io::Direct(fd), socket: false, unix: false });
        }
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(own) => Self::registered(own, false, false),
            Err(_) => Self::new(fd),
        }
    }

    pub fn fd(&self) -> &OwnedFd {
        match &self.io {
            Io::Polled(fd) => fd.get_ref(),
            Io::Direct(fd) => fd,
        }
    }

    /// A regular file or /dev/null.
    pub fn is_direct(&self) -> bool {
        matches!(self.io, Io::Direct(_))
    }

    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let done = loop {
            let result = if self.socket {
                rustix::net::send(self.fd(), bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
            } else {
                rustix::io::write(self.fd(), bytes)
            };
            if result != Err(Errno::INTR) {
                break result;
            }
        };
        Ok(done?)
    }

    /// Waits until something can be written.
    pub async fn writable(&self) -> io::Result<()> {
        if let Io::Polled(fd) = &self.io {
            loop {
                let mut guard = fd.writable().await?;
                let mut poll = [rustix::event::PollFd::new(fd.get_ref(), rustix::event::PollFlags::OUT)];
                if rustix::event::poll(&mut poll, Some(&rustix::time::Timespec::default())).unwrap_or(1) > 0 {
                    return Ok(());
                }
                guard.clear_ready();
            }
        }
        Ok(())
    }

    fn try_read(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        loop {
            let result = if self.unix {
                self.receive_message(buf, fds)
            } else if self.socket {
                rustix::net::recv(self.fd(), &mut *buf, RecvFlags::DONTWAIT).map(|(n, _)| n)
            } else {
                rustix::io::read(self.fd(), &mut *buf)
            };
            if result != Err(Errno::INTR) {
                return Ok(result?);
            }
        }
    }

    fn receive_message(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(self.fd(), &mut [IoSliceMut::new(buf)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok(got.bytes)
    }

    /// Reads at least one byte, or 0 at the end.
    pub async fn read(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let Io::Polled(polled) = &self.io else {
            return self.try_read(buf, fds);
        };
        loop {
            let mut guard = polled.readable().await?;
            match self.try_read(buf, fds) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                done => return done,
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd().as_fd()
    }
}
