//! Reading the guest's disk.

use super::Qcow2;
use super::entry::Kind;
use crate::filters::blkdebug;
use crate::types::*;

impl Qcow2 {
    /// Reads any range of the mapped space (the guest's disk and VM state behind it).
    pub(super) async fn read_guest(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let left = (buf.len() - done) as u64;
            let map = self.with(|meta| meta.lookup(at, left)).await?;
            let piece = &mut buf[done..done + map.len.min(left) as usize];
            match (map.kind, map.host) {
                (Kind::Normal, Some(host)) => {
                    blkdebug::event(self.store(), "read_aio").await;
                    self.read_store(at, host, piece).await?;
                }
                (Kind::Compressed, _) => {
                    blkdebug::event(&self.file, "read_compressed").await;
                    self.read_compressed(map.entry, at, piece).await?;
                }
                (Kind::Unallocated, _) => match self.backing() {
                    Some(backing) => {
                        blkdebug::event(&self.file, "read_backing_aio").await;
                        backing.read(at, piece).await?;
                    }
                    None => piece.fill(0),
                },
                _ => piece.fill(0),
            }
            done += piece.len();
        }
        Ok(())
    }
}
