//! Limits: drives, throttle groups, what they let through on the clock of a test; statistics.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use testkit::{Bench, Images};

const SECOND: u64 = 1_000_000_000;

/// A machine whose clock moves only by `step`.
struct Timed {
    bench: Bench,
    clock: BufReader<UnixStream>,
}

impl Timed {
    fn start(args: &[&str]) -> Timed {
        let images = Images::new();
        let socket = images.path("qtest");
        let channel = format!("unix:{socket},server=on,wait=off");
        let mut all = vec!["-qtest", channel.as_str()];
        all.extend(args);
        let bench = Bench::start(images, &all);
        let clock = BufReader::new(UnixStream::connect(&socket).unwrap());
        Timed { bench, clock }
    }

    fn step(&mut self, nanoseconds: u64) {
        self.clock.get_mut().write_all(format!("clock_step {nanoseconds}\n").as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            self.clock.read_line(&mut line).unwrap();
            if line.starts_with("OK") {
                return;
            }
        }
    }

    fn stats(&mut self, device: &str) -> Value {
        let all = self.bench.run("query-blockstats", Value::Null);
        let found = all.as_array().unwrap().iter().find(|one| one["device"] == device).unwrap();
        found["stats"].clone()
    }

    /// Bytes read, once no more come.
    fn read(&mut self, device: &str) -> u64 {
        let mut last = u64::MAX;
        loop {
            let now = self.stats(device)["rd_bytes"].as_u64().unwrap();
            if now == last {
                return now;
            }
            last = now;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const DISK: &str = "if=none,driver=null-co,read-zeroes=on,size=1G";
const NONE: [(&str, i64); 6] =
    [("bps", 0), ("bps_rd", 0), ("bps_wr", 0), ("iops", 0), ("iops_rd", 0), ("iops_wr", 0)];

fn limits(change: &[(&str, i64)]) -> Value {
    let mut all = json!({"device": "d"});
    NONE.iter().chain(change).for_each(|(key, value)| all[*key] = json!(value));
    all
}

#[test]
fn bytes_and_operations_pass_at_the_rate_that_was_set() {
    let drive = format!("{DISK},id=d");
    let mut timed = Timed::start(&["-drive", &drive]);
    for (limit, size, expected) in [
        (("bps", 1 << 20), 65536u64, 1u64 << 20),
        (("iops_rd", 50), 4096, 50 * 4096),
        (("iops", 100), 4096, 100 * 4096),
    ] {
        timed.bench.run("block_set_io_throttle", limits(&[limit]));
        let first = timed.read("d");
        for _ in 0..(expected / size) * 14 {
            timed.bench.io("d", &format!("aio_read 0 {size}"));
        }
        let burst = timed.read("d");
        timed.step(10 * SECOND);
        let done = timed.read("d") - burst;
        let ratio = done as f64 / (10 * expected) as f64;
        assert!((0.95..1.05).contains(&ratio), "{limit:?}: {done} bytes in 10 s, {ratio}");
        assert!(burst - first <= expected / 5, "burst of {}", burst - first);
        timed.bench.run("block_set_io_throttle", limits(&[]));
        assert_eq!(timed.read("d") - first, (expected / size) * 14 * size, "all at once without limit");
    }
    timed.bench.quit();
}

#[test]
fn a_burst_lasts_as_long_as_it_may() {
    let drive = format!(
        "{DISK},id=d,throttling.bps-read=1048576,throttling.bps-read-max=4194304,throttling.bps-read-max-length=2"
    );
    let mut timed = Timed::start(&["-drive", &drive]);
    for _ in 0..400 {
        timed.bench.io("d", "aio_read 0 64k");
    }
    timed.read("d");
    timed.step(2 * SECOND);
    let burst = timed.read("d") as f64 / (8 << 20) as f64;
    assert!((0.9..1.15).contains(&burst), "{burst} of the burst in two seconds");
    let before = timed.read("d");
    timed.step(4 * SECOND);
    let then = (timed.read("d") - before) as f64 / (4 << 20) as f64;
    assert!((0.5..1.6).contains(&then), "{then} of the rate after it");
    timed.bench.quit();
}

#[test]
fn what_is_set_is_shown_and_what_contradicts_is_refused() {
    let drive = format!("{DISK},id=d");
    let mut bench =
        Bench::start(Images::new(), &["-drive", &drive, "-device", "virtio-blk-pci,id=v,drive=d"]);
    let set =
        [("bps_rd", 1000), ("bps_rd_max", 5000), ("bps_rd_max_length", 3), ("iops", 7), ("iops_size", 512)];
    bench.run("block_set_io_throttle", limits(&set));
    let shown = bench.medium("d");
    for (key, value) in set {
        assert_eq!(shown[key], json!(value), "{key}");
    }
    assert_eq!((&shown["group"], &shown["bps_max"]), (&json!("d"), &Value::Null));
    let human = bench.vm.qmp.hmp("info block d").unwrap();
    assert!(
        human.contains("    I/O throttling:   bps=0 bps_rd=1000 bps_wr=0 bps_max=0 bps_rd_max=5000 ")
            && human.contains(" iops_size=512 group=d"),
        "{human}"
    );
    for (change, text) in [
        (
            &[("bps", 1), ("bps_rd", 1)][..],
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        (&[("iops", -1)], "bps/iops/max values must be within [0, 1000000000000000]"),
        (&[("iops_max", 9)], "bps_max/iops_max require corresponding bps/iops values"),
        (&[("iops_size", 9)], "iops size requires an iops value to be set"),
        (&[("bps", 9), ("bps_max", 10), ("bps_max_length", 0)], "the burst length cannot be 0"),
    ] {
        assert_eq!(bench.refused("block_set_io_throttle", limits(change)), format!("GenericError: {text}"));
    }
    assert_eq!(bench.medium("d")["bps_rd"], json!(1000), "a refused change changes nothing");
    let mut by_id = limits(&[("bps", 77)]);
    by_id.as_object_mut().unwrap().remove("device");
    by_id["id"] = json!("/machine/peripheral/v/virtio-backend");
    by_id["group"] = json!("other");
    bench.run("block_set_io_throttle", by_id);
    let shown = bench.medium("d");
    assert_eq!((&shown["bps"], &shown["bps_rd"], &shown["group"]), (&json!(77), &json!(0), &json!("other")));
    assert_eq!(bench.vm.qmp.hmp("block_set_io_throttle d 0 0 0 0 0 0").unwrap(), "");
    assert_eq!(bench.medium("d")["group"], Value::Null);
    let mut nobody = limits(&[]);
    nobody["device"] = json!("nobody");
    assert_eq!(bench.refused("block_set_io_throttle", nobody), "DeviceNotFound: Device 'nobody' not found");
    bench.quit();
}

#[test]
fn members_of_a_group_share_its_limits() {
    let (one, two) = (
        format!("{DISK},id=a,throttling.iops-total=100,throttling.group=g"),
        format!("{DISK},id=b,throttling.iops-total=100,throttling.group=g"),
    );
    let mut timed = Timed::start(&["-drive", &one, "-drive", &two]);
    for _ in 0..800 {
        timed.bench.io("a", "aio_read 0 4k");
        timed.bench.io("b", "aio_read 0 4k");
    }
    let before = [timed.read("a"), timed.read("b")];
    timed.step(10 * SECOND);
    let done = [timed.read("a") - before[0], timed.read("b") - before[1]].map(|bytes| bytes / 4096);
    assert!((950..=1050).contains(&(done[0] + done[1])), "{done:?}");
    assert!(done.iter().all(|one| (450..=550).contains(one)), "{done:?}");
    timed.bench.quit();
}

#[test]
fn throttle_group_objects() {
    let group = "throttle-group,id=g0,limits.iops-total=10,x-bps-read=4096";
    let mut bench = Bench::start(Images::new(), &["-object", group]);
    let limits = |bench: &mut Bench, id: &str| {
        bench.run("qom-get", json!({"path": format!("/objects/{id}"), "property": "limits"}))
    };
    let shown = limits(&mut bench, "g0");
    assert_eq!(
        (&shown["iops-total"], &shown["bps-read"], &shown["bps-read-max-length"]),
        (&json!(10), &json!(4096), &json!(1))
    );
    assert_eq!(shown.as_object().unwrap().len(), 19);
    let add = |id: &str, limits: Value| json!({"qom-type": "throttle-group", "id": id, "limits": limits});
    bench.run("object-add", add("g1", json!({"bps-total": 1 << 20})));
    let both = bench.refused("object-add", add("g2", json!({"iops-total": 1, "iops-read": 1})));
    assert!(both.contains("cannot be used at the same time"), "{both}");
    let unknown = bench.refused("object-add", add("g2", json!({"quux": 1})));
    assert_eq!(unknown, "GenericError: Parameter 'limits.quux' is unexpected");
    let set = |limits: Value| json!({"path": "/objects/g1", "property": "limits", "value": limits});
    bench.run("qom-set", set(json!({"bps-total-max": 2 << 20})));
    let shown = limits(&mut bench, "g1");
    assert_eq!((&shown["bps-total"], &shown["bps-total-max"]), (&json!(1 << 20), &json!(2 << 20)));
    bench.refused("qom-set", set(json!({"bps-read": 1})));
    let late = json!({"path": "/objects/g1", "property": "x-iops-total", "value": 5});
    assert_eq!(bench.refused("qom-set", late), "GenericError: Property cannot be set after initialization");
    let filter = |group: &str| {
        json!({"driver": "throttle", "node-name": "t", "throttle-group": group,
            "file": {"driver": "null-co", "size": 65536}})
    };
    assert_eq!(
        bench.refused("blockdev-add", filter("nobody")),
        "GenericError: Throttle group 'nobody' does not exist"
    );
    bench.run("blockdev-add", filter("g1"));
    let busy = bench.refused("object-del", json!({"id": "g1"}));
    assert_eq!(busy, "GenericError: object 'g1' is in use, can not be deleted");
    bench.run("blockdev-del", json!({"node-name": "t"}));
    bench.run("object-del", json!({"id": "g1"}));
    bench.quit();
}

#[test]
fn intervals_histograms_and_what_counts() {
    let drive = format!("{DISK},id=d,stats-intervals.0=10,stats-intervals.1=60,stats-account-failed=off");
    let mut timed = Timed::start(&["-drive", &drive, "-device", "virtio-blk-pci,id=v,drive=d"]);
    let set = json!({"id": "/machine/peripheral/v/virtio-backend", "boundaries": [10, 2_000_000], "boundaries-write": [5]});
    timed.bench.run("block-latency-histogram-set", set);
    for bad in [json!([0, 1]), json!([5, 5]), json!([9, 3])] {
        let why = timed.bench.refused(
            "block-latency-histogram-set",
            json!({"id": "/machine/peripheral/v/virtio-backend", "boundaries": bad}),
        );
        assert_eq!(
            why,
            "GenericError: Device '/machine/peripheral/v/virtio-backend' set read boundaries fail"
        );
    }
    timed.step(SECOND);
    timed.bench.io("d", "aio_read 0 64k");
    timed.bench.io("d", "aio_write 0 4k");
    timed.read("d");
    let stats = timed.stats("d");
    assert_eq!((&stats["account_failed"], &stats["account_invalid"]), (&json!(false), &json!(true)));
    let short = &stats["timed_stats"][0];
    assert_eq!(
        (&short["interval_length"], &short["min_rd_latency_ns"], &short["max_wr_latency_ns"]),
        (&json!(10), &json!(1_000_000), &json!(1_000_000))
    );
    assert!(short["avg_rd_queue_depth"].as_f64().unwrap() > 0.0);
    assert_eq!(stats["rd_latency_histogram"], json!({"boundaries": [10, 2_000_000], "bins": [0, 1, 0]}));
    assert_eq!(stats["wr_latency_histogram"], json!({"boundaries": [5], "bins": [0, 1]}));
    timed.step(20 * SECOND);
    let later = timed.stats("d");
    assert_eq!(later["timed_stats"][0]["max_rd_latency_ns"], json!(0));
    assert_eq!(later["timed_stats"][1]["max_rd_latency_ns"], json!(1_000_000));
    assert_eq!(later["idle_time_ns"], json!(20 * SECOND));
    timed.bench.run("block-latency-histogram-set", json!({"id": "/machine/peripheral/v/virtio-backend"}));
    assert!(timed.stats("d")["rd_latency_histogram"].is_null());
    timed.bench.quit();
}

/// The device has the last word; what does not count leaves the disk idle.
#[test]
fn failed_and_invalid_requests_count_as_asked() {
    let disk = "if=none,id=d,driver=blkdebug,image.driver=null-co,image.read-zeroes=on,inject-error.0.event=none,\
                inject-error.0.iotype=read,stats-intervals.0=60";
    for (of_drive, of_device, failed, invalid) in [
        ("", "", true, true),
        (",stats-account-failed=off,stats-account-invalid=off", "", false, false),
        (",stats-account-failed=off", ",account-failed=auto,account-invalid=off", false, false),
        (",stats-account-failed=off,stats-account-invalid=off", ",account-failed=on", true, false),
        ("", ",account-failed=off,account-invalid=on", false, true),
    ] {
        let (drive, device) = (format!("{disk}{of_drive}"), format!("virtio-blk-pci,drive=d{of_device}"));
        let mut timed = Timed::start(&["-drive", &drive, "-device", &device]);
        let shown = format!("{of_drive} {of_device}");
        timed.step(SECOND);
        timed.bench.io("d", "aio_write 0 4k");
        for (command, counter, counts) in [
            ("aio_read 0 4k", "failed_rd_operations", failed),
            ("aio_read -i 0 4k", "invalid_rd_operations", invalid),
        ] {
            timed.step(10 * SECOND);
            let before = timed.stats("d");
            timed.bench.try_io("d", command);
            timed.read("d");
            let after = timed.stats("d");
            assert_eq!((&before[counter], &after[counter]), (&json!(0), &json!(1)), "{shown} {command}");
            let idle = after["idle_time_ns"].as_u64().unwrap();
            assert_eq!(idle < 10 * SECOND, counts, "{shown} {command}: idle for {idle}");
            assert_eq!(after["rd_operations"], json!(0));
        }
        let told = timed.stats("d");
        let (told_failed, told_invalid) = (&told["account_failed"], &told["account_invalid"]);
        assert_eq!((told_failed, told_invalid), (&json!(failed), &json!(invalid)), "{shown}");
        assert_eq!(told["timed_stats"][0]["interval_length"], json!(60));
        timed.bench.quit();
    }
}

#[test]
fn on_the_clock_of_the_world_too() {
    let images = Images::new();
    let file = images.create("a.raw", "64M", &[]);
    let drive = format!("if=none,id=d,format=raw,file={file},throttling.bps-total=4194304");
    // Another machine type has a running clock: no test channel, no guest.
    let all = ["-nodefaults", "-display", "none", "-M", "none", "-drive", drive.as_str()];
    let mut vm = testkit::Vm::start_plain(&all).unwrap();
    let begun = Instant::now();
    for _ in 0..40 {
        vm.qmp.hmp("qemu-io d \"write 0 512k\"").unwrap();
    }
    let seconds = begun.elapsed().as_secs_f64();
    // 20 MiB at 4 MiB/s, less the tenth of a second that may go at once and one request.
    assert!((4.5..6.0).contains(&seconds), "{seconds}");
}

/// One request a second goes, and no second passes.
const SLOW: &str = "throttle-group,id=slow,x-iops-total=1";

fn slow(node: &str) -> Value {
    json!({"driver": "throttle", "node-name": node, "throttle-group": "slow", "file": {"driver": "null-co",
        "node-name": format!("{node}-file"), "size": 1 << 20, "read-zeroes": true}})
}

/// What waits in a throttle node goes on at once when it is waited for.
#[test]
fn no_drain_waits_for_a_clock_that_stands_still() {
    let drive = "if=none,id=d,driver=throttle,node-name=t,throttle-group=slow,file.driver=null-co,file.size=1M,\
        file.read-zeroes=on,file.node-name=t-file";
    let device = "scsi-hd,id=hd,drive=d";
    let args = ["-object", SLOW, "-drive", drive, "-device", "virtio-scsi-pci", "-device", device];
    let mut bench = Bench::start(Images::new(), &args);
    let fill = |bench: &mut Bench| (0..4).for_each(|_| drop(bench.io("d", "aio_read 0 4k")));
    fill(&mut bench);
    bench.run("stop", Value::Null);
    bench.run("cont", Value::Null);
    fill(&mut bench);
    let into = |group: &str| json!({"driver": "throttle", "node-name": "t", "throttle-group": group, "file": "t-file"});
    let other = json!({"qom-type": "throttle-group", "id": "other", "limits": {"iops-total": 1}});
    bench.run("object-add", other.clone());
    let bad = json!({"driver": "null-co", "node-name": "t-file", "quux": 1});
    bench.refused("blockdev-reopen", json!({"options": [into("other"), bad]}));
    bench.run("object-del", json!({"id": "other"}));
    bench.run("object-add", other);
    bench.run("blockdev-reopen", json!({"options": [into("other")]}));
    let busy = bench.refused("object-del", json!({"id": "other"}));
    assert_eq!(busy, "GenericError: object 'other' is in use, can not be deleted");
    bench.run("blockdev-reopen", json!({"options": [into("slow")]}));
    fill(&mut bench);
    bench.run("device_del", json!({"id": "hd"}));
    bench.vm.qmp.event("DEVICE_DELETED", testkit::bench::SOON).unwrap();

    // Jobs: what they wait for when they are cancelled, and at the end.
    bench.run("blockdev-add", slow("t"));
    for id in ["one", "two"] {
        let target = json!({"driver": "null-co", "node-name": id, "size": 1 << 20});
        bench.run("blockdev-add", target);
        bench.run("blockdev-mirror", json!({"job-id": id, "device": "t", "target": id, "sync": "full"}));
        if id == "one" {
            bench.run("block-job-cancel", json!({"device": id}));
            assert!(bench.story(id, "null").contains(&"CANCELLED".to_string()));
        }
    }
    bench.quit();
}

#[test]
fn a_server_that_ends_lets_throttled_requests_of_clients_through() {
    let images = Images::new();
    let socket = images.path("nbd");
    let drive = format!("{DISK},id=d,throttling.iops-total=1");
    let mut bench = Bench::start(images, &["-object", SLOW, "-drive", &drive]);
    bench.run("blockdev-add", slow("t"));
    for (name, last) in [("d", false), ("t", false), ("t", true)] {
        let address = json!({"type": "unix", "data": {"path": socket}});
        bench.run("nbd-server-start", json!({"addr": address}));
        bench.run("nbd-server-add", json!({"device": name}));
        let url = format!("nbd+unix:///{name}?socket={socket}");
        let mut client = std::process::Command::new("stdbuf")
            .args(["-oL", "qemu-io", "-r", "-f", "raw", "-c", "read 0 512", "-c", "read 512 512", &url])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        if !last {
            // Something passes; what comes after it waits.
            let first = BufReader::new(client.stdout.take().unwrap()).lines().next();
            assert!(first.is_some_and(|line| line.unwrap().contains("read 512/512")), "{name}");
        }
        std::thread::sleep(Duration::from_millis(100));
        match last {
            false => drop(bench.run("nbd-server-stop", Value::Null)),
            true => drop(bench.run("quit", Value::Null)),
        }
        client.wait().unwrap();
    }
    bench.vm.wait(testkit::bench::SOON).unwrap();
}
