//! Entries of L1 and L2 tables.

use super::header::Header;

pub const COPIED: u64 = 1 << 63;
pub const COMPRESSED: u64 = 1 << 62;
pub const ZERO: u64 = 1;
/// The offset in an L1 entry or in an entry of an ordinary cluster.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An L2 entry; `bitmap` only with extended entries (allocated low, zero high).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Entry {
    pub word: u64,
    pub bitmap: u64,
}

/// What a (sub)cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unallocated,
    Zero,
    Normal,
    Compressed,
}

/// What entries look like in this image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub cluster_bits: u32,
    pub extended: bool,
    pub version: u32,
    /// log2 of L2 entries per table.
    pub l2_bits: u32,
}

impl Geometry {
    pub fn of(header: &Header) -> Self {
        Geometry {
            cluster_bits: header.cluster_bits,
            extended: header.extended_l2(),
            version: header.version,
            l2_bits: header.l2_entries().trailing_zeros(),
        }
    }

    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn subcluster_bits(&self) -> u32 {
        if self.extended { self.cluster_bits - 5 } else { self.cluster_bits }
    }

    /// Bytes whose allocation is recorded apart.
    pub fn subcluster_size(&self) -> u64 {
        1 << self.subcluster_bits()
    }

    pub fn l1_index(&self, guest: u64) -> usize {
        (guest >> (self.cluster_bits + self.l2_bits)) as usize
    }

    pub fn l2_index(&self, guest: u64) -> usize {
        (guest >> self.cluster_bits) as usize & ((1 << self.l2_bits) - 1)
    }

    /// Guest bytes up to the end of the L2 table that maps `guest`.
    pub fn to_table_end(self, guest: u64) -> u64 {
        let span = 1u64 << (self.cluster_bits + self.l2_bits);
        span - (guest & (span - 1))
    }

    /// What the subcluster at `guest` is.
    pub fn kind(&self, entry: Entry, guest: u64) -> Kind {
        if entry.word & COMPRESSED != 0 {
            return Kind::Compressed;
        }
        if self.extended {
            let sub = self.sub_index(guest);
            return match (entry.bitmap >> (32 + sub) & 1, entry.bitmap >> sub & 1) {
                (1, _) => Kind::Zero,
                (_, 1) => Kind::Normal,
                _ => Kind::Unallocated,
            };
        }
        if self.version >= 3 && entry.word & ZERO != 0 {
            return Kind::Zero;
        }
        // An external data file may place a cluster at offset 0; COPIED tells then.
        if entry.word & (OFFSET | COPIED) == 0 { Kind::Unallocated } else { Kind::Normal }
    }

    pub fn sub_index(&self, guest: u64) -> u64 {
        (guest & (self.cluster_size() - 1)) >> self.subcluster_bits()
    }

    /// Whether an entry holds a host cluster of its own (ordinary or kept under zeroes).
    pub fn has_host(&self, entry: Entry) -> bool {
        entry.word & COMPRESSED == 0 && entry.word & (OFFSET | COPIED) != 0
    }

    /// Place and length in bytes of compressed data (the length may be too long by part of
    /// a sector).
    pub fn compressed(&self, entry: Entry) -> (u64, u64) {
        let shift = 62 - (self.cluster_bits - 8);
        let offset = entry.word & ((1 << shift) - 1);
        let sectors = (entry.word >> shift & ((1 << (self.cluster_bits - 8)) - 1)) + 1;
        (offset, sectors * 512 - (offset & 511))
    }

    /// The entry of compressed data at `offset`, or none if it cannot be written so.
    pub fn compressed_entry(&self, offset: u64, len: u64) -> Option<Entry> {
        let shift = 62 - (self.cluster_bits - 8);
        let sectors = (offset + len - 1) / 512 - offset / 512;
        let fits = offset >> shift == 0 && sectors < 1 << (self.cluster_bits - 8);
        fits.then_some(Entry { word: COMPRESSED | sectors << shift | offset, bitmap: 0 })
    }

    /// Bits of the subclusters that `[from, to)` covers in full, within one cluster.
    pub fn covered(&self, from: u64, to: u64) -> u64 {
        if !self.extended {
            return 0;
        }
        let base = from & !(self.cluster_size() - 1);
        let first = (from - base).div_ceil(self.subcluster_size());
        let last = (to - base) >> self.subcluster_bits();
        if last <= first {
            return 0;
        }
        (u64::MAX >> (64 - (last - first))) << first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_entries_keep_place_and_length() {
        let geometry = Geometry { cluster_bits: 16, extended: false, version: 3, l2_bits: 13 };
        let entry = geometry.compressed_entry(0x12345, 1000).unwrap();
        let (offset, len) = geometry.compressed(entry);
        assert_eq!(offset, 0x12345);
        assert!((1000..1512).contains(&len));
        assert_eq!(geometry.kind(entry, 0), Kind::Compressed);
        assert!(geometry.compressed_entry(1 << 54, 10).is_none());
    }
}
