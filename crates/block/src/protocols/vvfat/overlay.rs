//! What the guest writes: sectors in a file without a name, over the disk as it was opened.

use super::{Base, SECTOR};
use crate::types::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub(super) struct Overlay {
    base: Arc<Base>,
    file: File,
    /// Sectors that are in the file.
    held: Vec<bool>,
    /// Sectors the guest has written since the last [`Overlay::settled`].
    fresh: Vec<bool>,
}

impl Overlay {
    pub fn new(base: Arc<Base>) -> std::io::Result<Self> {
        let file = tempfile::tempfile()?;
        let sectors = (base.size / SECTOR) as usize;
        Ok(Overlay { base, file, held: vec![false; sectors], fresh: vec![false; sectors] })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.base.size
    }

    /// Whether a sector is in the file, and for how many sectors that is so.
    fn run(&self, sector: usize, count: usize) -> (bool, usize) {
        let held = self.held[sector];
        let part = &self.held[sector..sector + count];
        (held, part.iter().position(|one| *one != held).unwrap_or(count))
    }

    /// Reads whole sectors.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        let (mut at, mut rest) = ((offset / SECTOR) as usize, buf);
        while !rest.is_empty() {
            let (held, count) = self.run(at, rest.len() / SECTOR as usize);
            let (piece, after) = rest.split_at_mut(count * SECTOR as usize);
            match held {
                true => self.file.read_exact_at(piece, at as u64 * SECTOR)?,
                false => self.base.read(at as u64 * SECTOR, piece)?,
            }
            (at, rest) = (at + count, after);
        }
        Ok(())
    }

    /// Writes whole sectors.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> IoResult {
        self.file.write_all_at(data, offset)?;
        let sectors = (offset / SECTOR) as usize..(offset / SECTOR) as usize + data.len() / SECTOR as usize;
        self.held[sectors.clone()].fill(true);
        self.fresh[sectors].fill(true);
        Ok(())
    }

    /// Makes a range independent of the host's files.
    pub fn keep(&mut self, offset: u64, len: u64) -> IoResult {
        let (mut at, end) = ((offset / SECTOR) as usize, ((offset + len) / SECTOR) as usize);
        while at < end {
            let (held, count) = self.run(at, end - at);
            if !held {
                let mut data = vec![0; count * SECTOR as usize];
                self.base.read(at as u64 * SECTOR, &mut data)?;
                self.file.write_all_at(&data, at as u64 * SECTOR)?;
                self.held[at..at + count].fill(true);
            }
            at += count;
        }
        Ok(())
    }

    /// Whether the guest has written into a range.
    pub fn is_fresh(&self, offset: u64, len: u64) -> bool {
        self.fresh[(offset / SECTOR) as usize..((offset + len) / SECTOR) as usize].contains(&true)
    }

    /// The directory has everything.
    pub fn settled(&mut self) {
        self.fresh.fill(false);
    }

    /// Whether there is data at `offset`, and for how many bytes that is so.
    pub fn extent(&self, offset: u64, len: u64) -> (bool, u64) {
        let sector = (offset / SECTOR) as usize;
        let (held, count) = self.run(sector, (len / SECTOR).max(1) as usize);
        match held {
            true => (true, count as u64 * SECTOR),
            false => {
                let (piece, left) = self.base.at(offset);
                (piece.is_some(), left.min(count as u64 * SECTOR))
            }
        }
    }
}
