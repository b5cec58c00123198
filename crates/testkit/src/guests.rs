//! Guests made of Debian's packages. Packages are downloaded once into `target/guests`.

use crate::cpio::Archive;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub type Result<T> = std::result::Result<T, String>;

/// The repository's root.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}

/// Where downloaded and made files are kept.
pub fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("guests")
}

/// The unpacked tree of a Debian package, downloaded if it is not there yet. A meta package
/// leads to the first package it depends on whose name begins with `linux-image-`.
pub fn package(name: &str) -> Result<PathBuf> {
    let dir = cache().join(name);
    if dir.join(".complete").exists() {
        return Ok(dir);
    }
    let lock = lock_file(name)?;
    if !dir.join(".complete").exists() {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let real = real_package(name)?;
        run(Command::new("apt-get").args(["-qq", "download", &real]).current_dir(&dir))?;
        let deb = fs::read_dir(&dir)
            .map_err(|e| e.to_string())?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
            .ok_or_else(|| format!("apt-get download {real} brought no package"))?;
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&dir))?;
        let _ = fs::remove_file(deb);
        fs::write(dir.join(".complete"), []).map_err(|e| e.to_string())?;
    }
    drop(lock);
    Ok(dir)
}

/// Holds a lock among test processes while it lives.
pub(crate) fn lock_file(name: &str) -> Result<fs::File> {
    fs::create_dir_all(cache()).map_err(|e| e.to_string())?;
    let path = cache().join(format!("{}.lock", name.replace('/', "_")));
    let file = fs::File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    file.lock().map_err(|e| e.to_string())?;
    Ok(file)
}

fn real_package(name: &str) -> Result<String> {
    if !name.starts_with("linux-image-") {
        return Ok(name.to_string());
    }
    let depends = || Command::new("apt-cache").args(["depends", name]).output().map_err(|e| e.to_string());
    let mut out = depends()?;
    if out.stdout.is_empty() {
        run(Command::new("apt-get").args(["-qq", "update"]))?;
        out = depends()?;
    }
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let real = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|d| d.starts_with("linux-image-"));
    Ok(real.unwrap_or(name).to_string())
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr)))
    }
}

/// The kernel image of a Debian kernel package (`linux-image-cloud-amd64`, `linux-image-amd64`).
pub fn kernel(package_name: &str) -> Result<PathBuf> {
    let boot = package(package_name)?.join("boot");
    find(&boot, "vmlinuz-").ok_or_else(|| format!("{package_name} has no kernel image"))
}

/// Memtest86+ as a file that boots like a Linux kernel, and as a bootable CD.
pub fn memtest() -> Result<(PathBuf, PathBuf)> {
    let dir = package("memtest86+")?;
    Ok((dir.join("boot/memtest86+x64.bin"), dir.join("usr/lib/memtest86+/memtest86+x64.iso")))
}

/// Kernel and initrd of the Debian 12 installer (network boot, text).
pub fn installer() -> Result<(PathBuf, PathBuf)> {
    let images =
        package("debian-installer-12-netboot-amd64")?.join("usr/lib/debian-installer/images/12/amd64");
    let dir = images.join("text/debian-installer/amd64");
    Ok((dir.join("linux"), dir.join("initrd.gz")))
}

pub(crate) fn find(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries: Vec<_> =
        fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    entries.sort();
    entries
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
}

/// The guest program `guest/NAME.c`, built without shared libraries by the host's C compiler
/// (which Rust needs as its linker anyway), with further flags.
pub fn c_program(name: &str, flags: &[&str]) -> Result<Vec<u8>> {
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-static"]).args(flags);
    program(name, &mut compiler, &format!("guest/{name}.c"))
}

/// What a compiler makes of this crate's file `source`.
pub(crate) fn program(name: &str, compiler: &mut Command, source: &str) -> Result<Vec<u8>> {
    let _lock = lock_file(name)?;
    let path = cache().join(format!("{name}-{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    run(compiler.arg("-o").arg(&path).arg(source))?;
    let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let _ = fs::remove_file(&path);
    Ok(bytes)
}

/// What the busybox guest does after it has come up.
pub const SHELL: &str = "exec setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'";

/// A busybox initramfs whose init mounts the pseudo file systems, says `GUEST-UP` on the
/// console and runs `script`. Further files are put in as (name, contents).
pub fn initramfs(script: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = base_archive(script)?;
    for (name, data) in files {
        archive.file(name, data);
    }
    Ok(archive.finish())
}

/// The archive of [`initramfs`], to be added to.
pub(crate) fn base_archive(script: &str) -> Result<Archive> {
    archive_with(Path::new("/bin/busybox"), script)
}

/// An initramfs like [`initramfs`] of another busybox, as a file named after `name` in the cache.
pub fn initramfs_of(busybox: &Path, name: &str, script: &str) -> Result<PathBuf> {
    write_cache(name, &archive_with(busybox, script)?.finish())
}

fn archive_with(busybox: &Path, script: &str) -> Result<Archive> {
    let busybox =
        fs::read(busybox).map_err(|e| format!("{} (busybox-static is needed): {e}", busybox.display()))?;
    let init = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox mount -t proc proc /proc\n/bin/busybox mount -t sysfs sysfs /sys\n\
         /bin/busybox mount -t devtmpfs dev /dev\n/bin/busybox mount -t tmpfs tmpfs /tmp\n\
         /bin/busybox --install -s /bin\nexport PATH=/bin:/usr/bin:/sbin:/usr/sbin\necho GUEST-UP\n{script}\n"
    );
    let mut archive = Archive::new();
    for dir in ["bin", "dev", "proc", "sys", "tmp", "mnt", "lib"] {
        archive.directory(dir);
    }
    archive.char_device("dev/console", 5, 1);
    archive.file("bin/busybox", &busybox).symlink("bin/sh", "busybox").file("init", init.as_bytes());
    Ok(archive)
}

/// [`initramfs`] as a file named after `name` in the cache.
pub fn initramfs_file(name: &str, script: &str, files: &[(&str, &[u8])]) -> Result<PathBuf> {
    write_cache(name, &initramfs(script, files)?)
}

/// A file in the cache, named after `name` and this process.
pub(crate) fn write_cache(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    fs::create_dir_all(cache()).map_err(|e| e.to_string())?;
    let path = cache().join(format!("{name}-{}.cpio", std::process::id()));
    fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}
