//! What a disk's properties tell the guest: Linux reads them back.

use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use testkit::{Linux, Vm};

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
