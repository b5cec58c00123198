//! The descriptor: the text that names extents, parent and content IDs.

use super::{NO_PARENT, SECTOR};
use base::{Result, bail};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentKind {
    Flat,
    Sparse,
    Zero,
}

#[derive(Clone, Debug)]
pub(super) struct ExtentLine {
    pub writable: bool,
    pub sectors: u64,
    pub kind: ExtentKind,
    pub name: String,
    /// Where the data begin in the file, in bytes.
    pub offset: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Descriptor {
    pub cid: u32,
    /// Where the one to eight digits of the content ID stand in the file, and how many.
    pub cid_at: Option<(u64, usize)>,
    pub parent_cid: u32,
    pub create_type: String,
    pub parent: Option<String>,
    pub extents: Vec<ExtentLine>,
}

/// A text whose first line that says something is a version.
pub(super) fn looks_like(head: &[u8]) -> bool {
    for line in head.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        return matches!(line, b"version=1" | b"version=2" | b"version=3");
    }
    false
}

impl Descriptor {
    /// `place` is where `bytes` stand in the file.
    pub fn parse(bytes: &[u8], place: u64) -> Result<Descriptor> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let Ok(text) = std::str::from_utf8(&bytes[..end]) else { bail!("The VMDK descriptor is not text") };
        let mut found = Descriptor { parent_cid: NO_PARENT, ..Descriptor::default() };
        let mut at = 0;
        for raw in text.split_inclusive('\n') {
            found.take_line(raw.trim(), place + (at + raw.len() - raw.trim_start().len()) as u64)?;
            at += raw.len();
        }
        if found.create_type.is_empty() {
            bail!("invalid VMDK image descriptor");
        }
        Ok(found)
    }

    fn take_line(&mut self, line: &str, place: u64) -> Result<()> {
        let unquoted = |value: &str| value.trim().trim_matches('"').to_string();
        if let Some(value) = line.strip_prefix("CID=") {
            let Ok(cid) = u32::from_str_radix(value.trim(), 16) else {
                bail!("invalid CID in VMDK descriptor")
            };
            self.cid = cid;
            let digits = value.trim().len();
            self.cid_at = (1..=8).contains(&digits).then_some((place + 4, digits));
        } else if let Some(value) = line.strip_prefix("parentCID=") {
            let Ok(cid) = u32::from_str_radix(value.trim(), 16) else {
                bail!("invalid parentCID in VMDK descriptor")
            };
            self.parent_cid = cid;
        } else if let Some(value) = line.strip_prefix("createType=") {
            self.create_type = unquoted(value);
        } else if let Some(value) = line.strip_prefix("parentFileNameHint=") {
            self.parent = Some(unquoted(value)).filter(|name| !name.is_empty());
        } else if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)) {
            self.extents.push(extent(line)?);
        }
        Ok(())
    }
}

/// `RW 4192256 SPARSE "a-s001.vmdk"`, `RW 20480 FLAT "a-flat.vmdk" 0`.
fn extent(line: &str) -> Result<ExtentLine> {
    let mut words = line.splitn(4, ' ').map(str::trim);
    let access = words.next().unwrap_or_default();
    let sectors: Option<u64> = words.next().and_then(|word| word.parse().ok());
    let Some(sectors) = sectors.filter(|count| *count <= i64::MAX as u64 / SECTOR) else {
        bail!("Invalid extent line: {line}")
    };
    let kind = match words.next() {
        Some("FLAT" | "VMFS") => ExtentKind::Flat,
        Some("SPARSE" | "VMFSSPARSE") => ExtentKind::Sparse,
        Some("ZERO") => ExtentKind::Zero,
        other => bail!("Unsupported extent type '{}'", other.unwrap_or_default()),
    };
    let rest = words.next().unwrap_or_default();
    let quoted = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    let (name, offset) = match quoted {
        Some((name, after)) => {
            let after = after.trim();
            let offset = if after.is_empty() { Some(0) } else { after.parse::<u64>().ok() };
            (name.to_string(), offset.and_then(|sectors| sectors.checked_mul(SECTOR)))
        }
        None if kind == ExtentKind::Zero => (String::new(), Some(0)),
        None => (String::new(), None),
    };
    let Some(offset) = offset.filter(|offset| *offset <= i64::MAX as u64) else {
        bail!("Invalid extent line: {line}")
    };
    if access == "NOACCESS" {
        bail!("The extent '{name}' may not be accessed");
    }
    Ok(ExtentLine { writable: access == "RW", sectors, kind, name, offset })
}

/// What a new descriptor says.
pub(super) struct Text<'a> {
    pub cid: u32,
    pub parent: Option<(u32, &'a str)>,
    pub create_type: &'a str,
    pub extents: Vec<String>,
    pub hardware: &'a str,
    pub tools: &'a str,
    pub sectors: u64,
    pub adapter: &'a str,
}

impl Text<'_> {
    pub fn render(&self) -> String {
        let heads = if self.adapter == "ide" { 16 } else { 255 };
        let parent_cid = self.parent.map_or(NO_PARENT, |(cid, _)| cid);
        let hint =
            self.parent.map(|(_, name)| format!("parentFileNameHint=\"{name}\"\n")).unwrap_or_default();
        format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{}\"\n{hint}\n\
             # Extent description\n{}\n# The Disk Data Base\n#DDB\n\n\
             ddb.virtualHWVersion = \"{}\"\nddb.geometry.cylinders = \"{}\"\nddb.geometry.heads = \"{heads}\"\n\
             ddb.geometry.sectors = \"63\"\nddb.adapterType = \"{}\"\nddb.toolsVersion = \"{}\"\n",
            self.cid,
            self.create_type,
            self.extents.concat(),
            self.hardware,
            self.sectors / (63 * heads),
            self.adapter,
            self.tools
        )
    }
}
