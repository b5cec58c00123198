//! `vdi`: VirtualBox disk images, dynamic and static.
//!
//! Source: VirtualBox VDI 1.1 header as documented in "Tutorial: All about VDIs" (forums.virtualbox.org).

use super::mapped::*;
use crate::driver::{Create, CreateOption, Driver, Info, Layer, Open, Probe};
use crate::graph::create::take_preallocation;
use crate::types::*;
use base::{Failure, Result, bail};
use std::sync::Arc;

pub static DRIVER: Driver = Driver {
    name: "vdi",
    probe: Some(probe),
    open,
    create: Some(create),
    create_options: &[
        CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
        CreateOption { name: "static", modern: "static", help: "VDI static (pre-allocated) image" },
        CreateOption {
            name: "preallocation",
            modern: "preallocation",
            help: "Preallocation mode (allowed values: off, metadata)",
        },
    ],
    blocks_migration: true,
    defaults: ("", " static=off"),
    ..Driver::DEFAULT
};

const SIGNATURE: u32 = 0xbeda_107f;
const BLOCK: u64 = 1 << 20;
const MAX_BLOCKS: u64 = 0x1fff_ff80;
const UNALLOCATED: u64 = 0xffff_ffff;
const DISCARDED: u64 = 0xffff_fffe;
const HEADER: usize = 512;
/// Offset of the count of allocated blocks.
const COUNT: u64 = 0x184;

fn probe(probe: &Probe<'_>) -> u32 {
    if probe.head.len() >= HEADER && Fields(probe.head).le32(0x40) == SIGNATURE { 100 } else { 0 }
}

struct Vdi {
    data: u64,
}

impl Format for Vdi {
    fn decode(&self, word: u64) -> IoResult<Place> {
        Ok(match word {
            UNALLOCATED => Place::Absent,
            DISCARDED => Place::Zero,
            block => Place::At(self.data + block * BLOCK),
        })
    }

    fn encode(&self, place: Place) -> Option<u64> {
        match place {
            Place::Absent => Some(UNALLOCATED),
            Place::Zero => Some(DISCARDED),
            Place::At(offset) => Some((offset - self.data) / BLOCK).filter(|block| *block <= MAX_BLOCKS),
            Place::Packed(..) => None,
        }
    }

    /// The count is never below what the map names: others allocate by it.
    fn before_tables<'a>(&'a self, image: &'a Image<Self>) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let count = (image.end() - self.data).div_ceil(BLOCK) as u32;
            image.file.write(COUNT, &count.to_le_bytes(), WriteFlags::empty()).await?;
            image.file.flush().await
        })
    }

    fn info(&self) -> Info {
        Info::default()
    }

    fn checks(&self) -> bool {
        true
    }
}

struct Header {
    map: u64,
    data: u64,
    size: u64,
    blocks: u64,
    allocated: u64,
}

fn parse(head: &[u8]) -> Result<Header> {
    let fields = Fields(head);
    if fields.le32(0x40) != SIGNATURE {
        bail!("Image not in VDI format (bad signature {:08x})", fields.le32(0x40));
    }
    let (version, unit) = (fields.le32(0x44), fields.le32(0x168));
    if version != 0x0001_0001 {
        bail!("unsupported VDI image (version {}.{})", version >> 16, version & 0xffff);
    }
    let header = Header {
        map: fields.le32(0x154).into(),
        data: fields.le32(0x158).into(),
        size: fields.le64(0x170),
        blocks: fields.le32(0x180).into(),
        allocated: fields.le32(0x184).into(),
    };
    if !header.map.is_multiple_of(512) || header.map < HEADER as u64 {
        bail!("unsupported VDI image (unaligned block map offset 0x{:x})", header.map);
    }
    if !header.data.is_multiple_of(512) || header.data < header.map + header.blocks * 4 {
        bail!("unsupported VDI image (unaligned data offset 0x{:x})", header.data);
    }
    if unit != 512 {
        bail!("unsupported VDI image (sector size {unit} is not 512)");
    }
    if u64::from(fields.le32(0x178)) != BLOCK || fields.le32(0x17c) != 0 {
        bail!("unsupported VDI image (block size {} is not {BLOCK})", fields.le32(0x178));
    }
    if header.blocks > MAX_BLOCKS || header.size > header.blocks * BLOCK {
        bail!(
            "unsupported VDI image (disk size {}, image bitmap has room for {})",
            header.size,
            header.blocks * BLOCK
        );
    }
    if head[0x1a8..0x1c8].iter().any(|byte| *byte != 0) {
        bail!("unsupported VDI image (non-NULL link or parent UUID)");
    }
    Ok(header)
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        let file = open.file().await?;
        let head = file.read_vec(0, HEADER as u64, HEADER as u64).await;
        let header = parse(&head.map_err(|why| Failure::os("Could not read the VDI header", &why))?)?;
        if header.map + header.blocks * 4 > file.size() {
            bail!("unsupported VDI image (the block map is not within the file)");
        }
        let stored =
            file.size().saturating_sub(header.data).div_ceil(BLOCK).max(header.allocated.min(MAX_BLOCKS));
        let shape = Shape {
            cluster: BLOCK,
            word: Word::Le32,
            slots: header.blocks,
            base: header.data,
            step: BLOCK,
            prefix: Vec::new(),
        };
        let parts = Parts {
            file,
            backing: None,
            shape,
            root: Root::Flat(header.map),
            size: header.size.next_multiple_of(512),
            end: header.data + stored * BLOCK,
        };
        Ok(Arc::new(Image::new(open, Vdi { data: header.data }, parts)) as Arc<dyn Layer>)
    })
}

fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let size = create.options.need_u64("size")?;
        let fixed = create.options.take_bool("static")?.unwrap_or(false);
        let fixed = match take_preallocation(&mut create.options)? {
            Preallocation::Off => fixed,
            Preallocation::Metadata => true,
            other => bail!("Preallocation mode '{}' is not supported", other.as_str()),
        };
        let blocks = size.div_ceil(BLOCK);
        if size > MAX_BLOCKS * BLOCK {
            bail!(
                "Unsupported VDI image size (size is 0x{size:x}, max supported is 0x{:x})",
                MAX_BLOCKS * BLOCK
            );
        }
        let file = create.file().await?;
        create.finish()?;
        let map_len = (blocks * 4).next_multiple_of(512);
        let data = HEADER as u64 + map_len;
        let mut header = vec![0; HEADER];
        put(&mut header, 0, b"<<< Ryokan Virtual Disk Image >>>\n");
        put(&mut header, 0x40, &SIGNATURE.to_le_bytes());
        put(&mut header, 0x44, &0x0001_0001u32.to_le_bytes());
        put(&mut header, 0x48, &0x180u32.to_le_bytes());
        put(&mut header, 0x4c, &(if fixed { 2u32 } else { 1 }).to_le_bytes());
        put(&mut header, 0x154, &(HEADER as u32).to_le_bytes());
        put(&mut header, 0x158, &(data as u32).to_le_bytes());
        put(&mut header, 0x168, &512u32.to_le_bytes());
        put(&mut header, 0x170, &size.to_le_bytes());
        put(&mut header, 0x178, &(BLOCK as u32).to_le_bytes());
        put(&mut header, 0x180, &(blocks as u32).to_le_bytes());
        put(&mut header, 0x184, &(if fixed { blocks as u32 } else { 0 }).to_le_bytes());
        put(&mut header, 0x188, &super::random_uuid());
        put(&mut header, 0x198, &super::random_uuid());
        file.truncate(0, Truncate::default()).await?;
        // The map first: the signature makes it an image.
        let mut at = 0;
        while at < blocks {
            let some = (blocks - at).min(1 << 18);
            let words: Vec<u64> =
                (at..at + some).map(|block| if fixed { block } else { UNALLOCATED }).collect();
            file.write(HEADER as u64 + at * 4, &Word::Le32.write(&words), WriteFlags::empty()).await?;
            at += some;
        }
        let len = if fixed { data + blocks * BLOCK } else { data };
        file.truncate(len, Truncate::default()).await?;
        file.write(0, &header, WriteFlags::empty()).await?;
        Ok(file.flush().await?)
    })
}
