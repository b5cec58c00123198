use super::place::{Hash, HostKey, Place};
use crate::options::Options;
use serde_json::json;

fn place(options: serde_json::Value) -> Result<Place, String> {
    Place::take(&mut Options::json(options)).map_err(|why| why.to_string())
}

#[test]
fn uris_say_what_options_say() {
    let uri = "ssh://me@[::1]:2222/a%20b/disk.img?host_key_check=md5:00112233445566778899AABBccddeeff";
    let by_uri = place(json!({"filename": uri})).unwrap();
    let digits = "00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff";
    let by_options = place(json!({
        "server": {"host": "::1", "port": "2222"}, "path": "/a b/disk.img", "user": "me",
        "host-key-check": {"mode": "hash", "type": "md5", "hash": digits}
    }));
    assert_eq!(Ok(&by_uri), by_options.as_ref());
    assert_eq!(by_uri.host_key, HostKey::Fingerprint(Hash::Md5, digits.replace(':', "")));
    let plain = place(json!({"filename": "ssh://host/x", "user": "u"}));
    assert_eq!(plain.unwrap_err(), "'user' cannot be used with a file name");
    let plain = place(json!({"filename": "ssh://u@host/x"})).unwrap();
    assert_eq!(
        (plain.port, plain.host_key.clone(), plain.uri()),
        (22, HostKey::Known, "ssh://u@host:22/x".into())
    );
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    for (options, why) in [
        (json!({"filename": "scp://h/x"}), "URI scheme must be 'ssh'"),
        (json!({"filename": "ssh://h"}), "missing remote path in URI"),
        (json!({"filename": "ssh:///x"}), "missing hostname in URI"),
        (json!({"filename": "ssh://h/x?host_key_check=maybe"}), "unknown host_key_check setting (maybe)"),
        (json!({"path": "/x"}), "No hostname was specified"),
        (json!({"server": {"host": "h"}}), "Parameter 'path' is missing"),
        (
            json!({"server": {"host": "h", "port": "ssh"}, "path": "/x"}),
            "Use only numeric port value, not 'ssh'",
        ),
        (
            json!({"server": {"host": "h"}, "path": "/x", "host-key-check": {"mode": "hash", "type": "sha1", "hash": "12"}}),
            "a fingerprint by sha1 has 40 hexadecimal digits, unlike '12'",
        ),
        (
            json!({"server": {"host": "h"}, "path": "/x", "host-key-check": {"mode": "known"}}),
            "Parameter 'mode' does not accept value 'known'",
        ),
    ] {
        assert_eq!(place(options).unwrap_err(), why);
    }
}
