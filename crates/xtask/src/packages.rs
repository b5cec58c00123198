//! The Debian packages that tests, demo and benchmarks need.

use crate::run::{Result, step};
use std::process::Command;

/// What the tests and the demo use.
const PACKAGES: &[&str] = &[
    "seabios",
    "busybox-static",
    "qemu-utils",
    "gdb",
    "acpica-tools",
    "socat",
    "libnbd-bin",
    "e2fsprogs",
    "gnutls-bin",
    "cryptsetup-bin",
    "dosfstools",
    "mtools",
    "openssh-client",
    "openssh-server",
];

/// Those of [`PACKAGES`] that are not installed.
fn missing() -> Vec<&'static str> {
    PACKAGES.iter().copied().filter(|name| !installed(name)).collect()
}

fn installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}", name])
        .output()
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("install ok installed"))
}

/// Installs what is missing, or says which command does where we may not.
pub fn install() -> Result {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if !root {
        return Err(format!(
            "packages are missing; as root run: apt-get install --no-install-recommends {list}"
        ));
    }
    step("package lists", "apt-get", &["-qq", "update"])?;
    let mut args = vec!["-qq", "-y", "--no-install-recommends", "install"];
    args.extend(missing);
    step("packages", "apt-get", &args)
}
