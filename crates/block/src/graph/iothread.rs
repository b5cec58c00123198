//! A thread with a current-thread runtime on which requests run.

use super::polling::{Limits, Polling};
use std::future::Future;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// A thread for I/O (`-object iothread`); clones are the same thread. It ends when the
/// last clone is gone.
#[derive(Clone)]
pub struct IoThread(Arc<Inner>);

struct Inner {
    name: String,
    handle: Handle,
    stop: Arc<Notify>,
    /// The thread's id in the system.
    tid: i32,
    polling: Arc<Polling>,
}

impl std::fmt::Debug for IoThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl IoThread {
    pub fn start(name: &str) -> Self {
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let polling = Arc::new(Polling::new(Limits::NONE));
        let (parks, wakes, polls) = (polling.clone(), polling.clone(), polling.clone());
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(64)
                .on_thread_park(move || parks.parks())
                .on_thread_unpark(move || wakes.wakes())
                .build()
                .expect("the host can start an I/O runtime");
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            // Before anybody counts the thread's tasks.
            runtime.spawn(async move { polls.run().await });
            if tx.send((runtime.handle().clone(), tid)).is_ok() {
                runtime.block_on(stopped.notified());
            }
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name(name.to_string()).spawn(run).expect("the host can start a thread");
        let (handle, tid) = rx.recv().expect("the I/O thread starts");
        IoThread(Arc::new(Inner { name: name.to_string(), handle, stop, tid, polling }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The system's thread id (`query-iothreads`).
    pub fn thread_id(&self) -> i32 {
        self.0.tid
    }

    /// How long the thread looks for new work before it sleeps.
    pub fn polling(&self) -> Limits {
        self.0.polling.limits()
    }

    pub fn set_polling(&self, limits: Limits) {
        self.0.polling.set_limits(limits);
    }

    /// Whether both are the same thread.
    pub fn is(&self, other: &IoThread) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// Runs `work` there and waits for it. Not to be called on an I/O thread.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        self.0.handle.spawn(async move {
            let _ = tx.send(work.await);
        });
        rx.recv().expect("work on an I/O thread ends")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}
