use crate::backend::{Backend, Request, Setup};
use crate::graph::{Graph, Node, tests::graph};
use crate::options::Options;
use crate::types::*;
use crate::{DirtyBitmap, Notice};
use base::Result;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const SIZE: usize = 4 << 20;

struct Bench {
    graph: Arc<Graph>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Bench { graph: graph(), dir: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    fn file(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, vec![byte; SIZE]).unwrap();
        path
    }

    fn try_add(&self, options: Value) -> Result<Arc<Node>> {
        let at = self.graph.clone();
        self.graph.block_on(async move { at.add(Options::json(options)).await })
    }

    fn add(&self, name: &str, mut options: Value) -> Arc<Node> {
        options["node-name"] = name.into();
        self.try_add(options).unwrap()
    }

    fn refused(&self, mut options: Value) -> String {
        options["node-name"] = "refused".into();
        self.try_add(options).unwrap_err().text
    }

    fn drive(&self, name: &str, node: &Arc<Node>) -> Backend {
        let drive = Backend::new(&self.graph, Setup { name: name.into(), ..Setup::default() }).unwrap();
        drive.insert(node).unwrap();
        drive
    }

    fn status(&self, node: &Arc<Node>, offset: u64, len: u64) -> std::io::Result<Status> {
        let node = node.clone();
        self.graph.block_on(async move { node.block_status(offset, len).await })
    }

    /// What was told since the last call.
    fn told(&self) -> Vec<Notice> {
        self.graph.notices.drain().into_iter().map(|notice| *notice.what.downcast().unwrap()).collect()
    }

    fn delete(&self, name: &'static str) {
        let at = self.graph.clone();
        self.graph.block_on(async move { at.delete(name).await }).unwrap();
    }
}

fn plain(path: &Path) -> Value {
    json!({"driver": "file", "filename": path})
}

fn code<T>(result: std::io::Result<T>) -> i32 {
    result.err().map_or(0, |error| errno_of(&error))
}

// quorum

fn quorum(bench: &Bench, more: Value) -> (Arc<Node>, Backend) {
    let children: Vec<Value> =
        [("a", 1), ("b", 1), ("c", 2)].iter().map(|(name, byte)| plain(&bench.file(name, *byte))).collect();
    let mut options = json!({"driver": "quorum", "vote-threshold": 2, "children": children});
    more.as_object().unwrap().iter().for_each(|(key, value)| options[key] = value.clone());
    let node = bench.add("q", options);
    let drive = bench.drive("d", &node);
    (node, drive)
}

#[test]
fn quorum_outvotes_and_rewrites_what_is_corrupt() {
    let bench = Bench::new();
    let (_node, drive) = quorum(&bench, json!({"rewrite-corrupted": true}));
    bench.told();
    assert_eq!(drive.read_blocking(4096, 8192).unwrap(), vec![1; 8192]);
    let told = bench.told();
    let bad = |one: &Notice| {
        matches!(one, Notice::QuorumReportBad { operation: "read", error: None, sector: 8, sectors: 16, .. })
    };
    assert!(told.len() == 1 && bad(&told[0]), "{told:?}");
    let mended = std::fs::read(bench.dir.path().join("c")).unwrap();
    assert!(mended[4096..12288].iter().all(|byte| *byte == 1) && mended[12288] == 2);
}

#[test]
fn quorum_fails_without_a_majority_and_names_the_device() {
    let bench = Bench::new();
    let (_node, drive) = quorum(&bench, json!({}));
    // Now all three differ.
    std::fs::write(bench.dir.path().join("b"), vec![3; SIZE]).unwrap();
    bench.told();
    assert_eq!(code(drive.read_blocking(0, 512)), libc::EIO);
    let told = bench.told();
    let failed = |one: &Notice| matches!(one, Notice::QuorumFailure { reference, sector: 0, sectors: 1 } if reference == "d");
    assert!(told.iter().any(failed), "{told:?}");
}

#[test]
fn quorum_fifo_takes_the_first_that_answers() {
    let bench = Bench::new();
    let broken = json!({"driver": "blkdebug", "image": plain(&bench.file("x", 9)),
        "inject-error": [{"event": "none", "iotype": "read", "errno": 5}]});
    let good = plain(&bench.file("y", 7));
    let node = bench.add(
        "q",
        json!({"driver": "quorum", "vote-threshold": 1, "read-pattern": "fifo", "children": [broken, good]}),
    );
    let drive = bench.drive("d", &node);
    bench.told();
    assert_eq!(drive.read_blocking(0, 512).unwrap(), vec![7; 512]);
    assert!(matches!(bench.told()[..], [Notice::QuorumReportBad { error: Some(_), .. }]));
    drive.write_blocking(0, vec![5; 512]).unwrap();
    assert_eq!(std::fs::read(bench.dir.path().join("x")).unwrap()[..513], [&[5; 512][..], &[9]].concat());
    assert!(bench.status(&node, 0, 4096).unwrap().flags.contains(StatusFlags::DATA));
}

// blkverify

#[test]
fn blkverify_passes_what_agrees() {
    let bench = Bench::new();
    let (raw, test) = (bench.file("raw", 1), bench.dir.path().join("test.qcow2"));
    let args = ["convert", "-f", "raw", "-O", "qcow2"];
    assert!(Command::new("qemu-img").args(args).args([&raw, &test]).status().unwrap().success());
    let name = format!("blkverify:{}:{}", raw.display(), test.display());
    let node = bench.add("v", json!({"driver": "blkverify", "filename": name}));
    let drive = bench.drive("d", &node);
    drive.write_blocking(1000, vec![2; 70_000]).unwrap();
    drive.perform_blocking(Request::WriteZeroes { offset: 65536, len: 65536, unmap: true }).unwrap();
    assert_eq!(drive.read_blocking(0, SIZE).unwrap().len(), SIZE);
    drop(node);
    drive.delete();
    let at = bench.graph.clone();
    bench.graph.block_on(async move { at.shutdown().await });
    let args = ["compare", "-f", "raw", "-F", "qcow2"];
    assert!(Command::new("qemu-img").args(args).args([&raw, &test]).status().unwrap().success());
}

/// Run as a process of its own by the next test: it ends within the read.
#[test]
#[ignore = "ends the process"]
fn blkverify_child() {
    let bench = Bench::new();
    let (raw, test) = (bench.file("raw", 1), bench.file("test", 1));
    let node = bench.add("v", json!({"driver": "blkverify", "raw": plain(&raw), "test": plain(&test)}));
    let drive = bench.drive("d", &node);
    let mut data = vec![1; SIZE];
    data[5000] = 2;
    std::fs::write(&test, data).unwrap();
    drive.read_blocking(0, 4096).unwrap();
    let _ = drive.read_blocking(4096, 4096);
    unreachable!("the difference was not seen");
}

#[test]
fn blkverify_ends_the_process_at_a_difference() {
    let me = std::env::current_exe().unwrap();
    let args = ["--exact", "filters::tests::blkverify_child", "--ignored", "--nocapture"];
    let out = Command::new(me).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(
        text.contains("blkverify: read offset=4096 bytes=4096 contents mismatch at offset 5000"),
        "{text}"
    );
    assert_eq!(out.status.code(), Some(1));
    assert!(!text.contains("was not seen"), "{text}");
}

// preallocate

#[test]
fn preallocate_runs_ahead_and_is_cut_at_close() {
    let bench = Bench::new();
    let path = bench.dir.path().join("grow");
    std::fs::write(&path, [0; 0]).unwrap();
    let options = json!({"driver": "preallocate", "prealloc-align": 65536, "prealloc-size": 1 << 20,
        "file": plain(&path)});
    let node = bench.add("p", options);
    let drive = bench.drive("d", &node);
    let node_at = node.clone();
    bench.graph.block_on(async move {
        node_at.write(0, &[1; 1000], WriteFlags::empty()).await.unwrap();
    });
    assert_eq!(node.size(), 1000, "what is ahead is not shown");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), (1 << 20) + 65536);
    assert_eq!(code(drive.read_blocking(1000, 1)), libc::EIO);
    let node_at = node.clone();
    bench.graph.block_on(async move {
        node_at.write(5000, &[2; 10], WriteFlags::empty()).await.unwrap();
        node_at.truncate(6144, Truncate::default()).await.unwrap();
        node_at.write(6144, &[3; 10], WriteFlags::empty()).await.unwrap();
    });
    assert!(std::fs::metadata(&path).unwrap().len() > 1 << 20);
    drop(node);
    drive.delete();
    bench.delete("p");
    let content = std::fs::read(&path).unwrap();
    assert_eq!(content.len(), 6154);
    assert!(content[1000..5000].iter().all(|byte| *byte == 0) && content[5010..6144].iter().all(|b| *b == 0));
    let bad = json!({"driver": "preallocate", "prealloc-align": 1000, "file": plain(&path)});
    assert!(bench.refused(bad).contains("not aligned to 512"));
}

// copy-before-write and snapshot-access

struct Fleece {
    bench: Bench,
    drive: Backend,
    old: Backend,
}

fn fleece(more: Value) -> Fleece {
    let bench = Bench::new();
    let (disk, target) = (bench.file("disk", 1), bench.file("target", 0));
    let broken = more.get("broken").is_some();
    let mut target = plain(&target);
    if broken {
        target = json!({"driver": "blkdebug", "image": target,
            "inject-error": [{"event": "none", "iotype": "write", "errno": 28}]});
    }
    let mut options = json!({"driver": "copy-before-write", "file": plain(&disk), "target": target});
    for (key, value) in more.as_object().unwrap().iter().filter(|(key, _)| *key != "broken") {
        options[key] = value.clone();
    }
    let node = bench.add("cbw", options);
    let drive = bench.drive("d", &node);
    let access = bench.add("access", json!({"driver": "snapshot-access", "file": "cbw"}));
    let old = bench.drive("old", &access);
    Fleece { bench, drive, old }
}

#[test]
fn the_old_state_stays_readable_while_the_disk_changes() {
    let Fleece { bench, drive, old } = fleece(json!({}));
    drive.write_blocking(100, vec![2; 10]).unwrap();
    drive.perform_blocking(Request::WriteZeroes { offset: 1 << 20, len: 1 << 20, unmap: true }).unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    for at in 0..64u64 {
        let (tx, write) = (tx.clone(), at % 2 == 0);
        let offset = at * 65536;
        let done = move |result: std::io::Result<crate::Lent>| tx.send((write, result)).unwrap();
        match write {
            true => drive
                .submit(Request::Write { offset, data: vec![3; 65536].into(), fua: false }, Box::new(done)),
            false => old.submit(Request::Read { offset: 0, len: SIZE }, Box::new(done)),
        }
    }
    for _ in 0..64 {
        let (write, result) = rx.recv().unwrap();
        assert!(write || result.unwrap() == vec![1; SIZE]);
    }
    assert_eq!(old.read_blocking(0, SIZE).unwrap(), vec![1; SIZE]);
    assert_eq!(drive.read_blocking(0, 1).unwrap(), [3]);
    assert_eq!(drive.read_blocking((1 << 20) + 65536, 10).unwrap(), [0; 10]);
    assert_eq!(code(old.write_blocking(0, vec![1; 512])), libc::ENOTSUP);
    // What is discarded is not kept any more.
    let access = old.node().unwrap();
    let at = access.clone();
    bench.graph.block_on(async move { at.discard(0, 70_000).await }).unwrap();
    assert_eq!(code(old.read_blocking(0, 512)), 0, "discard=ignore");
}

#[test]
fn a_copy_that_fails_fails_the_write_or_the_old_state() {
    let Fleece { drive, old, .. } = fleece(json!({"broken": true}));
    assert_eq!(code(drive.write_blocking(0, vec![2; 512])), libc::ENOSPC);
    assert_eq!(drive.read_blocking(0, 1).unwrap(), [1], "nothing was changed");
    assert_eq!(old.read_blocking(0, 1).unwrap(), [1]);
    let Fleece { drive, old, .. } = fleece(json!({"broken": true, "on-cbw-error": "break-snapshot"}));
    drive.write_blocking(0, vec![2; 512]).unwrap();
    assert_eq!(drive.read_blocking(0, 1).unwrap(), [2]);
    assert_eq!(code(old.read_blocking(1 << 20, 512)), libc::EACCES);
}

#[test]
fn only_what_a_bitmap_names_is_kept() {
    let bench = Bench::new();
    let disk = bench.add("disk", plain(&bench.file("disk", 1)));
    let bitmap = Arc::new(DirtyBitmap::new(Some("b".into()), 65536, SIZE as u64));
    bitmap.set(65536, 65536);
    disk.bitmaps().add(bitmap);
    let options = json!({"driver": "copy-before-write", "file": "disk", "target": plain(&bench.file("t", 0)),
        "bitmap": {"node": "disk", "name": "b"}});
    let drive = bench.drive("d", &bench.add("cbw", options));
    let old = bench.add("a", json!({"driver": "snapshot-access", "file": "cbw", "discard": "unmap"}));
    let old = bench.drive("old", &old);
    drive.write_blocking(0, vec![2; SIZE]).unwrap();
    assert_eq!(code(old.read_blocking(0, 512)), libc::EACCES);
    assert_eq!(old.read_blocking(65536, 65536).unwrap(), vec![1; 65536]);
    old.perform_blocking(Request::Discard { offset: 65536, len: 65536 }).unwrap();
    assert_eq!(code(old.read_blocking(65536, 512)), libc::EACCES);
    let bad = json!({"driver": "snapshot-access", "file": "disk"});
    assert_eq!(bench.refused(bad), "Node 'disk' is not a copy-before-write filter");
}

// blkdebug

fn debugged(more: Value) -> (Bench, Backend) {
    let bench = Bench::new();
    let mut options = json!({"driver": "blkdebug", "image": plain(&bench.file("f", 1))});
    more.as_object().unwrap().iter().for_each(|(key, value)| options[key] = value.clone());
    let node = bench.add("n", json!({"driver": "raw", "file": options, "discard": "unmap"}));
    let drive = bench.drive("d", &node);
    (bench, drive)
}

#[test]
fn injected_errors_follow_event_state_place_kind_and_once() {
    let (_bench, drive) = debugged(json!({
        "set-state": [{"event": "read_aio", "state": 1, "new_state": 2}],
        "inject-error": [
            {"event": "read_aio", "state": 2, "sector": 8, "errno": 28, "once": true, "iotype": "read"},
            {"event": "write_aio", "iotype": "write", "immediately": true, "sector": 0},
        ],
    }));
    assert_eq!(code(drive.read_blocking(4096, 512)), 0, "state 1");
    assert_eq!(code(drive.read_blocking(8192, 512)), 0, "another place");
    assert_eq!(code(drive.read_blocking(4096, 512)), libc::ENOSPC);
    assert_eq!(code(drive.read_blocking(4096, 512)), 0, "once");
    assert_eq!(code(drive.write_blocking(512, vec![2; 512])), 0);
    assert_eq!(code(drive.write_blocking(0, vec![2; 512])), libc::EIO);
    assert_eq!(code(drive.write_blocking(0, vec![2; 512])), libc::EIO, "it stays");
    assert_eq!(drive.read_blocking(0, 1).unwrap(), [1]);
}

#[test]
fn events_of_a_format_reach_blkdebug_below_it() {
    let bench = Bench::new();
    let path = bench.dir.path().join("i.qcow2");
    let create = ["create", "-q", "-f", "qcow2"];
    assert!(Command::new("qemu-img").args(create).arg(&path).arg("4M").status().unwrap().success());
    let file = json!({"driver": "blkdebug", "image": plain(&path),
        "inject-error": [{"event": "cluster_alloc", "errno": 28, "once": true, "iotype": "write"}]});
    let node = bench.add("q", json!({"driver": "qcow2", "file": file}));
    let drive = bench.drive("d", &node);
    assert_eq!(code(drive.write_blocking(0, vec![1; 512])), libc::ENOSPC);
    assert_eq!(code(drive.write_blocking(0, vec![1; 512])), 0);
    drop(node);
    drive.delete();
    bench.delete("q");
    let file = json!({"driver": "blkdebug", "image": plain(&path),
        "inject-error": [{"event": "l2_load", "errno": 28, "once": true, "iotype": "read"}]});
    let node = bench.add("q", json!({"driver": "qcow2", "file": file}));
    let drive = bench.drive("e", &node);
    assert_eq!(code(drive.read_blocking(0, 512)), libc::ENOSPC);
    assert_eq!(drive.read_blocking(0, 512).unwrap(), vec![1; 512]);
}

#[test]
fn bounds_are_kept_and_contradictions_refused() {
    let bench = Bench::new();
    let deep = json!({"driver": "blkdebug", "image": plain(&bench.file("f", 1)),
        "inject-error": [{"event": "pwritev_zero", "sector": 128, "errno": 28, "iotype": "write-zeroes"}]});
    let options = json!({"driver": "blkdebug", "align": 512, "max-transfer": 65536, "opt-write-zero": 4096,
        "max-write-zero": 65536, "opt-discard": 4096, "max-discard": 65536, "image": deep});
    let node = bench.add("n", options);
    let limits = node.layer().limits();
    assert_eq!((limits.request_alignment, limits.max_transfer, limits.zeroes_alignment), (512, 65536, 4096));
    let drive = bench.drive("d", &node);
    drive.write_blocking(1, vec![2; 300_000]).unwrap();
    assert_eq!(drive.read_blocking(0, 300_002).unwrap()[299_999..], [2, 2, 1]);
    // The second piece of 64 KiB begins at the sector with the error.
    let zeroes = |offset, len| Request::WriteZeroes { offset, len, unmap: false };
    drive.perform_blocking(zeroes(0, 65536)).unwrap();
    assert_eq!(code(drive.perform_blocking(zeroes(0, 131_072))), libc::ENOSPC);
    let child = json!({"driver": "null-co"});
    let bad = |key: &str, value: u64| {
        let mut options = json!({"driver": "blkdebug", "image": child, "align": 512, "opt-discard": 4096});
        options[key] = value.into();
        bench.refused(options)
    };
    assert_eq!(bad("align", 33), "Cannot meet constraints with align 33");
    assert_eq!(bad("max-transfer", 1000), "Cannot meet constraints with max-transfer 1000");
    assert_eq!(bad("max-discard", 512), "Cannot meet constraints with max-discard 512");
    let shares = json!({"driver": "blkdebug", "image": child, "unshare-child-perms": ["walk"]});
    assert!(bench.refused(shares).contains("unshare-child-perms"));
}

#[test]
fn permissions_can_be_taken_for_tests() {
    let bench = Bench::new();
    bench.add("below", json!({"driver": "null-co"}));
    let options = json!({"driver": "blkdebug", "image": "below", "unshare-child-perms": ["write"]});
    bench.add("n", options);
    let why = Backend::new(&bench.graph, Setup::default())
        .and_then(|drive| drive.insert(&bench.graph.find("below").unwrap()))
        .unwrap_err();
    assert!(why.text.contains("'write'") && why.text.contains("node 'n'"), "{}", why.text);
}

// copy-on-read and compress

/// What was written before a filter came is on disk once the filter has been flushed.
#[test]
fn a_flush_goes_through_a_filter_that_wrote_nothing() {
    let bench = Bench::new();
    let path = bench.dir.path().join("a.qcow2").to_str().unwrap().to_string();
    let (at, file) = (bench.graph.clone(), path.clone());
    let options = Options::json(json!({"size": SIZE}));
    bench.graph.block_on(async move { at.create_image(&file, "qcow2", options).await }).unwrap();
    let disk = json!({"driver": "qcow2", "file": {"driver": "file", "filename": path}});
    let node = bench.add("n", disk);
    let filter = bench.add("f", json!({"driver": "copy-on-read", "file": "n"}));
    bench.graph.block_on(async move {
        node.write(0, &[7; 65536], WriteFlags::empty()).await.unwrap();
        filter.flush().await.unwrap();
    });
    let read = ["-r", "-U", "-f", "qcow2", "-c", "read -P 7 0 64k", &path];
    let out = Command::new("qemu-io").args(read).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn copy_on_read_stops_at_its_bottom() {
    read_above_the_bottom(|image| image);
    // A raw image over it says nothing of its own.
    read_above_the_bottom(|image| json!({"driver": "raw", "file": image}));
}

fn read_above_the_bottom(wrap: fn(Value) -> Value) {
    let bench = Bench::new();
    let [base, mid, top] = ["base", "mid", "top"].map(|name| bench.dir.path().join(name));
    let tool = |args: &[&str]| assert!(Command::new("qemu-img").args(args).status().unwrap().success());
    let path = |path: &Path| path.to_str().unwrap().to_string();
    tool(&["create", "-q", "-f", "qcow2", &path(&base), "4M"]);
    tool(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &path(&base), &path(&mid)]);
    tool(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &path(&mid), &path(&top)]);
    for (file, command) in [(&base, "write -P 1 0 1M"), (&mid, "write -P 2 1M 1M")] {
        let out = Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(file).output().unwrap();
        assert!(out.status.success());
    }
    let image = |path: &Path| json!({"driver": "qcow2", "file": plain(path)});
    let mut options = image(&top);
    options["node-name"] = "top".into();
    options["backing"] = image(&mid);
    options["backing"]["node-name"] = "mid".into();
    let filter = bench.add("cor", json!({"driver": "copy-on-read", "bottom": "mid", "file": wrap(options)}));
    let drive = bench.drive("d", &filter);
    let data = drive.read_blocking(0, 2 << 20).unwrap();
    assert!(data[..1 << 20].iter().all(|byte| *byte == 1) && data[1 << 20..].iter().all(|byte| *byte == 2));
    let top = bench.graph.find("top").unwrap();
    let own = |at| bench.status(&top, at, 65536).unwrap().flags.contains(StatusFlags::ALLOCATED);
    assert!(!own(0), "below the bottom nothing is copied");
    assert!(own(1 << 20));
}

/// Whether a write to `by` waits for whoever keeps others out of the range in `node`.
fn waits(bench: &Bench, node: &Arc<Node>, by: &Arc<Node>) -> bool {
    let (node, by) = (node.clone(), by.clone());
    bench.graph.block_on(async move {
        let alone = node.exclusive(0, 512).await;
        let mut write = std::pin::pin!(by.write(0, &[1; 512], WriteFlags::empty()));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut write).await;
        drop(alone);
        let waited = early.is_err();
        match early {
            Ok(done) => done.unwrap(),
            Err(_) => write.await.unwrap(),
        }
        waited
    })
}

/// What is put between the filter and its image, as snapshots are, is watched like the image was.
#[test]
fn copy_on_read_keeps_writers_out_of_what_it_stands_on_now() {
    let bench = Bench::new();
    let [old, new] = ["old", "new"].map(|name| bench.add(name, plain(&bench.file(name, 1))));
    let filter = bench.add("cor", json!({"driver": "copy-on-read", "file": "old"}));
    assert!(waits(&bench, &old, &filter));
    let child = filter.child(Role::FILTER).unwrap();
    bench.graph.redirect(&child, &new).unwrap();
    assert!(waits(&bench, &new, &filter));
    assert!(!waits(&bench, &old, &old));
    drop((child, filter));
    bench.delete("cor");
    assert!(!waits(&bench, &new, &new));
}

#[test]
fn compress_needs_a_format_that_can() {
    let bench = Bench::new();
    let raw = json!({"driver": "compress", "file": plain(&bench.file("f", 1))});
    assert!(bench.refused(raw).starts_with("Compression is not supported for underlying format"));
    let path = bench.dir.path().join("c.qcow2");
    let create = ["create", "-q", "-f", "qcow2"];
    assert!(Command::new("qemu-img").args(create).arg(&path).arg("4M").status().unwrap().success());
    let node =
        bench.add("c", json!({"driver": "compress", "file": {"driver": "qcow2", "file": plain(&path)}}));
    let drive = bench.drive("d", &node);
    drive.write_blocking(0, vec![7; 1 << 20]).unwrap();
    drive.write_blocking(3 << 20, vec![8; 1000]).unwrap();
    assert_eq!(drive.read_blocking(0, 1 << 20).unwrap(), vec![7; 1 << 20]);
    assert_eq!(drive.read_blocking(3 << 20, 1001).unwrap()[999..], [8, 0]);
    drop(node);
    drive.delete();
    let at = bench.graph.clone();
    bench.graph.block_on(async move { at.shutdown().await });
    let out = Command::new("qemu-img").args(["check", "--output=json"]).arg(&path).output().unwrap();
    let checked: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(checked["check-errors"], 0);
    assert!(checked["compressed-clusters"].as_u64().unwrap() >= 16, "{checked}");
}
