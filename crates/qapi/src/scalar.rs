//! Wire forms of Rust's own types.

use crate::book::{Book, TypeId};
use crate::{At, Describe, Fields, Kind, Map, Object, Result};
use base::Failure;
use serde_json::{Number, Value};

impl Describe for bool {
    const KIND: Kind = Kind::Bool;
    fn describe(book: &mut Book) -> TypeId {
        book.builtin("bool", "boolean")
    }
    fn read(value: Value, at: &At) -> Result<Self> {
        value.as_bool().ok_or_else(|| at.wrong(Kind::Bool))
    }
    fn write(&self) -> Value {
        Value::Bool(*self)
    }
}

impl Describe for String {
    const KIND: Kind = Kind::String;
    fn describe(book: &mut Book) -> TypeId {
        book.builtin("str", "string")
    }
    fn read(value: Value, at: &At) -> Result<Self> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(at.wrong(Kind::String)),
        }
    }
    fn write(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Describe for f64 {
    const KIND: Kind = Kind::Number;
    fn describe(book: &mut Book) -> TypeId {
        book.builtin("number", "number")
    }
    fn read(value: Value, at: &At) -> Result<Self> {
        value.as_f64().ok_or_else(|| at.wrong(Kind::Number))
    }
    fn write(&self) -> Value {
        Value::Number(Number::from_f64(*self).unwrap_or_else(|| 0.into()))
    }
}

macro_rules! integers {
    ($($ty:ty => $range:literal),* $(,)?) => {$(
        impl Describe for $ty {
            const KIND: Kind = Kind::Int;
            fn describe(book: &mut Book) -> TypeId {
                book.builtin("int", "int")
            }
            fn read(value: Value, at: &At) -> Result<Self> {
                let wide = integer(&value).ok_or_else(|| at.wrong(Kind::Int))?;
                <$ty>::try_from(wide).map_err(|_| Failure::expects(at.name, $range))
            }
            fn write(&self) -> Value {
                Value::from(*self)
            }
        }
    )*};
}

integers! {
    u8 => "uint8_t", u16 => "uint16_t", u32 => "uint32_t", u64 => "uint64_t",
    i8 => "int8_t", i16 => "int16_t", i32 => "int32_t",
}

impl Describe for i64 {
    const KIND: Kind = Kind::Int;
    fn describe(book: &mut Book) -> TypeId {
        book.builtin("int", "int")
    }
    /// A literal beyond 2^63-1 is no integer of this kind (`spec/wire.md` §7).
    fn read(value: Value, at: &At) -> Result<Self> {
        value.as_i64().ok_or_else(|| at.wrong(Kind::Int))
    }
    fn write(&self) -> Value {
        Value::from(*self)
    }
}

fn integer(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

/// The type called `any`: whatever JSON holds.
impl Describe for Value {
    const KIND: Kind = Kind::Any;
    fn describe(book: &mut Book) -> TypeId {
        book.builtin("any", "value")
    }
    fn read(value: Value, _: &At) -> Result<Self> {
        Ok(value)
    }
    fn write(&self) -> Value {
        self.clone()
    }
}

/// An object with keys that only the receiver knows.
impl Describe for Map {
    const KIND: Kind = Kind::Object;
    fn describe(book: &mut Book) -> TypeId {
        book.builtin("any", "value")
    }
    fn read(value: Value, at: &At) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(map),
            _ => Err(at.wrong(Kind::Object)),
        }
    }
    fn write(&self) -> Value {
        Value::Object(self.clone())
    }
}

impl<T: Describe> Describe for Vec<T> {
    const KIND: Kind = Kind::List;
    fn describe(book: &mut Book) -> TypeId {
        let element = T::describe(book);
        book.array(element)
    }
    /// Elements have no name; error texts call them `null`.
    fn read(value: Value, at: &At) -> Result<Self> {
        let Value::Array(list) = value else { return Err(at.wrong(Kind::List)) };
        let at = At { name: "null", top: false };
        list.into_iter().map(|value| T::read(value, &at)).collect()
    }
    fn write(&self) -> Value {
        Value::Array(self.iter().map(T::write).collect())
    }
}

/// The empty object: arguments of commands without any, replies of commands without result.
impl Object for () {
    fn require(_: &Fields) -> Result<()> {
        Ok(())
    }
    fn take(_: &mut Fields) -> Result<Self> {
        Ok(())
    }
    fn put(&self, _: &mut Map) {}
    fn shape(_: &mut Book, _: &mut crate::book::Shape) {}
}

impl Describe for () {
    const KIND: Kind = Kind::Object;
    fn describe(book: &mut Book) -> TypeId {
        book.empty()
    }
    fn read(value: Value, at: &At) -> Result<Self> {
        crate::read_object(value, at)
    }
    fn write(&self) -> Value {
        Value::Object(Map::new())
    }
}
