use super::*;
use std::path::Path;
use testkit::certificates::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn x509(dir: &Path, endpoint: Endpoint) -> X509 {
    X509 { dir: dir.to_path_buf(), endpoint, verify_peer: true, sanity_check: true }
}

struct Only(&'static str);

impl Authorise for Only {
    fn is_allowed(&self, identity: &str) -> bool {
        identity == self.0
    }
}

/// Both sides of a handshake and an echo; what each said.
async fn meet(
    client: Credentials,
    server: Credentials,
    host: &str,
    only: Option<Only>,
) -> (Result<Vec<u8>>, Result<()>) {
    let (near, far) = tokio::io::duplex(4096);
    let serving = async {
        let only = only.as_ref().map(|only| only as &dyn Authorise);
        let mut stream = server.accept(far, only).await?;
        let mut data = [0; 5];
        stream.read_exact(&mut data).await.map_err(|e| fail!("{e}"))?;
        stream.write_all(&data).await.map_err(|e| fail!("{e}"))?;
        stream.flush().await.map_err(|e| fail!("{e}"))
    };
    let asking = async {
        let mut stream = client.connect(near, host).await?;
        stream.write_all(b"hello").await.map_err(|e| fail!("{e}"))?;
        let mut data = vec![0; 5];
        stream.read_exact(&mut data).await.map_err(|e| fail!("{e}"))?;
        Ok(data)
    };
    tokio::join!(asking, serving)
}

#[tokio::test]
async fn both_sides_check_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let (server_dir, client_dir, stranger) = (ours.join("s"), ours.join("c"), theirs.join("c"));
    let authority = Authority::new(&ours).unwrap();
    authority.server(&server_dir).unwrap();
    authority.client(&client_dir, "guest").unwrap();
    Authority::new(&theirs).unwrap().client(&stranger, "guest").unwrap();
    let load = |dir: &Path, endpoint| Credentials::load(&x509(dir, endpoint)).unwrap();
    let server = || load(&server_dir, Endpoint::Server);
    let client = || load(&client_dir, Endpoint::Client);
    const NAME: &str = "C=GB,O=Ryokan,CN=guest";

    let (said, served) = meet(client(), server(), "localhost", Some(Only(NAME))).await;
    assert_eq!(said.unwrap(), b"hello");
    served.unwrap();
    assert!(meet(client(), server(), "127.0.0.1", None).await.0.is_ok());
    // Another name, another authority on either side, nobody, somebody else.
    assert!(meet(client(), server(), "example.com", None).await.0.is_err());
    let mixed = dir.path().join("mixed");
    std::fs::create_dir(&mixed).unwrap();
    std::fs::copy(ours.join("ca-cert.pem"), mixed.join("ca-cert.pem")).unwrap();
    assert!(meet(load(&mixed, Endpoint::Client), server(), "localhost", None).await.1.is_err());
    for file in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(stranger.join(file), mixed.join(file)).unwrap();
    }
    let unchecked = X509 { sanity_check: false, ..x509(&mixed, Endpoint::Client) };
    assert!(meet(Credentials::load(&unchecked).unwrap(), server(), "localhost", None).await.1.is_err());
    let refused = meet(load(&stranger, Endpoint::Client), server(), "localhost", None).await;
    assert!(refused.0.is_err() && refused.1.is_err());
    let (_, denied) = meet(client(), server(), "localhost", Some(Only("CN=other"))).await;
    assert_eq!(denied.unwrap_err().to_string(), format!("TLS x509 authz check for {NAME} is denied"));
    // Who does not want to know, does not.
    let careless = |x509: X509| Credentials::load(&X509 { verify_peer: false, ..x509 }).unwrap();
    let open = careless(x509(&server_dir, Endpoint::Server));
    assert!(meet(load(&client_dir, Endpoint::Client), open, "localhost", None).await.0.is_ok());
    let blind = careless(x509(&client_dir, Endpoint::Client));
    assert!(meet(blind, server(), "example.com", None).await.0.is_ok());
    // Each side has its own credentials.
    let swapped = meet(server(), client(), "localhost", None).await;
    assert_eq!(swapped.0.unwrap_err().to_string(), "Expecting TLS credentials with a client endpoint");
}

#[test]
fn wrong_files_are_named_when_they_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let said = |dir: &Path, endpoint| match Credentials::load(&x509(dir, endpoint)) {
        Ok(_) => String::new(),
        Err(why) => why.to_string(),
    };
    assert!(said(&ca, Endpoint::Server).contains("ca-cert.pem: No such file"));
    let authority = Authority::new(&ca).unwrap();
    assert!(said(&ca, Endpoint::Server).contains("server-cert.pem: No such file"));
    assert_eq!(said(&ca, Endpoint::Client), "");
    let at = dir.path().join("expired");
    let template = |more: &str| format!("cn = localhost\ndns_name = localhost\nsigning_key\n{more}\n");
    let old = "tls_www_server\nactivation_date=2020-01-01 00:00:00\nexpiration_date=2021-01-01 00:00:00";
    authority.issue(&at, "server", &template(old)).unwrap();
    assert!(said(&at, Endpoint::Server).contains("server-cert.pem has expired"));
    assert_eq!(
        Credentials::load(&X509 { sanity_check: false, ..x509(&at, Endpoint::Server) })
            .err()
            .map(|e| e.to_string()),
        None
    );
    let at = dir.path().join("early");
    authority.issue(&at, "server", &template("tls_www_server\nactivation_date=2090-01-01 00:00:00")).unwrap();
    assert!(said(&at, Endpoint::Server).contains("is not yet active"));
    let at = dir.path().join("purpose");
    authority.issue(&at, "server", &template("tls_www_client\nexpiration_days=3")).unwrap();
    assert!(said(&at, Endpoint::Server).contains("Unable to verify server certificate"));
    std::fs::copy(at.join("server-cert.pem"), at.join("ca-cert.pem")).unwrap();
    assert!(said(&at, Endpoint::Server).contains("basic constraints"));
    for junk in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "junk"] {
        std::fs::write(at.join("ca-cert.pem"), junk).unwrap();
        assert!(said(&at, Endpoint::Server).contains("ca-cert.pem"), "{junk}");
    }
}
