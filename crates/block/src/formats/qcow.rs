//! `qcow`: version 1 of QEMU's copy-on-write format.
//!
//! Source: "The QCOW Image Format" (M. McLoughlin, 2006), version 1.

use super::mapped::deflate::{Wrap, deflate, inflate_exact};
use super::mapped::table::Levels;
use super::mapped::*;
use crate::crypto::OldAes;
use crate::driver::{Create, CreateOption, Driver, Info, Layer, Open, Probe};
use crate::types::*;
use base::{Failure, Result, bail};
use serde_json::json;
use std::sync::Arc;

pub static DRIVER: Driver = Driver {
    name: "qcow",
    probe: Some(probe),
    open,
    create: Some(create),
    create_options: &[
        CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
        CreateOption { name: "backing_file", modern: "backing-file", help: "File name of a base image" },
    ],
    backing: true,
    compresses: true,
    blocks_migration: true,
    telling: &["encrypt"],
    ..Driver::DEFAULT
};

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const HEADER: usize = 48;
const MAX_NAME: u64 = 1023;
/// Largest directory that is read, in bytes.
const MAX_L1: u64 = 64 << 20;
const PACKED: u64 = 1 << 63;

fn probe(probe: &Probe<'_>) -> u32 {
    let fields = Fields(probe.head);
    if fields.be32(0) == MAGIC && fields.be32(4) == 1 { 100 } else { 0 }
}

struct Qcow {
    cluster_bits: u32,
    crypto: Option<OldAes>,
    backing: Option<String>,
}

impl Format for Qcow {
    fn decode(&self, word: u64) -> IoResult<Place> {
        let shift = 63 - self.cluster_bits;
        Ok(match word {
            0 => Place::Absent,
            word if word & PACKED != 0 => {
                Place::Packed(word & ((1 << shift) - 1), word >> shift & ((1 << self.cluster_bits) - 1))
            }
            word => Place::At(word),
        })
    }

    fn encode(&self, place: Place) -> Option<u64> {
        let shift = 63 - self.cluster_bits;
        match place {
            Place::Absent => Some(0),
            Place::Zero => None,
            Place::At(offset) => Some(offset).filter(|at| at & PACKED == 0),
            Place::Packed(offset, len) => {
                let fits = offset >> shift == 0 && len >> self.cluster_bits == 0;
                fits.then_some(PACKED | len << shift | offset)
            }
        }
    }

    fn unpack(&self, data: &[u8], cluster: usize) -> IoResult<Vec<u8>> {
        inflate_exact(Wrap::Raw, data, cluster)
    }

    fn pack(&self, _index: u64, data: &[u8]) -> Option<Vec<u8>> {
        deflate(Wrap::Raw, 12, data, data.len())
    }

    fn crypto(&self) -> Option<&OldAes> {
        self.crypto.as_ref()
    }

    fn packs(&self) -> bool {
        true
    }

    fn info(&self) -> Info {
        Info {
            backing_filename: self.backing.clone(),
            encrypted: self.crypto.is_some(),
            specific: self
                .crypto
                .as_ref()
                .map(|_| json!({"type": "qcow", "data": {"encrypt": {"format": "aes"}}})),
            ..Info::default()
        }
    }
}

struct Header {
    backing: (u64, u64),
    size: u64,
    cluster_bits: u32,
    l2_bits: u32,
    encrypted: bool,
    l1: u64,
}

fn parse(head: &[u8]) -> Result<Header> {
    let fields = Fields(head);
    if fields.be32(0) != MAGIC {
        bail!("Image not in qcow format");
    }
    if fields.be32(4) != 1 {
        bail!("qcow (v{}) does not support qcow version {0}", fields.be32(4));
    }
    let header = Header {
        backing: (fields.be64(8), fields.be32(16).into()),
        size: fields.be64(24),
        cluster_bits: head[32].into(),
        l2_bits: head[33].into(),
        encrypted: fields.be32(36) != 0,
        l1: fields.be64(40),
    };
    if header.size <= 1 {
        bail!("Image size is too small (must be at least 2 bytes)");
    }
    if !(9..=16).contains(&header.cluster_bits) {
        bail!("Cluster size must be between 512 and 64k");
    }
    if !(6..=13).contains(&header.l2_bits) {
        bail!("L2 table size must be between 512 and 64k");
    }
    if fields.be32(36) > 1 {
        bail!("invalid encryption method in qcow header");
    }
    if header.size > i64::MAX as u64 - (1 << 30) {
        bail!("Image too large");
    }
    if header.backing.0 != 0 && header.backing.1 > MAX_NAME {
        bail!("Backing file name too long");
    }
    Ok(header)
}

/// The key of an encrypted image, from option `encrypt`.
fn unlock(open: &mut Open, needed: bool) -> Result<Option<OldAes>> {
    let mut given = open.options.take_table("encrypt")?.unwrap_or_default();
    let format = given.take_str("format")?;
    if !needed {
        if format.is_some() || !given.is_empty() {
            let format = format.unwrap_or_default();
            bail!("No encryption in image header, but options specified format '{format}'");
        }
        return Ok(None);
    }
    if let Some(format) = format.filter(|format| format != "aes") {
        bail!("Header reported 'aes' encryption format but options specify '{format}'");
    }
    OldAes::open(&mut given, open.settings.late_key, open.graph.vault()).map(Some)
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let head = file.read_vec(0, HEADER as u64, HEADER as u64).await;
        let header = parse(&head.map_err(|why| Failure::os("Could not read the qcow header", &why))?)?;
        let crypto = unlock(open, header.encrypted)?;
        let span = header.cluster_bits + header.l2_bits;
        let l1_len = header.size.div_ceil(1 << span);
        let Ok(l1) = file.read_vec(header.l1, l1_len.saturating_mul(8), MAX_L1).await else {
            bail!("Image too large, or its L1 table is not within the file")
        };
        let backing = match header.backing {
            (0, _) | (_, 0) => None,
            (at, len) => Some(super::read_text(&file, at, len).await?),
        };
        let child = open.backing(backing.as_deref().map(|name| (name, None))).await?;
        let cluster = 1 << header.cluster_bits;
        let levels = Levels {
            offset: header.l1,
            words: Word::Be64.read(&l1),
            unit: 1,
            table: 1 << header.l2_bits,
            align: cluster,
            twin: None,
        };
        let shape = Shape {
            cluster,
            word: Word::Be64,
            slots: l1_len << header.l2_bits,
            base: 0,
            step: cluster,
            prefix: Vec::new(),
        };
        let end = file.size().max(HEADER as u64).next_multiple_of(cluster);
        let parts = Parts {
            file,
            backing: child,
            shape,
            root: Root::Levels(levels),
            size: header.size.next_multiple_of(512),
            end,
        };
        let format = Qcow { cluster_bits: header.cluster_bits, crypto, backing };
        Ok(Arc::new(Image::new(open, format, parts)) as Arc<dyn Layer>)
    })
}

fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let size = create.size()?;
        if size == 0 {
            bail!("Image size is too small, cannot be zero length");
        }
        let backing = create.options.take_str("backing-file")?.filter(|name| !name.is_empty());
        let file = create.file().await?;
        create.finish()?;
        // Small clusters where data would have to be copied from below.
        let (cluster_bits, l2_bits) = if backing.is_some() { (9u8, 12u8) } else { (12, 9) };
        let name = backing.unwrap_or_default();
        if name.len() as u64 > MAX_NAME {
            bail!("Backing file name too long");
        }
        let l1 = (HEADER + name.len()).next_multiple_of(8);
        let l1_len = size.div_ceil(1 << (cluster_bits + l2_bits)) * 8;
        if l1_len > MAX_L1 {
            bail!("Image too large");
        }
        let mut header = vec![0; l1];
        put(&mut header, 0, &MAGIC.to_be_bytes());
        put(&mut header, 4, &1u32.to_be_bytes());
        if !name.is_empty() {
            put(&mut header, 8, &(HEADER as u64).to_be_bytes());
            put(&mut header, 16, &(name.len() as u32).to_be_bytes());
        }
        put(&mut header, 24, &size.to_be_bytes());
        put(&mut header, 32, &[cluster_bits, l2_bits]);
        put(&mut header, 40, &(l1 as u64).to_be_bytes());
        put(&mut header, HEADER, name.as_bytes());
        file.truncate(0, Truncate::default()).await?;
        let end = (l1 as u64 + l1_len).next_multiple_of(512);
        file.truncate(end, Truncate::default()).await?;
        file.write(0, &header, WriteFlags::empty()).await?;
        Ok(file.flush().await?)
    })
}
