//! Keys and credentials that options name, kept outside the graph.

use base::{Result, fail};
use std::sync::Arc;

/// Where drivers find the objects that options like `key-secret` and `tls-creds` name.
pub trait Vault: Send + Sync {
    /// The bytes of a secret.
    fn secret(&self, id: &str) -> Result<Vec<u8>>;
    fn credentials(&self, id: &str) -> Result<Arc<tls::Credentials>>;
    /// A list of who may come in (`tls-authz`).
    fn authorisation(&self, id: &str) -> Result<Arc<dyn tls::Authorise>>;
}

/// The vault of a graph that was given none.
pub(crate) struct Empty;

impl Vault for Empty {
    fn secret(&self, id: &str) -> Result<Vec<u8>> {
        Err(fail!("No secret with id '{id}'"))
    }

    fn credentials(&self, id: &str) -> Result<Arc<tls::Credentials>> {
        Err(fail!("No TLS credentials with id '{id}'"))
    }

    fn authorisation(&self, id: &str) -> Result<Arc<dyn tls::Authorise>> {
        Err(fail!("No authorization object with id '{id}'"))
    }
}
