//! Flash chips: UEFI firmware runs from them and keeps its variables, test programs program them.

use serde_json::json;
use std::path::{Path, PathBuf};
use testkit::linux::BOOT;
use testkit::{Linux, Qtest, Vm, guests};

fn ovmf(name: &str) -> PathBuf {
    guests::package("ovmf").unwrap().join("usr/share/OVMF").join(name)
}

/// Options for firmware and variables as `-drive`s.
fn drives(code: &Path, variables: &Path) -> [String; 4] {
    let drive = |path: &Path, more: &str| format!("if=pflash,format=raw,file={}{more}", path.display());
    ["-drive".into(), drive(code, ",readonly=on"), "-drive".into(), drive(variables, "")]
}

#[test]
fn uefi_keeps_its_variables() {
    let dir = tempfile::tempdir().unwrap();
    let variables = dir.path().join("vars.fd");
    std::fs::copy(ovmf("OVMF_VARS.fd"), &variables).unwrap();
    let chips = drives(&ovmf("OVMF_CODE.fd"), &variables);
    let mut args = vec!["-m", "256"];
    args.extend(chips.iter().map(String::as_str));
    let mut vm = Vm::start(&args).unwrap();
    vm.expect("Shell>", BOOT).unwrap();
    vm.type_in("setvar RyokanTest -guid e7e1efa6-7607-4a78-a7dd-43e4bd72c099 -nv -bs =1234abcd\r").unwrap();
    vm.expect("Shell>", BOOT).unwrap();
    vm.kill().unwrap();
    args.extend(["-M", "q35"]);
    let mut vm = Vm::start(&args).unwrap();
    vm.expect("Shell>", BOOT).unwrap();
    vm.type_in("setvar RyokanTest -guid e7e1efa6-7607-4a78-a7dd-43e4bd72c099\r").unwrap();
    vm.expect("12 34 AB CD", BOOT).unwrap();
    let drives = vm.qmp.execute("query-block", json!({})).unwrap();
    assert_eq!(drives[0]["device"], "pflash0");
    assert_eq!(drives[1]["qdev"], "/machine/system.flash1");
}

#[test]
fn uefi_starts_linux() {
    let dir = tempfile::tempdir().unwrap();
    let variables = dir.path().join("vars.fd");
    std::fs::copy(ovmf("OVMF_VARS_4M.fd"), &variables).unwrap();
    // As libvirt says it.
    let code = format!("driver=file,filename={},node-name=code-file", ovmf("OVMF_CODE_4M.fd").display());
    let file = format!("driver=file,filename={},node-name=vars-file", variables.display());
    let mut linux = Linux::boot(
        "linux-image-cloud-amd64",
        &[
            "-machine",
            "q35,pflash0=code,pflash1=vars",
            "-m",
            "512",
            "-blockdev",
            &code,
            "-blockdev",
            "node-name=code,read-only=on,driver=raw,file=code-file",
            "-blockdev",
            &file,
            "-blockdev",
            "node-name=vars,read-only=off,driver=raw,file=vars-file",
        ],
    )
    .unwrap();
    let there = linux.shell("test -d /sys/firmware/efi && echo by-firmware").unwrap();
    assert!(there.contains("by-firmware"), "{there}");
    linux.power_off().unwrap();
}

#[test]
fn uefi_given_by_bios_starts_linux() {
    let firmware = guests::package("ovmf").unwrap().join("usr/share/ovmf/OVMF.fd");
    let args = ["-M", "q35", "-m", "512", "-bios", firmware.to_str().unwrap()];
    let mut linux = Linux::boot_with("linux-image-cloud-amd64", &args, "ryokan.word=here").unwrap();
    let seen = linux.shell("test -d /sys/firmware/efi && echo by-firmware; cat /proc/cmdline").unwrap();
    assert!(seen.contains("by-firmware") && seen.contains("ryokan.word=here"), "{seen}");
    linux.power_off().unwrap();
}

#[test]
fn a_bios_beside_a_kernel_starts_it_or_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.bin");
    std::fs::write(&other, vec![0xf4; 65536]).unwrap();
    let other = other.display().to_string();
    let kernel = guests::kernel("linux-image-cloud-amd64").unwrap().display().to_string();
    let args = |bios: &str| ["-display", "none", "-kernel", &kernel, "-bios", bios].map(String::from);
    for (bios, text) in [
        (other.as_str(), "is no UEFI firmware and cannot start the kernel of -kernel"),
        (other.as_str(), "leave -bios out"),
        ("absent.bin", "could not load PC BIOS 'absent.bin'"),
    ] {
        let args = args(bios);
        let why = Vm::start_plain(&args.each_ref().map(String::as_str)).err().unwrap();
        assert!(why.contains(text), "{bios}: {why}");
    }
    // The default BIOS is what direct boot stands for, by whatever name.
    let default = "/usr/share/seabios/../seabios/bios-256k.bin";
    let linux = Linux::boot("linux-image-cloud-amd64", &["-bios", default]).unwrap();
    linux.power_off().unwrap();
}

#[test]
fn test_programs_program_and_erase() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("flash.img");
    std::fs::write(&image, vec![0x11; 65536]).unwrap();
    let drive = format!("if=pflash,format=raw,file={}", image.display());
    let mut machine = Qtest::start(&["-nodefaults", "-drive", &drive]).unwrap();
    // The end of the chip is below 1 MiB, too.
    assert_eq!((machine.read(0xffff_fff0, 1), machine.read(0xf_fff0, 1)), (vec![0x11], vec![0x11]));
    let write = |machine: &mut Qtest, offset: u64, value: u8| {
        machine.write(0xffff_0000 + offset, &[value]);
    };
    write(&mut machine, 0xf000, 0x20);
    write(&mut machine, 0xf000, 0xd0);
    write(&mut machine, 0xfff0, 0x40);
    write(&mut machine, 0xfff0, 0x77);
    assert_eq!(machine.read(0xffff_0000, 1), [0x80]);
    machine.vm.qmp.execute("system_reset", json!({})).unwrap();
    machine.vm.qmp.event("RESET", BOOT).unwrap();
    assert_eq!(machine.read(0xffff_efff, 3), [0x11, 0xff, 0xff]);
    assert_eq!(machine.read(0xf_fff0, 2), [0x77, 0xff]);
    drop(machine);
    let bytes = std::fs::read(&image).unwrap();
    assert_eq!((bytes[0xefff], bytes[0xf000], bytes[0xfff0], bytes[0xffff]), (0x11, 0xff, 0x77, 0xff));
}

#[test]
fn what_is_no_firmware_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, len: usize| {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![0; len]).unwrap();
        path.display().to_string()
    };
    let (good, odd, big) = (file("good", 65536), file("odd", 5120), file("big", 9 << 20));
    let flash = |file: &str, more: &str| format!("if=pflash,format=raw,file={file}{more}");
    let node = format!("driver=file,node-name=n,filename={good}");
    for (args, text) in [
        (vec!["-drive", &flash(&good, ",unit=1")], "pflash1 requires pflash0"),
        (vec!["-drive", &flash(&good, ",unit=2")], "machine type does not support if=pflash,bus=0,unit=2"),
        (vec!["-drive", &flash(&odd, "")], "system firmware block device pflash0 has invalid size 5120"),
        (vec!["-drive", &flash(&big, "")], "combined size of system firmware exceeds 8388608 bytes"),
        (vec!["-machine", "pflash0=nope"], "Property 'cfi.pflash01.drive' can't find value 'nope'"),
        (
            vec!["-blockdev", &node, "-machine", "pflash0=n", "-drive", &flash(&good, "")],
            "exclude each other",
        ),
        (vec!["-drive", &flash(&good, ""), "-bios", &good], "and flash chips (pflash) exclude each other"),
        (vec!["-drive", &flash(&good, ""), "-bios", &good], "leave -bios out"),
        (vec!["-machine", "none", "-drive", &flash(&good, "")], "machine type does not support if=pflash"),
    ] {
        let all = [&["-display", "none", "-accel", "qtest"][..], &args].concat();
        let why = Vm::start_plain(&all).err().unwrap();
        assert!(why.contains(text), "{args:?}: {why}");
    }
}
