//! Group G: the NBD server.

use super::{NO_LOOKUP, NO_MEDIUM, NO_NODE, bench, placed, refuses};
use serde_json::{Value, json};

#[test]
fn exports() {
    let mut bench = bench();
    let b = &mut bench;
    refuses(b, "nbd-server-add", json!({"device": "r"}), &[(json!({}), "NBD server not running")]);
    refuses(b, "nbd-server-remove", json!({"name": "r"}), &[(json!({}), "Export 'r' is not found")]);
    let tcp = |more: Value| {
        let mut data = json!({"host": "127.0.0.1", "port": "0"});
        more.as_object().unwrap().iter().for_each(|(key, value)| data[key] = value.clone());
        json!({"addr": {"type": "inet", "data": data}})
    };
    let unix = json!({"type": "unix", "data": {"path": "@nbd.sock"}});
    refuses(
        b,
        "nbd-server-start",
        json!({"addr": unix}),
        &[
            (
                tcp(json!({"port": "x"})),
                "address resolution failed for 127.0.0.1:x: Servname not supported for ai_socktype",
            ),
            (tcp(json!({"y": 1})), "Parameter 'addr.data.y' is unexpected"),
            (tcp(json!({"ipv4": false, "ipv6": false})), "Cannot disable IPv4 and IPv6 at same time"),
            (
                tcp(json!({"ipv4": false})),
                "address resolution failed for 127.0.0.1:0: Address family for hostname not supported",
            ),
            (
                json!({"addr": {"type": "unix", "data": {"path": "@no/x"}}}),
                "Failed to bind socket to @no/x: No such file or directory",
            ),
            (json!({"addr": {"type": "unix", "data": {}}}), "Parameter 'path' is missing"),
            (
                json!({"addr": {"type": "fd", "data": {"str": "x"}}}),
                "File descriptor named 'x' has not been found",
            ),
            (json!({"tls-creds": "x"}), "No TLS credentials with id 'x'"),
            (json!({"tls-authz": "x"}), "TLS authorization is specified but no TLS credentials"),
        ],
    );
    let start = placed(b, &json!({"addr": unix}));
    b.run("nbd-server-start", start.clone());
    refuses(b, "nbd-server-start", start.clone(), &[(json!({}), "NBD server already running")]);
    b.run("nbd-server-add", json!({"device": "r"}));
    refuses(
        b,
        "nbd-server-add",
        json!({}),
        &[
            (json!({"device": "x"}), NO_LOOKUP),
            (json!({"device": "cd"}), NO_MEDIUM),
            (json!({"device": "r"}), "NBD server already exporting device 'r'"),
            (json!({"device": "r", "name": "n", "bitmap": "x"}), "Bitmap 'x' is not found"),
        ],
    );
    refuses(b, "nbd-server-remove", json!({}), &[(json!({"name": "x"}), "Export 'x' is not found")]);
    refuses(
        b,
        "block-export-add",
        json!({"type": "nbd", "id": "e", "node-name": "t"}),
        &[
            (json!({"id": "1"}), "Invalid block export id"),
            (json!({"node-name": "x"}), NO_NODE),
            (json!({"node-name": "ron", "writable": true}), "Cannot export read-only node as writable"),
            (json!({"bitmaps": ["x"]}), "Bitmap 'x' is not found"),
            (json!({"bitmaps": [{"node": "t", "name": "x"}]}), "Bitmap 'x' is not found"),
            (json!({"bitmaps": [{"node": "t", "name": "x", "y": 1}]}), "Parameter 'bitmaps.y' is unexpected"),
        ],
    );
    refuses(b, "block-export-del", json!({}), &[(json!({"id": "x"}), "Export 'x' is not found")]);
    b.run("nbd-server-stop", Value::Null);
    // It is no error that it does not run.
    b.run("nbd-server-stop", Value::Null);
    b.run("nbd-server-start", start);
    bench.quit();
}
