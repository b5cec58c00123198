//! Media that change, disks that grow, come and go, fill their file system and are slowed down,
//! under a Linux that uses them.

use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::bench::SOON;
use testkit::images::tool;
use testkit::linux::BOOT;
use testkit::record::Plan;
use testkit::{Bench, Images, Writer};

const PLAN: Plan = Plan { seed: 3, threads: 2, blocks: 2048, zeros: false };
const SIZE: &str = "8M";

/// A drive `id` with further options, not in a device yet.
fn drive(images: &Images, id: &str, name: &str, more: &str) -> String {
    let format = name.rsplit('.').next().unwrap();
    format!("if=none,id={id},format={format},file={}{more}", images.path(name))
}

/// The first word of what `md5sum` prints.
fn sum(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_string()
}

/// A CD drive: its id, the guest's name for it, and files to put in.
struct Cd<'a> {
    id: &'a str,
    name: String,
    discs: [String; 2],
}

impl Cd<'_> {
    /// The guest reads disc `number`.
    #[track_caller]
    fn shows(&self, bench: &mut Bench, number: usize) {
        let wanted = sum(&tool("md5sum", &[&self.discs[number]]));
        assert_eq!(sum(&bench.shell(&format!("md5sum /dev/{}", self.name))), wanted, "{} {number}", self.id);
    }

    #[track_caller]
    fn moved(&self, bench: &mut Bench, open: bool) {
        let event = bench.vm.qmp.event("DEVICE_TRAY_MOVED", SOON).unwrap();
        assert_eq!((&event["data"]["id"], &event["data"]["tray-open"]), (&json!(self.id), &json!(open)));
    }

    fn change(&self, number: usize) -> Value {
        json!({"id": self.id, "filename": self.discs[number], "format": "raw"})
    }

    fn tour(&self, bench: &mut Bench) {
        let cd = json!({"id": self.id});
        self.shows(bench, 0);
        bench.run("blockdev-change-medium", self.change(1));
        self.moved(bench, true);
        self.moved(bench, false);
        self.shows(bench, 1);

        // An open drive has its door locked.
        bench.shell(&format!("exec 7</dev/{}", self.name));
        let refused = bench.refused("blockdev-change-medium", self.change(0));
        assert!(refused.contains("is locked and force was not specified"), "{refused}");
        bench.refused("eject", cd.clone());
        self.shows(bench, 1);
        bench.shell("exec 7<&-");
        assert_eq!(bench.shell(&format!("writer eject {}", self.name)), "");
        self.moved(bench, true);
        bench.run("blockdev-remove-medium", cd.clone());
        let node = format!("{}-disc", self.id);
        bench.run(
            "blockdev-add",
            json!({"driver": "raw", "node-name": node, "read-only": true,
            "file": {"driver": "file", "filename": self.discs[0]}}),
        );
        bench.run("blockdev-insert-medium", json!({"id": self.id, "node-name": node}));
        bench.run("blockdev-close-tray", cd.clone());
        self.moved(bench, false);
        self.shows(bench, 0);

        bench.shell(&format!("exec 7</dev/{}", self.name));
        bench.run("eject", json!({"id": self.id, "force": true}));
        self.moved(bench, true);
        bench.shell("exec 7<&-");
        let read = bench.shell(&format!(
            "dd if=/dev/{} of=/dev/null bs=2048 count=1 2>/dev/null || echo none",
            self.name
        ));
        // Linux closes the tray to see whether there is a disc.
        assert_eq!(read, "none");
        self.moved(bench, false);
        bench.run("blockdev-change-medium", self.change(1));
        self.moved(bench, true);
        self.moved(bench, false);
        self.shows(bench, 1);
    }
}

#[test]
fn discs_are_changed_under_a_reading_guest() {
    let images = Images::new();
    let mut discs = Vec::new();
    for (name, pattern) in [("one.raw", 1), ("two.raw", 2), ("three.raw", 3), ("four.raw", 4)] {
        // Of different sizes.
        discs.push(images.create(name, &format!("{pattern}M"), &[]));
        images.io(name, &[&format!("write -P {pattern} 64k 500k")]);
    }
    let one = drive(&images, "d0", "one.raw", ",media=cdrom");
    let three = drive(&images, "d1", "three.raw", ",media=cdrom");
    let args = [
        "-drive",
        &one,
        "-device",
        "ide-cd,id=ide,drive=d0,bus=ide.1",
        "-drive",
        &three,
        "-device",
        "virtio-scsi-pci,id=s",
        "-device",
        "scsi-cd,id=scsi,drive=d1,bus=s.0",
    ];
    let mut bench = Bench::boot(images, &args);
    bench.until("ls /sys/block | grep -c sr", "2");
    let on_ide =
        bench.shell("cd /sys/block; for d in sr*; do readlink -f $d | grep -q /ata && echo $d; done; cd /");
    let on_scsi = if on_ide == "sr0" { "sr1" } else { "sr0" };
    let [a, b, c, d] = discs.try_into().unwrap();
    Cd { id: "ide", name: on_ide, discs: [a, b] }.tour(&mut bench);
    Cd { id: "scsi", name: on_scsi.into(), discs: [c, d] }.tour(&mut bench);
    bench.quit();
}

/// A disk grows; its guest hears of it and uses the new part.
fn grows(bench: &mut Bench, drive: &str, disk: &str, image: &str) {
    bench.until(&format!("cat /sys/block/{disk}/size"), "16384");
    bench.run("block_resize", json!({"device": drive, "size": 12 << 20}));
    bench.until(&format!("cat /sys/block/{disk}/size"), "24576");
    let write = format!(
        "yes THE-END | head -c 65536 >/tmp/end; dd if=/tmp/end of=/dev/{disk} bs=64k seek=191 conv=fsync 2>&1"
    );
    bench.shell(&write);
    bench.shell("echo 3 >/proc/sys/vm/drop_caches");
    let same =
        bench.shell(&format!("dd if=/dev/{disk} bs=64k skip=191 2>/dev/null | cmp - /tmp/end && echo same"));
    assert_eq!(same, "same");
    let contents = bench.images.contents(image);
    assert_eq!((contents.len(), &contents[contents.len() - 8..]), (12 << 20, &b"THE-END\n"[..]));
}

/// A disk is plugged in, written to and unplugged, twice.
fn comes_and_goes(bench: &mut Bench, mut device: Value, disk: &str) {
    device["id"] = "guest".into();
    device["drive"] = "plugged".into();
    for round in 0..2u64 {
        let name = format!("plugged{round}.qcow2");
        bench.images.create(&name, SIZE, &[]);
        bench.open("plugged", &name, json!({}));
        bench.run("device_add", device.clone());
        let writer = Writer::start(bench, disk, Plan { seed: 50 + round, ..PLAN }, "");
        writer.more(bench, 50);
        let done = writer.verify(bench);
        writer.quit(bench);
        bench.run("device_del", json!({"id": "guest"}));
        let gone = |event: &Value| event["event"] == "DEVICE_DELETED" && event["data"]["device"] == "guest";
        bench.vm.qmp.events_until(gone, gone, SOON).unwrap();
        bench.until(&format!("test -b /dev/{disk} || echo gone"), "gone");
        bench.run("blockdev-del", json!({"node-name": "plugged"}));
        bench.images.check(&name);
        writer.is_after(&done, &bench.images.contents(&name));
        bench.images.remove(&name);
    }
}

/// A CD drive with a disc is plugged in, read and unplugged.
fn drive_comes_and_goes(bench: &mut Bench) {
    let disc = bench.images.create("plugged.raw", "1M", &[]);
    bench.images.io("plugged.raw", &["write -P 7 64k 500k"]);
    bench.open("plugged", "plugged.raw", json!({"read-only": true}));
    bench.run("device_add", json!({"driver": "scsi-cd", "bus": "s0.0", "id": "guest", "drive": "plugged"}));
    bench.until("test -b /dev/sr0 && echo there", "there");
    assert_eq!(sum(&bench.shell("md5sum /dev/sr0")), sum(&tool("md5sum", &[&disc])));
    bench.run("device_del", json!({"id": "guest"}));
    let gone = |event: &Value| event["event"] == "DEVICE_DELETED" && event["data"]["device"] == "guest";
    bench.vm.qmp.events_until(gone, gone, SOON).unwrap();
    bench.until("test -b /dev/sr0 || echo gone", "gone");
    bench.run("blockdev-del", json!({"node-name": "plugged"}));
}

#[test]
fn disks_grow_come_and_go_while_another_is_written() {
    let images = Images::new();
    images.create("busy.qcow2", SIZE, &[]);
    images.create("v.qcow2", SIZE, &[]);
    images.create("s.raw", SIZE, &[]);
    let (busy, v, s) = (
        drive(&images, "busy", "busy.qcow2", ""),
        drive(&images, "v", "v.qcow2", ""),
        drive(&images, "s", "s.raw", ""),
    );
    let args = [
        "-drive",
        &busy,
        "-device",
        "virtio-blk-pci,drive=busy",
        "-drive",
        &v,
        "-device",
        "virtio-blk-pci,drive=v",
        "-device",
        "virtio-scsi-pci,id=s0",
        "-drive",
        &s,
        "-device",
        "scsi-hd,drive=s,bus=s0.0",
    ];
    let mut bench = Bench::boot(images, &args);
    let writer = Writer::start(&mut bench, "vda", PLAN, "");
    grows(&mut bench, "v", "vdb", "v.qcow2");
    grows(&mut bench, "s", "sda", "s.raw");
    grows(&mut bench, "busy", "vda", "busy.qcow2");
    comes_and_goes(&mut bench, json!({"driver": "virtio-blk-pci"}), "vdc");
    comes_and_goes(&mut bench, json!({"driver": "scsi-hd", "bus": "s0.0"}), "sdb");
    let plugged = bench.shell("dmesg | grep -o 'scsi 0:0:1:[0-9]*: Direct-Access' | sort | uniq -c");
    assert_eq!(plugged.trim(), "2 scsi 0:0:1:0: Direct-Access");
    drive_comes_and_goes(&mut bench);
    writer.more(&mut bench, 20);
    let done = writer.verify(&mut bench);
    let images = bench.quit();
    images.check("busy.qcow2");
    writer.is_after(&done, &images.contents("busy.qcow2")[..8 << 20]);
}

/// A small file system, unmounted when dropped.
struct Small(String);

impl Small {
    /// Nothing where this process may not mount.
    fn mount(images: &Images, size: &str) -> Option<Small> {
        let dir = images.path("small");
        std::fs::create_dir(&dir).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "small", &dir])
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Small(dir))
    }

    fn resize(&self, size: &str) {
        tool("mount", &["-o", &format!("remount,size={size}"), &self.0]);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Waits until the machine has stopped because there is no space; the drives that it was for.
#[track_caller]
fn stops_for_space(bench: &mut Bench) -> Vec<String> {
    let ours = |event: &Value| event["event"] == "BLOCK_IO_ERROR" || event["event"] == "STOP";
    let events = bench.vm.qmp.events_until(ours, |event| event["event"] == "STOP", BOOT).unwrap();
    let (_, errors) = events.split_last().unwrap();
    assert!(!errors.is_empty(), "{events:?}");
    for error in errors {
        let told = ["operation", "action", "nospace", "reason"].map(|key| error["data"][key].clone());
        assert_eq!(json!(told), json!(["write", "stop", true, "No space left on device"]));
    }
    assert_eq!(bench.run("query-status", Value::Null)["status"], "io-error");
    let all = bench.run("query-block", Value::Null);
    let full = all.as_array().unwrap().iter().filter(|one| one["io-status"] == "nospace");
    let full: Vec<String> = full.map(|one| one["device"].as_str().unwrap().to_string()).collect();
    assert!(!full.is_empty(), "{all}");
    full
}

#[test]
fn a_full_file_system_stops_the_guest_and_loses_nothing() {
    let images = Images::new();
    let Some(small) = Small::mount(&images, "10M") else {
        eprintln!("skipped: only root can mount a small file system");
        return;
    };
    let names = ["small/v.qcow2", "small/s.raw", "small/i.qcow2"];
    names.iter().for_each(|name| drop(images.create(name, SIZE, &[])));
    let drives: Vec<String> = names
        .iter()
        .zip(["v", "s", "i"])
        .map(|(name, id)| drive(&images, id, name, ",werror=stop"))
        .collect();
    let mut args = vec!["-device", "virtio-scsi-pci,id=s0"];
    drives.iter().for_each(|drive| args.extend(["-drive", drive]));
    for device in ["virtio-blk-pci,drive=v", "scsi-hd,drive=s,bus=s0.0", "ide-hd,drive=i,bus=ide.0"] {
        args.extend(["-device", device]);
    }
    let mut bench = Bench::boot(images, &args);
    bench.until("ls /sys/block | grep -c '[sv]d'", "3");
    let ide =
        bench.shell("cd /sys/block; for d in sd*; do readlink -f $d | grep -q /ata && echo $d; done; cd /");
    let scsi = if ide == "sda" { "sdb" } else { "sda" };
    let disks = ["vda".to_string(), scsi.to_string(), ide];
    let writers: Vec<Writer> = (60..)
        .zip(&disks)
        .map(|(seed, disk)| Writer::start(&mut bench, disk, Plan { seed, ..PLAN }, "pace=20000"))
        .collect();
    // The disks need 24 MiB in all.
    let mut stopped = Vec::new();
    for size in ["13M", "16M", "20M", "64M"] {
        stopped.extend(stops_for_space(&mut bench));
        small.resize(size);
        bench.run("cont", Value::Null);
    }
    writers.iter().for_each(|writer| writer.more(&mut bench, 20));
    let done: Vec<_> = writers.iter().map(|writer| writer.verify(&mut bench)).collect();
    assert!(stopped.len() >= 4, "{stopped:?}");
    let images = bench.quit();
    for ((name, writer), done) in names.iter().zip(&writers).zip(done) {
        if name.ends_with("qcow2") {
            images.check(name);
        }
        writer.is_after(&done, &images.contents(name));
    }
    drop(small);
}

/// Writes of drive `d` so far.
fn written(bench: &mut Bench, unit: &str) -> f64 {
    let all = bench.run("query-blockstats", Value::Null);
    let found = all.as_array().unwrap().iter().find(|one| one["device"] == "d").unwrap();
    found["stats"][unit].as_f64().unwrap()
}

#[test]
#[ignore = "measures for a minute, on an idle machine"]
fn limits_hold_for_ten_seconds() {
    const BASE: [(&str, u64); 6] =
        [("bps", 0), ("bps_rd", 0), ("bps_wr", 0), ("iops", 0), ("iops_rd", 0), ("iops_wr", 0)];
    let images = Images::new();
    images.create("a.raw", SIZE, &[]);
    let args = ["-drive", &drive(&images, "d", "a.raw", ""), "-device", "virtio-blk-pci,drive=d"];
    let mut bench = Bench::boot(images, &args);
    let writer = Writer::start(&mut bench, "vda", Plan { threads: 4, ..PLAN }, "");
    writer.more(&mut bench, 20);
    // What is set, and what should pass in ten seconds after a first second.
    let cases = [
        (&[("iops", 200)][..], "wr_operations", 2000.0),
        (&[("iops_wr", 50)], "wr_operations", 500.0),
        (&[("bps", 2 << 20)], "wr_bytes", 20.0 * 1048576.0),
        (
            &[("bps_wr", 1 << 20), ("bps_wr_max", 4 << 20), ("bps_wr_max_length", 4)],
            "wr_bytes",
            10.0 * 1048576.0,
        ),
        (&[("iops", 100), ("iops_max", 300), ("iops_max_length", 4)], "wr_operations", 1000.0),
    ];
    for (set, unit, wanted) in cases {
        let mut limits = json!({"device": "d"});
        BASE.iter().chain(set).for_each(|(key, value)| limits[*key] = json!(value));
        bench.run("block_set_io_throttle", limits);
        let burst = set.iter().find(|(key, _)| key.ends_with("_max"));
        if let Some((_, most)) = burst {
            let (before, begun) = (written(&mut bench, unit), Instant::now());
            std::thread::sleep(Duration::from_secs(3));
            let rate = (written(&mut bench, unit) - before) / begun.elapsed().as_secs_f64();
            let ratio = rate / *most as f64;
            println!("{set:?}: burst {ratio:.3}");
            assert!((0.9..1.1).contains(&ratio), "{set:?}: {rate} in the burst");
            std::thread::sleep(Duration::from_secs(12));
        }
        std::thread::sleep(Duration::from_secs(1));
        let (before, begun) = (written(&mut bench, unit), Instant::now());
        std::thread::sleep(Duration::from_secs(10));
        let seconds = begun.elapsed().as_secs_f64();
        let ratio = (written(&mut bench, unit) - before) / (wanted / 10.0 * seconds);
        println!("{set:?}: {ratio:.3}");
        assert!((0.95..1.05).contains(&ratio), "{set:?}: {ratio} of the limit");
    }
    let mut off = json!({"device": "d"});
    BASE.iter().for_each(|(key, value)| off[*key] = json!(value));
    bench.run("block_set_io_throttle", off);
    writer.verify(&mut bench);
    bench.quit();
}
