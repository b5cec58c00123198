//! `quorum`: several children with the same data; reads are decided by vote.

use super::together::all;
use crate::driver::{Driver, Kind, Layer, Open, Siblings};
use crate::graph::Child;
use crate::notice::Notice;
use crate::types::*;
use arc_swap::ArcSwap;
use base::failure::strerror;
use base::{Result, bail};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub static DRIVER: Driver = Driver {
    name: "quorum",
    kind: Kind::Filter,
    open,
    reopens: false,
    telling: &["vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern"],
    ..Driver::DEFAULT
};

struct Quorum {
    context: crate::driver::Context,
    children: ArcSwap<Vec<Child>>,
    /// Number of the next child that is added.
    next: AtomicUsize,
    threshold: usize,
    blkverify: bool,
    rewrite: bool,
    fifo: bool,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let list = open.options.take_list("children")?.unwrap_or_default();
        if list.is_empty() {
            bail!("Number of provided children must be 1 or more");
        }
        let threshold = open.options.take_u64("vote-threshold")?.unwrap_or(0) as usize;
        if threshold == 0 {
            bail!("Parameter 'vote-threshold' expects a value >= 1");
        }
        if threshold > list.len() {
            bail!("threshold may not exceed children count");
        }
        let pattern = [("quorum", false), ("fifo", true)];
        let fifo = open.options.take_word("read-pattern", &pattern)?.unwrap_or(false);
        let blkverify = open.options.take_bool("blkverify")?.unwrap_or(false);
        let rewrite = open.options.take_bool("rewrite-corrupted")?.unwrap_or(false);
        if blkverify && (list.len() != 2 || threshold != 2) {
            bail!("blkverify=on can only be set if there are exactly two files and vote-threshold is 2");
        }
        if blkverify && rewrite {
            bail!("rewrite-corrupted=on cannot be used with blkverify=on");
        }
        let mut children = Vec::new();
        for (index, value) in list.into_iter().enumerate() {
            let role = Role::DATA;
            children.push(open.child_from(&format!("children.{index}"), role, value).await?);
        }
        if children.iter().any(|child| child.size() != children[0].size()) {
            bail!("Quorum children have different sizes");
        }
        let context = open.context.clone();
        let next = AtomicUsize::new(children.len());
        let children = ArcSwap::from_pointee(children);
        Ok(Arc::new(Quorum { context, children, next, threshold, blkverify, rewrite, fifo })
            as Arc<dyn Layer>)
    })
}

fn sectors(offset: u64, len: u64) -> (u64, u64) {
    let first = offset / 512;
    (first, (offset + len).div_ceil(512) - first)
}

impl Quorum {
    fn bad(&self, operation: &'static str, child: &Child, error: Option<&io::Error>, range: (u64, u64)) {
        let (sector, sectors) = sectors(range.0, range.1);
        self.context.notices.send(Notice::QuorumReportBad {
            operation,
            error: error.map(strerror),
            node: child.node().name().to_string(),
            sector,
            sectors,
        });
    }

    fn failure(&self, offset: u64, len: u64) {
        let (sector, sectors) = sectors(offset, len);
        let node = &self.context.node_name;
        let graph = self.context.graph.upgrade();
        let device = graph.and_then(|graph| {
            let holds = |one: &crate::Backend| one.node().is_some_and(|root| root.name() == node);
            graph.backends().into_iter().find(holds).map(|one| one.name().to_string())
        });
        let reference = device.filter(|name| !name.is_empty()).unwrap_or_else(|| node.clone());
        self.context.notices.send(Notice::QuorumFailure { reference, sector, sectors });
    }

    async fn read_all(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        let children = self.children.load_full();
        let len = buf.len() as u64;
        let mut good: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut last = None;
        let reads = children.iter().map(|child| {
            let mut data = vec![0; buf.len()];
            Box::pin(async move { child.read(offset, &mut data).await.map(|()| data) })
        });
        let answers = all(reads.collect()).await;
        for ((index, child), answer) in children.iter().enumerate().zip(answers) {
            match answer {
                Ok(data) => good.push((index, data)),
                Err(error) => {
                    self.bad("read", child, Some(&error), (offset, len));
                    last = Some(error);
                }
            }
        }
        if good.len() < self.threshold {
            self.failure(offset, len);
            return Err(last.unwrap_or_else(|| errno(libc::EIO)));
        }
        if self.blkverify && good[0].1 != good[1].1 {
            eprintln!("quorum: contents mismatch at offset {offset:#x}");
            self.failure(offset, len);
            return Err(errno(libc::EIO));
        }
        let mut votes: HashMap<&[u8], usize> = HashMap::new();
        good.iter().for_each(|(_, data)| *votes.entry(data).or_default() += 1);
        let Some((winner, count)) = votes.iter().max_by_key(|(_, count)| **count) else {
            return Err(errno(libc::EIO));
        };
        if *count < self.threshold {
            self.failure(offset, len);
            return Err(errno(libc::EIO));
        }
        buf.copy_from_slice(winner);
        for (index, _) in good.iter().filter(|(_, data)| data != winner) {
            let child = &children[*index];
            self.bad("read", child, None, (offset, len));
            if self.rewrite {
                // A repair that fails is found again by the next read.
                let _ = child.write(offset, winner, WriteFlags::empty()).await;
            }
        }
        Ok(())
    }

    async fn read_first(&self, offset: u64, buf: &mut [u8]) -> IoResult {
        let mut last = errno(libc::EIO);
        for child in self.children.load_full().iter() {
            match child.read(offset, buf).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.bad("read", child, Some(&error), (offset, buf.len() as u64));
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Judges the answers of all children to a change.
    fn tally(
        &self,
        operation: &'static str,
        (children, answers): (&[Child], Vec<IoResult>),
        offset: u64,
        len: u64,
    ) -> IoResult {
        let mut good = 0;
        let mut last = None;
        for (child, answer) in children.iter().zip(answers) {
            match answer {
                Ok(()) => good += 1,
                Err(error) => {
                    self.bad(operation, child, Some(&error), (offset, len));
                    last = Some(error);
                }
            }
        }
        match last {
            Some(error) if good < self.threshold => {
                self.failure(offset, len);
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

impl Siblings for Quorum {
    fn next(&self, size: u64) -> Result<String> {
        if self.blkverify {
            bail!("Cannot add a child to a quorum in blkverify mode");
        }
        if size != self.size() {
            bail!("Quorum children have different sizes");
        }
        Ok(format!("children.{}", self.next.load(Ordering::Acquire)))
    }

    fn put(&self, child: Child) {
        self.next.fetch_add(1, Ordering::AcqRel);
        let mut children = self.children.load().to_vec();
        children.push(child);
        self.children.store(Arc::new(children));
    }

    fn take(&self, child: &Child) -> Result<()> {
        let mut children = self.children.load().to_vec();
        if children.len() <= self.threshold {
            bail!("The number of children cannot be lower than the vote threshold {}", self.threshold);
        }
        children.retain(|one| !one.same(child));
        self.children.store(Arc::new(children));
        let last = self.next.load(Ordering::Acquire) - 1;
        if child.name() == format!("children.{last}") {
            self.next.store(last, Ordering::Release);
        }
        Ok(())
    }
}

impl Layer for Quorum {
    fn size(&self) -> u64 {
        self.children.load().first().map_or(0, Child::size)
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if self.fifo { self.read_first(offset, buf).await } else { self.read_all(offset, buf).await }
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let children = self.children.load_full();
            let answers = all(children.iter().map(|one| one.write(offset, data, flags)).collect()).await;
            self.tally("write", (&children, answers), offset, data.len() as u64)
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let children = self.children.load_full();
            let answers =
                all(children.iter().map(|one| one.write_zeroes(offset, len, flags)).collect()).await;
            self.tally("write", (&children, answers), offset, len)
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async move {
            let children = self.children.load_full();
            let answers = all(children.iter().map(Child::flush).collect()).await;
            self.tally("flush", (&children, answers), 0, 0)
        })
    }

    /// Zeroes where all children say so; the length is that of the shortest answer.
    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let (mut zeroes, mut run) = (0, len);
            let children = self.children.load_full();
            for child in children.iter() {
                match child.block_status(offset, run).await {
                    Ok(status) if status.flags.contains(StatusFlags::ZERO) => {
                        zeroes += 1;
                        run = run.min(status.len);
                    }
                    Ok(status) => run = run.min(status.len),
                    Err(error) => self.bad("read", child, Some(&error), (offset, len)),
                }
            }
            let zero = zeroes == children.len();
            let kind = if zero { StatusFlags::ZERO } else { StatusFlags::DATA };
            Ok(Status { flags: kind | StatusFlags::ALLOCATED, len: run, offset: None })
        })
    }

    fn child_perm(&self, _role: Role, _read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        let extra = if self.rewrite { Perm::WRITE } else { Perm::empty() };
        (perm | extra, shared - Perm::WRITE - Perm::RESIZE)
    }

    fn siblings(&self) -> Option<&dyn Siblings> {
        Some(self)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
