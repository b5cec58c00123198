use crate::{Describe, Fields, Map, Object, Result};
use base::{Failure, fail};
use serde_json::Value;

/// The JSON types a QAPI type can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int,
    Number,
    String,
    List,
    Object,
    Null,
    Any,
    Alternate,
}

impl Kind {
    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Kind::Bool => value.is_boolean(),
            Kind::Int => value.is_i64() || value.is_u64(),
            Kind::Number => value.is_number(),
            Kind::String => value.is_string(),
            Kind::List => value.is_array(),
            Kind::Object => value.is_object(),
            Kind::Null => value.is_null(),
            Kind::Any | Kind::Alternate => true,
        }
    }

    /// The word for this type in error texts. Arguments and members of nested objects are
    /// customarily named differently (`spec/wire.md` §4, rows 6 and 7).
    fn word(self, top: bool) -> &'static str {
        match (self, top) {
            (Kind::Bool, true) => "bool",
            (Kind::Bool, false) => "boolean",
            (Kind::Int, true) => "int",
            (Kind::Int, false) => "integer",
            (Kind::Number, _) => "number",
            (Kind::String, _) => "string",
            (Kind::List, _) => "list",
            (Kind::Object, _) => "QDict",
            (Kind::Null, _) => "null",
            (Kind::Any, _) => "any",
            (Kind::Alternate, _) => "alternate",
        }
    }
}

/// Where a value stands: the name of its member, and whether it is an argument of a command.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    pub name: &'a str,
    pub top: bool,
}

impl At<'_> {
    /// "Invalid parameter type for 'x', expected: ...".
    pub fn wrong(&self, kind: Kind) -> Failure {
        fail!("Invalid parameter type for '{}', expected: {}", self.name, kind.word(self.top))
    }

    /// The same for an alternate, which is named by its type.
    pub fn wrong_alternate(&self, name: &str) -> Failure {
        fail!("Invalid parameter type for '{}', expected: {name}", self.name)
    }

    /// What is said when the member is absent. Inside nested objects a missing member and one
    /// of the wrong type look alike.
    pub fn missing(&self, kind: Kind) -> Failure {
        match (self.top, kind) {
            (true, _) | (_, Kind::Alternate | Kind::Any) => fail!("Parameter '{}' is missing", self.name),
            _ => self.wrong(kind),
        }
    }

    /// A key that nobody knows.
    pub fn unexpected(&self) -> Failure {
        match self.top {
            true => fail!("Invalid parameter '{}'", self.name),
            false => fail!("QMP input object member '{}' is unexpected", self.name),
        }
    }
}

/// A value that is not among those of an enumeration.
pub fn bad_name(name: &str) -> Failure {
    fail!("Invalid parameter '{name}'")
}

/// The string that names a value of an enumeration.
pub fn read_name(value: Value, at: &At) -> Result<String> {
    match value {
        Value::String(name) => Ok(name),
        _ => Err(at.wrong(Kind::String)),
    }
}

/// Reads a nested object and refuses members it does not know.
pub fn read_object<T: Object>(value: Value, at: &At) -> Result<T> {
    let Value::Object(map) = value else { return Err(at.wrong(Kind::Object)) };
    let mut fields = Fields::nested(map);
    let object = T::take(&mut fields)?;
    fields.finish()?;
    Ok(object)
}

/// Writes an object with its members in declared order.
pub fn write_object<T: Object>(object: &T) -> Value {
    let mut map = Map::new();
    object.put(&mut map);
    Value::Object(map)
}

impl<T: Object> Object for Box<T> {
    fn require(fields: &Fields) -> Result<()> {
        T::require(fields)
    }
    fn take(fields: &mut Fields) -> Result<Self> {
        T::take(fields).map(Box::new)
    }
    fn put(&self, into: &mut Map) {
        (**self).put(into)
    }
    fn shape(book: &mut crate::Book, shape: &mut crate::book::Shape) {
        T::shape(book, shape)
    }
}

impl<T: Describe> Describe for Box<T> {
    const KIND: Kind = T::KIND;
    fn describe(book: &mut crate::Book) -> crate::book::TypeId {
        T::describe(book)
    }
    fn read(value: Value, at: &At) -> Result<Self> {
        T::read(value, at).map(Box::new)
    }
    fn write(&self) -> Value {
        (**self).write()
    }
}
