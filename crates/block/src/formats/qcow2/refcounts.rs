//! Reference counts of host clusters, in memory: loaded blocks, dirty ranges, allocation.

use super::dirty::Sectors;
use super::header::MAX_REFTABLE_BYTES;
use std::collections::{HashMap, HashSet};

/// A part of the metadata must be read first; read it and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Refcount block by its index in the table.
    Refblock(usize),
    /// L2 table by its index in the L1 table.
    L2(usize),
    /// Not a miss: the metadata cannot be right.
    Corrupt(Wrong),
    /// The image cannot grow further.
    TooBig,
}

/// What of the metadata cannot be right, in the words that users are told. Offsets in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Guest data would be written over this part of the metadata.
    Overlap {
        part: &'static str,
        offset: u64,
        len: u64,
    },
    /// An entry of the L1 table.
    L2Table {
        offset: u64,
        index: usize,
    },
    /// An entry of the L2 table at `table`.
    Cluster {
        offset: u64,
        table: u64,
        index: usize,
    },
    /// An entry of the refcount table.
    Refblock {
        offset: u64,
        index: usize,
    },
    Other(&'static str, u64),
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // As C's %#x: no prefix before zero.
        let hex = |number: u64| if number == 0 { "0".to_string() } else { format!("{number:#x}") };
        match *self {
            Wrong::Overlap { part, .. } => {
                write!(f, "Preventing invalid write on metadata (overlaps with {part})")
            }
            Wrong::L2Table { offset, index } => {
                write!(f, "L2 table offset {offset:#x} unaligned (L1 index: {})", hex(index as u64))
            }
            Wrong::Cluster { offset, table, index } => write!(
                f,
                "Cluster allocation offset {offset:#x} unaligned (L2 offset: {}, L2 index: {})",
                hex(table),
                hex(index as u64)
            ),
            Wrong::Refblock { offset, index } => {
                write!(f, "Refblock offset {offset:#x} unaligned (reftable index: {})", hex(index as u64))
            }
            Wrong::Other(what, offset) => write!(f, "{what} ({offset:#x})"),
        }
    }
}

pub type Attempt<T> = Result<T, Miss>;

pub struct Block {
    pub data: Vec<u8>,
    pub dirty: Sectors,
    pub used: u64,
}

/// Refcounts of an image.
pub struct Refcounts {
    cluster_bits: u32,
    order: u32,
    /// Offsets of refcount blocks.
    pub table: Vec<u64>,
    pub table_offset: u64,
    pub table_dirty: Sectors,
    /// The table no longer fits its place and must be written elsewhere.
    pub table_moved: bool,
    pub blocks: HashMap<usize, Block>,
    /// Where the blocks are.
    pub places: HashSet<u64>,
    /// No cluster below is free.
    hint: u64,
    clock: u64,
    /// Highest cluster in use plus one, as far as known.
    pub end: u64,
}

impl Refcounts {
    pub fn new(cluster_bits: u32, order: u32, table: Vec<u64>, table_offset: u64, file_size: u64) -> Self {
        Refcounts {
            cluster_bits,
            order,
            table_dirty: Sectors::new(table.len() * 8),
            places: table.iter().copied().filter(|offset| *offset != 0).collect(),
            table,
            table_offset,
            table_moved: false,
            blocks: HashMap::new(),
            hint: 0,
            clock: 0,
            end: file_size.div_ceil(1 << cluster_bits),
        }
    }

    pub fn order(&self) -> u32 {
        self.order
    }

    /// log2 of the counts in one block.
    fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    pub fn max(&self) -> u64 {
        if self.order == 6 { u64::MAX >> 1 } else { (1 << (1 << self.order)) - 1 }
    }

    fn split(&self, cluster: u64) -> (usize, usize) {
        ((cluster >> self.block_bits()) as usize, (cluster & ((1 << self.block_bits()) - 1)) as usize)
    }

    /// The count of a cluster.
    pub fn get(&mut self, cluster: u64) -> Attempt<u64> {
        let (block, at) = self.split(cluster);
        if self.table.get(block).copied().unwrap_or(0) == 0 {
            return Ok(0);
        }
        self.clock += 1;
        let clock = self.clock;
        let loaded = self.blocks.get_mut(&block).ok_or(Miss::Refblock(block))?;
        loaded.used = clock;
        Ok(read(&loaded.data, at, self.order))
    }

    /// Sets the count of a cluster whose block is loaded.
    pub fn set(&mut self, cluster: u64, value: u64) -> Attempt<()> {
        let (block, at) = self.split(cluster);
        let order = self.order;
        let loaded = self.blocks.get_mut(&block).ok_or(Miss::Refblock(block))?;
        write(&mut loaded.data, at, order, value);
        loaded.dirty.mark((at << order) / 8, 1.max((1 << order) / 8));
        if value == 0 {
            self.hint = self.hint.min(cluster);
        }
        Ok(())
    }

    /// Makes sure that counts of `cluster` can be set: loads or makes its block.
    fn prepare(&mut self, cluster: u64) -> Attempt<()> {
        let (block, _) = self.split(cluster);
        if self.table.get(block).copied().unwrap_or(0) == 0 {
            return self.make_block(block, (block as u64) << self.block_bits());
        }
        if self.blocks.contains_key(&block) { Ok(()) } else { Err(Miss::Refblock(block)) }
    }

    /// A new refcount block in a free cluster: one that it covers itself, or one whose block
    /// is loaded.
    fn make_block(&mut self, block: usize, place: u64) -> Attempt<()> {
        let entries = block + 1;
        if entries as u64 * 8 > MAX_REFTABLE_BYTES {
            return Err(Miss::TooBig);
        }
        if entries > self.table.len() {
            let per_cluster = (1usize << self.cluster_bits) / 8;
            let len = entries.next_multiple_of(per_cluster);
            self.table.resize(len, 0);
            self.table_dirty = Sectors::new(len * 8);
            self.table_moved = true;
        }
        self.table[block] = place << self.cluster_bits;
        self.table_dirty.mark(block * 8, 8);
        self.places.insert(place << self.cluster_bits);
        let mut dirty = Sectors::new(1 << self.cluster_bits);
        dirty.mark(0, 1 << self.cluster_bits);
        self.clock += 1;
        self.blocks.insert(block, Block { data: vec![0; 1 << self.cluster_bits], dirty, used: self.clock });
        self.set(place, 1)?;
        self.end = self.end.max(place + 1);
        Ok(())
    }

    /// Takes `count` free clusters in a row. Nothing is changed on a miss.
    pub fn allocate(&mut self, count: u64) -> Attempt<u64> {
        let mut start = self.hint;
        let mut run = 0;
        loop {
            let at = start + run;
            if at >= 1 << (55 - self.cluster_bits) {
                return Err(Miss::TooBig);
            }
            let (block, _) = self.split(at);
            if self.table.get(block).copied().unwrap_or(0) == 0 {
                // The block comes to lie at the beginning of the run found so far.
                self.make_block(block, start)?;
                start += 1;
                run = run.saturating_sub(1);
                continue;
            }
            if self.get(at)? == 0 {
                run += 1;
                if run == count {
                    break;
                }
            } else {
                start = at + 1;
                run = 0;
            }
        }
        for cluster in start..start + count {
            self.set(cluster, 1)?;
        }
        if start == self.hint || count == 1 {
            self.hint = start + count;
        }
        self.end = self.end.max(start + count);
        Ok(start << self.cluster_bits)
    }

    /// Takes the cluster right after another if it is free: for longer runs.
    pub fn allocate_at(&mut self, offset: u64) -> Attempt<bool> {
        let cluster = offset >> self.cluster_bits;
        let (block, _) = self.split(cluster);
        if self.table.get(block).copied().unwrap_or(0) == 0 || self.get(cluster)? != 0 {
            return Ok(false);
        }
        self.set(cluster, 1)?;
        self.end = self.end.max(cluster + 1);
        Ok(true)
    }

    /// Adds to the count of the cluster at `offset`; returns the new count.
    pub fn add(&mut self, offset: u64, change: i64) -> Attempt<u64> {
        let cluster = offset >> self.cluster_bits;
        self.prepare(cluster)?;
        let old = self.get(cluster)?;
        let new = old.checked_add_signed(change).filter(|new| *new <= self.max());
        let Some(new) = new else {
            return Err(Miss::Corrupt(Wrong::Other("Refcount out of range", offset)));
        };
        self.set(cluster, new)?;
        Ok(new)
    }

    /// Puts a block that was read into memory.
    pub fn loaded(&mut self, block: usize, data: Vec<u8>) {
        self.clock += 1;
        let dirty = Sectors::new(data.len());
        self.blocks.entry(block).or_insert(Block { data, dirty, used: self.clock });
    }

    /// Forgets clean blocks beyond `keep`, oldest first.
    pub fn shrink(&mut self, keep: usize) {
        while self.blocks.len() > keep {
            let oldest =
                self.blocks.iter().filter(|(_, block)| block.dirty.is_clean()).min_by_key(|(_, b)| b.used);
            let Some(index) = oldest.map(|(index, _)| *index) else { return };
            self.blocks.remove(&index);
        }
    }
}

/// A count in a block of counts `1 << order` bits wide.
pub fn read(data: &[u8], at: usize, order: u32) -> u64 {
    match order {
        0..=2 => {
            let per_byte = 8 >> order;
            let shift = (at % per_byte) << order;
            u64::from(data[at / per_byte] >> shift) & ((1 << (1 << order)) - 1)
        }
        _ => {
            let bytes = 1 << (order - 3);
            data[at * bytes..(at + 1) * bytes].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

pub fn write(data: &mut [u8], at: usize, order: u32, value: u64) {
    match order {
        0..=2 => {
            let per_byte = 8 >> order;
            let shift = (at % per_byte) << order;
            let mask = ((1u16 << (1 << order)) - 1) as u8;
            let byte = &mut data[at / per_byte];
            *byte = *byte & !(mask << shift) | (value as u8 & mask) << shift;
        }
        _ => {
            let bytes = 1 << (order - 3);
            data[at * bytes..(at + 1) * bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_keeps_its_neighbours() {
        for order in 0..=6 {
            let mut data = vec![0; 64];
            let max = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            write(&mut data, 3, order, max);
            write(&mut data, 4, order, 1);
            write(&mut data, 3, order, max - 1);
            assert_eq!(
                (read(&data, 2, order), read(&data, 3, order), read(&data, 4, order)),
                (0, max - 1, 1)
            );
        }
    }

    #[test]
    fn blocks_count_themselves() {
        let mut counts = Refcounts::new(9, 4, vec![0; 64], 512, 0);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..2000 {
            assert!(seen.insert(counts.allocate(1).unwrap()));
        }
        let run = counts.allocate(700).unwrap();
        assert!((0..700).all(|at| seen.insert(run + at * 512)));
        for (index, offset) in counts.table.clone().iter().enumerate().filter(|(_, offset)| **offset != 0) {
            assert_eq!(counts.get(offset >> 9).unwrap(), 1, "block {index}");
            assert!(!seen.contains(offset));
        }
    }
}
