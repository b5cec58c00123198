//! Internal snapshots.

use super::Qcow2;
use super::entry::OFFSET;
use super::header::Header;
use crate::crypto::SECTOR;
use crate::driver::Layer as _;
use crate::driver::{Snapshot, Snapshots};
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};
use std::sync::atomic::Ordering;

/// Longest snapshot table accepted, in bytes.
const MAX_TABLE: u64 = 64 << 20;

/// A snapshot as the image has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    pub snapshot: Snapshot,
    pub l1_offset: u64,
    /// Entries.
    pub l1_size: u32,
    /// An L1 table that is not in the file yet.
    pub l1: Option<Vec<u64>>,
    pub disk_size: Option<u64>,
    /// Extra data behind the fields that are known.
    unknown: Vec<u8>,
}

fn be(data: &[u8]) -> u64 {
    data.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub(super) async fn read_table(file: &Child, header: &Header) -> Result<Vec<Stored>> {
    let mut all = Vec::new();
    let mut at = header.snapshots_offset;
    for _ in 0..header.snapshots {
        let head = file.read_vec(at, 40, 40).await;
        let Ok(head) = head else { bail!("Could not read snapshots: the table ends early") };
        let (id_len, name_len) = (be(&head[12..14]), be(&head[14..16]));
        let extra_len = be(&head[36..40]);
        let rest = extra_len + id_len + name_len;
        if extra_len > 1024 || at + 40 + rest - header.snapshots_offset > MAX_TABLE {
            bail!("Could not read snapshots: the table is too large");
        }
        let Ok(body) = file.read_vec(at + 40, rest, 1 << 20).await else {
            bail!("Could not read snapshots: the table ends early")
        };
        let (extra, names) = body.split_at(extra_len as usize);
        let (id, name) = names.split_at(id_len as usize);
        let long = |from: usize| extra.get(from..from + 8).map(be);
        let l1_size = be(&head[8..12]) as u32;
        if u64::from(l1_size) * 8 > super::header::MAX_L1_BYTES {
            bail!("Snapshot L1 table too large");
        }
        let snapshot = Snapshot {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            date_sec: be(&head[16..20]) as u32,
            date_nsec: be(&head[20..24]) as u32,
            vm_clock_nsec: be(&head[24..32]),
            vm_state_size: long(0).unwrap_or_else(|| be(&head[32..36])),
            icount: long(16).filter(|count| *count != u64::MAX),
        };
        all.push(Stored {
            snapshot,
            l1_offset: be(&head[..8]),
            l1_size,
            l1: None,
            disk_size: long(8),
            unknown: extra.get(24..).unwrap_or_default().to_vec(),
        });
        at = (at + 40 + rest).next_multiple_of(8);
    }
    Ok(all)
}

pub(super) fn encode_table(all: &[Stored]) -> Vec<u8> {
    let mut out = Vec::new();
    for one in all {
        let snapshot = &one.snapshot;
        out.extend(one.l1_offset.to_be_bytes());
        out.extend(one.l1_size.to_be_bytes());
        out.extend((snapshot.id.len() as u16).to_be_bytes());
        out.extend((snapshot.name.len() as u16).to_be_bytes());
        out.extend(snapshot.date_sec.to_be_bytes());
        out.extend(snapshot.date_nsec.to_be_bytes());
        out.extend(snapshot.vm_clock_nsec.to_be_bytes());
        let short = u32::try_from(snapshot.vm_state_size).unwrap_or(0);
        out.extend(short.to_be_bytes());
        out.extend((24 + one.unknown.len() as u32).to_be_bytes());
        out.extend(snapshot.vm_state_size.to_be_bytes());
        out.extend(one.disk_size.unwrap_or(0).to_be_bytes());
        out.extend(snapshot.icount.unwrap_or(u64::MAX).to_be_bytes());
        out.extend(&one.unknown);
        out.extend(snapshot.id.as_bytes());
        out.extend(snapshot.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

impl Qcow2 {
    fn may_snapshot(&self) -> IoResult {
        if self.read_only.load(Ordering::Acquire) {
            return Err(errno(libc::EPERM));
        }
        if self.data.is_some() {
            return Err(errno(libc::ENOTSUP));
        }
        self.alive()
    }

    async fn create_snapshot(&self, mut snapshot: Snapshot) -> IoResult {
        self.may_snapshot()?;
        let mut plan = self.present().await?;
        if plan.snapshots.len() >= super::header::MAX_SNAPSHOTS as usize {
            return Err(errno(libc::EFBIG));
        }
        if snapshot.id.is_empty() {
            let highest = plan.snapshots.iter().filter_map(|one| one.snapshot.id.parse::<u64>().ok()).max();
            snapshot.id = (highest.unwrap_or(0) + 1).to_string();
        }
        if plan.snapshots.iter().any(|one| one.snapshot.id == snapshot.id) {
            return Err(errno(libc::EEXIST));
        }
        let l1 = plan.l1.iter().map(|word| word & OFFSET).collect();
        let disk_size = Some(plan.header.size);
        plan.snapshots.push(Stored { snapshot, disk_size, l1: Some(l1), ..Stored::default() });
        self.install(plan).await
    }

    async fn delete_snapshot(&self, id: &str) -> IoResult {
        self.may_snapshot()?;
        let mut plan = self.present().await?;
        let at =
            plan.snapshots.iter().position(|one| one.snapshot.id == id).ok_or_else(|| errno(libc::ENOENT))?;
        plan.snapshots.remove(at);
        self.install(plan).await
    }

    async fn goto_snapshot(&self, id: &str) -> IoResult {
        self.may_snapshot()?;
        let mut plan = self.present().await?;
        let stored =
            plan.snapshots.iter().find(|one| one.snapshot.id == id).ok_or_else(|| errno(libc::ENOENT))?;
        let words = super::open::read_words(&self.file, stored.l1_offset, u64::from(stored.l1_size)).await;
        let mut l1 = words.map_err(|_| errno(libc::EIO))?;
        let size = stored.disk_size.filter(|size| *size != 0).unwrap_or(plan.header.size);
        let needed = plan.header.l1_entries_for(size).max(l1.len() as u64);
        if size > i64::MAX as u64 || needed * 8 > super::header::MAX_L1_BYTES {
            return Err(errno(libc::EFBIG));
        }
        l1.resize(needed as usize, 0);
        plan.l1 = l1;
        plan.header.size = size;
        self.install(plan).await?;
        // Everything may have changed.
        self.context.bitmaps.resize(size);
        Ok(())
    }

    /// Where VM state begins in the mapped space.
    fn vm_state_start(&self) -> u64 {
        let geometry = self.geometry;
        let span = 1u64 << (geometry.cluster_bits + geometry.l2_bits);
        self.size().div_ceil(span) * span
    }

    async fn write_vm_state(&self, offset: u64, data: &[u8]) -> IoResult {
        self.may_snapshot()?;
        let start = self.vm_state_start().checked_add(offset).ok_or_else(|| errno(libc::EFBIG))?;
        let end = start.checked_add(data.len() as u64).ok_or_else(|| errno(libc::EFBIG))?;
        let entries = self.meta.lock().header.l1_entries_for(end);
        if entries > self.meta.lock().l1.len() as u64 {
            // Some room ahead, as every growth writes all tables anew.
            self.grow_l1(entries + entries / 4 + 16).await?;
        }
        let _epoch = self.epochs.enter();
        if self.crypto.is_none() {
            return self.write_guest(start, data).await;
        }
        let (mut whole, skip) = self.around(start, data.len()).await?;
        whole[skip..skip + data.len()].copy_from_slice(data);
        self.write_guest(start - skip as u64, &whole).await
    }

    /// The whole sectors around a range, and where in them it begins: what encryption needs.
    async fn around(&self, start: u64, len: usize) -> IoResult<(Vec<u8>, usize)> {
        let skip = (start % SECTOR) as usize;
        let mut whole = vec![0; (skip + len).next_multiple_of(SECTOR as usize)];
        self.read_guest(start - skip as u64, &mut whole).await?;
        Ok((whole, skip))
    }
}

impl Snapshots for Qcow2 {
    fn list(&self) -> Vec<Snapshot> {
        self.snapshots.lock().iter().map(|stored| stored.snapshot.clone()).collect()
    }

    fn create<'a>(&'a self, snapshot: Snapshot) -> Fut<'a, IoResult> {
        Box::pin(self.create_snapshot(snapshot))
    }

    fn delete<'a>(&'a self, id: &'a str) -> Fut<'a, IoResult> {
        Box::pin(self.delete_snapshot(id))
    }

    fn goto<'a>(&'a self, id: &'a str) -> Fut<'a, IoResult> {
        Box::pin(self.goto_snapshot(id))
    }

    fn read_vmstate<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let start = self.vm_state_start().checked_add(offset).ok_or_else(|| errno(libc::EINVAL))?;
            if self.crypto.is_none() {
                return self.read_guest(start, buf).await;
            }
            let (whole, skip) = self.around(start, buf.len()).await?;
            buf.copy_from_slice(&whole[skip..skip + buf.len()]);
            Ok(())
        })
    }

    fn write_vmstate<'a>(&'a self, offset: u64, data: &'a [u8]) -> Fut<'a, IoResult> {
        Box::pin(self.write_vm_state(offset, data))
    }
}
