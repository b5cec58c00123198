//! Making images: with `blockdev-create` options, or by file name as tools and jobs do.

use super::{Graph, Settings, open::protocol_of};
use crate::driver::{Create, Driver, Kind};
use crate::options::Options;
use crate::types::Preallocation;
use base::{Result, bail};
use serde_json::{Value, json};
use std::io::Write;

/// Takes option `preallocation`.
pub fn take_preallocation(options: &mut Options) -> Result<Preallocation> {
    let words = ["off", "metadata", "falloc", "full"];
    let words: Vec<_> = words.iter().filter_map(|word| Some((*word, Preallocation::parse(word)?))).collect();
    Ok(options.take_word("preallocation", &words)?.unwrap_or_default())
}

/// Whether options of creation that take words have words that `driver` knows.
pub fn check_words(driver: &Driver, options: &Options) -> Result<()> {
    for (key, words) in driver.create_words {
        match options.get(key) {
            None => {}
            Some(Value::String(word)) if words.contains(&word.as_str()) => {}
            Some(Value::String(word)) => bail!("Parameter '{key}' does not accept value '{word}'"),
            Some(_) => bail!("Invalid parameter type for 'options.{key}', expected: string"),
        }
    }
    Ok(())
}

impl Graph {
    /// `blockdev-create`: `options` has `driver` and what it needs.
    pub async fn create(&self, options: Options) -> Result<()> {
        self.make(options, false).await
    }

    async fn make(&self, mut options: Options, by_name: bool) -> Result<()> {
        let name = options.need_str("driver")?;
        let Some(driver) = crate::formats::find(&name) else { bail!("Unknown driver '{name}'") };
        let Some(create) = driver.create else { bail!("Driver does not support blockdev-create") };
        let mut job = Create::new(self.arc(), options, by_name);
        let result = create(&mut job).await;
        job.release();
        drop(job);
        self.collect().await;
        result
    }

    /// Makes an image file: `driver` by name, options by the names of command line tools
    /// (`size`, `backing_file`, `cluster_size` ...).
    pub async fn create_image(&self, filename: &str, driver: &str, options: Options) -> Result<()> {
        self.make_image(filename, driver, options, false).await
    }

    /// As [`Graph::create_image`], and tells of it on standard output as tools do.
    pub async fn create_image_told(&self, filename: &str, driver: &str, options: Options) -> Result<()> {
        self.make_image(filename, driver, options, true).await
    }

    async fn make_image(&self, filename: &str, driver: &str, options: Options, told: bool) -> Result<()> {
        let Some(driver) = crate::formats::find(driver) else { bail!("Unknown file format '{driver}'") };
        let protocol = protocol_of(filename)?;
        if driver.create.is_none() {
            bail!("Format driver '{}' does not support image creation", driver.name);
        }
        if protocol.create.is_none() {
            bail!("Protocol driver '{}' does not support image creation", protocol.name);
        }
        if told {
            tell(filename, driver, &options);
        }
        let mut modern = modernise(driver, options)?;
        if driver.kind == Kind::Protocol {
            modern.set("driver", driver.name);
            modern.set("filename", filename);
            return self.create(modern).await;
        }
        self.create(Options::json(json!({"driver": protocol.name, "filename": filename, "size": 0}))).await?;
        let file = Options::json(json!({"driver": protocol.name, "filename": filename}));
        let pin = self.open(file, Settings::default()).await?;
        modern.set("driver", driver.name);
        modern.set("file", pin.name());
        let result = self.make(modern, true).await;
        drop(pin);
        self.collect().await;
        result
    }
}

fn tell(filename: &str, driver: &Driver, options: &Options) {
    let (before, after) = driver.defaults;
    let mut line = format!("Formatting '{filename}', fmt={} {before}size={}", driver.name, options.0["size"]);
    for key in ["backing_file", "backing_fmt"] {
        if let Some(value) = options.get_str(key) {
            line += &format!(" {key}={}", value.replace(',', ",,"));
        }
    }
    let mut out = std::io::stdout().lock();
    // Nobody may be listening.
    let _ = writeln!(out, "{line}{after}").and_then(|()| out.flush());
}

/// Names of command line tools to those of `blockdev-create`.
fn modernise(driver: &Driver, options: Options) -> Result<Options> {
    let mut modern = Options::new();
    for (key, value) in options.0 {
        match driver.create_options.iter().find(|option| option.name == key) {
            Some(option) => modern.set(option.modern, value),
            None => bail!("Invalid parameter '{key}'"),
        }
    }
    Ok(modern)
}
