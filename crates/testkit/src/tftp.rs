//! A TFTP server for tests: one file, served as well or as badly as its name says.

use std::io::{Error, ErrorKind, Result};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// Operations: RFC 1350, and RFC 2347 for the last.
const READ: u16 = 1;
const DATA: u16 = 3;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;
/// Bytes of a block.
const BLOCK: usize = 512;

/// Names: `good`, `simple` (knows no options: does not say how long the file is); and the bad ones:
/// `denied`, `dies` (half of the file, then nothing), `gives-up` (half, then an error), `liar`
/// (promises a byte more), `huge` (promises 2^40 bytes), `mute` (no answer at all). There are no
/// others.
pub struct Tftp {
    port: u16,
}

impl Tftp {
    pub fn new(content: Vec<u8>) -> Result<Tftp> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let port = socket.local_addr()?.port();
        let content = Arc::new(content);
        std::thread::spawn(move || {
            let mut packet = [0; 1024];
            while let Ok((len, client)) = socket.recv_from(&mut packet) {
                let (request, content) = (packet[..len].to_vec(), content.clone());
                std::thread::spawn(move || {
                    // A client may leave at any time.
                    let _ = serve(&request, client, &content);
                });
            }
        });
        Ok(Tftp { port })
    }

    pub fn url(&self, name: &str) -> String {
        format!("tftp://127.0.0.1:{}/{name}", self.port)
    }
}

/// Answers a request from a port of its own.
fn serve(request: &[u8], client: SocketAddr, content: &[u8]) -> Result<()> {
    let (READ, rest) = head(request)? else { return Ok(()) };
    let words: Vec<&[u8]> = rest.split(|byte| *byte == 0).collect();
    let name = std::str::from_utf8(words[0]).map_err(|_| Error::from(ErrorKind::InvalidData))?;
    let asks_size = words.iter().any(|word| word.eq_ignore_ascii_case(b"tsize"));
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(client)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let size = match name {
        "simple" => None,
        "good" | "dies" | "gives-up" => Some(content.len() as u64),
        "liar" => Some(content.len() as u64 + 1),
        "huge" => Some(1 << 40),
        "mute" => return Ok(()),
        "denied" => return send(&socket, ERROR, 2, b"no\0"),
        _ => return send(&socket, ERROR, 1, b"no\0"),
    };
    if let Some(size) = size.filter(|_| asks_size) {
        let mut answer = OPTIONS.to_be_bytes().to_vec();
        answer.extend(format!("tsize\0{size}\0").as_bytes());
        acknowledged(&socket, &answer, 0)?;
    }
    let half = matches!(name, "dies" | "gives-up").then_some(content.len() / BLOCK / 2);
    // The last block is shorter than the others, empty if need be.
    for number in 0..=content.len() / BLOCK {
        if half == Some(number) {
            return if name == "dies" { Ok(()) } else { send(&socket, ERROR, 3, b"full\0") };
        }
        let block = &content[number * BLOCK..content.len().min((number + 1) * BLOCK)];
        let count = (number + 1) as u16;
        let packet = [&DATA.to_be_bytes()[..], &count.to_be_bytes(), block].concat();
        acknowledged(&socket, &packet, count)?;
    }
    Ok(())
}

/// The operation, and what follows it.
fn head(packet: &[u8]) -> Result<(u16, &[u8])> {
    match packet {
        [high, low, rest @ ..] => Ok((u16::from_be_bytes([*high, *low]), rest)),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn send(socket: &UdpSocket, operation: u16, number: u16, rest: &[u8]) -> Result<()> {
    let packet = [&operation.to_be_bytes()[..], &number.to_be_bytes(), rest].concat();
    socket.send(&packet).map(drop)
}

/// Sends a packet until its acknowledgement comes.
fn acknowledged(socket: &UdpSocket, packet: &[u8], count: u16) -> Result<()> {
    let mut answer = [0; 1024];
    for _ in 0..10 {
        socket.send(packet)?;
        loop {
            match socket.recv(&mut answer) {
                Ok(len) => match head(&answer[..len])? {
                    (ACKNOWLEDGE, rest) if rest.starts_with(&count.to_be_bytes()) => return Ok(()),
                    (ERROR, _) => return Err(ErrorKind::ConnectionAborted.into()),
                    // A repetition.
                    _ => {}
                },
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(why) => return Err(why),
            }
        }
    }
    Err(ErrorKind::TimedOut.into())
}
