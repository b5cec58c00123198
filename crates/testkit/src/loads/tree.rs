//! Debian packages as part of an initramfs.

use crate::cpio::Archive;
use crate::guests::{self, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Packages that programs run without.
const NEEDLESS: [&str; 20] = [
    "cdebconf",
    "debconf",
    "dpkg",
    "gcc-12-base",
    "install-info",
    "libdebian-installer4",
    "libgdbm-compat4",
    "libgdbm6",
    "libnewt0.52",
    "libperl5.36",
    "libslang2",
    "libtextwrap1",
    "mailcap",
    "media-types",
    "mime-support",
    "perl",
    "perl-base",
    "perl-modules-5.36",
    "readline-common",
    "tar",
];
/// Trees that programs run without.
const SKIPPED: [&str; 9] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/info",
    "usr/share/X11",
    "usr/share/bug",
    "usr/lib/x86_64-linux-gnu/gconv",
    "lib/modules",
];

/// The packages with all that they depend on.
pub fn closure(packages: &[&str]) -> Result<Vec<String>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    let out = Command::new("apt-cache")
        .args(["depends", "--recurse", "-i"])
        .args(packages)
        .output()
        .map_err(|e| format!("apt-cache: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    // Packages stand at the start of a line, relations are indented, virtual ones in brackets.
    let mut names: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_alphanumeric()) && !line.contains(':'))
        .filter(|name| !NEEDLESS.contains(name))
        .map(str::to_string)
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() { Err(format!("apt-cache knows nothing of {packages:?}")) } else { Ok(names) }
}

/// Puts the unpacked package at `root` into the archive.
pub fn add(archive: &mut Archive, root: &Path) -> Result<()> {
    walk(archive, root, "")
}

fn walk(archive: &mut Archive, root: &Path, under: &str) -> Result<()> {
    let dir = root.join(under);
    let mut entries: Vec<_> = fs::read_dir(&dir)
        .map_err(|e| format!("{}: {e}", dir.display()))?
        .filter_map(std::result::Result::ok)
        .collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if under.is_empty() { name.clone() } else { format!("{under}/{name}") };
        if SKIPPED.contains(&path.as_str()) || path == ".complete" {
            continue;
        }
        let kind = entry.file_type().map_err(|e| e.to_string())?;
        if kind.is_symlink() {
            let to = fs::read_link(entry.path()).map_err(|e| e.to_string())?;
            archive.symlink(&path, &to.to_string_lossy());
        } else if kind.is_dir() {
            archive.directory(&path);
            walk(archive, root, &path)?;
        } else if kind.is_file() {
            let bytes = fs::read(entry.path()).map_err(|e| format!("{path}: {e}"))?;
            archive.file(&path, &bytes);
        }
    }
    Ok(())
}

/// A module of a kernel package.
pub fn module(kernel: &str, name: &str) -> Result<Vec<u8>> {
    let root = guests::package(kernel)?;
    let out = Command::new("find")
        .arg(root.join("lib/modules"))
        .args(["-name", &format!("{name}.ko")])
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout);
    let path = text.lines().next().ok_or_else(|| format!("{kernel} has no module {name}"))?;
    fs::read(path).map_err(|e| format!("{path}: {e}"))
}
