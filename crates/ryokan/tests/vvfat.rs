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

#[test]
fn linux_writes_files_into_a_directory_of_the_host() {
    let place = Place(std::env::temp_dir().join(format!("ryokan-vvfat-{}", std::process::id())));
    let tree = place.0.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    for (name, text) in [("hello.txt", "hello"), ("gone.txt", "gone"), ("sub/old name.txt", "kept")] {
        fs::write(tree.join(name), text).unwrap();
    }
    let drive = format!("file=fat:rw:{},format=raw,if=none,id=d", tree.display());
    let args = ["-m", "512", "-drive", drive.as_str(), "-device", "virtio-blk-pci,drive=d"];
    let modules = ["virtio_blk", "virtio_pci", "vfat", "nls_cp437", "nls_ascii"];
    let mut linux = Linux::boot_loaded("linux-image-amd64", &args, "", &modules).unwrap();
    let mut shell = |command: &str| linux.shell(command).unwrap().trim().to_string();
    shell("dmesg -n 1; mkdir -p /mnt; mount -t vfat /dev/vda1 /mnt");
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
    shell("umount /mnt; mount -t vfat /dev/vda1 /mnt; rm /mnt/flush; echo last > /mnt/LAST.TXT");
    assert_eq!(sum(&shell("md5sum '/mnt/made/some data'")), data);
    shell("umount /mnt");
    assert_eq!(linux.complaints().unwrap(), Vec::<String>::new());
    linux.power_off().unwrap();
    assert_eq!(names(&tree), ["LAST.TXT", "hello.txt", "made"]);
    assert_eq!(names(&tree.join("made")), ["moved", "some data"]);
    let read = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
    assert_eq!(
        (read("hello.txt"), read("made/moved"), read("LAST.TXT")),
        ("hellomore\n".into(), "kept".into(), "last\n".into())
    );
    assert_eq!(sum(&tool("md5sum", &[tree.join("made/some data").to_str().unwrap()])), data);
}
