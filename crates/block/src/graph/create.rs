//! Making images: with `blockdev-create` options, or by file name as tools and jobs do.

use super::{Graph, Settings, open::protocol_of};
use crate::driver::{Create, Driver, Kind};
use crate::options::Options;
use crate::types::Preallocation;
use base::{Result, bail};
use serde_json::json;

/// Takes option `preallocation`.
pub fn take_preallocation(options: &mut Options) -> Result<Preallocation> {
    let words = ["off", "metadata", "falloc", "full"];
    let words: Vec<_> = words.iter().filter_map(|word| Some((*word, Preallocation::parse(word)?))).collect();
    Ok(options.take_word("preallocation", &words)?.unwrap_or_default())
}

impl Graph {
    /// `blockdev-create`: `options` has `driver` and what it needs.
    pub async fn create(&self, mut options: Options) -> Result<()> {
        let name = options.need_str("driver")?;
        let Some(driver) = crate::formats::find(&name) else { bail!("Unknown driver '{name}'") };
        let Some(create) = driver.create else { bail!("Driver does not support blockdev-create") };
        let mut job = Create::new(self.arc(), options);
        let result = create(&mut job).await;
        job.release();
        drop(job);
        self.collect().await;
        result
    }

    /// Makes an image file: `driver` by name, options by the names of command line tools
    /// (`size`, `backing_file`, `cluster_size` ...).
    pub async fn create_image(&self, filename: &str, driver: &str, options: Options) -> Result<()> {
        let Some(driver) = crate::formats::find(driver) else { bail!("Unknown file format '{driver}'") };
        let protocol = protocol_of(filename)?;
        if driver.create.is_none() {
            bail!("Format driver '{}' does not support image creation", driver.name);
        }
        if protocol.create.is_none() {
            bail!("Protocol driver '{}' does not support image creation", protocol.name);
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
        let result = self.create(modern).await;
        drop(pin);
        self.collect().await;
        result
    }
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
