//! `dmg`: Apple disk images (UDIF) with plain, zlib, bzip2 and ADC chunks; read only.
//!
//! Source: "Demystifying the DMG File Format" (J. Levin, 2013): the `koly` trailer, the
//! property list (or resource fork) it names, and the `mish` tables of chunks therein.

use super::chunks::{Chunk, Chunks, Method, Source};
use super::mapped::Fields;
use crate::driver::{Driver, Layer, Open, Probe};
use crate::graph::Child;
use crate::types::*;
use base::{Result, bail};
use base64::Engine;
use std::sync::Arc;

pub static DRIVER: Driver =
    Driver { name: "dmg", probe: Some(probe), open, read_only: true, ..Driver::DEFAULT };

const SECTOR: u64 = 512;
const TRAILER: u64 = 512;
/// Longest property list or resource fork that is read, in bytes.
const MAX_TABLES: u64 = 16 << 20;

fn probe(probe: &Probe<'_>) -> u32 {
    if probe.filename.ends_with(".dmg") { 2 } else { 0 }
}

/// The trailer, which a few bytes and the rest of a sector may follow.
async fn read_trailer(file: &Child) -> Result<Vec<u8>> {
    let len = file.size().min(2 * TRAILER + 4);
    let mut end = file.read_vec(file.size() - len, len, len).await?;
    match end.windows(TRAILER as usize).rposition(|trailer| trailer.starts_with(b"koly")) {
        Some(at) => {
            end.drain(..at);
            end.truncate(TRAILER as usize);
            Ok(end)
        }
        None => bail!("Could not locate UDIF trailer in dmg file"),
    }
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let trailer = read_trailer(&file).await?;
        let fields = Fields(&trailer);
        let data = fields.be64(24);
        let tables = match (fields.be64(48), fields.be64(224)) {
            (len, _) if len > 0 => fork_tables(&read_tables(&file, fields.be64(40), len).await?)?,
            (_, len) if len > 0 => list_tables(&read_tables(&file, fields.be64(216), len).await?)?,
            _ => bail!("The dmg file has no table of chunks"),
        };
        let mut chunks = Vec::new();
        for table in &tables {
            take_chunks(table, data, &mut chunks)?;
        }
        let size = chunks.iter().map(|chunk| chunk.start.saturating_add(chunk.len)).max().unwrap_or(0);
        if size > i64::MAX as u64 {
            bail!("The disk of the dmg file is too large");
        }
        Ok(Arc::new(Chunks::new(file, chunks, size)?) as Arc<dyn Layer>)
    })
}

async fn read_tables(file: &Child, offset: u64, len: u64) -> Result<Vec<u8>> {
    match file.read_vec(offset, len, MAX_TABLES).await {
        Ok(bytes) => Ok(bytes),
        Err(_) => bail!("The tables of the dmg file are too long or not within it"),
    }
}

/// The `mish` tables in a property list: base64 in `<data>`.
fn list_tables(list: &[u8]) -> Result<Vec<Vec<u8>>> {
    let text = String::from_utf8_lossy(list);
    let mut tables = Vec::new();
    for part in text.split("<data>").skip(1) {
        let Some((coded, _)) = part.split_once("</data>") else {
            bail!("The property list of the dmg file is cut off")
        };
        let coded: String = coded.split_ascii_whitespace().collect();
        let Ok(table) = base64::engine::general_purpose::STANDARD.decode(coded) else {
            bail!("The property list of the dmg file is damaged")
        };
        if table.starts_with(b"mish") {
            tables.push(table);
        }
    }
    Ok(tables)
}

/// The `mish` tables in a resource fork: each after its length.
fn fork_tables(fork: &[u8]) -> Result<Vec<Vec<u8>>> {
    let start = Fields(fork).be32(0) as usize;
    let end = start.saturating_add(Fields(fork).be32(8) as usize);
    let Some(mut data) = fork.get(start..end) else { bail!("The resource fork of the dmg file is cut off") };
    let mut tables = Vec::new();
    while data.len() >= 4 {
        let len = Fields(data).be32(0) as usize;
        let Some(table) = data.get(4..4usize.saturating_add(len)) else {
            bail!("The resource fork of the dmg file is cut off")
        };
        if table.starts_with(b"mish") {
            tables.push(table.to_vec());
        }
        data = &data[4 + len..];
    }
    Ok(tables)
}

fn take_chunks(table: &[u8], data: u64, chunks: &mut Vec<Chunk>) -> Result<()> {
    let fields = Fields(table);
    let (first, base) = (fields.be64(8), fields.be64(24).checked_add(data));
    let Some(base) = base else { bail!("A chunk of the dmg file is not within it") };
    for entry in table.get(204..).unwrap_or_default().chunks_exact(40) {
        let fields = Fields(entry);
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR).filter(|bytes| *bytes <= i64::MAX as u64);
        let start = first.checked_add(fields.be64(8)).and_then(bytes);
        let place = base.checked_add(fields.be64(24));
        let (Some(start), Some(len), Some(place)) = (start, bytes(fields.be64(16)), place) else {
            bail!("A chunk of the dmg file is not within it")
        };
        let packed = |method| Source::Packed(method, place, fields.be64(32));
        let source = match fields.be32(0) {
            0 | 2 => Source::Zero,
            1 => Source::Raw(place),
            0x8000_0004 => packed(Method::Adc),
            0x8000_0005 => packed(Method::Zlib),
            0x8000_0006 => packed(Method::Bzip2),
            0x8000_0007 => bail!("dmg files packed with LZFSE are not supported"),
            0x8000_0008 => bail!("dmg files packed with LZMA are not supported"),
            // Comments and the terminator.
            0x7fff_fffe | 0xffff_ffff => continue,
            kind => bail!("Unknown kind {kind:#x} of chunk in the dmg file"),
        };
        chunks.push(Chunk { start, len, source });
    }
    Ok(())
}
