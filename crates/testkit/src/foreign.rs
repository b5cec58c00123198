//! Packages of another architecture, by an APT of its own that leaves the system's alone.

use crate::guests::{Result, cache, find, lock_file, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The last Debian release with i386 kernels.
const SOURCE: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                      http://deb.debian.org/debian bookworm main\n";

/// A 32-bit kernel with PAE.
pub fn kernel_i386() -> Result<PathBuf> {
    let dir = cache().join("linux-image-686-pae");
    let lock = lock_file("linux-image-686-pae")?;
    if !dir.join(".complete").exists() {
        let _ = fs::remove_dir_all(&dir);
        let apt = Apt::new(&dir.join("apt"), "i386")?;
        let real = apt.dependency("linux-image-686-pae", "linux-image-")?;
        apt.unpack(&real, &dir)?;
        let _ = fs::remove_dir_all(dir.join("apt"));
        fs::write(dir.join(".complete"), []).map_err(|e| e.to_string())?;
    }
    drop(lock);
    find(&dir.join("boot"), "vmlinuz-").ok_or_else(|| "the i386 package has no kernel image".into())
}

/// A statically linked 32-bit busybox.
pub fn busybox_i386() -> Result<PathBuf> {
    let dir = cache().join("busybox-static-i386");
    let lock = lock_file("busybox-static-i386")?;
    if !dir.join(".complete").exists() {
        let _ = fs::remove_dir_all(&dir);
        let apt = Apt::new(&dir.join("apt"), "i386")?;
        apt.unpack("busybox-static", &dir)?;
        let _ = fs::remove_dir_all(dir.join("apt"));
        fs::write(dir.join(".complete"), []).map_err(|e| e.to_string())?;
    }
    drop(lock);
    Ok(dir.join("bin/busybox"))
}

struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(dir: &Path, architecture: &str) -> Result<Apt> {
        for sub in ["state/lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(dir.join(sub)).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).map_err(|e| e.to_string());
        write("etc/sources.list", SOURCE)?;
        write("state/status", "")?;
        let settings = [
            ("APT::Architecture", architecture.to_string()),
            ("APT::Architectures", architecture.to_string()),
            ("Dir::State", dir.join("state").display().to_string()),
            ("Dir::State::status", dir.join("state/status").display().to_string()),
            ("Dir::Cache", dir.join("cache").display().to_string()),
            ("Dir::Etc::sourcelist", dir.join("etc/sources.list").display().to_string()),
            ("Dir::Etc::sourceparts", "-".into()),
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
        ];
        let options = settings.iter().flat_map(|(key, value)| ["-o".into(), format!("{key}={value}")]);
        let apt = Apt { options: options.collect() };
        run(Command::new("apt-get").args(&apt.options).args(["-qq", "update"]))?;
        Ok(apt)
    }

    /// The first dependency of `package` whose name begins with `prefix`.
    fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let out = Command::new("apt-cache")
            .args(&self.options)
            .args(["depends", package])
            .output()
            .map_err(|e| format!("apt-cache: {e}"))?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let found = names.map(str::to_string).find(|name| name.starts_with(prefix));
        found.ok_or_else(|| format!("{package} depends on nothing like {prefix}: {text}"))
    }

    fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let mut command = Command::new("apt-get");
        run(command.args(&self.options).args(["-qq", "download", package]).current_dir(to))?;
        let deb = find(to, package).ok_or_else(|| format!("apt-get download {package} brought nothing"))?;
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(to))?;
        let _ = fs::remove_file(deb);
        Ok(())
    }
}
