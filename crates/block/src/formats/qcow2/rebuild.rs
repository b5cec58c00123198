//! Changing everything at once: snapshots, repair, other tables.
//!
//! A [`Plan`] says what the image shall be. All its tables (refcounts counted afresh from
//! what is referred to, L1 and L2 with matching COPIED flags, the snapshot table) are written
//! to clusters that the present state does not use, flushed, and then one write of the
//! header makes them the image. Cut off before that, the image is as it was; after it, it
//! is as planned.

use super::Qcow2;
use super::entry::*;
use super::header::*;
use super::meta::Meta;
use super::refcounts::{self, Refcounts};
use super::snapshot::Stored;
use crate::types::*;
use std::collections::btree_map::Entry as Vacancy;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Counts of host clusters in pages, so that a sparse image takes little memory.
#[derive(Default)]
pub(super) struct Counts {
    pages: HashMap<u64, Vec<u32>>,
    pub bits: u32,
}

const PAGE: u64 = 4096;
/// Pages beyond which an image is not believed (tens of terabytes of 64 KiB clusters).
const MAX_PAGES: usize = 1 << 17;
/// L2 tables are held while counting; more than this many bytes of them is refused.
const MAX_TABLE_BYTES: u64 = 2 << 30;

impl Counts {
    pub fn new(bits: u32) -> Self {
        Counts { pages: HashMap::new(), bits }
    }

    pub fn too_big(&self) -> bool {
        self.pages.len() > MAX_PAGES
    }

    fn merge(&mut self, other: &Counts) {
        for (page, counts) in &other.pages {
            let mine = self.pages.entry(*page).or_insert_with(|| vec![0; PAGE as usize]);
            mine.iter_mut().zip(counts).for_each(|(mine, count)| *mine = mine.saturating_add(*count));
        }
    }

    /// One more reference to each cluster that `[offset, offset + len)` touches.
    pub fn add(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        for cluster in offset >> self.bits..=offset.saturating_add(len - 1) >> self.bits {
            let page = self.pages.entry(cluster / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            let count = &mut page[(cluster % PAGE) as usize];
            *count = count.saturating_add(1);
        }
    }

    pub fn get(&self, cluster: u64) -> u64 {
        self.pages.get(&(cluster / PAGE)).map_or(0, |page| u64::from(page[(cluster % PAGE) as usize]))
    }

    /// Clusters with a count, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut pages: Vec<_> = self.pages.iter().collect();
        pages.sort_unstable_by_key(|(page, _)| **page);
        pages.into_iter().flat_map(|(page, counts)| {
            let first = page * PAGE;
            counts
                .iter()
                .enumerate()
                .filter(|(_, n)| **n > 0)
                .map(move |(at, n)| (first + at as u64, u64::from(*n)))
        })
    }
}

/// What the image shall be.
pub(super) struct Plan {
    pub header: Header,
    pub l1: Vec<u64>,
    pub snapshots: Vec<Stored>,
    /// Tables that shall differ from what the file has at that offset.
    pub patched: HashMap<u64, Arc<Vec<u64>>>,
}

/// Everything a walk over the tables found.
pub(super) struct Walk {
    pub counts: Counts,
    /// L2 tables by offset.
    pub tables: BTreeMap<u64, Arc<Vec<u64>>>,
    /// Offsets that cannot be (outside of the file, not aligned), with what names them.
    pub bad: Vec<(String, u64)>,
}

impl Qcow2 {
    /// The plan that changes nothing.
    pub(super) async fn present(&self) -> IoResult<Plan> {
        self.settle_down().await?;
        let meta = self.meta.lock();
        let snapshots = self.snapshots.lock().clone();
        Ok(Plan { header: meta.header.clone(), l1: meta.l1.clone(), snapshots, patched: HashMap::new() })
    }

    /// Reads every table that a plan refers to and counts references.
    pub(super) async fn walk(&self, plan: &Plan) -> IoResult<Walk> {
        let size = self.geometry.cluster_size();
        let mut walk = Walk {
            counts: Counts::new(self.geometry.cluster_bits),
            tables: BTreeMap::new(),
            bad: Vec::new(),
        };
        walk.counts.add(0, size);
        self.count_extras(plan, &mut walk).await?;
        let mut roots = vec![("active".to_string(), plan.l1.clone())];
        for stored in &plan.snapshots {
            let l1 = match stored.l1.clone() {
                Some(l1) => l1,
                None => {
                    walk.counts.add(stored.l1_offset, u64::from(stored.l1_size) * 8);
                    let words =
                        super::open::read_words(&self.file, stored.l1_offset, u64::from(stored.l1_size));
                    words.await.map_err(|_| errno(libc::EIO))?
                }
            };
            roots.push((format!("snapshot '{}'", stored.snapshot.id), l1));
        }
        for (name, l1) in roots {
            for word in l1 {
                let offset = word & OFFSET;
                if offset == 0 {
                    continue;
                }
                if offset & (size - 1) != 0 || offset >= self.file.size() {
                    walk.bad.push((format!("L2 table of {name} L1"), offset));
                    continue;
                }
                walk.counts.add(offset, size);
                let table = self.table_at(plan, &mut walk, offset).await?;
                self.count_table(&table, offset, &mut walk);
                if walk.counts.too_big() || walk.tables.len() as u64 * size > MAX_TABLE_BYTES {
                    return Err(errno(libc::EFBIG));
                }
            }
        }
        Ok(walk)
    }

    async fn table_at(&self, plan: &Plan, walk: &mut Walk, offset: u64) -> IoResult<Arc<Vec<u64>>> {
        if let Some(table) = walk.tables.get(&offset) {
            return Ok(table.clone());
        }
        let table = match plan.patched.get(&offset) {
            Some(table) => table.clone(),
            None => {
                let mut data = vec![0; self.geometry.cluster_size() as usize];
                self.file.read(offset, &mut data).await?;
                Arc::new(data.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
            }
        };
        walk.tables.insert(offset, table.clone());
        Ok(table)
    }

    fn count_table(&self, table: &[u64], at: u64, walk: &mut Walk) {
        let (size, width) = (self.geometry.cluster_size(), if self.geometry.extended { 2 } else { 1 });
        let limit = self.file.size().next_multiple_of(size).saturating_add(1 << 40);
        for word in table.iter().step_by(width) {
            let entry = Entry { word: *word, bitmap: 0 };
            if word & COMPRESSED != 0 {
                let (offset, len) = self.geometry.compressed(entry);
                if offset >= self.file.size() || self.data.is_some() {
                    walk.bad.push((format!("compressed cluster in L2 table {at:#x}"), offset));
                } else {
                    walk.counts.add(offset, len);
                }
            } else if self.geometry.has_host(entry) && self.data.is_none() {
                let offset = word & OFFSET;
                if offset & (size - 1) != 0 || offset >= limit || offset == 0 {
                    walk.bad.push((format!("data cluster in L2 table {at:#x}"), offset));
                } else {
                    walk.counts.add(offset, size);
                }
            }
        }
    }

    async fn count_extras(&self, plan: &Plan, walk: &mut Walk) -> IoResult {
        if let Some((offset, len)) = plan.header.crypto {
            walk.counts.add(offset, len.min(1 << 30));
        }
        self.count_bitmaps(&plan.header, walk).await
    }

    /// Makes a plan true; see the module text. No request is in flight.
    pub(super) async fn install(&self, mut plan: Plan) -> IoResult {
        let _one = self.sync_lock.lock().await;
        let walk = self.walk(&plan).await?;
        if let Some((what, offset)) = walk.bad.first() {
            eprintln!("qcow2: {what} has invalid offset {offset:#x}");
            return Err(errno(libc::EIO));
        }
        let used = self.used_now(&plan, &walk).await?;
        let mut builder = Builder {
            counts: walk.counts,
            used,
            next: 0,
            writes: Vec::new(),
            bits: self.geometry.cluster_bits,
        };
        let active: HashSet<u64> = plan.l1.iter().map(|word| word & OFFSET).collect();
        let differs = |offset: u64| plan.patched.contains_key(&offset);
        let moved = self.new_tables(&walk.tables, &active, differs, &mut builder)?;
        let fix = |l1: &mut Vec<u64>, builder: &Builder| {
            for word in l1.iter_mut().filter(|word| **word & OFFSET != 0) {
                let offset = moved.get(&(*word & OFFSET)).copied().unwrap_or(*word & OFFSET);
                let copied = if builder.counts.get(offset >> builder.bits) == 1 { COPIED } else { 0 };
                *word = offset | copied;
            }
        };
        fix(&mut plan.l1, &builder);
        for stored in &mut plan.snapshots {
            if let Some(l1) = &mut stored.l1 {
                // COPIED is only kept up in the active table; others carry none.
                fix(l1, &builder);
                l1.iter_mut().for_each(|word| *word &= !COPIED);
                stored.l1_size = l1.len() as u32;
                stored.l1_offset = builder.put(&to_bytes(l1))?;
            } else {
                self.patch_old_l1(stored, &moved, &mut builder).await?;
            }
        }
        plan.header.l1_size = plan.l1.len() as u32;
        plan.header.l1_offset = builder.put(&to_bytes(&plan.l1))?;
        plan.header.snapshots = plan.snapshots.len() as u32;
        plan.header.snapshots_offset = match plan.snapshots.is_empty() {
            true => 0,
            false => builder.put(&super::snapshot::encode_table(&plan.snapshots))?,
        };
        let (table_offset, table) = builder.put_refcounts(plan.header.refcount_order)?;
        plan.header.reftable_offset = table_offset;
        plan.header.reftable_clusters = ((table.len() as u64 * 8) >> self.geometry.cluster_bits) as u32;
        let bytes = plan.header.encode().map_err(|_| errno(libc::ENOSPC))?;
        for (offset, data) in &builder.writes {
            self.file.write(*offset, data, WriteFlags::empty()).await?;
        }
        self.file.flush().await?;
        self.file.write(0, &bytes, WriteFlags::empty()).await?;
        self.file.flush().await?;
        self.adopt(plan, table, table_offset);
        Ok(())
    }

    /// An L1 table of a snapshot in the file that names tables which moved is written anew.
    async fn patch_old_l1(
        &self,
        stored: &mut Stored,
        moved: &HashMap<u64, u64>,
        builder: &mut Builder,
    ) -> IoResult {
        let words = super::open::read_words(&self.file, stored.l1_offset, u64::from(stored.l1_size));
        let mut words = words.await.map_err(|_| errno(libc::EIO))?;
        let mut changed = false;
        for word in &mut words {
            if let Some(new) = moved.get(&(*word & OFFSET)) {
                *word = *new;
                changed = true;
            }
        }
        if changed {
            builder.uncount(stored.l1_offset, words.len() as u64 * 8);
            stored.l1_offset = builder.put(&to_bytes(&words))?;
        }
        Ok(())
    }

    /// Tables whose flags must change go to new places; returns from where to where.
    fn new_tables(
        &self,
        tables: &BTreeMap<u64, Arc<Vec<u64>>>,
        active: &HashSet<u64>,
        differs: impl Fn(u64) -> bool,
        builder: &mut Builder,
    ) -> IoResult<HashMap<u64, u64>> {
        let mut moved = HashMap::new();
        let width = if self.geometry.extended { 2 } else { 1 };
        for (&offset, table) in tables {
            let mut new = table.as_ref().clone();
            for at in (0..new.len()).step_by(width) {
                let entry = Entry { word: new[at], bitmap: 0 };
                let plain = entry.word & COMPRESSED == 0 && self.geometry.has_host(entry);
                if !plain || self.data.is_some() || !active.contains(&offset) {
                    continue;
                }
                let sole = builder.counts.get((entry.word & OFFSET) >> builder.bits) == 1;
                new[at] = entry.word & !COPIED | if sole { COPIED } else { 0 };
            }
            if new != **table || differs(offset) {
                let references = builder.counts.get(offset >> builder.bits);
                let place = builder.put(&to_bytes(&new))?;
                for _ in 1..references {
                    builder.counts.add(place, 1);
                }
                for _ in 0..references {
                    builder.uncount(offset, 1);
                }
                moved.insert(offset, place);
            }
        }
        Ok(moved)
    }

    /// Clusters that the present state or the plan needs: new tables must not lie there.
    async fn used_now(&self, plan: &Plan, walk: &Walk) -> IoResult<Counts> {
        let bits = self.geometry.cluster_bits;
        let (present, blocks) = {
            let meta = self.meta.lock();
            let snapshots = self.snapshots.lock().clone();
            let blocks: Vec<u64> = meta.refs.table.iter().copied().filter(|block| *block != 0).collect();
            (
                Plan { header: meta.header.clone(), l1: meta.l1.clone(), snapshots, patched: HashMap::new() },
                blocks,
            )
        };
        let mut used = self.walk(&present).await?.counts;
        used.merge(&walk.counts);
        for header in [&present.header, &plan.header] {
            used.add(header.l1_offset, u64::from(header.l1_size) * 8);
            used.add(header.reftable_offset, u64::from(header.reftable_clusters) << bits);
        }
        let table = super::snapshot::encode_table(&present.snapshots).len() as u64;
        used.add(present.header.snapshots_offset, table);
        blocks.iter().for_each(|block| used.add(*block, 1));
        Ok(used)
    }

    fn adopt(&self, plan: Plan, table: Vec<u64>, table_offset: u64) {
        let header = plan.header;
        let refs =
            Refcounts::new(header.cluster_bits, header.refcount_order, table, table_offset, self.file.size());
        let mut meta = self.meta.lock();
        self.size.store(header.size, Ordering::Release);
        *meta = Meta::new(header, plan.l1, refs);
        drop(meta);
        let mut snapshots = plan.snapshots;
        snapshots.iter_mut().for_each(|stored| stored.l1 = None);
        *self.snapshots.lock() = snapshots;
        *self.unpacked.lock() = None;
    }
}

pub(super) fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

struct Builder {
    counts: Counts,
    used: Counts,
    next: u64,
    writes: Vec<(u64, Vec<u8>)>,
    bits: u32,
}

impl Builder {
    /// A run of clusters that nothing uses, before or after.
    fn place(&mut self, clusters: u64) -> u64 {
        let mut start = self.next;
        let mut run = 0;
        while run < clusters {
            if self.used.get(start + run) > 0 {
                start += run + 1;
                run = 0;
            } else {
                run += 1;
            }
        }
        self.used.add(start << self.bits, clusters << self.bits);
        if clusters == 1 {
            self.next = start + 1;
        }
        start << self.bits
    }

    /// Writes bytes into new clusters, each referred to once.
    fn put(&mut self, data: &[u8]) -> IoResult<u64> {
        let size = 1u64 << self.bits;
        let clusters = (data.len() as u64).div_ceil(size).max(1);
        let offset = self.place(clusters);
        if offset + clusters * size > 1 << 55 {
            return Err(errno(libc::EFBIG));
        }
        self.counts.add(offset, clusters * size);
        let mut data = data.to_vec();
        data.resize((clusters * size) as usize, 0);
        self.writes.push((offset, data));
        Ok(offset)
    }

    fn uncount(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        for cluster in offset >> self.bits..=offset.saturating_add(len - 1) >> self.bits {
            if let Some(page) = self.counts.pages.get_mut(&(cluster / PAGE)) {
                let count = &mut page[(cluster % PAGE) as usize];
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Refcount blocks and table for all counts, their own included.
    fn put_refcounts(&mut self, order: u32) -> IoResult<(u64, Vec<u64>)> {
        let size = 1u64 << self.bits;
        let block_bits = self.bits + 3 - order;
        // Place blocks until every block that is needed has a place, then the table.
        let mut places: BTreeMap<u64, u64> = BTreeMap::new();
        let mut wanted: BTreeSet<u64> =
            self.counts.iter().map(|(cluster, _)| cluster >> block_bits).collect();
        let mut table = None;
        let (table_offset, table_clusters) = loop {
            while let Some(block) = wanted.pop_first() {
                if let Vacancy::Vacant(vacant) = places.entry(block) {
                    let place = self.place(1);
                    self.counts.add(place, 1);
                    vacant.insert(place);
                    wanted.insert(place >> self.bits >> block_bits);
                }
            }
            let entries = places.keys().next_back().map_or(0, |last| last + 1);
            if entries * 8 > MAX_REFTABLE_BYTES {
                return Err(errno(libc::EFBIG));
            }
            match table {
                Some((offset, clusters)) if clusters * size >= entries * 8 && wanted.is_empty() => {
                    break (offset, clusters);
                }
                Some((_, clusters)) if clusters * size >= entries * 8 => {}
                old => {
                    if let Some((offset, clusters)) = old {
                        self.uncount(offset, clusters * size);
                    }
                    let clusters = (entries * 8 + 8).div_ceil(size);
                    let offset = self.place(clusters);
                    self.counts.add(offset, clusters * size);
                    let last = (offset >> self.bits) + clusters - 1;
                    wanted.extend([offset >> self.bits >> block_bits, last >> block_bits]);
                    table = Some((offset, clusters));
                }
            }
        };
        let max = if order == 6 { u64::MAX } else { (1 << (1u32 << order)) - 1 };
        let mut blocks: BTreeMap<u64, Vec<u8>> =
            places.keys().map(|block| (*block, vec![0; size as usize])).collect();
        for (cluster, count) in self.counts.iter() {
            if count > max {
                return Err(errno(libc::ERANGE));
            }
            if let Some(block) = blocks.get_mut(&(cluster >> block_bits)) {
                refcounts::write(block, (cluster & ((1 << block_bits) - 1)) as usize, order, count);
            }
        }
        let mut words = vec![0; (table_clusters * size / 8) as usize];
        for (block, data) in blocks {
            words[block as usize] = places[&block];
            self.writes.push((places[&block], data));
        }
        self.writes.push((table_offset, to_bytes(&words)));
        Ok((table_offset, words))
    }
}
