//! The LSI53C895A: drives of `if=scsi`, firmware, a test program and Linux drive it.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use testkit::linux::{BOOT, SOON};
use testkit::{Linux, Qtest, Vm, guests};

/// An image of `len` bytes, removed when dropped.
struct Image(PathBuf);

impl Image {
    fn new(name: &str, start: &[u8], len: usize) -> Image {
        let path = std::env::temp_dir().join(format!("ryokan-lsi-{name}-{}.img", std::process::id()));
        let mut bytes = vec![0; len];
        bytes[..start.len()].copy_from_slice(start);
        std::fs::write(&path, bytes).unwrap();
        Image(path)
    }

    fn drive(&self, rest: &str) -> String {
        format!("file={},format=raw,if=scsi{rest}", self.0.display())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Slot of the first controller on bus 0, its I/O space at c000h, bus master.
fn controller(machine: &mut Qtest) -> u32 {
    let found = (0..32).find(|&slot| machine.config_read(slot, 0, 0) == 0x0012_1000);
    let slot = found.expect("an LSI53C895A");
    machine.config_write(slot, 0, 0x10, 0xc000);
    machine.config_write(slot, 0, 4, 5);
    slot
}

#[test]
fn drives_get_controllers_and_places() {
    let (first, second) = (Image::new("p1", b"ONE", 1 << 20), Image::new("p2", b"TWO", 1 << 20));
    let args = [
        "-drive",
        &first.drive(""),
        "-drive",
        &second.drive(",bus=1,unit=3,serial=abc"),
        "-drive",
        "if=scsi,media=cdrom,index=4",
    ];
    let mut vm = Qtest::start(&args).unwrap();
    let list = vm.vm.qmp.execute("query-block", Value::Null).unwrap();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|drive| drive["device"].clone()).collect();
    assert_eq!(&names[..3], ["scsi0-hd0", "scsi1-hd3", "scsi0-cd4"]);
    let tree = vm.vm.qmp.hmp("info qtree").unwrap();
    for wanted in ["bus: scsi.0", "bus: scsi.1", "scsi-id = 3", "scsi-id = 4", "dev: lsi53c895a"] {
        assert!(tree.contains(wanted), "{wanted} is not in\n{tree}");
    }
    let slot = controller(&mut vm);
    assert_eq!(vm.config_read(slot, 0, 8) >> 8, 0x01_0000);
    // Firmware's program: select target 0, READ(10) of the first sector.
    vm.write(0x8000, &[0x80]);
    vm.write(0x8010, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let program: [u32; 16] = [
        0x4000_0000,
        0,
        0x0600_0001,
        0x8000,
        0x0200_0010,
        0x8010,
        0x0100_0200,
        0x9000,
        0x0300_0001,
        0x8020,
        0x0700_0001,
        0x8021,
        0x9808_0000,
        0x77,
        0,
        0,
    ];
    let bytes: Vec<u8> = program.iter().flat_map(|word| word.to_le_bytes()).collect();
    vm.write(0x7000, &bytes);
    vm.outl(0xc02c, 0x7000);
    let end = std::time::Instant::now() + SOON;
    while vm.inb(0xc014) & 3 == 0 {
        assert!(std::time::Instant::now() < end);
    }
    assert_eq!((vm.inb(0xc00c) & 0x7f, vm.inb(0xc042), vm.inl(0xc030)), (4, 0, 0x77));
    assert_eq!((vm.read(0x9000, 3), vm.read(0x8020, 2)), (b"ONE".to_vec(), vec![0, 0]));
    let too_far = format!("file={},format=raw,if=scsi,unit=7", first.0.display());
    let why = Vm::start_plain(&["-display", "none", "-accel", "qtest", "-drive", &too_far]).err().unwrap();
    assert!(why.contains("unit 7 too big (max is 6)"), "{why}");
}

#[test]
fn it_comes_and_goes_without_a_guest() {
    let mut vm = Qtest::start(&["-blockdev", "driver=null-co,node-name=n0"]).unwrap();
    let add = |vm: &mut Qtest, device: Value| vm.vm.qmp.execute("device_add", device);
    let del = |vm: &mut Qtest, id: &str| vm.vm.qmp.execute("device_del", json!({ "id": id }));
    add(&mut vm, json!({"driver": "lsi", "id": "scsi0", "addr": "0x8"})).unwrap();
    let disk = json!({"driver": "scsi-hd", "bus": "scsi0.0", "scsi-id": 0, "drive": "n0", "id": "disk"});
    add(&mut vm, disk.clone()).unwrap();
    let taken = add(&mut vm, json!({"driver": "scsi-cd", "bus": "scsi0.0", "scsi-id": 0, "lun": 0}));
    assert_eq!(taken.unwrap_err(), "GenericError: lun already used by 'disk'");
    let wide = add(&mut vm, json!({"driver": "scsi-cd", "bus": "scsi0.0", "scsi-id": 8}));
    assert_eq!(wide.unwrap_err(), "GenericError: bad scsi device id: 8");
    // Disks go at once, the controller at the reset with what is on it.
    del(&mut vm, "disk").unwrap();
    let gone = |vm: &mut Qtest| vm.vm.qmp.event("DEVICE_DELETED", SOON).unwrap()["data"]["path"].clone();
    assert_eq!(gone(&mut vm), "/machine/peripheral/disk");
    add(&mut vm, disk).unwrap();
    del(&mut vm, "scsi0").unwrap();
    vm.vm.qmp.execute("system_reset", Value::Null).unwrap();
    assert_eq!(gone(&mut vm), "/machine/peripheral/disk");
    assert_eq!(gone(&mut vm), "/machine/peripheral/scsi0");
    add(&mut vm, json!({"driver": "virtio-blk-pci", "drive": "n0", "addr": "0x8"})).unwrap();
}

#[test]
fn seabios_boots_from_it() {
    // mov dx,3f8h; lodsb from the text; out dx,al until a zero; hlt.
    let mut sector = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x12, 0x7c, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x0a, 0xee, 0xeb,
        0xf8,
    ];
    sector.extend(b"BOOTED\0\xf4");
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let disk = Image::new("boot", &sector, 1 << 20);
    let bios = guests::package("seabios").unwrap().join("usr/share/seabios/bios-256k.bin");
    let (bios, drive) = (bios.display().to_string(), disk.drive(""));
    let mut vm = Vm::start(&["-m", "64", "-bios", &bios, "-drive", &drive, "-boot", "c"]).unwrap();
    vm.expect("BOOTED", BOOT).unwrap();
}

fn sha256(path: &Path, len: usize) -> String {
    let bytes = std::fs::read(path).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes[..len]).unwrap();
    let output = std::process::Command::new("sha256sum").arg(file.path()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap().to_string()
}

#[test]
fn linux_reads_writes_and_finds_new_disks() {
    const LEN: usize = 6 << 20;
    let (first, second) = (Image::new("l1", b"FIRST", 16 << 20), Image::new("l2", b"SECOND", 16 << 20));
    let args = ["-m", "512", "-drive", &first.drive("")];
    let modules = ["sym53c8xx", "sd_mod"];
    let mut linux = Linux::boot_loaded("linux-image-amd64", &args, "", &modules).unwrap();
    linux.shell("dmesg -n 1").unwrap();
    assert_eq!(linux.shell("head -c 5 /dev/sda").unwrap().trim(), "FIRST");
    // Several writers at once, each to a part of its own; then all is read back.
    linux.shell(&format!("head -c {LEN} /dev/urandom > /tmp/r")).unwrap();
    let part = "dd if=/tmp/r of=/dev/sda bs=64k skip=$i seek=$i count=32 conv=notrunc";
    linux.shell(&format!("for i in 0 32 64; do {part} & done; wait; sync")).unwrap();
    linux.shell("echo 3 > /proc/sys/vm/drop_caches").unwrap();
    let sum = |linux: &mut Linux, what: &str| {
        let text = linux.shell(&format!("head -c {LEN} {what} | sha256sum")).unwrap();
        text.split_whitespace().next().unwrap_or_default().to_string()
    };
    let written = sum(&mut linux, "/tmp/r");
    assert_eq!(sum(&mut linux, "/dev/sda"), written);
    assert_eq!(sha256(&first.0, LEN), written);
    // A second disk is found by a scan, and let go before it is taken away.
    let node = json!({"driver": "raw", "node-name": "n1", "file": {"driver": "file", "filename": second.0}});
    linux.vm.qmp.execute("blockdev-add", node).unwrap();
    let disk = json!({"driver": "scsi-hd", "bus": "scsi.0", "scsi-id": 5, "drive": "n1", "id": "new"});
    linux.vm.qmp.execute("device_add", disk).unwrap();
    linux.shell("echo '- - -' > /sys/class/scsi_host/host0/scan").unwrap();
    assert_eq!(linux.shell("head -c 6 /dev/sdb").unwrap().trim(), "SECOND");
    linux.shell("echo THIRD | dd of=/dev/sdb bs=512 conv=fsync,notrunc").unwrap();
    linux.shell("echo 1 > /sys/block/sdb/device/delete").unwrap();
    linux.vm.qmp.execute("device_del", json!({"id": "new"})).unwrap();
    linux.vm.qmp.event("DEVICE_DELETED", SOON).unwrap();
    assert_eq!(&std::fs::read(&second.0).unwrap()[..5], b"THIRD");
    // Nothing is there any more: the selection times out.
    linux.shell("echo '- - -' > /sys/class/scsi_host/host0/scan").unwrap();
    assert_eq!(linux.shell("test -b /dev/sdb || echo gone").unwrap().trim(), "gone");
    // The driver begins with a reset of the bus. Whatever else a loaded host makes the kernel complain of: not of the controller.
    let trouble = "dmesg | grep -iE '(sym0|sd[ab]|I/O).*(abort|reset|error|timeout|unexpected|phase)' | \
                   grep -v 'BUS has been reset'";
    assert_eq!(linux.shell(trouble).unwrap().trim(), "");
    linux.power_off().unwrap();
}
