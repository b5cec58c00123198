//! The gate requests of a back end pass: counted inside, held back while drained.

use crate::graph::Haste;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

#[derive(Default)]
pub struct Gate {
    inside: AtomicUsize,
    closed: AtomicUsize,
    idle: Notify,
    opened: Notify,
}

/// A request inside; leaves when dropped.
pub struct Inside<'a>(&'a Gate);

impl Gate {
    pub async fn enter(&self) -> Inside<'_> {
        loop {
            let opened = self.opened.notified();
            self.inside.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(self);
            if self.closed.load(Ordering::SeqCst) == 0 {
                return inside;
            }
            drop(inside);
            opened.await;
        }
    }

    pub async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.inside.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }

    pub fn in_flight(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.0.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Holds a back end drained until dropped.
pub struct Drained {
    backend: Arc<super::Inner>,
    _haste: Haste,
}

impl Drained {
    pub(super) async fn new(backend: Arc<super::Inner>) -> Self {
        backend.gate.closed.fetch_add(1, Ordering::SeqCst);
        let root = backend.root.lock().as_ref().map(crate::graph::Child::node);
        let held = Drained { backend, _haste: Haste::below(root) };
        held.backend.gate.wait_idle().await;
        held
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        if self.backend.gate.closed.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.backend.gate.opened.notify_waiters();
        }
    }
}
