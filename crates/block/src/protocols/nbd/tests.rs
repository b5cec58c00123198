mod ending;
mod hostile;
mod tls;

use crate::export::{ExportSetup, Listen, Server, Tls};
use crate::formats::qcow2::tests::tool;
use crate::graph::{Graph, tests::graph};
use crate::options::Options;
use crate::{Backend, Setup};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use testkit::Dice;

pub(super) fn serve(
    graph: &Arc<Graph>,
    socket: &str,
    image: &str,
    writable: bool,
    tls: Option<Tls>,
) -> Arc<Server> {
    let (at, socket, image) = (graph.clone(), socket.to_string(), image.to_string());
    graph.block_on(async move {
        let options =
            json!({"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": image}});
        let node = at.add(Options::json(options)).await.unwrap();
        let backend = Backend::new(&at, Setup { name: "d".into(), ..Setup::default() }).unwrap();
        backend.insert(&node).unwrap();
        let bitmap = Arc::new(crate::DirtyBitmap::new(Some("b".into()), 65536, node.size()));
        bitmap.set(65536, 1);
        let server = Server::start(&at, Listen::Unix(socket), 0, tls).await.unwrap();
        let setup = ExportSetup {
            id: "e".into(),
            name: "disk".into(),
            description: Some("a disk".into()),
            backend,
            writable,
            bitmaps: vec![bitmap],
            depth: false,
            owns_backend: false,
            writethrough: false,
            iothread: Default::default(),
        };
        server.add(setup).unwrap();
        server
    })
}

#[test]
fn exports_are_read_by_the_usual_tools_and_by_ourselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (image, socket, copy) = (path("disk.raw"), path("sock"), path("copy.raw"));
    let mut dice = Dice::new(1);
    let mut data: Vec<u8> = (0..3 << 20).map(|_| dice.roll() as u8).collect();
    data[1 << 20..2 << 20].fill(0);
    std::fs::write(&image, &data).unwrap();
    let owner = graph();
    let server = serve(&owner, &socket, &image, true, None);
    let uri = format!("nbd+unix:///disk?socket={socket}");
    let info = tool("nbdinfo", &[&uri]);
    assert!(info.contains("export-size: 3145728") && info.contains("a disk"), "{info}");
    assert!(info.contains("qemu:dirty-bitmap:b"), "{info}");
    let map = tool("nbdinfo", &["--map=qemu:dirty-bitmap:b", &uri]);
    assert!(map.contains("65536       65536    1"), "{map}");
    tool("nbdcopy", &[&uri, &copy]);
    assert!(std::fs::read(&copy).unwrap() == data);
    tool(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 7 100k 50k", "-c", "write -z 200k 64k", "-c", "discard 0 4k", &uri],
    );
    data[100 << 10..150 << 10].fill(7);
    data[200 << 10..264 << 10].fill(0);
    let client = graph();
    let at = client.clone();
    let name = uri.clone();
    let mut seen = client.block_on(async move {
        let options = json!({"driver": "raw", "node-name": "n", "file": {"driver": "nbd",
            "filename": name}});
        let node = at.add(Options::json(options)).await.unwrap();
        assert_eq!(node.size(), 3 << 20);
        node.write(512, &[9; 1000], crate::WriteFlags::FUA).await.unwrap();
        let mut all = vec![0; 3 << 20];
        node.read(0, &mut all).await.unwrap();
        assert_eq!(all[512..1512], [9; 1000]);
        let status = node.block_status(1 << 20, 1 << 20).await.unwrap();
        assert!(status.len > 0);
        let marked = json!({"driver": "nbd", "node-name": "m", "filename": uri, "read-only": true,
            "x-dirty-bitmap": "qemu:dirty-bitmap:b"});
        let marks = at.add(Options::json(marked)).await.unwrap();
        let status = marks.block_status(65536, 4096).await.unwrap();
        assert!(!status.flags.contains(crate::StatusFlags::ALLOCATED), "{status:?}");
        let status = marks.block_status(2 << 20, 4096).await.unwrap();
        assert!(status.flags.contains(crate::StatusFlags::ALLOCATED), "{status:?}");
        at.delete("m").await.unwrap();
        let file = node.child(crate::types::Role::PRIMARY).unwrap().node();
        let why = file.truncate(4 << 20, crate::Truncate::default()).await.unwrap_err();
        assert_eq!(why.text, "Cannot grow NBD nodes");
        file.truncate(2 << 20, crate::Truncate::default()).await.unwrap();
        assert_eq!(file.size(), 3 << 20);
        at.delete("n").await.unwrap();
        all
    });
    seen[..4096].copy_from_slice(&data[..4096]);
    assert!(seen == data);
    owner.block_on(async move { server.stop().await });
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_err());
}

#[test]
fn a_silent_server_is_waited_for_as_long_as_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock").to_str().unwrap().to_string();
    // The system takes connections, and nobody speaks.
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = graph();
    let at = client.clone();
    let begun = std::time::Instant::now();
    let options = json!({"driver": "nbd", "node-name": "n", "open-timeout": 1,
        "server": {"type": "unix", "path": path}});
    let opened = client.block_on(async move { at.add(Options::json(options)).await.map(drop) });
    assert_eq!(opened.unwrap_err().text, "The NBD server does not answer");
    let took = begun.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[test]
fn a_lost_server_is_an_error_or_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (image, socket) = (path("disk.raw"), path("sock"));
    std::fs::write(&image, vec![5u8; 1 << 20]).unwrap();
    let owner = graph();
    let server = serve(&owner, &socket, &image, false, None);
    let client = graph();
    let at = client.clone();
    let place = socket.clone();
    let (node, patient) = client.block_on(async move {
        let options = |name: &str, delay: u64| {
            json!({"driver": "nbd", "node-name": name, "export": "disk", "read-only": true, "reconnect-delay": delay,
                "server": {"type": "unix", "path": place}})
        };
        let node = at.add(Options::json(options("a", 0))).await.unwrap();
        (node, at.add(Options::json(options("b", 20))).await.unwrap())
    });
    let stopping = server.clone();
    owner.block_on(async move { stopping.stop().await });
    let at = owner.clone();
    let failed = client.block_on(async move { node.read(0, &mut [0; 512]).await });
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
    let again = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let graph = at.clone();
        at.block_on(async move {
            let server = Server::start(&graph, Listen::Unix(socket), 0, None).await.unwrap();
            let backend = graph.backend("d").unwrap();
            let setup = ExportSetup {
                id: "e".into(),
                name: "disk".into(),
                description: None,
                backend,
                writable: false,
                bitmaps: Vec::new(),
                depth: false,
                owns_backend: false,
                writethrough: false,
                iothread: Default::default(),
            };
            server.add(setup).unwrap();
        });
    });
    let data = client.block_on(async move {
        let mut data = [0; 512];
        patient.read(0, &mut data).await.map(|()| data)
    });
    assert_eq!(data.unwrap(), [5; 512]);
    again.join().unwrap();
}
