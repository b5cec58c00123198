//! Images whose disk is cut into equal clusters, each placed by a word in a table.
//!
//! What vdi, vpc, vhdx, parallels, qed, qcow and the sparse extents of vmdk have in common:
//! one table at a fixed place ([`Root::Flat`]) or a directory of tables ([`Root::Levels`]).
//! A format says what its words mean ([`Format`]); requests are carried out here.
//!
//! Order on disk: new clusters are written where nothing points to; table words stay in
//! memory until a flush, which brings data down first, then tables, then the directory. A
//! cut at any instant leaves tables that name only what was written before.

mod check;
pub(crate) mod deflate;
mod io;
mod layer;
mod sync;
pub(crate) mod table;

use crate::crypto::OldAes;
use crate::driver::{Info, Open};
use crate::graph::Child;
use crate::types::*;
use base::{Mutex, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use table::State;
pub(crate) use table::{Root, Word};

/// Where a cluster lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not in this image: the backing file's, else zeroes.
    Absent,
    Zero,
    /// At this offset of the file, byte for byte.
    At(u64),
    /// Compressed: offset and (at most) length in the file.
    Packed(u64, u64),
}

/// What is the same for all clusters of an image. Lengths in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Size of a cluster; need not be a power of two.
    pub cluster: u64,
    pub word: Word,
    /// Words in all tables together.
    pub slots: u64,
    /// New clusters lie at `base` and multiples of `step` behind it.
    pub base: u64,
    pub step: u64,
    /// What stands in the file right before each new cluster.
    pub prefix: Vec<u8>,
}

/// What a format adds to the common engine.
pub(crate) trait Format: Send + Sync + Sized + 'static {
    /// What a table word means. Places are checked against the file by the caller.
    fn decode(&self, word: u64) -> IoResult<Place>;
    /// The word for a place; `None` if the format cannot say it.
    fn encode(&self, place: Place) -> Option<u64>;
    /// The table word of a cluster.
    fn slot(&self, index: u64) -> u64 {
        index
    }
    fn unpack(&self, _data: &[u8], _cluster: usize) -> IoResult<Vec<u8>> {
        Err(errno(libc::EIO))
    }
    /// Compresses cluster `index`; `None` stores it as it is.
    fn pack(&self, _index: u64, _data: &[u8]) -> Option<Vec<u8>> {
        None
    }
    /// What the data of clusters that are not compressed is encrypted with.
    fn crypto(&self) -> Option<&OldAes> {
        None
    }
    fn packs(&self) -> bool {
        false
    }
    /// Clusters can only be written whole, once, compressed.
    fn packed_only(&self) -> bool {
        false
    }
    /// Called before the first change.
    fn begin<'a>(&'a self, _image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async { Ok(()) })
    }
    /// The file was made longer for new clusters, which end at `end`; nothing names them yet.
    fn extended<'a>(&'a self, _image: &'a Image<Self>, _end: u64) -> Fut<'a, IoResult> {
        Box::pin(async { Ok(()) })
    }
    /// Data are on disk; the words that name them come next.
    fn before_tables<'a>(&'a self, _image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async { Ok(()) })
    }
    /// All is written; says so in the file.
    fn close<'a>(&'a self, _image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async { Ok(()) })
    }
    /// Makes the disk longer; `None` if the format cannot.
    fn grow<'a>(&'a self, _image: &'a Image<Self>, _size: u64) -> Option<Fut<'a, Result<()>>> {
        None
    }
    fn info(&self) -> Info {
        Info::default()
    }
    fn change_backing<'a>(
        &'a self,
        _image: &'a Image<Self>,
        _name: Option<&'a str>,
        _format: Option<&'a str>,
    ) -> Fut<'a, IoResult> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }
    /// Whether `check` is one of the format's abilities.
    fn checks(&self) -> bool {
        false
    }
    /// `check` has repaired the image or found nothing: marks it consistent.
    fn checked<'a>(&'a self, _image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async { Ok(()) })
    }
}

/// An open image (or one extent of it).
pub(crate) struct Image<F> {
    pub format: F,
    pub file: Child,
    pub shape: Shape,
    /// Where the extent begins on the disk of the backing file.
    pub origin: u64,
    backing: Mutex<Option<Child>>,
    /// The backing node is not the image that this one was made for: nothing is read of it.
    estranged: AtomicBool,
    read_only: AtomicBool,
    size: AtomicU64,
    state: Mutex<State>,
    /// Held while clusters are given out and filled.
    allocating: tokio::sync::Mutex<()>,
    /// Held while a table is read, so that no stale copy of it comes in.
    loading: tokio::sync::Mutex<()>,
    syncing: tokio::sync::Mutex<()>,
    begun: tokio::sync::Mutex<bool>,
    has_begun: AtomicBool,
    /// The cluster that was decompressed last, by its place.
    unpacked: Mutex<Option<(Place, Arc<Vec<u8>>)>>,
}

/// What [`Image::new`] is made of besides the format.
pub(crate) struct Parts {
    pub file: Child,
    pub backing: Option<Child>,
    pub shape: Shape,
    pub root: Root,
    pub size: u64,
    /// Nothing lies at or behind it, in bytes.
    pub end: u64,
}

impl<F: Format> Image<F> {
    pub fn new(open: &Open, format: F, parts: Parts) -> Self {
        let shape = parts.shape;
        let state = State::new(parts.root, parts.end.max(shape.base));
        Image {
            format,
            file: parts.file,
            shape,
            origin: 0,
            backing: Mutex::new(parts.backing),
            estranged: AtomicBool::new(false),
            read_only: AtomicBool::new(open.settings.read_only),
            size: AtomicU64::new(parts.size),
            state: Mutex::new(state),
            allocating: Default::default(),
            loading: Default::default(),
            syncing: Default::default(),
            begun: Default::default(),
            has_begun: AtomicBool::new(false),
            unpacked: Mutex::new(None),
        }
    }

    pub fn disk_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub fn set_disk_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Reads of the backing node fail until there is another one.
    pub fn estrange(&self) {
        self.estranged.store(true, Ordering::Release);
    }

    fn backing(&self) -> Option<Child> {
        self.backing.lock().clone()
    }

    /// One past the last byte in use.
    pub fn end(&self) -> u64 {
        self.state.lock().end
    }

    async fn begin(&self) -> IoResult {
        if self.has_begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut begun = self.begun.lock().await;
        if !*begun {
            self.format.begin(self).await?;
            *begun = true;
            self.has_begun.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// A window of fixed-width numbers in a header; what lies outside is 0.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        if let Some(bytes) = self.0.get(at..at + N) {
            out.copy_from_slice(bytes);
        }
        out
    }
    pub fn le16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    pub fn le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    pub fn le64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
    pub fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes(at))
    }
    pub fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes(at))
    }
}

/// Writes bytes into a header under construction.
pub(crate) fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}
