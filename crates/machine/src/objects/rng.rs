//! `rng-builtin` and `rng-random`: where virtio-rng takes its bytes from.

use super::{ObjectType, Objects, UserObject};
use base::{Failure, Mutex, Result};
use device::{Entropy, EntropySource, Property, PropertyKind};
use serde_json::{Map, Value};
use std::any::Any;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

pub(super) static BUILTIN: ObjectType =
    ObjectType { name: "rng-builtin", parent: "rng-backend", properties: &[], create: builtin };

pub(super) static RANDOM: ObjectType = ObjectType {
    name: "rng-random",
    parent: "rng-backend",
    properties: &[Property::new(
        "filename",
        PropertyKind::Str,
        "/dev/urandom",
        "Character device to read random bytes from",
    )],
    create: random,
};

struct Rng(Arc<EntropySource>);

impl UserObject for Rng {
    fn payload(&self) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }
    fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

fn builtin(_objects: &Objects, _id: &str, _values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    struct Host;
    impl Entropy for Host {
        fn fill(&self, to: &mut [u8]) -> std::io::Result<usize> {
            Ok(rustix::rand::getrandom(to, rustix::rand::GetRandomFlags::empty())?)
        }
    }
    Ok(Arc::new(Rng(Arc::new(EntropySource(Box::new(Host))))))
}

fn random(_objects: &Objects, _id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    struct Device(Mutex<File>);
    impl Entropy for Device {
        fn fill(&self, to: &mut [u8]) -> std::io::Result<usize> {
            self.0.lock().read(to)
        }
    }
    let path = values.get("filename").and_then(Value::as_str).unwrap_or("/dev/urandom");
    let file = File::open(path).map_err(|e| Failure::os(format!("Could not open '{path}'"), &e))?;
    Ok(Arc::new(Rng(Arc::new(EntropySource(Box::new(Device(Mutex::new(file))))))))
}
