use base::{Class, Failure, Mutex, Result, fail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Name and type of a property (`bool`, `int`, `string`, `child<T>`, `link<T>`, ...).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PropertyInfo {
    pub name: String,
    pub kind: String,
}

impl PropertyInfo {
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Self {
        PropertyInfo { name: name.into(), kind: kind.into() }
    }
}

/// A node of the tree. `child<>` properties come from the tree itself.
pub trait Object: Send + Sync {
    fn type_name(&self) -> String;

    /// Own properties without children.
    fn properties(&self) -> Vec<PropertyInfo>;

    /// The value of a property; an unknown name fails with [`Tree::no_property`].
    fn get(&self, name: &str) -> Result<Value>;

    fn set(&self, name: &str, _value: &Value) -> Result<()> {
        if self.properties().iter().any(|property| property.name == name) {
            return Err(Tree::not_permitted());
        }
        Err(Tree::no_property(name))
    }
}

/// A node that only holds children.
pub struct Container;

impl Object for Container {
    fn type_name(&self) -> String {
        "container".into()
    }
    fn properties(&self) -> Vec<PropertyInfo> {
        vec![PropertyInfo::new("type", "string")]
    }
    fn get(&self, name: &str) -> Result<Value> {
        if name == "type" { Ok(self.type_name().into()) } else { Err(Tree::no_property(name)) }
    }
}

/// The tree. Paths are absolute and without a trailing slash; the root is `/`.
#[derive(Default)]
pub struct Tree {
    nodes: Mutex<BTreeMap<String, Arc<dyn Object>>>,
}

impl Tree {
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an object at `path`; missing parents become containers.
    pub fn insert(&self, path: &str, object: Arc<dyn Object>) {
        let mut nodes = self.nodes.lock();
        let mut end = path.len();
        while let Some(slash) = path[..end].rfind('/').filter(|&slash| slash > 0) {
            nodes.entry(path[..slash].to_string()).or_insert_with(|| Arc::new(Container));
            end = slash;
        }
        nodes.insert(path.to_string(), object);
    }

    /// Removes an object and all below it.
    pub fn remove(&self, path: &str) {
        let below = format!("{path}/");
        self.nodes.lock().retain(|at, _| at != path && !at.starts_with(&below));
    }

    /// The first of `<parent>/<stem>[0]`, `[1]`, ... that is free.
    pub fn free_path(&self, parent: &str, stem: &str) -> String {
        let nodes = self.nodes.lock();
        (0..)
            .map(|n| format!("{parent}/{stem}[{n}]"))
            .find(|path| !nodes.contains_key(path))
            .unwrap_or_default()
    }

    /// Finds an object by absolute path or by a partial path that only one object ends in.
    /// Returns the absolute path with it.
    pub fn resolve(&self, path: &str) -> Result<(String, Arc<dyn Object>)> {
        let nodes = self.nodes.lock();
        if path.starts_with('/') {
            let clean = path.trim_end_matches('/');
            if clean.is_empty() {
                return Ok(("/".into(), Arc::new(Container)));
            }
            return match nodes.get(clean) {
                Some(object) => Ok((clean.to_string(), object.clone())),
                None => Err(Failure::device_not_found(path)),
            };
        }
        let tail = format!("/{path}");
        let mut found = nodes.iter().filter(|(at, _)| at.ends_with(&tail));
        match (found.next(), found.next()) {
            (Some((at, object)), None) => Ok((at.clone(), object.clone())),
            (Some(_), Some(_)) => {
                Err(Failure::new(format!("Path '{path}' does not uniquely identify an object")))
            }
            _ => Err(Failure::device_not_found(path)),
        }
    }

    /// Children (as `child<type>`) and own properties of the object at `path`.
    pub fn list(&self, path: &str) -> Result<Vec<PropertyInfo>> {
        let (at, object) = self.resolve(path)?;
        let mut all = object.properties();
        all.extend(
            self.children(&at)
                .into_iter()
                .map(|(name, child)| PropertyInfo::new(name, format!("child<{}>", child.type_name()))),
        );
        Ok(all)
    }

    /// Names and objects directly below an absolute path.
    pub fn children(&self, path: &str) -> Vec<(String, Arc<dyn Object>)> {
        let prefix = if path == "/" { "/".to_string() } else { format!("{path}/") };
        let nodes = self.nodes.lock();
        nodes
            .range(prefix.clone()..)
            .take_while(|(at, _)| at.starts_with(&prefix))
            .filter(|(at, _)| !at[prefix.len()..].contains('/'))
            .map(|(at, object)| (at[prefix.len()..].to_string(), object.clone()))
            .collect()
    }

    pub fn get(&self, path: &str, property: &str) -> Result<Value> {
        let (at, object) = self.resolve(path)?;
        if let Some((name, _)) = self.children(&at).into_iter().find(|(name, _)| name == property) {
            let slash = if at == "/" { "" } else { "/" };
            return Ok(format!("{at}{slash}{name}").into());
        }
        object.get(property)
    }

    pub fn set(&self, path: &str, property: &str, value: &Value) -> Result<()> {
        let (at, object) = self.resolve(path)?;
        if self.children(&at).iter().any(|(name, _)| name == property) {
            return Err(Tree::not_permitted());
        }
        object.set(property, value)
    }

    /// "Property '.x' not found".
    pub fn no_property(name: &str) -> Failure {
        fail!("Property '.{name}' not found")
    }

    /// The customary refusal of a property without getter or setter.
    pub fn not_permitted() -> Failure {
        Failure::of(Class::GenericError, "Insufficient permission to perform this operation")
    }
}
