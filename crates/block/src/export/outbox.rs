//! Replies on their way to a client: those that are ready together are written together.

use crate::buffers::Lent;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit};

/// Slices given to one system call.
const AT_ONCE: usize = 64;

/// Head and body of a reply, either of which may be empty.
#[derive(Default)]
pub(super) struct Part {
    pub head: Vec<u8>,
    pub body: Lent,
    /// The request's place among those under way, which is free once the reply is written: a
    /// client counts by the replies that it has seen.
    pub slot: Option<OwnedSemaphorePermit>,
}

pub(super) struct Outbox<W> {
    queue: base::Mutex<Queue>,
    writer: Mutex<W>,
}

#[derive(Default)]
struct Queue {
    parts: VecDeque<Part>,
    /// Somebody is about to write all that is here.
    served: bool,
    /// A reply was begun and not ended: nothing may follow it.
    torn: bool,
}

/// The task that writes for all. Dropped before it has said that it is done: ends the stream.
struct Turn<'a>(Option<&'a base::Mutex<Queue>>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.0 {
            let left = std::mem::replace(&mut *queue.lock(), Queue { torn: true, ..Queue::default() });
            drop(left);
        }
    }
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub fn new(writer: W) -> Self {
        Outbox { queue: base::Mutex::default(), writer: Mutex::new(writer) }
    }

    /// Sends the parts of one reply, in order and with nothing between them. Returns when they
    /// are written, or at once if somebody else is at it, who writes these as well. A caller that
    /// gives up, or fails, ends the stream for all.
    pub async fn put(&self, parts: impl IntoIterator<Item = Part>) -> io::Result<()> {
        {
            let mut queue = self.queue.lock();
            if queue.torn {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            queue.parts.extend(parts);
            if std::mem::replace(&mut queue.served, true) {
                return Ok(());
            }
        }
        let mut turn = Turn(Some(&self.queue));
        // Others that are ready add theirs first.
        tokio::task::yield_now().await;
        let mut writer = self.writer.lock().await;
        loop {
            let parts = {
                let mut queue = self.queue.lock();
                queue.served = !queue.parts.is_empty();
                std::mem::take(&mut queue.parts)
            };
            if parts.is_empty() {
                turn.0 = None;
                return Ok(());
            }
            write(&mut *writer, parts).await?;
        }
    }

    pub async fn shutdown(&self) -> io::Result<()> {
        self.writer.lock().await.shutdown().await
    }
}

/// Writes all parts, letting go of each one when it is written.
async fn write(writer: &mut (impl AsyncWrite + Unpin), mut parts: VecDeque<Part>) -> io::Result<()> {
    // Bytes of the first part that are written.
    let mut done = 0;
    while let Some(first) = parts.front() {
        let len = first.head.len() + first.body.len();
        if done >= len {
            done -= len;
            parts.pop_front();
            continue;
        }
        let slices = parts.iter().flat_map(|part| [&part.head[..], &part.body[..]]);
        let slices = slices.filter(|slice| !slice.is_empty()).take(AT_ONCE);
        let mut slices: Vec<IoSlice<'_>> = slices.map(IoSlice::new).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, done);
        match writer.write_vectored(left).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => done += count,
        }
    }
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::sync::Arc;
    use std::task::{Context, Waker};
    use tokio::io::AsyncReadExt;
    use tokio::sync::Semaphore;

    fn reply(number: u8, len: usize) -> Vec<Part> {
        vec![Part { head: vec![number], body: Lent::from(vec![number; len]), slot: None }]
    }

    #[test]
    fn nothing_follows_a_reply_that_was_cut_off() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (here, mut there) = tokio::io::duplex(10);
            let outbox = Arc::new(Outbox::new(here));
            let mut first = Box::pin(outbox.put(reply(1, 100)));
            let slots = Arc::new(Semaphore::new(1));
            let mut second = reply(2, 3);
            second[0].slot = slots.clone().try_acquire_owned().ok();
            let mut context = Context::from_waker(Waker::noop());
            // It begins to write in its second turn.
            assert!(first.as_mut().poll(&mut context).is_pending());
            assert!(first.as_mut().poll(&mut context).is_pending());
            outbox.put(second).await.unwrap();
            assert_eq!(slots.available_permits(), 0);
            drop(first);
            assert_eq!(slots.available_permits(), 1, "what is not written any more holds up nothing");
            let late = outbox.put(reply(3, 3)).await;
            assert_eq!(late.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            drop(outbox);
            let mut seen = Vec::new();
            there.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, [1; 10]);
        });
    }

    #[test]
    fn a_written_reply_does_not_wait_for_those_written_with_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (here, mut there) = tokio::io::duplex(10);
            let (outbox, slots) = (Outbox::new(here), Arc::new(Semaphore::new(3)));
            let replies = (1..=3).map(|number| {
                let mut parts = reply(number, if number == 2 { 50 } else { 4 });
                parts[0].slot = slots.clone().try_acquire_owned().ok();
                parts.remove(0)
            });
            let mut all = Box::pin(outbox.put(replies));
            let mut context = Context::from_waker(Waker::noop());
            // At first it lets others add theirs.
            assert!(all.as_mut().poll(&mut context).is_pending());
            let (mut free, mut seen) = (Vec::new(), 0);
            while seen < 5 + 51 + 5 {
                let _ = all.as_mut().poll(&mut context);
                free.push(slots.available_permits());
                seen += there.read(&mut [0; 8]).await.unwrap();
            }
            assert_eq!(free, [1, 1, 1, 1, 1, 1, 2, 3]);
        });
    }

    #[test]
    fn replies_come_whole_and_in_order_over_a_narrow_pipe() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (here, mut there) = tokio::io::duplex(100);
            let outbox = Arc::new(Outbox::new(here));
            let tasks: Vec<_> = (0..200u8)
                .map(|number| {
                    let outbox = outbox.clone();
                    tokio::spawn(async move {
                        let body = Lent::from(vec![number; usize::from(number) * 3]);
                        let part = Part { head: vec![number; 2], body, slot: None };
                        let more = Part { head: vec![number], ..Part::default() };
                        outbox.put([part, more]).await.unwrap();
                    })
                })
                .collect();
            let mut seen = Vec::new();
            while seen.len() < (0..200).map(|number| number * 3 + 3).sum() {
                let mut some = [0; 1000];
                let count = there.read(&mut some).await.unwrap();
                seen.extend_from_slice(&some[..count]);
            }
            for task in tasks {
                task.await.unwrap();
            }
            for (expected, run) in (0..).zip(seen.chunk_by(|one, other| one == other)) {
                assert_eq!((run[0], run.len()), (expected, usize::from(expected) * 3 + 3));
            }
        });
    }
}
