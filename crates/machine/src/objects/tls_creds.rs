//! `tls-creds-x509`: certificates and keys for TLS.

use super::{ObjectType, Objects, UserObject};
use base::{Result, fail};
use device::{Property, PropertyKind};
use serde_json::{Map, Value};
use std::any::Any;
use std::sync::Arc;
use tls::{Credentials, Endpoint};

pub(super) static X509: ObjectType = ObjectType {
    name: "tls-creds-x509",
    parent: "tls-creds",
    properties: &[
        Property::unset("dir", PropertyKind::Str, "Directory of the PEM files"),
        Property::new(
            "endpoint",
            PropertyKind::Enum("QCryptoTLSCredsEndpoint", &["client", "server"]),
            "client",
            "Side of the sessions",
        ),
        Property::new("verify-peer", PropertyKind::Bool, "on", "The peer must show a certificate of the CA"),
        Property::new("sanity-check", PropertyKind::Bool, "on", "Check the files when they are loaded"),
    ],
    create,
};

struct Holder(Arc<Credentials>);

impl UserObject for Holder {
    fn payload(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }
}

fn create(_: &Objects, _id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    let on = |name: &str| values.get(name).and_then(Value::as_bool).unwrap_or(true);
    let dir =
        values.get("dir").and_then(Value::as_str).ok_or_else(|| fail!("Missing 'dir' property value"))?;
    let server = values.get("endpoint").and_then(Value::as_str) == Some("server");
    let x509 = tls::X509 {
        dir: dir.into(),
        endpoint: if server { Endpoint::Server } else { Endpoint::Client },
        verify_peer: on("verify-peer"),
        sanity_check: on("sanity-check"),
    };
    Ok(Arc::new(Holder(Arc::new(Credentials::load(&x509)?))))
}
