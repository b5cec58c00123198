//! Pieces of a job's work that run at the same time, on threads of their own.

use crate::graph::Graph;
use crate::types::{IoResult, errno};
use std::future::Future;
use std::sync::Arc;
use tokio::task::JoinSet;

/// A piece of work that has ended: the range it was about and what came of it.
pub(super) struct Ended<T> {
    pub from: u64,
    pub len: u64,
    pub result: T,
}

/// Work in flight. What was begun must be waited for ([`Crew::next`] until it gives `None`).
pub(super) struct Crew<T> {
    graph: Arc<Graph>,
    running: JoinSet<Ended<T>>,
    ranges: Vec<(u64, u64)>,
    most: usize,
}

impl<T: Send + 'static> Crew<T> {
    /// At most `most` pieces at once.
    pub fn new(graph: &Arc<Graph>, most: usize) -> Self {
        Crew { graph: graph.clone(), running: JoinSet::new(), ranges: Vec::new(), most }
    }

    pub fn is_full(&self) -> bool {
        self.ranges.len() >= self.most
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether a piece in flight has to do with a part of `[from, from + len)`.
    pub fn meets(&self, from: u64, len: u64) -> bool {
        self.ranges.iter().any(|&(start, count)| start < from + len && from < start + count)
    }

    /// Bytes in flight.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, len)| len).sum()
    }

    pub fn start(&mut self, from: u64, len: u64, work: impl Future<Output = T> + Send + 'static) {
        self.ranges.push((from, len));
        let work = async move { Ended { from, len, result: work.await } };
        self.running.spawn_on(work, self.graph.worker().handle());
    }

    /// Waits for the end of a piece; `None` if there is none. `EIO`: it panicked.
    pub async fn next(&mut self) -> IoResult<Option<Ended<T>>> {
        match self.running.join_next().await {
            None => {
                self.ranges.clear();
                Ok(None)
            }
            Some(Ok(ended)) => {
                self.ranges.retain(|range| *range != (ended.from, ended.len));
                Ok(Some(ended))
            }
            Some(Err(_)) => Err(errno(libc::EIO)),
        }
    }

    /// Waits for all, whatever comes of it.
    pub async fn settle(&mut self) {
        while !matches!(self.next().await, Ok(None)) {}
    }
}

#[cfg(test)]
mod tests;
