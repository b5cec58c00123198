//! A member's way past the limits of its group.

use super::Group;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// While it is open, the member's requests go on at once, those that wait already too: whoever
/// waits for them must not depend on a clock that may stand still.
#[derive(Default)]
pub struct Valve {
    open: AtomicUsize,
    opened: Notify,
}

impl Valve {
    /// Undone by [`Valve::close`].
    pub fn open(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    pub fn close(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits until a request of `bytes` may go, and counts it. Dropping the future gives up.
    pub async fn wait(&self, group: &Group, write: bool, bytes: u64) {
        let opened = self.opened.notified();
        if self.open.load(Ordering::SeqCst) > 0 {
            return group.count(write, bytes);
        }
        tokio::select! {
            biased;
            () = group.wait(write, bytes) => {}
            () = opened => group.count(write, bytes),
        }
    }
}
