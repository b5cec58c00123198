//! `qed`: the QEMU enhanced disk format.
//!
//! Source: QEMU docs/interop/qed_spec.txt. Tables are ordered on disk (see [`super::mapped`]),
//! so that the bit for a needed check is never set by us; where it is set it is heeded.

use super::mapped::table::Levels;
use super::mapped::*;
use crate::driver::{Create, CreateOption, Driver, Fix, Info, Layer, Open, Probe};
use crate::graph::Child;
use crate::types::*;
use base::{Failure, Mutex, Result, bail, fail};
use std::sync::Arc;

pub static DRIVER: Driver = Driver {
    name: "qed",
    probe: Some(probe),
    open,
    create: Some(create),
    create_options: &[
        CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
        CreateOption { name: "backing_file", modern: "backing-file", help: "File name of a base image" },
        CreateOption { name: "backing_fmt", modern: "backing-fmt", help: "Image format of the base image" },
        CreateOption { name: "cluster_size", modern: "cluster-size", help: "Cluster size (in bytes)" },
        CreateOption { name: "table_size", modern: "table-size", help: "L1/L2 table size (in clusters)" },
    ],
    backing: true,
    defaults: ("", " cluster_size=65536"),
    ..Driver::DEFAULT
};

const MAGIC: u32 = u32::from_le_bytes(*b"QED\0");
const HEADER: usize = 64;
const MAX_NAME: u64 = 1023;
/// Largest directory that is read, in bytes.
const MAX_L1: u64 = 64 << 20;
const FEATURE_BACKING: u64 = 1;
const FEATURE_NEED_CHECK: u64 = 2;
/// The backing file is raw, not to be probed.
const FEATURE_NO_PROBE: u64 = 4;

fn probe(probe: &Probe<'_>) -> u32 {
    if probe.head.len() >= HEADER && Fields(probe.head).le32(0) == MAGIC { 100 } else { 0 }
}

#[derive(Clone, Debug, Default)]
struct Header {
    cluster: u64,
    /// Clusters of one table, and of the header.
    table_size: u64,
    header_size: u64,
    features: u64,
    compatible: u64,
    autoclear: u64,
    l1: u64,
    size: u64,
    backing: Option<String>,
}

impl Header {
    fn parse(head: &[u8]) -> Result<(Header, u64, u64)> {
        let fields = Fields(head);
        if fields.le32(0) != MAGIC {
            bail!("Image not in QED format");
        }
        let header = Header {
            cluster: fields.le32(4).into(),
            table_size: fields.le32(8).into(),
            header_size: fields.le32(12).into(),
            features: fields.le64(16),
            compatible: fields.le64(24),
            autoclear: fields.le64(32),
            l1: fields.le64(40),
            size: fields.le64(48),
            backing: None,
        };
        let unknown = header.features & !(FEATURE_BACKING | FEATURE_NEED_CHECK | FEATURE_NO_PROBE);
        if unknown != 0 {
            bail!("Unsupported QED features: {unknown:x}");
        }
        if !header.cluster.is_power_of_two() || !(4096..=64 << 20).contains(&header.cluster) {
            bail!("QED cluster size {} is invalid", header.cluster);
        }
        if !header.table_size.is_power_of_two() || header.table_size > 16 {
            bail!("QED table size {} is invalid", header.table_size);
        }
        if header.size > header.most() || !header.size.is_multiple_of(512) {
            bail!("QED image size {} is invalid", header.size);
        }
        if header.header_size == 0 || !header.l1.is_multiple_of(header.cluster) || header.l1 < header.cluster
        {
            bail!("The QED header is invalid");
        }
        Ok((header, fields.le32(56).into(), fields.le32(60).into()))
    }

    /// Words of a table.
    fn entries(&self) -> u64 {
        self.table_size * self.cluster / 8
    }

    /// Largest disk size for the geometry.
    fn most(&self) -> u64 {
        let table = self.entries();
        table.saturating_mul(table).saturating_mul(self.cluster).min(i64::MAX as u64)
    }

    fn encode(&self) -> Vec<u8> {
        let name = self.backing.as_deref().unwrap_or("");
        let mut out = vec![0; HEADER + name.len()];
        put(&mut out, 0, &MAGIC.to_le_bytes());
        for (at, value) in [(4, self.cluster), (8, self.table_size), (12, self.header_size)] {
            put(&mut out, at, &(value as u32).to_le_bytes());
        }
        let longs = [self.features, self.compatible, self.autoclear, self.l1, self.size];
        for (at, value) in longs.iter().enumerate() {
            put(&mut out, 16 + at * 8, &value.to_le_bytes());
        }
        if !name.is_empty() {
            put(&mut out, 56, &(HEADER as u32).to_le_bytes());
            put(&mut out, 60, &(name.len() as u32).to_le_bytes());
            put(&mut out, HEADER, name.as_bytes());
        }
        out
    }

    fn set_backing(&mut self, name: Option<&str>, format: Option<&str>) -> Result<()> {
        let name = name.filter(|name| !name.is_empty());
        let room = (self.header_size * self.cluster - HEADER as u64).min(MAX_NAME);
        if name.is_some_and(|name| name.len() as u64 > room) {
            bail!("Backing file name too long");
        }
        self.backing = name.map(str::to_string);
        self.features &= !(FEATURE_BACKING | FEATURE_NO_PROBE);
        if name.is_some() {
            self.features |= FEATURE_BACKING;
        }
        if name.is_some() && format == Some("raw") {
            self.features |= FEATURE_NO_PROBE;
        }
        Ok(())
    }
}

struct Qed {
    header: Mutex<Header>,
    cluster: u64,
}

impl Qed {
    async fn write_header(&self, file: &Child) -> IoResult {
        let bytes = self.header.lock().encode();
        file.write(0, &bytes, WriteFlags::empty()).await?;
        file.flush().await
    }
}

impl Format for Qed {
    fn decode(&self, word: u64) -> IoResult<Place> {
        match word {
            0 => Ok(Place::Absent),
            1 => Ok(Place::Zero),
            at if at.is_multiple_of(self.cluster) => Ok(Place::At(at)),
            _ => Err(errno(libc::EIO)),
        }
    }

    fn encode(&self, place: Place) -> Option<u64> {
        match place {
            Place::Absent => Some(0),
            // QEMU completes a write into part of a zero cluster from the backing file: such
            // clusters are read, but over a backing file zeroes are better written out.
            Place::Zero => None,
            Place::At(offset) => Some(offset),
            Place::Packed(..) => None,
        }
    }

    fn grow<'a>(&'a self, image: &'a Image<Self>, size: u64) -> Option<Fut<'a, Result<()>>> {
        Some(Box::pin(async move {
            let most = self.header.lock().most();
            if !size.is_multiple_of(512) || size > most {
                bail!("Invalid image size specified");
            }
            let old = std::mem::replace(&mut self.header.lock().size, size);
            if let Err(why) = self.write_header(&image.file).await {
                self.header.lock().size = old;
                return Err(Failure::os("Failed to update the image size", &why));
            }
            image.set_disk_size(size);
            Ok(())
        }))
    }

    fn info(&self) -> Info {
        let header = self.header.lock();
        let raw = header.features & FEATURE_NO_PROBE != 0;
        Info {
            dirty: Some(header.features & FEATURE_NEED_CHECK != 0),
            backing_filename: header.backing.clone(),
            backing_format: raw.then(|| "raw".to_string()),
            ..Info::default()
        }
    }

    fn change_backing<'a>(
        &'a self,
        image: &'a Image<Self>,
        name: Option<&'a str>,
        format: Option<&'a str>,
    ) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let old = self.header.lock().clone();
            let set = self.header.lock().set_backing(name, format);
            set.map_err(|_| errno(libc::ENAMETOOLONG))?;
            image.sync().await?;
            let result = self.write_header(&image.file).await;
            if result.is_err() {
                *self.header.lock() = old;
            }
            result
        })
    }

    fn checks(&self) -> bool {
        true
    }

    fn checked<'a>(&'a self, image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if self.header.lock().features & FEATURE_NEED_CHECK == 0 {
                return Ok(());
            }
            self.header.lock().features &= !FEATURE_NEED_CHECK;
            self.write_header(&image.file).await
        })
    }
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let head = file.read_vec(0, HEADER as u64, HEADER as u64).await;
        let head = head.map_err(|why| Failure::os("Could not read the QED header", &why))?;
        let (mut header, name_at, name_len) = Header::parse(&head)?;
        if header.features & FEATURE_BACKING != 0 {
            let room = header.header_size * header.cluster;
            if name_len > MAX_NAME || name_at + name_len > room {
                bail!("The backing file name is not within the QED header");
            }
            header.backing = Some(super::read_text(&file, name_at, name_len).await?);
        }
        let Ok(l1) = file.read_vec(header.l1, header.entries() * 8, MAX_L1).await else {
            bail!("The QED L1 table is not within the file")
        };
        let format = (header.features & FEATURE_NO_PROBE != 0).then_some("raw");
        let named = header.backing.clone();
        let backing = open.backing(named.as_deref().map(|name| (name, format))).await?;
        let (cluster, entries) = (header.cluster, header.entries());
        let levels = Levels {
            offset: header.l1,
            words: Word::Le64.read(&l1),
            unit: 1,
            table: entries,
            align: cluster,
            twin: None,
        };
        let shape = Shape {
            cluster,
            word: Word::Le64,
            slots: entries * entries,
            base: 0,
            step: cluster,
            prefix: Vec::new(),
        };
        let end = file.size().next_multiple_of(cluster);
        let (size, features, autoclear) = (header.size, header.features, header.autoclear);
        header.autoclear = 0;
        let format = Qed { cluster, header: Mutex::new(header) };
        let parts = Parts { file, backing, shape, root: Root::Levels(levels), size, end };
        let image = Image::new(open, format, parts);
        if !open.settings.read_only {
            if autoclear != 0 {
                image.format.write_header(&image.file).await?;
            }
            if features & FEATURE_NEED_CHECK != 0 {
                let found = image.check(Fix::All).await?;
                if found.corruptions > 0 {
                    bail!("The QED image is corrupt; cannot be opened read/write");
                }
            }
        }
        Ok(Arc::new(image) as Arc<dyn Layer>)
    })
}

fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let size = create.size()?;
        let options = &mut create.options;
        let cluster = options.take_u64("cluster-size")?.unwrap_or(65536);
        let table_size = options.take_u64("table-size")?.unwrap_or(4);
        let backing = options.take_str("backing-file")?;
        let format = options.take_str("backing-fmt")?;
        if !cluster.is_power_of_two() || !(4096..=64 << 20).contains(&cluster) {
            bail!("QED cluster size must be within range [4096, 67108864] and power of 2");
        }
        if !table_size.is_power_of_two() || table_size > 16 {
            bail!("QED table size must be within range [1, 16] and power of 2");
        }
        if let Some(format) = &format
            && super::find(format).is_none()
        {
            bail!("Invalid backing format '{format}'");
        }
        let mut header =
            Header { cluster, table_size, header_size: 1, l1: cluster, size, ..Header::default() };
        if !size.is_multiple_of(512) || size > header.most() {
            return Err(fail!(
                "QED image size must be a non-zero multiple of cluster size and less than {} bytes",
                header.most()
            ));
        }
        header.set_backing(backing.as_deref(), format.as_deref())?;
        let file = create.file().await?;
        create.finish()?;
        file.truncate(0, Truncate::default()).await?;
        file.truncate(cluster + table_size * cluster, Truncate::default()).await?;
        file.write(0, &header.encode(), WriteFlags::empty()).await?;
        Ok(file.flush().await?)
    })
}
