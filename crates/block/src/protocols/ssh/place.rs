//! What options and URIs say of a remote file.

use crate::options::Options;
use crate::protocols::percent_decode;
use base::{Result, bail, fail};

/// How the server's host key is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKey {
    /// Any key will do.
    Unchecked,
    /// By the user's `~/.ssh/known_hosts`.
    Known,
    /// By its fingerprint: the hash's name, and hexadecimal digits.
    Fingerprint(Hash, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Md5,
    Sha1,
    Sha256,
}

impl Hash {
    fn of(name: &str) -> Option<Hash> {
        [Hash::Md5, Hash::Sha1, Hash::Sha256].into_iter().find(|hash| hash.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Hash::Md5 => "md5",
            Hash::Sha1 => "sha1",
            Hash::Sha256 => "sha256",
        }
    }
}

/// A file on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub path: String,
    pub host_key: HostKey,
}

const PORT: &str = "22";

impl Place {
    /// Takes `filename` (a URI) or `server`, `path`, `user` and `host-key-check`.
    pub fn take(options: &mut Options) -> Result<Place> {
        if let Some(uri) = options.take_str("filename")? {
            for key in ["server", "host", "path", "user"] {
                if options.contains(key) {
                    bail!("'{key}' cannot be used with a file name");
                }
            }
            parse_uri(&uri, options)?;
        }
        let (host, port) = take_server(options)?;
        let path = options.need_str("path")?;
        let user = match options.take_str("user")? {
            Some(user) => user,
            None => login_name()?,
        };
        let host_key = take_host_key(options)?;
        Ok(Place { host, port, user, path, host_key })
    }

    /// The URI that opens the same file.
    pub fn uri(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let check = match &self.host_key {
            HostKey::Known => String::new(),
            HostKey::Unchecked => "?host_key_check=no".into(),
            HostKey::Fingerprint(hash, digits) => format!("?host_key_check={}:{digits}", hash.name()),
        };
        format!("ssh://{}@{host}:{}{}{check}", self.user, self.port, self.path)
    }
}

/// Puts the parts of `ssh://[user@]host[:port]/path[?host_key_check=...]` into options.
fn parse_uri(uri: &str, options: &mut Options) -> Result<()> {
    let rest = uri.strip_prefix("ssh://").ok_or_else(|| fail!("URI scheme must be 'ssh'"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let slash = rest.find('/').ok_or_else(|| fail!("missing remote path in URI"))?;
    let (authority, path) = rest.split_at(slash);
    let (user, server) = match authority.rsplit_once('@') {
        Some((user, server)) => (Some(user), server),
        None => (None, authority),
    };
    let (host, port) =
        match server.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']')) {
            Some((host, port)) => (host, port),
            None => (server, PORT),
        };
    if host.is_empty() {
        bail!("missing hostname in URI");
    }
    if path == "/" {
        bail!("missing remote path in URI");
    }
    if let Some(user) = user.filter(|user| !user.is_empty()) {
        options.set("user", percent_decode(user));
    }
    options.set("host", host.trim_matches(['[', ']']));
    options.set("port", port);
    options.set("path", percent_decode(path));
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("host_key_check", value)) => options.set("host_key_check", percent_decode(value)),
            _ => bail!("unknown part '{part}' of the URI's query"),
        }
    }
    Ok(())
}

fn take_server(options: &mut Options) -> Result<(String, u16)> {
    let mut server = match options.take_table("server")? {
        Some(server) => server,
        None => {
            let mut server = Options::new();
            for key in ["host", "port"] {
                if let Some(value) = options.take(key) {
                    server.set(key, value);
                }
            }
            server
        }
    };
    let Some(host) = server.take_str("host")? else { bail!("No hostname was specified") };
    let port = server.take_str("port")?.unwrap_or_else(|| PORT.into());
    let number = port.parse().map_err(|_| fail!("Use only numeric port value, not '{port}'"))?;
    server.finish_in("server")?;
    Ok((host, number))
}

fn take_host_key(options: &mut Options) -> Result<HostKey> {
    let old = options.take_str("host_key_check")?;
    let Some(mut check) = options.take_table("host-key-check")? else {
        return match old.as_deref() {
            None | Some("yes") => Ok(HostKey::Known),
            Some("no") => Ok(HostKey::Unchecked),
            Some(text) => {
                match text.split_once(':').and_then(|(name, digits)| Some((Hash::of(name)?, digits))) {
                    Some((hash, digits)) => fingerprint(hash, digits),
                    None => bail!("unknown host_key_check setting ({text})"),
                }
            }
        };
    };
    if old.is_some() {
        bail!("host_key_check and host-key-check cannot be used at the same time");
    }
    let mode = check.need_str("mode")?;
    let host_key = match mode.as_str() {
        "none" => HostKey::Unchecked,
        "known_hosts" => HostKey::Known,
        "hash" => {
            let name = check.need_str("type")?;
            let hash = Hash::of(&name);
            let hash = hash.ok_or_else(|| fail!("Parameter 'type' does not accept value '{name}'"))?;
            fingerprint(hash, &check.need_str("hash")?)?
        }
        _ => bail!("Parameter 'mode' does not accept value '{mode}'"),
    };
    check.finish_in("host-key-check")?;
    Ok(host_key)
}

fn fingerprint(hash: Hash, digits: &str) -> Result<HostKey> {
    let plain: String = digits.chars().filter(|&c| c != ':').map(|c| c.to_ascii_lowercase()).collect();
    let len = match hash {
        Hash::Md5 => 32,
        Hash::Sha1 => 40,
        Hash::Sha256 => 64,
    };
    if plain.len() != len || !plain.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("a fingerprint by {} has {len} hexadecimal digits, unlike '{digits}'", hash.name());
    }
    Ok(HostKey::Fingerprint(hash, plain))
}

fn login_name() -> Result<String> {
    let name = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        return Ok(name);
    }
    let id = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = users.lines().find(|line| line.split(':').nth(2) == Some(&id));
    let name = line.and_then(|line| line.split(':').next()).map(str::to_string);
    name.ok_or_else(|| fail!("Can't get user name"))
}
