//! `-readconfig`: options in an INI file, a section an option: `[drive "id"]`, `key = "value"`.

use crate::builder::Builder;
use base::{Failure, Result, bail, fail};

struct Section {
    line: usize,
    group: String,
    id: Option<String>,
    keys: Vec<(String, String)>,
}

impl Builder {
    pub fn read_config(&mut self, path: &str) -> Result<()> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::os(format!("Cannot read config file {path}"), &e))?;
        let place = self.place.clone();
        for section in sections(&text).map_err(|f| f.within(path))? {
            let at = format!("{path}:{}", section.line);
            self.config_section(section).map_err(|f| f.within(at))?;
        }
        self.place = place;
        Ok(())
    }

    fn config_section(&mut self, section: Section) -> Result<()> {
        let mut parts: Vec<String> = section.id.iter().map(|id| format!("id={id}")).collect();
        parts.extend(section.keys.iter().map(|(k, v)| format!("{k}={}", v.replace(',', ",,"))));
        let name = match section.group.as_str() {
            "memory" => "m",
            "smp-opts" => "smp",
            "boot-opts" => "boot",
            other => other,
        };
        let option = crate::options::find(name).filter(|o| o.group.is_some());
        let option = option.ok_or_else(|| fail!("There is no option group '{}'", section.group))?;
        let value = parts.join(",");
        self.place = format!("-{name} {value}");
        (option.take)(self, &value)
    }
}

fn sections(text: &str) -> Result<Vec<Section>> {
    let mut found: Vec<Section> = Vec::new();
    for (at, line) in text.lines().enumerate().map(|(at, l)| (at + 1, l.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(head) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let (group, id) = match head.trim().split_once(' ') {
                Some((group, id)) => (group, Some(unquote(id.trim()).ok_or_else(|| bad_line(at))?)),
                None => (head.trim(), None),
            };
            found.push(Section { line: at, group: group.into(), id, keys: Vec::new() });
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| bad_line(at))?;
        let value = unquote(value.trim()).ok_or_else(|| bad_line(at))?;
        match found.last_mut() {
            Some(section) => section.keys.push((key.trim().into(), value)),
            None => bail!("{at}: no group defined"),
        }
    }
    Ok(found)
}

fn bad_line(at: usize) -> Failure {
    fail!("{at}: parse error")
}

fn unquote(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    (!inner.contains('"')).then(|| inner.to_string())
}
