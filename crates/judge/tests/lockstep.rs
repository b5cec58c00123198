//! Linux on two engines in lock step. `RYOKAN_LOCKSTEP_INSTRUCTIONS` says how far, and
//! `RYOKAN_LOCKSTEP_ENGINES` on what (`interpreter,translator`).

use judge::lockstep::{Outcome, Setup, narrow, run};
use std::path::{Path, PathBuf};
use testkit::{foreign, guests};

/// What the guest does once it is up: work of many kinds, without end.
const WORK: &str = "mount -t proc proc /proc 2>/dev/null; n=0; while :; do n=$((n+1)); echo ROUND $n
(sleep 0.05 & wait); md5sum /bin/busybox; gzip -c /bin/busybox | sha256sum; ls -lR /sys 2>/dev/null | wc; awk 'BEGIN { for (i = 1; i < 20000; i++) s += \
sqrt(i) / 3; print s }'; seq 1 3000 | sort -r | tail -1; dd if=/dev/zero bs=64k count=32 2>/dev/null | cksum; cat /proc/interrupts \
>/dev/null; done";

/// Runs in lock step; the console must say `wanted` on the way.
fn boot(kernel: &Path, initrd: &Path, append: &str, instructions: u64, wanted: &str) {
    let engines = std::env::var("RYOKAN_LOCKSTEP_ENGINES").unwrap_or("interpreter,translator".into());
    let (first, second) = engines.split_once(',').expect("two engines");
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    let line = format!("console=ttyS0 panic=-1 nokaslr {append}");
    let arguments = ["-m", "128", "-cpu", "max,-rdrand,-rdseed", "-kernel", &kernel, "-initrd", &initrd];
    let mut arguments = arguments.map(String::from).to_vec();
    arguments.extend(["-append".into(), line]);
    let setup = Setup { arguments, pace: 2, longest: 4000, seed: 1 };
    let mut due = 0;
    let (progress, outcome) = run(&setup, [first, second], instructions, |progress| {
        if progress.instructions >= due {
            due = progress.instructions + 100_000_000;
            println!(
                "{} million instructions, {} windows, at {:#x}",
                progress.instructions / 1_000_000,
                progress.windows,
                progress.rip
            );
        }
    })
    .unwrap();
    println!("{}", progress.console);
    println!(
        "{} instructions, {} windows, {} halts",
        progress.instructions, progress.windows, progress.halts
    );
    match outcome {
        Outcome::Agreed => assert!(progress.console.contains(wanted), "not as far as {wanted:?}"),
        Outcome::Ended(how) => panic!("the guest ended: {how:?}"),
        Outcome::Diverged(found) => {
            println!("window {}: {}", found.window, found.text);
            panic!("{}", narrow(&setup, [first, second], &found).unwrap());
        }
    }
}

fn initrd(name: &str) -> PathBuf {
    guests::initramfs_file(name, WORK, &[]).unwrap()
}

fn instructions(default: u64) -> u64 {
    std::env::var("RYOKAN_LOCKSTEP_INSTRUCTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
#[ignore = "two billion instructions: cargo test -p judge --test lockstep -- --ignored"]
fn cloud_kernel() {
    boot(
        &guests::kernel("linux-image-cloud-amd64").unwrap(),
        &initrd("lockstep"),
        "",
        instructions(2_000_000_000),
        "ROUND",
    );
}

/// Its first 2.3 billion instructions unpack the kernel; it is at work 0.6 billion later.
#[test]
#[ignore = "five billion instructions: cargo test -p judge --test lockstep -- --ignored"]
fn i386_kernel_with_pae() {
    let busybox = foreign::busybox_i386().unwrap();
    let initrd = guests::initramfs_of(&busybox, "lockstep-i386", WORK).unwrap();
    // Self-tests of cryptography take longer than all else; what comes first is told early.
    let append = "cryptomgr.notests earlyprintk=serial,ttyS0,115200";
    boot(&foreign::kernel_i386().unwrap(), &initrd, append, instructions(5_000_000_000), "ROUND");
}

#[test]
fn the_first_instructions_of_the_cloud_kernel() {
    let kernel = guests::kernel("linux-image-cloud-amd64").unwrap();
    boot(&kernel, &initrd("lockstep-short"), "", instructions(30_000_000).min(30_000_000), "");
}
