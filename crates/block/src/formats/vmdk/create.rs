//! Making images.

use super::descriptor::Text;
use super::sparse::{self, DESCRIPTOR_SECTORS, New};
use super::{NO_PARENT, SECTOR, Vmdk, fresh_cid};
use crate::driver::{Create, layer_of};
use crate::graph::{Child, Settings, filename};
use crate::options::Options;
use crate::types::*;
use base::{Result, bail};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

/// An extent of the split subformats holds at most this, in bytes.
const SPLIT: u64 = 2 << 30;

#[derive(Clone, Copy)]
struct Subformat {
    name: &'static str,
    flat: bool,
    split: bool,
    compressed: bool,
}

const SUBFORMATS: &[Subformat] = &[
    Subformat { name: "monolithicSparse", flat: false, split: false, compressed: false },
    Subformat { name: "monolithicFlat", flat: true, split: false, compressed: false },
    Subformat { name: "twoGbMaxExtentSparse", flat: false, split: true, compressed: false },
    Subformat { name: "twoGbMaxExtentFlat", flat: true, split: true, compressed: false },
    Subformat { name: "streamOptimized", flat: false, split: false, compressed: true },
];

pub(super) const ADAPTERS: &[&str] = &["ide", "lsilogic", "buslogic", "legacyESX"];
pub(super) const NAMES: &[&str] =
    &[SUBFORMATS[0].name, SUBFORMATS[1].name, SUBFORMATS[2].name, SUBFORMATS[3].name, SUBFORMATS[4].name];

struct Plan {
    size: u64,
    subformat: Subformat,
    backing: Option<String>,
    adapter: String,
    hardware: String,
    tools: String,
    zero_words: bool,
}

fn take(create: &mut Create) -> Result<Plan> {
    let size = create.size()?.next_multiple_of(SECTOR);
    let options = &mut create.options;
    let words: Vec<(&str, Subformat)> = SUBFORMATS.iter().map(|one| (one.name, *one)).collect();
    let subformat = options.take_word("subformat", &words)?.unwrap_or(SUBFORMATS[0]);
    let adapters: Vec<_> = ADAPTERS.iter().map(|name| (*name, *name)).collect();
    let adapter = options.take_word("adapter-type", &adapters)?.unwrap_or("ide").to_string();
    let backing = options.take_str("backing-file")?.filter(|name| !name.is_empty());
    if options.take_str("backing-fmt")?.is_some_and(|format| format != "vmdk") {
        bail!("backing_file must be a vmdk image");
    }
    let compat6 = options.take_bool("compat6")?.unwrap_or(false);
    let hardware = options.take_str("hwversion")?;
    if compat6 && hardware.is_some() {
        bail!("compat6 cannot be enabled with hwversion set");
    }
    let hardware = hardware.unwrap_or_else(|| if compat6 { "6" } else { "4" }.to_string());
    let tools = options.take_str("toolsversion")?.unwrap_or_else(|| "2147483647".to_string());
    let zero_words = options.take_bool("zeroed-grain")?.unwrap_or(false);
    if subformat.flat && backing.is_some() {
        bail!("Flat image can't have backing file");
    }
    if subformat.flat && zero_words {
        bail!("Flat image can't enable zeroed grain");
    }
    let texts = [backing.as_deref().unwrap_or(""), &hardware, &tools];
    if texts.iter().any(|text| text.contains(['"', '\n', '\0'])) {
        bail!("A name in a VMDK descriptor cannot have quotes or line ends");
    }
    Ok(Plan { size, subformat, backing, adapter, hardware, tools, zero_words })
}

impl Plan {
    /// The lengths of the extents in bytes.
    fn lengths(&self) -> Vec<u64> {
        match self.subformat.split {
            false => vec![self.size],
            true => {
                (0..self.size.div_ceil(SPLIT).max(1)).map(|at| SPLIT.min(self.size - at * SPLIT)).collect()
            }
        }
    }

    /// The file name of an extent, from that of the descriptor.
    fn extent_name(&self, image: &str, number: usize) -> String {
        let (dir, base) = image.rsplit_once('/').map_or(("", image), |(dir, base)| (dir, base));
        let (stem, ending) = base.rfind('.').map_or((base, ""), |at| base.split_at(at));
        let letter = if self.subformat.flat { 'f' } else { 's' };
        let name = match self.subformat.split {
            true => format!("{stem}-{letter}{:03}{ending}", number + 1),
            false => format!("{stem}-flat{ending}"),
        };
        if image.contains('/') { format!("{dir}/{name}") } else { name }
    }
}

fn last_part(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, base)| base)
}

/// The content ID of the backing image, which must be vmdk too.
async fn parent_cid(create: &Create, image: &str, backing: &str) -> Result<u32> {
    let name = filename::combine(image, backing)?;
    let settings = Settings { read_only: true, ..Settings::default() };
    let pin = create.graph.open(Options::json(json!({"filename": name})), settings).await?;
    let Some(parent) = layer_of::<Vmdk>(&pin) else {
        bail!("Invalid backing file format: {}. Must be vmdk", pin.driver().name)
    };
    Ok(parent.cid.load(Ordering::Acquire))
}

/// The files of extents that are not the image file itself: given, or made beside it.
async fn extent_files(create: &mut Create, plan: &Plan, image: &str) -> Result<Vec<Child>> {
    let given = create.options.take_list("extents")?;
    if !plan.subformat.flat && !plan.subformat.split {
        if given.is_some_and(|list| !list.is_empty()) {
            bail!("List of extents contains unused extents");
        }
        return Ok(Vec::new());
    }
    let count = plan.lengths().len();
    let given: Vec<Value> = match given {
        Some(list) if list.len() > count => bail!("List of extents contains unused extents"),
        Some(list) if list.len() < count => bail!("Extent [{}] not specified", list.len()),
        Some(list) => list,
        None if !create.by_name => bail!("Extent [0] not specified"),
        None => {
            let mut made = Vec::new();
            for number in 0..count {
                let file = json!({"driver": "file", "filename": plan.extent_name(image, number)});
                let mut options = Options::json(file.clone());
                options.set("size", 0);
                create.graph.create(options).await?;
                made.push(file);
            }
            made
        }
    };
    let mut files = Vec::new();
    for value in given {
        create.options.set("extent", value);
        files.push(create.child("extent").await?);
    }
    Ok(files)
}

async fn fill_extent(file: &Child, plan: &Plan, len: u64) -> Result<()> {
    if plan.subformat.flat {
        file.truncate(0, Truncate::default()).await?;
        return file.truncate(len, Truncate::default()).await;
    }
    let new = New { size: len, compressed: plan.subformat.compressed, zero_words: plan.zero_words };
    sparse::write(file, &new).await
}

pub(super) fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let plan = take(create)?;
        let file = create.file().await?;
        let image = file.node().filename();
        let parent = match &plan.backing {
            Some(name) => parent_cid(create, &image, name).await?,
            None => NO_PARENT,
        };
        let others = extent_files(create, &plan, &image).await?;
        create.finish()?;
        let kind = if plan.subformat.flat { "FLAT" } else { "SPARSE" };
        let tail = if plan.subformat.flat { " 0" } else { "" };
        let single = std::slice::from_ref(&file);
        let files = if others.is_empty() { single } else { &others[..] };
        let mut lines = Vec::new();
        for (file, len) in files.iter().zip(plan.lengths()) {
            fill_extent(file, &plan, len).await?;
            let name = file.node().filename();
            lines.push(format!("RW {} {kind} \"{}\"{tail}\n", len / SECTOR, last_part(&name)));
        }
        let text = Text {
            cid: fresh_cid(),
            parent: plan.backing.as_deref().map(|name| (parent, name)),
            create_type: plan.subformat.name,
            extents: lines,
            hardware: &plan.hardware,
            tools: &plan.tools,
            sectors: plan.size / SECTOR,
            adapter: &plan.adapter,
        };
        let text = text.render();
        if others.is_empty() {
            if text.len() as u64 > DESCRIPTOR_SECTORS * SECTOR {
                bail!("The VMDK descriptor is too long");
            }
            file.write(SECTOR, text.as_bytes(), WriteFlags::empty()).await?;
        } else {
            file.truncate(0, Truncate::default()).await?;
            file.write(0, text.as_bytes(), WriteFlags::empty()).await?;
        }
        for file in &others {
            file.flush().await?;
        }
        Ok(file.flush().await?)
    })
}
