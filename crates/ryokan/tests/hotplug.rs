//! Disks that come to and leave a running Linux.

use serde_json::json;
use std::path::PathBuf;
use testkit::Linux;
use testkit::linux::SOON;

const CLOUD: &str = "linux-image-cloud-amd64";

/// A file of 4 MiB that begins with `text`; removed when dropped.
struct Image(PathBuf);

impl Image {
    fn new(name: &str, text: &str) -> Image {
        let path = std::env::temp_dir().join(format!("ryokan-{name}-{}", std::process::id()));
        let mut bytes = vec![0; 4 << 20];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        Image(path)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Waits until the guest's shell command prints `wanted`.
fn until(linux: &mut Linux, command: &str, wanted: &str) {
    for _ in 0..100 {
        if linux.shell(command).unwrap().trim() == wanted {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!(
        "{command} never gave {wanted}; {}",
        linux.shell("dmesg | grep -iE 'pci|hotplug|slot|scsi|sd ' | tail -60").unwrap()
    );
}

/// Plugs a disk, lets the guest read and write it, unplugs it; twice, at the same place.
fn comes_and_goes(linux: &mut Linux, image: &Image, mut device: serde_json::Value, disk: &str) {
    // Messages of the kernel would mix with the shell's answers.
    linux.shell("dmesg -n 1").unwrap();
    device["id"] = "disk1".into();
    device["drive"] = "node1".into();
    for round in 0..2 {
        let node = json!({"driver": "raw", "node-name": "node1",
            "file": {"driver": "file", "filename": image.0}});
        linux.vm.qmp.execute("blockdev-add", node).unwrap();
        linux.vm.qmp.execute("device_add", device.clone()).unwrap();
        until(linux, &format!("test -b /dev/{disk} && echo there"), "there");
        let read = linux.shell(&format!("head -c 5 /dev/{disk}")).unwrap();
        assert_eq!(read.trim(), "HELLO", "round {round}");
        linux.shell(&format!("echo ROUND{round} | dd of=/dev/{disk} bs=512 seek=8 conv=fsync")).unwrap();
        linux.vm.qmp.execute("device_del", json!({"id": "disk1"})).unwrap();
        let gone = loop {
            let event = linux.vm.qmp.event("DEVICE_DELETED", SOON).unwrap();
            if event["data"]["device"] == "disk1" {
                break event;
            }
        };
        assert_eq!(gone["data"]["path"], "/machine/peripheral/disk1");
        until(linux, &format!("test -b /dev/{disk} || echo gone"), "gone");
        linux.vm.qmp.execute("blockdev-del", json!({"node-name": "node1"})).unwrap();
        let bytes = std::fs::read(&image.0).unwrap();
        assert_eq!(&bytes[4096..4102], format!("ROUND{round}").as_bytes());
    }
    assert_eq!(linux.complaints().unwrap(), Vec::<String>::new());
}

#[test]
fn virtio_blk_on_pc() {
    let image = Image::new("hotplug-pc", "HELLO");
    let mut linux = Linux::boot_loaded(CLOUD, &["-m", "256"], "", &["virtio_pci", "virtio_blk"]).unwrap();
    comes_and_goes(&mut linux, &image, json!({"driver": "virtio-blk-pci"}), "vda");
    linux.power_off().unwrap();
}

#[test]
fn virtio_blk_on_q35() {
    let image = Image::new("hotplug-q35", "HELLO");
    let args = ["-m", "256", "-M", "q35", "-device", "pcie-root-port,id=port1"];
    let mut linux = Linux::boot_loaded(CLOUD, &args, "", &["virtio_pci", "virtio_blk"]).unwrap();
    comes_and_goes(&mut linux, &image, json!({"driver": "virtio-blk-pci", "bus": "port1"}), "vda");
    linux.power_off().unwrap();
}

#[test]
fn scsi_disk_on_virtio_scsi() {
    let image = Image::new("hotplug-scsi", "HELLO");
    let args = ["-m", "256", "-device", "virtio-scsi-pci,id=scsi0"];
    let modules = ["virtio_pci", "virtio_scsi", "sd_mod"];
    let mut linux = Linux::boot_loaded(CLOUD, &args, "", &modules).unwrap();
    comes_and_goes(&mut linux, &image, json!({"driver": "scsi-hd", "bus": "scsi0.0"}), "sda");
    linux.power_off().unwrap();
}
