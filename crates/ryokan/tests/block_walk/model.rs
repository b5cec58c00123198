//! What a disk may hold, by the requests that were sent to it.

pub const SECTOR: u64 = 512;

/// A request on its way, or one that a flush still has to make durable.
#[derive(Clone, Copy)]
pub struct Change {
    pub cookie: u64,
    pub first: usize,
    pub end: usize,
    pub durable: bool,
}

pub struct Model {
    /// For each sector, what it was filled with and by which request (`None`: by anything): what
    /// was flushed last, and what came after it.
    sectors: Vec<Vec<(u64, Option<u8>)>>,
    /// A size that it may have got, as no answer has come.
    pub other_size: Option<u64>,
    under_way: Vec<Change>,
    reads: Vec<Change>,
    /// Answered, but not flushed.
    answered: Vec<Change>,
    /// Flushes under way, and what they make durable.
    flushes: Vec<(u64, Vec<Change>)>,
}

impl Model {
    pub fn new(size: u64) -> Model {
        Model {
            sectors: vec![vec![(0, Some(0))]; (size / SECTOR) as usize],
            other_size: None,
            under_way: Vec::new(),
            reads: Vec::new(),
            answered: Vec::new(),
            flushes: Vec::new(),
        }
    }

    pub fn size(&self) -> u64 {
        self.sectors.len() as u64 * SECTOR
    }

    pub fn in_flight(&self) -> usize {
        self.under_way.len() + self.reads.len() + self.flushes.len()
    }

    /// Of requests that overlap, none is told to be the later one.
    pub fn is_free(&self, first: usize, end: usize) -> bool {
        self.under_way.iter().chain(&self.reads).all(|one| one.end <= first || end <= one.first)
    }

    pub fn change(&mut self, change: Change, with: Option<u8>) {
        self.sectors[change.first..change.end].iter_mut().for_each(|held| held.push((change.cookie, with)));
        self.under_way.push(change);
    }

    pub fn read(&mut self, read: Change) {
        self.reads.push(read);
    }

    pub fn flush(&mut self, cookie: u64) {
        self.flushes.push((cookie, self.answered.clone()));
    }

    /// A new size, when nothing is under way; what is new is zero.
    pub fn resize(&mut self, size: u64, cookie: u64) {
        self.sectors.resize((size / SECTOR) as usize, vec![(cookie, Some(0))]);
    }

    /// Takes note of an answer; what was read, if it is one to a read.
    pub fn reply(&mut self, cookie: u64) -> Option<Change> {
        if let Some(at) = self.reads.iter().position(|one| one.cookie == cookie) {
            return Some(self.reads.swap_remove(at));
        }
        if let Some(at) = self.flushes.iter().position(|flush| flush.0 == cookie) {
            let (_, done) = self.flushes.swap_remove(at);
            self.answered.retain(|one| !done.iter().any(|other| other.cookie == one.cookie));
            done.iter().for_each(|one| self.settle(one));
            return None;
        }
        let at = self.under_way.iter().position(|one| one.cookie == cookie).unwrap();
        let change = self.under_way.swap_remove(at);
        match change.durable {
            true => self.settle(&change),
            false => self.answered.push(change),
        }
        None
    }

    /// All that was answered is durable.
    pub fn closed(&mut self) {
        std::mem::take(&mut self.answered).iter().for_each(|one| self.settle(one));
    }

    /// What came before is gone.
    fn settle(&mut self, change: &Change) {
        for held in self.sectors.iter_mut().take(change.end).skip(change.first) {
            held.retain(|(cookie, _)| *cookie >= change.cookie);
        }
    }

    /// What a running disk shows, where nothing is under way.
    pub fn shows(&self, first: usize, bytes: &[u8]) -> Result<(), String> {
        for (at, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let held = &self.sectors[first + at];
            if !held.last().is_some_and(|(_, with)| known(sector, *with)) {
                return Err(format!("sector {} shows {}.., had {held:?}", first + at, sector[0]));
            }
        }
        Ok(())
    }

    /// What is left of a disk whose process has ended.
    pub fn compare(&self, bytes: &[u8]) -> Result<(), String> {
        let size = bytes.len() as u64;
        if size != self.size() && Some(size) != self.other_size {
            return Err(format!("{size} bytes, not {} or {:?}", self.size(), self.other_size));
        }
        let new = vec![(0, Some(0))];
        for (at, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let held = self.sectors.get(at).unwrap_or(&new);
            if !held.iter().any(|(_, with)| known(sector, *with)) {
                return Err(format!("sector {at} has {}.., may have {held:?}", sector[0]));
            }
        }
        Ok(())
    }
}

fn known(sector: &[u8], with: Option<u8>) -> bool {
    with.is_none_or(|with| sector.iter().all(|byte| *byte == with))
}
