//! What the block layer gets of the objects: secrets, TLS credentials, who may come in.

use super::{Objects, Secret, authz::Authorisation};
use base::{Result, fail};
use std::sync::{Arc, Weak};
use tls::{Authorise, Credentials};

impl block::Vault for Objects {
    fn secret(&self, id: &str) -> Result<Vec<u8>> {
        let found = self.find(id).ok_or_else(|| fail!("No secret with id '{id}'"))?;
        let secret =
            found.downcast::<Secret>().map_err(|_| fail!("Object with id '{id}' is not a secret"))?;
        Ok(secret.0.clone())
    }

    fn credentials(&self, id: &str) -> Result<Arc<Credentials>> {
        let found = self.find(id).ok_or_else(|| fail!("No TLS credentials with id '{id}'"))?;
        found.downcast().map_err(|_| fail!("Object with id '{id}' is not TLS credentials"))
    }

    fn authorisation(&self, id: &str) -> Result<Arc<dyn Authorise>> {
        let found = self.find(id).ok_or_else(|| fail!("No authorization object with id '{id}'"))?;
        let found = found.downcast::<Authorisation>();
        Ok(found.map_err(|_| fail!("Object with id '{id}' is not an authorization list"))?)
    }
}

/// The objects as the graph holds them: they hold the graph themselves.
pub(crate) struct Shelf(pub Weak<Objects>);

impl Shelf {
    fn objects(&self) -> Result<Arc<Objects>> {
        self.0.upgrade().ok_or_else(|| fail!("The objects are gone"))
    }
}

impl block::Vault for Shelf {
    fn secret(&self, id: &str) -> Result<Vec<u8>> {
        self.objects()?.secret(id)
    }

    fn credentials(&self, id: &str) -> Result<Arc<Credentials>> {
        self.objects()?.credentials(id)
    }

    fn authorisation(&self, id: &str) -> Result<Arc<dyn Authorise>> {
        self.objects()?.authorisation(id)
    }
}
