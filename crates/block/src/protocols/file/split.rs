//! A long transfer to or from the host's cache, done by several threads at once.
//!
//! The caller works through the pieces itself and does not return before every helper has
//! left: whoever comes late finds the work closed. So a busy machine loses nothing, and the
//! buffer is never used after the call.

#![allow(unsafe_code)]

use super::io::File;
use crate::types::IoResult;
use base::Mutex;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex as StdMutex, PoisonError};

/// Transfers shorter than this are not worth waking another thread.
pub(super) const WORTHWHILE: usize = 512 << 10;
const PIECE: usize = 128 << 10;
const MOST_HELPERS: usize = 3;

/// One transfer.
struct Work {
    file: Arc<File>,
    offset: u64,
    start: NonNull<u8>,
    len: usize,
    write: bool,
    next: AtomicUsize,
    /// Helpers inside.
    inside: AtomicUsize,
    closed: AtomicBool,
    outcome: Mutex<Outcome>,
}

/// Up to where all is done, and the error that ended it there.
struct Outcome {
    done: usize,
    error: Option<std::io::Error>,
}

// SAFETY: `start` points to the caller's buffer, of which each piece is taken by one thread
// only (`next`), and only while the caller waits (`inside`, `closed`).
unsafe impl Send for Work {}
// SAFETY: as above; all other fields may be shared.
unsafe impl Sync for Work {}

impl Work {
    fn help(&self) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        // The caller closes first and looks at `inside` afterwards: one of us sees the other.
        if !self.closed.load(Ordering::SeqCst) {
            self.pieces();
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn pieces(&self) {
        loop {
            let from = self.next.fetch_add(PIECE, Ordering::Relaxed);
            if from >= self.len {
                return;
            }
            let len = PIECE.min(self.len - from);
            let at = self.offset + from as u64;
            // SAFETY: within the buffer.
            let start = unsafe { self.start.as_ptr().add(from) };
            let result = if self.write {
                // SAFETY: the buffer is borrowed by the caller until we are out.
                let piece = unsafe { std::slice::from_raw_parts(start, len) };
                self.file.write_all(at, piece).map(|()| len)
            } else {
                // SAFETY: as above, exclusively, and nobody else has this piece.
                let piece = unsafe { std::slice::from_raw_parts_mut(start, len) };
                self.file.read_cached(at, piece)
            };
            let (done, error) = match result {
                Ok(done) => (done, None),
                Err(error) => (0, Some(error)),
            };
            if done < len {
                let mut outcome = self.outcome.lock();
                if from + done < outcome.done {
                    *outcome = Outcome { done: from + done, error };
                }
                // What comes after is of no use.
                self.next.store(self.len, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Default)]
struct Helpers {
    queue: StdMutex<VecDeque<Arc<Work>>>,
    called: Condvar,
    count: usize,
}

static HELPERS: LazyLock<Arc<Helpers>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = (cores - 1).min(MOST_HELPERS);
    let helpers = Arc::new(Helpers { count, ..Helpers::default() });
    for _ in 0..count {
        let helpers = helpers.clone();
        let run = move || helpers.run();
        // Without helpers the caller does it all.
        let _ = std::thread::Builder::new().name("block-copy".into()).spawn(run);
    }
    helpers
});

impl Helpers {
    fn run(&self) {
        loop {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let work = loop {
                match queue.pop_front() {
                    Some(work) => break work,
                    None => queue = self.called.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(queue);
            work.help();
        }
    }

    fn call(&self, work: &Arc<Work>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.extend((0..self.count).map(|_| work.clone()));
        drop(queue);
        self.called.notify_all();
    }

    fn forget(&self, work: &Arc<Work>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|one| !Arc::ptr_eq(one, work));
    }
}

fn transfer(file: &Arc<File>, offset: u64, start: NonNull<u8>, len: usize, write: bool) -> IoResult<usize> {
    let work = Arc::new(Work {
        file: file.clone(),
        offset,
        start,
        len,
        write,
        next: AtomicUsize::new(0),
        inside: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        outcome: Mutex::new(Outcome { done: len, error: None }),
    });
    HELPERS.call(&work);
    work.pieces();
    work.closed.store(true, Ordering::SeqCst);
    while work.inside.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    HELPERS.forget(&work);
    let outcome = std::mem::replace(&mut *work.outcome.lock(), Outcome { done: 0, error: None });
    outcome.error.map_or(Ok(outcome.done), Err)
}

/// Reads what can be had without waiting; returns how many bytes from the start.
pub(super) fn read(file: &Arc<File>, offset: u64, buf: &mut [u8]) -> IoResult<usize> {
    let len = buf.len();
    NonNull::new(buf.as_mut_ptr()).map_or(Ok(0), |start| transfer(file, offset, start, len, false))
}

/// Writes all of `data`.
pub(super) fn write(file: &Arc<File>, offset: u64, data: &[u8]) -> IoResult {
    // Only read from: `write` is set.
    let start = NonNull::new(data.as_ptr().cast_mut());
    start.map_or(Ok(0), |start| transfer(file, offset, start, data.len(), true)).map(drop)
}
