//! What an NBD client may send: options and requests, read by the server of a small disk.

#![no_main]

use block::export::{ExportSetup, Listen, Server};
use block::{Backend, Graph, Options, Setup};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};
use tokio::io::AsyncWriteExt;

static SERVED: LazyLock<(Arc<Graph>, Arc<Server>)> = LazyLock::new(|| {
    let clock = base::clock::Clock::new(base::clock::Kind::Realtime);
    let graph = Graph::new(base::notice::Notices::new(), clock, base::fd::FdSets::new());
    let at = graph.clone();
    let server = graph.block_on(async move {
        let disk = serde_json::json!({"driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": true});
        let node = at.add(Options::json(disk)).await.expect("a disk");
        let backend = Backend::new(&at, Setup { name: "d".into(), ..Setup::default() }).expect("a back end");
        backend.insert(&node).expect("a disk without users");
        let socket = std::env::temp_dir().join(format!("fuzz-nbd-{}", std::process::id()));
        let listen = Listen::Unix(socket.display().to_string());
        let server = Server::start(&at, listen, 0, None).await.expect("a socket");
        let setup = ExportSetup {
            id: "disk".into(),
            name: "disk".into(),
            description: None,
            backend,
            writable: true,
            bitmaps: Vec::new(),
            depth: true,
            owns_backend: false,
            writethrough: false,
            iothread: None,
        };
        server.add(setup).expect("the first export");
        server
    });
    (graph, server)
});

fuzz_target!(|bytes: &[u8]| {
    let (graph, server) = &*SERVED;
    let (server, bytes) = (server.clone(), bytes.to_vec());
    graph.block_on(async move {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let _ = near.write_all(bytes.get(..1 << 19).unwrap_or(&bytes)).await;
        let _ = near.shutdown().await;
        server.attend(far).await;
    });
});
