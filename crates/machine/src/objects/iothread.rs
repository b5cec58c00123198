//! `iothread`: a thread that runs the requests of the disks that name it.

use super::{ObjectType, Objects, UserObject};
use base::{Result, bail, fail};
use block::{IoThread, PollLimits};
use device::{Property, PropertyKind};
use serde_json::{Map, Value};
use std::any::Any;
use std::sync::Arc;

pub(super) static IOTHREAD: ObjectType = ObjectType {
    name: "iothread",
    parent: "event-loop-base",
    properties: &[
        Property::new(
            MOST,
            PropertyKind::U64,
            "32768",
            "Look for new work this long before sleeping, in ns; 0: never",
        ),
        Property::new(
            GROW,
            PropertyKind::U64,
            "0",
            "How fast the time grows where it is too short; 0: doubled",
        ),
        Property::new(
            SHRINK,
            PropertyKind::U64,
            "0",
            "How fast it shrinks with nothing to do; 0: to nothing",
        ),
    ],
    create,
};

const MOST: &str = "poll-max-ns";
const GROW: &str = "poll-grow";
const SHRINK: &str = "poll-shrink";

struct Holder(Arc<IoThread>);

impl UserObject for Holder {
    fn payload(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }

    fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn property(&self, name: &str) -> Option<Value> {
        field(&mut self.0.polling(), name).map(|value| (*value).into())
    }

    fn set_property(&self, name: &str, value: &Value) -> Option<Result<()>> {
        let mut limits = self.0.polling();
        let set = set(&mut limits, name, value);
        Some(set.map(|()| self.0.set_polling(limits)))
    }
}

fn field<'a>(limits: &'a mut PollLimits, name: &str) -> Option<&'a mut u64> {
    match name {
        MOST => Some(&mut limits.most),
        GROW => Some(&mut limits.grow),
        SHRINK => Some(&mut limits.shrink),
        _ => None,
    }
}

fn set(limits: &mut PollLimits, name: &str, value: &Value) -> Result<()> {
    let Some(number) = value.as_i64().or_else(|| value.as_u64().map(|_| -1)) else {
        bail!("Invalid parameter type for '{name}', expected: integer");
    };
    let number =
        u64::try_from(number).map_err(|_| fail!("{name} value must be in range [0, {}]", i64::MAX))?;
    if let Some(place) = field(limits, name) {
        *place = number;
    }
    Ok(())
}

fn create(_objects: &Objects, id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    let mut limits = PollLimits::NONE;
    for (name, value) in values {
        set(&mut limits, name, value)?;
    }
    // The system keeps 15 bytes of a thread's name.
    let name: String = format!("IO {id}").chars().take(15).collect();
    let thread = IoThread::start(&name);
    thread.set_polling(limits);
    Ok(Arc::new(Holder(Arc::new(thread))))
}
