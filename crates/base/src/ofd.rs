//! Open file description locks on bytes of a file: they belong to the open file, not to
//! the process, and are seen by other processes that use the same kind.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

fn lock_op(fd: BorrowedFd<'_>, op: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: `lock` is a valid, exclusively borrowed flock structure for the whole call and
    // the descriptor is open as long as it is borrowed; the kernel keeps no pointer.
    match unsafe { libc::fcntl(fd.as_raw_fd(), op, lock as *mut libc::flock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn range(kind: libc::c_int, start: u64, len: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: len as libc::off_t,
        l_pid: 0,
    }
}

/// Takes a shared (or exclusive) lock without waiting.
pub fn lock(fd: BorrowedFd<'_>, start: u64, len: u64, exclusive: bool) -> io::Result<()> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    lock_op(fd, libc::F_OFD_SETLK, &mut range(kind, start, len))
}

/// Gives a lock back.
pub fn unlock(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    lock_op(fd, libc::F_OFD_SETLK, &mut range(libc::F_UNLCK, start, len))
}

/// Whether another open file holds a lock that an exclusive (or shared) one would meet.
pub fn is_taken(fd: BorrowedFd<'_>, start: u64, len: u64, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let mut lock = range(kind, start, len);
    lock_op(fd, libc::F_OFD_GETLK, &mut lock)?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}
