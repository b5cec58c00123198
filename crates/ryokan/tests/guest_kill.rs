//! The process is killed while a Linux writes: the images are sound and hold all that was
//! flushed. `RYOKAN_KILLS=N` kills N times (by `cargo test`: nextest ends what
//! takes longer than ten minutes).

use serde_json::{Value, json};
use testkit::images::tool;
use testkit::record::Plan;
use testkit::{Bench, Images, Writer, writer};

const SIZE: &str = "32M";

/// What goes on when it is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scene {
    Writes,
    Commit,
    Mirror,
    Stream,
    Snapshots,
    Backup,
}

const SCENES: [Scene; 6] =
    [Scene::Commit, Scene::Snapshots, Scene::Mirror, Scene::Writes, Scene::Stream, Scene::Backup];

/// The last flushed request of each thread that the console tells of.
fn durable(console: &str, threads: usize) -> Vec<u64> {
    let mut done = vec![0; threads];
    for line in console.lines() {
        let words: Vec<&str> = line.trim().split(' ').collect();
        if let ["DURABLE", thread, number] = words[..]
            && let Some(number) = number.strip_suffix('.').and_then(|text| text.parse().ok())
        {
            done[thread.parse::<usize>().unwrap()] = number;
        }
    }
    done
}

/// No corruption; what is leaked is allowed.
#[track_caller]
fn sound(images: &Images, name: &str) {
    let path = images.path(name);
    let out = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2", &path]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(matches!(out.status.code(), Some(0 | 3)), "{name}: {said}");
}

/// Starts the job of a scene.
fn begin(bench: &mut Bench, scene: Scene) {
    let path = |name: &str| bench.images.path(name);
    let slow = 2 << 20;
    match scene {
        Scene::Writes | Scene::Snapshots => {}
        Scene::Commit => {
            let commit = json!({"device": "d", "job-id": "j", "speed": slow});
            bench.run("block-commit", commit);
        }
        Scene::Mirror => {
            let target = path("copy.qcow2");
            bench.run(
                "drive-mirror",
                json!({"device": "d", "job-id": "j", "target": target, "sync": "full",
                "format": "qcow2", "speed": slow, "copy-mode": "write-blocking"}),
            );
        }
        Scene::Stream => {
            bench.run("block-stream", json!({"device": "d", "job-id": "j", "speed": slow}));
        }
        Scene::Backup => {
            let target = path("copy.qcow2");
            bench.run("block-dirty-bitmap-add", json!({"node": "d", "name": "b", "persistent": true}));
            bench.run(
                "drive-backup",
                json!({"device": "d", "job-id": "j", "target": target, "sync": "full",
                "format": "qcow2", "speed": slow}),
            );
        }
    }
}

fn killed(round: u64) {
    let scene = SCENES[round as usize % SCENES.len()];
    let plan = Plan { seed: 1000 + round, threads: 2, blocks: 8192, zeros: false };
    let images = Images::new();
    images.create("base.qcow2", SIZE, &[]);
    let options = if round.is_multiple_of(2) { "" } else { ",lazy-refcounts=on" };
    let drive = format!("if=none,id=d,format=qcow2,file={}{options}", images.path("base.qcow2"));
    let args =
        ["-object", "iothread,id=t0", "-drive", &drive, "-device", "virtio-blk-pci,drive=d,iothread=t0"];
    let mut bench = Bench::boot(images, &args);
    Writer::start(&mut bench, "vda", plan, "durable");
    let wait = |bench: &mut Bench, lines: u64| {
        (0..lines).for_each(|_| drop(bench.vm.expect("DURABLE ", testkit::linux::BOOT).unwrap()));
    };
    wait(&mut bench, 10 + round * 7 % 13);
    if scene != Scene::Writes {
        let overlay = bench.images.path("top.qcow2");
        bench.run("blockdev-snapshot-sync", json!({"device": "d", "snapshot-file": overlay}));
        wait(&mut bench, 5);
    }
    begin(&mut bench, scene);
    for number in 0..3 + round * 11 % 17 {
        wait(&mut bench, 1);
        if scene == Scene::Snapshots {
            let named = |number: u64| json!({"device": "d", "name": format!("s{number}")});
            bench.run("blockdev-snapshot-internal-sync", named(number));
            if number > 1 {
                bench.run("blockdev-snapshot-delete-internal-sync", named(number - 2));
            }
        }
    }
    bench.vm.kill().unwrap();
    let done = durable(&bench.vm.console(), plan.threads);
    assert!(done.iter().all(|done| *done > 0), "{done:?}");
    let disk = if scene == Scene::Writes { "base.qcow2" } else { "top.qcow2" };
    for name in ["base.qcow2", "top.qcow2", "copy.qcow2"] {
        if std::path::Path::new(&bench.images.path(name)).exists() {
            sound(&bench.images, name);
        }
    }
    let holds = writer::holds(plan, &bench.images.contents(disk), &done);
    holds.unwrap_or_else(|e| panic!("round {round}, {scene:?}, {done:?} flushed: {e}"));
    // What is leaked can be given back.
    let path = bench.images.path(disk);
    tool("qemu-img", &["check", "-q", "-r", "all", "-f", "qcow2", &path]);
    bench.images.check(disk);
    assert_ne!(bench.images.info(disk)["virtual-size"], Value::Null);
}

#[test]
fn a_killed_process_leaves_sound_images() {
    let kills = std::env::var("RYOKAN_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    (0..kills).for_each(killed);
}
