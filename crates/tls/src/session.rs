//! Sessions over a stream.

use crate::{Authorise, Config, Credentials, Endpoint};
use base::{Failure, Result, bail, fail};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use x509_cert::der::Decode;

/// A stream inside TLS.
pub type Stream<S> = TlsStream<S>;

fn failed(error: std::io::Error) -> Failure {
    fail!("TLS handshake failed: {error}")
}

impl Credentials {
    /// The server's side of a handshake. With `authorise`, the name of the client's
    /// certificate decides whether it may come in.
    pub async fn accept<S>(&self, stream: S, authorise: Option<&dyn Authorise>) -> Result<Stream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.expect(Endpoint::Server)?;
        let Config::Server(config) = &self.0 else { bail!("Expecting TLS credentials of a server") };
        let session = TlsAcceptor::from(config.clone()).accept(stream).await.map_err(failed)?;
        if let Some(authorise) = authorise {
            let shown = session.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let shown = shown.ok_or_else(|| fail!("The client shows no certificate to authorise it by"))?;
            let name = peer_name(shown)?;
            if !authorise.is_allowed(&name) {
                bail!("TLS x509 authz check for {name} is denied");
            }
        }
        Ok(session.into())
    }

    /// The client's side; `hostname` is what the server's certificate must be for.
    pub async fn connect<S>(&self, stream: S, hostname: &str) -> Result<Stream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.expect(Endpoint::Client)?;
        let Config::Client(config) = &self.0 else { bail!("Expecting TLS credentials of a client") };
        let name = ServerName::try_from(hostname.to_string())
            .map_err(|_| fail!("'{hostname}' is not a host name that TLS can check"))?;
        let session = TlsConnector::from(config.clone()).connect(name, stream).await.map_err(failed)?;
        Ok(session.into())
    }
}

/// The distinguished name of a certificate's subject: parts as in RFC 4514, but in the order
/// of the certificate ("C=GB,O=Inn,CN=guest"), as GnuTLS names peers.
pub fn peer_name(certificate: &CertificateDer<'_>) -> Result<String> {
    let certificate = x509_cert::Certificate::from_der(certificate.as_ref())
        .map_err(|why| fail!("Unable to read the peer's certificate: {why}"))?;
    let parts: Vec<String> =
        certificate.tbs_certificate().subject().iter_rdn().map(|part| part.to_string()).collect();
    Ok(parts.join(","))
}
