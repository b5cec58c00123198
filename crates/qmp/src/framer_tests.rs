use super::*;
use serde_json::json;

fn all(bytes: &[u8]) -> Vec<Message> {
    let mut framer = Framer::new();
    let mut rest = bytes;
    let mut list = Vec::new();
    while let Some(message) = framer.next(&mut rest) {
        list.push(message);
    }
    list
}

fn one_at_a_time(bytes: &[u8]) -> Vec<Message> {
    let mut framer = Framer::new();
    let mut list = Vec::new();
    for byte in bytes {
        let mut rest = std::slice::from_ref(byte);
        while let Some(message) = framer.next(&mut rest) {
            list.push(message);
        }
    }
    list
}

fn values(bytes: impl AsRef<[u8]>) -> Vec<Value> {
    let whole = all(bytes.as_ref());
    assert_eq!(whole, one_at_a_time(bytes.as_ref()));
    let value = |message| match message {
        Message::Value(value) => value,
        Message::Bad => json!("BAD"),
    };
    whole.into_iter().map(value).collect()
}

fn count_bad(bytes: impl AsRef<[u8]>) -> usize {
    values(bytes).iter().filter(|value| **value == json!("BAD")).count()
}

#[test]
fn messages_need_no_separators() {
    let want = vec![json!({"execute": "stop"}), json!({"execute": "cont"}), json!([1, [2]])];
    assert_eq!(values(r#"{"execute":"stop"}{"execute":"cont"}[1,[2]]"#), want);
    assert_eq!(values(" {\t\"execute\"\r:\n'stop' } \r\n{'execute':\"cont\"}\n [1 ,[2]]"), want);
}

#[test]
fn dialect() {
    for (text, value) in [
        (r#"["it's", 'say "hi"', '\'', "\'"]"#, json!(["it's", "say \"hi\"", "'", "'"])),
        (r#"["\b\f\n\r\t\/\\\"\u0041\uD83D\uDE00é"]"#, json!(["\u{8}\u{c}\n\r\t/\\\"A😀é"])),
        ("[\"\u{1}\u{1f}\n\"]", json!(["\u{1}\u{1f}\n"])),
        ("[0, -0, 10, -1, 1.5, -0.25, 1e3, 1.5E-1, 2e+2]", json!([0, 0, 10, -1, 1.5, -0.25, 1e3, 0.15, 2e2])),
        (
            "[9223372036854775807,-9223372036854775808,18446744073709551615]",
            json!([i64::MAX, i64::MIN, u64::MAX]),
        ),
        ("[18446744073709551616]", json!([18446744073709551616.0])),
        (r#"{"a":1,"a":2}"#, json!({"a": 2})),
        ("[true,false,null,{},[]]", json!([true, false, null, {}, []])),
    ] {
        assert_eq!(values(text), [value], "{text}");
    }
}

#[test]
fn what_is_no_json() {
    for text in [
        "[1,]",
        "{\"a\":1,}",
        "[,]",
        "{,}",
        "[1 2]",
        "{\"a\" 1}",
        "{\"a\":}",
        "{1:2}",
        "[}]",
        "{]}",
        "[+1]",
        "[01]",
        "[.5]",
        "[1.]",
        "[0x1]",
        "[NaN]",
        "[TRUE]",
        "{a:1}",
        "[0e1]",
        "[1e]",
        "[-]",
        "[nul]",
        "[\"\\q\"]",
        "[\"\\u12g4\"]",
        "[\"\\uD800\"]",
        "[\"\\uD800x\"]",
        "[\"\\uDC00\"]",
        "[\"\\u0000\"]",
        "[\"\\uD800\\uD800\"]",
        "[%d]",
        "%p\n",
        "/* c */ ",
        "[1e999]",
        "}",
        "]",
        ",",
        ":",
        "{]",
    ] {
        let got = values(text);
        assert!(!got.is_empty() && got.iter().all(|value| *value == json!("BAD")), "{text}: {got:?}");
        // the next line is read as if nothing had happened
        let recovered = values(format!("{text}\n}}}}]]\n{{\"execute\": \"x\"}}"));
        assert_eq!(recovered.last(), Some(&json!({"execute": "x"})), "{text}");
    }
    for bytes in
        [&b"[\"\xe0\x80\x80\"]"[..], b"[\"\xed\xa0\x80\"]", b"[\"\xc3\"]", b"[\"\x80\"]", b"[\"\0\"]\n"]
    {
        assert_eq!(values(bytes)[0], json!("BAD"), "{bytes:x?}");
    }
}

#[test]
fn scalars_at_the_top_are_messages() {
    assert_eq!(values("3 \"a\" true\nnull "), [json!(3), json!("a"), json!(true), json!(null)]);
    assert_eq!(values("12"), Vec::<Value>::new());
}

#[test]
fn a_bad_line_is_one_error() {
    assert_eq!(count_bad("{\"execute\": @\"stop\", } } }\n"), 1);
    assert_eq!(count_bad(vec![b'@'; 100_000]), 1);
    assert_eq!(count_bad(b"@@@\n@@@\n"), 2);
    assert_eq!(count_bad(b"\xff\xff"), 2);
    assert_eq!(count_bad("}}}"), 3);
}

#[test]
fn resynchronisation_by_0xff() {
    for broken in ["{\"execute\": \"sto", "{\"a\": [[[", "'", "{\"x\\", "\"\\u12", "-", "tru", "1."] {
        let mut bytes = broken.as_bytes().to_vec();
        bytes.extend_from_slice(b"\xff{\"execute\": \"x\"}");
        assert_eq!(values(bytes), [json!("BAD"), json!({"execute": "x"})], "{broken}");
    }
}

#[test]
fn a_stray_quote_swallows_no_more_than_its_line() {
    let want = [json!("BAD"), json!({"execute": "x"})];
    assert_eq!(values("it's garbage\n{\"execute\": \"x\"}")[1..], want);
    assert_eq!(values("@'garbage\n{\"execute\": \"x\"}"), want);
    assert_eq!(values("{\"id\": \"a\nb\"}"), [json!({"id": "a\nb"})]);
}

#[test]
fn nesting_limits() {
    let nested = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    for n in [1023, 1024] {
        assert_eq!(values(nested("[", "]", n)).len(), 1);
        assert_ne!(values(nested("[", "]", n))[0], json!("BAD"));
        assert_ne!(values(nested("{'a':", "}", n).replacen(":}", ":1}", 1))[0], json!("BAD"));
    }
    let both = format!("{}1{}", "[{'a':".repeat(1024), "}]".repeat(1024));
    assert_ne!(values(&both)[0], json!("BAD"));
    for n in [1025, 2000, 100_000] {
        let mut text = nested("[", "]", n);
        text.push_str("\n{\"execute\": \"x\"}");
        let got = values(&text);
        assert_eq!(got[0], json!("BAD"));
        assert_eq!(got.last(), Some(&json!({"execute": "x"})));
    }
    let mut deep = "{\"a\":".repeat(2000);
    deep.push_str("\n{\"execute\": \"x\"}");
    assert_eq!(count_bad(&deep), 1);
}

#[test]
fn token_limit_bounds_memory() {
    let mut text = String::from("[");
    text.push_str(&"0,".repeat(1 << 20));
    text.push_str("0,0,0,0\n");
    assert_eq!(all(text.as_bytes()), [Message::Bad]);
}

#[test]
fn ten_megabytes_of_garbage() {
    let mut seed = 1u64;
    let mut bytes: Vec<u8> = (0..10 << 20)
        .map(|_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u8
        })
        .collect();
    bytes.extend_from_slice(b"\n\xff{\"execute\": \"x\"}");
    let got = all(&bytes);
    assert_eq!(got.last(), Some(&Message::Value(json!({"execute": "x"}))));
}

#[test]
fn one_long_token() {
    let text = format!("{{\"execute\": \"{}\"}}", "x".repeat(1 << 20));
    assert_eq!(values(&text).len(), 1);
    let mut framer = Framer::new();
    let chunk = vec![b'x'; 1 << 20];
    let mut bad = 0;
    assert_eq!(framer.next(&mut &b"[\""[..]), None);
    for _ in 0..70 {
        let mut rest = &chunk[..];
        while let Some(message) = framer.next(&mut rest) {
            assert_eq!(message, Message::Bad);
            bad += 1;
        }
        assert!(framer.token.len() <= MAX_TEXT + chunk.len());
    }
    assert_eq!(bad, 1);
    let digits = format!("[{}]", "9".repeat(1 << 20));
    assert_eq!(values(digits), [json!("BAD")]);
}

#[test]
fn fuzz_entry_holds_for_odd_input() {
    for text in [
        r#"{"execute":"a","id":[1,"\u20ac",null,{"x":18446744073709551615}]}"#,
        "}{][",
        "\"\\u00e9\" ",
        "1.5 ",
    ] {
        crate::fuzz_entry(text.as_bytes());
    }
}
