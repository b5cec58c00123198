use crate::sg::{self, Span};
use block::{Backend, Lent, Request, buffers};
use memory::Dma;
use std::io;

/// Long transfers move in pieces of this many bytes.
const PIECE: u64 = 1 << 20;

/// Why a transfer ended early.
#[derive(Debug)]
pub enum Stopped {
    /// The drive could not read or write.
    Disk,
    /// The memory is not there, or too little of it was given.
    Memory,
}

/// A transfer between a drive and guest memory, piece by piece.
pub struct Mover {
    pub backend: Backend,
    pub dma: Dma,
    pub spans: Vec<Span>,
    /// Byte offset on the disk.
    pub offset: u64,
    pub len: u64,
    /// Guest memory to disk.
    pub write: bool,
    pub fua: bool,
    /// Asked before guest memory is touched: false gives the transfer up without a word.
    pub wanted: Box<dyn Fn() -> bool + Send>,
    /// Called once at the end, on an I/O thread.
    pub finish: Box<dyn FnOnce(Result<(), Stopped>) + Send>,
}

impl Mover {
    pub fn run(self) {
        self.piece(0);
    }

    fn piece(self, done: u64) {
        let len = (self.len - done).min(PIECE) as usize;
        if len == 0 {
            return (self.finish)(Ok(()));
        }
        let offset = self.offset + done;
        let request = if self.write {
            let mut data = buffers::take(len);
            if sg::read(&self.spans, &self.dma, done, &mut data).is_none() {
                // Never on the caller's thread: it may hold its lock.
                let thread = self.backend.thread();
                thread.handle().spawn(async move { (self.finish)(Err(Stopped::Memory)) });
                return;
            }
            Request::Write { offset, data, fua: self.fua }
        } else {
            Request::Read { offset, len }
        };
        let backend = self.backend.clone();
        backend.submit(request, Box::new(move |result| self.piece_done(done, len, result)));
    }

    fn piece_done(self, done: u64, len: usize, result: io::Result<Lent>) {
        if !(self.wanted)() {
            return;
        }
        let data = match result {
            Ok(data) => data,
            Err(_) => return (self.finish)(Err(Stopped::Disk)),
        };
        if !self.write && sg::write(&self.spans, &self.dma, done, &data).is_none() {
            return (self.finish)(Err(Stopped::Memory));
        }
        self.piece(done + len as u64);
    }
}
