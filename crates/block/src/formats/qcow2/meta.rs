//! The metadata of an image in memory: L1, loaded L2 tables, refcounts, and what must be
//! written back. Everything here is computation; reading and writing is done by others
//! while the lock is open.

use super::dirty::Sectors;
use super::entry::*;
use super::header::Header;
use super::refcounts::{Attempt, Miss, Refcounts, Wrong};
use std::collections::{HashMap, HashSet};

pub struct Table {
    /// One word an entry, two with extended entries.
    pub words: Vec<u64>,
    pub dirty: Sectors,
    pub used: u64,
}

/// A host range that is no longer referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    pub offset: u64,
    pub len: u64,
}

pub struct Meta {
    pub header: Header,
    pub geometry: Geometry,
    pub l1: Vec<u64>,
    pub l1_dirty: Sectors,
    pub l2: HashMap<usize, Table>,
    pub refs: Refcounts,
    /// Given up since the last write-back.
    pub frees: Vec<Free>,
    /// Given up by a write-back that has happened, and the epoch whose requests may still
    /// use them.
    pub ripe: Vec<(usize, Vec<Free>)>,
    /// Guest ranges being allocated.
    pub busy: Vec<(u64, u64)>,
    /// The unused rest of the cluster that compressed data was put in last.
    pub pack: Option<(u64, u64)>,
    /// Places of the active L2 tables.
    tables: HashSet<u64>,
    clock: u64,
}

/// A run of the guest's disk that is of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub kind: Kind,
    pub len: u64,
    /// Where the data is (ordinary runs, and zeroes that keep their cluster).
    pub host: Option<u64>,
    pub entry: Entry,
}

impl Meta {
    pub fn new(header: Header, l1: Vec<u64>, refs: Refcounts) -> Self {
        Meta {
            geometry: Geometry::of(&header),
            l1_dirty: Sectors::new(l1.len() * 8),
            tables: l1.iter().map(|word| word & OFFSET).filter(|offset| *offset != 0).collect(),
            header,
            l1,
            l2: HashMap::new(),
            refs,
            frees: Vec::new(),
            ripe: Vec::new(),
            busy: Vec::new(),
            pack: None,
            clock: 0,
        }
    }

    fn words_per_entry(&self) -> usize {
        if self.geometry.extended { 2 } else { 1 }
    }

    /// Offset of the L2 table at an index of L1; `None` if there is none.
    pub fn l2_offset(&self, index: usize) -> Attempt<Option<u64>> {
        let word = self.l1.get(index).copied().unwrap_or(0);
        let offset = word & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        if offset & (self.geometry.cluster_size() - 1) != 0 {
            return Err(Miss::Corrupt(Wrong::L2Table { offset, index }));
        }
        Ok(Some(offset))
    }

    /// Puts a table that was read into memory.
    pub fn loaded(&mut self, index: usize, data: &[u8]) {
        self.clock += 1;
        let words = data.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        let dirty = Sectors::new(data.len());
        self.l2.entry(index).or_insert(Table { words, dirty, used: self.clock });
    }

    fn table(&mut self, index: usize) -> Attempt<&mut Table> {
        self.clock += 1;
        let clock = self.clock;
        let table = self.l2.get_mut(&index).ok_or(Miss::L2(index))?;
        table.used = clock;
        Ok(table)
    }

    /// The entry for the cluster at `guest`; an empty one where there is no table.
    pub fn entry(&mut self, guest: u64) -> Attempt<Entry> {
        let index = self.geometry.l1_index(guest);
        if self.l2_offset(index)?.is_none() {
            return Ok(Entry::default());
        }
        let (at, width) = (self.geometry.l2_index(guest), self.words_per_entry());
        let table = self.table(index)?;
        let bitmap = if width == 2 { table.words[at * 2 + 1] } else { 0 };
        Ok(Entry { word: table.words[at * width], bitmap })
    }

    /// Sets an entry in a table that is in memory and belongs to us alone.
    pub fn set_entry(&mut self, guest: u64, entry: Entry) -> Attempt<()> {
        let (at, width) = (self.geometry.l2_index(guest), self.words_per_entry());
        let index = self.geometry.l1_index(guest);
        let table = self.table(index)?;
        table.words[at * width] = entry.word;
        if width == 2 {
            table.words[at * 2 + 1] = entry.bitmap;
        }
        table.dirty.mark(at * width * 8, width * 8);
        Ok(())
    }

    /// The host cluster of an entry that has one; the entry is that of `guest`.
    pub fn host(&self, entry: Entry, guest: u64) -> Attempt<u64> {
        let host = entry.word & OFFSET;
        if host & (self.geometry.cluster_size() - 1) != 0 {
            let table = self.l2_offset(self.geometry.l1_index(guest))?.unwrap_or(0);
            let index = self.geometry.l2_index(guest);
            return Err(Miss::Corrupt(Wrong::Cluster { offset: host, table, index }));
        }
        Ok(host)
    }

    /// What is at `guest`, and how far it goes on so (at most `len`).
    pub fn lookup(&mut self, guest: u64, len: u64) -> Attempt<Mapping> {
        let geometry = self.geometry;
        let len = len.min(geometry.to_table_end(guest));
        if self.l2_offset(geometry.l1_index(guest))?.is_none() {
            return Ok(Mapping { kind: Kind::Unallocated, len, host: None, entry: Entry::default() });
        }
        let entry = self.entry(guest)?;
        let kind = geometry.kind(entry, guest);
        let inner = guest & (geometry.cluster_size() - 1);
        let host = match kind {
            Kind::Compressed => None,
            _ if geometry.has_host(entry) => Some(self.host(entry, guest)? + inner),
            Kind::Normal => {
                return Err(Miss::Corrupt(Wrong::Other("Allocated subclusters without a cluster", guest)));
            }
            _ => None,
        };
        let mut end = (guest | (geometry.subcluster_size() - 1)) + 1;
        while end < guest + len && kind != Kind::Compressed {
            let next = self.entry(end)?;
            let same = geometry.kind(next, end) == kind;
            let next_host = if same && geometry.has_host(next) && kind != Kind::Compressed {
                Some(self.host(next, end)? + (end & (geometry.cluster_size() - 1)))
            } else {
                None
            };
            let contiguous = match (kind, host) {
                (Kind::Unallocated, _) => true,
                (_, host) => next_host == host.map(|host| host + (end - guest)),
            };
            if !same || !contiguous {
                break;
            }
            end += geometry.subcluster_size();
        }
        Ok(Mapping { kind, len: len.min(end - guest), host, entry })
    }

    /// Makes sure there is a table for `guest` that only the active state uses.
    pub fn own_table(&mut self, guest: u64) -> Attempt<()> {
        let index = self.geometry.l1_index(guest);
        if index >= self.l1.len() {
            return Err(Miss::TooBig);
        }
        let cluster = self.geometry.cluster_size();
        let old = self.l2_offset(index)?;
        if old.is_some() && self.l1[index] & COPIED != 0 {
            return self.table(index).map(|_| ());
        }
        if old.is_some() {
            self.table(index)?;
        }
        let offset = self.allocate(1)?;
        self.clock += 1;
        let clock = self.clock;
        let table = self.l2.entry(index).or_insert_with(|| Table {
            words: vec![0; (cluster / 8) as usize],
            dirty: Sectors::new(cluster as usize),
            used: clock,
        });
        table.dirty.mark_all();
        self.l1[index] = offset | COPIED;
        self.tables.insert(offset);
        self.l1_dirty.mark(index * 8, 8);
        if let Some(old) = old {
            self.frees.push(Free { offset: old, len: cluster });
        }
        Ok(())
    }

    /// Takes host clusters, making sure that no metadata lies there whatever the counts say.
    pub fn allocate(&mut self, count: u64) -> Attempt<u64> {
        let offset = self.refs.allocate(count)?;
        let len = count << self.geometry.cluster_bits;
        match self.overlaps(offset, len) {
            None => Ok(offset),
            Some(part) => Err(Miss::Corrupt(Wrong::Overlap { part, offset, len })),
        }
    }

    /// Which part of the metadata a host range would overwrite.
    pub fn overlaps(&self, offset: u64, len: u64) -> Option<&'static str> {
        let end = offset + len;
        let cluster = self.geometry.cluster_size();
        let meets = |start: u64, bytes: u64| start < end && offset < start + bytes;
        if offset < cluster {
            return Some("qcow2_header");
        }
        if meets(self.header.l1_offset, self.l1.len() as u64 * 8) {
            return Some("active L1 table");
        }
        if self.header.snapshots > 0 && meets(self.header.snapshots_offset, cluster) {
            return Some("snapshot table");
        }
        let table = u64::from(self.header.reftable_clusters) << self.geometry.cluster_bits;
        if meets(self.refs.table_offset, table) {
            return Some("refcount table");
        }
        for at in (offset..end).step_by(cluster as usize) {
            if self.tables.contains(&at) {
                return Some("active L2 table");
            }
            if self.refs.places.contains(&at) {
                return Some("refcount block");
            }
        }
        None
    }

    /// Whether a guest range is being allocated by another request; if only further on, how
    /// long it is free.
    pub fn free_of_others(&self, from: u64, to: u64) -> Option<u64> {
        let mut end = to;
        for &(start, stop) in &self.busy {
            if start < end && from < stop {
                if start <= from {
                    return None;
                }
                end = start;
            }
        }
        Some(end)
    }

    pub fn finish(&mut self, from: u64, to: u64) {
        if let Some(at) = self.busy.iter().position(|range| *range == (from, to)) {
            self.busy.swap_remove(at);
        }
    }

    /// Notes that what an entry refers to is given up.
    pub fn give_up(&mut self, entry: Entry) {
        let geometry = self.geometry;
        if entry.word & COMPRESSED != 0 {
            let (offset, len) = geometry.compressed(entry);
            self.frees.push(Free { offset, len });
        } else if geometry.has_host(entry) && !self.header.has(super::header::INCOMPAT_DATA_FILE) {
            self.frees.push(Free { offset: entry.word & OFFSET, len: geometry.cluster_size() });
        }
    }

    /// Whether enough is waiting that it should be written back now.
    pub fn is_heavy(&self, tables: usize) -> bool {
        let dirty = self.l2.values().filter(|table| !table.dirty.is_clean()).count();
        dirty > tables / 2 || self.frees.len() > 16384
    }

    /// Forgets clean tables beyond `keep`, oldest first; never the one used last, which may
    /// have been read for an attempt that is still to be made.
    pub fn shrink(&mut self, keep: usize) {
        while self.l2.len() > keep {
            let idle = |table: &Table| table.dirty.is_clean() && table.used != self.clock;
            let oldest = self.l2.iter().filter(|(_, table)| idle(table)).min_by_key(|(_, table)| table.used);
            let Some(index) = oldest.map(|(index, _)| *index) else { return };
            self.l2.remove(&index);
        }
    }
}
