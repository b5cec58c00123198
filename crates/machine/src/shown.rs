//! The machine itself in the object tree.

use crate::Machine;
use base::Result;
use qom::{Container, Object, PropertyInfo, Tree};
use serde_json::Value;
use std::sync::{Arc, Weak};

/// Places that exist even when nothing is in them: clients list them without asking first.
const CONTAINERS: &[&str] =
    &["/machine/unattached", "/machine/peripheral", "/machine/peripheral-anon", "/objects", "/chardevs"];

/// `/machine`: the board's type, its options, and the guest's clock.
struct MachineObject(Weak<Machine>);

/// Enters the machine and the fixed containers.
pub(crate) fn enter(machine: &Arc<Machine>) {
    machine.tree.insert("/machine", Arc::new(MachineObject(Arc::downgrade(machine))));
    for path in CONTAINERS {
        if machine.tree.resolve(path).is_err() {
            machine.tree.insert(path, Arc::new(Container));
        }
    }
}

impl MachineObject {
    /// The guest's date, from the device that keeps it.
    fn date(machine: &Machine) -> Option<Value> {
        machine.devices.entries().iter().find_map(|entry| entry.device.dynamic_property("date"))
    }
}

impl Object for MachineObject {
    fn type_name(&self) -> String {
        self.0.upgrade().map_or_else(String::new, |machine| format!("{}-machine", machine.spec.type_name))
    }

    fn properties(&self) -> Vec<PropertyInfo> {
        let mut all = vec![PropertyInfo::new("type", "string")];
        let Some(machine) = self.0.upgrade() else { return all };
        all.extend(machine.spec.options.iter().map(|(name, value)| {
            let kind = match value {
                Value::Bool(_) => "bool",
                Value::Number(_) => "int",
                _ => "string",
            };
            PropertyInfo::new(name, kind)
        }));
        all.extend(["kernel", "initrd", "append"].map(|name| PropertyInfo::new(name, "string")));
        if Self::date(&machine).is_some() {
            all.push(PropertyInfo::new("rtc-time", "struct tm"));
        }
        all
    }

    fn get(&self, name: &str) -> Result<Value> {
        let machine = self.0.upgrade().ok_or_else(|| Tree::no_property(name))?;
        let boot = &machine.spec.boot;
        let text = |text: &Option<String>| Ok(text.clone().unwrap_or_default().into());
        match name {
            "type" => Ok(self.type_name().into()),
            "kernel" => text(&boot.kernel),
            "initrd" => text(&boot.initrd),
            "append" => text(&boot.append),
            "rtc-time" => Self::date(&machine).ok_or_else(|| Tree::no_property(name)),
            _ => machine.spec.options.get(name).cloned().ok_or_else(|| Tree::no_property(name)),
        }
    }
}
