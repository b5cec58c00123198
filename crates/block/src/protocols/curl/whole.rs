//! `tftp`: TFTP sends files from the beginning only and cannot go on after a break, so that a file
//! is fetched in one piece when it is opened, into a temporary file without a name.

use super::transfer::{Client, Source};
use super::{MAX_REQUEST, refuse_writes, take_timeout, take_url};
use crate::driver::{Driver, Kind, Layer, Open};
use crate::types::*;
use base::{Failure, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Libraries may be built without TFTP (the one that crate `curl` brings along is).
static PRESENT: LazyLock<bool> =
    LazyLock::new(|| curl::Version::get().protocols().any(|protocol| protocol == "tftp"));

pub static TFTP: Driver = Driver {
    name: "tftp",
    kind: Kind::Protocol,
    schemes: &["tftp"],
    present: || *PRESENT,
    open,
    ..Driver::DEFAULT
};

/// The largest file, in bytes.
const LIMIT: u64 = 4 << 30;
/// How long nothing need come in before the server is given up, unless `timeout` says otherwise:
/// libcurl repeats itself every five seconds.
const PATIENCE: Duration = Duration::from_secs(15);

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        refuse_writes(open)?;
        let url = take_url(&mut open.options, open.driver.name)?;
        let patience = take_timeout(&mut open.options)?.unwrap_or(PATIENCE);
        let client = Client::start(Source::plain(url.clone()))?;
        let fetched = client.fetch_whole(Spool::new(LIMIT, patience)?).await;
        let (spool, size) = fetched.map_err(|why| why.within("CURL: Error opening file"))?;
        let pool = open.graph.main_thread().handle().clone();
        Ok(Arc::new(Fetched { file: Arc::new(spool.file), size, url, pool }) as Arc<dyn Layer>)
    })
}

/// Where a file is put that comes in, and how much and how long is waited for.
pub(super) struct Spool {
    file: File,
    len: u64,
    limit: u64,
    /// Zero for any time.
    patience: Duration,
    /// When something came in last.
    last: Instant,
}

impl Spool {
    pub fn new(limit: u64, patience: Duration) -> Result<Spool> {
        let dir = std::env::var("TMPDIR").unwrap_or_else(|_| "/var/tmp".into());
        let file = tempfile::tempfile_in(&dir);
        let file =
            file.map_err(|why| Failure::os(format!("Could not open temporary file in '{dir}'"), &why))?;
        Ok(Spool { file, len: 0, limit, patience, last: Instant::now() })
    }

    /// Bytes that have come in.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn take(&mut self, data: &[u8]) -> std::result::Result<(), String> {
        let len = self.len + data.len() as u64;
        if len > self.limit {
            return Err(self.too_large());
        }
        self.file.write_all(data).map_err(|why| format!("Could not write to temporary file: {why}"))?;
        (self.len, self.last) = (len, Instant::now());
        Ok(())
    }

    /// Why a transfer cannot go on of which the server says that it brings so many bytes (zero if
    /// it does not say).
    pub fn objection(&self, announced: f64) -> Option<String> {
        if announced > self.limit as f64 {
            return Some(self.too_large());
        }
        let stands = !self.patience.is_zero() && self.last.elapsed() > self.patience;
        stands.then(|| {
            let (seconds, got) = (self.patience.as_secs(), self.len);
            format!("Timeout was reached: nothing came in for {seconds} s after {got} bytes")
        })
    }

    fn too_large(&self) -> String {
        format!("The file is larger than {} bytes, which is too much to be fetched in one piece", self.limit)
    }
}

struct Fetched {
    file: Arc<File>,
    size: u64,
    url: String,
    pool: tokio::runtime::Handle,
}

impl Layer for Fetched {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits { max_transfer: MAX_REQUEST, ..Limits::default() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut data = crate::buffers::take(buf.len());
            let file = self.file.clone();
            let work = move || file.read_exact_at(&mut data, offset).map(|()| data);
            let data = self.pool.spawn_blocking(work).await.map_err(|_| errno(libc::EIO))??;
            buf.copy_from_slice(&data);
            Ok(())
        })
    }

    fn filename(&self) -> Option<String> {
        Some(self.url.clone())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
