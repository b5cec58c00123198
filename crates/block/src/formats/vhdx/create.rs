//! Making images.

use super::*;
use crate::driver::Create;

/// Words of a table for `blocks` data blocks: one for a sector bitmap after every chunk.
pub(super) fn slots(blocks: u64, chunk: u64) -> u64 {
    blocks + blocks.saturating_sub(1) / chunk
}

struct Plan {
    size: u64,
    log: u64,
    block: u64,
    fixed: bool,
    zero: bool,
}

impl Plan {
    fn metadata(&self) -> u64 {
        MIB + self.log
    }

    fn bat(&self) -> u64 {
        self.metadata() + MIB
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    fn chunk(&self) -> u64 {
        (512 << 23) / self.block
    }

    fn bat_len(&self) -> u64 {
        if self.size == 0 {
            // Readers that count the chunks of no block as those of the last of 2^32 want room for them.
            return ((u64::from(u32::MAX) / self.chunk()) * 8).next_multiple_of(MIB);
        }
        (slots(self.blocks(), self.chunk()) * 8).next_multiple_of(MIB).max(MIB)
    }

    fn data(&self) -> u64 {
        self.bat() + self.bat_len()
    }
}

fn take(create: &mut Create) -> Result<Plan> {
    let size = create.options.need_u64("size")?;
    if size > MAX_SIZE {
        bail!("Image size too large; max of 64TB");
    }
    let size = size.next_multiple_of(512);
    // Tools say 0 for what is not given.
    let given = |value: &u64| *value > 0 || !create.by_name;
    let options = &mut create.options;
    let log = options.take_u64("log-size")?.filter(given).unwrap_or(MIB);
    if log >= 1 << 32 {
        bail!("Log size must be smaller than 4 GB");
    }
    if log == 0 || !log.is_multiple_of(MIB) {
        bail!("Log size must be a multiple of 1 MB");
    }
    let by_size = match size {
        size if size > 32 << 40 => 64 * MIB,
        size if size > 100 << 30 => 32 * MIB,
        size if size > 1 << 30 => 16 * MIB,
        _ => 8 * MIB,
    };
    let block = options.take_u64("block-size")?.filter(given).unwrap_or(by_size);
    if block == 0 || !block.is_multiple_of(MIB) {
        bail!("Block size must be a multiple of 1 MB");
    }
    if !block.is_power_of_two() {
        bail!("Block size must be a power of two");
    }
    if block > 256 * MIB {
        bail!("Block size must not exceed {}", 256 * MIB);
    }
    let fixed = options.take_word("subformat", &[("dynamic", false), ("fixed", true)])?.unwrap_or(false);
    let zero = options.take_bool("block-state-zero")?.unwrap_or(true);
    Ok(Plan { size, log, block, fixed, zero })
}

fn header(plan: &Plan, sequence: u64, file_guid: &[u8; 16], data_guid: &[u8; 16]) -> Vec<u8> {
    let mut out = vec![0; SECTOR as usize];
    put(&mut out, 0, b"head");
    put(&mut out, 8, &sequence.to_le_bytes());
    put(&mut out, 16, file_guid);
    put(&mut out, 32, data_guid);
    put(&mut out, 66, &1u16.to_le_bytes());
    put(&mut out, 68, &(plan.log as u32).to_le_bytes());
    put(&mut out, 72, &MIB.to_le_bytes());
    seal(&mut out);
    out
}

fn region_table(plan: &Plan) -> Vec<u8> {
    let mut out = vec![0; REGION_LEN as usize];
    put(&mut out, 0, b"regi");
    put(&mut out, 8, &2u32.to_le_bytes());
    let regions = [(BAT, plan.bat(), plan.bat_len()), (METADATA, plan.metadata(), MIB)];
    for (at, (guid, offset, len)) in regions.into_iter().enumerate() {
        let at = 16 + at * 32;
        put(&mut out, at, &guid);
        put(&mut out, at + 16, &offset.to_le_bytes());
        put(&mut out, at + 24, &(len as u32).to_le_bytes());
        put(&mut out, at + 28, &1u32.to_le_bytes());
    }
    seal(&mut out);
    out
}

fn metadata_table(plan: &Plan) -> Vec<u8> {
    const ITEMS: u64 = 64 << 10;
    let mut parameters = [0; 8];
    put(&mut parameters, 0, &(plan.block as u32).to_le_bytes());
    put(&mut parameters, 4, &u32::from(plan.fixed).to_le_bytes());
    let page = super::super::random_uuid();
    // Item, content, flags: for the virtual disk (2), required (4).
    let items: [([u8; 16], Vec<u8>, u32); 5] = [
        (PARAMETERS, parameters.to_vec(), 4),
        (DISK_SIZE, plan.size.to_le_bytes().to_vec(), 6),
        (PAGE_83, page.to_vec(), 6),
        (LOGICAL, 512u32.to_le_bytes().to_vec(), 6),
        (PHYSICAL, 512u32.to_le_bytes().to_vec(), 6),
    ];
    let mut out = vec![0; ITEMS as usize + 4096];
    put(&mut out, 0, b"metadata");
    put(&mut out, 10, &(items.len() as u16).to_le_bytes());
    let mut next = ITEMS as usize;
    for (at, (guid, content, flags)) in items.iter().enumerate() {
        let at = 32 + at * 32;
        put(&mut out, at, guid);
        put(&mut out, at + 16, &(next as u32).to_le_bytes());
        put(&mut out, at + 20, &(content.len() as u32).to_le_bytes());
        put(&mut out, at + 24, &flags.to_le_bytes());
        put(&mut out, next, content);
        next += content.len();
    }
    out
}

async fn write_bat(file: &Child, plan: &Plan) -> IoResult {
    let (chunk, blocks) = (plan.chunk(), plan.blocks());
    let total = slots(blocks, chunk);
    let mut at = 0;
    while at < total {
        let some = (total - at).min(1 << 16);
        let word = |slot: u64| {
            let index = slot - slot / (chunk + 1);
            match slot % (chunk + 1) {
                inner if inner == chunk => 0,
                _ if plan.fixed => (plan.data() + index * plan.block) | 6,
                _ => 2,
            }
        };
        let words: Vec<u64> = (at..at + some).map(word).collect();
        file.write(plan.bat() + at * 8, &Word::Le64.write(&words), WriteFlags::empty()).await?;
        at += some;
    }
    Ok(())
}

pub(super) fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let plan = take(create)?;
        let file = create.file().await?;
        create.finish()?;
        file.truncate(0, Truncate::default()).await?;
        let room = if plan.fixed { plan.blocks() * plan.block } else { 0 };
        file.truncate(plan.data() + room, Truncate::default()).await?;
        let write = |at: u64, bytes: Vec<u8>| {
            let file = &file;
            async move { file.write(at, &bytes, WriteFlags::empty()).await }
        };
        let (file_guid, data_guid) = (super::super::random_uuid(), super::super::random_uuid());
        for (at, place) in HEADERS.into_iter().enumerate() {
            write(place, header(&plan, 1 + at as u64, &file_guid, &data_guid)).await?;
        }
        for place in REGIONS {
            write(place, region_table(&plan)).await?;
        }
        write(plan.metadata(), metadata_table(&plan)).await?;
        if plan.fixed || plan.zero {
            write_bat(&file, &plan).await?;
        }
        let mut id = b"vhdxfile".to_vec();
        id.extend("Ryokan".encode_utf16().flat_map(u16::to_le_bytes));
        id.resize(SECTOR as usize, 0);
        write(0, id).await?;
        Ok(file.flush().await?)
    })
}
