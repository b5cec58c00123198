//! The PEM files of x509 credentials.

use crate::{Endpoint, X509};
use base::{Failure, Result, bail, fail};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::BasicConstraints;

/// A PEM file above this size is refused unread.
const MAX_FILE: u64 = 1 << 20;

pub(crate) struct Files {
    pub authority_path: PathBuf,
    pub authorities: Vec<CertificateDer<'static>>,
    pub revocations: Vec<CertificateRevocationListDer<'static>>,
    own_path: PathBuf,
    /// The endpoint's certificate chain and key.
    pub own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// The content of a file; `None` if there is none.
fn content(path: &Path) -> Result<Option<Vec<u8>>> {
    let unable = |error: &std::io::Error| {
        Failure::os(format!("Unable to access credentials {}", path.display()), error)
    };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unable(&error)),
        Ok(meta) if meta.len() > MAX_FILE => bail!("File {} is too large for credentials", path.display()),
        Ok(_) => {}
    }
    std::fs::read(path).map(Some).map_err(|error| unable(&error))
}

fn need(path: &Path) -> Result<Vec<u8>> {
    let missing = || {
        Failure::os(
            format!("Unable to access credentials {}", path.display()),
            &std::io::Error::from_raw_os_error(2),
        )
    };
    content(path)?.ok_or_else(missing)
}

fn parse<T: PemObject>(path: &Path, pem: &[u8], what: &str) -> Result<Vec<T>> {
    let items: std::result::Result<Vec<T>, _> = T::pem_slice_iter(pem).collect();
    match items {
        Ok(items) if items.is_empty() => bail!("Unable to import {what} {}: no such section", path.display()),
        Ok(items) => Ok(items),
        Err(why) => bail!("Unable to import {what} {}: {why}", path.display()),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let pem = need(path)?;
    if String::from_utf8_lossy(&pem).contains("ENCRYPTED") {
        bail!("The private key {} is encrypted, which is not supported", path.display());
    }
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|why| fail!("Unable to import private key {}: {why}", path.display()))
}

pub(crate) fn read(x509: &X509) -> Result<Files> {
    let authority_path = x509.dir.join("ca-cert.pem");
    let authorities = parse(&authority_path, &need(&authority_path)?, "CA certificate list")?;
    let crl_path = x509.dir.join("ca-crl.pem");
    let revocations = match content(&crl_path)? {
        Some(pem) => parse(&crl_path, &pem, "CRL")?,
        None => Vec::new(),
    };
    let own_path = x509.dir.join(format!("{}-cert.pem", x509.endpoint.as_str()));
    let key_path = x509.dir.join(format!("{}-key.pem", x509.endpoint.as_str()));
    let own = match (x509.endpoint, content(&own_path)?) {
        (Endpoint::Client, None) => None,
        (_, None) => return Err(need(&own_path).err().unwrap_or_else(|| fail!("Credentials are changing"))),
        (_, Some(pem)) => Some((parse(&own_path, &pem, "certificate")?, key(&key_path)?)),
    };
    Ok(Files { authority_path, authorities, revocations, own_path, own })
}

impl Files {
    /// Whether the certificates are in force, for their purpose, and signed by the CA.
    pub fn check(&self, endpoint: Endpoint) -> Result<()> {
        for der in &self.authorities {
            check_time(&self.authority_path, der)?;
            let path = self.authority_path.display();
            let certificate = decode(&self.authority_path, der)?;
            let constraints = certificate.tbs_certificate().get_extension::<BasicConstraints>();
            let constraints = constraints
                .map_err(|why| fail!("Unable to query certificate {path} basic constraints: {why}"))?;
            match constraints {
                Some((_, constraints)) if constraints.ca => {}
                Some(_) => bail!("The certificate {path} basic constraints do not show a CA"),
                None => bail!("The certificate {path} is missing basic constraints for a CA"),
            }
        }
        let Some((chain, _)) = &self.own else { return Ok(()) };
        check_time(&self.own_path, &chain[0])?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.authorities.iter().cloned());
        let roots = Arc::new(roots);
        let algorithms = crate::provider().signature_verification_algorithms;
        let verified = match endpoint {
            Endpoint::Server => rustls::server::ParsedCertificate::try_from(&chain[0]).and_then(|own| {
                let (rest, now) = (&chain[1..], UnixTime::now());
                rustls::client::verify_server_cert_signed_by_trust_anchor(
                    &own,
                    &roots,
                    rest,
                    now,
                    algorithms.all,
                )
            }),
            Endpoint::Client => {
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(roots, crate::provider())
                        .build();
                let verifier = verifier.map_err(crate::unusable)?;
                verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map(drop)
            }
        };
        verified.map_err(|why| {
            let (own, authority) = (self.own_path.display(), self.authority_path.display());
            fail!(
                "Unable to verify {} certificate {own} against CA certificate {authority}: {why}",
                endpoint.as_str()
            )
        })
    }
}

pub(crate) fn decode(path: &Path, der: &CertificateDer<'_>) -> Result<x509_cert::Certificate> {
    x509_cert::Certificate::from_der(der.as_ref())
        .map_err(|why| fail!("Unable to import certificate {}: {why}", path.display()))
}

fn check_time(path: &Path, der: &CertificateDer<'_>) -> Result<()> {
    let certificate = decode(path, der)?;
    let validity = certificate.tbs_certificate().validity();
    let now = std::time::SystemTime::now();
    if validity.not_after.to_system_time() < now {
        bail!("The certificate {} has expired", path.display());
    }
    if validity.not_before.to_system_time() > now {
        bail!("The certificate {} is not yet active", path.display());
    }
    Ok(())
}
