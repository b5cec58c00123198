//! QMP on the wire, and nothing above it: JSON messages in and out of a byte stream
//! ([`framer`], [`text`]), the checks every request goes through ([`request`]), and a monitor
//! with its session, its descriptors and its bounded outbox ([`monitor`]).
//!
//! What commands exist is behind [`Door`]; where the bytes come from is behind [`Outlet`].

#![forbid(unsafe_code)]

mod builder;
pub mod framer;
mod monitor;
mod outbox;
mod request;
pub mod text;

pub use framer::{Framer, Message};
pub use monitor::{Call, Door, Monitor, Options, Outcome, Route};
pub use outbox::{Line, Outlet};
pub use request::{Request, error_reply, success_reply};

use serde_json::Value;

/// A JSON object with its keys in the order in which they came.
pub type Map = serde_json::Map<String, Value>;

/// Feeds `input` through framer, request check and writer: whatever comes, no panic, and what
/// is written reads back as the same value.
pub fn fuzz_entry(input: &[u8]) {
    let mut framer = Framer::new();
    let mut rest = input;
    while let Some(message) = framer.next(&mut rest) {
        let Message::Value(value) = message else { continue };
        let line = text::line(&value, false);
        let mut again = Framer::new();
        let mut bytes = line.as_bytes();
        let back = again.next(&mut bytes);
        // Numbers beyond the written precision change; everything else must survive.
        if !has_float(&value) && (value.is_object() || value.is_array()) {
            assert_eq!(back, Some(Message::Value(value.clone())), "{line}");
        }
        let _ = Request::check(value, true);
    }
    assert!(rest.is_empty());
}

fn has_float(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(list) => list.iter().any(has_float),
        Value::Object(map) => map.values().any(has_float),
        _ => false,
    }
}
