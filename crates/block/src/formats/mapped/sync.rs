//! Loading tables and writing them back.

use super::table::{Capture, Found, Root};
use super::{Format, Image, Place};
use crate::filters::blkdebug;
use crate::types::*;

impl<F: Format> Image<F> {
    /// The word of a slot; `None` where there is no table.
    pub(super) async fn word(&self, slot: u64) -> IoResult<Option<u64>> {
        loop {
            let found = self.state.lock().find(slot, &self.shape)?;
            match found {
                Found::Word(word) => return Ok(Some(word)),
                Found::NoTable => return Ok(None),
                Found::Missing { place, twin, words } => self.load(slot, place, twin, words).await?,
            }
        }
    }

    async fn load(&self, slot: u64, place: u64, twin: Option<u64>, words: u64) -> IoResult {
        let _one = self.loading.lock().await;
        let (number, crowded) = {
            let state = self.state.lock();
            let number = slot / state.per_page;
            if state.is_loaded(number) {
                return Ok(());
            }
            (number, state.is_crowded())
        };
        let len = words * self.shape.word.width();
        blkdebug::event(&self.file, "l2_load").await;
        let bytes = self.file.read_vec(place, len, 1 << 20).await.map_err(|_| errno(libc::EIO))?;
        self.state.lock().insert(number, place, twin, self.shape.word.read(&bytes));
        if crowded && !self.is_read_only() {
            self.sync().await?;
        }
        Ok(())
    }

    /// Where a cluster is, within the file.
    pub(super) async fn place(&self, index: u64) -> IoResult<Place> {
        let Some(word) = self.word(self.format.slot(index)).await? else { return Ok(Place::Absent) };
        let place = self.format.decode(word)?;
        let end = self.state.lock().end;
        match place {
            Place::At(offset) if offset >= end || offset < self.shape.base => Err(errno(libc::EIO)),
            Place::Packed(offset, len) if offset >= end || len > 2 * self.shape.cluster + 4096 => {
                Err(errno(libc::EIO))
            }
            other => Ok(other),
        }
    }

    /// Enters a place in the table in memory, making a table where there is none. To be
    /// called with `allocating` held, after the data are written.
    pub(super) async fn set_place(&self, index: u64, place: Place) -> IoResult {
        let word = self.format.encode(place).ok_or_else(|| errno(libc::EFBIG))?;
        let slot = self.format.slot(index);
        loop {
            if self.word(slot).await?.is_none() {
                self.new_table(slot).await?;
            }
            if self.state.lock().set(slot, word) {
                return Ok(());
            }
        }
    }

    async fn new_table(&self, slot: u64) -> IoResult {
        let (len, align, twin) = match &self.state.lock().root {
            Root::Flat(_) => return Err(errno(libc::EIO)),
            Root::Levels(levels) => {
                (levels.table * self.shape.word.width(), levels.align, levels.twin.is_some())
            }
        };
        let place = self.room(len, align).await?;
        let twin = match twin {
            true => Some(self.room(len, align).await?),
            false => None,
        };
        self.state.lock().add_table(slot, place, twin)
    }

    /// Room at the end of the file that reads as zeroes.
    pub async fn room(&self, len: u64, align: u64) -> IoResult<u64> {
        let start = {
            let mut state = self.state.lock();
            let start = state.end.checked_next_multiple_of(align).ok_or_else(|| errno(libc::EFBIG))?;
            state.end = start
                .checked_add(len)
                .filter(|end| *end <= i64::MAX as u64)
                .ok_or_else(|| errno(libc::EFBIG))?;
            start
        };
        self.extend(start, len).await?;
        Ok(start)
    }

    /// Makes `start..start+len` be in the file as zeroes.
    pub(super) async fn extend(&self, start: u64, len: u64) -> IoResult {
        let size = self.file.size();
        let end = start + len;
        if start < size {
            self.file.write_zeroes(start, len.min(size - start), ZeroFlags::empty()).await?;
        }
        if end > size {
            let grown = self.file.truncate(end, Truncate::default()).await;
            grown.map_err(|_| errno(libc::ENOSPC))?;
        }
        Ok(())
    }

    /// Brings changed tables to the file: data first, then tables, then the directory.
    pub async fn sync(&self) -> IoResult {
        let _one = self.syncing.lock().await;
        let capture = self.state.lock().capture(&self.shape);
        if capture.is_empty() {
            return Ok(());
        }
        let result = self.write_capture(&capture).await;
        self.state.lock().captured(&capture, result.is_err());
        result
    }

    async fn write_capture(&self, capture: &Capture) -> IoResult {
        self.file.flush().await?;
        self.format.before_tables(self).await?;
        for (offset, bytes) in &capture.pieces {
            blkdebug::event(&self.file, "l2_update").await;
            self.file.write(*offset, bytes, WriteFlags::empty()).await?;
        }
        if !capture.root.is_empty() {
            self.file.flush().await?;
            for (offset, bytes) in &capture.root {
                blkdebug::event(&self.file, "l1_update").await;
                self.file.write(*offset, bytes, WriteFlags::empty()).await?;
            }
        }
        Ok(())
    }
}
