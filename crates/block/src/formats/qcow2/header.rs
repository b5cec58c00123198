//! The header of a qcow2 image and its extensions.
//!
//! Source: QEMU docs/interop/qcow2.txt. All numbers are big endian.

use base::{Result, bail};

pub const MAGIC: u32 = 0x5146_49fb;

pub const INCOMPAT_DIRTY: u64 = 1 << 0;
pub const INCOMPAT_CORRUPT: u64 = 1 << 1;
pub const INCOMPAT_DATA_FILE: u64 = 1 << 2;
pub const INCOMPAT_COMPRESSION: u64 = 1 << 3;
pub const INCOMPAT_EXTENDED_L2: u64 = 1 << 4;
const INCOMPAT_KNOWN: u64 = 0x1f;

pub const COMPAT_LAZY_REFCOUNTS: u64 = 1 << 0;

pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
pub const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURES: u32 = 0x6803_f857;
const EXT_BITMAPS: u32 = 0x2385_2875;
const EXT_CRYPTO: u32 = 0x0537_be77;
const EXT_DATA_FILE: u32 = 0x4441_5441;

/// Largest L1 table accepted, in bytes.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table accepted, in bytes.
pub const MAX_REFTABLE_BYTES: u64 = 8 << 20;
pub const MAX_SNAPSHOTS: u32 = 65536;
/// Longest header with extensions that is looked at.
pub const MAX_HEADER: u64 = 2 << 20;

/// Compression of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    Zlib,
    Zstd,
}

/// Where the bitmap directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExt {
    pub count: u32,
    pub directory_size: u64,
    pub directory_offset: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Header {
    pub version: u32,
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    pub cluster_bits: u32,
    pub size: u64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: u32,
    /// Entries.
    pub l1_size: u32,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub compression: Compression,
    pub bitmaps: Option<BitmapsExt>,
    /// Offset and length of the LUKS header.
    pub crypto: Option<(u64, u64)>,
    pub data_file: Option<String>,
    /// Extensions we do not know, kept as they are.
    pub unknown: Vec<(u32, Vec<u8>)>,
}

fn be32(data: &[u8], at: usize) -> u32 {
    data.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn be64(data: &[u8], at: usize) -> u64 {
    u64::from(be32(data, at)) << 32 | u64::from(be32(data, at + 4))
}

impl Header {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible != 0
    }

    pub fn extended_l2(&self) -> bool {
        self.has(INCOMPAT_EXTENDED_L2)
    }

    /// Bytes of one L2 entry.
    pub fn l2_entry_size(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    /// Entries of one L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// Guest bytes one L2 table maps.
    pub fn l2_span(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// L1 entries for a disk of `size` bytes.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(self.l2_span())
    }

    /// Reads the beginning of an image: at least the first cluster or 4096 bytes.
    pub fn parse(data: &[u8], file_size: u64) -> Result<Self> {
        if data.len() < 72 || be32(data, 0) != MAGIC {
            bail!("Image is not in qcow2 format");
        }
        let version = be32(data, 4);
        if !(2..=3).contains(&version) {
            bail!("Unsupported qcow2 version {version}");
        }
        let mut header = Header {
            version,
            cluster_bits: be32(data, 20),
            size: be64(data, 24),
            crypt_method: be32(data, 32),
            l1_size: be32(data, 36),
            l1_offset: be64(data, 40),
            reftable_offset: be64(data, 48),
            reftable_clusters: be32(data, 56),
            snapshots: be32(data, 60),
            snapshots_offset: be64(data, 64),
            refcount_order: 4,
            ..Header::default()
        };
        if !(9..=21).contains(&header.cluster_bits) {
            bail!("Unsupported cluster size: 2^{}", header.cluster_bits);
        }
        let mut length = 72;
        if version >= 3 {
            if data.len() < 104 {
                bail!("qcow2 header is too short");
            }
            header.incompatible = be64(data, 72);
            header.compatible = be64(data, 80);
            header.autoclear = be64(data, 88);
            header.refcount_order = be32(data, 96);
            length = be32(data, 100);
            if length < 104 {
                bail!("qcow2 header too short");
            }
        }
        if u64::from(length) > header.cluster_size() {
            bail!("qcow2 header exceeds cluster size");
        }
        if length > 104 && data.get(104).copied().unwrap_or(0) != 0 {
            header.compression = match data[104] {
                1 => Compression::Zstd,
                other => bail!("qcow2: unknown compression type: {other}"),
            };
        }
        if header.has(INCOMPAT_COMPRESSION) != (header.compression != Compression::Zlib) {
            bail!("qcow2: Compression type incompatible feature bit must match the compression type");
        }
        header.check_numbers(file_size)?;
        header.parse_names(data, length as usize)?;
        Ok(header)
    }

    fn check_numbers(&self, file_size: u64) -> Result<()> {
        let unknown = self.incompatible & !INCOMPAT_KNOWN;
        if unknown != 0 {
            bail!("Unsupported qcow2 feature(s): Unknown incompatible feature: {unknown:x}");
        }
        if self.refcount_order > 6 {
            bail!("Reference count entry width too large; may not exceed 64 bits");
        }
        if self.crypt_method > 2 {
            bail!("Unsupported encryption method {}", self.crypt_method);
        }
        if self.extended_l2() && self.cluster_bits < 14 {
            bail!("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
        }
        if self.size > i64::MAX as u64 {
            bail!("Image size is too large");
        }
        if u64::from(self.l1_size) * 8 > MAX_L1_BYTES {
            bail!("Active L1 table too large");
        }
        if u64::from(self.l1_size) < self.l1_entries_for(self.size) {
            bail!("L1 table is too small");
        }
        self.table(self.l1_offset, u64::from(self.l1_size) * 8, "Active L1 table offset invalid")?;
        if self.reftable_clusters == 0 {
            bail!("Image does not contain a reference count table");
        }
        let bytes = u64::from(self.reftable_clusters) << self.cluster_bits;
        if bytes > MAX_REFTABLE_BYTES {
            bail!("Image too big: reference count table of {bytes} bytes");
        }
        self.table(self.reftable_offset, bytes, "Invalid reference count table offset")?;
        if self.snapshots > MAX_SNAPSHOTS {
            bail!("Snapshot table too large");
        }
        if self.snapshots > 0 {
            self.table(self.snapshots_offset, 0, "Invalid snapshot table offset")?;
        }
        if self.l1_offset > file_size || self.snapshots_offset > file_size {
            bail!("Image is truncated");
        }
        Ok(())
    }

    fn table(&self, offset: u64, bytes: u64, text: &str) -> Result<()> {
        let end = offset.checked_add(bytes);
        if offset & (self.cluster_size() - 1) != 0 || end.is_none_or(|end| end > i64::MAX as u64) {
            bail!("{text}");
        }
        Ok(())
    }

    fn parse_names(&mut self, data: &[u8], length: usize) -> Result<()> {
        let backing_offset = be64(data, 8) as usize;
        let backing_size = be32(data, 16) as usize;
        let first = data.len().min(self.cluster_size() as usize);
        let mut end = first;
        if backing_offset != 0 {
            if backing_offset > first {
                bail!("Invalid backing file offset");
            }
            if backing_size > 1023 || backing_size > first - backing_offset {
                bail!("Backing file name too long");
            }
            let name = &data[backing_offset..backing_offset + backing_size];
            if !name.is_empty() {
                self.backing = Some(String::from_utf8_lossy(name).into_owned());
            }
            end = backing_offset;
        }
        self.parse_extensions(data, length, end)
    }

    fn parse_extensions(&mut self, data: &[u8], mut at: usize, end: usize) -> Result<()> {
        while at + 8 <= end {
            let (kind, len) = (be32(data, at), be32(data, at + 4) as usize);
            at += 8;
            if kind == EXT_END {
                break;
            }
            if len > end.saturating_sub(at) {
                bail!("Header extension too large");
            }
            let body = &data[at..at + len];
            match kind {
                EXT_BACKING_FORMAT => self.backing_format = Some(String::from_utf8_lossy(body).into_owned()),
                EXT_FEATURES => {}
                EXT_BITMAPS if len >= 24 => {
                    let ext = BitmapsExt {
                        count: be32(body, 0),
                        directory_size: be64(body, 8),
                        directory_offset: be64(body, 16),
                    };
                    if ext.count == 0 || ext.count > 65535 {
                        bail!("bitmaps_ext: found bitmaps extension with {} bitmaps", ext.count);
                    }
                    if self.autoclear & AUTOCLEAR_BITMAPS != 0 {
                        self.bitmaps = Some(ext);
                    }
                }
                EXT_CRYPTO if len == 16 => self.crypto = Some((be64(body, 0), be64(body, 8))),
                EXT_DATA_FILE => self.data_file = Some(String::from_utf8_lossy(body).into_owned()),
                _ => self.unknown.push((kind, body.to_vec())),
            }
            at += len.next_multiple_of(8);
        }
        Ok(())
    }

    /// The header cluster's content.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = vec![0u8; 72];
        out[..4].copy_from_slice(&MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.version.to_be_bytes());
        out[20..24].copy_from_slice(&self.cluster_bits.to_be_bytes());
        out[24..32].copy_from_slice(&self.size.to_be_bytes());
        out[32..36].copy_from_slice(&self.crypt_method.to_be_bytes());
        out[36..40].copy_from_slice(&self.l1_size.to_be_bytes());
        out[40..48].copy_from_slice(&self.l1_offset.to_be_bytes());
        out[48..56].copy_from_slice(&self.reftable_offset.to_be_bytes());
        out[56..60].copy_from_slice(&self.reftable_clusters.to_be_bytes());
        out[60..64].copy_from_slice(&self.snapshots.to_be_bytes());
        out[64..72].copy_from_slice(&self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            out.extend(self.incompatible.to_be_bytes());
            out.extend(self.compatible.to_be_bytes());
            out.extend(self.autoclear.to_be_bytes());
            out.extend(self.refcount_order.to_be_bytes());
            out.extend(112u32.to_be_bytes());
            out.extend([u8::from(self.compression == Compression::Zstd), 0, 0, 0, 0, 0, 0, 0]);
        }
        self.encode_extensions(&mut out);
        if let Some(name) = &self.backing {
            let at = out.len() as u64;
            out[8..16].copy_from_slice(&at.to_be_bytes());
            out[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            out.extend(name.as_bytes());
        }
        if out.len() as u64 > self.cluster_size()
            || self.backing.as_ref().is_some_and(|name| name.len() > 1023)
        {
            bail!("Backing file name too long");
        }
        out.resize(self.cluster_size() as usize, 0);
        Ok(out)
    }

    fn encode_extensions(&self, out: &mut Vec<u8>) {
        if let Some(ext) = &self.bitmaps {
            let mut body = Vec::new();
            body.extend(ext.count.to_be_bytes());
            body.extend([0; 4]);
            body.extend(ext.directory_size.to_be_bytes());
            body.extend(ext.directory_offset.to_be_bytes());
            put(out, EXT_BITMAPS, &body);
        }
        if let Some((offset, len)) = self.crypto {
            put(out, EXT_CRYPTO, &[offset.to_be_bytes(), len.to_be_bytes()].concat());
        }
        if let Some(format) = self.backing_format.as_deref().filter(|_| self.backing.is_some()) {
            put(out, EXT_BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(out, EXT_DATA_FILE, name.as_bytes());
        }
        for (kind, body) in &self.unknown {
            put(out, *kind, body);
        }
        // The names are for people; where clusters are small they make room.
        let names = feature_names();
        let rest = 8 + names.len() + 8 + self.backing.as_ref().map_or(0, String::len);
        if self.version >= 3 && (out.len() + rest) as u64 <= self.cluster_size() {
            put(out, EXT_FEATURES, &names);
        }
        put(out, EXT_END, &[]);
    }
}

fn put(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Names of the feature bits, for tools that do not know them.
fn feature_names() -> Vec<u8> {
    let names: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut out = Vec::new();
    for (kind, bit, name) in names {
        out.extend([kind, bit]);
        out.extend(name.as_bytes());
        out.resize(out.len().next_multiple_of(48), 0);
    }
    out
}
