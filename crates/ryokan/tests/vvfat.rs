//! A directory of the host as a disk that Linux writes files to.

use std::fs;
use std::path::{Path, PathBuf};
use testkit::Linux;
use testkit::images::tool;

/// Removed when dropped.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sum(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_string()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

/// A directory of the host with a few files.
fn tree(place: &Place, bits: u32) -> PathBuf {
    let tree = place.0.join(format!("tree{bits}"));
    fs::create_dir_all(tree.join("sub")).unwrap();
    for (name, text) in [("hello.txt", "hello"), ("gone.txt", "gone"), ("sub/old name.txt", "kept")] {
        fs::write(tree.join(name), text).unwrap();
    }
    tree
}

/// Linux reads what is in the directory, changes it and adds to it; gives the sum of what it
/// added.
fn change(linux: &mut Linux, disk: &str, bits: u32, tree: &Path) -> String {
    let mut shell = |command: &str| linux.shell(command).unwrap().trim().to_string();
    shell(&format!("mkdir -p /mnt; mount -t vfat /dev/{disk}1 /mnt"));
    // The boot sector names its kind, that of FAT32 at another place.
    let at = if bits == 32 { 82 } else { 54 };
    assert_eq!(
        shell(&format!("dd if=/dev/{disk}1 bs=1 skip={at} count=5 2>/dev/null")),
        format!("FAT{bits}")
    );
    assert_eq!(shell("cat /mnt/hello.txt; ls /mnt | tr '\\n' ' '"), "hellogone.txt hello.txt sub");
    let data = sum(&shell(
        "mkdir /mnt/made; dd if=/dev/urandom of='/mnt/made/some data' bs=1000 count=300 2>/dev/null; md5sum '/mnt/made/some data'",
    ));
    shell(
        "echo more >> /mnt/hello.txt; rm /mnt/gone.txt; mv '/mnt/sub/old name.txt' /mnt/made/moved; rmdir /mnt/sub",
    );
    // All that is written before goes to the disk, then its cache is flushed.
    shell(
        "sync; dd if=/dev/zero of=/mnt/flush bs=1 count=1 conv=fsync 2>/dev/null; sync; dd if=/dev/zero of=/mnt/flush bs=1 count=1 conv=fsync 2>/dev/null",
    );
    assert_eq!(sum(&tool("md5sum", &[tree.join("made/some data").to_str().unwrap()])), data);
    shell(&format!("umount /mnt; mount -t vfat /dev/{disk}1 /mnt; rm /mnt/flush; echo last > /mnt/LAST.TXT"));
    assert_eq!(sum(&shell("md5sum '/mnt/made/some data'")), data);
    shell("umount /mnt");
    data
}

#[test]
fn linux_writes_files_into_directories_of_the_host() {
    let place = Place(std::env::temp_dir().join(format!("ryokan-vvfat-{}", std::process::id())));
    // FAT16 without being asked for.
    let kinds = [("fat:rw:", 16, "vda"), ("fat:12:rw:", 12, "vdb"), ("fat:rw:32:", 32, "vdc")];
    let trees = kinds.map(|(_, bits, _)| tree(&place, bits));
    let mut args = vec!["-m".to_string(), "512".into()];
    for ((fat, bits, _), tree) in kinds.iter().zip(&trees) {
        let drive = format!("file={fat}{},format=raw,if=none,id=d{bits}", tree.display());
        args.extend(["-drive".into(), drive, "-device".into(), format!("virtio-blk-pci,drive=d{bits}")]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let modules = ["virtio_blk", "virtio_pci", "vfat", "nls_cp437", "nls_ascii"];
    let mut linux = Linux::boot_loaded("linux-image-amd64", &args, "", &modules).unwrap();
    linux.shell("dmesg -n 1").unwrap();
    let mut sums = Vec::new();
    for ((_, bits, disk), tree) in kinds.iter().zip(&trees) {
        sums.push(change(&mut linux, disk, *bits, tree));
    }
    assert_eq!(linux.complaints().unwrap(), Vec::<String>::new());
    linux.power_off().unwrap();
    for (tree, data) in trees.iter().zip(sums) {
        assert_eq!(names(tree), ["LAST.TXT", "hello.txt", "made"]);
        assert_eq!(names(&tree.join("made")), ["moved", "some data"]);
        let read = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
        assert_eq!(
            (read("hello.txt"), read("made/moved"), read("LAST.TXT")),
            ("hellomore\n".into(), "kept".into(), "last\n".into())
        );
        assert_eq!(sum(&tool("md5sum", &[tree.join("made/some data").to_str().unwrap()])), data);
    }
}
