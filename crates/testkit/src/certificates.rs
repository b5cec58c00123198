//! Certificates for tests, made by GnuTLS's certtool.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A certificate authority in a folder of its own.
pub struct Authority {
    dir: PathBuf,
}

fn certtool(args: &[&str]) -> Result<(), String> {
    let out = Command::new("certtool").args(args).output().map_err(|e| format!("certtool: {e}"))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("certtool {args:?}: {}", String::from_utf8_lossy(&out.stderr))),
    }
}

fn key(path: &Path) -> Result<(), String> {
    certtool(&["--generate-privkey", "--key-type=rsa", "--bits=2048", "--outfile", text(path)])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

impl Authority {
    /// Makes `dir` with `ca-key.pem` and `ca-cert.pem`.
    pub fn new(dir: &Path) -> Result<Authority, String> {
        std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
        let authority = Authority { dir: dir.to_path_buf() };
        let template =
            authority.template("cn = Test Authority\nca\ncert_signing_key\nexpiration_days = 30\n")?;
        let (own_key, cert) = (dir.join("ca-key.pem"), dir.join("ca-cert.pem"));
        key(&own_key)?;
        certtool(&[
            "--generate-self-signed",
            "--load-privkey",
            text(&own_key),
            "--template",
            text(&template),
            "--outfile",
            text(&cert),
        ])?;
        Ok(authority)
    }

    fn template(&self, content: &str) -> Result<PathBuf, String> {
        let path = self.dir.join("template");
        std::fs::write(&path, content).map_err(|e| e.to_string())?;
        Ok(path)
    }

    /// Makes `to` a directory of server credentials for `localhost` and `127.0.0.1`.
    pub fn server(&self, to: &Path) -> Result<(), String> {
        let names = "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\n";
        self.issue(
            to,
            "server",
            &format!("{names}tls_www_server\nsigning_key\nencryption_key\nexpiration_days = 30\n"),
        )
    }

    /// Makes `to` a directory of credentials of the client "C=GB,O=Ryokan,CN=`name`".
    pub fn client(&self, to: &Path, name: &str) -> Result<(), String> {
        let subject = format!("country = GB\norganization = Ryokan\ncn = {name}\n");
        self.issue(
            to,
            "client",
            &format!("{subject}tls_www_client\nsigning_key\nencryption_key\nexpiration_days = 30\n"),
        )
    }

    /// A certificate of `kind` ("server", "client") from a template of certtool.
    pub fn issue(&self, to: &Path, kind: &str, template: &str) -> Result<(), String> {
        std::fs::create_dir_all(to).map_err(|e| e.to_string())?;
        let template = self.template(template)?;
        let (own_key, cert) = (to.join(format!("{kind}-key.pem")), to.join(format!("{kind}-cert.pem")));
        let (ca_key, ca_cert) = (self.dir.join("ca-key.pem"), self.dir.join("ca-cert.pem"));
        key(&own_key)?;
        certtool(&[
            "--generate-certificate",
            "--load-ca-certificate",
            text(&ca_cert),
            "--load-ca-privkey",
            text(&ca_key),
            "--load-privkey",
            text(&own_key),
            "--template",
            text(&template),
            "--outfile",
            text(&cert),
        ])?;
        std::fs::copy(ca_cert, to.join("ca-cert.pem")).map(drop).map_err(|e| e.to_string())
    }
}
