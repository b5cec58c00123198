//! File descriptors that come from outside: inherited at start, or put into descriptor sets.

use crate::{Failure, Mutex, MutexGuard, Result, fail};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::fcntl_dupfd_cloexec;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The descriptors above standard error that the process was started with. Options such as
/// `fd=N` take theirs out; the others stay open and untouched.
#[derive(Default)]
pub struct Inherited {
    open: Mutex<BTreeMap<RawFd, OwnedFd>>,
}

impl Inherited {
    /// Looks which descriptors are open and takes ownership of all of them (and marks them
    /// close-on-exec).
    ///
    /// # Safety
    /// Nothing in the process may own a descriptor above 2 yet: call it first in `main`.
    #[allow(unsafe_code)]
    pub unsafe fn scan() -> Self {
        let mut open = BTreeMap::new();
        let listed: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
            .map(|dir| dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
            .unwrap_or_default();
        for raw in listed.into_iter().filter(|&raw| raw > 2) {
            // SAFETY: only asks for the flags; an unused number is reported as an error.
            let flags = unsafe { libc::fcntl(raw, libc::F_GETFD) };
            if flags < 0 {
                continue; // the descriptor of the directory just read
            }
            // SAFETY: `raw` is open, and by this function's contract has no owner.
            let fd = unsafe { OwnedFd::from_raw_fd(raw) };
            let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
            open.insert(raw, fd);
        }
        Inherited { open: Mutex::new(open) }
    }

    /// [`Inherited::scan`] for the first lines of `main`; the second call finds nothing.
    #[allow(unsafe_code)]
    pub fn at_start() -> Self {
        static DONE: AtomicBool = AtomicBool::new(false);
        let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        if DONE.swap(true, Ordering::SeqCst) || threads != 1 {
            return Inherited::default();
        }
        // SAFETY: one thread, at its first call: what is open was open before `main`.
        unsafe { Inherited::scan() }
    }

    /// Hands out descriptor `raw`; it is gone from here afterwards.
    pub fn take(&self, raw: RawFd) -> Result<OwnedFd> {
        self.open
            .lock()
            .remove(&raw)
            .ok_or_else(|| fail!("File descriptor {raw} is not open or already in use"))
    }

    /// Takes in a descriptor that came later (over a socket); it is handed out by the number
    /// returned.
    pub fn put(&self, fd: OwnedFd) -> RawFd {
        let raw = fd.as_raw_fd();
        self.open.lock().insert(raw, fd);
        raw
    }

    /// A duplicate of descriptor `raw` (standard streams included); the original stays.
    pub fn duplicate(&self, raw: RawFd) -> Result<OwnedFd> {
        let bad = |e: rustix::io::Errno| Failure::os(format!("File descriptor {raw}"), &e.into());
        match raw {
            0 => fcntl_dupfd_cloexec(std::io::stdin(), 3).map_err(bad),
            1 => fcntl_dupfd_cloexec(std::io::stdout(), 3).map_err(bad),
            2 => fcntl_dupfd_cloexec(std::io::stderr(), 3).map_err(bad),
            _ => match self.open.lock().get(&raw) {
                Some(fd) => fcntl_dupfd_cloexec(fd, 3).map_err(bad),
                None => Err(bad(rustix::io::Errno::BADF)),
            },
        }
    }
}

/// One descriptor of a set, as `query-fdsets` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetMember {
    pub fd: RawFd,
    pub opaque: Option<String>,
}

struct Member {
    fd: OwnedFd,
    opaque: Option<String>,
}

#[derive(Default)]
struct Set {
    members: Vec<Member>,
    /// Alive as long as somebody uses a duplicate from this set.
    users: Arc<()>,
}

impl Set {
    fn in_use(&self) -> bool {
        Arc::strong_count(&self.users) > 1
    }
}

/// Descriptor sets (`-add-fd`, `add-fd`), opened by others as `/dev/fdset/<N>`.
#[derive(Clone, Default)]
pub struct FdSets(Arc<Mutex<BTreeMap<u64, Set>>>);

/// A duplicate from a set; the set counts as in use until it is dropped.
pub struct SetFd {
    pub fd: OwnedFd,
    pub user: Arc<()>,
}

impl FdSets {
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `fd` into set `set`, or into a new set with the lowest free number. Returns the
    /// set's number and the descriptor's.
    pub fn add(&self, set: Option<u64>, fd: OwnedFd, opaque: Option<String>) -> (u64, RawFd) {
        let mut sets = self.sets();
        let id = set.unwrap_or_else(|| (0..).find(|id| !sets.contains_key(id)).unwrap_or(0));
        let raw = fd.as_raw_fd();
        let entry = sets.entry(id).or_default();
        entry.members.push(Member { fd, opaque });
        (id, raw)
    }

    /// Removes one descriptor of a set or, without `fd`, all. Duplicates in use stay open; the
    /// set is there, without members, until the last of them is closed.
    pub fn remove(&self, set: u64, fd: Option<i64>) -> Result<()> {
        let mut sets = self.sets();
        let missing = || match fd {
            Some(fd) => fail!("File descriptor named 'fdset-id:{set}, fd:{fd}' not found"),
            None => fail!("File descriptor named 'fdset-id:{set}' not found"),
        };
        let entry = sets.get_mut(&set).ok_or_else(missing)?;
        match fd {
            Some(fd) => {
                let at = entry.members.iter().position(|m| i64::from(m.fd.as_raw_fd()) == fd);
                entry.members.remove(at.ok_or_else(missing)?);
            }
            None => entry.members.clear(),
        }
        Ok(())
    }

    /// Drops sets that nobody uses: what happens when the last monitor goes away.
    pub fn forget_unused(&self) {
        self.0.lock().retain(|_, set| set.in_use());
    }

    /// The sets that are left: those with members, and those in use.
    fn sets(&self) -> MutexGuard<'_, BTreeMap<u64, Set>> {
        let mut sets = self.0.lock();
        sets.retain(|_, set| !set.members.is_empty() || set.in_use());
        sets
    }

    /// All sets with their members, by number.
    pub fn list(&self) -> Vec<(u64, Vec<SetMember>)> {
        let member = |m: &Member| SetMember { fd: m.fd.as_raw_fd(), opaque: m.opaque.clone() };
        self.sets().iter().map(|(&id, set)| (id, set.members.iter().map(member).collect())).collect()
    }

    /// A duplicate of the first descriptor of the set whose access mode is that of `flags`.
    pub fn open(&self, set: u64, flags: OFlags) -> Result<SetFd, rustix::io::Errno> {
        let sets = self.sets();
        let entry = sets.get(&set).ok_or(rustix::io::Errno::NOENT)?;
        let wanted = flags & OFlags::ACCMODE;
        for member in &entry.members {
            if fcntl_getfl(&member.fd)? & OFlags::ACCMODE == wanted {
                let fd = fcntl_dupfd_cloexec(&member.fd, 3)?;
                return Ok(SetFd { fd, user: entry.users.clone() });
            }
        }
        Err(rustix::io::Errno::ACCESS)
    }
}

/// The number in `/dev/fdset/<N>`.
pub fn fdset_number(path: &str) -> Option<u64> {
    path.strip_prefix("/dev/fdset/")?.parse().ok()
}

/// Whether this is a socket.
pub fn is_socket(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd.as_fd()).is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_socket())
}
