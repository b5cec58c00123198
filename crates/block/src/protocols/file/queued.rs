//! `aio=io_uring` and `aio=native`: requests given to the kernel by the I/O thread itself.

use super::FileLayer;
use crate::aio::{self, Engine, Operation};
use crate::types::*;
use base::{Failure, Result};
use std::sync::Arc;

/// Longest piece given to the kernel at once, so that buffers are of sizes that are kept.
const PIECE: usize = 1 << 20;

/// Whether the host lets this process use the interface.
pub(super) fn check(path: &str, aio: Aio) -> Result<()> {
    let name = match aio {
        Aio::Threads => return Ok(()),
        Aio::IoUring => "io_uring",
        Aio::Native => "native",
    };
    aio::here(aio).map(drop).map_err(|error| {
        let text = format!("Could not open '{path}': aio={name} cannot be used on this host");
        Failure::os(text, &error).hint("The kernel or a seccomp filter refuses it; use aio=threads.")
    })
}

impl FileLayer {
    pub(super) fn is_queued(&self) -> bool {
        self.aio != Aio::Threads
    }

    fn engine(&self) -> IoResult<Arc<Engine>> {
        aio::here(self.aio)
    }

    /// Reads all of `buf`; past the end of the file it is zeroes.
    pub(super) async fn read_queued(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        let engine = self.engine()?;
        let align = self.alignment() as usize;
        let mut done = 0;
        while done < buf.len() {
            let len = (buf.len() - done).min(PIECE);
            let buffer = engine.buffer(len);
            let at = offset + done as u64;
            let (buffer, count) = match engine.run(self.file.load_full(), Operation::Read, at, buffer).await {
                Err(error) if again(&error) => continue,
                other => other?,
            };
            buf[done..done + count].copy_from_slice(&buffer.data()[..count]);
            engine.give_back(buffer);
            done += count;
            if count == 0 || !count.is_multiple_of(align) {
                break; // the end of the file
            }
        }
        buf[done..].fill(0);
        Ok(())
    }

    pub(super) async fn write_queued(&self, offset: u64, data: &[u8]) -> IoResult {
        let engine = self.engine()?;
        let mut done = 0;
        while done < data.len() {
            let piece = &data[done..data.len().min(done + PIECE)];
            let mut buffer = engine.buffer(piece.len());
            buffer.data_mut().copy_from_slice(piece);
            let at = offset + done as u64;
            let (buffer, count) = match engine.run(self.file.load_full(), Operation::Write, at, buffer).await
            {
                Err(error) if again(&error) => continue,
                other => other?,
            };
            engine.give_back(buffer);
            if count == 0 {
                return Err(errno(libc::ENOSPC));
            }
            done += count;
        }
        Ok(())
    }

    pub(super) async fn sync_queued(&self) -> IoResult {
        let engine = self.engine()?;
        let nothing = engine.buffer(0);
        let (buffer, _) = engine.run(self.file.load_full(), Operation::Sync, 0, nothing).await?;
        engine.give_back(buffer);
        Ok(())
    }

    fn alignment(&self) -> u32 {
        self.alignment.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn again(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}
