//! What a disk's properties tell the guest: Linux reads them back.

use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use testkit::{Linux, Qtest, Vm};

/// A file below `/sys`.
fn read(linux: &mut Linux, path: &str) -> String {
    linux.shell(&format!("cat /sys/{path}")).unwrap().trim().to_string()
}

fn check(linux: &mut Linux, below: &str, expected: &[(&str, &str)]) {
    for (path, wanted) in expected {
        assert_eq!(read(linux, &format!("{below}/{path}")), *wanted, "{below}/{path}");
    }
}

#[test]
fn linux_sees_them() {
    let node = |name: &str| format!("driver=null-co,read-zeroes=on,size=64M,node-name={name}");
    let nodes = ["a", "b", "c"].map(node);
    let args = [
        "-m",
        "512",
        "-smp",
        "2",
        "-nodefaults",
        "-blockdev",
        &nodes[0],
        "-blockdev",
        &nodes[1],
        "-blockdev",
        &nodes[2],
        "-object",
        "iothread,id=t0",
        "-device",
        "virtio-blk-pci,drive=a,serial=V-1,logical_block_size=4096,physical_block_size=8192,min_io_size=16384,\
         opt_io_size=65536,discard_granularity=32768,num-queues=2,queue-size=64,write-cache=off,config-wce=off,\
         iothread=t0,share-rw=on,id=disk0",
        "-device",
        "virtio-scsi-pci,id=s",
        "-device",
        "scsi-hd,bus=s.0,drive=b,scsi-id=2,lun=3,serial=S-1,wwn=0x5000c50015ea71ac,vendor=VEND,product=PROD,\
         ver=1.23,rotation_rate=1,physical_block_size=4096,min_io_size=4096,opt_io_size=65536,\
         discard_granularity=8192,dpofua=on,removable=on,id=disk1",
        "-device",
        "ide-hd,bus=ide.1,unit=1,drive=c,serial=I-1,model=MODEL,ver=2.34,wwn=0x5000c50015ea71ad,\
         rotation_rate=7200,physical_block_size=4096,write-cache=off,id=disk2",
    ];
    let modules = ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix"];
    let mut linux = Linux::boot_loaded("linux-image-amd64", &args, "", &modules).unwrap();
    linux.shell("dmesg -n 1").unwrap();
    check(
        &mut linux,
        "block/vda",
        &[
            ("serial", "V-1"),
            ("cache_type", "write through"),
            ("queue/logical_block_size", "4096"),
            ("queue/physical_block_size", "8192"),
            ("queue/minimum_io_size", "16384"),
            ("queue/optimal_io_size", "65536"),
            ("queue/discard_granularity", "32768"),
            ("size", "131072"),
        ],
    );
    assert_eq!(linux.shell("ls /sys/block/vda/mq | wc -l").unwrap().trim(), "2");
    // SCSI disks are looked for behind the back of who loads their drivers.
    let found = (0..60).any(|_| {
        std::thread::sleep(Duration::from_millis(500));
        linux.shell("ls -d /sys/block/sd* | wc -l").unwrap().trim() == "2"
    });
    assert!(found, "{}", linux.shell("dmesg | grep -iE 'scsi|ata' | tail -60").unwrap());
    // Which SCSI disk is found first is the kernel's affair.
    let scsi = linux.shell("basename /sys/bus/scsi/devices/*:0:2:3/block/*").unwrap().trim().to_string();
    check(
        &mut linux,
        &format!("block/{scsi}"),
        &[
            ("removable", "1"),
            ("device/vendor", "VEND"),
            ("device/model", "PROD"),
            ("device/rev", "1.23"),
            ("device/wwid", "naa.5000c50015ea71ac"),
            ("queue/rotational", "0"),
            ("queue/logical_block_size", "512"),
            ("queue/physical_block_size", "4096"),
            ("queue/minimum_io_size", "4096"),
            ("queue/optimal_io_size", "65536"),
            ("queue/discard_granularity", "8192"),
        ],
    );
    let serial = linux.shell(&format!("tail -c 3 /sys/block/{scsi}/device/vpd_pg80")).unwrap();
    assert_eq!(serial.trim(), "S-1");
    assert_eq!(linux.shell("cat /sys/class/scsi_disk/*:0:2:3/FUA").unwrap().trim(), "1");
    let ide = if scsi == "sda" { "sdb" } else { "sda" };
    check(
        &mut linux,
        &format!("block/{ide}"),
        &[
            ("device/model", "MODEL"),
            ("device/rev", "2.34"),
            ("device/wwid", "naa.5000c50015ea71ad"),
            ("queue/rotational", "1"),
            ("queue/physical_block_size", "4096"),
        ],
    );
    let cache = linux.shell(&format!("cat /sys/block/{ide}/device/scsi_disk/*/cache_type")).unwrap();
    assert_eq!(cache.trim(), "write through");
    let serial = linux.shell(&format!("tail -c 20 /sys/block/{ide}/device/vpd_pg80")).unwrap();
    assert_eq!(serial.trim(), "I-1");
    // The same disks from outside.
    let list = linux.vm.qmp.execute("query-block", json!({})).unwrap();
    let paths: Vec<_> = list.as_array().unwrap().iter().map(|disk| disk["qdev"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/machine/peripheral/disk0/virtio-backend", "disk1", "disk2"]);
    linux.power_off().unwrap();
}

#[test]
fn help_and_qmp_name_the_same() {
    let mut vm = Vm::start_plain(&["-M", "none", "-display", "none"]).unwrap();
    for model in [
        "ide-hd",
        "ide-cd",
        "scsi-hd",
        "scsi-cd",
        "floppy",
        "isa-fdc",
        "virtio-blk-pci",
        "virtio-scsi-pci",
        "lsi53c895a",
        "ich9-ahci",
    ] {
        let asked = json!({ "typename": model });
        let list = vm.qmp.execute("device-list-properties", asked).unwrap();
        let names = list.as_array().unwrap().iter().map(|property| property["name"].as_str().unwrap());
        let listed: BTreeSet<String> = names.map(str::to_string).collect();
        let help = std::process::Command::new(testkit::vm::binary())
            .args(["-device", &format!("{model},help")])
            .output()
            .unwrap();
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let helped =
            help.lines().filter_map(|line| line.trim().split_once("=<")).map(|(name, _)| name.to_string());
        assert_eq!(listed, helped.collect(), "{model}");
        // A fixed disk has a geometry, what is removable and a floppy's place are not for it.
        let fixed = matches!(model, "ide-hd" | "scsi-hd" | "virtio-blk-pci");
        assert_eq!(listed.contains("cyls"), fixed, "{model}");
    }
}

/// A disk of `len` bytes whose first partition ends at head and sector `end`, if it has one.
fn partitioned(len: u64, end: Option<(u8, u8)>) -> tempfile::NamedTempFile {
    let mut record = [0; 512];
    if let Some((head, sector)) = end {
        record[446..462]
            .copy_from_slice(&[0x80, 1, 1, 0, 6, head, sector, 20, 63, 0, 0, 0, 0xa0, 0x86, 1, 0]);
        record[510..].copy_from_slice(&[0x55, 0xaa]);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), record).unwrap();
    file.as_file().set_len(len).unwrap();
    file
}

fn node(file: &tempfile::NamedTempFile) -> String {
    format!("driver=raw,node-name=n,file.driver=file,file.filename={}", file.path().display())
}

/// CMOS 12h, 19h and 1Ah, 39h, the parameters of the first two disks.
fn cmos(len: u64, end: Option<(u8, u8)>, device: &str) -> ([u8; 4], [u8; 9], [u8; 9]) {
    let file = partitioned(len, end);
    let device = format!("{device},drive=n");
    let mut machine = Qtest::start(&["-M", "pc", "-blockdev", &node(&file), "-device", &device]).unwrap();
    let mut get = |index: u8| {
        machine.outb(0x70, index);
        machine.inb(0x71)
    };
    let kinds = [0x12, 0x19, 0x1a, 0x39].map(&mut get);
    let mut disk = |from: u8| std::array::from_fn(|i| get(from + i as u8));
    (kinds, disk(0x1b), disk(0x24))
}

/// The values are those of QEMU 10 with the same disks.
#[test]
fn firmware_is_told_of_geometries() {
    const NONE: [u8; 9] = [0; 9];
    const MB: u64 = 1 << 20;
    let disk = |cylinders: u16, heads: u8, sectors: u8| {
        let [low, high] = cylinders.to_le_bytes();
        [low, high, heads, 0xff, 0xff, if heads > 8 { 0xc8 } else { 0xc0 }, low, high, sectors]
    };
    let first = |translation: u8, parameters: [u8; 9]| ([0xf0, 47, 0, translation], parameters, NONE);
    let any = "ide-hd,bus=ide.0";
    for (len, end, device, told) in [
        (8 * MB, None, any, first(0, disk(16, 16, 63))),
        (600 * MB, None, any, first(1, disk(1219, 16, 63))),
        (4096 * MB, None, "ide-hd,bus=ide.0,unit=1", ([0x0f, 0, 47, 4], NONE, disk(8322, 16, 63))),
        (4096 * MB, None, "ide-hd,bus=ide.1,unit=1", ([0, 0, 0, 0x40], NONE, NONE)),
        // As the partition was made for; heads of a translation; nonsense.
        (64 * MB, Some((15, 32)), any, first(0, disk(256, 16, 32))),
        (64 * MB, Some((254, 63)), any, first(2, disk(130, 16, 63))),
        (9216 * MB, Some((254, 63)), any, first(1, disk(16383, 16, 63))),
        (64 * MB, Some((15, 0)), any, first(0, disk(130, 16, 63))),
        (64 * MB, Some((0, 32)), any, first(0, disk(130, 16, 63))),
        (64 * MB, None, "ide-hd,bus=ide.0,cyls=2000,heads=4,secs=60", first(1, disk(2000, 4, 60))),
        (64 * MB, None, "ide-hd,bus=ide.0,bios-chs-trans=large", first(2, disk(130, 16, 63))),
        (4096 * MB, None, "ide-hd,bus=ide.0,bios-chs-trans=none", first(0, disk(8322, 16, 63))),
        (64 * MB, Some((15, 32)), "ide-hd,bus=ide.0,bios-chs-trans=rechs", first(3, disk(256, 16, 32))),
        (64 * MB, None, "ide-cd,bus=ide.0", ([0; 4], NONE, NONE)),
    ] {
        assert_eq!(cmos(len, end, device), told, "{device}, {len} bytes, {end:?}");
    }
}

/// The texts are those of QEMU 10.
#[test]
fn wrong_properties_are_refused() {
    let file = partitioned(1 << 20, None);
    let mut machine = Qtest::start(&["-device", "virtio-scsi-pci,id=s", "-blockdev", &node(&file)]).unwrap();
    for (device, why) in [
        (
            "virtio-blk-pci,logical_block_size=511",
            "parameter logical_block_size must be a power of 2 between 512 and 2097152",
        ),
        (
            "virtio-blk-pci,logical_block_size=1000",
            "parameter logical_block_size must be a power of 2 between 512 and 2097152",
        ),
        (
            "virtio-blk-pci,physical_block_size=4M",
            "parameter physical_block_size must be a power of 2 between 512 and 2097152",
        ),
        (
            "virtio-blk-pci,logical_block_size=4096,physical_block_size=512",
            "logical_block_size > physical_block_size not supported",
        ),
        ("virtio-blk-pci,min_io_size=700", "min_io_size must be a multiple of logical_block_size"),
        ("virtio-blk-pci,min_io_size=64M", "min_io_size must not exceed 65535 logical blocks"),
        ("virtio-blk-pci,opt_io_size=700", "opt_io_size must be a multiple of logical_block_size"),
        (
            "virtio-blk-pci,discard_granularity=700",
            "discard_granularity must be a multiple of logical_block_size",
        ),
        ("virtio-blk-pci,heads=256,cyls=1,secs=1", "heads must be between 1 and 255"),
        ("virtio-blk-pci,heads=6,secs=1", "cyls must be between 1 and 65535"),
        ("virtio-blk-pci,queue-size=2", "invalid queue-size property (2), must be > 2"),
        (
            "virtio-blk-pci,queue-size=100",
            "invalid queue-size property (100), must be a power of 2 (max 1024)",
        ),
        (
            "virtio-blk-pci,queue-size=2048",
            "invalid queue-size property (2048), must be a power of 2 (max 1024)",
        ),
        ("virtio-blk-pci,num-queues=0", "num-queues property must be larger than 0"),
        (
            "virtio-blk-pci,max-discard-sectors=0",
            "invalid max-discard-sectors property (0), must be between 1 and 4194303",
        ),
        (
            "virtio-blk-pci,max-write-zeroes-sectors=4194304",
            "invalid max-write-zeroes-sectors property (4194304), must be between 1 and 4194303",
        ),
        ("virtio-blk-pci,write-cache=maybe", "Parameter 'write-cache' does not accept value 'maybe'"),
        ("virtio-blk-pci,share-rw=7", "Parameter 'share-rw' expects 'on' or 'off'"),
        ("virtio-blk-pci,scsi=on", "Property 'virtio-blk-pci.scsi' not found"),
        ("virtio-blk-pci,x-data-plane=on", "Property 'virtio-blk-pci.x-data-plane' not found"),
        ("virtio-blk-pci,wwn=1", "Property 'virtio-blk-pci.wwn' not found"),
        ("scsi-hd,bus=s.0,channel=1", "bad scsi channel id: 1"),
        ("scsi-hd,bus=s.0,scsi-id=256", "bad scsi device id: 256"),
        ("scsi-hd,bus=s.0,lun=16384", "bad scsi device lun: 16384"),
        (
            "scsi-hd,bus=s.0,serial=1234567890123456789012345678901234567",
            "The serial number can't be longer than 36 characters",
        ),
        ("scsi-cd,bus=s.0,cyls=3", "Property 'scsi-cd.cyls' not found"),
        // Nothing here could judge what passes commands through.
        ("scsi-block,bus=s.0", "'scsi-block' is not a valid device model name"),
        ("scsi-generic,bus=s.0", "'scsi-generic' is not a valid device model name"),
        ("usb-storage", "'usb-storage' is not a valid device model name"),
    ] {
        let said = machine.vm.qmp.hmp(&format!("device_add {device},drive=n")).unwrap();
        assert!(said.trim().ends_with(why), "{device}: {said}");
    }
    for model in ["scsi-block", "scsi-generic", "usb-storage"] {
        let refused = machine.vm.qmp.execute("device-list-properties", json!({ "typename": model }));
        assert_eq!(refused.unwrap_err(), format!("DeviceNotFound: Device '{model}' not found"));
    }
    // A refusal leaves the drive free.
    assert_eq!(machine.vm.qmp.hmp("device_add scsi-hd,bus=s.0,drive=n").unwrap().trim(), "");
    for (device, why) in [
        ("ide-hd,heads=17,cyls=3,secs=4", "heads must be between 1 and 16"),
        ("ide-hd,bios-chs-trans=foo", "Parameter 'bios-chs-trans' does not accept value 'foo'"),
        ("ide-cd,bios-chs-trans=none", "Property 'ide-cd.bios-chs-trans' not found"),
        ("ide-cd,cyls=1", "Property 'ide-cd.cyls' not found"),
    ] {
        let (node, device) = (node(&file), format!("{device},drive=n,bus=ide.0"));
        let args = ["-display", "none", "-accel", "qtest", "-blockdev", &node, "-device", &device];
        let said = Vm::start_plain(&args).err().unwrap();
        assert!(said.contains(why), "{device}: {said}");
    }
}
