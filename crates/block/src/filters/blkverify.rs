//! `blkverify`: an image under test and a raw file that must always have the same content.
//! The first difference is told on stderr and ends the process, as its users expect.

use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};
use serde_json::json;
use std::sync::Arc;

pub static DRIVER: Driver = Driver {
    name: "blkverify",
    kind: Kind::Filter,
    schemes: &["blkverify"],
    open,
    reopens: false,
    ..Driver::DEFAULT
};

struct Verify {
    raw: Child,
    test: Child,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        if let Some(name) = open.options.take_str("filename")? {
            let Some(rest) = name.strip_prefix("blkverify:") else {
                bail!("File name string must start with 'blkverify:'")
            };
            let Some((raw, test)) = rest.split_once(':') else {
                bail!("blkverify requires raw copy and original image path")
            };
            open.options.default_to("x-raw", raw);
            open.options.default_to("x-image", test);
        }
        if let Some(raw) = open.options.take_str("x-raw")? {
            open.options.default_to("raw", json!({"filename": raw}));
        }
        if let Some(test) = open.options.take_str("x-image")? {
            // A table with `file` is looked at to find out its format.
            open.options.default_to("test", json!({"file": {"filename": test}}));
        }
        let raw = open.child("raw", Role::FILTER).await?;
        let test = open.child("test", Role::DATA).await?;
        Ok(Arc::new(Verify { raw, test }) as Arc<dyn Layer>)
    })
}

fn differ(kind: &str, offset: u64, bytes: u64, what: &str) -> ! {
    eprintln!("blkverify: {kind} offset={offset} bytes={bytes} {what}");
    std::process::exit(1)
}

/// Both must have ended alike.
fn agreed(kind: &str, offset: u64, bytes: u64, test: IoResult, raw: IoResult) -> IoResult {
    let code = |result: &IoResult| result.as_ref().map_or_else(|error| -errno_of(error), |()| 0);
    let (one, other) = (code(&test), code(&raw));
    if one != other {
        differ(kind, offset, bytes, &format!("return value mismatch {one} != {other}"));
    }
    test
}

impl Layer for Verify {
    fn size(&self) -> u64 {
        self.test.size()
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut expected = vec![0; buf.len()];
            let bytes = buf.len() as u64;
            let (test, raw) = tokio::join!(self.test.read(offset, buf), self.raw.read(offset, &mut expected));
            agreed("read", offset, bytes, test, raw)?;
            if let Some(at) = buf.iter().zip(&expected).position(|(one, other)| one != other) {
                let at = offset + at as u64;
                differ("read", offset, bytes, &format!("contents mismatch at offset {at}"));
            }
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let (test, raw) =
                tokio::join!(self.test.write(offset, data, flags), self.raw.write(offset, data, flags));
            agreed("write", offset, data.len() as u64, test, raw)
        })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
