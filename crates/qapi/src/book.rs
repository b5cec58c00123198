//! The book of all types that commands and events use: what `query-qmp-schema` answers and
//! what the reference documentation is made of.

use crate::{CommandEntry, EventEntry, Map, Object, Value};
use std::any;
use std::collections::HashMap;

/// Number of a type in its book.
pub type TypeId = usize;

/// A name with its documentation and features.
type Documented<'a> = (&'a str, &'a str, &'a [&'a str]);

#[derive(PartialEq, Eq, Hash)]
enum Key {
    Builtin(&'static str),
    Rust(any::TypeId),
    Tags(any::TypeId),
    Array(TypeId),
    Wrapper(String, TypeId),
    Empty,
}

/// A type: its name for people, its text, and its layout.
pub struct Entry {
    pub name: String,
    pub doc: String,
    pub features: Vec<String>,
    pub layout: Layout,
}

pub enum Layout {
    /// The JSON type.
    Builtin(&'static str),
    Object(Shape),
    Enum(Vec<Member>),
    Array(TypeId),
    Alternate(Vec<TypeId>),
}

/// The members of an object, and its variants if it is a flat union.
#[derive(Default)]
pub struct Shape {
    pub members: Vec<Member>,
    pub tag: Option<String>,
    pub variants: Vec<(String, TypeId)>,
    /// Takes further members that are not known here.
    pub open: bool,
}

/// A member of an object, or a value of an enumeration (then `ty` means nothing).
pub struct Member {
    pub name: String,
    pub ty: TypeId,
    pub optional: bool,
    pub doc: String,
    pub features: Vec<String>,
}

impl Shape {
    pub fn member(&mut self, name: &str, ty: TypeId, optional: bool, doc: &str, features: &[&str]) {
        let features = owned(features);
        self.members.push(Member { name: name.into(), ty, optional, doc: doc.into(), features });
    }

    pub fn union(&mut self, tag: &str, variants: &[(&str, TypeId)]) {
        self.tag = Some(tag.into());
        self.variants = variants.iter().map(|(case, ty)| (case.to_string(), *ty)).collect();
    }
}

#[derive(Default)]
pub struct Book {
    entries: Vec<Entry>,
    index: HashMap<Key, TypeId>,
}

impl Book {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Reserves a number, or gives the one that `key` has.
    fn enter(&mut self, key: Key, name: &str, doc: &str, layout: Layout) -> Result<TypeId, TypeId> {
        if let Some(id) = self.index.get(&key) {
            return Err(*id);
        }
        let id = self.entries.len();
        self.index.insert(key, id);
        self.entries.push(Entry { name: name.into(), doc: doc.into(), features: Vec::new(), layout });
        Ok(id)
    }

    pub fn builtin(&mut self, name: &'static str, json: &'static str) -> TypeId {
        self.enter(Key::Builtin(name), name, "", Layout::Builtin(json)).unwrap_or_else(|id| id)
    }

    pub fn null(&mut self) -> TypeId {
        self.builtin("null", "null")
    }

    pub fn empty(&mut self) -> TypeId {
        self.enter(Key::Empty, "Empty", "", Layout::Object(Shape::default())).unwrap_or_else(|id| id)
    }

    pub fn array(&mut self, element: TypeId) -> TypeId {
        self.enter(Key::Array(element), "", "", Layout::Array(element)).unwrap_or_else(|id| id)
    }

    /// The object that holds `inner` as its only member `data`.
    pub fn wrapper(&mut self, data: &str, inner: TypeId) -> TypeId {
        let name = format!("{}Wrapper", self.entries[inner].name);
        let mut shape = Shape::default();
        shape.member(data, inner, false, "", &[]);
        self.enter(Key::Wrapper(data.into(), inner), &name, "", Layout::Object(shape)).unwrap_or_else(|id| id)
    }

    /// An object. Its number is taken before its members are looked at, so types may recur.
    pub fn object<T: Object>(&mut self, name: &str, doc: &str, features: &[&str]) -> TypeId {
        let key = Key::Rust(any::TypeId::of::<T>());
        let id = match self.enter(key, name, doc, Layout::Object(Shape::default())) {
            Ok(id) => id,
            Err(known) => return known,
        };
        let mut shape = Shape::default();
        T::shape(self, &mut shape);
        self.entries[id].layout = Layout::Object(shape);
        self.entries[id].features = owned(features);
        id
    }

    pub fn enumeration<T: 'static>(&mut self, name: &str, doc: &str, values: &[Documented]) -> TypeId {
        let layout = Layout::Enum(values.iter().map(value).collect());
        self.enter(Key::Rust(any::TypeId::of::<T>()), name, doc, layout).unwrap_or_else(|id| id)
    }

    /// The enumeration of the tags of the flat union `T`.
    pub fn tags<T: 'static>(&mut self, name: &str, values: &[Documented]) -> TypeId {
        let layout = Layout::Enum(values.iter().map(value).collect());
        self.enter(Key::Tags(any::TypeId::of::<T>()), name, "", layout).unwrap_or_else(|id| id)
    }

    pub fn alternate<T: 'static>(
        &mut self,
        name: &str,
        doc: &str,
        members: impl FnOnce(&mut Book) -> Vec<TypeId>,
    ) -> TypeId {
        let key = Key::Rust(any::TypeId::of::<T>());
        match self.enter(key, name, doc, Layout::Alternate(Vec::new())) {
            Ok(id) => {
                self.entries[id].layout = Layout::Alternate(members(self));
                id
            }
            Err(known) => known,
        }
    }

    /// The name of a type in `query-qmp-schema`: opaque but for built-in types.
    fn wire_name(&self, id: TypeId) -> String {
        match &self.entries[id].layout {
            Layout::Builtin(_) => self.entries[id].name.clone(),
            Layout::Array(element) => format!("[{}]", self.wire_name(*element)),
            _ => id.to_string(),
        }
    }

    /// The answer to `query-qmp-schema`: a list of SchemaInfo (`spec/wire.md` §10.1).
    pub fn schema_info<'a>(
        commands: impl Iterator<Item = &'a CommandEntry>,
        events: impl Iterator<Item = &'a EventEntry>,
    ) -> Value {
        let mut book = Book::new();
        let mut list = Vec::new();
        for CommandEntry { info, describe } in commands {
            let (arguments, reply) = describe(&mut book);
            let mut map = info_head(info.name, "command");
            map.insert("arg-type".into(), book.wire_name(arguments).into());
            map.insert("ret-type".into(), book.wire_name(reply).into());
            if info.allow_oob {
                map.insert("allow-oob".into(), true.into());
            }
            put_features(&mut map, info.features.iter().copied());
            list.push(Value::Object(map));
        }
        for EventEntry { info, describe } in events {
            let data = describe(&mut book);
            let mut map = info_head(info.name, "event");
            map.insert("arg-type".into(), book.wire_name(data).into());
            put_features(&mut map, info.features.iter().copied());
            list.push(Value::Object(map));
        }
        list.extend((0..book.entries.len()).map(|id| book.type_info(id)));
        Value::Array(list)
    }

    fn type_info(&self, id: TypeId) -> Value {
        let entry = &self.entries[id];
        let name = self.wire_name(id);
        let mut map;
        match &entry.layout {
            Layout::Builtin(json) => {
                map = info_head(&name, "builtin");
                map.insert("json-type".into(), (*json).into());
            }
            Layout::Array(element) => {
                map = info_head(&name, "array");
                map.insert("element-type".into(), self.wire_name(*element).into());
            }
            Layout::Alternate(members) => {
                map = info_head(&name, "alternate");
                let members = members.iter().map(|id| serde_json::json!({"type": self.wire_name(*id)}));
                map.insert("members".into(), members.collect());
            }
            Layout::Enum(values) => {
                map = info_head(&name, "enum");
                let members = values.iter().map(|value| {
                    let mut member = Map::new();
                    member.insert("name".into(), value.name.as_str().into());
                    put_features(&mut member, value.features.iter().map(String::as_str));
                    Value::Object(member)
                });
                map.insert("members".into(), members.collect());
                map.insert("values".into(), values.iter().map(|value| value.name.as_str()).collect());
            }
            Layout::Object(shape) => {
                map = info_head(&name, "object");
                self.shape_info(shape, &mut map);
            }
        }
        put_features(&mut map, entry.features.iter().map(String::as_str));
        Value::Object(map)
    }

    fn shape_info(&self, shape: &Shape, map: &mut Map) {
        let members = shape.members.iter().map(|member| {
            let mut info = Map::new();
            info.insert("name".into(), member.name.as_str().into());
            info.insert("type".into(), self.wire_name(member.ty).into());
            if member.optional {
                info.insert("default".into(), Value::Null);
            }
            put_features(&mut info, member.features.iter().map(String::as_str));
            Value::Object(info)
        });
        map.insert("members".into(), members.collect());
        if let Some(tag) = &shape.tag {
            map.insert("tag".into(), tag.as_str().into());
            let variants = shape.variants.iter();
            let variants =
                variants.map(|(case, ty)| serde_json::json!({"case": case, "type": self.wire_name(*ty)}));
            map.insert("variants".into(), variants.collect());
        }
    }
}

fn info_head(name: &str, meta: &str) -> Map {
    let mut map = Map::new();
    map.insert("name".into(), name.into());
    map.insert("meta-type".into(), meta.into());
    map
}

fn put_features<'a>(map: &mut Map, features: impl Iterator<Item = &'a str>) {
    let features: Vec<Value> = features.map(Value::from).collect();
    if !features.is_empty() {
        map.insert("features".into(), Value::Array(features));
    }
}

fn value((name, doc, features): &Documented) -> Member {
    let features = owned(features);
    Member { name: name.to_string(), ty: 0, optional: false, doc: doc.to_string(), features }
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| text.to_string()).collect()
}
