use crate::book::TypeId;
use crate::{Book, Describe, Fields, Map, Object, Result};

/// A command: the struct holds its arguments.
pub trait Command: Object + Describe + Send {
    type Reply: Describe + Send;
    const INFO: CommandInfo;
}

/// What is known of a command before it is called.
#[derive(Clone, Copy, Debug)]
pub struct CommandInfo {
    pub name: &'static str,
    pub doc: &'static str,
    /// May be called by `exec-oob`, ahead of queued commands.
    pub allow_oob: bool,
    /// May be called before the machine exists.
    pub allow_preconfig: bool,
    pub features: &'static [&'static str],
}

/// An event: the struct holds its data.
pub trait Event: Object + Describe + Send {
    const INFO: EventInfo;
}

/// What is known of an event before it happens.
#[derive(Clone, Copy, Debug)]
pub struct EventInfo {
    pub name: &'static str,
    pub doc: &'static str,
    /// At most one a second for each combination of these data members; the latest wins.
    pub throttle: Option<&'static [&'static str]>,
    pub features: &'static [&'static str],
}

/// A line of the list of all commands.
#[derive(Clone, Copy)]
pub struct CommandEntry {
    pub info: CommandInfo,
    /// Enters the argument type and the reply type into a book.
    pub describe: fn(&mut Book) -> (TypeId, TypeId),
}

impl CommandEntry {
    pub const fn of<C: Command>() -> Self {
        CommandEntry { info: C::INFO, describe: |book| (C::describe(book), C::Reply::describe(book)) }
    }
}

/// A line of the list of all events.
#[derive(Clone, Copy)]
pub struct EventEntry {
    pub info: EventInfo,
    /// Enters the data type into a book.
    pub describe: fn(&mut Book) -> TypeId,
}

impl EventEntry {
    pub const fn of<E: Event>() -> Self {
        EventEntry { info: E::INFO, describe: E::describe }
    }
}

/// Reads the arguments of a command: absent mandatory ones are reported first, then wrong
/// types, then unknown names (`spec/wire.md` §4).
pub fn arguments<C: Object>(map: Map) -> Result<C> {
    let mut fields = Fields::top(map);
    C::require(&fields)?;
    let arguments = C::take(&mut fields)?;
    fields.finish()?;
    Ok(arguments)
}
