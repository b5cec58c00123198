//! How a Rust type looks on a QMP wire: reading it from JSON with the customary error texts,
//! writing it with a stable key order, and describing it for `query-qmp-schema` and the docs.
//!
//! Everything comes from one derive:
//!
//! ```
//! # use qapi::{Command, Describe};
//! /// How eager the dump is.
//! #[derive(Describe, Clone, Copy, Debug, PartialEq)]
//! enum Eagerness { Lazy, VeryEager }
//!
//! /// Dumps something.
//! #[derive(Command, Debug, PartialEq)]
//! #[command(name = "dump", reply = Vec<String>)]
//! struct Dump {
//!     /// where to
//!     file_name: String,
//!     #[qapi(alias = "cpu")]
//!     cpu_index: Option<i64>,
//!     #[qapi(default = Eagerness::Lazy)]
//!     eagerness: Eagerness,
//! }
//! let map = serde_json::json!({"file-name": "x", "cpu": 3});
//! let dump: Dump = qapi::arguments(map.as_object().unwrap().clone()).unwrap();
//! assert_eq!(dump.cpu_index, Some(3));
//! ```
//!
//! Container attributes: `name` (of the type in the docs), `rename_all = "snake"` (default is
//! kebab), `tag = "x"` (enum with payloads = flat union), `data = "d"` (payload is wrapped in
//! that member: the old simple union), `tag_name`, `alternate`, `features("...")`.
//! Member attributes: `name`, `alias`, `default`, `default = expr`, `flatten` (a base struct or
//! a flat union), `rest` (a [`Map`] taking all other keys), `features("...")`.

#![forbid(unsafe_code)]

extern crate self as qapi;

pub mod book;
mod fields;
mod kind;
mod list;
mod scalar;
#[cfg(test)]
mod tests;

pub use base::Result;
pub use book::Book;
pub use fields::Fields;
pub use kind::{At, Kind, bad_name, read_name, read_object, write_object};
pub use list::{Command, CommandEntry, CommandInfo, Event, EventEntry, EventInfo, arguments};
pub use qapi_derive::{Command, Describe, Event};
pub use serde_json::Value;

/// A JSON object whose keys keep the order in which they were put in.
pub type Map = serde_json::Map<String, Value>;

/// A type that has a wire form.
pub trait Describe: Sized + 'static {
    /// What the type looks like in JSON; chooses the branch of an alternate.
    const KIND: Kind;

    /// Enters the type into `book` (once) and gives its number there.
    fn describe(book: &mut Book) -> book::TypeId;

    /// Reads a value; errors name the member `at` which it stands.
    fn read(value: Value, at: &At) -> Result<Self>;

    /// The value in JSON.
    fn write(&self) -> Value;
}

/// A JSON object with known members: structs and flat unions.
pub trait Object: Sized + 'static {
    /// Fails if a mandatory member is absent.
    fn require(fields: &Fields) -> Result<()>;

    /// Takes the members out of `fields`.
    fn take(fields: &mut Fields) -> Result<Self>;

    /// Puts the members into `into`.
    fn put(&self, into: &mut Map);

    /// Adds the members to `shape`.
    fn shape(book: &mut Book, shape: &mut book::Shape);
}
