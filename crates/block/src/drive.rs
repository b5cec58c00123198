//! `-drive` and the seed's `blockdev-add`: a named back end with the tree under it.

use crate::backend::medium::Habit;
use crate::backend::{Backend, OnError, Setup};
use crate::graph::{DETECT_ZEROES, Graph, Settings, take_settings};
use crate::options::Options;
use crate::throttle::Config;
use crate::types::DetectZeroes;
use base::{Failure, Result, bail, fail};
use serde_json::{Map, Value};

/// Old throttle keys of `-drive` and what they are called now.
const OLD_THROTTLE: &[(&str, &str)] = &[
    ("iops", "iops-total"),
    ("iops_rd", "iops-read"),
    ("iops_wr", "iops-write"),
    ("bps", "bps-total"),
    ("bps_rd", "bps-read"),
    ("bps_wr", "bps-write"),
    ("iops_max", "iops-total-max"),
    ("iops_rd_max", "iops-read-max"),
    ("iops_wr_max", "iops-write-max"),
    ("bps_max", "bps-total-max"),
    ("bps_rd_max", "bps-read-max"),
    ("bps_wr_max", "bps-write-max"),
    ("iops_size", "iops-size"),
    ("group", "group"),
];

/// (write-back, direct, no-flush) of a `cache=` word.
pub fn cache_mode(word: &str) -> Option<(bool, bool, bool)> {
    Some(match word {
        "writeback" => (true, false, false),
        "none" | "off" => (true, true, false),
        "unsafe" => (true, false, true),
        "writethrough" => (false, false, false),
        "directsync" => (false, true, false),
        _ => return None,
    })
}

/// What a `-drive` says about its back end, apart from the tree of nodes.
struct Drive {
    setup: Setup,
    write_cache: bool,
    on_error: (OnError, OnError),
    throttle: Option<(String, Config)>,
    copy_on_read: bool,
    snapshot: bool,
    settings: Settings,
}

impl Graph {
    /// Makes a back end from the keys of a `-drive` (flat, with dots; text or typed), less
    /// what says where it is put (`if`, `bus`, `unit`, `index`, `media` and the like). A
    /// drive without file and driver is empty.
    pub async fn open_drive(&self, id: &str, mut flat: Map<String, Value>) -> Result<Backend> {
        match flat.remove("file") {
            Some(Value::String(file)) if file.is_empty() => {}
            Some(Value::String(file)) => {
                flat.insert("filename".into(), file.into());
            }
            Some(other) => {
                flat.insert("file".into(), other);
            }
            None => {}
        }
        if let Some(format) = flat.remove("format") {
            if flat.contains_key("driver") {
                bail!("Cannot specify both 'driver' and 'format'");
            }
            flat.insert("driver".into(), format);
        }
        old_keys(&mut flat)?;
        let mut options = Options::crumple(flat)?;
        plain_file(&mut options);
        self.open_tree(id, options).await
    }

    /// Makes a back end over a tree of nodes; the tree's `file` may be the name of a node.
    pub async fn open_tree(&self, id: &str, mut options: Options) -> Result<Backend> {
        let mut drive = take_drive(id, &mut options)?;
        if !["driver", "filename", "file"].iter().any(|key| options.contains(key)) {
            // Settings of media to come.
            drive.settings = take_settings(&mut options, drive.settings)?;
        }
        if options.get_str("node-name") == Some(id) {
            bail!("Device name '{id}' conflicts with an existing node name");
        }
        let graph = self.arc();
        let backend = Backend::new(&graph, drive.setup.clone())?;
        backend.set_write_cache(drive.write_cache);
        backend.set_error_policy(drive.on_error.0, drive.on_error.1);
        backend.set_habit(Habit { settings: drive.settings, snapshot: drive.snapshot });
        if let Some((group, config)) = &drive.throttle {
            let group = self.throttle_groups.obtain(group);
            group.set_config(*config);
            backend.set_throttle_group(Some(group));
        }
        if options.is_empty() {
            return Ok(backend);
        }
        let opened = self.fill_drive(&backend, options, &drive).await;
        if let Err(why) = opened {
            backend.delete();
            self.collect().await;
            return Err(why);
        }
        Ok(backend)
    }

    /// What a device's `drive=` means: a back end by name, or a new anonymous one over the
    /// node of that name. `None`: there is neither.
    pub fn device_drive(&self, drive: &str) -> Result<Option<Backend>> {
        if let Some(backend) = self.backend(drive) {
            return Ok(Some(backend));
        }
        let Some(node) = self.find(drive) else { return Ok(None) };
        // It writes when the device has it, in the device's name.
        let backend = Backend::new(&self.arc(), Setup { read_only: true, ..Setup::default() })?;
        match backend.insert(&node) {
            Ok(()) => {
                backend.set_read_only(node.is_read_only());
                Ok(Some(backend))
            }
            Err(why) => {
                backend.delete();
                Err(why)
            }
        }
    }

    /// `drive_del`: takes a drive and its medium away, or a node that `blockdev-add` opened. A
    /// device that holds the drive keeps it, empty and without name.
    pub async fn delete_drive(&self, id: &str) -> Result<()> {
        if self.find(id).is_some() {
            return self.delete(id).await;
        }
        let backend = self.backend(id).ok_or_else(|| fail!("Device '{id}' not found"))?;
        if let Some(node) = backend.node() {
            node.check_busy()?;
            backend.take_out().await;
        }
        backend.forget_name();
        match backend.front_end() {
            // Nothing is to be waited for any more.
            Some(_) => backend.set_error_policy(OnError::Report, OnError::Report),
            None => backend.delete(),
        }
        self.collect().await;
        Ok(())
    }

    async fn fill_drive(&self, backend: &Backend, options: Options, drive: &Drive) -> Result<()> {
        let mut pin = match drive.snapshot {
            true => self.open_snapshot(options, drive.settings).await?,
            false => self.open(options, drive.settings).await?,
        };
        if drive.copy_on_read {
            if pin.is_read_only() {
                bail!("Can't use copy-on-read on read-only device");
            }
            let filter = serde_json::json!({"driver": "copy-on-read", "file": pin.name()});
            pin = self.open(Options::json(filter), drive.settings).await?;
            pin.set_implicit(true);
        }
        let settings = Settings { read_only: drive.settings.read_only, ..pin.settings() };
        backend.set_habit(Habit { settings, snapshot: drive.snapshot });
        backend.insert(&pin)
    }

    /// Opens an image under an overlay that takes all writes and is gone at the end.
    pub(crate) async fn open_snapshot(
        &self,
        mut options: Options,
        settings: Settings,
    ) -> Result<crate::graph::Pin> {
        options.set("read-only", true);
        let read_only = settings.read_only;
        let base = self.open(options, settings).await?;
        self.temporary_overlay(&base, read_only).await
    }

    /// `snapshot=on`: writes go to a file that is gone at the end.
    async fn temporary_overlay(
        &self,
        base: &crate::graph::Node,
        read_only: bool,
    ) -> Result<crate::graph::Pin> {
        let dir = std::env::var("TMPDIR").unwrap_or_else(|_| "/var/tmp".into());
        let file = tempfile::Builder::new().prefix("vl.").rand_bytes(6).tempfile_in(&dir);
        let file = file
            .map_err(|why| Failure::os(format!("Could not open temporary file '{dir}/vl.XXXXXX'"), &why))?;
        // It goes with this at the latest.
        let path = file.path().to_string_lossy().into_owned();
        let mut options = Options::new();
        options.set("size", base.size());
        self.create_image(&path, "qcow2", options).await?;
        let overlay = serde_json::json!({
            "driver": "qcow2", "file": {"driver": "file", "filename": path}, "backing": base.name(),
            "cache": {"no-flush": true}, "discard": "unmap",
        });
        self.open(Options::json(overlay), Settings { read_only, ..Settings::default() }).await
    }
}

/// `file.filename` is a path even where it looks like a protocol.
fn plain_file(options: &mut Options) {
    if let Some(Value::Object(file)) = options.0.get_mut("file")
        && !file.contains_key("driver")
        && let Some(Value::String(path)) = file.get("filename")
    {
        let driver = crate::protocols::file::driver_for(path).name;
        file.insert("driver".into(), driver.into());
    }
}

fn old_keys(flat: &mut Map<String, Value>) -> Result<()> {
    for (old, new) in OLD_THROTTLE {
        if let Some(value) = flat.remove(*old) {
            let key = format!("throttling.{new}");
            if flat.contains_key(&key) {
                bail!("'{key}' and its alias '{old}' can't be used at the same time");
            }
            flat.insert(key, value);
        }
    }
    if let Some(value) = flat.remove("readonly") {
        if flat.contains_key("read-only") {
            bail!("'read-only' and its alias 'readonly' can't be used at the same time");
        }
        flat.insert("read-only".into(), value);
    }
    if let Some(Value::String(word)) = flat.get("cache") {
        let Some((writeback, direct, no_flush)) = cache_mode(word) else { bail!("invalid cache option") };
        flat.remove("cache");
        for (key, on) in
            [("cache.writeback", writeback), ("cache.direct", direct), ("cache.no-flush", no_flush)]
        {
            if !flat.contains_key(key) {
                flat.insert(key.into(), on.into());
            }
        }
    }
    Ok(())
}

fn take_drive(id: &str, options: &mut Options) -> Result<Drive> {
    let read_only = match options.get("read-only") {
        None => false,
        Some(_) => options.clone().take_bool("read-only")?.unwrap_or(false),
    };
    let mut setup = Setup { name: id.to_string(), ..Setup::default() };
    setup.read_only = read_only;
    setup.account_invalid = options.take_bool("stats-account-invalid")?;
    setup.account_failed = options.take_bool("stats-account-failed")?;
    setup.intervals = take_intervals(options)?;
    let mut write_cache = true;
    if let Some(Value::Object(cache)) = options.0.get("cache") {
        write_cache = options.within("cache", cache.clone()).take_bool("writeback")?.unwrap_or(true);
    }
    let policy = |options: &mut Options, key: &str, default, text: &str| match options.take_str(key)? {
        None => Ok(default),
        Some(word) => OnError::parse(&word).ok_or_else(|| fail!("'{word}' invalid {text} error action")),
    };
    let write = policy(options, "werror", OnError::Enospc, "write")?;
    let read = policy(options, "rerror", OnError::Report, "read")?;
    if read == OnError::Enospc {
        bail!("'enospc' invalid read error action");
    }
    let throttle = match options.take_table("throttling")? {
        None => None,
        Some(mut table) => {
            let group = table.take_str("group")?.unwrap_or_else(|| id.to_string());
            let mut config = Config::default();
            plain_numbers(&table)?;
            config.take(&mut table, "")?;
            config.check()?;
            if let Some((key, value)) = table.0.into_iter().next() {
                // No limit: the driver refuses what it does not know.
                options.set(&format!("throttling.{key}"), value);
            }
            config.is_limited().then_some((group, config))
        }
    };
    for (key, words, text) in [
        ("aio", &["threads", "native", "io_uring"][..], "invalid aio option"),
        ("discard", &["ignore", "off", "unmap", "on"], "Invalid discard option"),
    ] {
        if options.get_str(key).is_some_and(|word| !words.contains(&word)) {
            bail!("{text}");
        }
    }
    let detect = options.get_str("detect-zeroes").map(str::to_string);
    let detect = detect.map(|word| match DETECT_ZEROES.iter().find(|(name, _)| *name == word) {
        Some((_, detect)) => Ok(*detect),
        None => bail!("invalid parameter value: {word}"),
    });
    let detect = detect.transpose()?;
    let mut detect_zeroes = DetectZeroes::Off;
    if options.are_texts() {
        // Of the drive, which may ask for unmapping where its node will not do it.
        detect_zeroes = detect.unwrap_or(detect_zeroes);
        options.take("detect-zeroes");
    }
    let copy_on_read = options.take_bool("copy-on-read")?.unwrap_or(false);
    let snapshot = options.take_bool("snapshot")?.unwrap_or(false);
    let settings =
        Settings { read_only, auto_read_only: true, late_key: true, detect_zeroes, ..Settings::default() };
    Ok(Drive { setup, write_cache, on_error: (read, write), throttle, copy_on_read, snapshot, settings })
}

/// Limits of `-drive` are numbers without suffix.
fn plain_numbers(limits: &Options) -> Result<()> {
    for (key, value) in limits.0.iter().filter(|(key, _)| *key != "group") {
        let Some(text) = value.as_str() else { continue };
        if text.strip_prefix('-').is_some_and(|rest| rest.parse::<u64>().is_ok()) {
            bail!("bps/iops/max values must be within [0, {}]", crate::throttle::LIMIT);
        }
        if text.parse::<u64>().is_err() {
            bail!("Parameter 'throttling.{key}' expects a number");
        }
    }
    Ok(())
}

/// Seconds; one number, or several.
fn take_intervals(options: &mut Options) -> Result<Vec<u32>> {
    let given = match options.take("stats-intervals") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(Value::Object(_)) => bail!("The specification of stats-intervals is invalid"),
        Some(one) => vec![one],
    };
    let seconds = |value: Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        let number = text.parse::<u32>().ok().filter(|number| *number > 0);
        number.ok_or_else(|| fail!("Invalid interval length: {text}"))
    };
    given.into_iter().map(seconds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(graph: &std::sync::Arc<Graph>, id: &str, keys: &[(&str, &str)]) -> Result<Backend> {
        let flat = keys.iter().map(|(key, value)| (key.to_string(), Value::from(*value))).collect();
        let (at, id) = (graph.clone(), id.to_string());
        graph.block_on(async move { at.open_drive(&id, flat).await })
    }

    #[test]
    fn a_drive_is_opened_by_its_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        std::fs::write(&path, vec![3; 65536]).unwrap();
        let path = path.to_str().unwrap();
        let graph = crate::graph::tests::graph();
        let keys = [
            ("file", path),
            ("format", "raw"),
            ("cache", "writethrough"),
            ("iops", "100"),
            ("werror", "stop"),
            ("node-name", "top"),
            ("file.node-name", "below"),
        ];
        let backend = open(&graph, "d0", &keys).unwrap();
        assert!(!backend.write_cache());
        assert_eq!(backend.error_policy().1, OnError::Stop);
        assert_eq!(backend.node().unwrap().name(), "top");
        assert_eq!(backend.node().unwrap().child_named("file").unwrap().node().name(), "below");
        let at = graph.clone();
        let infos = graph.block_on(async move { at.query_devices().await });
        let inserted = infos[0].inserted.as_ref().unwrap();
        assert_eq!(inserted.limits.iops[0].avg, 100);
        assert_eq!(inserted.file, path);
        assert_eq!(inserted.image.virtual_size, 65536);
        assert_eq!(inserted.image.actual_size, Some(65536));
        let empty = open(&graph, "cd", &[]).unwrap();
        assert!(!empty.is_inserted());
        let why = open(&graph, "d1", &[("file", "foo:bar")]).unwrap_err();
        assert_eq!(why.text, "Unknown protocol 'foo'");
        let why = open(&graph, "d1", &[("file", "/nonexistent/a")]).unwrap_err();
        assert_eq!(why.text, "Could not open '/nonexistent/a': No such file or directory");
        let why = open(&graph, "d0", &[]).unwrap_err();
        assert_eq!(why.text, "Device with id 'd0' already exists");
        let why = open(&graph, "d2", &[("file", path), ("bps", "1"), ("bps_rd", "1")]).unwrap_err();
        assert!(why.text.contains("cannot be used at the same time"));
        assert_eq!(graph.backends().len(), 2);
    }
}
