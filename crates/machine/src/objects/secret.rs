//! `secret`: a password or key for other objects, given directly or in a file.

use super::{ObjectType, Objects, UserObject};
use aes::cipher::{BlockCipherDecrypt, KeyInit};
use base::{Failure, Result, bail, fail};
use base64::Engine;
use block::Vault;
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
        Property::unset("keyid", PropertyKind::Str, "Secret with the key that the data is encrypted with"),
        Property::unset("iv", PropertyKind::Str, "Initialisation vector of the encryption, in base64"),
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

fn create(objects: &Objects, _id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
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
    let bytes = match text("keyid") {
        Some(key) => decrypt(&objects.secret(key)?, text("iv"), bytes)?,
        None if text("iv").is_some() => bail!("An IV is only of use together with 'keyid'"),
        None => bytes,
    };
    Ok(Arc::new(Holder(Arc::new(Secret(bytes)))))
}

/// Base64, with white space anywhere as files have it.
fn decode(text: &[u8]) -> Result<Vec<u8>> {
    let dense: Vec<u8> = text.iter().copied().filter(|c| !c.is_ascii_whitespace()).collect();
    let decoded = base64::engine::general_purpose::STANDARD.decode(dense);
    decoded.map_err(|_| fail!("Base64 data '{}' is not valid", String::from_utf8_lossy(text)))
}

/// AES-256-CBC with PKCS#7 padding; the key is the content of another secret.
fn decrypt(key: &[u8], iv: Option<&str>, mut data: Vec<u8>) -> Result<Vec<u8>> {
    const BLOCK: usize = 16;
    let Ok(key) = <[u8; 32]>::try_from(key) else { bail!("Key should be 32 bytes in length") };
    let iv = decode(iv.ok_or_else(|| fail!("IV is required to decrypt secret"))?.as_bytes())?;
    let Ok(mut before) = <[u8; BLOCK]>::try_from(&iv[..]) else {
        bail!("IV should be {BLOCK} bytes in length not {}", iv.len())
    };
    if data.is_empty() || !data.len().is_multiple_of(BLOCK) {
        bail!("Encrypted secret length {} is not a multiple of {BLOCK}", data.len());
    }
    let cipher = aes::Aes256::new(&key.into());
    for piece in data.chunks_exact_mut(BLOCK) {
        let mut block = [0; BLOCK];
        block.copy_from_slice(piece);
        let mut plain = block.into();
        cipher.decrypt_block(&mut plain);
        piece.iter_mut().zip(plain).zip(before).for_each(|((to, plain), chain)| *to = plain ^ chain);
        before = block;
    }
    let padding = usize::from(data[data.len() - 1]);
    let whole = (1..=BLOCK).contains(&padding)
        && data[data.len() - padding..].iter().all(|byte| usize::from(*byte) == padding);
    if !whole {
        bail!("Incorrect number of padding bytes ({padding}) found on decrypted data");
    }
    data.truncate(data.len() - padding);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn objects() -> Objects {
        let clock = base::clock::Clock::new(base::clock::Kind::Realtime);
        let graph = block::Graph::new(base::notice::Notices::new(), clock, base::fd::FdSets::new());
        Objects::new(Arc::new(qom::Tree::new()), graph)
    }

    fn add(objects: &Objects, value: Value) -> Result<()> {
        let Value::Object(mut map) = value else { panic!("not an object") };
        map.insert("qom-type".into(), "secret".into());
        objects.add(&map, false)
    }

    /// The texts are from `openssl enc -aes-256-cbc -K 00..1f -iv 000102..0f`.
    #[test]
    fn a_secret_is_decrypted_with_another() {
        let objects = objects();
        let key = base64::engine::general_purpose::STANDARD.encode((0..32).collect::<Vec<u8>>());
        let iv = base64::engine::general_purpose::STANDARD.encode((0..16).collect::<Vec<u8>>());
        add(&objects, json!({"id": "key", "format": "base64", "data": key})).unwrap();
        let encrypted = "DHP7iMLUFpxD8czxSAibjwmYtUAXT5fT56FFIApj7CQ=";
        let with = |id: &str, key: &str, iv: Option<&str>, data: &str| {
            let mut all = json!({"id": id, "keyid": key, "format": "base64", "data": data});
            if let Some(iv) = iv {
                all["iv"] = iv.into();
            }
            add(&objects, all)
        };
        with("s", "key", Some(&iv), encrypted).unwrap();
        assert_eq!(objects.secret("s").unwrap(), b"a secret longer than one block");
        let said = |result: Result<()>| result.unwrap_err().to_string();
        assert_eq!(said(with("x", "key", None, encrypted)), "IV is required to decrypt secret");
        assert_eq!(said(with("x", "none", Some(&iv), encrypted)), "No secret with id 'none'");
        assert_eq!(said(with("x", "s", Some(&iv), encrypted)), "Key should be 32 bytes in length");
        assert_eq!(said(with("x", "key", Some("AAAA"), encrypted)), "IV should be 16 bytes in length not 3");
        assert!(said(with("x", "key", Some(&iv), "AAAA")).contains("not a multiple"));
        assert!(said(with("x", "key", Some(&iv), "AAAAAAAAAAAAAAAAAAAAAA==")).contains("padding"));
        assert!(said(add(&objects, json!({"id": "x", "iv": iv, "data": "x"}))).contains("keyid"));
        assert!(
            said(add(&objects, json!({"id": "x", "format": "base64", "data": "A"}))).contains("not valid")
        );
        assert!(objects.find("x").is_none());
    }
}
