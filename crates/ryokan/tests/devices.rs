//! Devices that come and go, driven over QMP, with a test program in place of the guest.

use serde_json::{Value, json};
use testkit::Qtest;
use testkit::linux::SOON;

/// The next event of this name; its data.
fn event(machine: &mut Qtest, name: &str) -> Value {
    machine.vm.qmp.event(name, SOON).unwrap()["data"].take()
}

fn add(machine: &mut Qtest, device: Value) -> Result<Value, String> {
    machine.vm.qmp.execute("device_add", device)
}

fn del(machine: &mut Qtest, id: &str) -> Result<Value, String> {
    machine.vm.qmp.execute("device_del", json!({ "id": id }))
}

fn devices(machine: &mut Qtest) -> Vec<String> {
    let list = machine.vm.qmp.execute("qom-list", json!({"path": "/machine/peripheral"})).unwrap();
    let names = list.as_array().unwrap().iter().filter(|p| p["type"].as_str().unwrap().starts_with("child<"));
    names.map(|p| p["name"].as_str().unwrap().to_string()).collect()
}

const NODE: [&str; 2] = ["-blockdev", "driver=null-co,node-name=n0"];

#[test]
fn what_a_guest_ignores_goes_at_reset() {
    let mut vm = Qtest::start(&["-drive", "driver=null-co,if=none,id=d0"]).unwrap();
    add(&mut vm, json!({"driver": "virtio-blk-pci", "drive": "d0", "id": "v0"})).unwrap();
    del(&mut vm, "v0").unwrap();
    let again = del(&mut vm, "/machine/peripheral/v0").unwrap_err();
    assert_eq!(again, "GenericError: Device v0 is already in the process of unplug");
    vm.step(2_000_000);
    del(&mut vm, "v0").unwrap();
    assert_eq!(devices(&mut vm), ["v0"]);
    assert_eq!(vm.vm.qmp.take_events(), Vec::<String>::new());
    vm.vm.qmp.execute("system_reset", Value::Null).unwrap();
    let part = event(&mut vm, "DEVICE_DELETED");
    assert_eq!(part, json!({"path": "/machine/peripheral/v0/virtio-backend"}));
    let whole = event(&mut vm, "DEVICE_DELETED");
    assert_eq!(whole, json!({"device": "v0", "path": "/machine/peripheral/v0"}));
    assert_eq!(vm.vm.qmp.take_events(), Vec::<String>::new(), "before RESET");
    event(&mut vm, "RESET");
    // The drive was made for the device.
    assert_eq!(vm.vm.qmp.execute("query-block", Value::Null).unwrap(), json!([]));
    assert_eq!(del(&mut vm, "v0").unwrap_err(), "DeviceNotFound: Device 'v0' not found");
}

#[test]
fn the_guest_ejects_with_all_that_hangs_on_it() {
    let mut vm = Qtest::start(&NODE).unwrap();
    add(&mut vm, json!({"driver": "virtio-scsi-pci", "id": "scsi0", "addr": "5"})).unwrap();
    assert_eq!(vm.inb(0xafe0) & 2, 2, "general purpose event");
    assert_eq!((vm.inl(0xae00), vm.inl(0xae00)), (1 << 5, 0));
    add(&mut vm, json!({"driver": "scsi-hd", "drive": "n0", "id": "disk"})).unwrap();
    del(&mut vm, "scsi0").unwrap();
    assert_eq!(vm.inl(0xae04), 1 << 5);
    assert_eq!(vm.config_read(5, 0, 0), 0x1004_1af4);
    // The chipset is not there to be ejected.
    vm.outl(0xae08, 0x23);
    assert_eq!(vm.config_read(5, 0, 0), u32::MAX);
    assert_ne!(vm.config_read(1, 0, 0), u32::MAX);
    let paths: Vec<Value> = (0..3).map(|_| event(&mut vm, "DEVICE_DELETED")["path"].take()).collect();
    let base = "/machine/peripheral";
    let wanted = [format!("{base}/disk"), format!("{base}/scsi0/virtio-backend"), format!("{base}/scsi0")];
    assert_eq!(paths, wanted);
    add(&mut vm, json!({"driver": "virtio-blk-pci", "drive": "n0", "id": "scsi0", "addr": "5"})).unwrap();
}

#[test]
fn scsi_disks_and_serial_ports_go_at_once() {
    let args = ["-device", "virtio-scsi-pci,id=scsi0", "-device", "virtio-serial-pci,id=ser0"];
    let mut vm = Qtest::start(&[&args[..], &NODE].concat()).unwrap();
    for device in [
        json!({"driver": "scsi-hd", "drive": "n0", "id": "x", "bus": "scsi0.0"}),
        json!({"driver": "scsi-cd", "id": "x"}),
        json!({"driver": "virtserialport", "id": "x", "bus": "ser0", "nr": 2}),
    ] {
        for _ in 0..2 {
            add(&mut vm, device.clone()).unwrap();
            del(&mut vm, "x").unwrap();
            assert_eq!(vm.vm.qmp.take_events(), ["DEVICE_DELETED"], "before the reply");
        }
    }
    vm.vm.qmp.execute("blockdev-del", json!({"node-name": "n0"})).unwrap();
}

#[test]
fn refusals() {
    let mut vm = Qtest::start(&[&["-device", "virtio-scsi-pci,id=scsi0"][..], &NODE].concat()).unwrap();
    for (device, why) in [
        (json!({"driver": "nonsense"}), "'nonsense' is not a valid device model name"),
        (json!({"driver": "ide-hd", "drive": "n0"}), "Parameter 'driver' expects a pluggable device type"),
        (json!({"driver": "PIIX3"}), "Parameter 'driver' expects a pluggable device type"),
        (
            json!({"driver": "virtio-blk-pci", "drive": "n0", "id": "1x"}),
            "Parameter 'id' expects an identifier",
        ),
        (
            json!({"driver": "virtio-blk-pci", "drive": "n0", "id": "scsi0"}),
            "Duplicate ID 'scsi0' for device",
        ),
        (json!({"driver": "virtio-blk-pci", "drive": "n0", "bus": "pci.7"}), "Bus 'pci.7' not found"),
        (json!({"driver": "scsi-hd", "drive": "n0", "bus": "pci.0"}), "Device 'scsi-hd' can't go on PCI bus"),
        (
            json!({"driver": "virtio-blk-pci", "drive": "n0", "addr": "1"}),
            "PCI: slot 1 function 0 not available for virtio-blk-pci, in use by PIIX3",
        ),
        (json!({"driver": "virtio-blk-pci", "wine": 1}), "Property 'virtio-blk-pci.wine' not found"),
        (json!({"driver": "virtio-blk-pci"}), "drive property not set"),
        (
            json!({"driver": "virtio-blk-pci", "drive": "x"}),
            "Property 'virtio-blk-device.drive' can't find value 'x'",
        ),
        (json!({"driver": "scsi-hd", "drive": "x"}), "Property 'scsi-hd.drive' can't find value 'x'"),
        (json!({"driver": "virtserialport"}), "No 'virtio-serial-bus' bus found for device 'virtserialport'"),
    ] {
        assert_eq!(add(&mut vm, device).unwrap_err(), format!("GenericError: {why}"));
    }
    assert_eq!(devices(&mut vm), ["scsi0"]);
    // Nothing stays claimed by what failed.
    add(&mut vm, json!({"driver": "scsi-hd", "drive": "n0", "id": "s"})).unwrap();
    let used = add(&mut vm, json!({"driver": "scsi-hd", "drive": "n0"})).unwrap_err();
    assert!(used.contains("n0"), "{used}");
}

#[test]
fn slots_of_pci_express_ports() {
    let args = [
        "-M",
        "q35",
        "-device",
        "pcie-root-port,id=rp0,addr=4",
        "-device",
        "pcie-root-port,id=rp1,hotplug=off",
    ];
    let mut vm = Qtest::start(&[&args[..], &NODE].concat()).unwrap();
    let disk = |bus: &str| json!({"driver": "virtio-blk-pci", "drive": "n0", "id": "v0", "bus": bus});
    for bus in ["pcie.0", "rp1"] {
        let text = format!("GenericError: Bus '{bus}' does not support hotplugging");
        assert_eq!(add(&mut vm, disk(bus)).unwrap_err(), text);
    }
    assert_eq!(del(&mut vm, "rp0").unwrap_err(), "GenericError: Bus 'pcie.0' does not support hotplugging");
    // The express capability of the port, and its slot registers.
    let mut at = vm.config_read(4, 0, 0x34) & 0xff;
    while vm.config_read(4, 0, at) & 0xff != 0x10 {
        at = vm.config_read(4, 0, at) >> 8 & 0xff;
    }
    assert_eq!(vm.config_read(4, 0, at + 0x18) & 0x70f, 0x700, "an empty slot is switched off");
    add(&mut vm, disk("rp0")).unwrap();
    let status = vm.config_read(4, 0, at + 0x18) >> 16;
    assert_eq!(status & 0x49, 0x49, "present, presence changed, button pressed");
    // Power on, then off: the function goes when its light is off too.
    vm.config_write(4, 0, at + 0x18, 0x0159_0100);
    assert_eq!(vm.config_read(4, 0, at + 0x10) >> 29 & 1, 1, "link active");
    del(&mut vm, "v0").unwrap();
    assert_eq!(vm.config_read(4, 0, at + 0x18) >> 16 & 1, 1, "button pressed");
    assert!(del(&mut vm, "v0").unwrap_err().contains("already in the process of unplug"));
    vm.config_write(4, 0, at + 0x18, 0x0159_0500);
    assert_eq!(vm.vm.qmp.take_events(), Vec::<String>::new());
    vm.config_write(4, 0, at + 0x18, 0x0700);
    event(&mut vm, "DEVICE_DELETED");
    assert_eq!(event(&mut vm, "DEVICE_DELETED")["device"], "v0");
    assert_eq!(vm.config_read(4, 0, at + 0x18) >> 16 & 0x48, 8, "not present any more");
    // In a slot that is off nobody need be asked.
    add(&mut vm, disk("rp0")).unwrap();
    del(&mut vm, "v0").unwrap();
    assert_eq!(vm.vm.qmp.take_events(), ["DEVICE_DELETED", "DEVICE_DELETED"]);
}

#[test]
fn buses_without_a_name_are_numbered() {
    let args = ["-device", "virtio-scsi-pci", "-device", "lsi", "-device", "virtio-scsi-pci,id=own"];
    let more = ["-device", "ahci", "-device", "virtio-serial-pci", "-device", "virtio-serial-pci"];
    let disk = ["-device", "scsi-hd,bus=scsi.1,drive=n0,scsi-id=2", "-device", "scsi-cd,bus=own.0"];
    let mut vm = Qtest::start(&[&args[..], &more, &disk, &NODE].concat()).unwrap();
    let tree = vm.vm.qmp.hmp("info qtree").unwrap();
    let buses: Vec<&str> = tree.lines().filter_map(|line| line.trim().strip_prefix("bus: ")).collect();
    for bus in ["scsi.0", "scsi.1", "own.0", "ide.0", "ide.1", "ide.2", "ide.7", "virtio-serial-bus.1"] {
        assert_eq!(buses.iter().filter(|other| **other == bus).count(), 1, "{bus} in {buses:?}");
    }
    // The disk is below the second SCSI bus.
    let after = tree.split("bus: scsi.1").nth(1).unwrap();
    assert!(after.split("bus: ").next().unwrap().contains("scsi-id = 2 (0x2)"), "{tree}");
    let error = add(&mut vm, json!({"driver": "scsi-cd", "bus": "scsi.2"})).unwrap_err();
    assert_eq!(error, "GenericError: Bus 'scsi.2' not found");
}

#[test]
fn floppies_and_ide_drives_do_not_come_and_go() {
    let mut vm = Qtest::start(&["-device", "floppy,id=f0", "-device", "ide-cd,id=c0"]).unwrap();
    for (device, bus) in [("f0", "floppy-bus.0"), ("c0", "ide.0")] {
        let why = del(&mut vm, device).unwrap_err();
        assert_eq!(why, format!("GenericError: Bus '{bus}' does not support hotplugging"));
    }
    for device in ["floppy", "ide-cd"] {
        add(&mut vm, json!({ "driver": device })).unwrap_err();
    }
    assert_eq!(devices(&mut vm), ["c0", "f0"]);
}
