//! A Debian kernel with a busybox shell on the serial port, under test.

use crate::guests::{self, Result};
use crate::modules;
use crate::vm::Vm;
use std::path::PathBuf;
use std::time::Duration;

/// How long a boot may take on a slow and busy machine.
pub const BOOT: Duration = Duration::from_secs(300);
/// How long a simple command may take.
pub const SOON: Duration = Duration::from_secs(60);

/// A booted guest.
pub struct Linux {
    pub vm: Vm,
    pub(crate) initrd: Initrd,
}

/// Removes the file when the guest is done with it.
pub(crate) struct Initrd(PathBuf);

impl Linux {
    /// Boots the kernel of `package` directly to a shell, with further arguments.
    pub fn boot(package: &str, args: &[&str]) -> Result<Linux> {
        Linux::boot_with(package, args, "")
    }

    /// As [`Linux::boot`] with something more on the kernel's command line.
    pub fn boot_with(package: &str, args: &[&str], append: &str) -> Result<Linux> {
        Linux::boot_loaded(package, args, append, &[])
    }

    /// As [`Linux::boot_with`], with kernel modules loaded (and those that they need).
    pub fn boot_loaded(package: &str, args: &[&str], append: &str, modules: &[&str]) -> Result<Linux> {
        Linux::boot_holding(package, args, append, modules, &[])
    }

    /// As [`Linux::boot_loaded`] with further files (name, contents) in the initramfs.
    pub fn boot_holding(
        package: &str,
        args: &[&str],
        append: &str,
        modules: &[&str],
        more: &[(&str, &[u8])],
    ) -> Result<Linux> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let kernel = guests::kernel(package)?.display().to_string();
        let modules = modules::modules(package, modules)?;
        let files: Vec<_> = modules.iter().map(|(name, bytes)| (format!("lib/{name}.ko"), bytes)).collect();
        let load: String = files.iter().map(|(path, _)| format!("insmod /{path}\n")).collect();
        let mut files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
        files.extend(more);
        let script = format!("{load}{}", guests::SHELL);
        let initrd = guests::initramfs_file(&format!("linux-{number}"), &script, &files)?;
        let file = initrd.display().to_string();
        let line = format!("console=ttyS0 panic=-1 {append}");
        let mut all = vec!["-kernel", kernel.as_str(), "-initrd", &file, "-append", &line];
        all.extend(args);
        let mut linux = Linux { vm: Vm::start(&all)?, initrd: Initrd(initrd) };
        linux.up()?;
        Ok(linux)
    }

    /// Waits for the shell of a boot.
    pub fn up(&mut self) -> Result<()> {
        self.vm.expect("GUEST-UP", BOOT)?;
        self.vm.expect("# ", SOON)?;
        Ok(())
    }

    pub fn shell(&mut self, command: &str) -> Result<String> {
        self.vm.shell(command, SOON)
    }

    /// Seconds since the guest booted, by its own clock.
    pub fn uptime(&mut self) -> Result<f64> {
        let text = self.shell("cat /proc/uptime")?;
        // The kernel may log something in between.
        let numbers = |line: &str| -> Option<Vec<f64>> {
            line.split_whitespace().map(|word| word.parse().ok()).collect()
        };
        let mut found = text.lines().filter_map(numbers).filter(|all| all.len() == 2);
        found.next().map(|all| all[0]).ok_or(format!("uptime: {text}"))
    }

    /// Lines of the kernel log that tell of trouble.
    pub fn complaints(&mut self) -> Result<Vec<String>> {
        let log = self.shell("dmesg")?;
        Ok(log.lines().filter(|line| complains(line)).map(str::to_string).collect())
    }

    /// `poweroff` must end the process with SHUTDOWN and status 0.
    pub fn power_off(mut self) -> Result<()> {
        self.vm.type_in("poweroff -f\n")?;
        self.vm.qmp.event("SHUTDOWN", SOON)?;
        let status = self.vm.wait(SOON)?;
        if status.success() { Ok(()) } else { Err(format!("ended with {status}: {}", self.vm.errors())) }
    }
}

impl Drop for Initrd {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether a line of dmesg tells of a bug of the kernel or of the machine under it.
pub fn complains(line: &str) -> bool {
    const SIGNS: [&str; 16] = [
        "WARNING:",
        "BUG:",
        "Oops",
        "Call Trace",
        "unable to handle",
        "general protection",
        "spurious 8259A",
        "IO-APIC + timer doesn't work",
        "MP-BIOS bug",
        "Clocksource tsc unstable",
        "marking unstable",
        "rcu: INFO",
        "soft lockup",
        "ACPI Error",
        "ACPI BIOS Error",
        "nobody cared",
    ];
    // Linux gives up a clock whose reading took long: the host had something else to do.
    let is_hosts = line.contains("read-back delay");
    !is_hosts && SIGNS.iter().any(|sign| line.contains(sign))
}
