//! Requests on a node: made to fit its layer, counted, and told to bitmaps.

use super::Node;
use crate::notice::Notice;
use crate::types::*;
use base::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{Notify, RwLock};

/// What became of a range.
#[derive(Clone, Copy)]
pub enum Change<'a> {
    Data(&'a [u8]),
    Zeroes,
    /// Discarded, or a change that failed half-way.
    Unknown,
}

/// Called around every change of a range of a node.
pub trait Hook: Send + Sync {
    /// The change waits for this; an error refuses it.
    fn before_write(&self, _offset: u64, _len: u64) -> Fut<'_, IoResult> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The change was made; its request is answered after this.
    fn after_write<'a>(&'a self, _offset: u64, _len: u64, _change: Change<'a>) -> Fut<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Writes in progress on a node, while somebody needs to know.
#[derive(Default)]
pub(super) struct Ranges {
    wanted: AtomicUsize,
    list: Mutex<Vec<(u64, u64, u64)>>,
    next: AtomicU64,
    ended: Notify,
}

/// A range nobody else writes until this is dropped.
pub struct RangeGuard<'a> {
    ranges: &'a Ranges,
    id: u64,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.ranges.list.lock().retain(|(id, ..)| *id != self.id);
        self.ranges.ended.notify_waiters();
    }
}

impl Ranges {
    /// Waits until nobody else is in the range, then takes it.
    async fn take(&self, from: u64, to: u64) -> RangeGuard<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        loop {
            let ended = self.ended.notified();
            {
                let mut list = self.list.lock();
                if !list.iter().any(|&(_, start, end)| start < to && from < end) {
                    list.push((id, from, to));
                    return RangeGuard { ranges: self, id };
                }
            }
            ended.await;
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    /// One past the highest byte written.
    pub highest: AtomicU64,
    written: AtomicU64,
    flushed: AtomicU64,
    /// Taken exclusively by writes that must read around themselves, shared by others:
    /// only where the layer has an alignment.
    around: RwLock<()>,
    pub ranges: Ranges,
    hooks: Mutex<Vec<Arc<dyn Hook>>>,
    hooked: AtomicUsize,
}

impl State {
    /// A format may have written by opening; of others there is nothing to flush yet.
    pub fn of(kind: crate::driver::Kind) -> Self {
        let fresh = kind != crate::driver::Kind::Format;
        State { flushed: AtomicU64::new(fresh.into()), ..State::default() }
    }
}

impl Node {
    /// From now on writes keep out of each other's ranges. To be called while the node is
    /// drained; undone by [`Node::untrack`].
    pub fn track(&self) {
        self.io.ranges.wanted.fetch_add(1, Ordering::AcqRel);
    }

    pub fn untrack(&self) {
        self.io.ranges.wanted.fetch_sub(1, Ordering::AcqRel);
    }

    /// Keeps all other writes out of a range (of a node that is tracked).
    pub async fn exclusive(&self, offset: u64, len: u64) -> RangeGuard<'_> {
        self.io.ranges.take(offset, offset.saturating_add(len)).await
    }

    /// A write for the holder of [`Node::exclusive`] that does not change what is read.
    pub async fn write_unchanged(&self, offset: u64, data: &[u8]) -> IoResult {
        let end = self.may_write(offset, data.len() as u64)?;
        let result = self.write_pieces(offset, data, WriteFlags::UNCHANGED).await;
        self.written(offset, end, true);
        result
    }

    /// As [`Node::write_unchanged`], of zeroes.
    pub async fn zero_unchanged(&self, offset: u64, len: u64) -> IoResult {
        let end = self.may_write(offset, len)?;
        let result = self.zero_fitting(offset, len, ZeroFlags::UNCHANGED).await;
        self.written(offset, end, true);
        result
    }

    /// Calls `hook` before every change of the node. To be called while it is drained.
    pub fn add_hook(&self, hook: Arc<dyn Hook>) {
        let mut hooks = self.io.hooks.lock();
        hooks.push(hook);
        self.io.hooked.store(hooks.len(), Ordering::Release);
    }

    pub fn remove_hook(&self, hook: &Arc<dyn Hook>) {
        let mut hooks = self.io.hooks.lock();
        hooks.retain(|one| !Arc::ptr_eq(one, hook));
        self.io.hooked.store(hooks.len(), Ordering::Release);
    }

    async fn before_write(&self, offset: u64, end: u64) -> IoResult<Option<RangeGuard<'_>>> {
        let guard = match self.io.ranges.wanted.load(Ordering::Acquire) {
            0 => None,
            _ => Some(self.io.ranges.take(offset, end).await),
        };
        if self.io.hooked.load(Ordering::Acquire) > 0 {
            let hooks = self.io.hooks.lock().clone();
            for hook in hooks {
                hook.before_write(offset, end - offset).await?;
            }
        }
        Ok(guard)
    }

    async fn after_write(&self, offset: u64, end: u64, result: &IoResult, change: Change<'_>) {
        if self.io.hooked.load(Ordering::Acquire) > 0 {
            let change = if result.is_ok() { change } else { Change::Unknown };
            let hooks = self.io.hooks.lock().clone();
            for hook in hooks {
                hook.after_write(offset, end - offset, change).await;
            }
        }
    }

    fn end(offset: u64, len: u64) -> IoResult<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= i64::MAX as u64 => Ok(end),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// Reads `buf`; bytes past the end of the node are zeroes.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        Self::end(offset, buf.len() as u64)?;
        let size = self.size();
        let inside = size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (buf, past) = buf.split_at_mut(inside);
        past.fill(0);
        if buf.is_empty() {
            return Ok(());
        }
        let limits = self.layer().limits();
        let align = u64::from(limits.request_alignment);
        if align > 1 && (offset | buf.len() as u64) & (align - 1) != 0 {
            return self.read_around(offset, buf, align).await;
        }
        let max = limits.max_transfer as usize;
        if buf.len() <= max {
            return self.layer().read(offset, buf).await;
        }
        let mut at = offset;
        for piece in buf.chunks_mut(max & !(align as usize - 1)) {
            self.layer().read(at, piece).await?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    async fn read_around(&self, offset: u64, buf: &mut [u8], align: u64) -> IoResult {
        let start = offset & !(align - 1);
        let skip = (offset - start) as usize;
        let whole = (skip + buf.len()).next_multiple_of(align as usize);
        let mut bounce = vec![0; whole];
        self.layer().read(start, &mut bounce).await?;
        buf.copy_from_slice(&bounce[skip..skip + buf.len()]);
        Ok(())
    }

    /// Writes all of `data`.
    pub async fn write(&self, offset: u64, data: &[u8], flags: WriteFlags) -> IoResult {
        let end = self.may_write(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.warn_threshold(offset, end);
        let _alone = self.before_write(offset, end).await?;
        let result = self.write_fitting(offset, data, flags).await;
        self.after_write(offset, end, &result, Change::Data(data)).await;
        self.written(offset, end, flags.contains(WriteFlags::UNCHANGED));
        result?;
        if flags.contains(WriteFlags::FUA) && !self.layer().limits().fua {
            self.flush().await?;
        }
        Ok(())
    }

    fn may_write(&self, offset: u64, len: u64) -> IoResult<u64> {
        let end = Self::end(offset, len)?;
        if self.is_read_only() {
            return Err(errno(libc::EPERM));
        }
        if end > self.size() && !self.layer().grows() {
            return Err(errno(libc::ENOSPC));
        }
        Ok(end)
    }

    async fn write_fitting(&self, offset: u64, data: &[u8], flags: WriteFlags) -> IoResult {
        let limits = self.layer().limits();
        let align = u64::from(limits.request_alignment);
        let detect = self.settings_detect();
        if detect != DetectZeroes::Off && data.iter().all(|byte| *byte == 0) {
            let mut zero = ZeroFlags::empty();
            zero.set(ZeroFlags::MAY_UNMAP, detect == DetectZeroes::Unmap && self.settings().discard);
            return self.zero_fitting(offset, data.len() as u64, zero).await;
        }
        if align <= 1 {
            return self.write_pieces(offset, data, flags).await;
        }
        if (offset | data.len() as u64) & (align - 1) == 0 {
            let _others = self.io.around.read().await;
            return self.write_pieces(offset, data, flags).await;
        }
        let _alone = self.io.around.write().await;
        let start = offset & !(align - 1);
        let skip = (offset - start) as usize;
        let whole = (skip + data.len()).next_multiple_of(align as usize);
        let mut bounce = vec![0; whole];
        let size = self.size();
        let head = size.saturating_sub(start).min(align) as usize;
        if head > 0 {
            self.layer().read(start, &mut bounce[..align as usize]).await?;
        }
        let last = start + whole as u64 - align;
        if last != start && last < size {
            let at = whole - align as usize;
            self.layer().read(last, &mut bounce[at..]).await?;
        }
        bounce[skip..skip + data.len()].copy_from_slice(data);
        self.write_pieces(start, &bounce, flags).await
    }

    async fn write_pieces(&self, offset: u64, data: &[u8], flags: WriteFlags) -> IoResult {
        let limits = self.layer().limits();
        let flags = if limits.fua { flags } else { flags - WriteFlags::FUA };
        let max = limits.max_transfer as usize & !(limits.request_alignment as usize - 1);
        if data.len() <= max {
            return self.layer().write(offset, data, flags).await;
        }
        let mut at = offset;
        for piece in data.chunks(max) {
            self.layer().write(at, piece, flags).await?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn settings_detect(&self) -> DetectZeroes {
        self.settings().detect_zeroes
    }

    fn written(&self, offset: u64, end: u64, unchanged: bool) {
        self.io.highest.fetch_max(end, Ordering::Relaxed);
        self.io.written.fetch_add(1, Ordering::AcqRel);
        if !unchanged {
            self.bitmaps().mark(offset, end - offset);
        }
    }

    fn warn_threshold(&self, offset: u64, end: u64) {
        if let Some(threshold) = self.cross_threshold(end) {
            let len = end - offset;
            let exceeded = if offset > threshold { offset - threshold + len } else { end - threshold };
            let node = self.name().to_string();
            self.context.notices.send(Notice::WriteThreshold { node, exceeded, threshold });
        }
    }

    /// Makes a range read as zeroes.
    pub async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> IoResult {
        let end = self.may_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.warn_threshold(offset, end);
        let _alone = self.before_write(offset, end).await?;
        let mut inner = flags;
        inner.set(ZeroFlags::MAY_UNMAP, flags.contains(ZeroFlags::MAY_UNMAP) && self.settings().discard);
        let result = self.zero_fitting(offset, len, inner).await;
        self.after_write(offset, end, &result, Change::Zeroes).await;
        self.written(offset, end, flags.contains(ZeroFlags::UNCHANGED));
        result?;
        if flags.contains(ZeroFlags::FUA) {
            self.flush().await?;
        }
        Ok(())
    }

    async fn zero_fitting(&self, offset: u64, len: u64, flags: ZeroFlags) -> IoResult {
        let limits = self.layer().limits();
        let unit = u64::from(limits.zeroes_alignment.max(limits.request_alignment).max(1));
        let end = offset + len;
        let body = offset.next_multiple_of(unit).min(end);
        // The last unit may be cut by the end of the image.
        let tail = if end == self.size() { end } else { (end / unit * unit).max(body) };
        for (from, to) in [(offset, body), (body, tail), (tail, end)] {
            if from < to {
                self.zero_piece(from, to - from, flags).await?;
            }
        }
        Ok(())
    }

    async fn zero_piece(&self, offset: u64, len: u64, flags: ZeroFlags) -> IoResult {
        let align = u64::from(self.layer().limits().request_alignment);
        if (offset | len) & (align - 1) == 0 {
            match self.layer().write_zeroes(offset, len, flags - ZeroFlags::FUA).await {
                Err(error) if errno_of(&error) == libc::ENOTSUP => {}
                other => return other,
            }
        }
        if flags.contains(ZeroFlags::NO_FALLBACK) {
            return Err(errno(libc::ENOTSUP));
        }
        let zeroes = crate::buffers::zeroes();
        let mut at = offset;
        while at < offset + len {
            let piece = (offset + len - at).min(zeroes.len() as u64) as usize;
            self.write_bounced(at, &zeroes[..piece], align).await?;
            at += piece as u64;
        }
        Ok(())
    }

    async fn write_bounced(&self, offset: u64, data: &[u8], align: u64) -> IoResult {
        if (offset | data.len() as u64) & (align - 1) == 0 {
            return self.write_pieces(offset, data, WriteFlags::empty()).await;
        }
        let _alone = self.io.around.write().await;
        let start = offset & !(align - 1);
        let skip = (offset - start) as usize;
        let mut bounce = vec![0; (skip + data.len()).next_multiple_of(align as usize)];
        let inside = self.size().saturating_sub(start).min(bounce.len() as u64) as usize;
        if inside > 0 {
            self.layer().read(start, &mut bounce).await?;
        }
        bounce[skip..skip + data.len()].copy_from_slice(data);
        self.write_pieces(start, &bounce, WriteFlags::empty()).await
    }

    /// Gives space back where the settings allow and the layer can; never an error for
    /// being unable.
    pub async fn discard(&self, offset: u64, len: u64) -> IoResult {
        let end = self.may_write(offset, len)?;
        if len == 0 || !self.settings().discard {
            return Ok(());
        }
        let limits = self.layer().limits();
        let unit = u64::from(limits.request_alignment.max(1));
        let start = offset.next_multiple_of(unit);
        let stop = if end == self.size() { end } else { end / unit * unit };
        if start >= stop {
            return Ok(());
        }
        let _alone = self.before_write(offset, end).await?;
        let result = self.layer().discard(start, stop - start).await;
        self.after_write(offset, end, &result, Change::Unknown).await;
        self.written(offset, end, false);
        match result {
            Err(error) if errno_of(&error) == libc::ENOTSUP => Ok(()),
            other => other,
        }
    }

    /// Brings everything written before to stable storage.
    pub async fn flush(&self) -> IoResult {
        let generation = self.io.written.load(Ordering::Acquire);
        let pointless = self.no_flush() && self.driver().kind == crate::driver::Kind::Protocol;
        if self.is_read_only() || pointless {
            return Ok(());
        }
        let changed = self.io.flushed.load(Ordering::Acquire) <= generation;
        if changed {
            crate::filters::blkdebug::flushing(self).await;
            self.layer().flush().await?;
        }
        // Also of a node that was not written: what is below it may have been, before a filter
        // was put there or by others.
        for child in self.children() {
            // Not by permissions: they follow the users above, who may have gone.
            if !child.role().contains(Role::BACKING) {
                child.flush().await?;
            }
        }
        if changed {
            self.io.flushed.fetch_max(generation + 1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// What is known of a range; the length is cut to the end of the node.
    pub async fn block_status(&self, offset: u64, len: u64) -> IoResult<Status> {
        let size = self.size();
        if offset >= size {
            return Ok(Status { flags: StatusFlags::ZERO | StatusFlags::EOF, len: len.max(1), offset: None });
        }
        let len = len.min(size - offset).max(1);
        let align = u64::from(self.layer().limits().request_alignment.max(1));
        let start = offset & !(align - 1);
        let asked = (offset + len - start).next_multiple_of(align);
        let mut status = self.layer().block_status(start, asked).await?;
        status.len = status.len.saturating_sub(offset - start).clamp(1, len);
        status.offset = status.offset.map(|at| at + (offset - start));
        if status.flags.contains(StatusFlags::RECURSE)
            && status.flags.contains(StatusFlags::DATA)
            && let (Some(at), Some(file)) = (status.offset, self.places())
        {
            let below = Box::pin(file.node().block_status(at, status.len)).await?;
            status.len = status.len.min(below.len);
            status.flags |= below.flags & StatusFlags::ZERO;
        }
        if offset + status.len == size {
            status.flags |= StatusFlags::EOF;
        }
        Ok(status)
    }

    /// Makes the node longer or shorter, and its bitmaps with it.
    pub async fn truncate(&self, size: u64, how: Truncate) -> base::Result<()> {
        if size > i64::MAX as u64 {
            base::bail!("Image size must be less than 8 EiB!");
        }
        if self.is_read_only() {
            base::bail!("Image is read-only");
        }
        self.bitmaps().check_size(size)?;
        let old = self.size();
        self.layer().truncate(size, how).await?;
        // What becomes visible of a longer image below was never there.
        let seen = self.backing().map_or(0, |below| below.size()).min(self.size());
        if seen > old {
            self.layer().write_zeroes(old, seen - old, ZeroFlags::empty()).await?;
        }
        self.io.written.fetch_add(1, Ordering::AcqRel);
        self.bitmaps().resize(self.size());
        Ok(())
    }
}
