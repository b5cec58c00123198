//! Dirty bitmaps kept in the image.
//!
//! They are read when the image is opened, marked as in use while it may be written, and
//! stored anew (beside the old ones, then the header switches over) when it is closed.

use super::Qcow2;
use super::entry::OFFSET;
use super::header::*;
use super::meta::Free;
use super::rebuild::{Walk, to_bytes};
use crate::bitmap::DirtyBitmap;
use crate::driver::Layer as _;
use crate::driver::StoredBitmaps;
use crate::types::*;
use base::{Failure, Result, bail};
use serde_json::{Value, json};
use std::sync::Arc;

const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_BITMAPS: usize = 65535;
/// Longest table of one bitmap, in entries.
const MAX_TABLE: u64 = 0x800_0000;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const DIRTY_TRACKING: u8 = 1;

#[derive(Clone, Debug)]
struct Entry {
    table_offset: u64,
    table_size: u32,
    flags: u32,
    kind: u8,
    granularity_bits: u8,
    extra: Vec<u8>,
    name: String,
}

fn be(data: &[u8]) -> u64 {
    data.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn decode(data: &[u8], count: u32) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    let mut at = 0usize;
    while all.len() < count as usize {
        let Some(head) = data.get(at..at + 24) else { bail!("Broken bitmap directory") };
        let (name_len, extra_len) = (be(&head[18..20]) as usize, be(&head[20..24]) as usize);
        let Some(body) = data.get(at + 24..).and_then(|rest| rest.get(..extra_len.checked_add(name_len)?))
        else {
            bail!("Broken bitmap directory")
        };
        let entry = Entry {
            table_offset: be(&head[..8]),
            table_size: be(&head[8..12]) as u32,
            flags: be(&head[12..16]) as u32,
            kind: head[16],
            granularity_bits: head[17],
            extra: body[..extra_len].to_vec(),
            name: String::from_utf8_lossy(&body[extra_len..]).into_owned(),
        };
        if name_len == 0
            || name_len > 1023
            || entry.kind != DIRTY_TRACKING
            || !(9..=31).contains(&entry.granularity_bits)
        {
            bail!("Bitmap '{}' doesn't satisfy the constraints", entry.name);
        }
        if u64::from(entry.table_size) > MAX_TABLE {
            bail!("Bitmap '{}' is too large", entry.name);
        }
        all.push(entry);
        at = (at + 24 + extra_len + name_len).next_multiple_of(8);
    }
    Ok(all)
}

fn encode(all: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in all {
        out.extend(entry.table_offset.to_be_bytes());
        out.extend(entry.table_size.to_be_bytes());
        out.extend(entry.flags.to_be_bytes());
        out.extend([entry.kind, entry.granularity_bits]);
        out.extend((entry.name.len() as u16).to_be_bytes());
        out.extend((entry.extra.len() as u32).to_be_bytes());
        out.extend(&entry.extra);
        out.extend(entry.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

impl Qcow2 {
    /// Refuses a file whose bitmaps would be lost because the node does not have them.
    pub(super) async fn check_bitmaps_are_ours(&self, header: &Header) -> Result<()> {
        let ours = |name: &str| self.context.bitmaps.find(name).is_some_and(|one| one.is_persistent());
        match self.directory(header).await?.iter().all(|entry| ours(&entry.name)) {
            true => Ok(()),
            false => bail!("The new file of node '{}' has dirty bitmaps of its own", self.context.node_name),
        }
    }

    async fn directory(&self, header: &Header) -> Result<Vec<Entry>> {
        let Some(ext) = header.bitmaps else { return Ok(Vec::new()) };
        let data = self.file.read_vec(ext.directory_offset, ext.directory_size, MAX_DIRECTORY).await;
        let data = data.map_err(|error| Failure::os("Failed to read bitmap directory", &error))?;
        decode(&data, ext.count)
    }

    async fn table(&self, entry: &Entry) -> Result<Vec<u64>> {
        let bytes = u64::from(entry.table_size) * 8;
        let end = entry.table_offset.checked_add(bytes);
        if entry.table_offset & (self.geometry.cluster_size() - 1) != 0
            || end.is_none_or(|end| end > self.file.size())
        {
            bail!("Bitmap '{}' has a table outside of the image", entry.name);
        }
        super::open::read_words(&self.file, entry.table_offset, u64::from(entry.table_size)).await
    }

    /// Puts the stored bitmaps into the node's set.
    pub(super) async fn load_bitmaps(&self) -> Result<()> {
        let header = self.meta.lock().header.clone();
        let size = header.size;
        for entry in self.directory(&header).await? {
            let bitmap = DirtyBitmap::new(Some(entry.name.clone()), 1 << entry.granularity_bits, size);
            bitmap.set_persistent(true);
            if entry.flags & IN_USE != 0 {
                bitmap.set_inconsistent(true);
                bitmap.enable(false);
            } else {
                let words = self.load_bits(&entry, size).await?;
                bitmap.restore(words);
                bitmap.enable(entry.flags & AUTO != 0);
            }
            bitmap.set_read_only(self.read_only.load(std::sync::atomic::Ordering::Acquire));
            self.context.bitmaps.add(Arc::new(bitmap));
        }
        Ok(())
    }

    async fn load_bits(&self, entry: &Entry, size: u64) -> Result<Vec<u64>> {
        let cluster = self.geometry.cluster_size();
        let bits = size.div_ceil(1 << entry.granularity_bits);
        let needed = bits.div_ceil(8).div_ceil(cluster);
        if u64::from(entry.table_size) != needed {
            bail!("Bitmap '{}' does not fit the size of the image", entry.name);
        }
        let mut words = Vec::with_capacity(bits.div_ceil(64) as usize);
        for word in self.table(entry).await? {
            let offset = word & OFFSET;
            let per = (cluster / 8) as usize;
            if offset == 0 {
                let fill = if word & 1 != 0 { u64::MAX } else { 0 };
                words.extend(std::iter::repeat_n(fill, per));
                continue;
            }
            let data = self.file.read_vec(offset, cluster, 2 << 20).await;
            let data =
                data.map_err(|error| Failure::os(format!("Failed to read bitmap '{}'", entry.name), &error))?;
            words.extend(data.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)));
        }
        words.truncate(bits.div_ceil(64) as usize);
        Ok(words)
    }

    /// While the image may be written, what is stored is out of date.
    pub(super) async fn mark_bitmaps_in_use(&self) -> Result<()> {
        let header = self.meta.lock().header.clone();
        let Some(ext) = header.bitmaps else { return Ok(()) };
        let mut at = ext.directory_offset;
        for entry in self.directory(&header).await? {
            let flags = (entry.flags | IN_USE).to_be_bytes();
            self.file.write(at + 12, &flags, WriteFlags::empty()).await?;
            at = (at + 24 + entry.extra.len() as u64 + entry.name.len() as u64).next_multiple_of(8);
        }
        self.file.flush().await?;
        for bitmap in self.context.bitmaps.list() {
            bitmap.set_read_only(false);
        }
        Ok(())
    }

    /// Stores the persistent bitmaps.
    pub(super) async fn store_bitmaps(&self) -> Result<()> {
        let header = self.meta.lock().header.clone();
        let old = self.directory(&header).await?;
        let mut new = Vec::new();
        for bitmap in self.context.bitmaps.list() {
            let Some(name) = bitmap.name().filter(|_| bitmap.is_persistent()) else { continue };
            if bitmap.is_inconsistent() {
                new.extend(old.iter().find(|entry| entry.name == name).cloned());
                continue;
            }
            new.push(self.store_one(&name, &bitmap).await?);
        }
        if new.is_empty() && old.is_empty() {
            return Ok(());
        }
        self.replace_directory(old, new).await
    }

    async fn store_one(&self, name: &str, bitmap: &DirtyBitmap) -> Result<Entry> {
        let cluster = self.geometry.cluster_size();
        let bytes: Vec<u8> = bitmap.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        let bits = bitmap.size().div_ceil(u64::from(bitmap.granularity()));
        let mut table = Vec::new();
        for at in 0..bits.div_ceil(8).div_ceil(cluster) {
            let from = (at * cluster) as usize;
            let mut piece = bytes[from.min(bytes.len())..(from + cluster as usize).min(bytes.len())].to_vec();
            if piece.iter().all(|byte| *byte == 0) {
                table.push(0);
                continue;
            }
            piece.resize(cluster as usize, 0);
            let offset = self.with(|meta| meta.allocate(1)).await?;
            self.file.write(offset, &piece, WriteFlags::empty()).await?;
            table.push(offset);
        }
        let table_offset = self.put_clusters(&to_bytes(&table)).await?;
        Ok(Entry {
            table_offset,
            table_size: table.len() as u32,
            flags: if bitmap.is_enabled() { AUTO } else { 0 },
            kind: DIRTY_TRACKING,
            granularity_bits: bitmap.granularity().trailing_zeros() as u8,
            extra: Vec::new(),
            name: name.to_string(),
        })
    }

    async fn put_clusters(&self, data: &[u8]) -> Result<u64> {
        let cluster = self.geometry.cluster_size();
        let count = (data.len() as u64).div_ceil(cluster).max(1);
        let offset = self.with(|meta| meta.allocate(count)).await?;
        let mut whole = data.to_vec();
        whole.resize((count * cluster) as usize, 0);
        self.file.write(offset, &whole, WriteFlags::empty()).await?;
        Ok(offset)
    }

    /// Writes a new directory, switches to it, and gives up what only the old one named.
    async fn replace_directory(&self, old: Vec<Entry>, new: Vec<Entry>) -> Result<()> {
        let data = encode(&new);
        if new.len() > MAX_BITMAPS || data.len() as u64 > MAX_DIRECTORY {
            bail!("There are too many bitmaps in the image");
        }
        let ext = match new.is_empty() {
            true => None,
            false => Some(BitmapsExt {
                count: new.len() as u32,
                directory_size: data.len() as u64,
                directory_offset: self.put_clusters(&data).await?,
            }),
        };
        self.sync().await?;
        self.file.flush().await?;
        let before = {
            let mut meta = self.meta.lock();
            let before = meta.header.clone();
            meta.header.bitmaps = ext;
            meta.header.autoclear &= !AUTOCLEAR_BITMAPS;
            if ext.is_some() {
                meta.header.autoclear |= AUTOCLEAR_BITMAPS;
            }
            before
        };
        if let Err(error) = self.write_header().await {
            self.meta.lock().header = before;
            return Err(Failure::os("Failed to update the bitmap directory", &error));
        }
        let mut frees = Vec::new();
        if let Some(ext) = before.bitmaps {
            frees.push(Free { offset: ext.directory_offset, len: ext.directory_size });
        }
        for entry in old.iter().filter(|entry| new.iter().all(|kept| kept.table_offset != entry.table_offset))
        {
            for word in self.table(entry).await.unwrap_or_default() {
                if word & OFFSET != 0 {
                    frees.push(Free { offset: word & OFFSET, len: self.geometry.cluster_size() });
                }
            }
            frees.push(Free { offset: entry.table_offset, len: u64::from(entry.table_size).max(1) * 8 });
        }
        self.meta.lock().frees.extend(frees);
        Ok(())
    }

    /// References of the stored bitmaps, for counting.
    pub(super) async fn count_bitmaps(&self, header: &Header, walk: &mut Walk) -> IoResult {
        let Some(ext) = header.bitmaps else { return Ok(()) };
        let Ok(entries) = self.directory(header).await else {
            walk.bad.push(("bitmap directory".into(), ext.directory_offset));
            return Ok(());
        };
        walk.counts.add(ext.directory_offset, ext.directory_size);
        for entry in entries {
            match self.table(&entry).await {
                Ok(table) => {
                    walk.counts.add(entry.table_offset, u64::from(entry.table_size).max(1) * 8);
                    for word in table.into_iter().filter(|word| word & OFFSET != 0) {
                        walk.counts.add(word & OFFSET, self.geometry.cluster_size());
                    }
                }
                Err(_) => walk.bad.push((format!("table of bitmap '{}'", entry.name), entry.table_offset)),
            }
        }
        Ok(())
    }

    /// For ImageInfoSpecific.
    pub(super) fn stored_bitmap_infos(&self) -> Vec<Value> {
        let tell = |bitmap: &Arc<DirtyBitmap>| {
            let mut flags = Vec::new();
            if bitmap.is_inconsistent() || !self.read_only.load(std::sync::atomic::Ordering::Acquire) {
                flags.push("in-use");
            }
            if bitmap.is_enabled() {
                flags.push("auto");
            }
            json!({"name": bitmap.name(), "granularity": bitmap.granularity(), "flags": flags})
        };
        self.context.bitmaps.list().iter().filter(|bitmap| bitmap.is_persistent()).map(tell).collect()
    }
}

impl StoredBitmaps for Qcow2 {
    fn can_store<'a>(&'a self, name: &'a str, granularity: u32) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            if self.meta.lock().header.version < 3 {
                bail!("Cannot store dirty bitmaps in qcow2 v2 files");
            }
            if name.is_empty() || name.len() > 1023 {
                bail!("Bitmap name is longer than 1023 bytes");
            }
            if !(9..=31).contains(&granularity.trailing_zeros()) {
                bail!("Granularity of bitmap '{name}' is out of range");
            }
            let stored = self.context.bitmaps.list().iter().filter(|bitmap| bitmap.is_persistent()).count();
            if stored >= MAX_BITMAPS {
                bail!("Maximum number of persistent bitmaps is already reached");
            }
            let bits = self.size().div_ceil(u64::from(granularity));
            if bits.div_ceil(8).div_ceil(self.geometry.cluster_size()) > MAX_TABLE {
                bail!("Too much space will be occupied by the bitmap. Use larger granularity");
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let header = self.meta.lock().header.clone();
            let old = self.directory(&header).await?;
            let new: Vec<Entry> = old.iter().filter(|entry| entry.name != name).cloned().collect();
            if new.len() == old.len() {
                return Ok(());
            }
            self.replace_directory(old, new).await
        })
    }
}
