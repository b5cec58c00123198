//! The file system as the guest has left it: read back with distrust.

use super::SECTOR;
use super::layout::Fat;
use super::name::{self, ENTRY, Found};
use super::overlay::Overlay;
use super::tree::{MAX_DEPTH, MAX_ENTRIES};
use std::collections::BTreeMap;
use std::io;

/// Bytes of a directory: enough for as many entries as are looked at, with the longest names.
const MAX_DIRECTORY: u64 = (MAX_ENTRIES * 22 * ENTRY) as u64;

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub dir: bool,
    /// Bytes; 0 for a directory.
    pub size: u64,
    pub chain: Vec<u32>,
}

impl Node {
    /// By which it is known when it moves.
    pub fn first(&self) -> Option<u32> {
        self.chain.first().copied()
    }
}

/// By their paths from the root, parts divided by '/'; a directory comes before what it has.
pub(super) type Tree = BTreeMap<String, Node>;

/// Why the directory of the host is left as it is.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The file system is in the middle of a change, or broken.
    Unsound(String),
    /// The host cannot have it so.
    Refused(String),
    Io(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Io(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Unsound(text) | Trouble::Refused(text) => f.write_str(text),
            Trouble::Io(error) => error.fmt(f),
        }
    }
}

fn unsound<T>(text: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Unsound(text.into()))
}

pub(super) struct Volume {
    pub tree: Tree,
    words: Vec<u32>,
    owned: Vec<bool>,
}

impl Volume {
    pub fn read(fat: &Fat, disk: &Overlay) -> Result<Volume, Trouble> {
        let mut boot = vec![0; SECTOR as usize];
        disk.read(fat.start(), &mut boot)?;
        if !fat.is_mine(&boot) {
            return unsound("the boot sector describes another file system");
        }
        let words = tables(fat, disk)?;
        let owned = vec![false; words.len()];
        let mut volume = Volume { tree: Tree::new(), words, owned };
        let mut root = Vec::new();
        match fat.root_area() {
            Some((offset, len)) => {
                root.resize(len as usize, 0);
                disk.read(offset, &mut root)?;
            }
            None => {
                let chain = volume.chain(fat, fat.root_cluster(&boot))?;
                root = content(fat, disk, &chain)?;
            }
        }
        volume.directory(fat, disk, "", &root, 0)?;
        Ok(volume)
    }

    /// In use by a chain that nothing names: what was there may be on its way elsewhere.
    pub fn is_lost(&self, cluster: u32) -> bool {
        let at = cluster as usize;
        self.words.get(at).is_some_and(|word| *word != 0) && !self.owned[at]
    }

    /// The clusters from `first` on, which nobody else may have.
    fn chain(&mut self, fat: &Fat, first: u32) -> Result<Vec<u32>, Trouble> {
        let mut chain = Vec::new();
        let mut at = first;
        loop {
            let place = at as usize;
            if at < 2 || place >= self.words.len() {
                return unsound(format!("a chain leads to cluster {at}, which does not exist"));
            }
            if std::mem::replace(&mut self.owned[place], true) {
                return unsound(format!("cluster {at} is in two chains"));
            }
            chain.push(at);
            let next = self.words[place];
            if fat.is_end(next) {
                return Ok(chain);
            }
            at = next;
        }
    }

    fn directory(
        &mut self,
        fat: &Fat,
        disk: &Overlay,
        path: &str,
        bytes: &[u8],
        depth: usize,
    ) -> Result<(), Trouble> {
        if depth > MAX_DEPTH {
            return unsound("the directories are nested too deeply");
        }
        for found in name::found(bytes).map_err(Trouble::Refused)? {
            let Found { name, dir, cluster, size } = found;
            let cluster = fat.cluster_number(cluster);
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            if self.tree.len() >= MAX_ENTRIES {
                return unsound("there are too many files");
            }
            let chain = if cluster == 0 && !dir { Vec::new() } else { self.chain(fat, cluster)? };
            if !dir && u64::from(size) > chain.len() as u64 * fat.cluster_len() {
                return unsound(format!(
                    "'{}' has fewer clusters than its length needs",
                    path.escape_debug()
                ));
            }
            if dir && chain.len() as u64 * fat.cluster_len() > MAX_DIRECTORY {
                return unsound(format!("the directory '{}' is too long", path.escape_debug()));
            }
            let below = if dir { Some(content(fat, disk, &chain)?) } else { None };
            let node = Node { dir, size: if dir { 0 } else { u64::from(size) }, chain };
            if self.tree.insert(path.clone(), node).is_some() {
                return unsound(format!("there are two of '{}'", path.escape_debug()));
            }
            if let Some(bytes) = below {
                self.directory(fat, disk, &path, &bytes, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// What is in a chain of clusters.
fn content(fat: &Fat, disk: &Overlay, chain: &[u32]) -> io::Result<Vec<u8>> {
    let len = fat.cluster_len() as usize;
    let mut bytes = vec![0; chain.len() * len];
    for (cluster, piece) in chain.iter().zip(bytes.chunks_mut(len)) {
        disk.read(fat.place(u64::from(*cluster)), piece)?;
    }
    Ok(bytes)
}

/// The allocation table, if both copies say the same of the clusters.
fn tables(fat: &Fat, disk: &Overlay) -> Result<Vec<u32>, Trouble> {
    let [first, second] = fat.table_areas();
    let read = |(offset, len): (u64, u64)| {
        let mut bytes = vec![0; len as usize];
        disk.read(offset, &mut bytes).map(|()| fat.table_words(&bytes))
    };
    let (words, copy) = (read(first)?, read(second)?);
    if words[2..] != copy[2..] {
        return unsound("the two allocation tables differ");
    }
    Ok(words)
}
