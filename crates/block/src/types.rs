//! Small words of the block layer: permissions, roles, limits, flags, status of a range.

use bitflags::bitflags;
use std::future::Future;
use std::io;
use std::pin::Pin;

/// Largest size of a node in bytes.
pub const LARGEST: u64 = i64::MAX as u64 & !((1 << 30) - 1);

/// A boxed future that may move between threads.
pub type Fut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The answer of an I/O operation: errors carry an errno where there is one.
pub type IoResult<T = ()> = io::Result<T>;

/// An [`io::Error`] from an errno constant of [`libc`].
pub fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The errno of an error, `EIO` where it has none.
pub fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::Unsupported => libc::ENOTSUP,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        io::ErrorKind::StorageFull => libc::ENOSPC,
        _ => libc::EIO,
    })
}

bitflags! {
    /// What a user of a node does with it (`perm`) or lets others do (`shared`). The bit
    /// numbers are also the offsets of the lock bytes in image files.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Perm: u32 {
        /// Reads must give what was written last through this user.
        const CONSISTENT_READ = 1 << 0;
        const WRITE = 1 << 1;
        /// Writes that do not change what readers see.
        const WRITE_UNCHANGED = 1 << 2;
        const RESIZE = 1 << 3;
    }
}

impl Perm {
    /// What a guest device shares by default: everything but foreign writes and resizes.
    pub const GUEST_SHARED: Perm = Perm::CONSISTENT_READ.union(Perm::WRITE_UNCHANGED);

    /// The customary words, comma separated.
    pub fn names(self) -> String {
        let words = [
            (Perm::CONSISTENT_READ, "consistent read"),
            (Perm::WRITE, "write"),
            (Perm::WRITE_UNCHANGED, "write unchanged"),
            (Perm::RESIZE, "resize"),
        ];
        let set: Vec<_> =
            words.iter().filter(|(bit, _)| self.contains(*bit)).map(|(_, word)| *word).collect();
        set.join(", ")
    }
}

bitflags! {
    /// What a child is to its parent.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Role: u32 {
        /// Guest data lies here.
        const DATA = 1 << 0;
        /// The parent's metadata lies here.
        const METADATA = 1 << 1;
        /// The parent shows this child's data unchanged.
        const FILTERED = 1 << 2;
        /// Unallocated ranges are read from here.
        const BACKING = 1 << 3;
        /// The child that gives the parent its file name.
        const PRIMARY = 1 << 4;
    }
}

impl Role {
    /// The `file` child of an ordinary image format.
    pub const IMAGE: Role = Role::DATA.union(Role::METADATA).union(Role::PRIMARY);
    /// The child of a filter.
    pub const FILTER: Role = Role::FILTERED.union(Role::PRIMARY);
}

bitflags! {
    /// How a write is done.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct WriteFlags: u32 {
        /// On stable storage before the answer.
        const FUA = 1 << 0;
        /// Fill an unallocated cluster compressed.
        const COMPRESSED = 1 << 1;
        /// Readers see no change (copy-on-read, rewriting zeroes).
        const UNCHANGED = 1 << 2;
    }
}

bitflags! {
    /// How zeroes are written.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ZeroFlags: u32 {
        /// Space may be given back.
        const MAY_UNMAP = 1 << 0;
        const FUA = 1 << 1;
        /// Answer `ENOTSUP` rather than writing buffers of zeroes.
        const NO_FALLBACK = 1 << 2;
        const UNCHANGED = 1 << 3;
    }
}

bitflags! {
    /// What is known of a range.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct StatusFlags: u32 {
        /// Data is present in this layer or the layers below it that it answers for.
        const DATA = 1 << 0;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
        /// This layer, not its backing, decides the content.
        const ALLOCATED = 1 << 2;
        const COMPRESSED = 1 << 3;
        /// The range is at the end of the image.
        const EOF = 1 << 4;
        /// Ask the child at `offset` for DATA and ZERO in more detail.
        const RECURSE = 1 << 5;
    }
}

/// What is known of a range that starts where it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub flags: StatusFlags,
    /// Length in bytes, greater than 0, at most what was asked.
    pub len: u64,
    /// Where the data lies in the file below, when it lies there byte for byte.
    pub offset: Option<u64>,
}

/// What requests a node takes as they are; [`crate::Node`] makes others fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths must be multiples of this power of two. Bytes.
    pub request_alignment: u32,
    /// Longest read or write in bytes.
    pub max_transfer: u32,
    /// Efficient size for writing zeroes, 0 if indifferent. Bytes.
    pub zeroes_alignment: u32,
    /// Efficient size for discards, 0 if indifferent. Bytes.
    pub discard_alignment: u32,
    /// Best size of a request, 0 if indifferent. Bytes.
    pub opt_transfer: u32,
    /// `write` takes [`WriteFlags::FUA`]; otherwise a flush follows.
    pub fua: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            request_alignment: 1,
            max_transfer: 1 << 30,
            zeroes_alignment: 0,
            discard_alignment: 0,
            opt_transfer: 0,
            fua: false,
        }
    }
}

/// How much of a file is allocated when it is made or grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preallocation {
    #[default]
    Off,
    Metadata,
    Falloc,
    Full,
}

impl Preallocation {
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "off" => Self::Off,
            "metadata" => Self::Metadata,
            "falloc" => Self::Falloc,
            "full" => Self::Full,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// How [`crate::Layer::truncate`] works.
#[derive(Clone, Copy, Debug, Default)]
pub struct Truncate {
    /// Fail rather than leave another size (a parent that needs exactly this).
    pub exact: bool,
    pub preallocation: Preallocation,
    /// The new area must read as zeroes even over a longer backing file.
    pub zero: bool,
}

/// `detect-zeroes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DetectZeroes {
    #[default]
    Off,
    On,
    Unmap,
}

impl DetectZeroes {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Unmap => "unmap",
        }
    }
}

/// The cache mode of a node. The write-back bit belongs to the front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cache {
    /// Past the host's page cache (O_DIRECT).
    pub direct: bool,
    /// Flushes are not carried out.
    pub no_flush: bool,
}

/// `aio`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Aio {
    #[default]
    Threads,
    Native,
    IoUring,
}
