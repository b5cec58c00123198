//! Other guests than Debian's 64-bit kernels, unmodified: firmware, GRUB, a 32-bit kernel,
//! Memtest86+, the Debian installer.

use std::path::PathBuf;
use testkit::disk::{self, Content};
use testkit::linux::{BOOT, Linux, SOON, complains};
use testkit::{Vm, foreign, guests};

/// Removes a file when the test ends.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn up_and_off(vm: &mut Vm) {
    vm.expect("GUEST-UP", BOOT).unwrap();
    vm.expect("# ", SOON).unwrap();
    let log = vm.shell("dmesg", SOON).unwrap();
    let complaints: Vec<&str> = log.lines().filter(|line| complains(line)).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    vm.type_in("poweroff -f\n").unwrap();
    vm.qmp.event("SHUTDOWN", SOON).unwrap();
    assert!(vm.wait(SOON).unwrap().success());
}

/// SeaBIOS, GRUB and Debian's kernel from a disk.
fn boots_from_disk(name: &str, drive: &str, args: &[&str]) {
    let kernel = guests::kernel("linux-image-cloud-amd64").unwrap();
    let initrd = guests::initramfs(guests::SHELL, &[]).unwrap();
    let content = Content { kernel: &kernel, initrd: &initrd, command_line: "console=ttyS0 panic=-1" };
    let image = Remove(disk::grub(name, &content).unwrap());
    let drive = format!("file={},format=raw,{drive}", image.0.display());
    let mut all = vec!["-m", "256", "-drive", drive.as_str()];
    all.extend(args);
    let mut vm = Vm::start(&all).unwrap();
    vm.expect("GRUB-UP", BOOT).unwrap();
    up_and_off(&mut vm);
}

#[test]
fn grub_from_an_ide_disk() {
    boots_from_disk("grub-ide", "if=ide", &[]);
}

#[test]
fn grub_from_virtio_blk() {
    boots_from_disk("grub-virtio", "if=none,id=d", &["-device", "virtio-blk-pci,drive=d,bootindex=1"]);
}

#[test]
fn grub_from_virtio_blk_on_q35() {
    boots_from_disk("grub-q35", "if=none,id=d", &["-M", "q35", "-device", "virtio-blk-pci,drive=d"]);
}

#[test]
fn i386_kernel_with_pae() {
    let kernel = foreign::kernel_i386().unwrap().display().to_string();
    let busybox = foreign::busybox_i386().unwrap();
    let initrd = Remove(guests::initramfs_of(&busybox, "i386", guests::SHELL).unwrap());
    let initrd = initrd.0.display().to_string();
    // Its self-tests of 8192-bit arithmetic take minutes without 64-bit multiplication.
    let line = "console=ttyS0 panic=-1 cryptomgr.notests";
    let args = ["-m", "256", "-kernel", &kernel, "-initrd", &initrd, "-append", line];
    let mut vm = Vm::start(&args).unwrap();
    let log = vm.expect("Run /init as init process", BOOT).unwrap();
    assert!(log.contains("686-pae"), "{log}");
    up_and_off(&mut vm);
}

/// A hypervisor with a paravirtual Linux in its first domain, on two processors.
#[test]
fn xen_runs_linux() {
    let packed = guests::package("xen-hypervisor-4.17-amd64").unwrap().join("boot/xen-4.17-amd64.gz");
    let xen = Remove(guests::cache().join(format!("xen-{}", std::process::id())));
    let unpacked = std::process::Command::new("gzip").arg("-dc").arg(packed).output().unwrap();
    std::fs::write(&xen.0, unpacked.stdout).unwrap();
    let kernel = guests::kernel("linux-image-cloud-amd64").unwrap();
    let initrd = Remove(guests::initramfs_file("xen", guests::SHELL, &[]).unwrap());
    let modules = format!("{} console=hvc0 earlyprintk=xen,{}", kernel.display(), initrd.0.display());
    let image = xen.0.display().to_string();
    let line = "console=com1 com1=115200,8n1 dom0_mem=400M";
    let args = ["-m", "768", "-smp", "2", "-kernel", &image, "-append", line, "-initrd", &modules];
    let mut vm = Vm::start(&args).unwrap();
    vm.expect("Brought up 2 CPUs", BOOT).unwrap();
    vm.expect("Run /init as init process", BOOT).unwrap();
}

/// Linux finds AVX-512, and its programs keep their registers whatever comes between.
#[test]
fn programs_use_avx512() {
    if !std::arch::is_x86_feature_detected!("avx512vl") {
        eprintln!("skipped: the host has no AVX-512");
        return;
    }
    let flags = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"];
    let program = guests::c_program("vectors", &flags).unwrap();
    let files: [(&str, &[u8]); 1] = [("bin/vectors", &program)];
    let args = ["-m", "256", "-cpu", "max", "-smp", "2"];
    let mut guest = Linux::boot_holding("linux-image-cloud-amd64", &args, "", &[], &files).unwrap();
    guest.shell("dmesg -n 1").unwrap();
    assert_eq!(guest.shell("grep -c avx512vl /proc/cpuinfo").unwrap().trim(), "2");
    let said = guest.shell("vectors 3").unwrap();
    assert!(said.contains("VECTORS PASS"), "{said}");
    let registers = guest.vm.qmp.hmp("info registers").unwrap();
    assert!(registers.contains("Opmask00=") && registers.contains("ZMM31="), "{registers}");
    assert_eq!(guest.complaints().unwrap(), Vec::<String>::new());
    guest.power_off().unwrap();
}

#[test]
fn memtest_reaches_its_test_screen() {
    let (image, _) = guests::memtest().unwrap();
    let image = image.display().to_string();
    let mut vm = Vm::start(&["-m", "64", "-kernel", &image, "-append", "console=ttyS0,115200"]).unwrap();
    vm.expect("Memtest86+", BOOT).unwrap();
    vm.expect("Test", BOOT).unwrap();
    vm.expect("Address test", BOOT).unwrap();
    let errors = vm.expect("Errors: ", BOOT).unwrap();
    assert!(!errors.contains("Panic"), "{errors}");
}

#[test]
#[ignore = "long"]
fn memtest_passes_over_all_memory_once() {
    let (image, _) = guests::memtest().unwrap();
    let image = image.display().to_string();
    let mut vm = Vm::start(&["-m", "64", "-kernel", &image, "-append", "console=ttyS0,115200"]).unwrap();
    vm.expect("Pass:  1", BOOT * 6).unwrap();
    vm.expect("Errors: ", BOOT).unwrap();
    vm.expect("Errors: ", BOOT).unwrap();
    let console = vm.console();
    let counts = console.split("Errors: ").skip(1).map(|rest| rest.split_whitespace().next());
    assert!(counts.clone().count() > 2 && counts.clone().all(|count| count == Some("0")), "{counts:?}");
}

#[test]
fn memtest_boots_from_cd() {
    let (_, iso) = guests::memtest().unwrap();
    let iso = iso.display().to_string();
    // Its GRUB has no serial terminal: what shows is the BIOS handing over.
    let log = std::env::temp_dir().join(format!("ryokan-cd-{}", std::process::id()));
    let chardev = format!("file,id=c,path={}", log.display());
    let args =
        ["-m", "128", "-cdrom", &iso, "-chardev", &chardev, "-device", "isa-debugcon,iobase=0x402,chardev=c"];
    let _vm = Vm::start(&args).unwrap();
    let log = Remove(log);
    let end = std::time::Instant::now() + BOOT;
    loop {
        let text = std::fs::read_to_string(&log.0).unwrap_or_default();
        if text.contains("Booting from DVD/CD") && text.contains("Booting from 0000:7c00") {
            return;
        }
        assert!(std::time::Instant::now() < end && !text.contains("No bootable device"), "{text}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn installer_asks_for_a_language() {
    let (kernel, initrd) = guests::installer().unwrap();
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    // One of the few terminals that its initrd describes; without, it asks for ever in vain.
    let line = "console=ttyS0 TERM=vt102 priority=low cryptomgr.notests";
    let args = ["-m", "1024", "-cpu", "max", "-kernel", &kernel, "-initrd", &initrd, "-append", line];
    let mut vm = Vm::start(&args).unwrap();
    vm.expect("language", BOOT * 2).unwrap();
}

#[test]
fn seabios_runs_under_kvm() {
    if !std::path::Path::new("/dev/kvm").exists() {
        eprintln!("skipped: no /dev/kvm");
        return;
    }
    let log = Remove(std::env::temp_dir().join(format!("ryokan-kvm-{}", std::process::id())));
    let chardev = format!("file,id=c,path={}", log.0.display());
    let device = "isa-debugcon,iobase=0x402,chardev=c";
    let args = ["-accel", "kvm", "-m", "64", "-chardev", &chardev, "-device", device];
    let mut vm = Vm::start(&args).unwrap();
    let end = std::time::Instant::now() + BOOT;
    while !std::fs::read_to_string(&log.0).unwrap_or_default().contains("Booting from Hard Disk") {
        assert!(std::time::Instant::now() < end, "{:?}", std::fs::read_to_string(&log.0));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let kvm = vm.qmp.execute("query-kvm", serde_json::Value::Null).unwrap();
    assert_eq!(kvm["enabled"], true);
}
