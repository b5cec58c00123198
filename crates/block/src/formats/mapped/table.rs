//! Tables in memory: read page by page, changed there, written back by `sync`.

use super::Shape;
use crate::types::*;
use std::collections::HashMap;

/// How a word stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Le32,
    Be32,
    Le64,
    Be64,
}

impl Word {
    /// Width in bytes.
    pub fn width(self) -> u64 {
        match self {
            Word::Le32 | Word::Be32 => 4,
            Word::Le64 | Word::Be64 => 8,
        }
    }

    pub fn read(self, bytes: &[u8]) -> Vec<u64> {
        let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
        let eight = |b: &[u8]| [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]];
        let one = |b: &[u8]| match self {
            Word::Le32 => u32::from_le_bytes(four(b)).into(),
            Word::Be32 => u32::from_be_bytes(four(b)).into(),
            Word::Le64 => u64::from_le_bytes(eight(b)),
            Word::Be64 => u64::from_be_bytes(eight(b)),
        };
        bytes.chunks_exact(self.width() as usize).map(one).collect()
    }

    pub fn write(self, words: &[u64]) -> Vec<u8> {
        let mut out = Vec::with_capacity(words.len() * self.width() as usize);
        for &word in words {
            match self {
                Word::Le32 => out.extend((word as u32).to_le_bytes()),
                Word::Be32 => out.extend((word as u32).to_be_bytes()),
                Word::Le64 => out.extend(word.to_le_bytes()),
                Word::Be64 => out.extend(word.to_be_bytes()),
            }
        }
        out
    }
}

/// Where the tables are.
pub(crate) enum Root {
    /// One table at this offset.
    Flat(u64),
    Levels(Levels),
}

/// A directory whose words name tables.
pub(crate) struct Levels {
    /// Offset of the directory.
    pub offset: u64,
    pub words: Vec<u64>,
    /// What one unit of a directory word is, in bytes.
    pub unit: u64,
    /// Words of one table.
    pub table: u64,
    /// Alignment of new tables in bytes.
    pub align: u64,
    /// A second directory with tables of its own that say the same.
    pub twin: Option<(u64, Vec<u64>)>,
}

/// Words of a table read and written together.
const PAGE: u64 = 4096;

/// Pages kept in memory (16 MiB of 4-byte words).
const KEPT: usize = 1024;

pub(super) struct Page {
    words: Vec<u64>,
    place: u64,
    twin: Option<u64>,
    /// Changed words.
    dirty: Option<(usize, usize)>,
    /// Being written.
    saving: bool,
    used: u64,
}

pub(super) struct State {
    pub root: Root,
    pages: HashMap<u64, Page>,
    root_dirty: Option<(usize, usize)>,
    pub per_page: u64,
    pub end: u64,
    clock: u64,
}

/// What a look-up found.
pub(super) enum Found {
    Word(u64),
    /// No table there: the cluster is absent.
    NoTable,
    /// The page must be read from here.
    Missing {
        place: u64,
        twin: Option<u64>,
        words: u64,
    },
}

/// What a flush writes.
#[derive(Default)]
pub(super) struct Capture {
    pub pages: Vec<(u64, (usize, usize))>,
    pub pieces: Vec<(u64, Vec<u8>)>,
    pub root: Vec<(u64, Vec<u8>)>,
    root_range: Option<(usize, usize)>,
}

impl Capture {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.root.is_empty()
    }
}

fn join(range: &mut Option<(usize, usize)>, from: usize, to: usize) {
    *range = Some(match *range {
        None => (from, to),
        Some((a, b)) => (a.min(from), b.max(to)),
    });
}

impl State {
    pub fn new(root: Root, end: u64) -> Self {
        let per_page = match &root {
            Root::Flat(_) => PAGE,
            Root::Levels(levels) => levels.table.clamp(1, PAGE),
        };
        State { root, pages: HashMap::new(), root_dirty: None, per_page, end, clock: 0 }
    }

    pub fn find(&mut self, slot: u64, shape: &Shape) -> IoResult<Found> {
        if slot >= shape.slots {
            return Err(errno(libc::EIO));
        }
        let number = slot / self.per_page;
        self.clock += 1;
        if let Some(page) = self.pages.get_mut(&number) {
            page.used = self.clock;
            let word = page.words.get((slot % self.per_page) as usize);
            return word.copied().map(Found::Word).ok_or_else(|| errno(libc::EIO));
        }
        let first = number * self.per_page;
        let words = self.per_page.min(shape.slots - first);
        let width = shape.word.width();
        let outside = || errno(libc::EIO);
        match &self.root {
            Root::Flat(offset) => {
                let place = offset.checked_add(first * width).ok_or_else(outside)?;
                Ok(Found::Missing { place, twin: None, words })
            }
            Root::Levels(levels) => {
                let (index, inner) = ((first / levels.table) as usize, first % levels.table * width);
                let place = |list: &[u64]| {
                    let word = list.get(index).copied().unwrap_or(0);
                    match word {
                        0 => Ok(None),
                        _ => word
                            .checked_mul(levels.unit)
                            .and_then(|at| at.checked_add(inner))
                            .map(Some)
                            .ok_or_else(outside),
                    }
                };
                let twin = match &levels.twin {
                    Some((_, list)) => place(list)?,
                    None => None,
                };
                Ok(match place(&levels.words)? {
                    None => Found::NoTable,
                    Some(at) => Found::Missing { place: at, twin, words: self.per_page },
                })
            }
        }
    }

    /// Takes in a page that was read, and lets old ones go.
    pub fn insert(&mut self, number: u64, place: u64, twin: Option<u64>, words: Vec<u64>) {
        let used = self.clock;
        self.pages.entry(number).or_insert(Page { words, place, twin, dirty: None, saving: false, used });
        if self.pages.len() > KEPT {
            let clean = self
                .pages
                .iter()
                .filter(|(key, page)| **key != number && page.dirty.is_none() && !page.saving);
            let mut old: Vec<(u64, u64)> = clean.map(|(key, page)| (page.used, *key)).collect();
            old.sort_unstable();
            for (_, key) in old.iter().take(KEPT / 4) {
                self.pages.remove(key);
            }
        }
    }

    pub fn is_loaded(&self, number: u64) -> bool {
        self.pages.contains_key(&number)
    }

    /// Whether two words of the directory name the same table.
    pub fn has_shared_tables(&self) -> bool {
        let Root::Levels(levels) = &self.root else { return false };
        let mut words: Vec<u64> = levels.words.iter().copied().filter(|word| *word != 0).collect();
        words.sort_unstable();
        words.windows(2).any(|pair| pair[0] == pair[1])
    }

    pub fn is_crowded(&self) -> bool {
        self.pages.len() > KEPT
    }

    /// Sets the word of a loaded page; `false` if it is not loaded.
    pub fn set(&mut self, slot: u64, word: u64) -> bool {
        let at = (slot % self.per_page) as usize;
        let Some(page) = self.pages.get_mut(&(slot / self.per_page)) else { return false };
        let Some(place) = page.words.get_mut(at) else { return false };
        *place = word;
        join(&mut page.dirty, at, at + 1);
        true
    }

    /// A new table for `slot`, at `place` (and `twin`), all zero in the file.
    pub fn add_table(&mut self, slot: u64, place: u64, twin: Option<u64>) -> IoResult {
        let Root::Levels(levels) = &mut self.root else { return Err(errno(libc::EIO)) };
        let index = (slot / levels.table) as usize;
        let entry = levels.words.get_mut(index).ok_or_else(|| errno(libc::EIO))?;
        *entry = place / levels.unit;
        if let (Some((_, list)), Some(twin)) = (&mut levels.twin, twin) {
            *list.get_mut(index).ok_or_else(|| errno(libc::EIO))? = twin / levels.unit;
        }
        join(&mut self.root_dirty, index, index + 1);
        Ok(())
    }

    /// Everything that changed, as it is to be written.
    pub fn capture(&mut self, shape: &Shape) -> Capture {
        let mut capture = Capture::default();
        let width = shape.word.width();
        for (number, page) in &mut self.pages {
            let Some((from, to)) = page.dirty.take() else { continue };
            page.saving = true;
            let bytes = shape.word.write(&page.words[from..to]);
            let shift = from as u64 * width;
            if let Some(twin) = page.twin {
                capture.pieces.push((twin + shift, bytes.clone()));
            }
            capture.pieces.push((page.place + shift, bytes));
            capture.pages.push((*number, (from, to)));
        }
        if let (Some((from, to)), Root::Levels(levels)) = (self.root_dirty.take(), &self.root) {
            let shift = from as u64 * width;
            if let Some((offset, words)) = &levels.twin {
                capture.root.push((offset + shift, shape.word.write(&words[from..to])));
            }
            capture.root.push((levels.offset + shift, shape.word.write(&levels.words[from..to])));
            capture.root_range = Some((from, to));
        }
        capture.pieces.sort_by_key(|(at, _)| *at);
        capture
    }

    /// A capture was written, or (`failed`) must be written again.
    pub fn captured(&mut self, capture: &Capture, failed: bool) {
        for (number, (from, to)) in &capture.pages {
            if let Some(page) = self.pages.get_mut(number) {
                page.saving = false;
                if failed {
                    join(&mut page.dirty, *from, *to);
                }
            }
        }
        if let (true, Some((from, to))) = (failed, capture.root_range) {
            join(&mut self.root_dirty, from, to);
        }
    }
}
