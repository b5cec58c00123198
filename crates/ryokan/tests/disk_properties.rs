//! The properties of disks and their controllers.

use serde_json::json;
use std::collections::BTreeSet;
use testkit::Vm;

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
