use crate::{At, Describe, Map, Result};
use serde_json::Value;

/// The members of a JSON object while they are being taken out of it.
pub struct Fields {
    map: Map,
    top: bool,
}

impl Fields {
    /// The arguments of a command.
    pub fn top(map: Map) -> Self {
        Fields { map, top: true }
    }

    /// The members of an object inside an argument.
    pub fn nested(map: Map) -> Self {
        Fields { map, top: false }
    }

    fn at<'a>(&self, name: &'a str) -> At<'a> {
        At { name, top: self.top }
    }

    /// Fails if neither the member nor one of its aliases is there.
    pub fn require<T: Describe>(&self, name: &str, aliases: &[&str]) -> Result<()> {
        match self.map.contains_key(name) || aliases.iter().any(|alias| self.map.contains_key(*alias)) {
            true => Ok(()),
            false => Err(self.at(name).missing(T::KIND)),
        }
    }

    /// Takes a mandatory member.
    pub fn take<T: Describe>(&mut self, name: &str, aliases: &[&str]) -> Result<T> {
        match self.take_optional(name, aliases)? {
            Some(value) => Ok(value),
            None => Err(self.at(name).missing(T::KIND)),
        }
    }

    /// Takes an optional member. Naming it twice, by its name and an alias, is an error.
    pub fn take_optional<T: Describe>(&mut self, name: &str, aliases: &[&str]) -> Result<Option<T>> {
        let mut found = self.remove(name).map(|value| (name, value));
        for alias in aliases {
            if found.is_some() {
                break;
            }
            found = self.remove(alias).map(|value| (*alias, value));
        }
        let Some((name, value)) = found else { return Ok(None) };
        T::read(value, &self.at(name)).map(Some)
    }

    fn remove(&mut self, name: &str) -> Option<Value> {
        if self.map.is_empty() { None } else { self.map.shift_remove(name) }
    }

    /// Everything not taken yet.
    pub fn rest(&mut self) -> Map {
        std::mem::take(&mut self.map)
    }

    /// Fails if a member is left over.
    pub fn finish(self) -> Result<()> {
        match self.map.keys().next() {
            Some(name) => Err(self.at(name).unexpected()),
            None => Ok(()),
        }
    }
}
