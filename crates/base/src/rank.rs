//! A mutex that does not poison and whose nesting order is checked in debug builds.
//!
//! Every lock has a rank; a thread may only take a lock whose rank is higher than all it
//! holds. Rank 0 means "unranked" and is not checked. Locks are held for bookkeeping only:
//! call out (to another device, a bus, a back end) after unlocking.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::{self, PoisonError};

thread_local! {
    static HELD: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// Ranks in the order in which locks may be nested (low first).
pub mod ranks {
    pub const MACHINE: u16 = 10;
    pub const DEVICE: u16 = 20;
    pub const BUS: u16 = 30;
    pub const INTERRUPT: u16 = 40;
    pub const MEMORY: u16 = 50;
    pub const CLOCK: u16 = 60;
    pub const NOTICE: u16 = 70;
}

/// A mutual exclusion lock; see the module text.
#[derive(Default, Debug)]
pub struct Mutex<T: ?Sized> {
    rank: u16,
    inner: sync::Mutex<T>,
}

/// Access to the value of a [`Mutex`] until dropped.
pub struct MutexGuard<'a, T: ?Sized> {
    rank: u16,
    inner: sync::MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    /// An unranked lock.
    pub const fn new(value: T) -> Self {
        Mutex { rank: 0, inner: sync::Mutex::new(value) }
    }

    /// A lock of the given rank.
    pub const fn ranked(rank: u16, value: T) -> Self {
        Mutex { rank, inner: sync::Mutex::new(value) }
    }

    pub fn into_inner(self) -> T {
        self.inner.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits for the lock. Panics in debug builds when the lock order is violated.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        if cfg!(debug_assertions) && self.rank != 0 {
            HELD.with_borrow_mut(|held| {
                if let Some(&top) = held.iter().max() {
                    assert!(top < self.rank, "lock of rank {} taken while holding rank {top}", self.rank);
                }
                held.push(self.rank);
            });
        }
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        MutexGuard { rank: self.rank, inner }
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if cfg!(debug_assertions) && self.rank != 0 {
            HELD.with_borrow_mut(|held| {
                if let Some(at) = held.iter().rposition(|&rank| rank == self.rank) {
                    held.remove(at);
                }
            });
        }
    }
}
