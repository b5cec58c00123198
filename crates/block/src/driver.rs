//! What a format, protocol or filter is: a [`Driver`] record and a [`Layer`] it opens.

use crate::bitmap::Bitmaps;
use crate::graph::{Child, Graph, Node, Settings};
use crate::options::Options;
use crate::types::*;
use base::notice::Notices;
use base::{Result, bail, fail};
use serde_json::Value;
use std::sync::{Arc, Weak};

/// What sort of node a driver makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads an image from its `file` child.
    Format,
    /// Reaches storage outside the graph.
    Protocol,
    /// Shows a child's data, doing something on the way.
    Filter,
}

/// What probing looks at.
pub struct Probe<'a> {
    /// The first bytes of the file, at most 2048.
    pub head: &'a [u8],
    pub filename: &'a str,
    /// Length of the file in bytes.
    pub size: u64,
}

/// One option of image creation as tools and `-o help` know it.
pub struct CreateOption {
    /// Customary name of command line tools (`cluster_size`).
    pub name: &'static str,
    /// Name in `blockdev-create` (`cluster-size`).
    pub modern: &'static str,
    pub help: &'static str,
}

pub type OpenFn = for<'a> fn(&'a mut Open) -> Fut<'a, Result<Arc<dyn Layer>>>;
pub type CreateFn = for<'a> fn(&'a mut Create) -> Fut<'a, Result<()>>;

/// A driver's record; the list of all is [`crate::formats::DRIVERS`].
pub struct Driver {
    pub name: &'static str,
    pub kind: Kind,
    /// File name prefixes (`nbd`, `http`) that lead to this protocol.
    pub schemes: &'static [&'static str],
    /// How surely a file is of this format, 0 (no) to 100.
    pub probe: Option<fn(&Probe<'_>) -> u32>,
    /// Whether what it needs of the host is there; else it is as if there were no such driver.
    pub present: fn() -> bool,
    pub open: OpenFn,
    /// Makes an image from `blockdev-create` options.
    pub create: Option<CreateFn>,
    pub create_options: &'static [CreateOption],
    /// The words that options of creation take, by their modern names; the others are no text.
    pub create_words: &'static [(&'static str, &'static [&'static str])],
    /// [`Layer::amend`] changes open images.
    pub amends: bool,
    /// The format records a backing file.
    pub backing: bool,
    /// Clusters may be written compressed.
    pub compresses: bool,
    /// Nodes of it cannot be written.
    pub read_only: bool,
    /// Others may write its files while it is opened.
    pub shares: bool,
    /// Options that a new image has by itself, as they are told: before its size and after.
    pub defaults: (&'static str, &'static str),
    /// A running machine with such a writable node cannot migrate.
    pub blocks_migration: bool,
    /// `blockdev-reopen` can be asked for it.
    pub reopens: bool,
    /// Its own options that [`Layer::reopen`] takes anew, to their defaults where they are not
    /// given; all others stay as they are.
    pub changes: &'static [&'static str],
    /// Options that change what a node shows, so that its file name alone does not say what it is.
    pub telling: &'static [&'static str],
}

/// What is common in records: override the rest with `..Driver::DEFAULT`.
impl Driver {
    pub const DEFAULT: Driver = Driver {
        name: "",
        kind: Kind::Format,
        schemes: &[],
        probe: None,
        present: || true,
        open: |_| Box::pin(async { bail!("this feature or command is not currently supported") }),
        create: None,
        create_options: &[],
        create_words: &[],
        amends: false,
        backing: false,
        compresses: false,
        read_only: false,
        shares: false,
        defaults: ("", ""),
        blocks_migration: false,
        reopens: true,
        changes: &[],
        telling: &[],
    };
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What a layer may keep of the graph around it.
#[derive(Clone)]
pub struct Context {
    pub node_name: String,
    pub notices: Notices,
    pub graph: Weak<Graph>,
    /// The dirty bitmaps of the node; persistent ones are put here while opening.
    pub bitmaps: Arc<Bitmaps>,
}

/// Everything an open function is given. It takes the options it knows from `options` and
/// asks for its children; what is left in `options` is refused afterwards.
pub struct Open {
    pub graph: Arc<Graph>,
    pub driver: &'static Driver,
    pub context: Context,
    pub options: Options,
    /// Cache mode, read-only and so on. A driver may set `read_only` when
    /// `auto_read_only` allows it.
    pub settings: Settings,
    pub(crate) children: Vec<Child>,
    /// Nodes that must stay until the new node holds them.
    pub(crate) pins: Vec<crate::graph::Pin>,
}

impl Open {
    /// The `file` child of an image format.
    pub async fn file(&mut self) -> Result<Child> {
        self.child("file", Role::IMAGE).await
    }

    /// A child from option `name`: a node name or a table of options.
    pub async fn child(&mut self, name: &str, role: Role) -> Result<Child> {
        match self.options.take(name) {
            Some(value) => self.child_from(name, role, value).await,
            None => bail!("A block device must be specified for \"{name}\""),
        }
    }

    /// As [`Open::child`], but the option may be missing or `null`.
    pub async fn optional_child(&mut self, name: &str, role: Role) -> Result<Option<Child>> {
        match self.options.take(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self.child_from(name, role, value).await.map(Some),
        }
    }

    /// A child from an option value that the driver has taken or made.
    pub async fn child_from(&mut self, name: &str, role: Role, value: Value) -> Result<Child> {
        let graph = self.graph.clone();
        let node = graph.open_child(&self.options, (name, value), role, &self.settings).await?;
        graph.link(self, name, role, &node)
    }

    /// The backing child: from option `backing`, else from what the image header says.
    /// `null` or an empty name means none.
    pub async fn backing(&mut self, header: Option<(&str, Option<&str>)>) -> Result<Option<Child>> {
        let given = self.options.take("backing");
        let value = match given {
            Some(Value::Null) => return Ok(None),
            Some(Value::String(name)) if name.is_empty() => return Ok(None),
            Some(Value::Object(map)) => {
                let mut table = Options::from(map);
                if !names_file(&table) {
                    let Some((name, format)) = header else {
                        bail!("Driver specified for an image without backing file")
                    };
                    table.set("filename", self.beside(name)?);
                    if let Some(format) = format {
                        table.default_to("driver", format);
                    }
                }
                Value::Object(table.0)
            }
            Some(other) => other,
            None => match header {
                None => return Ok(None),
                Some(("", _)) => return Ok(None),
                Some((name, format)) => {
                    let mut table = Options::new();
                    table.set("filename", self.beside(name)?);
                    if let Some(format) = format {
                        table.set("driver", format);
                    }
                    Value::Object(table.0)
                }
            },
        };
        let graph = self.graph.clone();
        let node = graph.open_child(&self.options, ("backing", value), Role::BACKING, &self.settings).await;
        let node = node.map_err(|why| why.within("Could not open backing file"))?;
        graph.link(self, "backing", Role::BACKING, &node).map(Some)
    }

    /// A file name from the image header, seen from the directory the image lies in.
    pub fn beside(&self, name: &str) -> Result<String> {
        crate::graph::filename::combine(&self.place(), name)
    }

    /// The same for a name that is a path, whatever it looks like.
    pub fn path_beside(&self, name: &str) -> Result<String> {
        crate::graph::filename::combine_path(&self.place(), name)
    }

    fn place(&self) -> String {
        let image = self.children.iter().find(|child| child.role().contains(Role::PRIMARY));
        image.map(|child| child.node().place()).unwrap_or_default()
    }

    /// Refuses writing, unless read-only was asked for: for formats that are only read.
    pub fn read_only(&mut self) -> Result<()> {
        if self.settings.read_only {
            return Ok(());
        }
        if self.settings.auto_read_only {
            self.settings.read_only = true;
            return Ok(());
        }
        Err(fail!("Image is read-only"))
    }
}

/// Whether options of a backing file say where it lies, so that the header need not.
fn names_file(table: &Options) -> bool {
    let format = table
        .get_str("driver")
        .is_none_or(|name| crate::formats::find(name).is_some_and(|driver| driver.kind == Kind::Format));
    let file = match table.get("file") {
        Some(Value::Object(file)) => file.contains_key("filename") || file.contains_key("driver"),
        file => file.is_some(),
    };
    !format || file || table.contains("filename")
}

/// What a create function is given: `blockdev-create` options without `driver`.
pub struct Create {
    pub graph: Arc<Graph>,
    pub options: Options,
    /// By file name, as tools do it: sizes are rounded to what the format can tell, and further
    /// files are made where they are needed.
    pub by_name: bool,
    pub(crate) held: Vec<Child>,
}

impl Create {
    pub fn new(graph: Arc<Graph>, options: Options, by_name: bool) -> Self {
        Create { graph, options, by_name, held: Vec::new() }
    }

    /// The file to write the image into: option `file`, a node name or a table.
    pub async fn file(&mut self) -> Result<Child> {
        self.child("file").await
    }

    /// Another node to be written, by the name of its option.
    pub async fn child(&mut self, name: &str) -> Result<Child> {
        let Some(value) = self.options.take(name) else { bail!("Parameter '{name}' is missing") };
        let settings = Settings { read_only: false, ..Settings::default() };
        let node = self.graph.open_child(&self.options, (name, value), Role::IMAGE, &settings).await?;
        let child = Child::new(name, Role::IMAGE, crate::graph::Parent::Named("create".into()), &node);
        let all = Perm::all();
        self.graph.attach(&child, Perm::WRITE | Perm::RESIZE | Perm::CONSISTENT_READ, all)?;
        self.held.push(child.clone());
        Ok(child)
    }

    /// Takes `size`, which every format needs, a multiple of 512.
    pub fn size(&mut self) -> Result<u64> {
        let size = self.options.need_u64("size")?;
        if size > i64::MAX as u64 {
            bail!("Image size must be less than 8 EiB!");
        }
        Ok(size)
    }

    /// To be called when all known options are taken.
    pub fn finish(&self) -> Result<()> {
        self.options.finish()
    }

    /// Lets go of the nodes (done by the graph after creation).
    pub(crate) fn release(&mut self) {
        for child in self.held.drain(..) {
            self.graph.detach(&child);
        }
    }
}

/// What tools tell of an image.
#[derive(Clone, Debug, Default)]
pub struct Info {
    /// Cluster (allocation unit) in bytes, if the format has one.
    pub cluster_size: Option<u64>,
    /// The image was not closed cleanly.
    pub dirty: Option<bool>,
    pub encrypted: bool,
    pub compressed: bool,
    /// As written in the header.
    pub backing_filename: Option<String>,
    pub backing_format: Option<String>,
    /// `{"type": ..., "data": {...}}` as in ImageInfoSpecific.
    pub specific: Option<Value>,
    /// Bytes that VM state may take after the guest's data begin here.
    pub vm_state_offset: Option<u64>,
}

/// What `check` found (all counts as `qemu-img check` has them).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    pub corruptions: u64,
    pub leaks: u64,
    pub check_errors: u64,
    pub corruptions_fixed: u64,
    pub leaks_fixed: u64,
    pub image_end_offset: Option<u64>,
    pub total_clusters: u64,
    pub allocated_clusters: u64,
    pub fragmented_clusters: u64,
    pub compressed_clusters: u64,
    /// One line for each finding, for people.
    pub messages: Vec<String>,
}

/// What `check` may repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    Nothing,
    Leaks,
    All,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Snapshot {
    pub id: String,
    pub name: String,
    pub vm_state_size: u64,
    pub date_sec: u32,
    pub date_nsec: u32,
    /// Nanoseconds of the virtual clock.
    pub vm_clock_nsec: u64,
    pub icount: Option<u64>,
}

/// Facet: internal snapshots.
pub trait Snapshots: Send + Sync {
    fn list(&self) -> Vec<Snapshot>;
    /// Makes a snapshot; an empty `id` is chosen.
    fn create<'a>(&'a self, snapshot: Snapshot) -> Fut<'a, IoResult>;
    /// By id or name, as [`Snapshots::find`] gives it.
    fn delete<'a>(&'a self, id: &'a str) -> Fut<'a, IoResult>;
    /// Goes back to a snapshot.
    fn goto<'a>(&'a self, id: &'a str) -> Fut<'a, IoResult>;
    /// VM state of the current state, after the guest's data.
    fn read_vmstate<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult>;
    fn write_vmstate<'a>(&'a self, offset: u64, data: &'a [u8]) -> Fut<'a, IoResult>;

    /// By id and name where given (both must match).
    fn find(&self, id: Option<&str>, name: Option<&str>) -> Option<Snapshot> {
        let fits = |s: &Snapshot| id.is_none_or(|id| s.id == id) && name.is_none_or(|name| s.name == name);
        self.list().into_iter().find(fits)
    }
}

/// Facet: dirty bitmaps kept in the image. The bitmaps themselves are in
/// [`Context::bitmaps`]; the layer stores the persistent ones when it is closed or made
/// read-only.
pub trait StoredBitmaps: Send + Sync {
    /// Whether one more can be stored (name length, granularity, count), with the
    /// customary text if not.
    fn can_store<'a>(&'a self, name: &'a str, granularity: u32) -> Fut<'a, Result<()>>;
    /// Takes a stored bitmap out of the image.
    fn remove<'a>(&'a self, name: &'a str) -> Fut<'a, Result<()>>;
}

/// Facet: several children of one kind that come and go while the node is in use
/// (`x-blockdev-change`). The graph attaches and detaches them; no request is in flight.
pub trait Siblings: Send + Sync {
    /// The name of one more child, if there may be one with this size.
    fn next(&self, size: u64) -> Result<String>;
    fn put(&self, child: Child);
    /// Refuses where the child is needed.
    fn take(&self, child: &Child) -> Result<()>;
}

/// Discards that went well, and their bytes; those that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discards {
    pub done: u64,
    pub bytes: u64,
    pub failed: u64,
}

/// An opened format, protocol or filter.
///
/// Methods are called from many tasks at once. The graph makes requests fit
/// [`Layer::limits`] and lie below [`Layer::size`] (writes may pass it where
/// [`Layer::grows`]); lengths are never 0. Futures must tolerate being polled by another
/// thread than before, and may be dropped at an await point only when the process ends.
pub trait Layer: Send + Sync + 'static {
    /// Guest-visible size in bytes. Cheap.
    fn size(&self) -> u64;

    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// A write past the end makes the image longer.
    fn grows(&self) -> bool {
        false
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult>;

    fn write<'a>(&'a self, _offset: u64, _data: &'a [u8], _flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async { Err(errno(libc::EROFS)) })
    }

    /// `ENOTSUP` makes the graph write buffers of zeroes.
    fn write_zeroes<'a>(&'a self, _offset: u64, _len: u64, _flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    /// A hint; `ENOTSUP` is taken as done.
    fn discard<'a>(&'a self, _offset: u64, _len: u64) -> Fut<'a, IoResult> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    /// Brings what the layer itself holds back to its children. The graph flushes the
    /// children afterwards.
    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async { Ok(()) })
    }

    /// About a range that begins at `offset`, at most `len` long.
    fn block_status<'a>(&'a self, _offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        let flags = StatusFlags::DATA | StatusFlags::ALLOCATED;
        Box::pin(async move { Ok(Status { flags, len, offset: None }) })
    }

    fn truncate<'a>(&'a self, _size: u64, _how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async { bail!("Image format driver does not support resize") })
    }

    /// Everything to disk, marks the image clean. No request follows.
    fn close(&self) -> Fut<'_, IoResult> {
        self.flush()
    }

    /// The permissions a child is used with, given what the node's own users do. The
    /// default suits formats (metadata always writable unless read-only) and filters.
    fn child_perm(&self, role: Role, read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        crate::graph::perm::default_for(role, read_only, perm, shared)
    }

    /// [`Layer::amend`] is about to come, or is over: [`Layer::child_perm`] may say something else.
    fn amending(&self, _on: bool) {}

    /// The users of the node changed what they do and share. May take or give up file locks.
    fn set_perm(&self, _perm: Perm, _shared: Perm) -> Result<()> {
        Ok(())
    }

    /// New settings (`blockdev-reopen`, or read-only to read-write and back); no request
    /// is in flight. Settings it does not look at need nothing. Of options there are those that
    /// [`Driver::changes`] names.
    fn reopen<'a>(&'a self, _to: &'a Settings, _options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// The `file` child is about to lead to another node: all goes to the old one.
    fn leave_file(&self) -> Fut<'_, Result<()>> {
        Box::pin(async { self.flush().await.map_err(Into::into) })
    }

    /// The `file` child leads elsewhere since [`Layer::leave_file`], or stayed after all: what was
    /// known of it is read again.
    fn file_moved(&self) -> Fut<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// The options by which [`Layer::reopen`] brings back what it changes.
    fn reopened_by(&self) -> Options {
        Options::new()
    }

    fn info(&self) -> Info {
        Info::default()
    }

    /// Bytes that the image takes on the host; `None` asks the children.
    fn allocated_size(&self) -> Fut<'_, Option<u64>> {
        Box::pin(async { None })
    }

    /// The plain file name by which a protocol can be opened again.
    fn filename(&self) -> Option<String> {
        None
    }

    fn check<'a>(&'a self, _fix: Fix) -> Fut<'a, IoResult<Check>> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    /// Changes the image as `x-blockdev-amend` says, whose options are without `driver`; with
    /// `force` also where data may be lost.
    fn amend<'a>(
        &'a self,
        _options: &'a mut Options,
        _vault: &'a dyn crate::Vault,
        _force: bool,
    ) -> Fut<'a, Result<()>> {
        Box::pin(async { bail!("This image cannot be amended") })
    }

    /// Gives up everything the image holds itself, so that what it stands on shows.
    fn make_empty(&self) -> Fut<'_, IoResult> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    /// Rewrites the backing file name in the header; `None` removes it.
    fn change_backing<'a>(&'a self, _name: Option<&'a str>, _format: Option<&'a str>) -> Fut<'a, IoResult> {
        Box::pin(async { Err(errno(libc::ENOTSUP)) })
    }

    /// The backing child was put in, replaced or taken away.
    fn set_backing(&self, _backing: Option<Child>) -> Result<()> {
        bail!("this feature or command is not currently supported")
    }

    /// How discards of a file of the host went, since it was opened.
    fn discards(&self) -> Option<Discards> {
        None
    }

    /// The backing file as the image's header names it.
    fn header_backing(&self) -> Option<String> {
        self.info().backing_filename
    }

    /// New images are known to read as zeroes.
    fn zero_initialised(&self) -> bool {
        false
    }

    /// A key that may be given after opening (`block_passwd`).
    fn late_key(&self) -> Option<&crate::crypto::OldAes> {
        None
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    fn stored_bitmaps(&self) -> Option<&dyn StoredBitmaps> {
        None
    }

    fn siblings(&self) -> Option<&dyn Siblings> {
        None
    }

    /// Requests that the layer holds back go on at once, and new ones do, until it is called with
    /// `false` (as often as with `true`): somebody waits for them.
    fn hasten(&self, _on: bool) {}

    /// Requests that wait for a server to come back fail at once, and new ones do, until it is
    /// called with `false` (as often as with `true`): nobody needs what they do any more.
    fn give_up(&self, _on: bool) {}

    /// For filters with commands of their own (blkdebug `break`, throttle group): a
    /// driver's own code finds its layer by this.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// A node's layer as type `T`.
pub fn layer_of<T: 'static>(node: &Node) -> Option<&T> {
    node.layer().as_any().downcast_ref()
}
