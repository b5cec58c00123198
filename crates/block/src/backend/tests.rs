use super::*;
use crate::buffers;
use crate::graph::tests::graph;
use crate::options::Options;
use serde_json::json;
use std::sync::mpsc::channel;

fn drive(graph: &Arc<Graph>, options: serde_json::Value) -> Backend {
    let at = graph.clone();
    let node = graph.block_on(async move { at.add(Options::json(options)).await }).unwrap();
    let drive = Backend::new(graph, Setup { name: "d".into(), ..Setup::default() }).unwrap();
    drive.insert(&node).unwrap();
    drive
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or_default().to_string()
}

/// The name of the thread that did a long read which came alone.
fn lone_read(graph: &Graph, drive: &Backend) -> String {
    let disk = drive.clone();
    let request = async move {
        disk.perform(Request::Read { offset: 0, len: LONG as usize }).await.unwrap();
        thread_name()
    };
    let read = drive.spawn(false, LONG, request);
    graph.block_on(read).unwrap()
}

#[test]
fn long_reads_that_come_together_are_shared_evenly_and_leave_their_thread_free() {
    let graph = graph();
    let drive = drive(&graph, json!({"driver": "null-co", "node-name": "n", "size": 64 << 20}));
    assert_eq!(lone_read(&graph, &drive), "block");
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get()).min(4);
    let (disk, reads) = (drive.clone(), 4 * processors);
    // None ends before all have come.
    let held = graph.block_on(async move { disk.quiesce().await });
    let (tx, rx) = channel();
    for at in 0..=reads as u64 {
        let tx = tx.clone();
        let done =
            move |result: io::Result<Lent>| tx.send((at, thread_name(), result.unwrap().len())).unwrap();
        drive.submit(Request::Read { offset: at << 20, len: 1 << 20 }, Box::new(done));
    }
    drop(held);
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..=reads {
        let (at, name, len) = rx.recv().unwrap();
        assert_eq!(len, 1 << 20);
        assert_eq!(name == "block", at == 0, "only the first stays: {at} {name}");
        *counts.entry(name).or_insert(0) += 1;
    }
    counts.remove("block");
    assert!(counts.len() == processors && counts.values().all(|count| *count == 4), "{counts:?}");
    // The last ones may still be counted for a moment; then some more go elsewhere, not all.
    let alone = (0..1000).position(|_| lone_read(&graph, &drive) == "block");
    assert!(alone.is_some_and(|at| at >= COMPANY), "{alone:?}");
}

#[test]
fn nothing_of_an_older_request_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::File::create(&path).unwrap().set_len(2 << 20).unwrap();
    let graph = graph();
    let file = json!({"driver": "file", "filename": path, "node-name": "f"});
    let file = drive(&graph, file);
    // The node does not know that its file was cut.
    std::fs::write(&path, vec![1; 300_000]).unwrap();
    let len = 1 << 20;
    let after_another = |drive: &Backend, offset| {
        let disk = drive.clone();
        graph.block_on(async move {
            let mut other = buffers::take(len);
            other.fill(0xaa);
            let place = other.as_ptr() as usize;
            drop(other);
            let data = disk.perform(Request::Read { offset, len }).await.unwrap();
            assert_eq!(data.as_ptr() as usize, place, "the same buffer");
            data
        })
    };
    let data = after_another(&file, 0);
    assert!(data[..300_000].iter().all(|byte| *byte == 1) && data[300_000..].iter().all(|byte| *byte == 0));
    assert!(after_another(&file, len as u64).iter().all(|byte| *byte == 0));
    file.delete();
    let null = drive(&graph, json!({"driver": "null-co", "node-name": "n", "size": 2 << 20}));
    assert!(after_another(&null, 0).iter().all(|byte| *byte == 0));
}
