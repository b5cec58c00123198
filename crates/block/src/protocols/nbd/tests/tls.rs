//! TLS between us and the usual tools, both ways.

use super::serve;
use crate::export::Tls;
use crate::formats::qcow2::tests::tool;
use crate::graph::tests::graph;
use crate::options::Options;
use base::{Result, fail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use testkit::certificates::Authority;
use tls::{Authorise, Credentials, Endpoint, X509};

const GUEST: &str = "C=GB,O=Ryokan,CN=guest";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let authority = Authority::new(&place.dir("ca")).unwrap();
        authority.server(&place.dir("server")).unwrap();
        authority.client(&place.dir("client"), "guest").unwrap();
        place
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.dir(name).to_str().unwrap().to_string()
    }

    fn load(&self, name: &str, endpoint: Endpoint) -> Arc<Credentials> {
        let x509 = X509 { dir: self.dir(name), endpoint, verify_peer: true, sanity_check: true };
        Arc::new(Credentials::load(&x509).unwrap())
    }
}

/// A vault with credentials "c".
struct One(Arc<Credentials>);

impl crate::Vault for One {
    fn secret(&self, id: &str) -> Result<Vec<u8>> {
        Err(fail!("No secret with id '{id}'"))
    }
    fn credentials(&self, id: &str) -> Result<Arc<Credentials>> {
        if id == "c" { Ok(self.0.clone()) } else { Err(fail!("No TLS credentials with id '{id}'")) }
    }
    fn authorisation(&self, id: &str) -> Result<Arc<dyn Authorise>> {
        Err(fail!("No authorization object with id '{id}'"))
    }
}

struct Only(&'static str);

impl Authorise for Only {
    fn is_allowed(&self, identity: &str) -> bool {
        identity == self.0
    }
}

/// What reading the first bytes through a client with `options` gives.
fn first_bytes(credentials: &Arc<Credentials>, options: serde_json::Value) -> Result<[u8; 512]> {
    let client = graph();
    client.set_vault(Arc::new(One(credentials.clone())));
    let at = client.clone();
    client.block_on(async move {
        let mut options = Options::json(options);
        options.set("driver", "nbd");
        options.set("node-name", "n");
        options.set("read-only", true);
        let node = at.add(options).await?;
        let mut data = [0; 512];
        node.read(0, &mut data).await.map_err(|why| fail!("{why}"))?;
        at.delete("n").await?;
        Ok(data)
    })
}

fn runs(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.unwrap().success()
}

#[test]
fn the_server_takes_only_tls_and_only_whom_it_knows() {
    let place = Place::new();
    let (image, socket, copy) = (place.path("disk.raw"), place.path("sock"), place.path("copy.raw"));
    let data: Vec<u8> = (0..1u32 << 20).map(|at| (at / 512 * 7) as u8).collect();
    std::fs::write(&image, &data).unwrap();
    let owner = graph();
    let tls = |who| Tls {
        credentials: place.load("server", Endpoint::Server),
        authorise: Some(Arc::new(Only(who)) as Arc<dyn Authorise>),
    };
    let server = serve(&owner, &socket, &image, true, Some(tls(GUEST)));
    let secure = format!(
        "nbds+unix://localhost/disk?socket={socket}&tls-certificates={}&tls-verify-peer=true",
        place.path("client")
    );
    assert!(tool("nbdinfo", &[&secure]).contains("export-size: 1048576"));
    assert!(tool("nbdinfo", &["--list", &secure]).contains("export=\"disk\""));
    tool("nbdcopy", &[&secure, &copy]);
    assert!(std::fs::read(&copy).unwrap() == data);
    let plain = format!("nbd+unix:///disk?socket={socket}");
    assert!(!runs("nbdinfo", &[&plain]));
    let client = place.load("client", Endpoint::Client);
    let address = json!({"type": "unix", "path": socket});
    let asked = |more: serde_json::Value| {
        let mut options = json!({"server": address, "export": "disk"});
        for (key, value) in more.as_object().unwrap() {
            options[key] = value.clone();
        }
        first_bytes(&client, options)
    };
    let said = |more| asked(more).unwrap_err().to_string();
    assert_eq!(asked(json!({"tls-creds": "c", "tls-hostname": "localhost"})).unwrap(), data[..512]);
    assert!(said(json!({})).contains("server requires TLS"));
    assert_eq!(said(json!({"tls-creds": "x"})), "No TLS credentials with id 'x'");
    assert!(said(json!({"tls-creds": "c", "tls-hostname": "example.com"})).contains("TLS handshake failed"));
    assert!(said(json!({"tls-creds": "c"})).contains("tls-hostname is needed"));
    assert!(said(json!({"tls-hostname": "x"})).contains("may only be used with tls-creds"));
    owner.block_on(async move { server.stop().await });

    let server = serve(&graph(), &socket, &image, true, Some(tls("C=GB,O=Ryokan,CN=other")));
    assert!(!runs("nbdinfo", &[&secure]));
    assert!(asked(json!({"tls-creds": "c", "tls-hostname": "localhost"})).is_err());
    drop(server);
}

#[test]
fn a_server_without_tls_says_so() {
    let place = Place::new();
    let (image, socket) = (place.path("disk.raw"), place.path("sock"));
    std::fs::write(&image, [1; 4096]).unwrap();
    let _server = serve(&graph(), &socket, &image, false, None);
    let client = place.load("client", Endpoint::Client);
    let options = json!({"server": {"type": "unix", "path": socket}, "export": "disk", "tls-creds": "c",
        "tls-hostname": "localhost"});
    let said = first_bytes(&client, options).unwrap_err().to_string();
    assert_eq!(said, "NBD server refused TLS: TLS is not configured");
}

/// qemu-nbd with TLS on a port of its own choosing; ended when dropped.
struct Foreign(Child, u16);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn foreign(image: &str, dir: &Path, identity: &str) -> Foreign {
    for port in 21800..21900u16 {
        let mut command = Command::new("qemu-nbd");
        command.args(["-f", "raw", "-x", "disk", "-b", "127.0.0.1", "-t", "-p", &port.to_string()]);
        command.args(["--object", &format!("tls-creds-x509,id=t,endpoint=server,dir={}", dir.display())]);
        command.args(["--object", &format!("authz-simple,id=a,identity={}", identity.replace(',', ",,"))]);
        command.args(["--tls-creds", "t", "--tls-authz", "a", image]).stderr(Stdio::null());
        let mut server = Foreign(command.spawn().unwrap(), port);
        for _ in 0..500 {
            if server.0.try_wait().unwrap().is_some() {
                break;
            }
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    panic!("qemu-nbd finds no free port");
}

#[test]
fn the_client_reads_from_the_usual_server() {
    let place = Place::new();
    let image = place.path("disk.raw");
    std::fs::write(&image, [0x5a; 65536]).unwrap();
    let client = place.load("client", Endpoint::Client);
    let options = |port: u16| {
        json!({"server": {"type": "inet", "host": "127.0.0.1", "port": port.to_string()},
            "export": "disk", "tls-creds": "c"})
    };
    let server = foreign(&image, &place.dir("server"), GUEST);
    assert_eq!(first_bytes(&client, options(server.1)).unwrap(), [0x5a; 512]);
    let mut plain = options(server.1);
    plain.as_object_mut().unwrap().remove("tls-creds");
    let said = first_bytes(&client, plain).unwrap_err().to_string();
    assert!(said.contains("server requires TLS"), "{said}");
    drop(server);
    // The same name in another order is another name, to both.
    let server = foreign(&image, &place.dir("server"), "CN=guest,O=Ryokan,C=GB");
    assert!(first_bytes(&client, options(server.1)).is_err());
}
