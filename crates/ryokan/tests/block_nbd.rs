//! The life of NBD servers, exports and clients over QMP.

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;
use testkit::bench::SOON;
use testkit::images::tool;
use testkit::nbd::{Client, FLUSH, READ, WRITE};
use testkit::{Bench, Images, Vm};

/// A machine with node "disk" over disk.raw of 1 MiB, and an NBD server.
fn serving() -> (Bench, String) {
    let images = Images::new();
    images.create("disk.raw", "1M", &[]);
    images.io("disk.raw", &["write -P 1 0 1M"]);
    let mut bench = Bench::start(images, &[]);
    bench.open("disk", "disk.raw", json!({}));
    let socket = bench.images.path("nbd");
    bench.run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    (bench, socket)
}

fn uri(socket: &str) -> String {
    format!("nbd+unix:///disk?socket={socket}")
}

#[test]
fn requests_in_flight_are_done_and_answered_before_the_server_ends() {
    const SENT: u64 = 10;
    // With `-accel qtest` the clock of the limits would stand still.
    let mut vm =
        Vm::start(&["-machine", "none", "-object", "throttle-group,id=slow,x-iops-total=20"]).unwrap();
    let (image, socket) = (vm.dir().join("disk.raw"), vm.dir().join("nbd"));
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    let mut run = |command: &str, arguments: Value| {
        vm.qmp.execute(command, arguments).unwrap_or_else(|e| panic!("{command}: {e}"));
    };
    let file = json!({"driver": "file", "filename": image});
    run(
        "blockdev-add",
        json!({"driver": "throttle", "node-name": "disk", "throttle-group": "slow", "file": file}),
    );
    run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    run("nbd-server-add", json!({"device": "disk", "writable": true}));
    let mut client = Client::new(&socket, "disk").unwrap();
    // All at once, so that the server has them all when it answers the first.
    let write = |number: u64| Client::request(WRITE, number, number * 4096, 512, &[0x40 + number as u8; 512]);
    client.send(&(0..SENT).flat_map(write).collect::<Vec<_>>()).unwrap();
    let first = client.reply().unwrap();
    run("nbd-server-stop", Value::Null);
    let data = std::fs::read(&image).unwrap();
    let mut answered = vec![first];
    answered.extend(std::iter::from_fn(|| client.reply()));
    answered.sort_unstable();
    let expected: Vec<_> = (0..SENT).map(|number| (number, 0)).collect();
    assert_eq!(answered, expected);
    for number in 0..SENT as usize {
        assert!(data[number * 4096..][..512].iter().all(|byte| *byte == 0x40 + number as u8), "{number}");
    }
    assert!(!socket.exists());
}

#[test]
fn an_export_in_use_is_taken_away_only_by_force() {
    let (mut bench, socket) = serving();
    bench.run("nbd-server-add", json!({"device": "disk", "writable": true}));
    let mut client = Client::new(Path::new(&socket), "disk").unwrap();
    let why = bench.refused("nbd-server-remove", json!({"name": "disk"}));
    assert_eq!(why, "GenericError: export 'disk' still in use");
    let why = bench.refused("block-export-del", json!({"id": "disk", "mode": "safe"}));
    assert_eq!(why, "GenericError: export 'disk' still in use");
    client.send(&Client::request(FLUSH, 5, 0, 0, &[])).unwrap();
    assert_eq!(client.reply(), Some((5, 0)));
    bench.run("nbd-server-remove", json!({"name": "disk", "mode": "hard"}));
    assert_eq!(client.reply(), None);
    let gone = bench.vm.qmp.event("BLOCK_EXPORT_DELETED", SOON).unwrap();
    assert_eq!(gone["data"], json!({"id": "disk"}));
    // The name is free again, and the node too once that export is gone.
    bench.run("nbd-server-add", json!({"device": "disk"}));
    assert_eq!(tool("nbdinfo", &["--size", &uri(&socket)]).trim(), "1048576");
    // That client has left; the server may not have seen it yet.
    bench.run("nbd-server-remove", json!({"name": "disk", "mode": "hard"}));
    bench.vm.qmp.event("BLOCK_EXPORT_DELETED", SOON).unwrap();
    bench.run("blockdev-del", json!({"node-name": "disk"}));
    bench.quit();
}

#[test]
fn an_export_has_the_size_of_its_disk() {
    let (mut bench, socket) = serving();
    bench.run("nbd-server-add", json!({"device": "disk", "writable": true}));
    let mut early = Client::new(Path::new(&socket), "disk").unwrap();
    assert_eq!(early.size, 1 << 20);
    bench.run("block_resize", json!({"node-name": "disk", "size": 2 << 20}));
    assert_eq!(tool("nbdinfo", &["--size", &uri(&socket)]).trim(), "2097152");
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 1500k 64k", "-c", "read -P 7 1500k 64k", &uri(&socket)]);
    bench.run("block_resize", json!({"node-name": "disk", "size": 512 << 10}));
    assert_eq!(tool("nbdinfo", &["--size", &uri(&socket)]).trim(), "524288");
    // Who came when it was larger gets errors, and stays.
    early.send(&Client::request(READ, 1, 800 << 10, 512, &[])).unwrap();
    let (cookie, error) = early.reply().unwrap();
    assert!(cookie == 1 && error != 0);
    early.send(&Client::request(FLUSH, 2, 0, 0, &[])).unwrap();
    assert_eq!(early.reply(), Some((2, 0)));
    bench.run("nbd-server-stop", Value::Null);
    assert_eq!(bench.quit().bytes("disk.raw").len(), 512 << 10);
}

/// Runs qemu-nbd; returns when it listens.
fn peer(socket: &str, image: &str) -> Child {
    let _ = std::fs::remove_file(socket);
    let mut child = Command::new("qemu-nbd")
        .args(["-t", "-f", "raw", "-e", "4", "-k", socket, "-x", "disk", image])
        .spawn()
        .unwrap();
    for _ in 0..3000 {
        if Path::new(socket).exists() {
            return child;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill().and_then(|()| child.wait());
    panic!("qemu-nbd does not listen");
}

#[test]
fn a_client_waits_for_a_server_that_comes_back() {
    let images = Images::new();
    images.create("far.raw", "8M", &[]);
    images.io("far.raw", &["write -P 1 0 3M", "write -P 2 3M 5M"]);
    images.create("copy.raw", "8M", &[]);
    let mut bench = Bench::start(images, &[]);
    let (socket, image) = (bench.images.path("nbd"), bench.images.path("far.raw"));
    let mut server = peer(&socket, &image);
    let far = json!({"driver": "nbd", "node-name": "far", "export": "disk", "reconnect-delay": 100,
        "server": {"type": "unix", "path": socket}});
    bench.run("blockdev-add", far);
    bench.open("copy", "copy.raw", json!({}));
    bench.run(
        "blockdev-backup",
        json!({"job-id": "j", "device": "far", "target": "copy", "sync": "full", "speed": 1 << 20,
            "filter-node-name": "over-far"}),
    );
    let offset = |bench: &mut Bench| bench.job("j")["offset"].as_u64().unwrap();
    while offset(&mut bench) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(offset(&mut bench) < 8 << 20);
    bench.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
    let again = {
        let (socket, image) = (socket.clone(), image.clone());
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            peer(&socket, &image)
        })
    };
    // It waits for the server as the job does.
    bench.io("over-far", "write -P 9 0 64k");
    let mut server = again.join().unwrap();
    bench.done("j");
    bench.run("blockdev-del", json!({"node-name": "far"}));
    let images = bench.quit();
    server.kill().unwrap();
    server.wait().unwrap();
    images.io("far.raw", &["read -P 9 0 64k", "read -P 1 64k 3008k", "read -P 2 3M 5M"]);
    images.io("copy.raw", &["read -P 1 0 3M", "read -P 2 3M 5M"]);
}

/// Whether something listens at an address of this machine.
fn listens(host: &str, port: u16) -> bool {
    std::net::TcpStream::connect((host, port)).is_ok()
}

/// A free port of both kinds of address.
fn free_port() -> u16 {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    std::net::TcpListener::bind(("::1", free)).map_or_else(|_| free_port(), |_| free)
}

#[test]
fn addresses_are_of_the_kinds_that_are_asked_for() {
    for (host, families, four, six) in [
        ("127.0.0.1", json!({}), true, false),
        ("::1", json!({}), false, true),
        ("", json!({}), true, true),
        ("", json!({"ipv4": true}), true, false),
        ("", json!({"ipv6": false}), true, false),
        ("", json!({"ipv6": true}), false, true),
        ("", json!({"ipv4": false}), false, true),
        ("", json!({"ipv4": true, "ipv6": true}), true, true),
    ] {
        let (mut bench, _) = serving();
        bench.run("nbd-server-stop", Value::Null);
        let port = free_port();
        let at = |host: &str, families: &Value| {
            let mut address = json!({"host": host, "port": port.to_string()});
            families.as_object().unwrap().iter().for_each(|(key, value)| address[key] = value.clone());
            address
        };
        bench.run("nbd-server-start", json!({"addr": {"type": "inet", "data": at(host, &families)}}));
        bench.run("nbd-server-add", json!({"device": "disk"}));
        assert_eq!((listens("127.0.0.1", port), listens("::1", port)), (four, six), "{host} {families}");
        for (host, key, there) in [("127.0.0.1", "ipv4", four), ("::1", "ipv6", six)] {
            let mut client = |families: Value| {
                let mut server = at(host, &families);
                server["type"] = "inet".into();
                let node = json!({"driver": "nbd", "node-name": "far", "export": "disk", "server": server,
                    "read-only": true});
                bench.vm.qmp.execute("blockdev-add", node).map(|_| {
                    bench.io("far", "read -P 1 0 1M");
                    bench.run("blockdev-del", json!({"node-name": "far"}));
                })
            };
            let lost = format!("GenericError: Failed to connect to '{host}:{port}': Connection refused");
            for asked in [json!({}), json!({key: true})] {
                assert_eq!(client(asked), if there { Ok(()) } else { Err(lost.clone()) });
            }
            let none = format!(
                "GenericError: address resolution failed for {host}:{port}: Address family for hostname not supported"
            );
            assert_eq!(client(json!({key: false})), Err(none));
        }
        bench.quit();
    }
}

/// The server listens at a socket that was made elsewhere.
#[test]
fn a_socket_comes_over_the_monitor() {
    let (mut bench, socket) = serving();
    bench.run("nbd-server-stop", Value::Null);
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let pass = |bench: &mut Bench, name: &str, fd: std::os::fd::BorrowedFd<'_>| {
        let line = json!({"execute": "getfd", "arguments": {"fdname": name}}).to_string();
        bench.vm.qmp.send_fd(&line, fd).unwrap();
        assert_eq!(bench.vm.qmp.reply(SOON).unwrap()["return"], json!({}));
    };
    use std::os::fd::AsFd;
    pass(&mut bench, "door", listener.as_fd());
    bench.run("nbd-server-start", json!({"addr": {"type": "fd", "data": {"str": "door"}}}));
    bench.run("nbd-server-add", json!({"device": "disk"}));
    let again = bench.refused("nbd-server-start", json!({"addr": {"type": "fd", "data": {"str": "door"}}}));
    assert!(again.starts_with("GenericError: "), "{again}");
    assert_eq!(tool("nbdinfo", &["--size", &uri(&socket)]).trim(), "1048576");
    bench.quit();
}
