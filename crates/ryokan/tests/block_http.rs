//! Disks of web and file servers, over QMP and the command line.

use serde_json::{Value, json};
use testkit::certificates::Authority;
use testkit::ftp::Ftp;
use testkit::images::tool;
use testkit::tftp::Tftp;
use testkit::web::{Shield, Web};
use testkit::{Bench, Images};

fn model() -> Images {
    let images = Images::new();
    images.create("disk.qcow2", "3M", &[]);
    images.io("disk.qcow2", &["write -P 1 0 1M", "write -P 2 1500k 700k"]);
    images
}

fn serve(bench: &mut Bench, nodes: &[&str]) -> String {
    let socket = bench.images.path("nbd");
    bench.run("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    for node in nodes {
        bench.run("nbd-server-add", json!({"device": node}));
    }
    socket
}

/// qemu-img finds no difference between an export and an image.
fn same(bench: &Bench, socket: &str, export: &str, image: &str) {
    let uri = format!("nbd+unix:///{export}?socket={socket}");
    let format = image.rsplit('.').next().unwrap();
    tool("qemu-img", &["compare", "-U", "-f", "raw", "-F", format, &uri, &bench.images.path(image)]);
}

#[test]
fn images_on_servers_are_drives_nodes_and_backing_files() {
    let images = model();
    let file = images.bytes("disk.qcow2");
    let (web, ftp) = (Web::new(file.clone()).unwrap(), Ftp::new(file).unwrap());
    let url = web.url("good");
    let top = images.path("top.qcow2");
    tool("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &url, &top, "3M"]);
    let drive = format!("if=none,id=d,file={url},format=qcow2,readonly=on");
    let mut bench = Bench::start(images, &["-drive", &drive]);
    let medium = bench.medium("d");
    assert_eq!(
        (&medium["file"], &medium["ro"], &medium["drv"]),
        (&json!(url), &json!(true), &json!("qcow2"))
    );
    assert_eq!(medium["image"]["virtual-size"], 3 << 20);
    bench.io("d", "read -P 1 0 1M");
    let node = |name: &str, file: Value| json!({"driver": "qcow2", "node-name": name, "read-only": true, "file": file});
    bench.run("blockdev-add", node("ftp", json!({"driver": "ftp", "url": ftp.url("good")})));
    let named = json!({"driver": "qcow2", "file": {"driver": "http", "url": url, "readahead": 0}});
    let named = format!("json:{named}").replace(',', ",,");
    bench.run(
        "blockdev-add",
        node("json", json!({"driver": "raw", "file": {"driver": "http", "url": web.url("cut")}})),
    );
    let hmp = format!("drive_add 0 if=none,id=e,readonly=on,file={named}");
    assert_eq!(bench.vm.qmp.hmp(&hmp).unwrap(), "OK\r\n");
    bench.io("e", "read -P 2 1500k 700k");
    bench.open("top", "top.qcow2", json!({}));
    assert_eq!(bench.node("top")["backing_file"], url);
    bench.io("top", "write -P 3 2M 64k");
    bench.io("top", "read -P 1 0 1M");
    // A stream brings what is far away to the image itself.
    bench.run("block-stream", json!({"job-id": "j", "device": "top"}));
    bench.done("j");
    let socket = serve(&mut bench, &["ftp", "json"]);
    same(&bench, &socket, "ftp", "disk.qcow2");
    same(&bench, &socket, "json", "disk.qcow2");
    let images = bench.quit();
    images.io("disk.qcow2", &["write -P 3 2M 64k"]);
    images.check("top.qcow2");
    images.same("top.qcow2", "disk.qcow2");
}

#[test]
fn certificates_of_servers_are_checked_unless_told_otherwise() {
    let images = model();
    let file = images.bytes("disk.qcow2");
    let (web, ftp) = (Web::new(file.clone()).unwrap(), Ftp::new(file).unwrap());
    let dir = std::path::PathBuf::from(images.path("server"));
    Authority::new(&dir.join("ca")).unwrap().server(&dir).unwrap();
    let secure = Shield::new(&dir, web.port()).unwrap();
    let secure_ftp = Shield::new(&dir, ftp.port()).unwrap();
    let known = dir.join("ca-cert.pem").display().to_string();
    let url = |host: &str| format!("https://{host}:{}/good", secure.port);
    let node = |url: &str, verify: bool| {
        json!({"driver": url.split(':').next().unwrap(), "node-name": "n", "read-only": true,
            "url": url, "sslverify": verify})
    };
    let far = [url("localhost"), url("127.0.0.1"), format!("ftps://localhost:{}/good", secure_ftp.port)];
    let arguments = ["-accel", "qtest", "-nodefaults", "-display", "none"];
    let mut vm = testkit::Vm::start_in(&[("CURL_CA_BUNDLE", &known)], &arguments).unwrap();
    for url in &far {
        vm.qmp.execute("blockdev-add", node(url, true)).unwrap_or_else(|e| panic!("{url}: {e}"));
        vm.qmp.execute("blockdev-del", json!({"node-name": "n"})).unwrap();
    }
    drop(vm);
    let mut bench = Bench::start(images, &[]);
    for url in &far {
        let why = bench.refused("blockdev-add", node(url, true));
        assert!(why.contains("CURL: Error opening file: ") && why.contains("ertificate"), "{url}: {why}");
        bench.run("blockdev-add", node(url, false));
        let name = bench.node("n")["file"].as_str().unwrap().to_string();
        assert!(name.starts_with("json:") && name.contains("sslverify"), "{name}");
        let socket = serve(&mut bench, &["n"]);
        let raw = format!("nbd+unix:///n?socket={socket}");
        tool(
            "qemu-img",
            &["compare", "-U", "-f", "qcow2", "-F", "qcow2", &raw, &bench.images.path("disk.qcow2")],
        );
        bench.run("nbd-server-stop", Value::Null);
        bench.run("blockdev-del", json!({"node-name": "n"}));
    }
    bench.quit();
}

#[test]
fn files_of_tftp_servers_are_drives_and_nodes() {
    let images = model();
    let tftp = Tftp::new(images.bytes("disk.qcow2")).unwrap();
    let drive = format!("if=none,id=d,file={},format=qcow2,readonly=on", tftp.url("good"));
    let mut bench = Bench::start(images, &["-drive", &drive]);
    assert_eq!(bench.medium("d")["file"], tftp.url("good"));
    bench.io("d", "read -P 1 0 1M");
    bench.io("d", "read -P 2 1500k 700k");
    let file = |name: &str| json!({"driver": "tftp", "url": tftp.url(name), "timeout": 1});
    let node = |name: &str, read_only: bool| json!({"driver": "qcow2", "node-name": "n", "read-only": read_only, "file": file(name)});
    bench.run("blockdev-add", node("simple", true));
    let socket = serve(&mut bench, &["n"]);
    same(&bench, &socket, "n", "disk.qcow2");
    bench.run("nbd-server-stop", Value::Null);
    bench.run("blockdev-del", json!({"node-name": "n"}));
    for (name, read_only, said) in [
        ("absent", true, "CURL: Error opening file: TFTP: File Not Found"),
        ("dies", true, "CURL: Error opening file: Timeout was reached: nothing came in for 1 s after"),
        ("good", false, "curl driver does not support writes"),
    ] {
        let why = bench.refused("blockdev-add", node(name, read_only));
        assert!(why.starts_with(&format!("GenericError: {said}")), "{name}: {why}");
    }
    bench.quit();
}

#[test]
fn servers_are_reached_out_of_the_sandbox() {
    let images = model();
    let file = images.bytes("disk.qcow2");
    let (web, ftp) = (Web::new(file.clone()).unwrap(), Ftp::new(file.clone()).unwrap());
    let tftp = Tftp::new(file).unwrap();
    let drive = format!("if=none,id=d,file={},format=qcow2,readonly=on", tftp.url("good"));
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    let mut bench = Bench::start(images, &["-sandbox", sandbox, "-drive", &drive]);
    bench.io("d", "read -P 1 0 1M");
    for (driver, url) in [("tftp", tftp.url("simple")), ("http", web.url("good")), ("ftp", ftp.url("good"))] {
        let file = json!({"driver": driver, "url": url});
        let node = json!({"driver": "qcow2", "node-name": driver, "read-only": true, "file": file});
        bench.run("blockdev-add", node);
        bench.io(driver, "read -P 2 1500k 700k");
    }
    bench.quit();
}

#[test]
fn what_cannot_be_reached_is_a_clear_error() {
    let web = Web::new(vec![5; 4096]).unwrap();
    let mut bench = Bench::start(Images::new(), &[]);
    let node =
        |driver: &str, url: &str| json!({"driver": driver, "node-name": "n", "read-only": true, "url": url});
    let why = bench.refused("blockdev-add", node("http", &web.url("404")));
    assert_eq!(why, "GenericError: CURL: Error opening file: The requested URL returned error: 404");
    bench.run("blockdev-add", node("http", &web.url("good")));
    bench.run("blockdev-del", json!({"node-name": "n"}));
    let mut writable = node("http", &web.url("good"));
    writable["read-only"] = false.into();
    assert_eq!(bench.refused("blockdev-add", writable), "GenericError: curl driver does not support writes");
    bench.quit();
}
