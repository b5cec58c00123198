//! Checking and repairing an image.

use super::Qcow2;
use super::entry::*;
use super::header::*;
use super::rebuild::{Counts, Plan, Walk};
use super::refcounts;
use crate::driver::{Check, Fix};
use crate::types::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Findings beyond this many are counted but not described.
const MAX_MESSAGES: usize = 10_000;

impl Qcow2 {
    pub(super) async fn check_image(&self, fix: Fix) -> IoResult<Check> {
        let mut plan = self.present_for_check().await?;
        let mut found = Check::default();
        let mut walk = self.walk(&plan).await?;
        for (what, offset) in std::mem::take(&mut walk.bad) {
            found.corruptions += 1;
            note(&mut found, format!("ERROR {what}: invalid offset {offset:#x}"));
        }
        self.count_tables(&plan, &mut walk);
        self.compare_counts(&walk.counts, &mut found).await?;
        self.compare_flags(&plan, &walk, &mut found);
        self.tally(&plan, &walk, &mut found);
        if fix == Fix::Nothing
            || self.read_only.load(Ordering::Acquire)
            || (found.corruptions == 0 && found.leaks == 0)
        {
            return Ok(found);
        }
        if fix == Fix::Leaks && found.corruptions > 0 {
            return Ok(found);
        }
        self.drop_bad(&mut plan, &walk);
        plan.header.incompatible &= !(INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
        self.install(plan).await?;
        self.dead.store(false, Ordering::Release);
        found.corruptions_fixed = std::mem::take(&mut found.corruptions);
        found.leaks_fixed = std::mem::take(&mut found.leaks);
        Ok(found)
    }

    /// The state as it is, without writing first when that is not possible.
    async fn present_for_check(&self) -> IoResult<Plan> {
        if !self.read_only.load(Ordering::Acquire) && !self.dead.load(Ordering::Acquire) {
            return self.present().await;
        }
        let meta = self.meta.lock();
        let snapshots = self.snapshots.lock().clone();
        Ok(Plan { header: meta.header.clone(), l1: meta.l1.clone(), snapshots, patched: HashMap::new() })
    }

    /// The tables that a rebuilt image has anew are counted where they are now.
    fn count_tables(&self, plan: &Plan, walk: &mut Walk) {
        let bits = self.geometry.cluster_bits;
        walk.counts.add(plan.header.l1_offset, u64::from(plan.header.l1_size) * 8);
        walk.counts.add(plan.header.reftable_offset, u64::from(plan.header.reftable_clusters) << bits);
        if !plan.snapshots.is_empty() {
            let len = super::snapshot::encode_table(&plan.snapshots).len() as u64;
            walk.counts.add(plan.header.snapshots_offset, len);
        }
        let blocks = self.meta.lock().refs.table.clone();
        blocks.into_iter().filter(|block| *block != 0).for_each(|block| walk.counts.add(block, 1));
    }

    async fn compare_counts(&self, counts: &Counts, found: &mut Check) -> IoResult {
        let bits = self.geometry.cluster_bits;
        let (table, order) = {
            let meta = self.meta.lock();
            (meta.refs.table.clone(), meta.refs.order())
        };
        let block_bits = bits + 3 - order;
        let mut seen = Counts::new(bits);
        for (index, offset) in table.iter().enumerate().filter(|(_, offset)| **offset != 0) {
            let size = self.geometry.cluster_size();
            if offset & (size - 1) != 0 || *offset >= self.file.size() {
                found.corruptions += 1;
                note(found, format!("ERROR refcount block {index} is outside image"));
                continue;
            }
            let mut data = vec![0; size as usize];
            self.file.read(*offset, &mut data).await?;
            for at in 0..1usize << block_bits {
                let cluster = (index as u64) << block_bits | at as u64;
                let (stored, real) = (refcounts::read(&data, at, order), counts.get(cluster));
                if stored > 0 {
                    seen.add(cluster << bits, 1);
                    found.image_end_offset = Some((cluster + 1) << bits);
                }
                compare(cluster, stored, real, found);
            }
        }
        for (cluster, real) in counts.iter() {
            let covered = table.get((cluster >> block_bits) as usize).is_some_and(|block| *block != 0);
            if !covered {
                compare(cluster, 0, real, found);
            }
        }
        Ok(())
    }

    /// COPIED must be set exactly where the count is 1.
    fn compare_flags(&self, plan: &Plan, walk: &Walk, found: &mut Check) {
        let bits = self.geometry.cluster_bits;
        let width = if self.geometry.extended { 2 } else { 1 };
        for word in plan.l1.iter().filter(|word| **word & OFFSET != 0) {
            let offset = word & OFFSET;
            let sole = walk.counts.get(offset >> bits) == 1;
            if sole != (word & COPIED != 0) {
                found.corruptions += 1;
                note(found, format!("ERROR OFLAG_COPIED L2 cluster: l1_entry={word:x}"));
            }
            let Some(table) = walk.tables.get(&offset) else { continue };
            for entry in table.iter().step_by(width) {
                let plain = entry & COMPRESSED == 0 && entry & OFFSET != 0;
                let sole = walk.counts.get((entry & OFFSET) >> bits) == 1;
                if plain && self.data.is_none() && sole != (entry & COPIED != 0) {
                    found.corruptions += 1;
                    note(found, format!("ERROR OFLAG_COPIED data cluster: l2_entry={entry:x}"));
                }
            }
        }
    }

    fn tally(&self, plan: &Plan, walk: &Walk, found: &mut Check) {
        let width = if self.geometry.extended { 2 } else { 1 };
        found.total_clusters = plan.header.size.div_ceil(self.geometry.cluster_size());
        let mut next = None;
        for word in plan.l1.iter() {
            let Some(table) = walk.tables.get(&(word & OFFSET)) else { continue };
            for entry in table.iter().step_by(width) {
                if entry & COMPRESSED != 0 {
                    found.allocated_clusters += 1;
                    found.compressed_clusters += 1;
                    found.fragmented_clusters += 1;
                } else if entry & OFFSET != 0 {
                    found.allocated_clusters += 1;
                    if next.is_some_and(|next| next != entry & OFFSET) {
                        found.fragmented_clusters += 1;
                    }
                    next = Some((entry & OFFSET) + self.geometry.cluster_size());
                }
            }
        }
    }

    /// Takes references out of a plan that cannot be right.
    fn drop_bad(&self, plan: &mut Plan, walk: &Walk) {
        let size = self.geometry.cluster_size();
        let file = self.file.size();
        let width = if self.geometry.extended { 2 } else { 1 };
        for word in &mut plan.l1 {
            let offset = *word & OFFSET;
            if offset & (size - 1) != 0 || offset >= file {
                *word = 0;
            }
        }
        for (&at, table) in &walk.tables {
            let mut new = table.as_ref().clone();
            for index in (0..new.len()).step_by(width) {
                let entry = Entry { word: new[index], bitmap: 0 };
                let bad = match entry.word & COMPRESSED != 0 {
                    true => self.geometry.compressed(entry).0 >= file,
                    false => {
                        entry.word & OFFSET & (size - 1) != 0
                            || (self.data.is_none() && entry.word & OFFSET >= file.saturating_add(1 << 40))
                    }
                };
                if bad {
                    new[index] = 0;
                    if width == 2 {
                        new[index + 1] = 0;
                    }
                }
            }
            if new != **table {
                plan.patched.insert(at, Arc::new(new));
            }
        }
    }
}

fn compare(cluster: u64, stored: u64, real: u64, found: &mut Check) {
    if stored > real {
        found.leaks += 1;
        note(found, format!("Leaked cluster {cluster} refcount={stored} reference={real}"));
    } else if stored < real {
        found.corruptions += 1;
        note(found, format!("ERROR cluster {cluster} refcount={stored} reference={real}"));
    }
}

fn note(found: &mut Check, text: String) {
    if found.messages.len() < MAX_MESSAGES {
        found.messages.push(text);
    }
}
