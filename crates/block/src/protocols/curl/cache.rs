//! What was read of a remote file, and a little more than that: requests near each other
//! share one transfer.

use super::transfer::Client;
use crate::types::{IoResult, errno};
use base::Mutex;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::{OnceCell, Semaphore};

/// Pieces kept, and transfers made at once.
const PIECES: usize = 8;

pub(super) struct Cache {
    client: Client,
    size: u64,
    readahead: u64,
    /// The newest last.
    pieces: Mutex<VecDeque<Arc<Piece>>>,
    transfers: Semaphore,
}

/// A range of the file: on its way, there, or failed.
struct Piece {
    range: Range<u64>,
    data: OnceCell<Option<Vec<u8>>>,
}

impl Cache {
    pub fn new(client: Client, size: u64, readahead: u64) -> Self {
        let pieces = Mutex::new(VecDeque::with_capacity(PIECES));
        Cache { client, size, readahead, pieces, transfers: Semaphore::new(PIECES) }
    }

    /// Fills `buf`; the range lies within the file.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let piece = self.piece(at, offset + buf.len() as u64);
            let data = piece.data.get_or_init(|| self.fetch(piece.range.clone())).await;
            let Some(data) = data else {
                self.pieces.lock().retain(|one| !Arc::ptr_eq(one, &piece));
                return Err(errno(libc::EIO));
            };
            let from = &data[(at - piece.range.start) as usize..];
            let count = from.len().min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&from[..count]);
            done += count;
        }
        Ok(())
    }

    /// The piece with the byte `at`: one that is there or on its way, else a new one for a
    /// request up to `end`.
    fn piece(&self, at: u64, end: u64) -> Arc<Piece> {
        let mut pieces = self.pieces.lock();
        if let Some(index) = pieces.iter().position(|piece| piece.range.contains(&at)) {
            let piece = pieces[index].clone();
            pieces.remove(index);
            pieces.push_back(piece.clone());
            return piece;
        }
        if pieces.len() >= PIECES {
            pieces.pop_front();
        }
        let range = at..end.saturating_add(self.readahead).min(self.size);
        let piece = Arc::new(Piece { range, data: OnceCell::new() });
        pieces.push_back(piece.clone());
        piece
    }

    async fn fetch(&self, range: Range<u64>) -> Option<Vec<u8>> {
        let _place = self.transfers.acquire().await.ok()?;
        self.client.fetch(range, self.size).await
    }
}
