//! `blkdebug`: injects errors by rules, and stops requests at break points.
//!
//! Events come from the formats above ([`event`]: `l2_load`, `read_aio` ...) and from
//! requests themselves (`pwritev`, `flush_to_disk` ...). A rule `inject-error` becomes active
//! when its event happens, and stays so until the event of another one does.

use super::pass;
use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::{Child, Node};
use crate::options::Options;
use crate::types::*;
use base::{Mutex, Result, bail, fail};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Open layers of this kind: events cost nothing while there is none.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Whether events are of interest to anybody.
pub(crate) fn watching() -> bool {
    OPEN.load(Ordering::Relaxed) > 0
}

/// Before a node is flushed. One flush is one event, however often its format has the file flushed.
pub(crate) async fn flushing(node: &Node) {
    if watching()
        && let Some(file) = node.children().iter().find(|child| child.role().contains(Role::PRIMARY))
    {
        event(file, "flush_to_os").await;
        event(file, "flush_to_disk").await;
    }
}

/// Tells a child that something happens in the format above it.
pub(crate) async fn event(child: &Child, name: &str) {
    if watching()
        && let Some(layer) = crate::driver::layer_of::<BlkDebug>(&child.node())
    {
        layer.event(name).await;
    }
}

pub static DRIVER: Driver = Driver {
    name: "blkdebug",
    kind: Kind::Filter,
    schemes: &["blkdebug"],
    open,
    telling: &[
        "config",
        "align",
        "max-transfer",
        "opt-write-zero",
        "max-write-zero",
        "opt-discard",
        "max-discard",
        "inject-error",
        "set-state",
    ],
    ..Driver::DEFAULT
};

/// Events that requests on the child raise, and those of formats.
static EVENTS: &[&str] = &[
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
    "none",
];

#[derive(Clone, Debug)]
struct Inject {
    event: String,
    state: i64,
    errno: i32,
    sector: i64,
    once: bool,
    iotypes: Vec<String>,
    active: bool,
}

#[derive(Clone, Debug)]
struct SetState {
    event: String,
    state: i64,
    new_state: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Break {
    event: String,
    tag: String,
}

#[derive(Default)]
struct Rules {
    state: i64,
    inject: Vec<Inject>,
    set_state: Vec<SetState>,
    breaks: Vec<Break>,
    /// Tags of requests that stand.
    suspended: Vec<String>,
}

/// An open blkdebug layer; the monitor sets break points on it.
pub struct BlkDebug {
    file: Child,
    bounds: Bounds,
    take: Perm,
    unshare: Perm,
    rules: Mutex<Rules>,
    changed: Notify,
}

/// What requests on the node must keep to, all in bytes; 0 is no bound.
#[derive(Clone, Copy, Default)]
struct Bounds {
    align: u32,
    max_transfer: u32,
    opt_write_zero: u32,
    max_write_zero: u32,
    opt_discard: u32,
    max_discard: u32,
}

/// The first blkdebug node at or below a node.
pub fn find(node: &Arc<Node>) -> Option<Arc<Node>> {
    if crate::driver::layer_of::<BlkDebug>(node).is_some() {
        return Some(node.clone());
    }
    node.children()
        .iter()
        .filter(|child| !child.role().contains(Role::BACKING))
        .find_map(|child| find(&child.node()))
}

fn open(open: &mut Open) -> Fut<'_, Result<Arc<dyn Layer>>> {
    Box::pin(async {
        if let Some(name) = open.options.take_str("filename")? {
            let rest = name
                .strip_prefix("blkdebug:")
                .ok_or_else(|| fail!("File name string must start with 'blkdebug:'"))?;
            let Some((config, image)) = rest.split_once(':') else {
                bail!("blkdebug requires both config file and image path")
            };
            if !config.is_empty() {
                open.options.set("config", config);
            }
            let mut below = open.options.take_table("image")?.unwrap_or_default();
            below.set("filename", image);
            open.options.set("image", below.0);
        }
        let mut rules = Rules { state: 1, ..Rules::default() };
        if let Some(config) = open.options.take_str("config")?.filter(|config| !config.is_empty()) {
            read_config(&config, &mut rules)?;
        }
        for rule in open.options.take_tables("inject-error")? {
            rules.inject.push(take_inject(rule)?);
        }
        for rule in open.options.take_tables("set-state")? {
            rules.set_state.push(take_set_state(rule)?);
        }
        let bounds = take_bounds(&mut open.options)?;
        let take = take_perms(&mut open.options, "take-child-perms")?;
        let unshare = take_perms(&mut open.options, "unshare-child-perms")?;
        let name = if open.options.contains("file") { "file" } else { "image" };
        let file = open.child(name, Role::FILTER).await?;
        let rules = Mutex::new(rules);
        OPEN.fetch_add(1, Ordering::Relaxed);
        let layer = BlkDebug { file, bounds, take, unshare, rules, changed: Notify::new() };
        layer.event("none").await;
        Ok(Arc::new(layer) as Arc<dyn Layer>)
    })
}

fn take_bounds(options: &mut Options) -> Result<Bounds> {
    let align = options.take_u64("align")?.unwrap_or(0);
    if align >= 1 << 31 || (align > 0 && !align.is_power_of_two()) {
        bail!("Cannot meet constraints with align {align}");
    }
    let unit = align.max(1);
    // Each must be a multiple of the alignment, and the maximum of its optimum too.
    let mut bound = |key: &str, unit: u64| -> Result<u32> {
        let value = options.take_u64(key)?.unwrap_or(0);
        if value >= 1 << 31 || !value.is_multiple_of(unit) {
            bail!("Cannot meet constraints with {key} {value}");
        }
        Ok(value as u32)
    };
    let max_transfer = bound("max-transfer", unit)?;
    let opt_write_zero = bound("opt-write-zero", unit)?;
    let max_write_zero = bound("max-write-zero", unit.max(opt_write_zero.into()))?;
    let opt_discard = bound("opt-discard", unit)?;
    let max_discard = bound("max-discard", unit.max(opt_discard.into()))?;
    Ok(Bounds { align: align as u32, max_transfer, opt_write_zero, max_write_zero, opt_discard, max_discard })
}

fn take_perms(options: &mut Options, key: &str) -> Result<Perm> {
    let mut perms = Perm::empty();
    for value in options.take_list(key)?.unwrap_or_default() {
        perms |= match value.as_str() {
            Some("consistent-read") => Perm::CONSISTENT_READ,
            Some("write") => Perm::WRITE,
            Some("write-unchanged") => Perm::WRITE_UNCHANGED,
            Some("resize") => Perm::RESIZE,
            _ => bail!("Parameter '{key}' does not accept value {value}"),
        };
    }
    Ok(perms)
}

fn take_event(options: &mut Options) -> Result<String> {
    let event = options.need_str("event")?.to_lowercase().replace('.', "_");
    if !EVENTS.contains(&event.as_str()) {
        bail!("Invalid event name \"{event}\"");
    }
    Ok(event)
}

fn signed(options: &mut Options, key: &str, default: i64) -> Result<i64> {
    Ok(options.take_i64(key)?.unwrap_or(default))
}

fn take_inject(mut options: Options) -> Result<Inject> {
    let event = take_event(&mut options)?;
    let state = signed(&mut options, "state", 0)?;
    let code = signed(&mut options, "errno", i64::from(libc::EIO))? as i32;
    let sector = signed(&mut options, "sector", -1)?;
    let once = options.take_bool("once")?.unwrap_or(false);
    // Completing later or at once is the same to a caller that waits.
    options.take_bool("immediately")?;
    const KINDS: [&str; 6] = ["read", "write", "write-zeroes", "discard", "flush", "block-status"];
    let iotypes = match options.take_str("iotype")? {
        Some(kind) if KINDS.contains(&kind.as_str()) => vec![kind],
        Some(kind) => bail!("Invalid I/O type '{kind}'"),
        // Status is asked too often to fail unless that is wanted.
        None => KINDS[..5].iter().map(ToString::to_string).collect(),
    };
    match options.0.keys().next() {
        Some(key) => bail!("Invalid parameter '{key}'"),
        None => Ok(Inject { event, state, errno: code, sector, once, iotypes, active: false }),
    }
}

fn take_set_state(mut options: Options) -> Result<SetState> {
    let event = take_event(&mut options)?;
    let state = signed(&mut options, "state", 0)?;
    if !options.contains("new_state") {
        bail!("Parameter 'new_state' is missing");
    }
    let new_state = signed(&mut options, "new_state", 0)?;
    match options.0.keys().next() {
        Some(key) => bail!("Invalid parameter '{key}'"),
        None => Ok(SetState { event, state, new_state }),
    }
}

/// The configuration file: sections `[inject-error]`, `[set-state]` of `key = "value"`.
fn read_config(path: &str, rules: &mut Rules) -> Result<()> {
    let text = std::fs::read_to_string(path)
        .map_err(|why| base::Failure::os("Could not read blkdebug config file", &why))?;
    let mut section: Option<(String, Options)> = None;
    let mut finish = |section: Option<(String, Options)>| -> Result<()> {
        match section {
            Some((name, options)) if name == "inject-error" => rules.inject.push(take_inject(options)?),
            Some((name, options)) if name == "set-state" => rules.set_state.push(take_set_state(options)?),
            Some((name, _)) => bail!("There is no option group '{name}'"),
            None => {}
        }
        Ok(())
    };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            finish(section.take())?;
            let name = name.split_whitespace().next().unwrap_or_default().to_string();
            section = Some((name, Options::new()));
        } else if let (Some((key, value)), Some((_, options))) = (line.split_once('='), &mut section) {
            options.set(key.trim(), value.trim().trim_matches('"'));
        } else {
            bail!("Could not parse blkdebug config file");
        }
    }
    finish(section)
}

impl BlkDebug {
    pub fn set_break(&self, event: &str, tag: &str) -> std::result::Result<(), &'static str> {
        if !EVENTS.contains(&event) {
            return Err("No such file or directory");
        }
        self.rules.lock().breaks.push(Break { event: event.into(), tag: tag.into() });
        Ok(())
    }

    pub fn resume(&self, tag: &str) -> std::result::Result<(), &'static str> {
        let mut rules = self.rules.lock();
        let at = rules.suspended.iter().position(|one| one == tag).ok_or("No such file or directory")?;
        rules.suspended.remove(at);
        drop(rules);
        self.changed.notify_waiters();
        Ok(())
    }

    pub fn remove_break(&self, tag: &str) -> std::result::Result<(), &'static str> {
        let mut rules = self.rules.lock();
        let before = (rules.breaks.len(), rules.suspended.len());
        rules.breaks.retain(|one| one.tag != tag);
        rules.suspended.retain(|one| one != tag);
        let found = before != (rules.breaks.len(), rules.suspended.len());
        drop(rules);
        self.changed.notify_waiters();
        if found { Ok(()) } else { Err("No such file or directory") }
    }

    /// Waits until a request stands at the break point.
    pub async fn wait_suspended(&self, tag: &str) {
        loop {
            let changed = self.changed.notified();
            if self.rules.lock().suspended.iter().any(|one| one == tag) {
                return;
            }
            changed.await;
        }
    }

    /// An event happened: states change, requests stop.
    async fn event(&self, name: &str) {
        let tag = {
            let mut rules = self.rules.lock();
            let state = rules.state;
            let fits = |event: &str, wanted: i64| event == name && (wanted == 0 || wanted == state);
            if rules.inject.iter().any(|rule| fits(&rule.event, rule.state)) {
                rules.inject.iter_mut().for_each(|rule| rule.active = fits(&rule.event, rule.state));
            }
            // Of several, the last one counts.
            let next = rules.set_state.iter().rev().find(|rule| fits(&rule.event, rule.state));
            if let Some(next) = next.map(|rule| rule.new_state) {
                rules.state = next;
            }
            let at = rules.breaks.iter().position(|one| one.event == name);
            at.map(|at| {
                let tag = rules.breaks.remove(at).tag;
                rules.suspended.push(tag.clone());
                tag
            })
        };
        let Some(tag) = tag else { return };
        self.changed.notify_waiters();
        loop {
            let changed = self.changed.notified();
            if !self.rules.lock().suspended.contains(&tag) {
                return;
            }
            changed.await;
        }
    }

    /// The error that an active rule has for a request.
    fn check(&self, iotype: &str, offset: u64, len: u64) -> IoResult {
        let mut rules = self.rules.lock();
        let fits = |rule: &Inject| {
            let sector = rule.sector < 0 || {
                let at = rule.sector as u64 * 512;
                at >= offset && at < offset + len
            };
            rule.active && sector && rule.iotypes.iter().any(|one| one == iotype)
        };
        let Some(at) = rules.inject.iter().position(fits) else { return Ok(()) };
        let code = rules.inject[at].errno;
        if rules.inject[at].once {
            rules.inject.remove(at);
        }
        Err(errno(code))
    }
}

impl Drop for BlkDebug {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The pieces of a range none of which is longer than `max` (0: any).
fn pieces(offset: u64, len: u64, max: u32) -> impl Iterator<Item = (u64, u64)> {
    let max = if max == 0 { u64::MAX } else { u64::from(max) };
    let mut at = offset;
    std::iter::from_fn(move || {
        let run = (offset + len - at).min(max);
        at += run;
        (run > 0).then_some((at - run, run))
    })
}

impl Layer for BlkDebug {
    pass!(size);

    fn limits(&self) -> Limits {
        let (below, bounds) = (self.file.node().layer().limits(), self.bounds);
        let max_transfer = match bounds.max_transfer {
            0 => below.max_transfer,
            max => max,
        };
        Limits {
            request_alignment: bounds.align.max(1),
            max_transfer,
            zeroes_alignment: bounds.opt_write_zero,
            discard_alignment: bounds.opt_discard,
            ..below
        }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.check("read", offset, buf.len() as u64)?;
            self.file.read(offset, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.event("pwritev").await;
            self.check("write", offset, data.len() as u64)?;
            self.file.write(offset, data, flags).await?;
            self.event("pwritev_done").await;
            Ok(())
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let unit = u64::from(self.bounds.opt_write_zero.max(self.bounds.align));
            if len < unit || (unit > 0 && !(offset | len).is_multiple_of(unit)) {
                return Err(errno(libc::ENOTSUP));
            }
            for (at, run) in pieces(offset, len, self.bounds.max_write_zero) {
                self.event("pwritev_zero").await;
                self.check("write-zeroes", at, run)?;
                self.file.write_zeroes(at, run, flags).await?;
            }
            Ok(())
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            let unit = u64::from(self.bounds.opt_discard.max(1));
            let (start, end) = (offset.next_multiple_of(unit), (offset + len) / unit * unit);
            if start >= end {
                return Err(errno(libc::ENOTSUP));
            }
            for (at, run) in pieces(start, end - start, self.bounds.max_discard) {
                self.check("discard", at, run)?;
                self.file.discard(at, run).await?;
            }
            Ok(())
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async { self.check("flush", 0, 0) })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(async move {
            self.check("block-status", offset, len)?;
            self.file.block_status(offset, len).await
        })
    }

    fn child_perm(&self, role: Role, read_only: bool, perm: Perm, shared: Perm) -> (Perm, Perm) {
        let (perm, shared) = crate::graph::perm::default_for(role, read_only, perm, shared);
        (perm | self.take, shared - self.unshare)
    }
}
