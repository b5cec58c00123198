use crate::backend::{Backend, Request, Setup};
use crate::graph::tests::graph;
use crate::options::Options;
use crate::types::Perm;
use serde_json::json;
use std::process::Command;

fn disk(graph: &std::sync::Arc<crate::Graph>, path: &std::path::Path, aio: &str, direct: bool) -> Backend {
    let options = json!({
        "driver": "file", "node-name": "f", "filename": path, "aio": aio, "cache": {"direct": direct},
    });
    let at = graph.clone();
    let node = graph.block_on(async move { at.add(Options::json(options)).await }).unwrap();
    let drive = Backend::new(graph, Setup { name: "d".into(), ..Setup::default() }).unwrap();
    drive.insert(&node).unwrap();
    drive
}

/// Every way of doing I/O reads and writes any range, many at once, and qemu-io agrees.
#[test]
fn all_engines_read_and_write_any_range() {
    // Not on tmpfs: there O_DIRECT would show nothing.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    for (aio, direct) in
        [("threads", false), ("threads", true), ("io_uring", false), ("io_uring", true), ("native", true)]
    {
        let path = dir.path().join(format!("{aio}-{direct}"));
        std::fs::write(&path, vec![1u8; 4 << 20]).unwrap();
        let graph = graph();
        let drive = disk(&graph, &path, aio, direct);
        drive.write_blocking(0, vec![2; 65536]).unwrap();
        drive.write_blocking(70_001, vec![3; 3001]).unwrap();
        drive.write_blocking(1 << 20, vec![4; 3 << 20]).unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        for at in 0..200u64 {
            let tx = tx.clone();
            let done = move |result: std::io::Result<crate::Lent>| tx.send(result.map(drop)).unwrap();
            let (offset, data) = (200_000 + at * 1000, vec![at as u8; 1000].into());
            drive.submit(Request::Write { offset, data, fua: false }, Box::new(done));
        }
        (0..200).for_each(|_| rx.recv().unwrap().unwrap());
        drive.flush_blocking().unwrap();
        assert_eq!(drive.read_blocking(70_000, 3003).unwrap()[..2], [1, 3]);
        for at in 0..200u64 {
            assert_eq!(drive.read_blocking(200_000 + at * 1000, 1000).unwrap(), vec![at as u8; 1000]);
        }
        drive.delete();
        let mut judge = Command::new("qemu-io");
        judge.args(["-f", "raw", "-r"]).arg(&path);
        for command in
            ["read -P 2 0 65536", "read -P 3 70001 3001", "read -P 4 1M 3M", "read -P 7 207000 1000"]
        {
            judge.args(["-c", command]);
        }
        let out = judge.output().expect("qemu-io is installed");
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && !text.contains("Pattern verification failed"), "{aio}: {text}");
    }
}

/// An image may name anything as its backing file; nobody waits for the writer of a pipe.
#[test]
fn a_pipe_is_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let graph = graph();
    let options = json!({"driver": "file", "node-name": "f", "read-only": true, "filename": path});
    let at = graph.clone();
    let why = graph.block_on(async move { at.add(Options::json(options)).await }).err().unwrap();
    assert!(why.text.ends_with("to be a regular file"), "{}", why.text);
}

/// Direct I/O that is switched on later keeps the alignment then needed.
#[test]
fn reopening_with_direct_io_aligns_from_then_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, vec![1u8; 1 << 20]).unwrap();
    let graph = graph();
    let drive = disk(&graph, &path, "threads", false);
    assert_eq!(drive.node().unwrap().layer().limits().request_alignment, 1);
    let reopen = |aio: &str| {
        let cache = json!({"direct": true});
        let options =
            json!({"driver": "file", "node-name": "f", "filename": path, "aio": aio, "cache": cache});
        let at = graph.clone();
        graph.block_on(async move { at.reopen(vec![Options::json(options)]).await })
    };
    assert_eq!(reopen("io_uring").unwrap_err().text, "Cannot change the option 'aio'");
    reopen("threads").unwrap();
    assert!(drive.node().unwrap().layer().limits().request_alignment >= 512);
    drive.write_blocking(1001, vec![5; 10]).unwrap();
    assert_eq!(drive.read_blocking(1000, 12).unwrap(), [1, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 1]);
}

/// Long transfers are whole, also where the file ends within.
#[test]
fn long_transfers_are_whole() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, [0; 0]).unwrap();
    let graph = graph();
    let drive = disk(&graph, &path, "threads", false);
    let node = drive.node().unwrap();
    let data: Vec<u8> = (0..5_000_001u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    graph.block_on(async move {
        for (at, piece) in data.chunks(1 << 20).enumerate() {
            let offset = (at << 20) as u64 + 3;
            node.write(offset, piece, crate::WriteFlags::empty()).await.unwrap();
        }
        let mut back = vec![9; 6 << 20];
        node.read(3, &mut back).await.unwrap();
        assert!(back[..data.len()] == data[..] && back[data.len()..].iter().all(|byte| *byte == 0));
        // The node does not know that its file was cut.
        std::fs::File::options().write(true).open(path).unwrap().set_len(1_000_000).unwrap();
        node.read(3, &mut back).await.unwrap();
        assert!(back[..999_997] == data[..999_997] && back[999_997..].iter().all(|byte| *byte == 0));
    });
    let (tx, rx) = std::sync::mpsc::channel();
    for at in 0..9u64 {
        let tx = tx.clone();
        let request = Request::Write { offset: at << 19, data: vec![at as u8; 1 << 19].into(), fua: false };
        drive.submit(request, Box::new(move |result| tx.send(result.map(drop)).unwrap()));
    }
    (0..9).for_each(|_| rx.recv().unwrap().unwrap());
    for at in 0..9u64 {
        assert!(drive.read_blocking(at << 19, 1 << 19).unwrap() == vec![at as u8; 1 << 19], "piece {at}");
    }
}

/// Requests in flight may keep the old file open after a reopen.
#[test]
fn moved_locks_are_not_in_the_way() {
    let image = tempfile::NamedTempFile::new().unwrap();
    let open = || std::fs::File::options().read(true).write(true).open(image.path()).unwrap();
    let (old, new) = (open(), open());
    let (old, new) = (rustix::fd::AsFd::as_fd(&old), rustix::fd::AsFd::as_fd(&new));
    let (all, mut locks) = (Perm::all(), super::locks::Locks::new(true));
    locks.change(old, Perm::WRITE, all - Perm::WRITE, "image").unwrap();
    locks.move_to(old, new, "image").unwrap();
    locks.change(new, Perm::CONSISTENT_READ, all, "image").unwrap();
    locks.change(new, Perm::WRITE, all - Perm::WRITE, "image").unwrap();
}
