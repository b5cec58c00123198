//! A load for an NBD server over a unix socket: one connection, a fixed number of requests in
//! flight. (Source: the NBD protocol, doc/proto.md; simple replies.)

use crate::run::Result;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const OPT_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

pub struct Load {
    pub write: bool,
    pub size: u32,
    pub depth: usize,
    pub time: Duration,
}

struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    size: u64,
}

fn failed(error: std::io::Error) -> String {
    format!("NBD: {error}")
}

impl Client {
    fn connect(socket: &Path, export: &str) -> Result<Client> {
        let mut writer = UnixStream::connect(socket).map_err(failed)?;
        let mut reader = BufReader::with_capacity(1 << 18, writer.try_clone().map_err(failed)?);
        let mut hello = [0; 18];
        reader.read_exact(&mut hello).map_err(failed)?;
        let mut out = 3u32.to_be_bytes().to_vec();
        out.extend(OPT_MAGIC.to_be_bytes());
        out.extend(1u32.to_be_bytes());
        out.extend((export.len() as u32).to_be_bytes());
        out.extend(export.as_bytes());
        writer.write_all(&out).map_err(failed)?;
        let mut info = [0; 10];
        reader.read_exact(&mut info).map_err(failed)?;
        let size = info[..8].iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
        Ok(Client { reader, writer, size })
    }
}

/// Requests per second.
pub fn measure(socket: &Path, export: &str, load: &Load) -> Result<f64> {
    let mut client = Client::connect(socket, export)?;
    let places = client.size / u64::from(load.size);
    let mut data = vec![0x5a; load.size as usize];
    let (mut sent, mut done, mut random) = (0u64, 0u64, 0x9e37_79b9_7f4a_7c15u64);
    let mut out = Vec::new();
    let begin = Instant::now();
    loop {
        let more = begin.elapsed() < load.time;
        if !more && sent == done {
            break;
        }
        out.clear();
        while more && sent - done < load.depth as u64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            out.extend(REQUEST.to_be_bytes());
            out.extend((u32::from(load.write)).to_be_bytes());
            out.extend(sent.to_be_bytes());
            out.extend((random % places * u64::from(load.size)).to_be_bytes());
            out.extend(load.size.to_be_bytes());
            if load.write {
                out.extend(&data);
            }
            sent += 1;
        }
        client.writer.write_all(&out).map_err(failed)?;
        // One reply at least, and all that have come with it.
        loop {
            let mut head = [0; 16];
            client.reader.read_exact(&mut head).map_err(failed)?;
            if head[..4] != REPLY.to_be_bytes() || head[4..8] != [0; 4] {
                return Err("NBD: the server answered an error".into());
            }
            if !load.write {
                client.reader.read_exact(&mut data).map_err(failed)?;
            }
            done += 1;
            if sent == done || client.reader.buffer().is_empty() {
                break;
            }
        }
    }
    let rate = done as f64 / begin.elapsed().as_secs_f64();
    let mut bye = REQUEST.to_be_bytes().to_vec();
    bye.extend(2u32.to_be_bytes());
    bye.extend([0; 20]);
    client.writer.write_all(&bye).map_err(failed)?;
    Ok(rate)
}
