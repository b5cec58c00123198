//! What is done to images while power may go.

use super::*;
use crate::DirtyBitmap;
use crate::backend::{Backend, OnError, Setup as Drive};
use crate::driver::Snapshot;
use crate::graph::Node;
use crate::jobs::{CommitSpec, Kind, MirrorSpec, MirrorSync, Setup, Status, StreamSpec};
use testkit::Dice;

const SIZE: u64 = 1 << 20;

/// One random request; the disk's content follows.
async fn request(stage: &mut Stage, node: &Arc<Node>, disk: &mut [u8], dice: &mut Dice) {
    let size = disk.len() as u64;
    let offset = dice.below(size);
    let longest = if dice.below(3) == 0 { 100_000 } else { 5000 };
    let len = (1 + dice.below(longest)).min(size - offset);
    let range = offset as usize..(offset + len) as usize;
    stage.touch(offset, len);
    match dice.below(9) {
        0..=5 => {
            let data = vec![dice.roll() as u8 | 1; len as usize];
            node.write(offset, &data, WriteFlags::empty()).await.unwrap();
            disk[range].copy_from_slice(&data);
        }
        6 => {
            node.write_zeroes(offset, len, ZeroFlags::MAY_UNMAP).await.unwrap();
            disk[range].fill(0);
        }
        7 => {
            node.discard(offset, len).await.unwrap();
            node.read(offset, &mut disk[range]).await.unwrap();
        }
        _ => {
            let start = offset / 65536 * 65536;
            let len = 65536.min(size - start);
            stage.touch(start, len);
            let data: Vec<u8> = (0..len).map(|at| (at / 64) as u8 | 1).collect();
            let done = node.write(start, &data, WriteFlags::COMPRESSED).await;
            // Not every cluster can be written compressed.
            if done.is_ok() {
                disk[start as usize..(start + len) as usize].copy_from_slice(&data);
            } else {
                node.read(start, &mut disk[start as usize..(start + len) as usize]).await.unwrap();
            }
        }
    }
}

async fn flush(stage: &mut Stage, node: &Arc<Node>, root: usize, disk: &[u8]) {
    node.flush().await.unwrap();
    stage.promise(root, disk, &[disk.len() as u64]);
}

fn open(stage: &Stage, tree: Value) -> Pin {
    let at = stage.graph.clone();
    stage.graph.block_on(async move { at.open(Options::json(tree), Settings::default()).await }).unwrap()
}

/// Runs the acts of a scene on the block layer's thread.
fn play<F>(mut stage: Stage, pin: Pin, acts: impl FnOnce(Stage, Arc<Node>) -> F) -> Stage
where
    F: Future<Output = Stage> + Send + 'static,
{
    let graph = stage.graph.clone();
    let playing = acts(std::mem::replace(&mut stage, Stage::new("gone")), pin.clone());
    let stage = graph.block_on(playing);
    close(&graph, pin);
    stage
}

async fn snapshot(node: &Arc<Node>, dice: &mut Dice, name: String) {
    let facet = node.layer().snapshots().unwrap();
    let list = facet.list();
    match dice.below(3) {
        0 if !list.is_empty() => facet.delete(&list[0].id).await.unwrap(),
        _ if list.len() < 4 => facet.create(Snapshot { name, ..Snapshot::default() }).await.unwrap(),
        _ => {}
    }
}

fn requests_and_snapshots(name: &str, seed: u64, options: Value, snapshots: bool) {
    let mut stage = Stage::new(name);
    stage.image(0, SIZE, &options, &[]);
    stage.begin(1);
    let pin = open(&stage, stage.tree(0));
    let stage = play(stage, pin, |mut stage, node| async move {
        let (mut dice, mut disk) = (Dice::new(seed), vec![0; SIZE as usize]);
        for round in 0..150 {
            match dice.below(8) {
                0 => flush(&mut stage, &node, 0, &disk).await,
                1 if snapshots && dice.below(2) == 0 => snapshot(&node, &mut dice, format!("s{round}")).await,
                _ => request(&mut stage, &node, &mut disk, &mut dice).await,
            }
        }
        stage
    });
    stage.cut_often(seed, cases());
}

#[test]
fn requests_and_snapshots_in_small_clusters() {
    requests_and_snapshots("small", 17, json!({"cluster_size": "512"}), true);
    requests_and_snapshots("4k", 18, json!({"cluster_size": "4k"}), true);
}

#[test]
fn requests_and_snapshots_in_usual_and_extended_clusters() {
    requests_and_snapshots("usual", 19, json!({}), true);
    requests_and_snapshots("extended", 20, json!({"cluster_size": "16k", "extended_l2": "on"}), true);
}

#[test]
fn requests_with_every_width_of_refcounts() {
    requests_and_snapshots("1 bit", 21, json!({"cluster_size": "1k", "refcount_bits": "1"}), false);
    requests_and_snapshots("64 bits", 22, json!({"cluster_size": "1k", "refcount_bits": "64"}), true);
    requests_and_snapshots("lazy", 23, json!({"cluster_size": "4k", "lazy_refcounts": "on"}), true);
    requests_and_snapshots("v2", 24, json!({"cluster_size": "4k", "compat": "0.10"}), true);
}

#[test]
fn resizes() {
    for (seed, options) in [(30, json!({"cluster_size": "512"})), (31, json!({}))] {
        let mut stage = Stage::new("resizes");
        stage.image(0, SIZE, &options, &[]);
        stage.begin(1);
        let pin = open(&stage, stage.tree(0));
        let stage = play(stage, pin, |mut stage, node| async move {
            let (mut dice, mut disk) = (Dice::new(seed), vec![0; SIZE as usize]);
            for round in 0..120 {
                match dice.below(8) {
                    0 => flush(&mut stage, &node, 0, &disk).await,
                    1 => {
                        let size = 512 * (1 + dice.below(2 * SIZE / 512));
                        let old = disk.len() as u64;
                        // What is cut off or new may be either, as may the length.
                        stage.touch(size.min(old), size.max(old));
                        if let Some(last) = stage.promises.last_mut() {
                            last.sizes.push(size);
                        }
                        node.truncate(size, Truncate::default()).await.unwrap();
                        disk.resize(size as usize, 0);
                    }
                    2 if round > 60 && dice.below(4) == 0 => {
                        // With a snapshot the image only grows or shrinks where that is allowed.
                        let facet = node.layer().snapshots().unwrap();
                        if let Some(one) = facet.list().first() {
                            facet.delete(&one.id).await.unwrap();
                        }
                    }
                    _ => request(&mut stage, &node, &mut disk, &mut dice).await,
                }
            }
            stage
        });
        stage.cut_often(seed, cases());
    }
}

#[test]
fn an_external_data_file() {
    for raw in ["off", "on"] {
        let mut stage = Stage::new("data");
        let data = stage.path(1);
        stage.image(0, SIZE, &json!({"data_file": data, "data_file_raw": raw, "cluster_size": "4k"}), &[]);
        stage.plain = vec![1];
        stage.begin(2);
        let mut tree = stage.tree(0);
        tree["data-file"] = stage.file(1);
        let pin = open(&stage, tree);
        // A user who writes: flushes go to the files that are written for somebody.
        let drive = Backend::new(&stage.graph, Drive { name: "d".into(), ..Drive::default() }).unwrap();
        drive.insert(&pin).unwrap();
        let stage = play(stage, pin, |mut stage, node| async move {
            let (mut dice, mut disk) = (Dice::new(40), vec![0; SIZE as usize]);
            for _ in 0..150 {
                match dice.below(8) {
                    0 => flush(&mut stage, &node, 0, &disk).await,
                    _ => request(&mut stage, &node, &mut disk, &mut dice).await,
                }
            }
            drive.delete();
            stage
        });
        stage.cut_often(41, cases());
    }
}

/// Opened, written and closed several times with bitmaps in the image: a bitmap that is not
/// marked as in use after the loss says of all that changed that it did.
#[test]
fn persistent_bitmaps() {
    let mut stage = Stage::new("bitmaps");
    stage.image(0, SIZE, &json!({"cluster_size": "4k"}), &[]);
    stage.begin(1);
    let mut disk = vec![0; SIZE as usize];
    for round in 0..6u64 {
        let pin = open(&stage, stage.tree(0));
        if round == 0 {
            let bitmap = Arc::new(DirtyBitmap::new(Some("b".into()), 4096, SIZE));
            bitmap.set_persistent(true);
            pin.bitmaps().add(bitmap);
        }
        let mut before = disk.clone();
        stage = play(stage, pin, |mut stage, node| async move {
            let mut dice = Dice::new(50 + round);
            for _ in 0..12 {
                request(&mut stage, &node, &mut before, &mut dice).await;
                flush(&mut stage, &node, 0, &before).await;
            }
            stage
        });
        disk = stage.promises.last().unwrap().disk.clone();
    }
    stage.cut_often(51, cases());
    let (mut dice, graph) = (Dice::new(52), graph());
    let mut trusted = 0;
    for _ in 0..cases() {
        let position = dice.below(stage.position() as u64 + 1) as usize;
        let images = stage.cut(position, || dice.below(2) == 0);
        std::fs::write(stage.path(0), &images[0]).unwrap();
        let pin = open_plain(&graph, &stage.path(0), true);
        let node = pin.clone();
        let mut seen = vec![0; SIZE as usize];
        let seen = graph.block_on(async move {
            node.read(0, &mut seen).await.unwrap();
            seen
        });
        if let Some(bitmap) = pin.bitmaps().find("b").filter(|bitmap| !bitmap.is_inconsistent()) {
            trusted += 1;
            for (at, piece) in seen.chunks(4096).enumerate() {
                let changed = piece.iter().any(|byte| *byte != 0);
                assert!(!changed || bitmap.get(at as u64 * 4096), "cut at {position}: {at} is not marked");
            }
        }
        close(&graph, pin);
    }
    assert!(trusted > 0, "no cut left a bitmap to trust");
}

/// 0: base, 1: middle, 2: top, with data in each. What is read of all.
fn chain(stage: &Stage) -> Vec<u8> {
    let options = json!({"cluster_size": "4k"});
    let over = |below: usize| json!({"cluster_size": "4k", "backing_file": stage.path(below), "backing_fmt": "qcow2"});
    stage.image(0, SIZE, &options, &["write -P 1 0 512k"]);
    stage.image(1, SIZE, &over(0), &["write -P 2 256k 512k"]);
    stage.image(2, SIZE, &over(1), &["write -P 3 100k 60k"]);
    let mut disk = vec![0; SIZE as usize];
    disk[..512 << 10].fill(1);
    disk[256 << 10..768 << 10].fill(2);
    disk[100 << 10..160 << 10].fill(3);
    disk
}

fn open_chain(stage: &Stage) -> Pin {
    let mut tree = stage.tree(2);
    tree["backing"] = stage.tree(1);
    tree["backing"]["backing"] = stage.tree(0);
    open(stage, tree)
}

/// Writes while a job runs; `ready` is told to complete.
async fn alongside(stage: &mut Stage, drive: &Backend, root: usize, disk: &mut [u8], dice: &mut Dice) {
    let job = stage.graph.jobs.get("j").unwrap();
    let mut told = false;
    for _ in 0..2000 {
        if matches!(job.status(), Status::Null | Status::Concluded) {
            break;
        }
        if let Some(node) = drive.node().filter(|_| !told) {
            // As requests of a guest: none is in flight when the graph changes.
            if let Ok(access) = drive.access(true, 0).await {
                request(stage, &node, disk, dice).await;
                if dice.below(3) == 0 {
                    flush(stage, &node, root, disk).await;
                }
                drop(access);
            }
        }
        if job.status() == Status::Ready && !told && dice.below(6) == 0 {
            job.complete().unwrap();
            told = true;
        }
        tokio::time::sleep(std::time::Duration::from_micros(500)).await;
    }
    assert!(matches!(job.status(), Status::Null | Status::Concluded), "{:?}", job.info());
    assert_eq!(job.info().error, None);
}

#[derive(Clone, Copy, PartialEq)]
enum Job {
    Stream,
    Commit,
    ActiveCommit,
    Mirror,
}

async fn start(stage: &Stage, what: Job, top: &Arc<Node>, target: Option<Arc<Node>>) {
    let graph = &stage.graph;
    let setup = |kind| Setup { speed: 16 << 20, ..Setup::new(kind, "j") };
    let (backing_file, on_error, filter_node_name) = (None, OnError::Report, None);
    let middle = top.backing().unwrap();
    let base = middle.backing().unwrap();
    match what {
        Job::Stream => {
            let setup = setup(Kind::Stream);
            let spec =
                StreamSpec { setup, top: top.clone(), base: None, backing_file, on_error, filter_node_name };
            graph.jobs.stream(graph, spec).await.unwrap();
        }
        Job::Commit => {
            let (setup, overlay) = (setup(Kind::Commit), top.clone());
            let spec = CommitSpec {
                setup,
                active: top.clone(),
                overlay,
                top: middle,
                base,
                // By its own name, the recorder would be told of.
                backing_file: Some(stage.path(0)),
                on_error,
                filter_node_name,
            };
            graph.jobs.commit(graph, spec).await.unwrap();
        }
        Job::ActiveCommit => {
            let sync = MirrorSync::Top(Some(base.clone()));
            let spec = MirrorSpec { sync, ..MirrorSpec::new(setup(Kind::Commit), top.clone(), base) };
            graph.jobs.mirror(graph, spec).await.unwrap();
        }
        Job::Mirror => {
            let spec = MirrorSpec::new(setup(Kind::Mirror), top.clone(), target.unwrap());
            graph.jobs.mirror(graph, spec).await.unwrap();
        }
    }
}

fn job(what: Job, name: &str, seed: u64) {
    let mut stage = Stage::new(name);
    let mut disk = chain(&stage);
    if what == Job::Mirror {
        stage.image(3, SIZE, &json!({"cluster_size": "16k"}), &[]);
    }
    stage.begin(if what == Job::Mirror { 4 } else { 3 });
    stage.promise(2, &disk, &[SIZE]);
    let pin = open_chain(&stage);
    let target = (what == Job::Mirror).then(|| open(&stage, stage.tree(3)));
    let root = match what {
        Job::Mirror => 3,
        Job::ActiveCommit => 0,
        _ => 2,
    };
    let graph = stage.graph.clone();
    let drive = Backend::new(&graph, Drive { name: "d".into(), ..Drive::default() }).unwrap();
    drive.insert(&pin).unwrap();
    let guest = drive.clone();
    let (top, to) = (pin.clone(), target.as_ref().map(|pin| (**pin).clone()));
    let mut stage = graph.block_on(async move {
        let mut dice = Dice::new(seed);
        start(&stage, what, &top, to).await;
        alongside(&mut stage, &guest, 2, &mut disk, &mut dice).await;
        let node = guest.node().unwrap();
        // Now on what the job left as the disk.
        for _ in 0..30 {
            request(&mut stage, &node, &mut disk, &mut dice).await;
            if dice.below(4) == 0 {
                flush(&mut stage, &node, root, &disk).await;
            }
        }
        stage
    });
    drop((pin, target));
    drive.delete();
    let at = stage.graph.clone();
    stage.graph.block_on(async move { at.shutdown().await });
    assert!(stage.promises.iter().any(|promise| promise.root == root));
    assert!(exists(&stage.path(0)));
    stage.cut_often(seed, cases());
    stage.promises.clear();
}

#[test]
fn a_stream_under_load() {
    job(Job::Stream, "stream", 61);
}

#[test]
fn a_commit_under_load() {
    job(Job::Commit, "commit", 62);
}

#[test]
fn an_active_commit_under_load() {
    job(Job::ActiveCommit, "active", 63);
}

#[test]
fn a_mirror_under_load() {
    job(Job::Mirror, "mirror", 64);
}
