//! The directory as it is found.

use super::name::is_allowed;
use base::{Failure, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Deepest nesting that is followed: links may go round.
pub(super) const MAX_DEPTH: usize = 32;

/// Most files and directories together.
pub(super) const MAX_ENTRIES: usize = 65_000;

pub(super) enum What {
    File { path: PathBuf, size: u64 },
    Dir(Vec<Entry>),
}

pub(super) struct Entry {
    pub name: String,
    pub time: SystemTime,
    pub read_only: bool,
    pub what: What,
}

/// The paths of entries and of all below them.
pub(super) fn paths(entries: &[Entry]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for one in entries {
        if let What::Dir(below) = &one.what {
            all.extend(paths(below).into_iter().map(|path| format!("{}/{path}", one.name)));
        }
        all.insert(one.name.clone());
    }
    all
}

/// Everything below a directory, in the order of names. What is neither a file nor a
/// directory, or cannot be looked at, is left out; so are links, if the directory is to be
/// written, and names that could not be written.
pub(super) fn scan(path: &Path, write: bool) -> Result<Vec<Entry>> {
    let mut left = MAX_ENTRIES;
    scan_below(path, write, 0, &mut left)
}

fn scan_below(path: &Path, write: bool, depth: usize, left: &mut usize) -> Result<Vec<Entry>> {
    if depth > MAX_DEPTH {
        bail!("vvfat: the directories are nested too deeply");
    }
    let failed =
        |why: std::io::Error| Failure::os(format!("Could not read directory {}", path.display()), &why);
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(path).map_err(failed)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.sort();
    let mut entries = Vec::new();
    for path in names {
        let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_string) else {
            continue;
        };
        if write && !is_allowed(&name) {
            continue;
        }
        let about = if write { std::fs::symlink_metadata(&path) } else { std::fs::metadata(&path) };
        let Ok(about) = about else { continue };
        let what = match (about.is_dir(), about.is_file()) {
            (true, _) => What::Dir(scan_below(&path, write, depth + 1, left)?),
            (_, true) => What::File { path, size: about.len() },
            _ => continue,
        };
        *left = match left.checked_sub(1) {
            Some(left) => left,
            None => bail!("vvfat: the directory has too many files"),
        };
        let time = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        entries.push(Entry { name, time, read_only: about.permissions().readonly(), what });
    }
    Ok(entries)
}
