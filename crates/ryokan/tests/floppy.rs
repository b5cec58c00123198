//! Floppy disks: firmware boots from one, Linux reads, writes and changes them.

use serde_json::json;
use std::path::PathBuf;
use testkit::linux::BOOT;
use testkit::{Linux, Qtest, Vm, guests};

/// A disk of 1.44 MB that begins with these bytes; removed when dropped.
struct Disk(PathBuf);

impl Disk {
    fn new(name: &str, start: &[u8]) -> Disk {
        let path = std::env::temp_dir().join(format!("ryokan-{name}-{}.img", std::process::id()));
        let mut bytes = vec![0; 1_474_560];
        bytes[..start.len()].copy_from_slice(start);
        std::fs::write(&path, bytes).unwrap();
        Disk(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn seabios_boots_from_a_floppy() {
    // mov dx,3f8h; lodsb from the text; out dx,al until a zero; hlt.
    let mut sector = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x12, 0x7c, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x09, 0xee, 0xeb,
        0xf8,
    ];
    sector.extend(b"BOOTED\0\xf4");
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // The jump at the end of the text leads to the hlt.
    sector[14] = (0x12 + 7 - 15) as u8;
    let disk = Disk::new("floppy-boot", &sector);
    let bios = guests::package("seabios").unwrap().join("usr/share/seabios/bios-256k.bin");
    let (bios, image) =
        (bios.display().to_string(), format!("file={},format=raw,if=floppy", disk.0.display()));
    let args = ["-m", "64", "-bios", &bios, "-drive", &image, "-boot", "a"];
    let mut vm = Vm::start(&args).unwrap();
    vm.expect("BOOTED", BOOT).unwrap();
}

#[test]
fn linux_reads_writes_and_changes() {
    let (first, second) = (Disk::new("floppy-1", b"FIRST DISK"), Disk::new("floppy-2", b"OTHER DISK"));
    let image = format!("file={},format=raw,if=floppy", first.0.display());
    let args = ["-m", "512", "-drive", image.as_str()];
    let mut linux = Linux::boot_loaded("linux-image-amd64", &args, "", &["floppy"]).unwrap();
    linux.shell("dmesg -n 1").unwrap();
    assert_eq!(linux.shell("head -c 10 /dev/fd0").unwrap().trim(), "FIRST DISK");
    linux.shell("head -c 100000 /dev/zero | tr '\\0' x > /tmp/x; dd if=/tmp/x of=/dev/fd0 bs=512 seek=100 conv=fsync").unwrap();
    let there =
        linux.shell("dd if=/dev/fd0 bs=512 skip=100 count=195 2>/dev/null | tr -dc x | wc -c").unwrap();
    assert_eq!(there.trim(), "99840");
    let bytes = std::fs::read(&first.0).unwrap();
    assert!(bytes[51200..151_200].iter().all(|&byte| byte == b'x') && bytes[151_200] != b'x');
    let change = json!({"device": "floppy0", "filename": second.0, "format": "raw"});
    linux.vm.qmp.execute("blockdev-change-medium", change).unwrap();
    assert_eq!(linux.shell("head -c 10 /dev/fd0").unwrap().trim(), "OTHER DISK");
    assert_eq!(linux.complaints().unwrap(), Vec::<String>::new());
    linux.power_off().unwrap();
}

#[test]
fn firmware_is_told_of_the_drives() {
    let cmos = |machine: &mut Qtest, index: u8| {
        machine.outb(0x70, index);
        machine.inb(0x71)
    };
    let small = Disk::new("floppy-cmos", b"");
    let image = format!("driver=raw,file.filename={},node-name=n0", small.0.display());
    let image = image.replace("file.filename", "file.driver=file,file.filename");
    for (args, kinds, equipment) in [
        (&[][..], 0, 0x06),
        (&["-device", "floppy,drive=n0"][..], 0x40, 0x07),
        (&["-device", "floppy,drive=n0,unit=1,drive-type=120", "-device", "floppy"][..], 0x52, 0x47),
        (&["-global", "isa-fdc.driveA=n0"][..], 0x40, 0x07),
        (&["-M", "q35", "-device", "isa-fdc,driveB=n0,fdtypeB=288"][..], 0x05, 0x07),
    ] {
        let all = [&["-nodefaults", "-blockdev", &image][..], args].concat();
        let mut machine = Qtest::start(&all).unwrap();
        assert_eq!((cmos(&mut machine, 0x10), cmos(&mut machine, 0x14)), (kinds, equipment), "{args:?}");
    }
    let sizes = "Physical and logical block size must be 512 for floppy";
    let automatic = "is already in use because it has been automatically connected to another device";
    for (args, text) in [
        (
            &["-device", "floppy,drive=n0,logical_block_size=4096"][..],
            "logical_block_size > physical_block_size not supported",
        ),
        (&["-device", "floppy,drive=n0,physical_block_size=1024"][..], sizes),
        (&["-device", "floppy,drive=n0,werror=stop"][..], "Property 'floppy.werror' not found"),
        (
            &["-drive", "if=none,werror=stop", "-device", "floppy,drive=none0"][..],
            "fdc doesn't support drive option werror",
        ),
        (&["-drive", "if=floppy", "-device", "floppy,drive=floppy0"][..], automatic),
        (
            &["-drive", "if=none", "-global", "floppy.drive=none0", "-device", "floppy", "-device", "floppy"]
                [..],
            "can't apply global floppy.drive=none0: Drive 'none0' is already in use by another device",
        ),
    ] {
        let start = ["-display", "none", "-accel", "qtest", "-blockdev", &image];
        let why = Vm::start_plain(&[&start[..], args].concat()).err().unwrap();
        assert!(why.contains(text), "{args:?}: {why}");
    }
}

#[test]
fn the_device_tree_shows_values_in_use() {
    let image = Disk::new("floppy-tree", b"");
    let file = image.0.display().to_string();
    let mut machine =
        Qtest::start(&["-fdb", &file, "-drive", "if=floppy,index=0", "-device", "virtio-scsi-pci,addr=5"])
            .unwrap();
    let tree = machine.vm.qmp.hmp("info qtree").unwrap();
    let bus = tree.split("bus: floppy-bus.0\r\n").nth(1).unwrap();
    let lines: Vec<&str> = bus.lines().map(str::trim).collect();
    let drive = |unit: &str, name: &str, kind: &str| {
        let mut all = vec!["dev: floppy, id \"\"".to_string()];
        all.extend([format!("unit = {unit}"), format!("drive = \"{name}\"")]);
        all.extend(["backend_defaults = \"auto\"", "logical_block_size = 512 (512 B)"].map(String::from));
        all.extend(["physical_block_size = 512 (512 B)", "min_io_size = 0 (0 B)"].map(String::from));
        all.extend(["opt_io_size = 0 (0 B)", "discard_granularity = 4294967295 (4 GiB)"].map(String::from));
        all.extend(["write-cache = \"auto\"", "share-rw = false"].map(String::from));
        all.extend(["account-invalid = \"auto\"", "account-failed = \"auto\""].map(String::from));
        all.push(format!("drive-type = \"{kind}\""));
        all
    };
    // The newest device of a bus is the first.
    let wanted = [drive("1 (0x1)", "floppy1", "144"), drive("0 (0x0)", "floppy0", "288")].concat();
    assert_eq!(lines[1..=wanted.len()], wanted);
    assert!(tree.contains("addr = 05.0\r\n"), "{tree}");
}
