use crate::graph::{Graph, tests::graph};
use crate::options::Options;
use crate::{Node, Vault, types::IoResult};
use base::{Result, fail};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::Dice;
use testkit::certificates::Authority;
use testkit::ftp::Ftp;
use testkit::web::{SHORT, Shield, TOGETHER, Web};

/// A megabyte and a bit, of no regularity.
pub(super) fn content() -> Vec<u8> {
    let mut dice = Dice::new(7);
    (0..(1 << 20) + 700).map(|_| dice.roll() as u8).collect()
}

fn web() -> (Web, Vec<u8>) {
    let content = content();
    (Web::new(content.clone()).unwrap(), content)
}

pub(super) fn add(graph: &Arc<Graph>, mut options: Value) -> Result<Arc<Node>> {
    if options.get("driver").is_none() {
        options["driver"] = "http".into();
    }
    if options.get("timeout").is_none() {
        // The machine may be busy.
        options["timeout"] = 100.into();
    }
    options["node-name"] = "n".into();
    options["read-only"] = true.into();
    let at = graph.clone();
    graph.block_on(async move { at.add(Options::json(options)).await })
}

/// Opens and reads.
fn read(url: &str, offset: u64, len: usize) -> IoResult<Vec<u8>> {
    let graph = graph();
    let scheme = url.split(':').next().unwrap();
    let node = add(&graph, json!({"driver": scheme, "url": url})).unwrap();
    graph.block_on(async move {
        let mut data = vec![0; len];
        node.read(offset, &mut data).await.map(|()| data)
    })
}

pub(super) fn refused(options: Value) -> String {
    add(&graph(), options).map(drop).unwrap_err().text
}

#[test]
fn a_file_is_read_in_any_order_and_a_little_ahead() {
    let (web, content) = web();
    let graph = graph();
    let node = add(&graph, json!({"url": web.url("good")})).unwrap();
    assert_eq!((node.size(), node.filename()), (content.len() as u64, web.url("good")));
    let expected = content.clone();
    graph.block_on(async move {
        let mut all = vec![0; expected.len()];
        node.read(0, &mut all).await.unwrap();
        assert!(all == expected);
        let mut dice = Dice::new(3);
        for _ in 0..200 {
            let at = dice.roll() as usize % expected.len();
            let len = 1 + dice.roll() as usize % (expected.len() - at).min(100_000);
            let mut data = vec![0; len];
            node.read(at as u64, &mut data).await.unwrap();
            assert!(data == expected[at..at + len], "{at} {len}");
        }
    });
}

#[test]
fn what_was_read_ahead_is_not_asked_for_again() {
    let (web, content) = web();
    let graph = graph();
    let node = add(&graph, json!({"url": web.url("good"), "readahead": 65536})).unwrap();
    let expected = content.clone();
    graph.block_on(async move {
        for at in (0..65536).step_by(4096) {
            let mut data = [0; 4096];
            node.read(at as u64, &mut data).await.unwrap();
            assert!(data == expected[at..at + 4096]);
        }
    });
    assert_eq!(web.requests(), ["HEAD /good", "GET /good bytes=0-69631"]);
}

#[test]
fn transfers_run_beside_each_other() {
    let (web, content) = web();
    let graph = graph();
    let options = json!({"url": web.url("together"), "readahead": 0, "timeout": 100});
    let node = add(&graph, options).unwrap();
    // The server answers none before all are there.
    let tasks: Vec<_> = (0..TOGETHER)
        .map(|number| {
            let node = node.clone();
            graph.main_thread().handle().spawn(async move {
                let mut data = [0; 1000];
                node.read(number as u64 * 1000, &mut data).await.map(|()| data)
            })
        })
        .collect();
    let seen = graph.block_on(async move {
        let mut seen = Vec::new();
        for task in tasks {
            seen.extend(task.await.unwrap().unwrap());
        }
        seen
    });
    assert!(seen == content[..TOGETHER * 1000]);
}

#[test]
fn transfers_that_are_cut_off_go_on_where_they_were() {
    let (web, content) = web();
    assert!(read(&web.url("cut"), 1000, 500_000).unwrap() == content[1000..501_000]);
    let requests = web.requests();
    assert!(requests.len() > 3, "{requests:?}");
    assert_eq!(requests[1], "GET /cut bytes=1000-763143");
    assert_eq!(requests[2], "GET /cut bytes=382072-763143");
    // Less than was asked for, but honestly said.
    let len = SHORT * 2 + 5;
    assert!(read(&web.url("short"), 9, len).unwrap() == content[9..9 + len]);
}

#[test]
fn bad_servers_are_named_when_the_file_is_opened() {
    let (web, _) = web();
    for (path, said) in [
        ("404", "The requested URL returned error: 404"),
        ("403", "The requested URL returned error: 403"),
        ("503", "The requested URL returned error: 503"),
        ("norange", "Server does not support 'range' (byte ranges)."),
        ("nolength", "Server didn't report file size."),
        ("huge", "not credible"),
        ("negative", "Content-Length"),
    ] {
        let text = refused(json!({"url": web.url(path)}));
        assert!(text.starts_with("CURL: Error opening file: ") && text.contains(said), "{path}: {text}");
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://127.0.0.1:{}/x", closed.local_addr().unwrap().port());
    // It listens, but nobody answers.
    let text = refused(json!({"url": nobody, "timeout": 1}));
    assert!(text.contains("timed out"), "{text}");
    drop(closed);
    let text = refused(json!({"url": nobody}));
    assert!(text.starts_with("CURL: Error opening file: Failed to connect to 127.0.0.1"), "{text}");
}

#[test]
fn wrong_answers_are_errors_and_never_data() {
    let (web, content) = web();
    for path in ["ignores", "wrong", "unsaid", "grown", "dead", "headers"] {
        let error = read(&web.url(path), 512, 512).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{path}");
    }
    // The whole file begins with what was asked for.
    assert!(read(&web.url("ignores"), 0, 512).unwrap() == content[..512]);
    // What comes beyond is not taken.
    assert!(read(&web.url("endless"), 512, 512).unwrap() == content[512..1024]);
    let graph = graph();
    let node = add(&graph, json!({"url": web.url("mute"), "timeout": 1})).unwrap();
    let begun = Instant::now();
    let error = graph.block_on(async move { node.read(0, &mut [0; 512]).await.unwrap_err() });
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(begun.elapsed() >= Duration::from_millis(900));
}

struct Words;

impl Vault for Words {
    fn secret(&self, id: &str) -> Result<Vec<u8>> {
        match id {
            "word" | "a=b" => Ok(id.into()),
            "noise" => Ok(vec![0xff]),
            _ => Err(fail!("No secret with id '{id}'")),
        }
    }

    fn credentials(&self, _id: &str) -> Result<Arc<tls::Credentials>> {
        Err(fail!("none"))
    }

    fn authorisation(&self, _id: &str) -> Result<Arc<dyn tls::Authorise>> {
        Err(fail!("none"))
    }
}

#[test]
fn options_reach_the_server_and_wrong_ones_are_refused() {
    let (web, content) = web();
    let first = |options: Value| {
        let graph = graph();
        graph.set_vault(Arc::new(Words));
        let node = add(&graph, options)?;
        let name = node.filename();
        let read = async move {
            let mut data = [0; 16];
            node.read(0, &mut data).await.map(|()| data)
        };
        Ok::<_, base::Failure>((graph.block_on(read)?, name))
    };
    let url = web.url("locked");
    let (data, name) = first(json!({"url": url, "username": "user", "password-secret": "word"})).unwrap();
    assert!(data == content[..16] && name.starts_with("json:"), "{name}");
    let named: Value = serde_json::from_str(&name[5..]).unwrap();
    assert_eq!((&named["username"], &named["password-secret"]), (&json!("user"), &json!("word")));
    for cookie in ["cookie", "cookie-secret"] {
        assert!(first(json!({"url": web.url("cookie"), cookie: "a=b"})).unwrap().0 == content[..16]);
    }
    assert!(first(json!({"filename": web.url("redirect")})).unwrap().0 == content[..16]);
    assert!(first(json!({"url": url, "username": "user"})).unwrap_err().text.contains("401"));
    let said = |options: Value| first(options).unwrap_err().text;
    assert_eq!(said(json!({"url": url, "password-secret": "none"})), "No secret with id 'none'");
    assert!(said(json!({"url": url, "password-secret": "noise"})).contains("not text"));
    let both = json!({"url": url, "cookie": "c=d", "cookie-secret": "a=b"});
    assert_eq!(said(both), "curl driver cannot handle both cookie and cookie secret");
    let odd = json!({"url": url, "readahead": 1000});
    assert_eq!(said(odd), "HTTP/FTP readahead size 1000 is not a multiple of 512");
    assert!(said(json!({"url": url, "readahead": 1u64 << 40})).contains("at most"));
    assert!(said(json!({"url": url, "timeout": 10_001})).contains("timeout parameter is too large"));
    assert_eq!(said(json!({"driver": "http"})), "curl block driver requires an 'url' option");
    assert!(said(json!({"url": "ftp://x/y"})).contains("does not start with 'http://'"));
    assert!(said(json!({"url": web.url("good"), "colour": "red"})).contains("'colour'"));
    let at = graph();
    let writable = json!({"driver": "http", "node-name": "n", "url": url});
    let opened = at.clone();
    let opened = at.block_on(async move { opened.add(Options::json(writable)).await.map(drop) });
    assert_eq!(opened.unwrap_err().text, "curl driver does not support writes");
}

#[test]
fn files_of_ftp_servers_are_read_too() {
    let content = content();
    let ftp = Ftp::new(content.clone()).unwrap();
    assert!(read(&ftp.url("good"), 0, content.len()).unwrap() == content);
    assert!(read(&ftp.url("dir/good"), 77, 300_000).unwrap() == content[77..300_077]);
    assert!(read(&ftp.url("cut"), 900_000, 100_000).unwrap() == content[900_000..1_000_000]);
    let text = refused(json!({"driver": "ftp", "url": ftp.url("absent")}));
    assert!(text.starts_with("CURL: Error opening file: ") && text.contains("does not exist"), "{text}");
    let locked = ftp.url("locked").replace("127", "user:word@127");
    assert!(read(&locked, 5, 5).unwrap() == content[5..10]);
}

#[test]
fn certificates_of_servers_are_checked_unless_told_otherwise() {
    let content = content();
    let (web, ftp) = (Web::new(content.clone()).unwrap(), Ftp::new(content.clone()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    Authority::new(&dir.path().join("ca")).unwrap().server(dir.path()).unwrap();
    let (secure, secure_ftp) =
        (Shield::new(dir.path(), web.port()).unwrap(), Shield::new(dir.path(), ftp.port()).unwrap());
    for (driver, port) in [("https", secure.port), ("ftps", secure_ftp.port)] {
        let url = format!("{driver}://localhost:{port}/good");
        let text = refused(json!({"driver": driver, "url": url, "timeout": 60}));
        assert!(text.starts_with("CURL: Error opening file: ") && text.contains("ertificate"), "{text}");
        let graph = graph();
        let node =
            add(&graph, json!({"driver": driver, "url": url, "sslverify": false, "timeout": 60})).unwrap();
        assert!(node.filename().starts_with("json:"), "{}", node.filename());
        let seen = graph.block_on(async move {
            let mut data = vec![0; 400_000];
            node.read(1234, &mut data).await.map(|()| data)
        });
        assert!(seen.unwrap() == content[1234..401_234], "{driver}");
    }
}
