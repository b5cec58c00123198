//! Opening nodes from option trees.

use super::{Child, Graph, Node, Parent, Settings, filename, node::Parts, perm};
use crate::driver::{Context, Driver, Kind, Open, Probe};
use crate::options::{Options, Origin};
use crate::types::*;
use base::{Failure, Result, bail, fail};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How much of a file is looked at to find out its format.
const PROBE: u64 = 2048;

/// Images on images: more than this is taken as a loop.
const MAX_DEPTH: usize = 200;

#[derive(Clone, Copy)]
struct Place {
    /// What the node will be to its parent; `None` at the top.
    role: Option<Role>,
    depth: usize,
}

tokio::task_local! {
    static DEPTH: usize;
}

impl Graph {
    /// Opens a node and what it stands on. It is closed again by [`Graph::collect`] unless
    /// something uses it; the returned pin does.
    pub async fn open(&self, options: Options, defaults: Settings) -> Result<super::Pin> {
        let node = self.open_boxed(options, defaults, None).await;
        if node.is_err() {
            self.collect().await;
        }
        node
    }

    /// `blockdev-add`: opens a node that stays until [`Graph::delete`].
    pub async fn add(&self, options: Options) -> Result<Arc<Node>> {
        if !options.contains("node-name") {
            bail!("'node-name' must be specified for the root node");
        }
        let pin = self.open(options, Settings::default()).await?;
        pin.kept.store(true, Ordering::Release);
        Ok(pin.clone())
    }

    /// The node a child option of `parent` means: a name, or a table to open.
    pub(crate) async fn open_child(
        &self,
        parent: &Options,
        (key, value): (&str, Value),
        role: Role,
        settings: &Settings,
    ) -> Result<super::Pin> {
        match value {
            Value::String(name) => Ok(self.by_reference(&name)?.pin()),
            Value::Object(map) => {
                let options = parent.within(key, map);
                self.open_boxed(options, settings.for_child(role), Some(role)).await
            }
            _ if role.contains(Role::BACKING) => {
                bail!("Invalid parameter type for '{key}', expected: BlockdevRefOrNull")
            }
            _ => bail!("Invalid parameter type for '{key}', expected: BlockdevRef"),
        }
    }

    fn by_reference(&self, name: &str) -> Result<Arc<Node>> {
        if let Some(node) = self.find(name) {
            return Ok(node);
        }
        match self.backend(name).and_then(|backend| backend.node()) {
            Some(node) => Ok(node),
            None => bail!("Cannot find device='{name}' nor node-name='{name}'"),
        }
    }

    fn open_boxed(
        &self,
        options: Options,
        defaults: Settings,
        role: Option<Role>,
    ) -> Fut<'_, Result<super::Pin>> {
        Box::pin(async move {
            let depth = DEPTH.try_with(|depth| *depth).unwrap_or(0);
            if depth > MAX_DEPTH {
                bail!("The chain of images is too long");
            }
            let place = Place { role, depth };
            DEPTH.scope(depth + 1, self.open_here(options, defaults, place)).await
        })
    }

    async fn open_here(&self, mut options: Options, defaults: Settings, place: Place) -> Result<super::Pin> {
        expand_json(&mut options)?;
        let name = options.take_str("node-name")?;
        let _claim = name.as_deref().map(|name| self.claim_name(name)).transpose()?;
        let name = name.unwrap_or_else(|| self.auto_name());
        let explicit = explicit_settings(&options);
        let writeback = options.get("cache").and_then(|cache| cache.get("writeback")).cloned();
        let settings = take_settings(&mut options, defaults)?;
        if let Some(writeback) = writeback.filter(|_| place.depth > 0) {
            // Of the back end, not of a node: refused as what is left.
            options.set("cache", json!({"writeback": writeback}));
        }
        options.begin();
        let given = (options.clone().said(Origin::Texts), explicit);
        let driver = self.choose_driver(&mut options, place)?;
        let mut open = Open {
            graph: self.arc(),
            driver: driver.unwrap_or(&crate::formats::raw::DRIVER),
            context: Context {
                node_name: name,
                notices: self.notices.clone(),
                graph: self.this.clone(),
                bitmaps: Arc::default(),
            },
            options,
            settings,
            children: Vec::new(),
            pins: Vec::new(),
        };
        match self.finish_open(&mut open, driver.is_none(), given).await {
            Ok(pin) => {
                pin.inherited.store(place.role.is_some(), Ordering::Release);
                Ok(pin)
            }
            Err(why) => {
                for child in open.children.drain(..) {
                    self.detach(&child);
                }
                if place.depth == 0 {
                    self.collect().await;
                }
                Err(why)
            }
        }
    }

    pub(super) async fn finish_open(
        &self,
        open: &mut Open,
        probe: bool,
        (mut given, explicit): (Options, Options),
    ) -> Result<super::Pin> {
        if probe {
            open.driver = self.probe(open).await?;
        }
        let driver = open.driver;
        if driver.read_only {
            open.read_only()
                .map_err(|_| fail!("Driver '{}' can only be used for read-only devices", driver.name))?;
        }
        let layer = (driver.open)(open).await?;
        if layer.size() > LARGEST {
            let why = errno(libc::EFBIG);
            return Err(Failure::os("Could not refresh total sector count", &why));
        }
        if !driver.backing {
            match open.options.take("backing") {
                None | Some(Value::Null) => {}
                Some(Value::String(name)) if name.is_empty() => {}
                Some(_) => bail!("Driver doesn't support backing files"),
            }
        }
        if let Some((key, value)) = open.options.0.iter().next() {
            let key = match value.as_object().and_then(|table| table.keys().next()) {
                Some(inner) => format!("{key}.{inner}"),
                None => key.clone(),
            };
            match driver.schemes {
                [_, ..] => {
                    bail!("Block protocol '{}' doesn't support the option '{key}'", driver.name)
                }
                _ => bail!("Block format '{}' does not support the option '{key}'", driver.name),
            }
        }
        given.take("driver");
        open.options.retype(&mut given);
        let node = Node::new(Parts {
            driver,
            layer,
            context: open.context.clone(),
            settings: open.settings,
            children: std::mem::take(&mut open.children),
            options: given,
            explicit,
        });
        if let Err(why) = self.settle(&node) {
            for child in node.children() {
                self.detach(&child);
            }
            return Err(why);
        }
        let pin = node.pin();
        self.list(node);
        Ok(pin)
    }

    /// Lists a new node: it got its name when its file was open, before its other children.
    fn list(&self, node: Arc<Node>) {
        let late: Vec<_> = node.children().into_iter().filter(|child| child.name() != "file").collect();
        let own = Node::subtree(late.iter().map(Child::node));
        let mut nodes = self.nodes.lock();
        let opened = |at: &usize| own.iter().any(|one| Arc::ptr_eq(one, &nodes[*at]));
        // Those that were opened for it stand together at the end.
        let at = (0..nodes.len()).rev().take_while(opened).last().unwrap_or(nodes.len());
        nodes.insert(at, node);
    }

    /// Sets the permissions below a new node as its layer wants them.
    fn settle(&self, node: &Arc<Node>) -> Result<()> {
        let _topology = self.topology.lock();
        let mut plan = perm::Plan::default();
        plan.check(std::slice::from_ref(node))?;
        plan.commit()
    }

    /// The driver as named, or found from the file name; `None` means look at the content
    /// of the `file` child, which is then set up in the options.
    fn choose_driver(&self, options: &mut Options, place: Place) -> Result<Option<&'static Driver>> {
        let filename = options.get_str("filename").map(str::to_string);
        if let Some(name) = options.take_str("driver")? {
            let Some(driver) = crate::formats::find(&name) else { bail!("Unknown driver '{name}'") };
            if driver.kind == Kind::Format
                && let Some(filename) = filename
            {
                options.take("filename");
                give_file(options, filename)?;
            } else if place.role.is_none() {
                take_prefix(options, driver);
            }
            return Ok(Some(driver));
        }
        let wants_protocol = place.role.is_some_and(|role| !role.contains(Role::BACKING));
        match filename {
            Some(filename) if wants_protocol => {
                let driver = protocol_of(&filename)?;
                take_prefix(options, driver);
                Ok(Some(driver))
            }
            Some(filename) => {
                options.take("filename");
                give_file(options, filename)?;
                Ok(None)
            }
            None if options.contains("file") => Ok(None),
            None => bail!("Must specify either driver or file"),
        }
    }

    async fn probe(&self, open: &mut Open) -> Result<&'static Driver> {
        let Some(file) = open.options.take("file") else {
            bail!("A block device must be specified for \"file\"")
        };
        let node = self.open_child(&open.options, ("file", file), Role::IMAGE, &open.settings).await?;
        let size = node.size();
        let mut head = vec![0; PROBE.min(size) as usize];
        let read = node.read(0, &mut head).await;
        read.map_err(|why| Failure::os("Could not read image for determining its format", &why))?;
        let filename = node.filename();
        let probe = Probe { head: &head, filename: &filename, size };
        let score = |driver: &&'static Driver| driver.probe.map_or(0, |probe_fn| probe_fn(&probe));
        let best = crate::formats::all().filter(|driver| score(driver) > 0).max_by_key(score);
        open.options.set("file", node.name());
        open.pins.push(node);
        let driver = best.unwrap_or(&crate::formats::raw::DRIVER);
        if std::ptr::eq(driver, &crate::formats::raw::DRIVER) && !open.settings.read_only {
            open.options.set("probed", true);
        }
        Ok(driver)
    }

    pub(crate) fn link(&self, open: &mut Open, name: &str, role: Role, node: &Arc<Node>) -> Result<Child> {
        let child = Child::new(name, role, Parent::Node(open.context.node_name.clone()), node);
        let (mut perm, mut shared) =
            perm::default_for(role, open.settings.read_only, Perm::empty(), Perm::all());
        // What a filter wants only it knows: asked when it is open.
        if node.settings().force_share || open.driver.shares || open.driver.kind == Kind::Filter {
            shared = Perm::all();
        }
        if open.driver.shares {
            perm = Perm::CONSISTENT_READ;
        }
        self.attach(&child, perm, shared)?;
        open.children.push(child.clone());
        Ok(child)
    }
}

/// A file name that may be more than a path is one without its prefix.
fn take_prefix(options: &mut Options, driver: &Driver) {
    let name = options.get_str("filename").unwrap_or_default();
    if let Some(path) = crate::protocols::file::strip_prefix(driver, name) {
        options.set("filename", path);
    }
}

fn give_file(options: &mut Options, filename: String) -> Result<()> {
    match options.0.get_mut("file") {
        None => {
            options.set("file", serde_json::json!({"filename": filename}));
            Ok(())
        }
        Some(Value::Object(file)) if !file.contains_key("filename") => {
            file.insert("filename".into(), filename.into());
            Ok(())
        }
        Some(_) => bail!("Can't specify 'file' and 'filename' options at the same time"),
    }
}

/// The protocol driver for a file name.
pub(crate) fn protocol_of(name: &str) -> Result<&'static Driver> {
    match filename::scheme(name) {
        Some(scheme) => crate::formats::by_scheme(scheme).ok_or_else(|| fail!("Unknown protocol '{scheme}'")),
        None => Ok(crate::protocols::file::driver_for(name)),
    }
}

/// Merges the options of `json:{...}` file names; what was given beside them wins.
fn expand_json(options: &mut Options) -> Result<()> {
    while let Some(name) = options.get_str("filename")
        && let Some(inner) = filename::parse_json(name)?
    {
        options.take("filename");
        *options = std::mem::take(options).said(Origin::Texts);
        for (key, value) in inner.0 {
            match (options.0.get_mut(&key), value) {
                (None, value) => {
                    options.0.insert(key, value);
                }
                (Some(Value::Object(have)), Value::Object(more)) => {
                    for (key, value) in more {
                        have.entry(key).or_insert(value);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// What `options` say of the settings that `blockdev-reopen` can change.
pub(super) fn explicit_settings(options: &Options) -> Options {
    let names = ["read-only", "auto-read-only", "cache", "discard", "detect-zeroes"];
    let said =
        names.iter().filter_map(|name| options.get(name).map(|value| (name.to_string(), value.clone())));
    said.collect::<serde_json::Map<_, _>>().into()
}

pub(super) const AIO: [(&str, Aio); 3] =
    [("threads", Aio::Threads), ("native", Aio::Native), ("io_uring", Aio::IoUring)];

pub(crate) const DETECT_ZEROES: [(&str, DetectZeroes); 3] =
    [("off", DetectZeroes::Off), ("on", DetectZeroes::On), ("unmap", DetectZeroes::Unmap)];

/// Takes the options every node has.
pub(crate) fn take_settings(options: &mut Options, defaults: Settings) -> Result<Settings> {
    let mut settings = defaults;
    if let Some(on) = options.take_bool("read-only")? {
        settings.read_only = on;
    }
    if let Some(on) = options.take_bool("auto-read-only")? {
        settings.auto_read_only = on;
    }
    if let Some(mut cache) = options.take_table("cache")? {
        settings.cache.direct = cache.take_bool("direct")?.unwrap_or(settings.cache.direct);
        settings.cache.no_flush = cache.take_bool("no-flush")?.unwrap_or(settings.cache.no_flush);
        cache.take_bool("writeback")?;
        cache.finish_in("cache")?;
    }
    let discard = [("ignore", false), ("unmap", true), ("off", false), ("on", true)];
    let discard = if options.are_texts() { &discard[..] } else { &discard[..2] };
    settings.discard = options.take_word("discard", discard)?.unwrap_or(settings.discard);
    if let Some(detect) = options.take_word("detect-zeroes", &DETECT_ZEROES)? {
        settings.detect_zeroes = detect;
        if detect == DetectZeroes::Unmap && !settings.discard {
            bail!("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
        }
    }
    settings.force_share = options.take_bool("force-share")?.unwrap_or(settings.force_share);
    if settings.force_share && !settings.read_only {
        bail!("force-share=on can only be used with read-only images");
    }
    settings.aio = options.take_word("aio", &AIO)?.unwrap_or(settings.aio);
    if settings.aio == Aio::Native && !settings.cache.direct {
        bail!("aio=native was specified, but it requires cache.direct=on, which was not specified.");
    }
    Ok(settings)
}
