//! An NBD client for tests that sends what it is told, when it is told.

use crate::bench::SOON;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;

/// A session with simple replies.
pub struct Client {
    stream: UnixStream,
    /// Of the export, in bytes.
    pub size: u64,
}

impl Client {
    /// Connects to an export (fixed newstyle, NBD_OPT_EXPORT_NAME).
    pub fn new(socket: &Path, export: &str) -> Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.read_exact(&mut [0; 18])?;
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.bytes());
        stream.write_all(&hello)?;
        let (mut size, mut flags) = ([0; 8], [0; 2]);
        stream.read_exact(&mut size)?;
        stream.read_exact(&mut flags)?;
        Ok(Client { stream, size: u64::from_be_bytes(size) })
    }

    /// A request as it goes over the wire.
    pub fn request(command: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) -> Vec<u8> {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        request
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)
    }

    /// Cookie and error of the next reply, without its data; `None` when the server has ended
    /// the connection.
    pub fn reply(&mut self) -> Option<(u64, u32)> {
        let mut head = [0; 16];
        let read = self.stream.read_exact(&mut head).and_then(|()| match head[..4] {
            [0x67, 0x44, 0x66, 0x98] => Ok(()),
            _ => Err(Error::from(ErrorKind::InvalidData)),
        });
        match read {
            Ok(()) => {
                let error = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                Some((head[8..].iter().fold(0, |all, byte| all << 8 | u64::from(*byte)), error))
            }
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                None
            }
            Err(error) => panic!("reading a reply: {error}"),
        }
    }

    /// The data of a reply that was just taken; `None` when the server has ended the connection.
    pub fn data(&mut self, len: u32) -> Option<Vec<u8>> {
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).ok().map(|()| data)
    }
}
