//! A connection to an SSH server, authenticated, with SFTP on it (SFTP version 3,
//! draft-ietf-secsh-filexfer-02; OpenSSH's PROTOCOL for its extensions).

use super::place::{Hash, HostKey, Place};
use crate::types::{IoResult, errno};
use base::{Failure, Result, bail, fail};
use russh::client::{self, AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{self, PublicKeyOrCertificate};
use russh::keys::{HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyBase64};
use russh_sftp::client::{RawSftpSession, error::Error};
use russh_sftp::protocol::{FileAttributes, OpenFlags, StatusCode};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a server may take to the first request, and for each request.
const PATIENCE: Duration = Duration::from_secs(30);
const REQUEST: u64 = 120;
/// A server that says nothing for so long, three times, is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// The longest read or write that every server takes.
pub const PIECE: u32 = 32 << 10;

/// SFTP on an authenticated connection.
pub struct Session {
    pub sftp: RawSftpSession,
    /// The server syncs files when asked to.
    pub syncs: bool,
    ended: watch::Receiver<bool>,
    keeper: tokio::task::JoinHandle<()>,
}

impl Session {
    pub async fn open(place: &Place) -> Result<Session> {
        let opened = tokio::time::timeout(PATIENCE, Session::begin(place)).await;
        opened.unwrap_or_else(|_| bail!("The SSH server at '{}:{}' does not answer", place.host, place.port))
    }

    async fn begin(place: &Place) -> Result<Session> {
        let config =
            client::Config { keepalive_interval: Some(SILENCE), nodelay: true, ..client::Config::default() };
        let checker = Checker { place: place.clone() };
        let address = (place.host.as_str(), place.port);
        let connected = client::connect(Arc::new(config), address, checker).await;
        let mut handle = connected.map_err(|trouble| match trouble {
            Trouble::HostKey(why) => why,
            Trouble::Ssh(russh::Error::IO(error)) => {
                Failure::os(format!("Failed to connect to '{}:{}'", place.host, place.port), &error)
            }
            Trouble::Ssh(error) => fail!("failed to establish SSH session: {error}"),
        })?;
        authenticate(&mut handle, &place.user).await?;
        let broken = |error: russh::Error| fail!("failed to initialize sftp handle: {error}");
        let channel = handle.channel_open_session().await.map_err(broken)?;
        channel.request_subsystem(true, "sftp").await.map_err(broken)?;
        let sftp = RawSftpSession::new(channel.into_stream());
        sftp.set_timeout(REQUEST);
        let version =
            sftp.init().await.map_err(|error| fail!("failed to initialize sftp handle: {error}"))?;
        let syncs = version.extensions.contains_key("fsync@openssh.com");
        let (tell, ended) = watch::channel(false);
        let keeper = tokio::spawn(async move {
            let _ = handle.await;
            let _ = tell.send(true);
        });
        Ok(Session { sftp, syncs, ended, keeper })
    }

    /// Waits for the answer to a request, or for the end of the connection.
    pub async fn answer<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut ended = self.ended.clone();
        tokio::select! {
            answer = request => answer,
            _ = ended.wait_for(|&ended| ended) => Err(Error::UnexpectedBehavior("connection lost".into())),
        }
    }

    /// Opens the file; the customary failure names it.
    pub async fn open_file(&self, path: &str, flags: OpenFlags) -> Result<String> {
        let attributes = match flags.contains(OpenFlags::CREATE) {
            true => FileAttributes { permissions: Some(0o644), ..FileAttributes::empty() },
            false => FileAttributes::empty(),
        };
        let opened = self.answer(self.sftp.open(path, flags, attributes)).await;
        opened
            .map(|opened| opened.handle)
            .map_err(|error| fail!("failed to open remote file '{path}': {error}"))
    }

    pub async fn size(&self, handle: &str) -> Result<u64> {
        let read = self.answer(self.sftp.fstat(handle)).await;
        let read = read.map_err(|error| fail!("failed to read file attributes: {error}"))?;
        read.attrs
            .size
            .ok_or_else(|| fail!("failed to read file attributes: the server does not tell the size"))
    }

    pub async fn resize(&self, handle: &str, size: u64) -> Result<()> {
        let attributes = FileAttributes { size: Some(size), ..FileAttributes::empty() };
        let done = self.answer(self.sftp.fsetstat(handle, attributes)).await;
        done.map(drop).map_err(|error| fail!("Failed to resize the remote file: {error}"))
    }

    pub fn end(&self) {
        let _ = self.sftp.close_session();
        self.keeper.abort();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// The error number for a request that failed.
pub fn number<T>(answer: Result<T, Error>) -> IoResult<T> {
    answer.map_err(|error| match error {
        Error::Status(status) => match status.status_code {
            StatusCode::NoSuchFile => errno(libc::ENOENT),
            StatusCode::PermissionDenied => errno(libc::EACCES),
            StatusCode::OpUnsupported => errno(libc::ENOTSUP),
            _ => errno(libc::EIO),
        },
        _ => errno(libc::EIO),
    })
}

/// No identity at all; then those of the agent; then keys without a passphrase.
async fn authenticate(handle: &mut Handle<Checker>, user: &str) -> Result<()> {
    let broken = |error: russh::Error| fail!("failed to authenticate: {error}");
    if handle.authenticate_none(user).await.map_err(broken)?.success() {
        return Ok(());
    }
    let rsa = handle.best_supported_rsa_hash().await.map_err(broken)?.flatten();
    if let Ok(mut agent) = AgentClient::connect_env().await {
        for identity in agent.request_identities().await.unwrap_or_default() {
            let AgentIdentity::PublicKey { key, .. } = identity else { continue };
            let hash = rsa_hash(&key, rsa);
            let tried = handle.authenticate_publickey_with(user, key, hash, &mut agent).await;
            if tried.is_ok_and(|result| result.success()) {
                return Ok(());
            }
        }
    }
    let folder = std::env::home_dir().map(|home| home.join(".ssh")).unwrap_or_default();
    for name in ["id_ed25519", "id_ecdsa", "id_rsa"] {
        let Ok(key) = keys::load_secret_key(folder.join(name), None) else { continue };
        let hash = rsa_hash(key.public_key(), rsa);
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        if let AuthResult::Success = handle.authenticate_publickey(user, key).await.map_err(broken)? {
            return Ok(());
        }
    }
    bail!(
        "failed to authenticate using publickey authentication and the identities held by your ssh-agent; \
         add a key that '{user}' may log in with (ssh-add)"
    )
}

fn rsa_hash(key: &PublicKey, rsa: Option<HashAlg>) -> Option<HashAlg> {
    key.algorithm().is_rsa().then_some(rsa).flatten()
}

/// Looks at the server's key.
struct Checker {
    place: Place,
}

#[derive(Debug)]
enum Trouble {
    HostKey(Failure),
    Ssh(russh::Error),
}

impl From<russh::Error> for Trouble {
    fn from(error: russh::Error) -> Trouble {
        Trouble::Ssh(error)
    }
}

impl client::Handler for Checker {
    type Error = Trouble;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Trouble> {
        let key = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.clone(),
            PublicKeyOrCertificate::Certificate(certificate) => {
                PublicKey::new(certificate.public_key().clone(), "")
            }
        };
        check(&self.place, &key).map(|()| true).map_err(Trouble::HostKey)
    }
}

fn check(place: &Place, key: &PublicKey) -> Result<()> {
    match &place.host_key {
        HostKey::Unchecked => Ok(()),
        HostKey::Known => match keys::check_known_hosts(&place.host, place.port, key) {
            Ok(true) => Ok(()),
            Ok(false) => bail!(
                "no host key was found in known_hosts for '{}' (port {}); log in once with ssh, or give host-key-check",
                place.host,
                place.port
            ),
            Err(keys::Error::KeyChanged { line }) => bail!(
                "host key does not match the one in known_hosts (line {line}); this may be a possible attack"
            ),
            Err(error) => bail!("error while checking for known server: {error}"),
        },
        HostKey::Fingerprint(hash, wanted) => {
            let found = digest(*hash, &key.public_key_bytes());
            if found == *wanted {
                return Ok(());
            }
            let name = hash.name();
            bail!(
                "remote host key fingerprint '{name}:{found}' does not match host_key_check '{name}:{wanted}'"
            )
        }
    }
}

fn digest(hash: Hash, bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    match hash {
        Hash::Md5 => hex(&*md5::compute(bytes)),
        Hash::Sha1 => hex(&sha1::Sha1::digest(bytes)),
        Hash::Sha256 => hex(&sha2::Sha256::digest(bytes)),
    }
}
