//! Lock bytes in image files, as QEMU takes them: byte 100+n is held (shared) by who uses
//! permission n, byte 200+n by who lets no other use it. `qemu-img` refuses an image in
//! use by these, and so do we.

use crate::types::Perm;
use base::{Failure, Result};
use rustix::fd::BorrowedFd;

const USED: u64 = 100;
const DENIED: u64 = 200;

pub(super) struct Locks {
    enabled: bool,
    used: Perm,
    denied: Perm,
}

impl Locks {
    pub fn new(enabled: bool) -> Self {
        Locks { enabled, used: Perm::empty(), denied: Perm::empty() }
    }

    /// Holds what `perm` and `shared` ask for, or keeps what was held and says who is in
    /// the way.
    pub fn change(&mut self, fd: BorrowedFd<'_>, perm: Perm, shared: Perm, file: &str) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let (used, denied) = (perm, Perm::all() - shared);
        if let Err(why) = self.take(fd, used, denied, file) {
            self.give_back(fd, self.used, self.denied);
            return Err(why);
        }
        self.give_back(fd, used, denied);
        (self.used, self.denied) = (used, denied);
        Ok(())
    }

    /// The same locks on another open file. The old one, which requests in flight may keep open
    /// for a while, is in nobody's way then.
    pub fn move_to(&mut self, old: BorrowedFd<'_>, fd: BorrowedFd<'_>, file: &str) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        // Checking would meet our own locks on the old one.
        for bit in bits() {
            for (base, set) in [(USED, self.used), (DENIED, self.denied)] {
                if set.contains(bit) {
                    lock(fd, base, bit, file)?;
                }
            }
        }
        self.give_back(old, Perm::empty(), Perm::empty());
        Ok(())
    }

    fn take(&self, fd: BorrowedFd<'_>, used: Perm, denied: Perm, file: &str) -> Result<()> {
        for bit in bits() {
            if used.contains(bit) && !self.used.contains(bit) {
                lock(fd, USED, bit, file)?;
            }
            if denied.contains(bit) && !self.denied.contains(bit) {
                lock(fd, DENIED, bit, file)?;
            }
        }
        for bit in bits() {
            if used.contains(bit) {
                check(fd, DENIED, bit, "", file)?;
            }
            if denied.contains(bit) {
                check(fd, USED, bit, "shared ", file)?;
            }
        }
        Ok(())
    }

    /// Unlocks all that is not in the given sets.
    fn give_back(&self, fd: BorrowedFd<'_>, used: Perm, denied: Perm) {
        for bit in bits() {
            for (base, set) in [(USED, used), (DENIED, denied)] {
                if !set.contains(bit) {
                    // Unlocking what is not locked does nothing.
                    let _ = base::ofd::unlock(fd, base + at(bit), 1);
                }
            }
        }
    }
}

fn bits() -> impl Iterator<Item = Perm> {
    Perm::all().iter()
}

fn at(bit: Perm) -> u64 {
    u64::from(bit.bits().trailing_zeros())
}

fn hint(file: &str) -> String {
    format!("Is another process using the image [{file}]?")
}

fn lock(fd: BorrowedFd<'_>, base: u64, bit: Perm, file: &str) -> Result<()> {
    match base::ofd::lock(fd, base + at(bit), 1, false) {
        Ok(()) => Ok(()),
        // File systems without locks.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::ENOLCK | libc::EBADF)
            ) =>
        {
            Ok(())
        }
        Err(_) => Err(Failure::new(format!("Failed to lock byte {}", base + at(bit))).hint(hint(file))),
    }
}

fn check(fd: BorrowedFd<'_>, base: u64, bit: Perm, shared: &str, file: &str) -> Result<()> {
    match base::ofd::is_taken(fd, base + at(bit), 1, true) {
        Ok(true) => {
            Err(Failure::new(format!("Failed to get {shared}\"{}\" lock", bit.names())).hint(hint(file)))
        }
        _ => Ok(()),
    }
}
