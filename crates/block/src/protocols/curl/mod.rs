//! `http`, `https`, `ftp`, `ftps` and `tftp`: read-only disks of web and file servers, by libcurl.

mod cache;
mod transfer;
mod whole;

use crate::driver::{Driver, Kind, Layer, Open};
use crate::options::Options;
use crate::types::*;
use base::{Failure, Result, bail, fail};
use cache::Cache;
use std::sync::Arc;
use std::time::Duration;
pub use transfer::POINTS;
use transfer::{Client, Source};
pub use whole::TFTP;

pub static HTTP: Driver =
    Driver { name: "http", kind: Kind::Protocol, schemes: &["http"], open, ..Driver::DEFAULT };

pub static HTTPS: Driver =
    Driver { name: "https", kind: Kind::Protocol, schemes: &["https"], open, ..Driver::DEFAULT };

pub static FTP: Driver =
    Driver { name: "ftp", kind: Kind::Protocol, schemes: &["ftp"], open, ..Driver::DEFAULT };

pub static FTPS: Driver =
    Driver { name: "ftps", kind: Kind::Protocol, schemes: &["ftps"], open, ..Driver::DEFAULT };

/// Bytes read beyond a request unless `readahead` says otherwise.
const READAHEAD: u64 = 256 << 10;
/// What is read ahead is kept in memory.
const MAX_READAHEAD: u64 = 64 << 20;
/// How long a transfer may take unless `timeout` says otherwise, and at most (in seconds).
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_TIMEOUT: u64 = 10_000;
/// The longest request, in bytes.
const MAX_REQUEST: u32 = 1 << 20;

struct Remote {
    size: u64,
    /// The URL, if it is all that is needed to open the file again.
    plain_name: Option<String>,
    cache: Cache,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        refuse_writes(open)?;
        let readahead = open.options.take_u64("readahead")?.unwrap_or(READAHEAD);
        if !readahead.is_multiple_of(512) {
            bail!("HTTP/FTP readahead size {readahead} is not a multiple of 512");
        }
        if readahead > MAX_READAHEAD {
            bail!("Parameter 'readahead' expects at most {MAX_READAHEAD} bytes");
        }
        let secret = |id: &str| open.graph.vault().secret(id);
        let (source, plain) = take_source(&mut open.options, open.driver.name, &secret)?;
        let url = source.url.clone();
        let client = Client::start(source)?;
        let size = client.size().await.map_err(|why| why.within("CURL: Error opening file"))?;
        let plain_name = plain.then_some(url);
        Ok(Arc::new(Remote { size, plain_name, cache: Cache::new(client, size, readahead) })
            as Arc<dyn Layer>)
    })
}

fn take_url(options: &mut Options, driver: &str) -> Result<String> {
    let url = match (options.take_str("url")?, options.take_str("filename")?) {
        (Some(_), Some(_)) => bail!("Can't specify 'url' and 'filename' options at the same time"),
        (None, None) => bail!("curl block driver requires an 'url' option"),
        (Some(url), None) | (None, Some(url)) => url,
    };
    if !url.strip_prefix(driver).is_some_and(|rest| rest.starts_with("://")) {
        bail!("{driver} curl driver cannot handle the URL '{url}' (does not start with '{driver}://')");
    }
    Ok(url)
}

fn take_timeout(options: &mut Options) -> Result<Option<Duration>> {
    let timeout = options.take_u64("timeout")?;
    if timeout.is_some_and(|seconds| seconds > MAX_TIMEOUT) {
        bail!("timeout parameter is too large or negative");
    }
    Ok(timeout.map(Duration::from_secs))
}

fn refuse_writes(open: &mut Open) -> Result<()> {
    open.read_only().map_err(|_| fail!("curl driver does not support writes"))
}

/// What the options say of the file; and whether its URL says it all.
fn take_source(
    options: &mut Options,
    driver: &str,
    secret: &dyn Fn(&str) -> Result<Vec<u8>>,
) -> Result<(Source, bool)> {
    let url = take_url(options, driver)?;
    let timeout = take_timeout(options)?.unwrap_or(TIMEOUT);
    let mut take_secret = |key: &str| match options.take_str(key)? {
        None => Ok(None),
        Some(id) => match String::from_utf8(secret(&id)?) {
            Ok(text) if !text.contains('\0') => Ok(Some(text)),
            _ => Err(fail!("Data from secret {id} is not text")),
        },
    };
    let password = take_secret("password-secret")?;
    let proxy_password = take_secret("proxy-password-secret")?;
    let secret_cookie = take_secret("cookie-secret")?;
    let verify = options.take_bool("sslverify")?.unwrap_or(true);
    let cookie = match (options.take_str("cookie")?, secret_cookie) {
        (Some(_), Some(_)) => bail!("curl driver cannot handle both cookie and cookie secret"),
        (plain, secret) => plain.or(secret),
    };
    let source = Source {
        url,
        timeout,
        username: options.take_str("username")?,
        password,
        proxy_username: options.take_str("proxy-username")?,
        proxy_password,
        cookie,
        verify,
    };
    let words = [&source.username, &source.password, &source.proxy_username, &source.proxy_password];
    let plain = verify && source.cookie.is_none() && words.iter().all(|word| word.is_none());
    Ok((source, plain))
}

impl Layer for Remote {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits { max_transfer: MAX_REQUEST, ..Limits::default() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(self.cache.read(offset, buf))
    }

    fn filename(&self) -> Option<String> {
        self.plain_name.clone()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn unusable(what: impl std::fmt::Display) -> Failure {
    fail!("CURL: Error opening file: {what}")
}

#[cfg(test)]
mod tests;
