//! The queue of an engine. Unsafe because the kernel reads and writes buffers while nobody
//! waits for it: every call in the kernel's hands is kept in `calls` until its completion is
//! seen, with its buffer and its file, also when the queue itself is dropped.

#![allow(unsafe_code)]

use super::native::Native;
use super::{Buffer, Held, Operation};
use crate::types::errno;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use std::collections::VecDeque;
use std::io;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// Entries of the submission queue.
const ENTRIES: u32 = 128;

pub(super) type Outcome = (Buffer, io::Result<usize>);
pub(super) type Done = oneshot::Sender<Outcome>;

/// One operation and all that must stay in place for it.
pub(super) struct Call {
    pub file: Held,
    pub operation: Operation,
    pub offset: u64,
    pub buffer: Buffer,
}

enum Way {
    Uring(Box<IoUring>),
    Native(Native),
}

pub(super) struct Queue {
    way: Way,
    /// By token; also those that still wait in `backlog`.
    calls: Vec<Option<(Call, Done)>>,
    unused: Vec<usize>,
    backlog: VecDeque<usize>,
    /// In the kernel's hands.
    flying: usize,
    /// No more than this, so that the kernel has room to tell of all their ends: of those it
    /// keeps back it does not tell again.
    most: usize,
    /// The kernel took nothing though nothing is in its hands: to be tried again soon.
    pub stuck: bool,
}

impl Queue {
    /// A queue over io_uring, and a descriptor that is readable when something ended.
    pub fn uring() -> io::Result<(Queue, OwnedFd)> {
        let ring = IoUring::new(ENTRIES)?;
        // SAFETY: the descriptor is the ring's, which is open.
        let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned()?;
        let most = ring.params().cq_entries() as usize;
        Ok((Queue::over(Way::Uring(Box::new(ring)), most), fd))
    }

    /// The same over Linux' older interface (io_submit).
    pub fn native() -> io::Result<(Queue, OwnedFd)> {
        let (native, fd) = Native::new(ENTRIES)?;
        // Its ring refuses what it has no room for.
        Ok((Queue::over(Way::Native(native), usize::MAX), fd))
    }

    fn over(way: Way, most: usize) -> Queue {
        Queue {
            way,
            calls: Vec::new(),
            unused: Vec::new(),
            backlog: VecDeque::new(),
            flying: 0,
            most,
            stuck: false,
        }
    }

    /// Takes a call; it goes to the kernel in the next [`Queue::turn`].
    pub fn start(&mut self, call: Call, done: Done) {
        let token = self.unused.pop().unwrap_or_else(|| {
            self.calls.push(None);
            self.calls.len() - 1
        });
        self.calls[token] = Some((call, done));
        self.backlog.push_back(token);
    }

    /// Gives waiting calls to the kernel and collects what has ended.
    pub fn turn(&mut self) -> Vec<(Done, Outcome)> {
        let mut ended = Vec::new();
        self.stuck = false;
        loop {
            let before = (self.backlog.len(), ended.len());
            self.submit(&mut ended);
            self.reap(&mut ended);
            if self.backlog.is_empty() || (self.backlog.len(), ended.len()) == before {
                return ended;
            }
        }
    }

    fn submit(&mut self, ended: &mut Vec<(Done, Outcome)>) {
        while self.flying < self.most
            && let Some(&token) = self.backlog.front()
        {
            let Some((call, _)) = &mut self.calls[token] else {
                self.backlog.pop_front();
                continue;
            };
            let taken = match &mut self.way {
                Way::Uring(ring) => {
                    let entry = entry(call).user_data(token as u64);
                    // SAFETY: the buffer and the file of the call stay in `calls`, whose
                    // heap memory does not move, until the completion is reaped.
                    unsafe { ring.submission().push(&entry) }.map_err(|_| errno(libc::EAGAIN))
                }
                // SAFETY: as above.
                Way::Native(native) => unsafe { native.submit(call, token as u64) },
            };
            match taken {
                Ok(()) => self.flying += 1,
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    self.stuck = self.flying == 0;
                    break;
                }
                Err(error) => {
                    if let Some((call, done)) = self.calls[token].take() {
                        ended.push((done, (call.buffer, Err(error))));
                    }
                    self.unused.push(token);
                }
            }
            self.backlog.pop_front();
        }
        if let Way::Uring(ring) = &mut self.way {
            let busy = |error: &io::Error| error.raw_os_error() == Some(libc::EBUSY);
            // A full completion queue is emptied by the caller, who comes again.
            self.stuck |= ring.submit().is_err_and(|error| !busy(&error));
        }
    }

    fn reap(&mut self, ended: &mut Vec<(Done, Outcome)>) {
        let mut results = Vec::new();
        match &mut self.way {
            Way::Uring(ring) => {
                results.extend(ring.completion().map(|entry| (entry.user_data(), i64::from(entry.result()))))
            }
            Way::Native(native) => native.reap(&mut results),
        }
        for (token, result) in results {
            let token = token as usize;
            let Some((call, done)) = self.calls.get_mut(token).and_then(Option::take) else { continue };
            self.flying -= 1;
            self.unused.push(token);
            let result = match result {
                count @ 0.. => Ok(count as usize),
                code => Err(errno(-code as i32)),
            };
            ended.push((done, (call.buffer, result)));
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.backlog.clear();
        while self.flying > 0 {
            let waited = match &mut self.way {
                Way::Uring(ring) => ring.submit_and_wait(1).map(drop),
                Way::Native(native) => native.wait(),
            };
            self.reap(&mut Vec::new());
            if waited.is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) && self.flying > 0 {
                // The kernel may still write there: better lost than freed.
                self.calls.drain(..).for_each(std::mem::forget);
                return;
            }
        }
    }
}

/// The runtime's watch over a descriptor that becomes readable.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and the same descriptor, until it is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

fn entry(call: &mut Call) -> squeue::Entry {
    let fd = types::Fd(call.file.as_fd().as_raw_fd());
    let data = call.buffer.data_mut();
    let (pointer, len) = (data.as_mut_ptr(), data.len() as u32);
    match call.operation {
        Operation::Read => opcode::Read::new(fd, pointer, len).offset(call.offset).build(),
        Operation::Write => opcode::Write::new(fd, pointer, len).offset(call.offset).build(),
        Operation::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}
