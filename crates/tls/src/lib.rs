//! TLS for whatever listens or connects: x509 credentials from a directory of PEM files,
//! sessions over any stream, and who may come in.
//!
//! A directory holds `ca-cert.pem`, optionally `ca-crl.pem`, and the pair of the endpoint
//! (`server-cert.pem` and `server-key.pem`, or `client-cert.pem` and `client-key.pem`).

#![forbid(unsafe_code)]

mod files;
mod session;

pub use session::{Stream, peer_name};

use base::{Failure, Result, bail, fail};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::path::PathBuf;
use std::sync::Arc;

/// Which side of a session credentials are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Client,
    Server,
}

impl Endpoint {
    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Client => "client",
            Endpoint::Server => "server",
        }
    }
}

/// What x509 credentials are made of.
pub struct X509 {
    pub dir: PathBuf,
    pub endpoint: Endpoint,
    /// Whether the peer must show a certificate that the CA signed.
    pub verify_peer: bool,
    /// Whether the files are checked (time, purpose, signature) when they are loaded.
    pub sanity_check: bool,
}

/// Loaded credentials of one endpoint.
pub struct Credentials(Config);

enum Config {
    Client(Arc<ClientConfig>),
    Server(Arc<ServerConfig>),
}

/// Decides by its name whether a peer may come in.
pub trait Authorise: Send + Sync {
    /// `identity` is the distinguished name of the peer's certificate.
    fn is_allowed(&self, identity: &str) -> bool;
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Credentials {
    /// Reads and checks the files.
    pub fn load(x509: &X509) -> Result<Self> {
        let files = files::read(x509)?;
        if x509.sanity_check {
            files.check(x509.endpoint)?;
        }
        let mut roots = RootCertStore::empty();
        for authority in &files.authorities {
            roots.add(authority.clone()).map_err(|why| {
                fail!("Unable to use the CA certificate {}: {why}", files.authority_path.display())
            })?;
        }
        match x509.endpoint {
            Endpoint::Client => client(x509, files, roots),
            Endpoint::Server => server(x509, files, roots),
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        match self.0 {
            Config::Client(_) => Endpoint::Client,
            Config::Server(_) => Endpoint::Server,
        }
    }

    /// Fails unless the credentials are for `endpoint`.
    pub fn expect(&self, endpoint: Endpoint) -> Result<()> {
        if self.endpoint() != endpoint {
            bail!("Expecting TLS credentials with a {} endpoint", endpoint.as_str());
        }
        Ok(())
    }
}

fn unusable(what: impl std::fmt::Display) -> Failure {
    fail!("Unable to initialise TLS: {what}")
}

fn client(x509: &X509, files: files::Files, roots: RootCertStore) -> Result<Credentials> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = if x509.verify_peer {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = verifier.with_crls(files.revocations).build().map_err(unusable)?;
        builder.with_webpki_verifier(verifier)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
    };
    let config = match files.own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(unusable)?,
        None => builder.with_no_client_auth(),
    };
    Ok(Credentials(Config::Client(Arc::new(config))))
}

fn server(x509: &X509, files: files::Files, roots: RootCertStore) -> Result<Credentials> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = if x509.verify_peer {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        builder.with_client_cert_verifier(verifier.with_crls(files.revocations).build().map_err(unusable)?)
    } else {
        builder.with_no_client_auth()
    };
    let Some((chain, key)) = files.own else { bail!("A server needs a certificate") };
    let config = builder.with_single_cert(chain, key).map_err(unusable)?;
    Ok(Credentials(Config::Server(Arc::new(config))))
}

/// Takes every certificate (`verify-peer=off`); signatures of the handshake still count.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
