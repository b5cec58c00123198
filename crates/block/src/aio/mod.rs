//! Requests carried out by the kernel: `aio=io_uring` and `aio=native`.
//!
//! Each I/O thread has one queue of each kind. Requests started while the thread works on
//! others go to the kernel together, by one system call, when it comes to the queue's own
//! task. Buffers belong to the queue until the kernel is done with them.

mod buffer;
mod kernel;
mod native;

pub(crate) use buffer::Buffer;

use crate::types::*;
use base::Mutex;
use kernel::{Call, Queue};
use rustix::fd::{AsFd, OwnedFd};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

/// Something open whose descriptor stays valid while it lives.
pub(crate) type Held = Arc<dyn AsFd + Send + Sync>;

/// What is asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    /// fdatasync.
    Sync,
}

/// The queue of one kind of one I/O thread.
pub(crate) struct Engine {
    queue: Mutex<Queue>,
    started: Notify,
    driven: AtomicBool,
    buffers: Mutex<buffer::Pool>,
}

thread_local! {
    static HERE: RefCell<[Option<Arc<Engine>>; 2]> = const { RefCell::new([None, None]) };
}

/// The engine of this thread, which must be one with a runtime. Fails where the host does
/// not permit it.
pub(crate) fn here(kind: Aio) -> io::Result<Arc<Engine>> {
    let slot = usize::from(kind == Aio::Native);
    HERE.with(|engines| {
        let mut engines = engines.borrow_mut();
        if let Some(engine) = &engines[slot]
            && engine.driven.load(Ordering::Acquire)
        {
            return Ok(engine.clone());
        }
        let (queue, fd) = match kind {
            Aio::Native => Queue::native()?,
            _ => Queue::uring()?,
        };
        let engine = Arc::new(Engine {
            queue: Mutex::new(queue),
            started: Notify::new(),
            driven: AtomicBool::new(true),
            buffers: Mutex::default(),
        });
        let fd = kernel::watch(fd)?;
        tokio::spawn(drive(engine.clone(), fd));
        engines[slot] = Some(engine.clone());
        Ok(engine)
    })
}

/// Marks an engine whose runtime ended.
struct Driver(Arc<Engine>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.driven.store(false, Ordering::Release);
    }
}

async fn drive(engine: Arc<Engine>, fd: AsyncFd<OwnedFd>) {
    let driver = Driver(engine);
    loop {
        tokio::select! {
            biased;
            () = driver.0.started.notified() => {}
            ready = fd.readable() => match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            },
        }
        let (ended, stuck) = {
            let mut queue = driver.0.queue.lock();
            (queue.turn(), queue.stuck)
        };
        for (done, outcome) in ended {
            // A request whose task is gone has nobody to tell.
            let _ = done.send(outcome);
        }
        if stuck {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            driver.0.started.notify_one();
        }
    }
}

impl Engine {
    /// A buffer of `len` bytes with any content.
    pub fn buffer(&self, len: usize) -> Buffer {
        self.buffers.lock().take(len)
    }

    pub fn give_back(&self, buffer: Buffer) {
        self.buffers.lock().give(buffer);
    }

    /// Does one operation on the whole of `buffer`. Returns the buffer and the number of bytes done.
    pub async fn run(
        &self,
        file: Held,
        operation: Operation,
        offset: u64,
        buffer: Buffer,
    ) -> io::Result<(Buffer, usize)> {
        let (done, outcome) = oneshot::channel();
        self.queue.lock().start(Call { file, operation, offset, buffer }, done);
        self.started.notify_one();
        match outcome.await {
            Ok((buffer, Ok(count))) => Ok((buffer, count)),
            Ok((buffer, Err(error))) => {
                self.give_back(buffer);
                Err(error)
            }
            Err(_) => Err(errno(libc::EIO)),
        }
    }
}

#[cfg(test)]
mod tests;
