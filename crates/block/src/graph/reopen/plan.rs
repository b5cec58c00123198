//! What `blockdev-reopen` asks for, looked at before anything changes.

use super::super::open::{AIO, explicit_settings};
use super::super::{Child, Graph, Node, Settings, surgery, take_settings};
use crate::driver::Kind;
use crate::options::{Options, parse_size};
use crate::types::{DetectZeroes, Role};
use base::{Result, bail, fail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is to become of a node.
pub(super) struct Plan {
    pub node: Arc<Node>,
    pub settings: Settings,
    /// The settings that were asked for, not taken from above.
    pub explicit: Options,
    /// What is left for the layer.
    pub options: Options,
    /// Its `file` leads elsewhere.
    pub file: Option<(Child, Arc<Node>)>,
    pub backing: Option<Option<Arc<Node>>>,
}

/// Refuses to let a node stand on another while a job needs what it stands on.
fn check_link(node: &Node, name: &str) -> Result<()> {
    let Some(link) = node.child_named(name) else { return Ok(()) };
    let (node, below) = (node.name(), link.node());
    if below.is_implicit() {
        bail!("Cannot replace implicit {name} child of {node}");
    }
    if link.is_frozen() {
        bail!("Cannot change frozen '{name}' link from '{node}' to '{}'", below.name());
    }
    Ok(())
}

/// Options of a tree by their names with dots.
fn flat(options: &Options) -> BTreeMap<String, Value> {
    fn visit(name: String, value: &Value, out: &mut BTreeMap<String, Value>) {
        let inner: Vec<(String, &Value)> = match value {
            Value::Object(table) => table.iter().map(|(key, value)| (key.clone(), value)).collect(),
            Value::Array(list) => list.iter().enumerate().map(|(at, one)| (at.to_string(), one)).collect(),
            _ => return drop(out.insert(name, value.clone())),
        };
        for (key, value) in inner {
            visit(format!("{name}.{key}"), value, out);
        }
    }
    let mut out = BTreeMap::new();
    for (key, value) in &options.0 {
        visit(key.clone(), value, &mut out);
    }
    out
}

/// Whether both mean the same: a command line gives all values as strings.
fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::String(text), Value::Number(number)) | (Value::Number(number), Value::String(text)) => {
            parse_size(text) == number.as_u64()
        }
        (Value::String(text), Value::Bool(on)) | (Value::Bool(on), Value::String(text)) => {
            matches!(text.as_str(), "on" | "yes" | "true" | "y") == *on
        }
        (one, other) => one == other,
    }
}

/// Where QEMU's table of options has a key. Of several options that cannot be changed, its error
/// names the one that stands first there.
fn place(key: &str) -> u32 {
    let start = 0x238f_13af_u32.wrapping_mul(key.len() as u32);
    let add = |sum: u32, (at, byte): (usize, u8)| sum.wrapping_add(u32::from(byte) << (at * 5 % 24));
    let sum = key.bytes().enumerate().fold(start, add);
    sum.wrapping_mul(1_103_515_243).wrapping_add(12_345) % 512
}

fn first<'a>(keys: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    keys.min_by_key(|key| place(key))
}

/// The first part of a name with dots.
fn head(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

/// Options that only say how the node is used and cannot be given anew: they stay.
fn check_fixed(node: &Node, options: &mut Options) -> Result<()> {
    let now = node.settings();
    if options.take_word("aio", &AIO)?.is_some_and(|aio| aio != now.aio) {
        bail!("Cannot change the option 'aio'");
    }
    match options.take_bool("force-share")? {
        Some(on) if on != now.force_share => bail!("Cannot change the option 'force-share'"),
        None if now.force_share => bail!("Option 'force-share' cannot be reset to its default value"),
        _ => Ok(()),
    }
}

/// Whether an option says what a node stands on.
fn is_child(node: &Node, key: &str) -> bool {
    node.child_named(key).is_some()
        || ["file", "backing"].contains(&key)
        || (node.driver().kind == Kind::Format && key == "filename")
}

/// Puts `new` into `options`, tables into tables.
fn overlay(options: &mut Options, new: Options) {
    for (key, value) in new.0 {
        match (options.0.get_mut(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
            (_, value) => options.set(&key, value),
        }
    }
}

/// All settings as options.
fn settings_of(node: &Node) -> Options {
    let now = node.settings();
    let detect = match now.detect_zeroes {
        // A drive may be so: nothing is unmapped.
        DetectZeroes::Unmap if !now.discard => DetectZeroes::On,
        other => other,
    };
    Options::json(json!({
        "read-only": now.read_only,
        "auto-read-only": now.auto_read_only,
        "cache": {"direct": now.cache.direct, "no-flush": now.cache.no_flush},
        "discard": if now.discard { "unmap" } else { "ignore" },
        "detect-zeroes": detect.as_str(),
    }))
}

/// Refuses what the driver cannot change; what stays as it was is taken out of `options`.
fn check_unchanged(node: &Node, options: &mut Options) -> Result<()> {
    let driver = node.driver();
    let mut given = flat(node.given());
    given.retain(|key, _| !is_child(node, head(key)));
    let changes = |key: &str| driver.changes.contains(&head(key));
    let asked = flat(options);
    let reset = given.keys().filter(|key| !changes(key) && !asked.contains_key(*key));
    if let Some(key) = first(reset) {
        bail!("Option '{key}' cannot be reset to its default value");
    }
    let stays = |key: &String, value: &Value| {
        given.get(key).is_some_and(|old| alike(old, value))
            || (key == "filename" && node.layer().filename().as_deref() == value.as_str())
    };
    let other = asked.iter().filter(|(key, value)| !changes(key) && !stays(key, value));
    if let Some(key) = first(other.map(|(key, _)| key)) {
        bail!("Cannot change the option '{key}'");
    }
    options.0.retain(|key, _| changes(key));
    Ok(())
}

impl Graph {
    /// Looks at one node's options; its plan comes before those of its children.
    pub(super) fn plan_reopen(&self, mut options: Options, plans: &mut Vec<Plan>) -> Result<()> {
        let Some(name) = options.take_str("node-name")? else { bail!("node-name not specified") };
        let node = self.find(&name).ok_or_else(|| fail!("Failed to find node with node-name='{name}'"))?;
        self.plan_node(node, Settings::default(), options, plans)
    }

    /// The options by which a node is reopened as it is, but for what `new` says; what was opened
    /// with it takes what is new from it.
    pub(crate) fn as_it_is(&self, node: &Arc<Node>, new: Options) -> Options {
        let mut all = settings_of(node);
        overlay(&mut all, self.as_it_was_said(node, new));
        all
    }

    fn as_it_was_said(&self, node: &Arc<Node>, mut new: Options) -> Options {
        let driver = node.driver();
        let mut all = node.explicit();
        let kept = |key: &String| !driver.changes.contains(&key.as_str()) && !is_child(node, key);
        let given = node.given().0.iter().filter(|(key, _)| kept(key));
        all.0.extend(given.map(|(key, value)| (key.clone(), value.clone())));
        overlay(&mut all, node.layer().reopened_by());
        all.set("driver", driver.name);
        all.set("node-name", node.name());
        if driver.backing {
            all.set("backing", Value::Null);
        }
        for child in node.children() {
            let (name, below) = (child.name(), child.node());
            let value = match (new.take(name), below.is_inherited()) {
                (Some(Value::Object(table)), true) => self.as_it_was_said(&below, table.into()).0.into(),
                (None, true) => self.as_it_was_said(&below, Options::new()).0.into(),
                (Some(other), _) => other,
                (None, false) => below.name().into(),
            };
            all.set(name, value);
        }
        overlay(&mut all, new);
        all
    }

    fn plan_node(
        &self,
        node: Arc<Node>,
        defaults: Settings,
        mut options: Options,
        plans: &mut Vec<Plan>,
    ) -> Result<()> {
        let driver = node.driver();
        if let Some(name) = options.get_str("driver") {
            if crate::formats::find(name).is_none() {
                bail!("Parameter 'driver' does not accept value '{name}'");
            }
            if name == driver.name {
                options.take("driver");
            }
        }
        if options.get_str("node-name") == Some(node.name()) {
            options.take("node-name");
        }
        check_fixed(&node, &mut options)?;
        let now = node.settings();
        let defaults = Settings { aio: now.aio, force_share: now.force_share, ..defaults };
        let explicit = explicit_settings(&options);
        let settings = take_settings(&mut options, defaults)?;
        if !driver.reopens {
            let (driver, node) = (driver.name, node.name());
            bail!("Block format '{driver}' used by node '{node}' does not support reopening files");
        }
        let mut below = Vec::new();
        for child in node.children() {
            let (name, to) = (child.name(), child.node());
            match options.get(name) {
                Some(Value::String(given)) if given == to.name() && !child.role().contains(Role::BACKING) => {
                    options.take(name);
                }
                Some(Value::Object(_)) if to.is_inherited() => {
                    let table = options.take_table(name)?.unwrap_or_default();
                    below.push((to, settings.for_child(child.role()), table));
                }
                _ => {}
            }
        }
        let reopened = |one: &Arc<Node>| below.iter().any(|(node, ..)| Arc::ptr_eq(node, one));
        let backing = match node.backing() {
            Some(now) if reopened(&now) => None,
            _ => self.plan_backing(&node, &mut options)?,
        };
        let file = self.plan_file(&node, &mut options)?;
        check_unchanged(&node, &mut options)?;
        plans.push(Plan { node, settings, explicit, options, file, backing });
        for (node, defaults, options) in below {
            self.plan_node(node, defaults, options, plans)?;
        }
        Ok(())
    }

    fn plan_file(&self, node: &Arc<Node>, options: &mut Options) -> Result<Option<(Child, Arc<Node>)>> {
        let Some(child) = node.child_named("file") else { return Ok(None) };
        match options.get("file") {
            Some(Value::Null) => bail!("Invalid parameter type for 'file', expected: BlockdevRef"),
            Some(Value::String(_)) => {
                let to = self.named(&options.need_str("file")?)?;
                if Arc::ptr_eq(&child.node().skip_implicit(), &to) {
                    return Ok(None);
                }
                surgery::check_cycle(&to, "file", node)?;
                check_link(node, "file")?;
                Ok(Some((child, to)))
            }
            _ => Ok(None),
        }
    }

    fn plan_backing(&self, node: &Arc<Node>, options: &mut Options) -> Result<Option<Option<Arc<Node>>>> {
        let to = match options.get("backing") {
            None if node.driver().backing
                && (node.backing().is_some() || node.layer().header_backing().is_some()) =>
            {
                bail!("backing is missing for '{}'", node.name())
            }
            Some(Value::Null) => None,
            Some(Value::String(name)) => Some(self.named(name)?),
            _ => return Ok(None),
        };
        options.take("backing");
        if let Some(to) = &to {
            if !node.driver().backing {
                let (driver, node) = (node.driver().name, node.name());
                bail!("Driver '{driver}' of node '{node}' does not support backing files");
            }
            surgery::check_cycle(to, "backing", node)?;
            if node.backing().is_some_and(|now| Arc::ptr_eq(&now.skip_implicit(), to)) {
                return Ok(None);
            }
        }
        if node.backing().is_some() {
            check_link(node, "backing")?;
        }
        Ok(node.driver().backing.then_some(to))
    }

    fn named(&self, name: &str) -> Result<Arc<Node>> {
        self.find(name).ok_or_else(|| fail!("Cannot find device='' nor node-name='{name}'"))
    }

    /// Refuses to bring devices that work on different threads together at one node.
    pub(super) fn check_threads(&self, plan: &Plan) -> Result<()> {
        let of = |node: &Arc<Node>| {
            let users = self.users_of(node).into_iter().filter(|user| user.front_end().is_some());
            users.map(|user| user.thread()).collect::<Vec<_>>()
        };
        let above = of(&plan.node);
        let joined = plan.file.iter().map(|(_, to)| to).chain(plan.backing.iter().flatten());
        for to in joined {
            if of(to).iter().any(|one| above.iter().any(|other| !one.is(other))) {
                bail!("Cannot change iothread of active block backend");
            }
        }
        Ok(())
    }
}
