use super::*;
use crate::formats;
use crate::protocols::curl::tests::{add, content, refused};
use serde_json::json;
use testkit::tftp::Tftp;

fn tftp() -> (Tftp, Vec<u8>) {
    let content = content();
    (Tftp::new(content.clone()).unwrap(), content)
}

fn fetch(url: String, limit: u64, patience: Duration) -> Result<u64> {
    let graph = crate::graph::tests::graph();
    graph.block_on(async move {
        let client = Client::start(Source::plain(url))?;
        client.fetch_whole(Spool::new(limit, patience)?).await.map(|(_, size)| size)
    })
}

#[test]
fn the_driver_is_there_where_the_library_has_the_protocol() {
    let has = curl::Version::get().protocols().any(|protocol| protocol == "tftp");
    assert_eq!(formats::find("tftp").is_some(), has);
    assert_eq!(formats::by_scheme("tftp").is_some(), has);
    assert!(formats::find("ftp").is_some());
}

#[test]
fn files_are_read_in_any_order_whether_or_not_their_size_is_told() {
    let (tftp, content) = tftp();
    for name in ["good", "simple"] {
        let graph = crate::graph::tests::graph();
        let node = add(&graph, json!({"driver": "tftp", "url": tftp.url(name)})).unwrap();
        assert_eq!((node.size(), node.filename()), (content.len() as u64, tftp.url(name)));
        let expected = content.clone();
        graph.block_on(async move {
            for at in [700_001, 0, 512, expected.len() - 100] {
                let mut data = vec![0; (expected.len() - at).min(300_000)];
                node.read(at as u64, &mut data).await.unwrap();
                assert!(data == expected[at..at + data.len()], "{name} {at}");
            }
        });
    }
}

#[test]
fn an_empty_file_is_an_empty_disk() {
    let tftp = Tftp::new(Vec::new()).unwrap();
    for name in ["good", "simple"] {
        let graph = crate::graph::tests::graph();
        let node = add(&graph, json!({"driver": "tftp", "url": tftp.url(name)})).unwrap();
        assert_eq!(node.size(), 0, "{name}");
    }
}

#[test]
fn bad_servers_are_named() {
    let (tftp, content) = tftp();
    for (name, said) in [
        ("absent", "File Not Found".to_string()),
        ("denied", "Access Violation".to_string()),
        ("gives-up", "full".to_string()),
        (
            "liar",
            format!("The server sent {0} bytes of a file of {1} bytes", content.len(), content.len() + 1),
        ),
        ("huge", "The file is larger than 4294967296 bytes".to_string()),
    ] {
        let text = refused(json!({"driver": "tftp", "url": tftp.url(name)}));
        assert!(text.starts_with("CURL: Error opening file: ") && text.contains(&said), "{name}: {text}");
    }
    for (name, got) in [("dies", content.len() / 512 / 2 * 512), ("mute", 0)] {
        let begun = Instant::now();
        let text = refused(json!({"driver": "tftp", "url": tftp.url(name), "timeout": 1}));
        let said = format!("Timeout was reached: nothing came in for 1 s after {got} bytes");
        assert_eq!(text, format!("CURL: Error opening file: {said}"), "{name}");
        assert!(begun.elapsed() >= Duration::from_secs(1));
    }
}

#[test]
fn files_are_fetched_up_to_a_limit() {
    let (tftp, content) = tftp();
    let (len, long) = (content.len() as u64, Duration::from_secs(60));
    for name in ["good", "simple"] {
        assert_eq!(fetch(tftp.url(name), len, long).unwrap(), len);
        let text = fetch(tftp.url(name), len - 1, long).unwrap_err().text;
        assert!(text.starts_with(&format!("The file is larger than {} bytes", len - 1)), "{text}");
    }
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let (tftp, _) = tftp();
    let url = tftp.url("good");
    for (key, value) in [("readahead", json!(65536)), ("sslverify", json!(false)), ("username", json!("u"))] {
        let text = refused(json!({"driver": "tftp", "url": url, key: value}));
        assert_eq!(text, format!("Block protocol 'tftp' doesn't support the option '{key}'"));
    }
    let text = refused(json!({"driver": "tftp", "url": "ftp://x/y"}));
    assert!(text.contains("does not start with 'tftp://'"), "{text}");
    let text = refused(json!({"driver": "tftp", "url": url, "timeout": 10_001}));
    assert!(text.contains("timeout parameter is too large"), "{text}");
}
