//! Guest memory: RAM blocks, address spaces, and the immutable flat view that vCPUs and DMA read.
//!
//! - [`RamBlock`]: host memory that backs guest RAM or ROM, with per-page write watches.
//! - [`AddressSpace`]: mappings with priorities, edited in transactions, published as a
//!   [`FlatView`] (the memory space and the port space are two of these).
//! - [`Dma`]: a device's revocable way to guest memory.
//!
//! This crate does not know devices: whoever answers an access implements [`Handler`].

mod dma;
mod page;
mod ram;
mod room;
mod space;
mod view;

pub use dma::Dma;
pub use page::{HostPage, Scalar};
pub use ram::{CodeObserver, RamBlock, UNWATCHED, VERSION, Watch};
pub use room::prefer_large_pages;
pub use space::{AddressSpace, Edit, MappingId, SpaceKind};
pub use view::{FlatRange, FlatView, Target};

/// A guest physical address (or a port number in a port space).
pub type Gpa = u64;

/// Size of the pages in which memory is watched and handed to engines, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Answers accesses to a mapped range that is not plain memory.
///
/// `offset` counts from the start of the mapping; `size` is 1, 2, 4 or 8 bytes and the
/// access lies within the mapping. Values are little endian, unused high bits zero.
pub trait Handler: Send + Sync {
    fn read(&self, offset: u64, size: u8) -> u64;
    fn write(&self, offset: u64, size: u8, value: u64);
    /// Largest access in bytes that the device takes at once; the bus splits larger ones.
    fn max_access(&self) -> u8 {
        8
    }
    /// Smallest access in bytes that the device takes; smaller reads are taken out of one of
    /// this size, smaller writes are passed widened with zeroes as on a real bus.
    fn min_access(&self) -> u8 {
        1
    }
}

#[cfg(test)]
mod tests;
