//! Images from enemies: every format opened, read and asked over a file in memory.
//!
//! Compiled for tests and for `cargo fuzz` only.

use crate::driver::{Driver, Fix, Kind, Layer, Open};
use crate::graph::{Graph, Settings};
use crate::options::Options;
use crate::types::*;
use base::clock::Clock;
use base::notice::Notices;
use base::{Mutex, Result, bail};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// A file in memory, by the number under which it was put into [`FILES`].
pub(crate) static MEMORY: Driver =
    Driver { name: "test-memory", kind: Kind::Protocol, open, ..Driver::DEFAULT };

pub(super) type Bytes = Arc<Mutex<Vec<u8>>>;

pub(super) static FILES: Mutex<BTreeMap<u64, Bytes>> = Mutex::new(BTreeMap::new());

/// No file in memory gets longer.
const MOST: u64 = 64 << 20;

struct Memory(Bytes);

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let id = open.options.need_u64("id")?;
        let Some(file) = FILES.lock().get(&id).cloned() else { bail!("No such file") };
        Ok(Arc::new(Memory(file)) as Arc<dyn Layer>)
    })
}

impl Memory {
    fn put(&self, offset: u64, len: u64, data: Option<&[u8]>) -> IoResult {
        let end = offset.checked_add(len).filter(|end| *end <= MOST).ok_or_else(|| errno(libc::ENOSPC))?;
        let mut file = self.0.lock();
        if file.len() < end as usize {
            file.resize(end as usize, 0);
        }
        let range = &mut file[offset as usize..end as usize];
        match data {
            Some(data) => range.copy_from_slice(data),
            None => range.fill(0),
        }
        Ok(())
    }
}

impl Layer for Memory {
    fn size(&self) -> u64 {
        self.0.lock().len() as u64
    }

    fn grows(&self) -> bool {
        true
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let file = self.0.lock();
            let part = file.get(offset as usize..offset as usize + buf.len());
            buf.copy_from_slice(part.ok_or_else(|| errno(libc::EIO))?);
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], _flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move { self.put(offset, data.len() as u64, Some(data)) })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, _flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move { self.put(offset, len, None) })
    }

    fn truncate<'a>(&'a self, size: u64, _how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            if size > MOST {
                bail!("No space left on device");
            }
            self.0.lock().resize(size as usize, 0);
            Ok(())
        })
    }

    fn filename(&self) -> Option<String> {
        Some("memory.dmg".to_string())
    }

    fn zero_initialised(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// The formats that are tried, by the first byte of a fuzzer's input.
pub const FORMATS: &[&str] =
    &["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels", "bochs", "cloop", "dmg"];

/// Opens file `id` as `format`, reads and asks here and there, and writes if wanted. What
/// goes wrong must be an error. Returns whether the image could be opened.
pub(super) async fn exercise(graph: &Arc<Graph>, format: &str, id: u64, write: bool) -> bool {
    let driver = super::find(format).expect("a known format");
    let write = write && !driver.read_only;
    let mut options =
        json!({"driver": format, "read-only": !write, "file": {"driver": "test-memory", "id": id}});
    if driver.backing {
        options["backing"] = serde_json::Value::Null;
    }
    let Ok(pin) = graph.open(Options::json(options), Settings::default()).await else { return false };
    let size = pin.size();
    let mut data = vec![0; 256 << 10];
    for at in [0, size / 2, size.saturating_sub(data.len() as u64)] {
        let len = data.len().min((size - at) as usize);
        // Errors are for the reader; the next range may be sound.
        let _ = pin.read(at, &mut data[..len]).await;
        let mut next = at;
        for _ in 0..32 {
            match pin.block_status(next, size.saturating_sub(next).max(1)).await {
                Ok(status) if next + status.len < size => next += status.len,
                _ => break,
            }
        }
    }
    if write {
        for at in [0, size / 3, size.saturating_sub(700)] {
            let len = 700.min(size - at) as usize;
            let _ = pin.write(at, &data[..len], WriteFlags::empty()).await;
            let _ = pin.write_zeroes(at, len as u64, ZeroFlags::MAY_UNMAP).await;
        }
        let _ = pin.flush().await;
    }
    let _ = pin.layer().check(Fix::Nothing).await;
    drop(pin);
    graph.collect().await;
    true
}

static GRAPH: LazyLock<Arc<Graph>> = LazyLock::new(|| {
    let clock = Clock::new(base::clock::Kind::Realtime);
    Graph::new(Notices::new(), clock, base::fd::FdSets::new())
});

/// One input of a fuzzer: the format by the first byte, then the image.
pub fn fuzz_entry(input: &[u8]) {
    let Some((first, image)) = input.split_first() else { return };
    let format = FORMATS[usize::from(*first & 0x7f) % FORMATS.len()];
    // A descriptor names other files, which must not be written.
    let write = *first & 0x80 != 0 && format != "vmdk";
    FILES.lock().insert(0, Arc::new(Mutex::new(image.to_vec())));
    let graph = GRAPH.clone();
    GRAPH.block_on(async move { exercise(&graph, format, 0, write).await });
}

#[cfg(test)]
mod tests;
