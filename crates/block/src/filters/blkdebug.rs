//! `blkdebug`: injects errors by rules, and stops requests at break points.
//!
//! Requests are told apart by what happens on the child (`read_aio`, `write_aio`,
//! `flush_to_disk`, `none`); events inside of a format are not known to this layer, and
//! rules for them are accepted but match nothing but `none`.

use super::pass;
use crate::driver::{Driver, Kind, Layer, Open};
use crate::graph::{Child, Node};
use crate::options::Options;
use crate::types::*;
use base::{Mutex, Result, bail, fail};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Notify;

pub static DRIVER: Driver =
    Driver { name: "blkdebug", kind: Kind::Filter, schemes: &["blkdebug"], open, ..Driver::DEFAULT };

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
    align: u32,
    rules: Mutex<Rules>,
    changed: Notify,
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
            open.options.set("image", json!({"filename": image}));
        }
        let mut rules = Rules { state: 1, ..Rules::default() };
        if let Some(config) = open.options.take_str("config")?.filter(|config| !config.is_empty()) {
            read_config(&config, &mut rules)?;
        }
        for value in open.options.take_list("inject-error")?.unwrap_or_default() {
            rules.inject.push(take_inject(Options::json(value))?);
        }
        for value in open.options.take_list("set-state")?.unwrap_or_default() {
            rules.set_state.push(take_set_state(Options::json(value))?);
        }
        let align = open.options.take_u64("align")?.unwrap_or(1);
        if !align.is_power_of_two() || align >= 1 << 31 {
            bail!("Cannot meet constraints with align {align}");
        }
        for key in ["max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"] {
            if open.options.take_u64(key)?.is_some() {
                bail!("'{key}' is not supported");
            }
        }
        let name = if open.options.contains("image") { "image" } else { "file" };
        let file = open.child(name, Role::FILTER).await?;
        let layer = BlkDebug { file, align: align as u32, rules: Mutex::new(rules), changed: Notify::new() };
        Ok(Arc::new(layer) as Arc<dyn Layer>)
    })
}

fn take_event(options: &mut Options) -> Result<String> {
    let event = options.need_str("event")?.to_lowercase().replace('.', "_");
    if !EVENTS.contains(&event.as_str()) {
        bail!("Invalid event name \"{event}\"");
    }
    Ok(event)
}

fn signed(options: &mut Options, key: &str, default: i64) -> Result<i64> {
    match options.take(key) {
        None => Ok(default),
        Some(Value::Number(number)) => {
            number.as_i64().ok_or_else(|| fail!("Parameter '{key}' expects a number"))
        }
        Some(Value::String(text)) => text.parse().map_err(|_| fail!("Parameter '{key}' expects a number")),
        Some(_) => bail!("Parameter '{key}' expects a number"),
    }
}

fn take_inject(mut options: Options) -> Result<Inject> {
    let event = take_event(&mut options)?;
    let state = signed(&mut options, "state", 0)?;
    let code = signed(&mut options, "errno", i64::from(libc::EIO))? as i32;
    let sector = signed(&mut options, "sector", -1)?;
    let once = options.take_bool("once")?.unwrap_or(false);
    // Completing later or at once is the same to a caller that waits.
    options.take_bool("immediately")?;
    let iotypes = match options.take_str("iotype")? {
        Some(kind) => vec![kind],
        None => ["read", "write", "write-zeroes", "discard", "flush"].map(String::from).to_vec(),
    };
    match options.0.keys().next() {
        Some(key) => bail!("Invalid parameter '{key}'"),
        None => Ok(Inject { event, state, errno: code, sector, once, iotypes }),
    }
}

fn take_set_state(mut options: Options) -> Result<SetState> {
    let event = take_event(&mut options)?;
    let state = signed(&mut options, "state", 0)?;
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
            if let Some(rule) = rules
                .set_state
                .iter()
                .find(|rule| rule.event == name && (rule.state == 0 || rule.state == state))
            {
                rules.state = rule.new_state;
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

    async fn pass(&self, iotype: &str, events: &[&str], offset: u64, len: u64) -> IoResult {
        for event in events {
            self.event(event).await;
        }
        let mut rules = self.rules.lock();
        let state = rules.state;
        let fits = |rule: &Inject| {
            let sector = rule.sector < 0 || {
                let at = rule.sector as u64 * 512;
                at < offset + len.max(1) && offset < at + 512
            };
            let event = rule.event == "none" || events.contains(&rule.event.as_str());
            event
                && sector
                && (rule.state == 0 || rule.state == state)
                && rule.iotypes.iter().any(|one| one == iotype)
        };
        let Some(at) = rules.inject.iter().position(fits) else { return Ok(()) };
        let code = rules.inject[at].errno;
        if rules.inject[at].once {
            rules.inject.remove(at);
        }
        Err(errno(code))
    }
}

impl Layer for BlkDebug {
    pass!(size);
    pass!(status);

    fn limits(&self) -> Limits {
        Limits { request_alignment: self.align, ..self.file.node().layer().limits() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.pass("read", &["read_aio"], offset, buf.len() as u64).await?;
            self.file.read(offset, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.pass("write", &["pwritev", "write_aio"], offset, data.len() as u64).await?;
            self.file.write(offset, data, flags).await?;
            self.event("pwritev_done").await;
            Ok(())
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.pass("write-zeroes", &["pwritev_zero"], offset, len).await?;
            self.file.write_zeroes(offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.pass("discard", &[], offset, len).await?;
            self.file.discard(offset, len).await
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(self.pass("flush", &["flush_to_os", "flush_to_disk"], 0, 0))
    }
}
