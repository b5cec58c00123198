use super::super::tests::{close, content, open};
use crate::Options;
use crate::formats::qcow2::tests::tool;
use crate::graph::{Graph, tests::graph};
use crate::types::*;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

fn make(graph: &Arc<Graph>, path: &Path, options: serde_json::Value) {
    let (at, path) = (graph.clone(), path.to_str().unwrap().to_string());
    graph.block_on(async move { at.create_image(&path, "vmdk", Options::json(options)).await }).unwrap();
}

#[test]
fn split_images_go_over_the_edge_of_extents() {
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("big.vmdk");
        let graph = graph();
        make(&graph, &path, json!({"size": "4608M", "subformat": subformat, "adapter_type": "lsilogic"}));
        let pin = open(&graph, &path, "vmdk", false);
        assert_eq!(pin.size(), 4608 << 20);
        let node = pin.clone();
        graph.block_on(async move {
            for (at, byte) in [((2 << 30) - 70_000, 3), ((4 << 30) - 512, 4), ((4608 << 20) - 4096, 5)] {
                let data = vec![byte; if byte == 3 { 140_000 } else { 4096 }];
                node.write(at, &data, WriteFlags::empty()).await.unwrap();
            }
        });
        close(&graph, pin);
        let edge = (2u64 << 30) - 70_000 / 512 * 512;
        let reads = [
            format!("read -P 3 {edge} 139264"),
            format!("read -P 4 {} 4096", (4u64 << 30) - 512),
            format!("read -P 5 {} 4096", (4608u64 << 20) - 4096),
            format!("read -P 0 {} 4096", 3u64 << 30),
        ];
        let name = path.to_str().unwrap();
        for read in &reads {
            let text = tool("qemu-io", &["-f", "vmdk", "-r", "-c", read, name]);
            assert!(!text.contains("verification failed"), "{subformat} {read}: {text}");
        }
        assert!(tool("qemu-img", &["check", "-f", "vmdk", name]).contains("No errors"));
    }
}

#[test]
fn compressed_images_are_read_both_ways() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (raw, theirs, ours) =
        (dir.path().join("a.raw"), dir.path().join("a.vmdk"), dir.path().join("b.vmdk"));
    let mut data: Vec<u8> = (0..3_000_000u32).map(|at| (at / 97 ^ at >> 9) as u8).collect();
    data.resize(3 << 20, 0);
    data[1 << 20..2 << 20].fill(0);
    std::fs::write(&raw, &data).unwrap();
    let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    tool("qemu-img", &[&args[..], &[raw.to_str().unwrap(), theirs.to_str().unwrap()]].concat());
    let graph = graph();
    assert!(content(&graph, &theirs, "vmdk") == data);
    make(&graph, &ours, json!({"size": data.len(), "subformat": "streamOptimized"}));
    let pin = open(&graph, &ours, "vmdk", false);
    let (node, copy) = (pin.clone(), data.clone());
    graph.block_on(async move {
        for (at, piece) in copy.chunks(192 << 10).enumerate() {
            node.write(at as u64 * (192 << 10), piece, WriteFlags::COMPRESSED).await.unwrap();
        }
        // What is stored cannot be stored again.
        let again = node.write(0, &[1; 512], WriteFlags::empty()).await;
        assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EIO));
    });
    close(&graph, pin);
    tool("qemu-img", &["compare", "-f", "vmdk", "-F", "raw", ours.to_str().unwrap(), raw.to_str().unwrap()]);
    assert!(content(&graph, &ours, "vmdk") == data);
}

#[test]
fn a_changed_parent_is_noticed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (base, top) = (dir.path().join("base.vmdk"), dir.path().join("top.vmdk"));
    let graph = graph();
    make(&graph, &base, json!({"size": "1M"}));
    make(&graph, &top, json!({"size": "1M", "backing_file": "base.vmdk"}));
    close(&graph, open(&graph, &top, "vmdk", true));
    let pin = open(&graph, &base, "vmdk", false);
    let node = pin.clone();
    graph.block_on(async move { node.write(0, &[1; 512], WriteFlags::empty()).await }).unwrap();
    close(&graph, pin);
    // It can be opened, but nothing of that parent can be had by it.
    let pin = open(&graph, &top, "vmdk", false);
    let node = pin.clone();
    graph.block_on(async move {
        for write in [false, true] {
            let result = match write {
                true => node.write(512, &[2; 512], WriteFlags::empty()).await,
                false => node.read(0, &mut [0; 512]).await,
            };
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL), "{write}");
        }
        node.write(0, &[3; 65536], WriteFlags::empty()).await.unwrap();
        let mut back = [0; 65536];
        node.read(0, &mut back).await.unwrap();
        assert!(back.iter().all(|byte| *byte == 3));
    });
    close(&graph, pin);
}
