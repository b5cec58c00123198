//! `null-co` and `null-aio`: swallow writes, read zeroes (or nothing).

use crate::driver::{Driver, Kind, Layer, Open};
use crate::types::*;
use base::Result;
use std::sync::Arc;
use std::time::Duration;

pub static NULL_CO: Driver = Driver { name: "null-co", schemes: &["null-co"], ..NULL };

pub static NULL_AIO: Driver = Driver { name: "null-aio", schemes: &["null-aio"], ..NULL };

const NULL: Driver =
    Driver { kind: Kind::Protocol, open, telling: &["size", "read-zeroes"], ..Driver::DEFAULT };

struct Null {
    size: u64,
    latency: Duration,
    read_zeroes: bool,
    filename: String,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        open.options.take_str("filename")?;
        let size = open.options.take_u64("size")?.unwrap_or(1 << 30);
        let latency = open.options.take_u64("latency-ns")?.unwrap_or(0);
        let read_zeroes = open.options.take_bool("read-zeroes")?.unwrap_or(false);
        let layer = Null {
            size,
            latency: Duration::from_nanos(latency),
            read_zeroes,
            filename: format!("{}://", open.driver.name),
        };
        Ok(Arc::new(layer) as Arc<dyn Layer>)
    })
}

impl Null {
    async fn pause(&self) -> IoResult {
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        Ok(())
    }
}

impl Layer for Null {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits { fua: true, ..Limits::default() }
    }

    fn read<'a>(&'a self, _offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            // Also where the content is not promised: what is in the buffer is somebody else's.
            buf.fill(0);
            self.pause().await
        })
    }

    fn write<'a>(&'a self, _offset: u64, _data: &'a [u8], _flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(self.pause())
    }

    fn write_zeroes<'a>(&'a self, _offset: u64, _len: u64, _flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(self.pause())
    }

    fn discard<'a>(&'a self, _offset: u64, _len: u64) -> Fut<'a, IoResult> {
        Box::pin(self.pause())
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(self.pause())
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        let mut flags = StatusFlags::ALLOCATED;
        flags |= if self.read_zeroes { StatusFlags::ZERO } else { StatusFlags::DATA };
        Box::pin(async move { Ok(Status { flags, len, offset: Some(offset) }) })
    }

    fn allocated_size(&self) -> Fut<'_, Option<u64>> {
        Box::pin(async { Some(0) })
    }

    fn filename(&self) -> Option<String> {
        Some(self.filename.clone())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
