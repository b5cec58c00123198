use super::*;
use crate::backend::{Request, Setup};
use crate::options::Options;
use crate::types::*;
use base::clock::Kind;
use serde_json::json;
use std::process::Command;

pub(crate) fn graph() -> Arc<Graph> {
    Graph::new(Notices::new(), Clock::new(Kind::Realtime), base::fd::FdSets::new())
}

fn add(graph: &Arc<Graph>, options: serde_json::Value) -> Result<Arc<Node>> {
    let at = graph.clone();
    graph.block_on(async move { at.add(Options::json(options)).await })
}

fn drive(graph: &Arc<Graph>, name: &str, node: &Arc<Node>) -> Backend {
    let backend = Backend::new(graph, Setup { name: name.into(), ..Setup::default() }).unwrap();
    backend.insert(node).unwrap();
    backend
}

#[test]
fn raw_over_a_file_reads_and_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    let graph = graph();
    let options = json!({"node-name": "n", "driver": "raw", "file": {"driver": "file", "filename": path}});
    let node = add(&graph, options).unwrap();
    let backend = drive(&graph, "d0", &node);
    assert_eq!(backend.size(), 1 << 20);
    assert_eq!(backend.read_blocking(5, 4096).unwrap(), vec![7u8; 4096]);
    backend.write_blocking(513, vec![9; 70000]).unwrap();
    backend.perform_blocking(Request::WriteZeroes { offset: 4096, len: 8192, unmap: true }).unwrap();
    backend.flush_blocking().unwrap();
    let content = std::fs::read(&path).unwrap();
    assert_eq!(content[512], 7);
    assert!(content[513..4096].iter().all(|byte| *byte == 9));
    assert!(content[4096..12288].iter().all(|byte| *byte == 0));
    assert_eq!(content.len(), 1 << 20);
    assert_eq!(backend.read_blocking(1 << 20, 1).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(graph.lookup(Some("d0"), None).unwrap().name(), "n");
    let at = graph.clone();
    graph.block_on(async move { at.shutdown().await });
    assert!(graph.nodes().is_empty());
}

#[test]
fn an_image_in_use_is_refused_by_qemu_img_and_the_reverse() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    std::fs::write(&path, vec![0u8; 1 << 20]).unwrap();
    let first = graph();
    let options = json!({"node-name": "n", "driver": "raw", "file": {"driver": "file", "filename": path}});
    let node = add(&first, options.clone()).unwrap();
    let backend = drive(&first, "d0", &node);
    struct Front;
    impl crate::FrontEnd for Front {
        fn resized(&self) {}
        fn qdev_id(&self) -> String {
            "x".into()
        }
    }
    backend.attach(Arc::new(Front)).unwrap();
    let write = |path: &std::path::Path| {
        let args = ["-f", "raw", "-c", "write 0 512"];
        Command::new("qemu-io").args(args).arg(path).output().expect("qemu-io is installed")
    };
    let refused = write(&path);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Failed to get \"write\" lock"));
    let second = graph();
    let node = add(&second, options.clone()).unwrap();
    let other = Backend::new(&second, Setup::default()).unwrap();
    let why = other.insert(&node).unwrap_err();
    assert_eq!(why.text, "Failed to get \"write\" lock");
    assert!(why.hint.unwrap().starts_with("Is another process using the image ["));
    backend.detach();
    backend.delete();
    assert!(other.insert(&node).is_ok());
    drop(first);
    let at = second.clone();
    second.block_on(async move { at.shutdown().await });
    assert!(write(&path).status.success());
}

#[test]
fn a_node_is_no_larger_than_its_size_can_be_rounded() {
    let graph = graph();
    let null = |size: u64| json!({"driver": "null-co", "node-name": "n", "size": size});
    for size in [u64::MAX, i64::MAX as u64, LARGEST + 1] {
        let Err(why) = add(&graph, null(size)) else { panic!("{size} is refused") };
        assert_eq!(why.text, "Could not refresh total sector count: File too large");
        assert!(graph.nodes().is_empty());
    }
    let node = add(&graph, null(LARGEST)).unwrap();
    assert_eq!(node.size(), LARGEST);
}

#[test]
fn names_and_options_are_checked() {
    let graph = graph();
    let null = |name: &str| json!({"node-name": name, "driver": "null-co"});
    add(&graph, null("a")).unwrap();
    assert_eq!(add(&graph, null("a")).unwrap_err().text, "Duplicate nodes with node-name='a'");
    let nested = json!({"node-name": "b", "driver": "raw", "file": {"driver": "null-co", "node-name": "b"}});
    assert_eq!(add(&graph, nested).unwrap_err().text, "Duplicate nodes with node-name='b'");
    assert_eq!(add(&graph, null("1a")).unwrap_err().text, "Invalid node-name: '1a'");
    let unknown = json!({"node-name": "b", "driver": "null-co", "foo": 1});
    assert_eq!(
        add(&graph, unknown).unwrap_err().text,
        "Block protocol 'null-co' doesn't support the option 'foo'"
    );
    let unknown = json!({"node-name": "b", "driver": "raw", "foo": 1, "file": {"driver": "null-co"}});
    assert_eq!(
        add(&graph, unknown).unwrap_err().text,
        "Block format 'raw' does not support the option 'foo'"
    );
    assert_eq!(graph.nodes().len(), 1, "nothing is left of failed openings");
    let unknown = json!({"node-name": "b", "driver": "what"});
    assert_eq!(add(&graph, unknown).unwrap_err().text, "Unknown driver 'what'");
    let missing = json!({"node-name": "b", "driver": "file", "filename": "/nonexistent/x"});
    assert_eq!(
        add(&graph, missing).unwrap_err().text,
        "Could not open '/nonexistent/x': No such file or directory"
    );
    let reference = json!({"node-name": "b", "driver": "raw", "file": "a"});
    let node = add(&graph, reference).unwrap();
    assert_eq!(node.child(Role::PRIMARY).unwrap().node().name(), "a");
    let at = graph.clone();
    let why = graph.block_on(async move { at.delete("a").await }).unwrap_err();
    assert_eq!(why.text, "Block device a is in use");
    let at = graph.clone();
    graph.block_on(async move {
        at.delete("b").await.unwrap();
        at.delete("a").await.unwrap();
    });
    assert!(graph.nodes().is_empty());
}

#[test]
fn conflicting_users_are_refused() {
    let graph = graph();
    let node = add(&graph, json!({"node-name": "a", "driver": "null-co"})).unwrap();
    let first = drive(&graph, "one", &node);
    let child = Child::new("root", Role::FILTER, Parent::Job { kind: "mirror", id: "j".into() }, &node);
    // Nobody writes by a drive that no device has until somebody asks to.
    graph.attach(&child, Perm::CONSISTENT_READ, Perm::CONSISTENT_READ).unwrap();
    graph.detach(&child);
    first.lend().unwrap();
    let why = graph.attach(&child, Perm::CONSISTENT_READ, Perm::CONSISTENT_READ).unwrap_err();
    assert_eq!(
        why.text,
        "Permission conflict on node 'a': permissions 'write' are both required by block device 'one' (uses node \
         'a' as 'root' child) and unshared by mirror job 'j' (uses node 'a' as 'root' child)."
    );
    graph.attach(&child, Perm::CONSISTENT_READ, Perm::all()).unwrap();
    assert!(first.read_blocking(0, 512).is_ok());
}

#[test]
fn a_guessed_image_is_probed_and_drained_graphs_wait() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guess.img");
    std::fs::write(&path, vec![1u8; 65536]).unwrap();
    let graph = graph();
    let node = add(&graph, json!({"node-name": "g", "filename": path})).unwrap();
    assert_eq!(node.driver().name, "raw");
    assert_eq!(node.filename(), path.to_str().unwrap());
    let backend = drive(&graph, "g0", &node);
    let (at, held_node) = (graph.clone(), node.clone());
    let held = graph.block_on(async move { at.drain(&held_node).await });
    let (tx, rx) = std::sync::mpsc::channel();
    backend.submit(Request::Read { offset: 0, len: 512 }, Box::new(move |data| tx.send(data).unwrap()));
    assert!(rx.recv_timeout(std::time::Duration::from_millis(50)).is_err());
    drop(held);
    assert_eq!(rx.recv().unwrap().unwrap(), vec![1u8; 512]);
}

#[test]
fn nodes_are_given_to_io_threads() {
    let graph = graph();
    let options = json!({"node-name": "n", "driver": "raw", "file": {"driver": "null-co", "node-name": "f"}});
    let node = add(&graph, options).unwrap();
    let thread = IoThread::start("t");
    let here = graph.main_thread().clone();
    graph.set_thread(&node, Some(&thread), false).unwrap();
    assert!(graph.find("f").unwrap().thread().is_some_and(|one| one.is(&thread)));
    let backend = drive(&graph, "d", &node);
    assert!(backend.thread().is(&thread));
    let why = graph.set_thread(&node, None, false).unwrap_err();
    assert!(why.text.contains("is associated with a BlockBackend"), "{}", why.text);
    assert!(backend.thread().is(&thread) && node.thread().is_some());
    graph.set_thread(&node, None, true).unwrap();
    assert!(backend.thread().is(&here) && node.thread().is_none());
    assert!(drive(&graph, "e", &node).thread().is(&here));
}

/// Nothing comes to stand on itself, by whatever way.
#[test]
fn cycles_are_refused_or_left_out() {
    let graph = graph();
    for name in ["a", "b", "c"] {
        add(&graph, json!({"node-name": name, "driver": "null-co", "size": 1 << 20})).unwrap();
    }
    let options = json!({"node-name": "q", "driver": "quorum", "vote-threshold": 1, "children": ["a", "b"]});
    let quorum = add(&graph, options).unwrap();
    let (at, itself) = (graph.clone(), quorum.clone());
    let why = graph.block_on(async move { at.add_child(&itself, &itself).await }).unwrap_err().text;
    assert!(why.contains("would create a cycle"), "{why}");
    let edges = graph.find("a").unwrap().parents();
    let why = graph.redirect_all(&edges, &quorum).unwrap_err().text;
    assert!(why.contains("would create a cycle"), "{why}");
    // An overlay whose file stands on the node itself keeps its file.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2").to_str().unwrap().to_string();
    let (at, file) = (graph.clone(), path.clone());
    let options = Options::json(json!({"size": 1 << 20}));
    graph.block_on(async move { at.create_image(&file, "qcow2", options).await }).unwrap();
    add(&graph, json!({"node-name": "f", "driver": "file", "filename": path})).unwrap();
    let options = json!({"node-name": "o", "driver": "qcow2", "file": "f", "backing": null});
    let overlay = add(&graph, options).unwrap();
    let action = crate::transaction::Action::Snapshot { node: "f".into(), overlay: "o".into() };
    let at = graph.clone();
    let _ = graph.block_on(async move { at.transaction(vec![action]).await });
    assert_eq!(overlay.child(Role::PRIMARY).unwrap().node().name(), "f");
}

fn qcow2(path: &std::path::Path, more: &[&str]) {
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2"]).args(more).arg(path).arg("1M");
    assert!(make.status().expect("qemu-img is installed").success());
}

/// Every edge: its user, its name and where it leads.
fn edges(graph: &Graph) -> Vec<(String, String, String)> {
    let mut edges = Vec::new();
    for node in graph.nodes() {
        let links = node.children();
        edges.extend(
            links.iter().map(|link| (node.name().into(), link.name().into(), link.node().name().into())),
        );
    }
    edges.sort();
    edges
}

#[test]
fn an_overlay_that_is_taken_back_keeps_its_own_users() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    qcow2(&base, &[]);
    qcow2(&top, &["-F", "qcow2", "-b", base.to_str().unwrap()]);
    let graph = graph();
    let below = json!({"node-name": "b", "driver": "qcow2", "file": {"driver": "file", "filename": base}});
    let file = json!({"driver": "file", "filename": top});
    add(&graph, json!({"node-name": "t", "driver": "qcow2", "file": file, "backing": below})).unwrap();
    add(&graph, json!({"node-name": "n", "driver": "null-co", "size": 1 << 20})).unwrap();
    let before = edges(&graph);
    let actions = vec![
        crate::transaction::Action::Snapshot { node: "n".into(), overlay: "b".into() },
        crate::transaction::Action::Abort,
    ];
    let at = graph.clone();
    graph.block_on(async move { at.transaction(actions).await }).unwrap_err();
    assert_eq!(edges(&graph), before);
}

#[test]
fn a_file_that_a_refused_reopen_made_writable_is_read_only_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    qcow2(&path, &[]);
    let graph = graph();
    let file = json!({"node-name": "f", "driver": "file", "filename": path});
    add(&graph, json!({"node-name": "q", "driver": "qcow2", "file": file, "read-only": true})).unwrap();
    add(&graph, json!({"node-name": "n", "driver": "null-co", "size": 1 << 20})).unwrap();
    add(&graph, json!({"node-name": "r", "driver": "raw", "file": "n"})).unwrap();
    let options = json!({"node-name": "r", "driver": "raw", "file": "f", "offset": 64 << 20});
    let at = graph.clone();
    let why = graph.block_on(async move { at.reopen(vec![Options::json(options)]).await }).unwrap_err();
    assert!(why.text.starts_with("Offset (67108864) cannot be greater"), "{}", why.text);
    assert!(graph.find("f").unwrap().is_read_only());
}
