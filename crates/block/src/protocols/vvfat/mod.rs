//! `vvfat`: a directory of the host shown as a FAT disk (`fat:[floppy:][12:|16:|32:]dir`).
//!
//! Source: "Microsoft FAT Specification" (2005). The directory is looked at once, when the
//! disk is opened; files are read when the guest reads them. Only reading is possible.

mod layout;
mod name;
mod tree;

use crate::driver::{Driver, Kind, Layer, Open};
use crate::types::*;
use base::{Result, bail, fail};
use layout::{Fat, Piece, Source};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;

pub static DRIVER: Driver = Driver {
    name: "vvfat",
    kind: Kind::Protocol,
    schemes: &["fat"],
    open,
    read_only: true,
    ..Driver::DEFAULT
};

const SECTOR: u64 = 512;

struct Vvfat {
    pieces: Vec<Piece>,
    size: u64,
    filename: String,
    pool: Handle,
}

/// What `fat:` file names say before the directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Name {
    rw: bool,
    floppy: bool,
    bits: Option<u64>,
    dir: String,
}

impl Name {
    fn parse(text: &str) -> Name {
        let mut name = Name::default();
        let mut rest = text.strip_prefix("fat:").unwrap_or(text);
        loop {
            let (word, after) = rest.split_once(':').unwrap_or(("", rest));
            match word {
                "rw" => name.rw = true,
                "floppy" => name.floppy = true,
                "12" | "16" | "32" => name.bits = word.parse().ok(),
                _ => break,
            }
            rest = after;
        }
        name.dir = rest.to_string();
        name
    }
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let options = &mut open.options;
        let filename = options.take_str("filename")?;
        let named = Name::parse(filename.as_deref().unwrap_or_default());
        let dir = options.take_str("dir")?.or(Some(named.dir).filter(|dir| !dir.is_empty()));
        let Some(dir) = dir else { bail!("vvfat block driver requires a 'dir' option") };
        let bits = options.take_u64("fat-type")?.filter(|bits| *bits != 0).or(named.bits);
        let floppy = options.take_bool("floppy")?.unwrap_or(named.floppy);
        if options.take_bool("rw")?.unwrap_or(named.rw) {
            bail!("vvfat: a directory can only be read");
        }
        let label = options.take_str("label")?.unwrap_or_else(|| "QEMU VVFAT".to_string());
        if label.len() > 11 || !label.is_ascii() {
            bail!("vvfat label cannot be longer than 11 bytes");
        }
        let bits = match bits {
            None if floppy => None,
            None => Some(16),
            Some(bits @ (12 | 16 | 32)) => Some(bits),
            Some(_) => bail!("Valid FAT types are only 12, 16 and 32"),
        };
        let fat = Fat::new(bits, floppy)?;
        let pool = open.graph.main_thread().handle().clone();
        let path = PathBuf::from(&dir);
        let work = move || {
            let root = tree::scan(&path)?;
            layout::build(&fat, root, &label)
        };
        let (pieces, size) =
            pool.spawn_blocking(work).await.map_err(|_| fail!("The directory could not be read"))??;
        let filename = filename.unwrap_or_else(|| format!("fat:{dir}"));
        Ok(Arc::new(Vvfat { pieces, size, filename, pool }) as Arc<dyn Layer>)
    })
}

/// Reads what the file has; what it has lost since it was seen is zeroes.
fn read_file(path: &Path, offset: u64, len: usize) -> IoResult<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let mut data = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut data[done..], offset + done as u64)? {
            0 => break,
            some => done += some,
        }
    }
    Ok(data)
}

impl Vvfat {
    /// The piece at a place and what is left of it; `None` is a gap, which is zeroes.
    fn at(&self, offset: u64) -> (Option<&Piece>, u64) {
        let next = self.pieces.partition_point(|piece| piece.start + piece.len <= offset);
        match self.pieces.get(next) {
            Some(piece) if piece.start <= offset => (Some(piece), piece.start + piece.len - offset),
            after => (None, after.map_or(self.size, |piece| piece.start) - offset),
        }
    }
}

impl Layer for Vvfat {
    fn size(&self) -> u64 {
        self.size
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let mut done = 0;
            while done < buf.len() {
                let at = offset + done as u64;
                let (piece, left) = self.at(at);
                let len = left.min((buf.len() - done) as u64) as usize;
                let target = &mut buf[done..done + len];
                match piece.map(|piece| (&piece.source, at - piece.start)) {
                    None => target.fill(0),
                    Some((Source::Bytes(bytes), inner)) => {
                        target.copy_from_slice(&bytes[inner as usize..inner as usize + len]);
                    }
                    Some((Source::File(path), inner)) => {
                        let path = path.clone();
                        let work = move || read_file(&path, inner, len);
                        let data = self.pool.spawn_blocking(work).await.map_err(|_| errno(libc::EIO))??;
                        target.copy_from_slice(&data);
                    }
                }
                done += len;
            }
            Ok(())
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            let (piece, left) = self.at(offset);
            let what = if piece.is_some() { StatusFlags::DATA } else { StatusFlags::ZERO };
            Ok(Status { flags: what | StatusFlags::ALLOCATED, len: left.min(len), offset: None })
        })
    }

    fn filename(&self) -> Option<String> {
        Some(self.filename.clone())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
