//! Brings the directory of the host to what the guest has made of the disk.

use super::layout::Fat;
use super::overlay::Overlay;
use super::staging::Staging;
use super::volume::{Node, Tree, Trouble, Volume};
use rustix::fd::OwnedFd;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

pub(super) struct Directory {
    pub root: OwnedFd,
    /// What the directory has, as far as the disk shows it.
    pub known: Tree,
}

/// Where the content of a file comes from.
enum From {
    /// It is there already.
    Here,
    /// From another place, where it had this path.
    Moved(String),
    /// From the disk; put aside under this name.
    Disk(String),
}

type Plan = BTreeMap<String, From>;

impl Directory {
    /// Makes the changes, all or none.
    pub fn follow(&mut self, fat: &Fat, disk: &mut Overlay, volume: Volume) -> Result<(), Trouble> {
        let new = &volume.tree;
        let same = |path: &String, node: &Node| new.get(path) == Some(node) && !touched(fat, disk, node);
        let differing: Vec<&Node> =
            self.known.iter().filter(|(path, node)| !same(path, node)).map(|(_, node)| node).collect();
        if differing.is_empty() && new.len() == self.known.len() {
            return Ok(());
        }
        for node in differing {
            if node.first().is_some_and(|first| volume.is_lost(first)) {
                return Err(Trouble::Unsound("something has no name, but its clusters are in use".into()));
            }
            for cluster in node.chain.iter().filter(|_| !node.dir) {
                disk.keep(fat.place(u64::from(*cluster)), fat.cluster_len())?;
            }
        }
        let mut staging = Staging::begin(&self.root)?;
        match change(&mut staging, fat, disk, &self.known, new) {
            Ok(()) => staging.finish(),
            Err(error) => {
                staging.undo();
                return Err(error.into());
            }
        }
        self.known = volume.tree;
        Ok(rustix::fs::syncfs(&self.root).map_err(io::Error::from)?)
    }
}

/// Whether the guest has written into a file.
fn touched(fat: &Fat, disk: &Overlay, node: &Node) -> bool {
    let clusters = node.chain.iter().filter(|_| !node.dir);
    clusters.into_iter().any(|cluster| disk.is_fresh(fat.place(u64::from(*cluster)), fat.cluster_len()))
}

fn change(staging: &mut Staging<'_>, fat: &Fat, disk: &Overlay, known: &Tree, new: &Tree) -> io::Result<()> {
    let mut old = known.clone();
    move_directories(staging, &mut old, new)?;
    let plan = plan(fat, disk, &old, new);
    for (path, from) in &plan {
        if let From::Disk(name) = from {
            write(&staging.create(name, path)?, fat, disk, &new[path])?;
        }
    }
    // Out of the way, what lies deepest first.
    let mut aside = HashMap::new();
    for (number, (path, node)) in old.iter().rev().enumerate() {
        if node.dir {
            if !new.get(path).is_some_and(|new| new.dir) {
                staging.remove_dir(path)?;
            }
        } else if !matches!(plan.get(path), Some(From::Here)) {
            let place = staging.aside(&format!("old{number}"));
            staging.rename(path, &place)?;
            aside.insert(path.clone(), place);
        }
    }
    for (path, node) in new {
        match plan.get(path) {
            None if node.dir && old.get(path).is_some_and(|old| old.dir) => {}
            None => staging.make_dir(path)?,
            Some(From::Here) => {}
            Some(From::Moved(from)) => {
                let place = aside.get(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                staging.rename(place, path)?;
            }
            Some(From::Disk(name)) => staging.rename(&staging.aside(name), path)?,
        }
    }
    Ok(())
}

/// Renames whole directories where that is simple, with all that the disk does not show of
/// them; `old` then is what they are like. Others are made anew and their files moved.
fn move_directories(staging: &mut Staging<'_>, old: &mut Tree, new: &Tree) -> io::Result<()> {
    let by_cluster = |tree: &Tree| -> HashMap<u32, String> {
        let dirs = tree.iter().filter(|(_, node)| node.dir);
        dirs.filter_map(|(path, node)| Some((node.first()?, path.clone()))).collect()
    };
    let mut places = by_cluster(old);
    for (path, node) in new.iter().filter(|(_, node)| node.dir) {
        let Some(from) = node.first().and_then(|first| places.get(&first)).cloned() else { continue };
        let parent = path.rsplit_once('/').map(|(parent, _)| parent);
        let ready = parent.is_none_or(|parent| old.get(parent).is_some_and(|node| node.dir));
        let within = path.starts_with(&format!("{from}/"));
        if old.contains_key(path) || new.get(&from).is_some_and(|new| new.dir) || !ready || within {
            continue;
        }
        staging.rename(&from, path)?;
        let below = format!("{from}/");
        let moved: Vec<String> = old
            .range(from.clone()..)
            .map(|(one, _)| one)
            .take_while(|one| one.starts_with(&from))
            .filter(|one| **one == from || one.starts_with(&below))
            .cloned()
            .collect();
        for one in moved {
            let Some(node) = old.remove(&one) else { continue };
            let to = format!("{path}{}", &one[from.len()..]);
            if let Some(first) = node.first().filter(|_| node.dir) {
                places.insert(first, to.clone());
            }
            old.insert(to, node);
        }
    }
    Ok(())
}

/// Where each file of the new state comes from.
fn plan(fat: &Fat, disk: &Overlay, old: &Tree, new: &Tree) -> Plan {
    let files =
        |tree: &'_ Tree| tree.iter().filter(|(_, node)| !node.dir).map(|(path, _)| path.clone()).collect();
    let (of_old, of_new): (Vec<String>, Vec<String>) = (files(old), files(new));
    let by_cluster: HashMap<u32, &String> =
        of_old.iter().filter_map(|path| Some((old[path].first()?, path))).collect();
    let from = |(number, path): (usize, &String)| {
        let node = &new[path];
        if touched(fat, disk, node) {
            return From::Disk(format!("new{number}"));
        }
        if old.get(path) == Some(node) {
            return From::Here;
        }
        let moved = node.first().and_then(|first| by_cluster.get(&first)).filter(|from| old[**from] == *node);
        match moved {
            Some(from) => From::Moved((*from).clone()),
            None => From::Disk(format!("new{number}")),
        }
    };
    of_new.iter().enumerate().map(|one| (one.1.clone(), from(one))).collect()
}

/// Writes what the disk has of a file, to stable storage.
fn write(mut file: &std::fs::File, fat: &Fat, disk: &Overlay, node: &Node) -> io::Result<()> {
    let mut left = node.size;
    let mut data = vec![0; fat.cluster_len() as usize];
    for cluster in &node.chain {
        let len = left.min(fat.cluster_len()) as usize;
        disk.read(fat.place(u64::from(*cluster)), &mut data)?;
        file.write_all(&data[..len])?;
        left -= len as u64;
    }
    file.sync_data()
}
