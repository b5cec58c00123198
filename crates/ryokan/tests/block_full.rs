//! block-stream and block-commit whose target is full or disappears, under a guest that writes.

use serde_json::{Value, json};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use testkit::bench::SOON;
use testkit::{Bench, Images};

const NO_SPACE: &str = "COMPLETED: No space left on device";

/// What works on a chain base <- mid <- top, and which of its images it writes to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Work {
    Stream,
    Commit,
    ActiveCommit,
}

const ALL: [Work; 3] = [Work::Stream, Work::Commit, Work::ActiveCommit];

impl Work {
    fn target(self) -> &'static str {
        if self == Work::Stream { "top" } else { "base" }
    }

    fn start(self, bench: &mut Bench, policy: &str, speed: u64) {
        let more = json!({"device": "top", "job-id": "j", "on-error": policy, "speed": speed});
        let mut arguments = more;
        if self == Work::Commit {
            arguments["top-node"] = "mid".into();
        }
        bench.run(if self == Work::Stream { "block-stream" } else { "block-commit" }, arguments);
    }

    /// The event of an error of the target: a stream knows only that a copy failed.
    fn error(self, action: &str) -> String {
        let operation = if self == Work::Stream { "read" } else { "write" };
        format!("ERROR {operation} {action}")
    }

    /// Waits for the job's good end.
    fn done(self, bench: &mut Bench) {
        if self == Work::ActiveCommit {
            bench.story("j", "READY");
            bench.run("block-job-complete", json!({"device": "j"}));
        }
        bench.done("j");
    }

    /// Checks what is left of a job that came to its end: all that was written is there.
    fn finished(self, images: &Images) {
        let root = if self == Work::ActiveCommit { "base.qcow2" } else { "top.qcow2" };
        images.check(root);
        images.same(root, "model.raw");
        match self {
            Work::Stream => assert_eq!(images.info(root)["backing-filename"], Value::Null),
            Work::Commit => {
                // The name of a node over filters is a description that holds the file's.
                let base = images.info(root)["backing-filename"].to_string();
                assert!(base.contains("base.qcow2"), "{base}");
            }
            Work::ActiveCommit => {}
        }
    }

    /// Checks the chain after a job that failed: as it was, but for the guest's writes.
    fn failed(self, images: &Images) {
        for image in ["top.qcow2", "mid.qcow2"] {
            images.check(image);
        }
        images.same("top.qcow2", "model.raw");
        assert_eq!(images.info("top.qcow2")["backing-filename"], images.path("mid.qcow2"));
    }
}

/// base <- mid <- top, 4 MiB; what the guest writes to (the first 512 KiB) is allocated in top.
fn chain() -> Images {
    let images = Images::new();
    images.create("base.qcow2", "4M", &[]);
    images.io("base.qcow2", &["write -P 1 0 256k"]);
    images.overlay("mid.qcow2", "base.qcow2");
    images.io("mid.qcow2", &["write -P 2 1M 3M"]);
    images.overlay("top.qcow2", "mid.qcow2");
    images.io("top.qcow2", &["write -P 3 0 512k"]);
    images.create("model.raw", "4M", &[]);
    images.io("model.raw", &["write -P 2 1M 3M", "write -P 3 0 512k"]);
    images
}

/// Opens the chain; the target's file is what `file` says of it.
fn open(bench: &mut Bench, work: Work, file: &Value) {
    for (node, below) in [("base", Value::Null), ("mid", "base".into()), ("top", "mid".into())] {
        match node == work.target() {
            true => {
                let mut options =
                    json!({"driver": "qcow2", "node-name": node, "file": file, "backing": below});
                if node == "base" {
                    options["read-only"] = true.into();
                }
                bench.run("blockdev-add", options);
            }
            false => bench.open(
                node,
                &format!("{node}.qcow2"),
                json!({"backing": below, "read-only": node != "top"}),
            ),
        }
    }
    bench.run("device_add", json!({"driver": "virtio-blk-pci", "id": "v", "drive": "top"}));
}

/// What a guest writes at a time, into the model too once the images are not in use.
#[derive(Default)]
struct Guest(Vec<String>);

impl Guest {
    fn writes(&mut self, bench: &mut Bench) {
        for _ in 0..8 {
            let turn = self.0.len();
            let write = format!("write -P {} {}k 48k", 16 + turn % 200, turn * 40 % 464);
            bench.io("-d v", &write);
            self.0.push(write);
        }
    }

    fn quit(&self, bench: Bench) -> Images {
        let images = bench.quit();
        images.io("model.raw", &self.0.iter().map(String::as_str).collect::<Vec<_>>());
        images
    }
}

/// Opens the chain over a target's file of which only a part may be used.
fn in_a_window(images: Images, work: Work) -> Bench {
    let file = images.path(&format!("{}.qcow2", work.target()));
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(16 << 20).unwrap();
    let mut bench = Bench::start(images, &[]);
    let file = window(&bench, work, 1536 << 10);
    open(&mut bench, work, &file);
    bench
}

fn window(bench: &Bench, work: Work, size: u64) -> Value {
    let file = bench.images.path(&format!("{}.qcow2", work.target()));
    json!({"driver": "raw", "node-name": "window", "size": size, "file": {"driver": "file",
        "node-name": "target-file", "filename": file, "auto-read-only": true}})
}

#[test]
fn a_full_target_fails_the_job_and_nothing_else() {
    for work in ALL {
        let mut bench = in_a_window(chain(), work);
        let mut guest = Guest::default();
        guest.writes(&mut bench);
        work.start(&mut bench, "report", 0);
        guest.writes(&mut bench);
        let story = bench.story("j", "null");
        let end = [&work.error("report"), "aborting", NO_SPACE, "concluded", "null"];
        assert_eq!(story[story.len() - 5..], end, "{work:?}");
        guest.writes(&mut bench);
        work.failed(&guest.quit(bench));
    }
}

#[test]
fn a_job_waits_for_room_and_goes_on() {
    for (work, policy) in ALL.into_iter().flat_map(|work| [(work, "stop"), (work, "enospc")]) {
        let mut bench = in_a_window(chain(), work);
        let mut guest = Guest::default();
        work.start(&mut bench, policy, 0);
        let story = bench.story("j", "paused");
        assert_eq!(story[story.len() - 2..], [work.error("stop").as_str(), "paused"], "{work:?} {policy}");
        let job = bench.job("j");
        assert_eq!((&job["io-status"], &job["paused"]), (&json!("nospace"), &json!(true)), "{work:?}");
        guest.writes(&mut bench);
        // No room yet: it stops again.
        bench.run("block-job-resume", json!({"device": "j"}));
        bench.story("j", "paused");
        guest.writes(&mut bench);
        let file = window(&bench, work, 16 << 20);
        bench.run("blockdev-reopen", json!({"options": [file]}));
        bench.run("block-job-resume", json!({"device": "j"}));
        guest.writes(&mut bench);
        work.done(&mut bench);
        assert_eq!(bench.node("window")["image"]["virtual-size"], 16 << 20, "{work:?}");
        guest.writes(&mut bench);
        work.finished(&guest.quit(bench));
    }
}

#[test]
fn an_error_that_is_ignored_once_does_no_harm() {
    for work in ALL {
        let images = chain();
        let mut bench = Bench::start(images, &[]);
        let rule = json!([{"event": "cluster_alloc", "iotype": "write", "errno": 28, "once": true}]);
        let image = bench.images.path(&format!("{}.qcow2", work.target()));
        let file = json!({"driver": "blkdebug", "inject-error": rule,
            "image": {"driver": "file", "filename": image, "auto-read-only": true}});
        open(&mut bench, work, &file);
        let mut guest = Guest::default();
        work.start(&mut bench, "ignore", 0);
        if work == Work::Stream {
            // What could not be copied stays below. The error is for the job: the guest writes to
            // the same file, later.
            let story = bench.story("j", "null");
            guest.writes(&mut bench);
            assert!(story.contains(&work.error("ignore")), "{story:?}");
            assert!(story.contains(&NO_SPACE.to_string()), "{story:?}");
            work.failed(&guest.quit(bench));
            continue;
        }
        guest.writes(&mut bench);
        let last = if work == Work::Commit { "null" } else { "READY" };
        let story = bench.story("j", last);
        assert!(story.contains(&work.error("ignore")), "{work:?}: {story:?}");
        if work == Work::ActiveCommit {
            bench.run("block-job-complete", json!({"device": "j"}));
            bench.done("j");
        }
        guest.writes(&mut bench);
        work.finished(&guest.quit(bench));
    }
}

/// A server of the target's file, and how to reach it.
fn serve(bench: &Bench, image: &str) -> (Child, Value) {
    let socket = bench.images.path("nbd");
    // What is served cannot grow.
    let file = std::fs::OpenOptions::new().write(true).open(bench.images.path(image)).unwrap();
    if image.ends_with("qcow2") {
        file.set_len(16 << 20).unwrap();
    }
    let server = Command::new("qemu-nbd")
        .args(["-t", "-f", "raw", "-k", &socket, "-x", "e", &bench.images.path(image)])
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !std::path::Path::new(&socket).exists() {
        assert!(begun.elapsed() < SOON, "qemu-nbd does not serve");
        std::thread::sleep(Duration::from_millis(5));
    }
    let server_address = json!({"type": "unix", "path": socket});
    (server, json!({"driver": "nbd", "export": "e", "server": server_address}))
}

/// Lets the job run at full speed if it has not met the error yet.
fn hurry(bench: &mut Bench) {
    let asked = json!({"device": "j", "speed": 0});
    if let Err(why) = bench.vm.qmp.execute("block-job-set-speed", asked) {
        // It is gone, or on its way.
        let known = ["Block job 'j' not found", "Job 'j' in state"];
        assert!(known.iter().any(|text| why.contains(text)), "{why}");
    }
}

/// A slow job that uses an image of the chain by a server.
fn under_way(work: Work, image: &str, policy: &str) -> (Bench, Child) {
    let mut bench = Bench::start(chain(), &[]);
    let (server, file) = serve(&bench, image);
    open(&mut bench, work, &file);
    work.start(&mut bench, policy, 65536);
    bench.story("j", "running");
    (bench, server)
}

fn kill(mut server: Child) {
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_base_that_disappears_fails_a_commit_and_not_the_guest() {
    for work in [Work::Commit, Work::ActiveCommit] {
        let (mut bench, server) = under_way(work, "base.qcow2", "report");
        let mut guest = Guest::default();
        guest.writes(&mut bench);
        kill(server);
        hurry(&mut bench);
        guest.writes(&mut bench);
        let story = bench.story("j", "null");
        assert!(story.contains(&work.error("report")), "{work:?}: {story:?}");
        assert!(story.contains(&"COMPLETED: Input/output error".to_string()), "{work:?}: {story:?}");
        guest.writes(&mut bench);
        work.failed(&guest.quit(bench));
    }
}

#[test]
fn a_commit_stopped_by_a_lost_base_can_be_cancelled() {
    for work in [Work::Commit, Work::ActiveCommit] {
        let (mut bench, server) = under_way(work, "base.qcow2", "stop");
        let mut guest = Guest::default();
        kill(server);
        hurry(&mut bench);
        guest.writes(&mut bench);
        let story = bench.story("j", "paused");
        assert!(story.contains(&work.error("stop")), "{work:?}: {story:?}");
        assert_eq!(bench.job("j")["io-status"], "failed");
        guest.writes(&mut bench);
        bench.run("block-job-cancel", json!({"device": "j", "force": true}));
        let story = bench.story("j", "null");
        assert!(story.contains(&"CANCELLED".to_string()), "{work:?}: {story:?}");
        guest.writes(&mut bench);
        work.failed(&guest.quit(bench));
    }
}

/// Here the guest's own disk is what is lost: the job ends, and so does the machine when told to.
#[test]
fn a_stream_into_an_image_that_disappears_ends() {
    let (mut bench, server) = under_way(Work::Stream, "top.qcow2", "report");
    kill(server);
    hurry(&mut bench);
    let said = bench.try_io("-d v", "write -P 9 0 64k");
    assert!(said.contains("write failed: Input/output error"), "{said}");
    let story = bench.story("j", "null");
    assert!(story.contains(&Work::Stream.error("report")), "{story:?}");
    assert!(story.contains(&"COMPLETED: Input/output error".to_string()), "{story:?}");
    let images = bench.quit();
    for image in ["mid.qcow2", "base.qcow2"] {
        images.check(image);
    }
    images.io("mid.qcow2", &["read -P 1 0 256k", "read -P 2 1M 3M"]);
}

/// What a stream reads from is lost: the top stays what it is, with the guest's writes.
#[test]
fn a_stream_from_a_base_that_disappears_leaves_the_top_in_use() {
    let images = Images::new();
    images.create("base.raw", "4M", &[]);
    images.io("base.raw", &["write -P 2 1M 3M"]);
    images.overlay("top.qcow2", "base.raw");
    images.io("top.qcow2", &["write -P 3 0 512k"]);
    images.create("model.raw", "4M", &[]);
    images.io("model.raw", &["write -P 2 1M 3M", "write -P 3 0 512k"]);
    let mut bench = Bench::start(images, &[]);
    let (server, mut base) = serve(&bench, "base.raw");
    base["node-name"] = "base".into();
    base["read-only"] = true.into();
    bench.run("blockdev-add", base);
    bench.open("top", "top.qcow2", json!({"backing": "base"}));
    bench.run("device_add", json!({"driver": "virtio-blk-pci", "id": "v", "drive": "top"}));
    let mut guest = Guest::default();
    Work::Stream.start(&mut bench, "report", 65536);
    bench.story("j", "running");
    guest.writes(&mut bench);
    kill(server);
    hurry(&mut bench);
    guest.writes(&mut bench);
    let story = bench.story("j", "null");
    assert!(story.contains(&"COMPLETED: Input/output error".to_string()), "{story:?}");
    guest.writes(&mut bench);
    let images = guest.quit(bench);
    images.check("top.qcow2");
    images.same("top.qcow2", "model.raw");
    assert_eq!(images.info("top.qcow2")["backing-filename"], images.path("base.raw"));
}
