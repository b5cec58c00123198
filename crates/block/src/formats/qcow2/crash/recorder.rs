//! The recorder: a filter that keeps a log of what is written below it. Several share a log.

use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::Child;
use crate::types::*;
use base::{Mutex, Result, fail};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

pub(crate) static RECORDER: Driver =
    Driver { name: "test-recorder", kind: Kind::Filter, open, ..Driver::DEFAULT };

#[derive(Clone)]
pub enum Op {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Size(u64),
    Flush,
}

/// What was done, to which of the files, in order.
pub type Log = Arc<Mutex<Vec<(usize, Op)>>>;

/// The logs by the names that options give.
pub static LOGS: LazyLock<Mutex<HashMap<String, Log>>> = LazyLock::new(Mutex::default);

struct Recorder {
    file: Child,
    index: usize,
    log: Log,
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let name = open.options.need_str("log")?;
        let index = open.options.take_u64("index")?.unwrap_or(0) as usize;
        let log = LOGS.lock().get(&name).cloned().ok_or_else(|| fail!("no log '{name}'"))?;
        let file = open.child("file", Role::FILTER).await?;
        Ok(Arc::new(Recorder { file, index, log }) as Arc<dyn Layer>)
    })
}

impl Recorder {
    fn note(&self, op: Op) {
        self.log.lock().push((self.index, op));
    }
}

impl Layer for Recorder {
    fn size(&self) -> u64 {
        self.file.size()
    }
    fn grows(&self) -> bool {
        true
    }
    fn filename(&self) -> Option<String> {
        self.file.node().layer().filename()
    }
    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        self.file.read(offset, buf)
    }
    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        self.note(Op::Write(offset, data.to_vec()));
        self.file.write(offset, data, flags)
    }
    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        self.note(Op::Zero(offset, len));
        self.file.write_zeroes(offset, len, flags)
    }
    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        self.note(Op::Zero(offset, len));
        self.file.discard(offset, len)
    }
    fn flush(&self) -> Fut<'_, IoResult> {
        self.note(Op::Flush);
        Box::pin(async { Ok(()) })
    }
    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        self.note(Op::Size(size));
        self.file.truncate(size, how)
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Does an operation to the content of a file.
pub fn apply(image: &mut Vec<u8>, op: &Op) {
    let mut range = |offset: u64, len: usize| {
        let end = offset as usize + len;
        if image.len() < end {
            image.resize(end, 0);
        }
        offset as usize..end
    };
    match op {
        Op::Write(offset, data) => {
            let range = range(*offset, data.len());
            image[range].copy_from_slice(data);
        }
        Op::Zero(offset, len) => {
            let range = range(*offset, *len as usize);
            image[range].fill(0);
        }
        Op::Size(size) => image.resize(*size as usize, 0),
        Op::Flush => {}
    }
}
