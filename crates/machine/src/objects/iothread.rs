//! `iothread`: a thread that runs the requests of the disks that name it.

use super::{ObjectType, Objects, UserObject};
use base::Result;
use block::IoThread;
use serde_json::{Map, Value};
use std::any::Any;
use std::sync::Arc;

pub(super) static IOTHREAD: ObjectType =
    ObjectType { name: "iothread", parent: "event-loop-base", properties: &[], create };

struct Holder(Arc<IoThread>);

impl UserObject for Holder {
    fn payload(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }
    fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

fn create(_objects: &Objects, id: &str, _values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    // The system keeps 15 bytes of a thread's name.
    let name: String = format!("IO {id}").chars().take(15).collect();
    Ok(Arc::new(Holder(Arc::new(IoThread::start(&name)))))
}
