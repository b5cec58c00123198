//! `-drive`, its short forms, and `-set`.

use crate::builder::Builder;
use crate::params::Params;
use crate::{Help, keys as k};
use base::{Result, bail, fail};

impl Builder {
    pub fn drive(&mut self, text: &str) -> Result<()> {
        let params = Params::parse(text, &k::DRIVE)?;
        if params.help || matches!(params.get("format"), Some("help" | "?")) {
            self.ask(Help::Formats);
            return Ok(());
        }
        if let Some(id) = params.get("id")
            && self.drives.iter().any(|(d, _)| d.get("id") == Some(id))
        {
            bail!("Duplicate ID '{id}' for drive");
        }
        self.drives.push((params, self.place.clone()));
        Ok(())
    }

    /// An image with the rest of the keys given.
    pub fn shorthand(&mut self, file: &str, keys: &[(&str, &str)]) -> Result<()> {
        let mut params = Params::default();
        keys.iter().for_each(|(key, value)| params.set(key, value));
        params.set("file", file);
        self.drives.push((params, self.place.clone()));
        Ok(())
    }

    /// A bare image path.
    pub fn image(&mut self, file: &str) -> Result<()> {
        self.shorthand(file, &[("index", "0"), ("media", "disk")])
    }

    /// `-hda` to `-hdd`: the name is in the place.
    pub fn hd(&mut self, file: &str) -> Result<()> {
        let letter = self.place.as_bytes().get(3).copied().unwrap_or(b'a');
        let index = letter.saturating_sub(b'a').to_string();
        self.shorthand(file, &[("index", &index), ("media", "disk")])
    }

    /// `-set group.id.key=value`.
    pub fn set(&mut self, text: &str) -> Result<()> {
        let parts = || {
            let (group, rest) = text.split_once('.')?;
            let (id, rest) = rest.split_once('.')?;
            let (key, value) = rest.split_once('=')?;
            Some((group, id, key, value))
        };
        let (group, id, key, value) = parts().ok_or_else(|| fail!("can't parse: \"{text}\""))?;
        let none = || fail!("there is no {group} \"{id}\" defined");
        match group {
            "drive" => {
                let (params, _) =
                    self.drives.iter_mut().find(|(p, _)| p.get("id") == Some(id)).ok_or_else(none)?;
                params.set(key, &k::DRIVE.check(key, value)?);
            }
            "chardev" => {
                let (params, _) =
                    self.chardevs.iter_mut().find(|(p, _)| p.get("id") == Some(id)).ok_or_else(none)?;
                params.set(key, &k::CHARDEV.check(key, value)?);
            }
            "device" => {
                let same = |d: &spec::Tree| d.get("id").and_then(|v| v.as_str()) == Some(id);
                let (device, _) = self.devices.iter_mut().find(|(d, _)| same(d)).ok_or_else(none)?;
                device.insert(key.into(), value.into());
            }
            other => bail!("there is no option group '{other}' whose keys can be set"),
        }
        Ok(())
    }

    pub fn finish_drives(&mut self) {
        for (mut params, place) in std::mem::take(&mut self.drives) {
            if self.snapshot && params.get("snapshot").is_none() {
                params.set("snapshot", "on");
            }
            self.inv.machine.drives.push(params.into_tree());
            self.inv.places.drives.push(place);
        }
    }
}
