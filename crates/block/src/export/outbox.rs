//! Replies on their way to a client: those that are ready together are written together.

use crate::buffers::Lent;
use std::io::{self, IoSlice};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;

/// Slices given to one system call.
const AT_ONCE: usize = 64;

/// Head and body of a reply, either of which may be empty.
pub(super) struct Part {
    pub head: Vec<u8>,
    pub body: Lent,
}

pub(super) struct Outbox<W> {
    queue: base::Mutex<Vec<Part>>,
    way: Mutex<Way<W>>,
}

struct Way<W> {
    writer: W,
    /// A reply was begun and not ended: nothing may follow it.
    torn: bool,
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub fn new(writer: W) -> Self {
        Outbox { queue: base::Mutex::default(), way: Mutex::new(Way { writer, torn: false }) }
    }

    /// Sends the parts of one reply, in order and with nothing between them. Returns when
    /// they are written. A caller that gives up, or fails, ends the stream for all.
    pub async fn put(&self, parts: Vec<Part>) -> io::Result<()> {
        self.queue.lock().extend(parts);
        // Others that are ready add theirs first.
        tokio::task::yield_now().await;
        let mut way = self.way.lock().await;
        let parts = std::mem::take(&mut *self.queue.lock());
        if std::mem::replace(&mut way.torn, true) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        write(&mut way.writer, &parts).await?;
        way.torn = false;
        Ok(())
    }

    pub async fn shutdown(&self) -> io::Result<()> {
        self.way.lock().await.writer.shutdown().await
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), parts: &[Part]) -> io::Result<()> {
    let slices = parts.iter().flat_map(|part| [&part.head[..], &part.body[..]]);
    let slices: Vec<&[u8]> = slices.filter(|slice| !slice.is_empty()).collect();
    for group in slices.chunks(AT_ONCE) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|slice| IoSlice::new(slice)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match writer.write_vectored(left).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => IoSlice::advance_slices(&mut left, count),
            }
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

    fn reply(number: u8, len: usize) -> Vec<Part> {
        vec![Part { head: vec![number], body: Lent::from(vec![number; len]) }]
    }

    #[test]
    fn nothing_follows_a_reply_that_was_cut_off() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (here, mut there) = tokio::io::duplex(10);
            let outbox = Arc::new(Outbox::new(here));
            let mut first = Box::pin(outbox.put(reply(1, 100)));
            let mut second = Box::pin(outbox.put(reply(2, 3)));
            let mut context = Context::from_waker(Waker::noop());
            // Only the first has passed its turn for others when it writes.
            assert!(first.as_mut().poll(&mut context).is_pending());
            assert!(first.as_mut().poll(&mut context).is_pending());
            assert!(second.as_mut().poll(&mut context).is_pending());
            assert!(second.as_mut().poll(&mut context).is_pending());
            drop(first);
            assert_eq!(second.await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            drop(outbox);
            let mut seen = Vec::new();
            there.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, [1; 10]);
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
                        let part = Part { head: vec![number; 2], body };
                        let more = Part { head: vec![number], body: Lent::from(Vec::new()) };
                        outbox.put(vec![part, more]).await.unwrap();
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
