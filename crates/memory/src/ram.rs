use crate::{HostPage, PAGE_SIZE};
use base::{Result, bail};
use bitflags::bitflags;
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

bitflags! {
    /// Who wants to hear of the next write to a page. An engine may cache "this page is
    /// freely writable" only while a page has no watch.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Watch: u8 {
        /// Instructions were decoded from this page: a write bumps [`RamBlock::code_version`].
        const CODE = 1;
        /// Migration: a write sets the page's bit in the migration dirty bitmap.
        const MIGRATION = 2;
        /// Display: likewise in the display dirty bitmap.
        const DISPLAY = 4;
    }
}

/// Bit of a page's code version: writes to the page are not heard of. Who keeps code that was
/// decoded from it compares its bytes before each use.
pub const UNWATCHED: u32 = 1;
/// What a page's code version grows by.
pub const VERSION: u32 = 2;

/// An engine that keeps translated code hears here of writes to watched code pages.
pub trait CodeObserver: Send + Sync {
    /// Page `offset` is about to be watched: on return no vCPU writes to it unseen.
    fn armed(&self, block: RamBlock, offset: u64);
    /// `len` bytes (within one page) were written to a watched page.
    fn written(&self, block: RamBlock, offset: u64, len: u64);
}

/// Host memory behind guest RAM or ROM. A `Copy` handle.
///
/// Blocks are never unmapped while the process lives; [`RamBlock::discard`] gives the
/// memory itself back to the host. This is what makes [`HostPage`] safe to hand out.
#[derive(Clone, Copy)]
pub struct RamBlock(&'static Inner);

struct Inner {
    name: String,
    len: u64,
    host: usize,
    /// The file that the memory lies in; it has a life outside of this process.
    file: Option<OwnedFd>,
    watch: Vec<AtomicU8>,
    code_version: Vec<AtomicU32>,
    dirty_migration: Vec<AtomicU64>,
    dirty_display: Vec<AtomicU64>,
    observer: OnceLock<Arc<dyn CodeObserver>>,
}

/// Size and alignment of the host's huge pages.
const HUGE: usize = 2 << 20;

/// Zeroed, lazily populated memory, in huge pages where the host has them.
fn anonymous(len: usize) -> rustix::io::Result<usize> {
    let spare = if len >= HUGE { HUGE } else { 0 };
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice; what is cut off before and
    // behind the aligned part belongs to nobody yet. The advice keeps contents.
    unsafe {
        let start = rustix::mm::mmap_anonymous(std::ptr::null_mut(), len + spare, access, flags)? as usize;
        if spare == 0 {
            return Ok(start);
        }
        let host = start.next_multiple_of(HUGE);
        if host > start {
            rustix::mm::munmap(start as *mut _, host - start)?;
        }
        let end = (start + len + spare) - (host + len);
        if end > 0 {
            rustix::mm::munmap((host + len) as *mut _, end)?;
        }
        let _ = rustix::mm::madvise(host as *mut _, len, rustix::mm::Advice::LinuxHugepage);
        Ok(host)
    }
}

fn zeroed<T: Default>(count: usize) -> Vec<T> {
    (0..count).map(|_| T::default()).collect()
}

impl RamBlock {
    /// Allocates `len` bytes (rounded up to pages) of zeroed, lazily populated memory.
    pub fn new(name: &str, len: u64) -> Result<RamBlock> {
        let Some(len) = len.checked_next_multiple_of(PAGE_SIZE).filter(|&len| len > 0 && len < 1 << 46)
        else {
            bail!("cannot set up guest memory '{name}': invalid size {len}");
        };
        let cannot = |e: rustix::io::Errno| {
            base::Failure::os(format!("cannot set up guest memory '{name}'"), &e.into())
        };
        let host = anonymous(len as usize).map_err(cannot)?;
        Ok(Self::leak(name, len, host, None))
    }

    /// Maps the first `len` bytes (whole pages) of a file that is at least so long. Not shared:
    /// writes stay in this process.
    pub fn on_file(name: &str, len: u64, file: OwnedFd, shared: bool) -> Result<RamBlock> {
        if len == 0 || len >= 1 << 46 || !len.is_multiple_of(PAGE_SIZE) {
            bail!("cannot set up guest memory '{name}': invalid size {len}");
        }
        let cannot = |e: rustix::io::Errno| {
            base::Failure::os(format!("cannot set up guest memory '{name}'"), &e.into())
        };
        let share = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let host = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                share | MapFlags::NORESERVE,
                &file,
                0,
            )
        }
        .map_err(cannot)? as usize;
        Ok(Self::leak(name, len, host, Some(file)))
    }

    fn leak(name: &str, len: u64, host: usize, file: Option<OwnedFd>) -> RamBlock {
        let pages = (len / PAGE_SIZE) as usize;
        RamBlock(Box::leak(Box::new(Inner {
            name: name.to_string(),
            len,
            host,
            file,
            watch: zeroed(pages),
            code_version: zeroed(pages),
            dirty_migration: zeroed(pages.div_ceil(64)),
            dirty_display: zeroed(pages.div_ceil(64)),
            observer: OnceLock::new(),
        })))
    }

    pub fn name(self) -> &'static str {
        &self.0.name
    }

    /// Length in bytes, a multiple of the page size.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u64 {
        self.0.len
    }

    /// Whether the memory lies in a file that others know.
    pub fn is_foreign(self) -> bool {
        self.0.file.is_some()
    }

    /// Host address of the first byte (for KVM slots and code generators).
    pub fn host_address(self) -> usize {
        self.0.host
    }

    /// The page that holds byte `offset`. Panics past the end.
    #[inline]
    pub fn page(self, offset: u64) -> HostPage {
        assert!(offset < self.0.len);
        let at = self.0.host + (offset & !(PAGE_SIZE - 1)) as usize;
        // SAFETY: page aligned, inside a mapping that is never removed.
        unsafe { HostPage::new(at as *mut u8) }
    }

    /// Copies out; panics past the end. No watch is concerned.
    pub fn read(self, offset: u64, to: &mut [u8]) {
        assert!(to.len() as u64 <= self.0.len && offset <= self.0.len - to.len() as u64);
        // SAFETY: in bounds of a mapping that is never removed; races only tear bytes.
        unsafe { std::ptr::copy((self.0.host + offset as usize) as *const u8, to.as_mut_ptr(), to.len()) }
    }

    /// Copies in and tells the watchers; panics past the end.
    pub fn write(self, offset: u64, from: &[u8]) {
        assert!(from.len() as u64 <= self.0.len && offset <= self.0.len - from.len() as u64);
        // SAFETY: in bounds of a mapping that is never removed.
        unsafe { std::ptr::copy(from.as_ptr(), (self.0.host + offset as usize) as *mut u8, from.len()) }
        self.note_write(offset, from.len() as u64);
    }

    /// The watches on the page that holds `offset`.
    #[inline(always)]
    pub fn watch(self, offset: u64) -> Watch {
        Watch::from_bits_retain(self.0.watch[(offset / PAGE_SIZE) as usize].load(Ordering::Acquire))
    }

    /// The watch byte itself, for engines that test it on each store.
    #[inline(always)]
    pub fn watch_cell(self, offset: u64) -> &'static AtomicU8 {
        &self.0.watch[(offset / PAGE_SIZE) as usize]
    }

    /// Sets watches on the page that holds `offset`. The caller makes engines drop what they
    /// cached about the page's writability.
    pub fn set_watch(self, offset: u64, watch: Watch) {
        self.0.watch[(offset / PAGE_SIZE) as usize].fetch_or(watch.bits(), Ordering::AcqRel);
    }

    /// Names the one engine that translates code from this block.
    pub fn set_code_observer(self, observer: Arc<dyn CodeObserver>) {
        let _ = self.0.observer.set(observer);
    }

    /// Sets [`Watch::CODE`] on a page, with the consent of the observer if there is one.
    pub fn arm_code(self, offset: u64) {
        self.set_watch(offset, Watch::CODE);
        if let Some(observer) = self.0.observer.get() {
            observer.armed(self, offset & !(PAGE_SIZE - 1));
        }
    }

    /// Counts writes to a page since it first held decoded code; see [`Watch::CODE`] and
    /// [`UNWATCHED`].
    #[inline(always)]
    pub fn code_version(self, offset: u64) -> u32 {
        self.0.code_version[(offset / PAGE_SIZE) as usize].load(Ordering::Acquire)
    }

    /// The version cell itself, for engines that test it at each block entry.
    #[inline(always)]
    pub fn code_version_cell(self, offset: u64) -> &'static AtomicU32 {
        &self.0.code_version[(offset / PAGE_SIZE) as usize]
    }

    /// Tells the watchers that `len` bytes from `offset` were written. Call *after* the write.
    #[inline]
    pub fn note_write(self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        // The bytes are written before anybody can have missed the watch.
        std::sync::atomic::fence(Ordering::SeqCst);
        let last = (offset + len - 1) / PAGE_SIZE;
        for page in offset / PAGE_SIZE..=last {
            if self.0.watch[page as usize].load(Ordering::Acquire) != 0 {
                let start = offset.max(page * PAGE_SIZE);
                let end = (offset + len).min((page + 1) * PAGE_SIZE);
                self.note_page(page as usize, start, end - start);
            }
        }
    }

    #[cold]
    fn note_page(self, page: usize, offset: u64, len: u64) {
        // CODE stays set (until an engine clears it): every write counts.
        let seen = self.0.watch[page].fetch_and(Watch::CODE.bits(), Ordering::AcqRel);
        let seen = Watch::from_bits_retain(seen);
        let bit = 1u64 << (page % 64);
        if seen.contains(Watch::CODE) {
            if let Some(observer) = self.0.observer.get() {
                observer.written(self, offset, len);
            }
            self.0.code_version[page].fetch_add(VERSION, Ordering::SeqCst);
        }
        if seen.contains(Watch::MIGRATION) {
            self.0.dirty_migration[page / 64].fetch_or(bit, Ordering::AcqRel);
        }
        if seen.contains(Watch::DISPLAY) {
            self.0.dirty_display[page / 64].fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// From now on the page that holds `offset` is [`UNWATCHED`]. A watch that it has stays
    /// until it is dropped.
    pub fn leave_unwatched(self, offset: u64) {
        self.0.code_version[(offset / PAGE_SIZE) as usize].fetch_or(UNWATCHED, Ordering::SeqCst);
    }

    /// The page that holds `offset` is not [`UNWATCHED`] any more. What was read from it before
    /// is of another version.
    pub fn watch_again(self, offset: u64) {
        let version = &self.0.code_version[(offset / PAGE_SIZE) as usize];
        let next = |version: u32| Some(version.wrapping_add(VERSION) & !UNWATCHED);
        let _ = version.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }

    /// Drops the CODE watch of a page (an engine has dropped all code decoded from it).
    pub fn clear_code_watch(self, offset: u64) {
        self.0.watch[(offset / PAGE_SIZE) as usize].fetch_and(!Watch::CODE.bits(), Ordering::AcqRel);
    }

    /// Takes the dirty bits (64 pages from page `64 * word`) of one watch and clears them.
    pub fn take_dirty(self, watch: Watch, word: usize) -> u64 {
        let map = if watch == Watch::DISPLAY { &self.0.dirty_display } else { &self.0.dirty_migration };
        map.get(word).map_or(0, |bits| bits.swap(0, Ordering::AcqRel))
    }

    /// Takes host memory for all pages now.
    pub fn populate(self) -> Result<()> {
        // SAFETY: the whole of a mapping that is never removed; contents are kept.
        let done = unsafe {
            rustix::mm::madvise(
                self.0.host as *mut _,
                self.0.len as usize,
                rustix::mm::Advice::LinuxPopulateWrite,
            )
        };
        let why = format!("cannot preallocate guest memory '{}'", self.0.name);
        done.map_err(|e| base::Failure::os(why, &e.into()))
    }

    /// Whether the memory belongs into a core dump of this process.
    pub fn set_dump(self, dump: bool) -> Result<()> {
        use rustix::mm::Advice;
        let advice = if dump { Advice::LinuxDoDump } else { Advice::LinuxDontDump };
        // SAFETY: the whole of a mapping that is never removed; contents are kept.
        unsafe { rustix::mm::madvise(self.0.host as *mut _, self.0.len as usize, advice) }
            .map_err(|e| base::Failure::from(std::io::Error::from(e)))
    }

    /// Lets the host merge equal pages, where its kernel can do that (KSM).
    pub fn set_merge(self) {
        let advice = rustix::mm::Advice::LinuxMergeable;
        // SAFETY: the whole of a mapping that is never removed; contents are kept.
        let _ = unsafe { rustix::mm::madvise(self.0.host as *mut _, self.0.len as usize, advice) };
    }

    /// Gives whole pages back to the host; they read as zero afterwards.
    pub fn discard(self, offset: u64, len: u64) -> Result<()> {
        if !offset.is_multiple_of(PAGE_SIZE)
            || !len.is_multiple_of(PAGE_SIZE)
            || offset > self.0.len
            || len > self.0.len - offset
        {
            bail!("cannot discard {len} bytes at {offset} of '{}'", self.0.name);
        }
        if self.0.file.is_some() {
            let zeroes = [0; PAGE_SIZE as usize];
            for page in (offset..offset + len).step_by(PAGE_SIZE as usize) {
                self.write(page, &zeroes);
            }
            return Ok(());
        }
        // SAFETY: whole pages of a private mapping that is never removed; they read as zero
        // afterwards, like memory that anybody wrote to.
        unsafe {
            rustix::mm::madvise(
                (self.0.host + offset as usize) as *mut _,
                len as usize,
                rustix::mm::Advice::LinuxDontNeed,
            )
        }
        .map_err(|e| base::Failure::from(std::io::Error::from(e)))?;
        self.note_write(offset, len);
        Ok(())
    }
}

impl PartialEq for RamBlock {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for RamBlock {}

impl std::fmt::Debug for RamBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RamBlock({}, {:#x})", self.0.name, self.0.len)
    }
}
