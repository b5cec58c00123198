//! Linux' older asynchronous I/O. (Source: linux/aio_abi.h, io_submit(2).)

#![allow(unsafe_code)]

use super::Operation;
use super::kernel::Call;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use std::io;
use std::ptr;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DATASYNC: u16 = 3;
/// Tell of the end by the eventfd `result_fd`.
const BY_EVENTFD: u32 = 1;
const AT_ONCE: usize = 64;

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Control {
    data: u64,
    key: u32,
    flags_of_rw: u32,
    operation: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    control: u64,
    result: i64,
    more: i64,
}

pub(super) struct Native {
    context: libc::c_ulong,
    told: OwnedFd,
}

fn check(result: libc::c_long) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

impl Native {
    /// A context for `entries` calls, and an eventfd that tells of their ends.
    pub fn new(entries: u32) -> io::Result<(Native, OwnedFd)> {
        let told = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word to `context`, which is 0 as it must be.
        check(unsafe { libc::syscall(libc::SYS_io_setup, entries, &mut context) })?;
        let fd = told.try_clone()?;
        Ok((Native { context, told }, fd))
    }

    /// # Safety
    /// The call's file and buffer must stay until its end has been reaped.
    pub unsafe fn submit(&mut self, call: &mut Call, token: u64) -> io::Result<()> {
        let data = call.buffer.data_mut();
        let mut control = Control {
            data: token,
            operation: match call.operation {
                Operation::Read => READ,
                Operation::Write => WRITE,
                Operation::Sync => DATASYNC,
            },
            fd: call.file.as_fd().as_raw_fd() as u32,
            flags: BY_EVENTFD,
            result_fd: self.told.as_raw_fd() as u32,
            ..Control::default()
        };
        if call.operation != Operation::Sync {
            control.buffer = data.as_mut_ptr() as u64;
            control.len = data.len() as u64;
            control.offset = call.offset as i64;
        }
        let list = [ptr::from_mut(&mut control)];
        // SAFETY: one valid control block, which the kernel copies; the rest by contract.
        check(unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_ptr()) }).map(drop)
    }

    /// Adds token and result of each call that has ended.
    pub fn reap(&mut self, results: &mut Vec<(u64, i64)>) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.told, &mut count);
        while self.events(0, results).is_ok_and(|count| count == AT_ONCE) {}
    }

    fn events(&mut self, least: usize, results: &mut Vec<(u64, i64)>) -> io::Result<usize> {
        let mut events = [Event::default(); AT_ONCE];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let limit = if least == 0 { &raw const now } else { ptr::null() };
        // SAFETY: there is room for AT_ONCE events, and `limit` is null or valid.
        let count = check(unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, least, AT_ONCE, events.as_mut_ptr(), limit)
        })?;
        results.extend(events[..count].iter().map(|event| (event.data, event.result)));
        Ok(count)
    }

    /// Waits until a call has ended; it is still to be reaped.
    pub fn wait(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        poll(&mut [PollFd::new(&self.told, PollFlags::IN)], None)?;
        Ok(())
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the context is ours; this waits for calls that are still being done.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
