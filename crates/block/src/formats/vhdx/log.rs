//! The log: what a writer that was cut off meant to do ([MS-VHDX] 2.3).

use super::{Fields, Header, MIB, SECTOR, is_sealed, put};
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};
use std::collections::HashMap;

/// Longest log that is read into memory.
const MAX_LOG: u64 = 64 << 20;

/// How far past its end a log may make the file.
const MAX_GROWTH: u64 = 1 << 30;

/// One entry, its sectors in order.
struct Entry {
    bytes: Vec<u8>,
}

impl Entry {
    fn tail(&self) -> u64 {
        Fields(&self.bytes).le32(12).into()
    }

    fn sequence(&self) -> u64 {
        Fields(&self.bytes).le64(16)
    }

    fn file_end(&self) -> u64 {
        Fields(&self.bytes).le64(56)
    }

    fn descriptors(&self) -> impl Iterator<Item = &[u8]> {
        let count = Fields(&self.bytes).le32(24) as usize;
        self.bytes[64..].chunks_exact(32).take(count)
    }

    /// The entry at `at` of a circular log, if all of it is there.
    fn parse(log: &[u8], at: usize, guid: &[u8; 16], budget: &mut u64) -> Option<Entry> {
        let head = Fields(&log[at..at + 64]);
        let len = u64::from(head.le32(8));
        let fits = len >= SECTOR && len.is_multiple_of(SECTOR) && len <= log.len() as u64;
        if head.0[..4] != *b"loge" || !fits || head.0[32..48] != *guid || head.le64(16) == 0 {
            return None;
        }
        *budget = budget.checked_sub(len)?;
        let mut bytes = log[at..].to_vec();
        bytes.truncate(len as usize);
        bytes.extend_from_slice(&log[..len as usize - bytes.len()]);
        let entry = Entry { bytes };
        (is_sealed(&entry.bytes) && entry.is_whole()).then_some(entry)
    }

    /// Descriptors and data sectors are there and carry the entry's number.
    fn is_whole(&self) -> bool {
        let count = u64::from(Fields(&self.bytes).le32(24));
        let first = (64 + count * 32).next_multiple_of(SECTOR);
        if first > self.bytes.len() as u64 {
            return false;
        }
        let mut data = 0;
        for one in self.descriptors() {
            let fields = Fields(one);
            let known = matches!(&one[..4], b"desc" | b"zero");
            if !known || fields.le64(24) != self.sequence() || !fields.le64(16).is_multiple_of(SECTOR) {
                return false;
            }
            data += u64::from(&one[..4] == b"desc");
        }
        let sectors = &self.bytes[first as usize..];
        let right = |sector: &[u8]| {
            let number = u64::from(Fields(sector).le32(4)) << 32 | u64::from(Fields(sector).le32(4092));
            sector.starts_with(b"data") && number == self.sequence()
        };
        data * SECTOR <= sectors.len() as u64
            && sectors.chunks_exact(SECTOR as usize).take(data as usize).all(right)
    }
}

/// The newest complete sequence of entries, oldest first.
fn active(log: &[u8], guid: &[u8; 16]) -> Vec<Entry> {
    let mut budget = 4 * log.len() as u64;
    let mut entries = HashMap::new();
    for at in (0..log.len()).step_by(SECTOR as usize) {
        if let Some(entry) = Entry::parse(log, at, guid, &mut budget) {
            entries.insert(at as u64, entry);
        }
    }
    let mut heads: Vec<(u64, u64)> = entries.iter().map(|(at, entry)| (entry.sequence(), *at)).collect();
    heads.sort_unstable();
    for (_, head) in heads.into_iter().rev() {
        if let Some(path) = walk(&entries, head, log.len() as u64) {
            return path.into_iter().filter_map(|at| entries.remove(&at)).collect();
        }
    }
    Vec::new()
}

/// From the tail that an entry names to the entry itself, numbers without gaps.
fn walk(entries: &HashMap<u64, Entry>, head: u64, len: u64) -> Option<Vec<u64>> {
    let last = entries.get(&head)?;
    let mut at = last.tail();
    let mut path = Vec::new();
    let mut expected = None;
    loop {
        let entry = entries.get(&at)?;
        if expected.is_some_and(|expected| entry.sequence() != expected) || path.len() > entries.len() {
            return None;
        }
        path.push(at);
        if at == head {
            return Some(path);
        }
        expected = Some(entry.sequence().wrapping_add(1));
        at = (at + entry.bytes.len() as u64) % len;
    }
}

/// Does what the log says, then marks it empty.
pub(super) async fn replay(file: &Child, header: &mut Header, read_only: bool) -> Result<()> {
    let (offset, len) = header.log();
    if Fields(&header.bytes).le16(64) != 0 {
        bail!("Unknown version of the VHDX log");
    }
    if len == 0 || !len.is_multiple_of(MIB) || offset < MIB || !offset.is_multiple_of(MIB) {
        bail!("The place of the VHDX log is invalid");
    }
    let Ok(log) = file.read_vec(offset, len, MAX_LOG).await else {
        bail!("The VHDX log is too large or not within the file")
    };
    let entries = active(&log, &header.log_guid());
    if entries.is_empty() && read_only {
        return Ok(());
    }
    if read_only {
        bail!(
            "VHDX image file '{}' opened read-only, but contains a log that needs to be replayed",
            file.node().filename()
        );
    }
    for entry in &entries {
        apply(file, entry).await?;
    }
    file.flush().await?;
    header.renew(file, |bytes| put(bytes, 48, &[0; 16])).await?;
    Ok(())
}

async fn apply(file: &Child, entry: &Entry) -> Result<()> {
    let end = entry.file_end();
    if end > file.size() {
        if end - file.size() > MAX_GROWTH {
            bail!("The VHDX log names a place far outside of the file");
        }
        file.truncate(end, Truncate::default()).await?;
    }
    let count = u64::from(Fields(&entry.bytes).le32(24));
    let mut sector = (64 + count * 32).next_multiple_of(SECTOR) as usize;
    for one in entry.descriptors() {
        let fields = Fields(one);
        let target = fields.le64(16);
        let is_data = one.starts_with(b"desc");
        let len = if is_data { SECTOR } else { fields.le64(8) };
        if target.checked_add(len).is_none_or(|past| past > file.size().max(end)) {
            bail!("The VHDX log names a place outside of the file");
        }
        if is_data {
            let mut bytes = entry.bytes[sector..sector + SECTOR as usize].to_vec();
            put(&mut bytes, 0, &one[8..16]);
            put(&mut bytes, 4092, &one[4..8]);
            file.write(target, &bytes, WriteFlags::empty()).await?;
            sector += SECTOR as usize;
        } else {
            file.write_zeroes(target, len, ZeroFlags::empty()).await?;
        }
    }
    Ok(())
}
