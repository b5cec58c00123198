//! `throttle-group`: limits that several disks share.

use super::{ObjectType, Objects, UserObject};
use base::{Result, bail, fail};
use block::Options;
use block::throttle::{Config, Group};
use device::{Property, PropertyKind};
use serde_json::{Map, Value};
use std::any::Any;
use std::sync::Arc;

const fn rate(name: &'static str) -> Property {
    Property::unset(name, PropertyKind::U64, "A limit by itself; 'limits' is the usual way")
}

pub(super) static THROTTLE_GROUP: ObjectType = ObjectType {
    name: "throttle-group",
    parent: "object",
    properties: &[
        Property::unset("limits", PropertyKind::Table("ThrottleLimits"), "The limits"),
        rate("x-bps-total"),
        rate("x-bps-total-max"),
        rate("x-bps-total-max-length"),
        rate("x-bps-read"),
        rate("x-bps-read-max"),
        rate("x-bps-read-max-length"),
        rate("x-bps-write"),
        rate("x-bps-write-max"),
        rate("x-bps-write-max-length"),
        rate("x-iops-total"),
        rate("x-iops-total-max"),
        rate("x-iops-total-max-length"),
        rate("x-iops-read"),
        rate("x-iops-read-max"),
        rate("x-iops-read-max-length"),
        rate("x-iops-write"),
        rate("x-iops-write-max"),
        rate("x-iops-write-max-length"),
        rate("x-iops-size"),
    ],
    create,
};

struct Holder(Arc<Group>);

impl UserObject for Holder {
    fn payload(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }

    fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn property(&self, name: &str) -> Option<Value> {
        let mut table = self.0.config().table();
        match name.strip_prefix("x-") {
            Some(name) => table.remove(name),
            None => (name == "limits").then_some(Value::Object(table)),
        }
    }

    fn set_property(&self, name: &str, value: &Value) -> Option<Result<()>> {
        Some(match (name, value) {
            ("limits", Value::Object(limits)) => {
                updated(self.0.config(), limits).map(|config| self.0.set_config(config))
            }
            ("limits", _) => Err(fail!("Invalid parameter type for 'limits', expected: object")),
            _ => Err(fail!("Property cannot be set after initialization")),
        })
    }
}

/// `config` with some limits replaced.
fn updated(mut config: Config, limits: &Map<String, Value>) -> Result<Config> {
    let mut options = Options::from(limits.clone());
    config.take(&mut options, "")?;
    if let Some(key) = options.0.keys().next() {
        bail!("Parameter 'limits.{key}' is unexpected");
    }
    config.check()?;
    Ok(config)
}

fn create(objects: &Objects, id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    let mut options = Options::from(values.clone());
    let mut config = Config::default();
    config.take(&mut options, "x-")?;
    let limits = options.take_table("limits")?.unwrap_or_default();
    let config = updated(config, &limits.0)?;
    let groups = &objects.graph.throttle_groups;
    if groups.find(id).is_some() {
        bail!("A group with this name already exists");
    }
    let group = groups.obtain(id);
    group.set_config(config);
    Ok(Arc::new(Holder(group)))
}
