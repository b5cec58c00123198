//! User-created objects (`-object`, `object-add`): entropy sources, secrets, TLS
//! credentials, memory back ends. One record a type; the list below is the only place that names them.

use base::{Mutex, Result, bail, fail};
use device::{Property, PropertyKind};
use qom::{Object, PropertyInfo, Tree};
use serde_json::{Map, Value};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

mod authz;
mod iothread;
mod memory_backend;
mod rng;
mod secret;
mod throttle_group;
mod tls_creds;
mod vault;

pub use memory_backend::MemoryBackend;
pub use secret::Secret;
pub(crate) use vault::Shelf;

/// A type of user-creatable object.
pub struct ObjectType {
    pub name: &'static str,
    pub parent: &'static str,
    pub properties: &'static [Property],
    /// Makes an instance from its id and checked properties; other objects may be looked up.
    create: fn(&Objects, &str, &Map<String, Value>) -> Result<Arc<dyn UserObject>>,
}

/// An instance. `payload` is what devices and back ends downcast.
pub trait UserObject: Send + Sync {
    fn payload(&self) -> Arc<dyn Any + Send + Sync>;
    /// Whether someone uses it (then it may not be deleted).
    fn in_use(&self) -> bool {
        false
    }
    /// The present value of a property that is not as it was given.
    fn property(&self, _name: &str) -> Option<Value> {
        None
    }
    /// Gives a property another value; `None`: it stays as it was made.
    fn set_property(&self, _name: &str, _value: &Value) -> Option<Result<()>> {
        None
    }
}

static TYPES: &[&ObjectType] = &[
    &authz::LIST_FILE,
    &authz::SIMPLE,
    &iothread::IOTHREAD,
    &memory_backend::FILE,
    &memory_backend::MEMFD,
    &memory_backend::RAM,
    &rng::BUILTIN,
    &rng::RANDOM,
    &secret::SECRET,
    &throttle_group::THROTTLE_GROUP,
    &tls_creds::X509,
];

const COMMON: &[Property] = &[
    Property::unset("qom-type", PropertyKind::Str, "Type of the object"),
    Property::unset("id", PropertyKind::Str, "Name of the object"),
];

struct Entry {
    kind: &'static ObjectType,
    object: Arc<dyn UserObject>,
}

/// The objects of one process.
pub struct Objects {
    tree: Arc<Tree>,
    graph: Arc<block::Graph>,
    all: Mutex<BTreeMap<String, Arc<Entry>>>,
}

impl Objects {
    pub fn new(tree: Arc<Tree>, graph: Arc<block::Graph>) -> Self {
        Objects { tree, graph, all: Mutex::default() }
    }

    /// The types that can be created.
    pub fn types() -> &'static [&'static ObjectType] {
        TYPES
    }

    /// Creates an object from `qom-type`, `id` and the type's properties; `typed`: strings stand
    /// for strings only.
    pub fn add(&self, asked: &Map<String, Value>, typed: bool) -> Result<()> {
        // Keys with dots are members of tables.
        let asked = &block::Options::crumple(asked.clone())?.0;
        let text = |name: &str| asked.get(name).and_then(Value::as_str);
        let kind = text("qom-type").ok_or_else(|| fail!("Parameter 'qom-type' is missing"))?;
        let id = text("id").ok_or_else(|| fail!("Parameter 'id' is missing"))?;
        let Some(kind) = TYPES.iter().copied().find(|known| known.name == kind) else {
            let failure = fail!("Parameter 'qom-type' does not accept value '{kind}'");
            return Err(match spec::nearest(kind, TYPES.iter().map(|known| known.name)) {
                Some(near) => failure.hint(format!("the nearest object type is '{near}'")),
                None => failure,
            });
        };
        if !spec::id_wellformed(id) {
            bail!("Parameter 'id' expects an identifier");
        }
        if self.all.lock().contains_key(id) {
            bail!("attempt to add duplicate property '{id}' to object (type 'container')");
        }
        let mut checked = Map::new();
        for property in kind.properties {
            if let Some(default) = property.default {
                checked.insert(property.name.into(), property.canonical(&default.into(), kind.name)?);
            }
        }
        for (name, value) in asked.iter().filter(|(name, _)| !COMMON.iter().any(|c| c.name == *name)) {
            let property = kind.properties.iter().find(|property| property.name == name);
            let property = property.ok_or_else(|| fail!("Property '{}.{name}' not found", kind.name))?;
            if typed {
                property.check_type(value)?;
            }
            checked.insert(name.clone(), property.canonical(value, kind.name)?);
        }
        let object = (kind.create)(self, id, &checked)?;
        let entry = Arc::new(Entry { kind, object });
        self.tree
            .insert(&format!("/objects/{id}"), Arc::new(Shown { entry: entry.clone(), values: checked }));
        self.all.lock().insert(id.to_string(), entry);
        Ok(())
    }

    /// Deletes an object that nobody uses.
    pub fn remove(&self, id: &str) -> Result<()> {
        let mut all = self.all.lock();
        let entry = all.get(id).ok_or_else(|| fail!("object '{id}' not found"))?;
        if entry.object.in_use() {
            bail!("object '{id}' is in use, can not be deleted");
        }
        all.remove(id);
        drop(all);
        self.tree.remove(&format!("/objects/{id}"));
        Ok(())
    }

    /// The object's payload, to be downcast.
    pub fn find(&self, id: &str) -> Option<Arc<dyn Any + Send + Sync>> {
        self.all.lock().get(id).map(|entry| entry.object.payload())
    }

    /// Ids and type names.
    pub fn list(&self) -> Vec<(String, &'static str)> {
        self.all.lock().iter().map(|(id, entry)| (id.clone(), entry.kind.name)).collect()
    }
}

struct Shown {
    entry: Arc<Entry>,
    values: Map<String, Value>,
}

impl Object for Shown {
    fn type_name(&self) -> String {
        self.entry.kind.name.into()
    }

    fn properties(&self) -> Vec<PropertyInfo> {
        let own = self.entry.kind.properties.iter().map(|p| PropertyInfo::new(p.name, p.type_name()));
        std::iter::once(PropertyInfo::new("type", "string")).chain(own).collect()
    }

    fn get(&self, name: &str) -> Result<Value> {
        if name == "type" {
            return Ok(self.type_name().into());
        }
        if secret::is_hidden(self.entry.kind.name, name) {
            return Err(Tree::not_permitted());
        }
        let property = self.entry.kind.properties.iter().find(|property| property.name == name);
        property.ok_or_else(|| Tree::no_property(name))?;
        if let Some(value) = self.entry.object.property(name) {
            return Ok(value);
        }
        Ok(self.values.get(name).cloned().unwrap_or_else(|| "".into()))
    }

    fn set(&self, name: &str, value: &Value) -> Result<()> {
        if !self.entry.kind.properties.iter().any(|property| property.name == name) {
            return Err(Tree::no_property(name));
        }
        self.entry.object.set_property(name, value).unwrap_or_else(|| Err(Tree::not_permitted()))
    }
}
