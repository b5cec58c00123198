//! `secret`: a password or key for other objects, given directly or in a file.

use super::{ObjectType, Objects, UserObject};
use base::{Failure, Result, bail};
use device::{Property, PropertyKind};
use serde_json::{Map, Value};
use std::any::Any;
use std::sync::Arc;

pub(super) static SECRET: ObjectType = ObjectType {
    name: "secret",
    parent: "secret_common",
    properties: &[
        Property::unset("data", PropertyKind::Str, "The secret itself"),
        Property::unset("file", PropertyKind::Str, "File that holds the secret"),
        Property::new(
            "format",
            PropertyKind::Enum("QCryptoSecretFormat", &["raw", "base64"]),
            "raw",
            "How the data is encoded",
        ),
    ],
    create,
};

/// The bytes of a secret object, what [`super::Objects::find`] gives for one.
pub struct Secret(pub Vec<u8>);

struct Holder(Arc<Secret>);

impl UserObject for Holder {
    fn payload(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }
}

pub(super) fn is_hidden(kind: &str, property: &str) -> bool {
    kind == "secret" && property == "data"
}

fn create(_objects: &Objects, _id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    let text = |name: &str| values.get(name).and_then(Value::as_str);
    let raw = match (text("data"), text("file")) {
        (Some(data), None) => data.as_bytes().to_vec(),
        (None, Some(file)) => {
            std::fs::read(file).map_err(|e| Failure::os(format!("Unable to read {file}"), &e))?
        }
        (Some(_), Some(_)) => bail!("'file' and 'data' are mutually exclusive"),
        (None, None) => bail!("Must provide 'file' or 'data'"),
    };
    let bytes = if text("format") == Some("base64") { decode(&raw)? } else { raw };
    Ok(Arc::new(Holder(Arc::new(Secret(bytes)))))
}

fn decode(text: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for &c in text.iter().filter(|c| !c.is_ascii_whitespace() && **c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("Base64 data '{}' is not valid", String::from_utf8_lossy(text)),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes)
}
