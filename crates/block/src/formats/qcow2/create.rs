//! Making images.

use super::entry::{COPIED, Geometry};
use super::header::*;
use super::refcounts;
use super::{Qcow2, encrypt};
use crate::driver::{Create, CreateOption, layer_of};
use crate::graph::Settings;
use crate::options::Options;
use crate::types::*;
use base::{Result, bail, fail};
use serde_json::json;

pub(super) static OPTIONS: &[CreateOption] = &[
    CreateOption { name: "size", modern: "size", help: "Virtual disk size" },
    CreateOption { name: "compat", modern: "version", help: "Compatibility level (v2 [0.10] or v3 [1.1])" },
    CreateOption { name: "backing_file", modern: "backing-file", help: "File name of a base image" },
    CreateOption { name: "backing_fmt", modern: "backing-fmt", help: "Image format of the base image" },
    CreateOption { name: "cluster_size", modern: "cluster-size", help: "qcow2 cluster size" },
    CreateOption {
        name: "preallocation",
        modern: "preallocation",
        help: "Preallocation mode (allowed values: off, metadata, falloc, full)",
    },
    CreateOption { name: "lazy_refcounts", modern: "lazy-refcounts", help: "Postpone refcount updates" },
    CreateOption {
        name: "refcount_bits",
        modern: "refcount-bits",
        help: "Width of a reference count entry in bits",
    },
    CreateOption { name: "extended_l2", modern: "extended-l2", help: "Extended L2 tables" },
    CreateOption { name: "data_file", modern: "data-file", help: "File name of an external data file" },
    CreateOption {
        name: "data_file_raw",
        modern: "data-file-raw",
        help: "The external data file must stay valid as a raw image",
    },
    CreateOption {
        name: "compression_type",
        modern: "compression-type",
        help: "Compression method for image clusters",
    },
];

pub(super) fn create(create: &mut Create) -> Fut<'_, Result<()>> {
    Box::pin(async {
        let recipe = encrypt::take_recipe(&mut create.options)?;
        let password = recipe.as_ref().map(|(_, key)| create.graph.vault().secret(key)).transpose()?;
        let (header, preallocation, data_node) = take_header(create).await?;
        if recipe.is_some() && header.autoclear & AUTOCLEAR_RAW_DATA != 0 {
            bail!("A raw external data file cannot be encrypted");
        }
        let file = create.file().await?;
        let data = match &data_node {
            Some(_) => Some(create.child("data-file").await?),
            None => None,
        };
        create.finish()?;
        let luks = match recipe.zip(password) {
            None => None,
            Some(((recipe, _), password)) => {
                let made = tokio::task::spawn_blocking(move || recipe.make(&password)).await;
                Some(made.map_err(|_| fail!("Making the LUKS header was interrupted"))??)
            }
        };
        let size = header.size;
        let header = Header { size: 0, ..header };
        file.truncate(0, Truncate::default()).await?;
        let cluster = header.cluster_size();
        // Header, refcount table, one refcount block, L1 (empty until the size is set).
        let block_offset = 2 * cluster;
        let mut block = vec![0; cluster as usize];
        for at in 0..4 {
            refcounts::write(&mut block, at, header.refcount_order, 1);
        }
        let mut table = vec![0; cluster as usize];
        table[..8].copy_from_slice(&block_offset.to_be_bytes());
        let mut header =
            Header { reftable_offset: cluster, reftable_clusters: 1, l1_offset: 3 * cluster, ..header };
        let empty = vec![0; cluster as usize];
        for (at, data) in [(1, &table), (2, &block), (3, &empty)] {
            file.write(at * cluster, data, WriteFlags::empty()).await?;
        }
        file.flush().await?;
        header.l1_size = 1;
        file.write(0, &header.encode()?, WriteFlags::empty()).await?;
        file.flush().await?;
        if let Some(data) = &data
            && data.size() < size
        {
            data.truncate(size, Truncate::default()).await?;
        }
        let data = data.as_ref().map(|child| child.node().name().to_string());
        let rest = Rest { size, preallocation, data, luks };
        grow(create, &header, rest).await
    })
}

/// What a new image gets once it can be opened.
struct Rest {
    size: u64,
    preallocation: Preallocation,
    /// Node of the external data file.
    data: Option<String>,
    /// LUKS header and key material.
    luks: Option<Vec<u8>>,
}

/// Opens the new image to give it its size and its key.
async fn grow(create: &mut Create, header: &Header, rest: Rest) -> Result<()> {
    let file = create.held[0].node().name().to_string();
    let mut options = Options::json(json!({"driver": "qcow2", "file": file, "backing": null}));
    if header.has(INCOMPAT_DATA_FILE)
        && let Some(data) = rest.data
    {
        options.set("data-file", data);
    }
    let graph = create.graph.clone();
    create.release();
    let pin = graph.open(options, Settings::default()).await?;
    let how = Truncate { exact: true, preallocation: rest.preallocation, zero: false };
    let mut result = pin.truncate(rest.size, how).await;
    if let (Ok(()), Some(luks)) = (&result, &rest.luks) {
        result = match layer_of::<Qcow2>(&pin) {
            Some(image) => image.adopt_luks(luks).await,
            None => Err(fail!("The new image is not what it was made")),
        };
    }
    drop(pin);
    graph.collect().await;
    result
}

/// What `blockdev-create` refuses in the customary words.
fn given_size(size: u64) -> Result<u64> {
    if !size.is_multiple_of(512) {
        bail!("Image size must be a multiple of 512 bytes");
    }
    if size > i64::MAX as u64 {
        bail!("Could not resize image: Image size cannot be negative");
    }
    if size > LARGEST {
        bail!("Could not resize image: offset({size}) exceeds maximum({LARGEST})");
    }
    Ok(size)
}

async fn take_header(create: &mut Create) -> Result<(Header, Preallocation, Option<()>)> {
    let size = match create.by_name {
        true => create.size()?,
        false => given_size(create.options.need_u64("size")?)?,
    };
    let options = &mut create.options;
    let versions = [("v2", 2), ("v3", 3), ("0.10", 2), ("1.1", 3)];
    let version = options.take_word("version", &versions)?.unwrap_or(3);
    let extended = options.take_bool("extended-l2")?.unwrap_or(false);
    let cluster = options.take_u64("cluster-size")?.unwrap_or(65536);
    if !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) {
        bail!("Cluster size must be a power of two between 512 and 2048k");
    }
    if extended && cluster < 16384 {
        bail!("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
    }
    if extended && version < 3 {
        bail!(
            "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
        );
    }
    let bits = options.take_u64("refcount-bits")?.unwrap_or(16);
    if !bits.is_power_of_two() || bits > 64 {
        bail!("Refcount width must be a power of two and may not exceed 64 bits");
    }
    if version < 3 && bits != 16 {
        bail!(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)"
        );
    }
    let lazy = options.take_bool("lazy-refcounts")?.unwrap_or(false);
    if lazy && version < 3 {
        bail!(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)"
        );
    }
    let preallocation = crate::graph::create::take_preallocation(options)?;
    let backing = options.take_str("backing-file")?.filter(|name| !name.is_empty());
    let backing_format = options.take_str("backing-fmt")?.filter(|name| !name.is_empty());
    if backing_format.is_some() && backing.is_none() {
        bail!("Backing format cannot be used without backing file");
    }
    if let Some(format) = &backing_format
        && crate::formats::find(format).is_none()
    {
        bail!("Invalid backing format '{format}'");
    }
    if backing.is_some() && preallocation != Preallocation::Off && !extended {
        bail!("Backing file and preallocation can only be used at the same time if extended_l2 is on");
    }
    let words = [("zlib", Compression::Zlib), ("zstd", Compression::Zstd)];
    let compression = options.take_word("compression-type", &words)?.unwrap_or_default();
    if compression != Compression::Zlib && version < 3 {
        bail!(
            "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)"
        );
    }
    let mut header = Header {
        version,
        backing,
        backing_format,
        cluster_bits: cluster.trailing_zeros(),
        size,
        refcount_order: (bits as u32).trailing_zeros(),
        compression,
        ..Header::default()
    };
    if extended {
        header.incompatible |= INCOMPAT_EXTENDED_L2;
    }
    if compression != Compression::Zlib {
        header.incompatible |= INCOMPAT_COMPRESSION;
    }
    if lazy {
        header.compatible |= COMPAT_LAZY_REFCOUNTS;
    }
    if header.l1_entries_for(size) * 8 > MAX_L1_BYTES {
        bail!(
            "{}",
            match create.by_name {
                true =>
                    "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
                false => "Could not resize image: Failed to grow the L1 table: File too large",
            }
        );
    }
    let data = data_file(create, &mut header).await?;
    Ok((header, preallocation, data))
}

/// An external data file: named in the header by its file name.
async fn data_file(create: &mut Create, header: &mut Header) -> Result<Option<()>> {
    let raw = create.options.take_bool("data-file-raw")?.unwrap_or(false);
    let Some(value) = create.options.get("data-file").cloned() else {
        if raw {
            bail!("data-file-raw requires data-file");
        }
        return Ok(None);
    };
    if header.version < 3 {
        bail!(
            "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
        );
    }
    if raw && header.backing.is_some() {
        bail!("Backing file and data-file-raw cannot be used at the same time");
    }
    let name = value.as_str().map(str::to_string);
    let node = name.as_deref().and_then(|name| create.graph.find(name));
    header.data_file = match (&node, name) {
        (Some(node), _) => Some(node.filename()),
        (None, Some(name)) => {
            let options = json!({"driver": "file", "filename": name, "size": 0});
            create.graph.create(Options::json(options)).await?;
            create.options.set("data-file", json!({"driver": "file", "filename": name}));
            Some(name)
        }
        (None, None) => value.get("filename").and_then(|name| name.as_str()).map(str::to_string),
    };
    header.incompatible |= INCOMPAT_DATA_FILE;
    if raw {
        header.autoclear |= AUTOCLEAR_RAW_DATA;
    }
    // Kept for the reader of this module: an empty L2 entry of such an image has no COPIED.
    debug_assert!(COPIED != 0 && Geometry::of(header).cluster_size() > 0);
    Ok(Some(()))
}
