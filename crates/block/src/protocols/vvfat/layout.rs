//! The disk: partition table, boot sector, allocation tables, clusters.

use super::SECTOR;
use super::name::{DIRECTORY, ENTRY, LABEL, READ_ONLY, entry, names};
use super::tree::{Entry, What};
use base::{Result, bail};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

pub(super) enum Source {
    Bytes(Arc<Vec<u8>>),
    File(PathBuf),
}

/// A part of the disk, in bytes.
pub(super) struct Piece {
    pub start: u64,
    pub len: u64,
    pub source: Source,
}

/// The geometry of the file system; sizes in sectors.
#[derive(Debug)]
pub(super) struct Fat {
    bits: u64,
    floppy: bool,
    heads: u64,
    track: u64,
    total: u64,
    /// Where the file system begins on the disk.
    first: u64,
    reserved: u64,
    cluster: u64,
    root_entries: u64,
    table: u64,
    clusters: u64,
}

impl Fat {
    /// `bits` may be missing for a floppy, which then is one of 2.88 MB.
    pub fn new(bits: Option<u64>, floppy: bool) -> Result<Fat> {
        let (cylinders, heads, track) = match (floppy, bits) {
            (true, Some(12)) => (80, 2, 18),
            (true, _) => (80, 2, 36),
            (false, Some(12)) => (64, 16, 63),
            (false, _) => (1024, 16, 63),
        };
        let cluster = match (floppy, bits) {
            (true, None) => 2,
            (true, _) => 1,
            (false, Some(32)) => 8,
            (false, _) => 16,
        };
        let bits = bits.unwrap_or(12);
        let first = if floppy { 0 } else { 63 };
        let (reserved, root_entries) = match bits {
            32 => (32, 0),
            _ if floppy => (1, 224),
            _ => (1, 512),
        };
        let total = cylinders * heads * track - first;
        let room = total - reserved - root_entries * ENTRY as u64 / SECTOR;
        let table = ((room / cluster + 2) * bits).div_ceil(8 * SECTOR);
        let clusters = (room - 2 * table) / cluster;
        let least = match bits {
            12 => 0,
            16 => 4085,
            _ => 65525,
        };
        if clusters < least {
            bail!("FAT{bits} does not fit on a floppy disk");
        }
        Ok(Fat { bits, floppy, heads, track, total, first, reserved, cluster, root_entries, table, clusters })
    }

    pub fn cluster_len(&self) -> u64 {
        self.cluster * SECTOR
    }

    /// Byte on the disk where the file system begins.
    pub fn start(&self) -> u64 {
        self.first * SECTOR
    }

    /// Byte on the disk and length of the root directory, unless it is a chain (FAT32).
    pub fn root_area(&self) -> Option<(u64, u64)> {
        (self.bits != 32).then(|| (self.root() * SECTOR, self.root_entries * ENTRY as u64))
    }

    /// First cluster of the root directory, as a boot sector of FAT32 has it.
    pub fn root_cluster(&self, boot: &[u8]) -> u32 {
        u32::from_le_bytes([boot[44], boot[45], boot[46], boot[47]])
    }

    /// Bytes on the disk and lengths of both allocation tables.
    pub fn table_areas(&self) -> [(u64, u64); 2] {
        let (start, len) = ((self.first + self.reserved) * SECTOR, self.table * SECTOR);
        [(start, len), (start + len, len)]
    }

    /// Whether a boot sector describes this file system.
    pub fn is_mine(&self, boot: &[u8]) -> bool {
        let own = self.boot_sector(&[b' '; 11]);
        let wide = if self.bits == 32 { 36..40 } else { 0..0 };
        boot[510..] == own[510..]
            && [11..24, 32..36, wide].into_iter().all(|range| boot[range.clone()] == own[range])
    }

    /// The words of a table, one for each cluster there is and for the two before them.
    pub fn table_words(&self, table: &[u8]) -> Vec<u32> {
        let byte = |at: usize| u32::from(table[at]);
        let word = |at: usize| match self.bits {
            12 => (byte(at * 3 / 2) | byte(at * 3 / 2 + 1) << 8) >> (at % 2 * 4) & 0xfff,
            16 => byte(at * 2) | byte(at * 2 + 1) << 8,
            _ => {
                u32::from_le_bytes([table[at * 4], table[at * 4 + 1], table[at * 4 + 2], table[at * 4 + 3]])
                    & 0x0fff_ffff
            }
        };
        (0..self.clusters as usize + 2).map(word).collect()
    }

    /// The number in an entry, whose upper half means nothing before FAT32.
    pub fn cluster_number(&self, number: u32) -> u32 {
        if self.bits == 32 { number } else { number & 0xffff }
    }

    /// Whether a word ends a chain.
    pub fn is_end(&self, word: u32) -> bool {
        word >= self.end_mark() & !7
    }

    /// First sector (of the disk) behind the tables and the root directory.
    fn data(&self) -> u64 {
        self.root() + self.root_entries * ENTRY as u64 / SECTOR
    }

    /// Sector of the root directory of FAT12 and FAT16.
    fn root(&self) -> u64 {
        self.first + self.reserved + 2 * self.table
    }

    /// Byte on the disk of a cluster.
    pub fn place(&self, cluster: u64) -> u64 {
        self.data() * SECTOR + (cluster - 2) * self.cluster_len()
    }

    fn end_mark(&self) -> u32 {
        match self.bits {
            12 => 0xfff,
            16 => 0xffff,
            _ => 0x0fff_ffff,
        }
    }

    fn media(&self) -> u8 {
        if self.floppy { 0xf0 } else { 0xf8 }
    }

    fn boot_sector(&self, label: &[u8; 11]) -> Vec<u8> {
        let mut out = vec![0; SECTOR as usize];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0xeb, 0x3c, 0x90]);
        put(3, b"RYOKAN  ");
        put(11, &(SECTOR as u16).to_le_bytes());
        put(13, &[self.cluster as u8]);
        put(14, &(self.reserved as u16).to_le_bytes());
        put(16, &[2]);
        put(17, &(self.root_entries as u16).to_le_bytes());
        match u16::try_from(self.total) {
            Ok(total) if self.bits != 32 => put(19, &total.to_le_bytes()),
            _ => put(32, &(self.total as u32).to_le_bytes()),
        }
        put(21, &[self.media()]);
        put(24, &(self.track as u16).to_le_bytes());
        put(26, &(self.heads as u16).to_le_bytes());
        put(28, &(self.first as u32).to_le_bytes());
        let extended = match self.bits {
            32 => {
                put(36, &(self.table as u32).to_le_bytes());
                put(44, &2u32.to_le_bytes());
                put(48, &1u16.to_le_bytes());
                put(50, &6u16.to_le_bytes());
                64
            }
            _ => {
                put(22, &(self.table as u16).to_le_bytes());
                36
            }
        };
        put(extended, &[if self.floppy { 0 } else { 0x80 }, 0, 0x29]);
        put(extended + 3, &0xfabe_1afdu32.to_le_bytes());
        put(extended + 7, label);
        put(extended + 18, format!("FAT{}   ", self.bits).as_bytes());
        put(510, &[0x55, 0xaa]);
        out
    }

    fn partition_table(&self) -> Vec<u8> {
        let mut out = vec![0; SECTOR as usize];
        let kind = match self.bits {
            12 => 0x01,
            16 => 0x06,
            _ => 0x0c,
        };
        let chs = |sector: u64| {
            let cylinder = (sector / (self.heads * self.track)).min(1023);
            let head = sector / self.track % self.heads;
            [head as u8, (sector % self.track + 1) as u8 | (cylinder >> 8 << 6) as u8, cylinder as u8]
        };
        out[440..444].copy_from_slice(&0xbe1a_fdfau32.to_le_bytes());
        out[446] = 0x80;
        out[447..450].copy_from_slice(&chs(self.first));
        out[450] = kind;
        out[451..454].copy_from_slice(&chs(self.first + self.total - 1));
        out[454..458].copy_from_slice(&(self.first as u32).to_le_bytes());
        out[458..462].copy_from_slice(&(self.total as u32).to_le_bytes());
        out[510..].copy_from_slice(&[0x55, 0xaa]);
        out
    }

    fn table_bytes(&self, words: &[u32]) -> Vec<u8> {
        let mut out = vec![0; (self.table * SECTOR) as usize];
        for (at, word) in words.iter().enumerate() {
            match self.bits {
                12 => {
                    let (byte, shift) = (at * 3 / 2, at % 2 * 4);
                    let both = (*word << shift) as u16;
                    out[byte] |= both as u8;
                    out[byte + 1] |= (both >> 8) as u8;
                }
                16 => out[at * 2..at * 2 + 2].copy_from_slice(&(*word as u16).to_le_bytes()),
                _ => out[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes()),
            }
        }
        out
    }

    fn info_sector(&self, used: u64) -> Vec<u8> {
        let mut out = vec![0; SECTOR as usize];
        out[..4].copy_from_slice(b"RRaA");
        out[484..488].copy_from_slice(b"rrAa");
        out[488..492].copy_from_slice(&((self.clusters - used) as u32).to_le_bytes());
        out[492..496].copy_from_slice(&((used + 2) as u32).to_le_bytes());
        out[510..].copy_from_slice(&[0x55, 0xaa]);
        out
    }
}

/// A disk in the making.
struct Disk<'a> {
    fat: &'a Fat,
    words: Vec<u32>,
    pieces: Vec<Piece>,
}

impl Disk<'_> {
    /// A chain of neighbouring clusters for `len` bytes; 0 if there are none.
    fn chain(&mut self, len: u64) -> Result<u64> {
        let count = len.div_ceil(self.fat.cluster_len());
        let first = self.words.len() as u64;
        if first - 2 + count > self.fat.clusters {
            let capacity = self.fat.clusters * self.fat.cluster_len() >> 20;
            bail!("Directory does not fit in FAT{} (capacity {capacity} MB)", self.fat.bits);
        }
        for at in 1..count {
            self.words.push((first + at) as u32);
        }
        if count > 0 {
            self.words.push(self.fat.end_mark());
        }
        Ok(if count > 0 { first } else { 0 })
    }

    fn put(&mut self, start: u64, bytes: Vec<u8>) {
        let len = bytes.len() as u64;
        self.pieces.push(Piece { start, len, source: Source::Bytes(Arc::new(bytes)) });
    }

    /// The entries of a directory that lies at cluster `own` (0: the root); what is below it
    /// gets its clusters here.
    fn directory(&mut self, entries: Vec<Entry>, mut bytes: Vec<u8>, own: u64) -> Result<Vec<u8>> {
        let mut taken = HashSet::new();
        for one in entries {
            let (short, long) = names(&one.name, &mut taken);
            let mut attributes = if one.read_only { READ_ONLY } else { 0 };
            let (cluster, size) = match one.what {
                What::File { path, size } => {
                    if size > u64::from(u32::MAX) {
                        bail!("File {} is larger than 4 GiB", path.display());
                    }
                    let cluster = self.chain(size)?;
                    if cluster > 0 {
                        let start = self.fat.place(cluster);
                        self.pieces.push(Piece { start, len: size, source: Source::File(path) });
                    }
                    (cluster, size)
                }
                What::Dir(below) => {
                    attributes |= DIRECTORY;
                    (self.below(below, own, one.time)?, 0)
                }
            };
            bytes.extend(long.concat());
            bytes.extend(entry(&short, attributes, one.time, cluster as u32, size as u32));
        }
        Ok(bytes)
    }

    fn below(&mut self, entries: Vec<Entry>, parent: u64, time: SystemTime) -> Result<u64> {
        // The length is known before the content: every name takes the same room there.
        let mut taken = HashSet::new();
        let count: usize = entries.iter().map(|one| 1 + names(&one.name, &mut taken).1.len()).sum();
        let own = self.chain(((count + 2) * ENTRY) as u64)?;
        let mut dots = entry(b".          ", DIRECTORY, time, own as u32, 0).to_vec();
        dots.extend(entry(b"..         ", DIRECTORY, time, parent as u32, 0));
        let bytes = self.directory(entries, dots, own)?;
        self.put(self.fat.place(own), bytes);
        Ok(own)
    }
}

/// Lays a tree out; returns the pieces of the disk in order, and its size in bytes.
pub(super) fn build(fat: &Fat, root: Vec<Entry>, label: &str) -> Result<(Vec<Piece>, u64)> {
    let mut padded = [b' '; 11];
    padded[..label.len()].copy_from_slice(label.to_ascii_uppercase().as_bytes());
    let head = fat.end_mark() & !0xff | u32::from(fat.media());
    let mut disk = Disk { fat, words: vec![head, fat.end_mark()], pieces: Vec::new() };
    let mut taken = HashSet::new();
    let count = 1 + root.iter().map(|one| 1 + names(&one.name, &mut taken).1.len()).sum::<usize>();
    let place = match fat.bits {
        32 => {
            let cluster = disk.chain((count * ENTRY) as u64)?;
            fat.place(cluster)
        }
        _ if count as u64 > fat.root_entries => bail!("Too many entries in root directory"),
        _ => fat.root() * SECTOR,
    };
    let volume = entry(&padded, LABEL, SystemTime::now(), 0, 0).to_vec();
    let bytes = disk.directory(root, volume, 0)?;
    disk.put(place, bytes);
    let start = fat.first * SECTOR;
    if !fat.floppy {
        disk.put(0, fat.partition_table());
    }
    let boot = fat.boot_sector(&padded);
    if fat.bits == 32 {
        let info = fat.info_sector(disk.words.len() as u64 - 2);
        for copy in [0, 6] {
            disk.put(start + copy * SECTOR, boot.clone());
            disk.put(start + (copy + 1) * SECTOR, info.clone());
        }
    } else {
        disk.put(start, boot);
    }
    let table = fat.table_bytes(&disk.words);
    let first = start + fat.reserved * SECTOR;
    disk.put(first, table.clone());
    disk.put(first + table.len() as u64, table);
    let mut pieces = disk.pieces;
    pieces.sort_by_key(|piece| piece.start);
    Ok((pieces, (fat.first + fat.total) * SECTOR))
}
