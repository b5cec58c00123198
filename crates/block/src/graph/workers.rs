//! Threads for long transfers: moving a megabyte keeps a processor busy for longer than it takes
//! to wake another.

use super::IoThread;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More would only fight for the memory's bandwidth.
const MOST: usize = 4;

/// I/O threads that belong to nobody, started when first asked for.
#[derive(Default)]
pub(super) struct Workers {
    threads: OnceLock<Vec<IoThread>>,
    /// Which one is asked first.
    turn: AtomicUsize,
}

impl Workers {
    /// The one that has the least to do; in turns where several are alike.
    pub fn next(&self) -> &IoThread {
        let threads = self.threads.get_or_init(|| {
            let count = std::thread::available_parallelism().map_or(1, |count| count.get()).min(MOST);
            (0..count).map(|number| IoThread::start(&format!("block-{number}"))).collect()
        });
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..threads.len())
            .map(|number| &threads[first.wrapping_add(number) % threads.len()])
            .min_by_key(|thread| thread.handle().metrics().num_alive_tasks())
            .expect("there is one at least")
    }
}
