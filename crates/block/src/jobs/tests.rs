use super::*;
use crate::backend::{Backend, OnError, Request, Setup as Drive};
use crate::formats::qcow2::tests::tool;
use crate::graph::{Node, tests::graph};
use crate::options::Options;
use crate::{DirtyBitmap, Notice};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SIZE: u64 = 4 << 20;

struct Bench {
    graph: Arc<Graph>,
    dir: tempfile::TempDir,
    seen: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        Bench { graph: graph(), dir: tempfile::tempdir_in("/dev/shm").unwrap(), seen: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn image(&self, name: &str, options: Value) -> PathBuf {
        let path = self.path(name);
        let mut options = options;
        options["size"] = SIZE.into();
        let (at, file) = (self.graph.clone(), path.to_str().unwrap().to_string());
        self.graph
            .block_on(async move { at.create_image(&file, "qcow2", Options::json(options)).await })
            .unwrap();
        path
    }

    fn open(&self, name: &str, path: &Path, more: Value) -> Arc<Node> {
        let mut options =
            json!({"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": path}});
        for (key, value) in more.as_object().unwrap() {
            options[key] = value.clone();
        }
        let at = self.graph.clone();
        self.graph.block_on(async move { at.add(Options::json(options)).await }).unwrap()
    }

    fn drive(&self, node: &Arc<Node>) -> Backend {
        let drive = Backend::new(&self.graph, Drive { name: "d".into(), ..Drive::default() }).unwrap();
        drive.insert(node).unwrap();
        drive
    }

    /// base <- mid <- top, each with other data; returns the three files.
    fn chain(&self) -> [PathBuf; 3] {
        let base = self.image("base", json!({}));
        fill(&base, "write -P 1 0 1M");
        let mid = self.image("mid", json!({"backing_file": base, "backing_fmt": "qcow2"}));
        fill(&mid, "write -P 2 512k 1M");
        let top = self.image("top", json!({"backing_file": mid, "backing_fmt": "qcow2"}));
        fill(&top, "write -P 3 1M 1000k");
        [base, mid, top]
    }

    fn events(&mut self) -> &[String] {
        for notice in self.graph.notices.drain() {
            match *notice.what.downcast::<Notice>().unwrap() {
                Notice::JobStatus { status, .. } => self.seen.push(status.as_str().to_string()),
                Notice::JobEnded { kind, error, .. } => self.seen.push(format!("{kind:?} {error:?}")),
                _ => {}
            }
        }
        &self.seen
    }

    fn wait(&mut self, what: &str) {
        for _ in 0..2000 {
            if self.events().iter().any(|event| event == what) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no {what} but {:?}", self.seen);
    }

    /// Ends everything; the files stay until the answer is dropped.
    fn end(self) -> tempfile::TempDir {
        let at = self.graph.clone();
        self.graph.block_on(async move {
            at.jobs.cancel_all().await;
            at.shutdown().await;
        });
        assert!(self.graph.nodes().is_empty(), "{:?}", self.graph.nodes());
        self.dir
    }
}

fn fill(path: &Path, command: &str) {
    tool("qemu-io", &["-f", "qcow2", "-c", command, path.to_str().unwrap()]);
}

fn expected() -> Vec<u8> {
    let mut model = vec![0; SIZE as usize];
    model[..1 << 20].fill(1);
    model[512 << 10..1536 << 10].fill(2);
    model[1 << 20..(1 << 20) + 1000 * 1024].fill(3);
    model
}

fn compare(path: &Path, model: &[u8]) {
    let raw = path.with_extension("model");
    std::fs::write(&raw, model).unwrap();
    let text = tool("qemu-img", &["check", path.to_str().unwrap()]);
    assert!(text.contains("No errors"), "{text}");
    tool("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
}

#[test]
fn stream_takes_the_chain_in() {
    let mut bench = Bench::new();
    let [base, mid, path] = bench.chain();
    let top = bench.open("top", &path, json!({}));
    let drive = bench.drive(&top);
    let setup = Setup::new(Kind::Stream, "j");
    let spec = StreamSpec {
        setup,
        top,
        base: None,
        backing_file: None,
        on_error: OnError::Report,
        filter_node_name: None,
    };
    let graph = bench.graph.clone();
    bench.graph.block_on(async move { graph.jobs.stream(&graph, spec).await }).unwrap();
    drive.write_blocking(700 << 10, vec![9; 5000]).unwrap();
    bench.wait("null");
    let order = ["created", "running", "waiting", "pending", "Completed None", "concluded", "null"];
    assert_eq!(bench.events(), order);
    let _dir = bench.end();
    std::fs::remove_file(mid).unwrap();
    std::fs::remove_file(base).unwrap();
    let mut model = expected();
    model[700 << 10..(700 << 10) + 5000].fill(9);
    compare(&path, &model);
}

#[test]
fn commit_of_the_middle_goes_into_the_base() {
    let mut bench = Bench::new();
    let [base_path, _, path] = bench.chain();
    let overlay = bench.open("top", &path, json!({}));
    let top = overlay.backing().unwrap();
    let base = top.backing().unwrap();
    bench.drive(&overlay);
    let setup = Setup::new(Kind::Commit, "j");
    let spec = CommitSpec {
        setup,
        active: overlay.clone(),
        overlay: overlay.clone(),
        top,
        base,
        backing_file: None,
        on_error: OnError::Report,
        filter_node_name: None,
    };
    let graph = bench.graph.clone();
    bench.graph.block_on(async move { graph.jobs.commit(&graph, spec).await }).unwrap();
    bench.wait("null");
    assert!(bench.events().contains(&"Completed None".to_string()), "{:?}", bench.seen);
    assert_eq!(overlay.backing().unwrap().filename(), base_path.to_str().unwrap());
    assert!(overlay.backing().unwrap().is_read_only());
    drop(overlay);
    let _dir = bench.end();
    std::fs::remove_file(bench_path(&path, "mid")).unwrap();
    compare(&path, &expected());
}

fn bench_path(path: &Path, name: &str) -> PathBuf {
    path.with_file_name(name)
}

fn mirror(bench: &Bench, source: &Arc<Node>, target: &Arc<Node>, kind: Kind, sync: MirrorSync) {
    let setup = Setup::new(kind, "j");
    let spec = MirrorSpec { sync, ..MirrorSpec::new(setup, source.clone(), target.clone()) };
    let graph = bench.graph.clone();
    bench.graph.block_on(async move { graph.jobs.mirror(&graph, spec).await }).unwrap();
}

#[test]
fn a_mirror_under_load_switches_over_without_loss() {
    let mut bench = Bench::new();
    let [_, _, path] = bench.chain();
    let source = bench.open("top", &path, json!({}));
    let drive = bench.drive(&source);
    let copy = bench.image("copy", json!({}));
    let target = bench.open("copy", &copy, json!({}));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (guest, ended) = (drive.clone(), stop.clone());
    let writer = std::thread::spawn(move || {
        let mut model = expected();
        let mut dice = testkit::Dice::new(7);
        while !ended.load(std::sync::atomic::Ordering::Acquire) {
            let (at, byte) = (dice.below(SIZE - 4096), dice.roll() as u8);
            guest.write_blocking(at, vec![byte; 4096]).unwrap();
            model[at as usize..at as usize + 4096].fill(byte);
            std::thread::sleep(Duration::from_micros(300));
        }
        model
    });
    mirror(&bench, &source, &target, Kind::Mirror, MirrorSync::Full);
    bench.wait("Ready None");
    std::thread::sleep(Duration::from_millis(50));
    bench.graph.jobs.get("j").unwrap().complete().unwrap();
    bench.wait("null");
    assert_eq!(drive.node().unwrap().name(), "copy");
    std::thread::sleep(Duration::from_millis(30));
    stop.store(true, std::sync::atomic::Ordering::Release);
    let model = writer.join().unwrap();
    drop((source, target));
    let _dir = bench.end();
    compare(&copy, &model);
}

#[test]
fn an_active_commit_ends_on_the_base_and_a_cancelled_mirror_leaves_all() {
    let mut bench = Bench::new();
    let [base_path, _, path] = bench.chain();
    let top = bench.open("top", &path, json!({}));
    let drive = bench.drive(&top);
    let base = top.backing().unwrap().backing().unwrap();
    mirror(&bench, &top, &base, Kind::Commit, MirrorSync::Top(Some(base.clone())));
    bench.wait("Ready None");
    drive.write_blocking(3 << 20, vec![4; 1000]).unwrap();
    bench.graph.jobs.get("j").unwrap().complete().unwrap();
    bench.wait("null");
    assert_eq!(drive.node().unwrap().filename(), base_path.to_str().unwrap());
    drive.write_blocking((3 << 20) + 1000, vec![5; 1000]).unwrap();
    // What still stands on the base keeps it from being mirrored.
    drop((top, base));
    let at = bench.graph.clone();
    bench.graph.block_on(async move { at.delete("top").await }).unwrap();
    let copy = bench.image("copy", json!({}));
    let target = bench.open("copy", &copy, json!({}));
    let node = drive.node().unwrap();
    bench.seen.clear();
    mirror(&bench, &node, &target, Kind::Mirror, MirrorSync::Full);
    bench.wait("Ready None");
    bench.graph.jobs.get("j").unwrap().cancel(false).unwrap();
    bench.wait("null");
    assert!(bench.seen.contains(&"Completed None".to_string()));
    assert_eq!(drive.node().unwrap().name(), node.name());
    drop((node, target));
    let _dir = bench.end();
    let mut model = expected();
    model[3 << 20..(3 << 20) + 1000].fill(4);
    model[(3 << 20) + 1000..(3 << 20) + 2000].fill(5);
    compare(&base_path, &model);
    compare(&copy, &model);
}

/// A full backup, job `j`.
fn plain_backup(source: &Arc<Node>, target: &Arc<Node>, speed: u64) -> BackupSpec {
    BackupSpec {
        setup: Setup { speed, ..Setup::new(Kind::Backup, "j") },
        source: source.clone(),
        target: target.clone(),
        sync: BackupSync::Full,
        bitmap: None,
        compress: false,
        perf: Perf::default(),
        filter_node_name: None,
        on_source_error: OnError::Report,
        on_target_error: OnError::Report,
        pin: None,
    }
}

#[test]
fn a_backup_is_of_one_point_in_time_and_increments_restore() {
    let mut bench = Bench::new();
    let path = bench.image("disk", json!({}));
    fill(&path, "write -P 1 0 4M");
    let source = bench.open("disk", &path, json!({}));
    let drive = bench.drive(&source);
    let full = bench.image("full", json!({}));
    let target = bench.open("full", &full, json!({}));
    let bitmap = Arc::new(DirtyBitmap::new(Some("b".into()), 65536, SIZE));
    source.bitmaps().add(bitmap.clone());
    let start = |bench: &Bench,
                 target: &Arc<Node>,
                 sync: BackupSync,
                 bitmap: Option<(Arc<DirtyBitmap>, BitmapMode)>,
                 speed: u64| {
        let spec = BackupSpec { sync, bitmap, ..plain_backup(&source, target, speed) };
        let graph = bench.graph.clone();
        bench.graph.block_on(async move { graph.jobs.backup(&graph, spec).await }).unwrap();
    };
    start(&bench, &target, BackupSync::Full, None, 8 << 20);
    for at in 0..64 {
        drive.write_blocking((63 - at) * 65536 + 100, vec![2; 1000]).unwrap();
    }
    bench.wait("null");
    assert!(bench.seen.contains(&"Completed None".to_string()), "{:?}", bench.seen);
    let model = vec![1; SIZE as usize];
    let increment = bench.image("inc", json!({"backing_file": full, "backing_fmt": "qcow2"}));
    let more = bench.open("inc", &increment, json!({"backing": "full"}));
    assert_eq!(bitmap.count(), SIZE);
    bitmap.clear();
    drive.write_blocking(5 << 16, vec![7; 10]).unwrap();
    bench.seen.clear();
    start(&bench, &more, BackupSync::Bitmap, Some((bitmap.clone(), BitmapMode::OnSuccess)), 0);
    bench.wait("null");
    assert_eq!(bitmap.count(), 0);
    drive.perform_blocking(Request::Flush).unwrap();
    drop((source, target, more));
    let _dir = bench.end();
    compare(&full, &model);
    let mut model = model;
    model[5 << 16..6 << 16].fill(1);
    model[(5 << 16) + 100..(5 << 16) + 1100].fill(2);
    model[5 << 16..(5 << 16) + 10].fill(7);
    compare(&increment, &model);
}

/// The source is made shorter while the job has yet to come to its end.
#[test]
fn a_backup_of_a_disk_that_shrinks_ends() {
    let mut bench = Bench::new();
    let path = bench.image("disk", json!({}));
    let source = bench.open("disk", &path, json!({}));
    let _drive = bench.drive(&source);
    let full = bench.image("full", json!({}));
    let target = bench.open("full", &full, json!({}));
    let spec = plain_backup(&source, &target, 65536);
    drop(target);
    let graph = bench.graph.clone();
    bench.graph.block_on(async move {
        let job = graph.jobs.backup(&graph, spec).await.unwrap();
        source.truncate(1 << 20, crate::Truncate::default()).await.unwrap();
        job.set_speed(0).unwrap();
    });
    bench.wait("null");
    assert!(bench.seen.contains(&"Completed None".to_string()), "{:?}", bench.seen);
    bench.end();
}

#[test]
fn a_paused_job_stands_and_a_cancelled_one_says_so() {
    let mut bench = Bench::new();
    let path = bench.image("disk", json!({}));
    fill(&path, "write -P 1 0 4M");
    let source = bench.open("disk", &path, json!({}));
    bench.drive(&source);
    let copy = bench.image("copy", json!({}));
    let target = bench.open("copy", &copy, json!({}));
    let setup = Setup { speed: 1 << 20, ..Setup::new(Kind::Mirror, "j") };
    let spec = MirrorSpec::new(setup, source.clone(), target.clone());
    let graph = bench.graph.clone();
    bench.graph.block_on(async move { graph.jobs.mirror(&graph, spec).await }).unwrap();
    let job = bench.graph.jobs.get("j").unwrap();
    job.pause().unwrap();
    bench.wait("paused");
    let stood = job.info().progress.offset;
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(job.info().progress.offset, stood);
    assert_eq!(job.pause().unwrap_err().text, "Job is already paused");
    assert_eq!(
        job.complete().unwrap_err().text,
        "Job 'j' in state 'paused' cannot accept command verb 'complete'"
    );
    job.resume().unwrap();
    job.cancel(false).unwrap();
    bench.wait("null");
    assert!(bench.seen.contains(&"Cancelled None".to_string()), "{:?}", bench.seen);
    drop((source, target));
    let _dir = bench.end();
}

/// A mirror of nothing to nowhere.
async fn null_mirror(at: &Arc<Graph>) -> Arc<Job> {
    let null = |name: &str| json!({"driver": "null-co", "size": 1 << 20, "node-name": name});
    let source = at.add(Options::json(null("s"))).await.unwrap();
    let target = at.add(Options::json(null("t"))).await.unwrap();
    let spec = MirrorSpec::new(Setup::new(Kind::Mirror, "m"), source, target);
    at.jobs.mirror(at, spec).await.unwrap()
}

#[test]
fn a_job_is_told_of_as_paused_and_running_in_turn() {
    let mut bench = Bench::new();
    let at = bench.graph.clone();
    let job = bench.graph.block_on(async move { null_mirror(&at).await });
    job.begin();
    bench.wait("ready");
    for round in 0..4000 {
        job.pause().unwrap();
        for _ in 0..round % 64 * 20 {
            std::hint::spin_loop();
        }
        job.resume().unwrap();
    }
    job.cancel(true).unwrap();
    bench.wait("null");
    let seen = bench.seen.iter().skip_while(|event| *event != "ready");
    let seen: Vec<_> = seen.filter(|event| ["ready", "standby"].contains(&event.as_str())).collect();
    assert!(seen.iter().any(|event| *event == "standby"), "never paused");
    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:?}");
    assert_eq!(seen.last().unwrap().as_str(), "ready");
    bench.end();
}

#[test]
fn cancelling_all_does_not_wait_for_a_job_that_has_not_begun() {
    let mut bench = Bench::new();
    let at = bench.graph.clone();
    let took = bench.graph.block_on(async move {
        let job = null_mirror(&at).await;
        // It stands at its first piece when all are cancelled.
        job.hold();
        let asked = std::time::Instant::now();
        let later = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            job.release();
        };
        tokio::join!(at.jobs.cancel_all(), later);
        asked.elapsed()
    });
    assert!(took < STANDSTILL, "{took:?}");
    let told = ["created", "running", "paused", "running", "aborting", "Cancelled None", "concluded", "null"];
    assert_eq!(bench.events(), told);
}
