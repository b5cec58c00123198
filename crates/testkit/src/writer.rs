//! A disk that a guest writes to (`bin/writer.rs`), and what its images must hold.

use crate::bench::Bench;
use crate::guests::{self, Result};
use crate::record::{BLOCK, Plan, Record};
use std::process::Command;
use std::time::Instant;

/// The program `writer`, built without shared libraries.
pub(crate) fn program() -> Result<Vec<u8>> {
    let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    compiler.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    guests::program("writer", &mut compiler, "src/bin/writer.rs")
}

/// A disk of the guest that is being written to.
#[derive(Clone, Debug)]
pub struct Writer {
    pub plan: Plan,
    disk: String,
}

impl Writer {
    /// Starts to write to `/dev/DISK` (several with commas between them, each request to all
    /// of them in turn), with `flags` of the program.
    #[track_caller]
    pub fn start(bench: &mut Bench, disk: &str, plan: Plan, flags: &str) -> Writer {
        let zeros = if plan.zeros { "zeros" } else { "" };
        let Plan { seed, threads, blocks, .. } = plan;
        for name in disk.split(',') {
            bench.until(&format!("test -b /dev/{name} && echo there"), "there");
        }
        let output = if flags.contains("durable") { "/dev/ttyS0".into() } else { format!("/tmp/{disk}.log") };
        bench.shell(&format!(
            "(writer run {disk} {seed} {threads} {blocks} {zeros} {flags} </dev/null >{output} 2>&1 &)"
        ));
        Writer { plan, disk: disk.into() }
    }

    #[track_caller]
    fn ask(&self, bench: &mut Bench, command: &str) -> String {
        let disk = &self.disk;
        bench.shell(&format!("until test -S /tmp/{disk}; do sleep 0.1; done; writer {disk} {command}"))
    }

    /// The requests that an answer tells of; its digest must be that of a disk after them.
    #[track_caller]
    fn told(&self, answer: &str, word: &str) -> Vec<u64> {
        let mut words = answer.split_whitespace();
        assert_eq!(words.next(), Some(word), "{}: {answer}", self.disk);
        let done = numbers(words.next());
        let digest = after(self.plan, &done).digest().to_string();
        assert_eq!(words.next(), Some(digest.as_str()), "{}: {answer}", self.disk);
        done
    }

    /// Stops writing; requests done by each thread, all of them flushed.
    #[track_caller]
    pub fn pause(&self, bench: &mut Bench) -> Vec<u64> {
        let answer = self.ask(bench, "pause");
        self.told(&answer, "PAUSED")
    }

    /// Stops writing and lets the guest compare the whole disk with what it wrote; requests
    /// done by each thread.
    #[track_caller]
    pub fn verify(&self, bench: &mut Bench) -> Vec<u64> {
        let answer = self.ask(bench, "verify");
        self.told(&answer, "GOOD")
    }

    #[track_caller]
    pub fn resume(&self, bench: &mut Bench) {
        assert_eq!(self.ask(bench, "resume"), "WRITING");
    }

    /// Ends the program, so that its disk is in no use.
    #[track_caller]
    pub fn quit(&self, bench: &mut Bench) {
        assert_eq!(self.ask(bench, "quit"), "");
        bench.until(&format!("test -S /tmp/{} || echo gone", self.disk), "gone");
    }

    /// As [`Writer::verify`], and goes on writing.
    #[track_caller]
    pub fn check(&self, bench: &mut Bench) {
        self.verify(bench);
        self.resume(bench);
    }

    /// Requests done so far by each thread, none of which failed.
    #[track_caller]
    pub fn progress(&self, bench: &mut Bench) -> Vec<u64> {
        let answer = self.ask(bench, "state");
        let mut words = answer.split_whitespace();
        assert_eq!(words.next(), Some("STATE"), "{}: {answer}", self.disk);
        let done = numbers(words.next());
        assert_eq!(words.next(), Some("[]"), "{}: {answer}", self.disk);
        done
    }

    /// Waits until each thread has done so many more requests.
    #[track_caller]
    pub fn more(&self, bench: &mut Bench, requests: u64) {
        let end = Instant::now() + crate::linux::BOOT;
        let before = self.progress(bench);
        loop {
            let now = self.progress(bench);
            if now.iter().zip(&before).all(|(now, before)| *now >= before + requests) {
                return;
            }
            assert!(Instant::now() < end, "{}: {before:?} requests, then {now:?} and no more", self.disk);
        }
    }

    /// Requests of each thread that an image holds: exactly the first ones, none missing.
    #[track_caller]
    pub fn moment(&self, bytes: &[u8]) -> Vec<u64> {
        moment(self.plan, bytes).unwrap_or_else(|e| panic!("{}: {e}", self.disk))
    }

    /// An image is as so many requests of each thread leave it. ([`Writer::moment`] does not know of the
    /// last ones if they wrote zeros over zeros.)
    #[track_caller]
    pub fn is_after(&self, done: &[u64], bytes: &[u8]) {
        is_after(self.plan, done, bytes).unwrap_or_else(|e| panic!("{}: {e}", self.disk));
    }
}

fn numbers(list: Option<&str>) -> Vec<u64> {
    list.unwrap_or_default().split(',').filter_map(|word| word.parse().ok()).collect()
}

/// A disk after `done` requests of each thread.
pub fn after(plan: Plan, done: &[u64]) -> Record {
    let mut record = Record::new(plan);
    for (thread, count) in done.iter().enumerate() {
        (0..*count).for_each(|_| record.step(thread));
    }
    record
}

/// The request that each block is from; an error if it could be from none.
fn found(plan: Plan, bytes: &[u8]) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for (index, block) in (0..plan.blocks).zip(bytes.chunks_exact(BLOCK)) {
        let number = plan.parse(block, index)?;
        let request = plan.request((index / plan.part()) as usize, number);
        if number > 0 && !(request.first..request.first + request.count).contains(&index) {
            return Err(format!("block {index} is said to be of request {number}, which is {request:?}"));
        }
        found.push(number);
    }
    if found.len() as u64 == plan.blocks { Ok(found) } else { Err(format!("{} blocks only", found.len())) }
}

/// How many requests of each thread a disk holds, if it holds just the first ones.
pub fn moment(plan: Plan, bytes: &[u8]) -> Result<Vec<u64>> {
    /// The last requests may have been of zeros, or hidden by such.
    const BEYOND: usize = 64;
    let found = found(plan, bytes)?;
    let mut record = Record::new(plan);
    for thread in 0..plan.threads {
        let part = thread * plan.part() as usize..(thread + 1) * plan.part() as usize;
        let newest = found[part.clone()].iter().copied().max().unwrap_or(0);
        (0..newest).for_each(|_| record.step(thread));
        let differs = |record: &Record| part.clone().find(|at| found[*at] != record.last[*at]);
        let Some(first) = differs(&record) else { continue };
        let wrong = format!(
            "thread {thread}, newest request {newest}: block {first} is of request {} and should be of {}",
            found[first], record.last[first]
        );
        let mut beyond = 0..BEYOND;
        if !beyond.any(|_| {
            record.step(thread);
            differs(&record).is_none()
        }) {
            return Err(wrong);
        }
    }
    Ok(record.done)
}

fn is_after(plan: Plan, done: &[u64], bytes: &[u8]) -> Result<()> {
    let (found, wanted) = (found(plan, bytes)?, after(plan, done).last);
    match found.iter().zip(&wanted).position(|(have, want)| have != want) {
        None => Ok(()),
        Some(at) => Err(format!(
            "block {at} is of request {} and should be of {} after {done:?}",
            found[at], wanted[at]
        )),
    }
}

/// A disk holds at least so many requests of each thread, and of later ones any. (For plans
/// without zeros.)
pub fn holds(plan: Plan, bytes: &[u8], done: &[u64]) -> Result<()> {
    let wanted = after(plan, done).last;
    for (index, (have, want)) in found(plan, bytes)?.iter().zip(&wanted).enumerate() {
        if have < want {
            return Err(format!("block {index} is of request {have} and should be of {want} or later"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { seed: 7, threads: 2, blocks: 64, zeros: true };

    /// A disk as [`Record`] tells.
    fn disk(record: &Record) -> Vec<u8> {
        let mut bytes = vec![0; record.last.len() * BLOCK];
        for ((index, block), number) in (0..).zip(bytes.chunks_exact_mut(BLOCK)).zip(&record.last) {
            if *number > 0 {
                record.plan.fill(block, index, *number);
            }
        }
        bytes
    }

    #[test]
    fn a_moment_is_told_by_the_bytes() {
        for done in [[0, 0], [1, 0], [5, 9], [100, 101], [1000, 3]] {
            let record = after(PLAN, &done);
            let told = moment(PLAN, &disk(&record)).unwrap();
            assert_eq!(after(PLAN, &told).last, record.last);
            assert_eq!(is_after(PLAN, &done, &disk(&record)), Ok(()));
        }
    }

    #[test]
    fn what_is_wrong_is_found() {
        let plan = Plan { zeros: false, ..PLAN };
        let (early, late) = (after(plan, &[50, 50]), after(plan, &[60, 50]));
        let good = disk(&late);
        assert_eq!(moment(plan, &good), Ok(vec![60, 50]));
        assert!(is_after(plan, &[61, 50], &good).is_err() && is_after(plan, &[60, 49], &good).is_err());
        let changed = (0..64).find(|at| early.last[*at] != late.last[*at] && late.last[*at] != 60).unwrap();
        let place = changed * BLOCK..(changed + 1) * BLOCK;
        let mut stale = good.clone();
        stale[place.clone()].copy_from_slice(&disk(&early)[place.clone()]);
        assert!(moment(plan, &stale).is_err() && holds(plan, &stale, &[60, 50]).is_err());
        assert_eq!(holds(plan, &stale, &[50, 50]), Ok(()));
        let mut torn = good.clone();
        torn[place.end - 1] ^= 1;
        assert!(found(plan, &torn).is_err());
        let mut moved = good.clone();
        moved.copy_within(place, (changed + 1) % 64 * BLOCK);
        assert!(found(plan, &moved).is_err() && found(plan, &good[..BLOCK * 63]).is_err());
    }
}
