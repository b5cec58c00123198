//! What a guest writes reaches the directory. mtools are the guest: they work on a copy of the
//! volume, and what they changed is written to the disk.

use super::tool;
use crate::graph::{Graph, Node, Pin, Settings, tests::graph};
use crate::options::Options;
use crate::types::WriteFlags;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Disk {
    graph: Arc<Graph>,
    pin: Option<Pin>,
    place: tempfile::TempDir,
    /// Byte of the disk where the volume begins.
    first: u64,
}

impl Disk {
    /// The directory `tree` in a new place, filled by `fill`.
    fn new(mut options: Value, first: u64, fill: impl FnOnce(&Path)) -> Disk {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = place.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(place.path().join("outside"), "untouched").unwrap();
        fill(&tree);
        options["driver"] = "vvfat".into();
        options["dir"] = tree.to_str().into();
        options["rw"] = true.into();
        let graph = graph();
        let at = graph.clone();
        let pin = async move { at.open(Options::json(options), Settings::default()).await };
        let pin = graph.block_on(pin).unwrap();
        Disk { graph, pin: Some(pin), place, first: first * 512 }
    }

    fn floppy(fill: impl FnOnce(&Path)) -> Disk {
        Disk::new(json!({"floppy": true, "fat-type": 12}), 0, fill)
    }

    fn tree(&self) -> PathBuf {
        self.place.path().join("tree")
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.tree().join(path)).unwrap_or_else(|why| format!("{path}: {why}"))
    }

    fn node(&self) -> Arc<Node> {
        Arc::clone(self.pin.as_ref().expect("an open disk"))
    }

    fn volume(&self) -> Vec<u8> {
        let (node, first) = (self.node(), self.first);
        self.graph.block_on(async move {
            let mut data = vec![0; (node.size() - first) as usize];
            node.read(first, &mut data).await.unwrap();
            data
        })
    }

    /// Writes the sectors of the volume in which `new` differs.
    fn write(&self, new: &[u8]) {
        let old = self.volume();
        for (at, (old, new)) in old.chunks(512).zip(new.chunks(512)).enumerate() {
            if old != new {
                let (node, offset, data) = (self.node(), self.first + at as u64 * 512, new.to_vec());
                let write = async move { node.write(offset, &data, WriteFlags::empty()).await };
                self.graph.block_on(write).unwrap();
            }
        }
    }

    /// Lets mtools change the volume; `-i` and its name follow the name of the tool.
    fn edit(&self, commands: &[&[&str]]) {
        let image = self.place.path().join("volume");
        store(&image, &self.volume());
        for command in commands {
            let mut args = vec!["-i", image.to_str().unwrap()];
            args.extend(&command[1..]);
            tool(command[0], &args);
        }
        self.write(&std::fs::read(&image).unwrap());
    }

    fn flush(&self) -> std::io::Result<()> {
        let node = self.node();
        self.graph.block_on(async move { node.flush().await })
    }

    fn close(&mut self) {
        drop(self.pin.take());
        let at = self.graph.clone();
        self.graph.block_on(async move { at.collect().await });
    }

    /// What is in the directory, sorted, one path a line; directories end in '/'.
    fn list(&self) -> String {
        fn below(dir: &Path, prefix: &str, out: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                match entry.file_type().unwrap().is_dir() {
                    true => {
                        out.push(format!("{path}/"));
                        below(&entry.path(), &format!("{path}/"), out);
                    }
                    false => out.push(path),
                }
            }
        }
        let mut all = Vec::new();
        below(&self.tree(), "", &mut all);
        all.sort();
        all.join("\n")
    }

    fn is_sound(&self) {
        let image = self.place.path().join("volume");
        store(&image, &self.volume());
        let text = tool("fsck.fat", &["-n", image.to_str().unwrap()]);
        assert!(!text.contains("differ") && !text.contains("orrupt"), "{text}");
        assert_eq!(std::fs::read_to_string(self.place.path().join("outside")).unwrap(), "untouched");
    }
}

/// A sparse file.
fn store(path: &Path, data: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(data.len() as u64).unwrap();
    for (at, piece) in data.chunks(65536).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, at as u64 * 65536).unwrap();
        }
    }
}

fn fill(tree: &Path) {
    std::fs::create_dir_all(tree.join("sub/deep")).unwrap();
    std::fs::create_dir(tree.join("empty")).unwrap();
    std::fs::write(tree.join("stays.txt"), "stays").unwrap();
    std::fs::write(tree.join("GOES.TXT"), "goes").unwrap();
    std::fs::write(tree.join("sub/a long name"), "x".repeat(20_000)).unwrap();
    std::fs::write(tree.join("sub/deep/leaf"), "leaf").unwrap();
}

#[test]
fn everything_a_guest_does_to_files_is_done_to_the_directory() {
    let kinds = [
        (json!({"floppy": true, "fat-type": 12}), 0),
        (json!({"fat-type": 12}), 63),
        (json!({"fat-type": 32}), 63),
    ];
    for (options, first) in kinds {
        let mut disk = Disk::new(options, first, fill);
        let inode = |disk: &Disk, path: &str| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(disk.tree().join(path)).unwrap().ino()
        };
        let (stays, leaf) = (inode(&disk, "stays.txt"), inode(&disk, "sub/deep/leaf"));
        let new = disk.place.path().join("new");
        std::fs::write(&new, "new ".repeat(10_000)).unwrap();
        let new = new.to_str().unwrap();
        disk.edit(&[
            &["mcopy", new, "::a new file with a long name.txt"],
            &["mdel", "::GOES.TXT"],
            &["mmd", "::made", "::made/within"],
            &["mcopy", new, "::made/within/UPPER.BIN"],
            &["mren", "::sub/deep", "::sub/moved here"],
            &["mmove", "::sub/a long name", "::made"],
            &["mrd", "::empty"],
        ]);
        assert_eq!(disk.text("GOES.TXT"), "goes", "nothing happens before the flush");
        disk.flush().unwrap();
        let expected = "a new file with a long name.txt\nmade/\nmade/a long name\nmade/within/\n\
            made/within/UPPER.BIN\nstays.txt\nsub/\nsub/moved here/\nsub/moved here/leaf";
        assert_eq!(disk.list(), expected);
        assert_eq!(disk.text("a new file with a long name.txt"), "new ".repeat(10_000));
        assert_eq!(disk.text("made/a long name"), "x".repeat(20_000));
        assert_eq!(inode(&disk, "stays.txt"), stays);
        assert_eq!(inode(&disk, "sub/moved here/leaf"), leaf);
        disk.is_sound();
        // Once more, on what the first round has made; closing is enough.
        std::fs::write(new, "changed").unwrap();
        disk.edit(&[
            &["mcopy", "-o", new, "::stays.txt"],
            &["mren", "::made/a long name", "::made/a short one"],
            &["mdeltree", "::sub"],
        ]);
        disk.close();
        let expected = "a new file with a long name.txt\nmade/\nmade/a short one\nmade/within/\n\
            made/within/UPPER.BIN\nstays.txt";
        assert_eq!(disk.list(), expected);
        assert_eq!(disk.text("stays.txt"), "changed");
        assert_eq!(disk.text("made/a short one"), "x".repeat(20_000));
    }
}

#[test]
fn files_and_directories_can_change_places() {
    let disk = Disk::floppy(|tree| {
        fill(tree);
        std::fs::create_dir(tree.join("other")).unwrap();
        std::fs::write(tree.join("other/o"), "o").unwrap();
    });
    disk.edit(&[
        &["mren", "::stays.txt", "::x"],
        &["mren", "::GOES.TXT", "::stays.txt"],
        &["mren", "::x", "::GOES.TXT"],
        &["mren", "::sub", "::y"],
        &["mren", "::other", "::sub"],
        &["mren", "::y", "::other"],
        &["mmove", "::empty", "::sub"],
        &["mren", "::other/deep/leaf", "::other/deep/x"],
        &["mmd", "::other/deep/leaf"],
    ]);
    disk.flush().unwrap();
    // mtools give short names in upper case to what they rename.
    let expected = "GOES.TXT\nOTHER/\nOTHER/a long name\nOTHER/deep/\nOTHER/deep/X\nOTHER/deep/leaf/\n\
        STAYS.TXT\nSUB/\nSUB/EMPTY/\nSUB/o";
    assert_eq!(disk.list(), expected);
    assert_eq!((disk.text("GOES.TXT"), disk.text("STAYS.TXT")), ("stays".into(), "goes".into()));
    assert_eq!((disk.text("SUB/o"), disk.text("OTHER/deep/X")), ("o".into(), "leaf".into()));
    disk.is_sound();
}

#[test]
fn an_unsound_volume_waits_and_nothing_is_lost() {
    let disk = Disk::floppy(fill);
    let (before, good) = (disk.list(), disk.volume());
    let root = 19 * 512;
    let entry = (root..).step_by(32).find(|at| good[*at..*at + 11] == *b"GOES    TXT").unwrap();
    // The name is gone, the clusters are not: the file may be on its way elsewhere.
    let mut bad = good.clone();
    bad[entry] = 0xe5;
    disk.write(&bad);
    disk.flush().unwrap();
    assert_eq!(disk.list(), before);
    // Two chains in one cluster; tables that differ; a chain out of the disk; another geometry.
    let other = (root..).step_by(32).find(|at| good[*at..*at + 8] == *b"STAYS~1 ").unwrap();
    let edits: [(usize, Vec<u8>); 4] = [
        (other + 26, good[entry + 26..entry + 28].to_vec()),
        (10 * 512 + 3, vec![0xff; 9]),
        (entry + 26, vec![0xff, 0x7f]),
        (13, vec![2]),
    ];
    for (at, bytes) in edits {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        disk.write(&bad);
        disk.flush().unwrap();
        assert_eq!(disk.list(), before, "{at}");
        assert_eq!(disk.text("stays.txt"), "stays");
    }
    disk.write(&good);
    disk.edit(&[&["mdel", "::GOES.TXT"]]);
    disk.flush().unwrap();
    assert!(!disk.list().contains("GOES"), "sound again, it follows");
}

#[test]
fn nothing_outside_the_directory_is_reached() {
    let disk = Disk::floppy(|tree| {
        fill(tree);
        std::os::unix::fs::symlink("../outside", tree.join("link")).unwrap();
        std::os::unix::fs::symlink("..", tree.join("up")).unwrap();
    });
    let before = disk.list();
    disk.edit(&[&["mmd", "::..q..q..qoutside"]]);
    // The part of a long name that has these letters gets slashes for them.
    let mut bad = disk.volume();
    let slash = |word: &[u8]| if word == b"q\0" { *b"/\0" } else { [word[0], word[1]] };
    let root = 19 * 512..33 * 512;
    let named: Vec<usize> =
        root.step_by(32).filter(|at| bad[at + 11] == 0x0f && bad[at + 1] == b'.').collect();
    assert!(!named.is_empty());
    for at in named {
        for place in [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30] {
            let word = slash(&bad[at + place..at + place + 2]);
            bad[at + place..at + place + 2].copy_from_slice(&word);
        }
    }
    disk.write(&bad);
    assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(disk.list(), before);
    disk.edit(&[&["mdeltree", "::*outside"]]);
    disk.flush().unwrap();
    // A name that the host has for something the disk does not show.
    let new = disk.place.path().join("new");
    std::fs::write(&new, "new").unwrap();
    let new = new.to_str().unwrap();
    disk.edit(&[&["mcopy", new, "::first"], &["mcopy", new, "::link"], &["mdel", "::GOES.TXT"]]);
    assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(libc::EEXIST));
    assert_eq!(disk.list(), before, "all or nothing");
    std::fs::remove_file(disk.tree().join("link")).unwrap();
    disk.flush().unwrap();
    assert_eq!((disk.text("link"), disk.text("first")), ("new".into(), "new".into()));
    // A directory that has more than the disk shows is not removed.
    std::os::unix::fs::symlink("../../outside", disk.tree().join("empty/hidden")).unwrap();
    disk.edit(&[&["mrd", "::empty"], &["mdel", "::first"]]);
    assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    assert!(disk.list().contains("empty/hidden") && disk.list().contains("first"));
    disk.is_sound();
}

/// Whatever a guest makes of the tables and directories, the host survives it.
#[test]
fn damaged_volumes_do_no_harm() {
    let disk = Disk::floppy(fill);
    let good = disk.volume();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for _ in 0..300 {
        let mut bad = good.clone();
        for _ in 0..1 + next(12) {
            // Both tables alike half of the time, else the root and what lies behind it.
            let (value, at) = (next(256) as u8, next(60));
            match next(2) {
                0 => (bad[512 + at], bad[10 * 512 + at]) = (value, value),
                _ => bad[19 * 512 + next(20 * 512)] = value,
            }
        }
        disk.write(&bad);
        let _ = disk.flush();
    }
    let outside = std::fs::read_to_string(disk.place.path().join("outside")).unwrap();
    assert_eq!(outside, "untouched");
    assert_eq!(std::fs::read_dir(disk.place.path()).unwrap().count(), 2);
    assert!(!disk.list().contains(".ryokan-vvfat"), "nothing is left behind");
}
