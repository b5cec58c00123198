//! What commands, events, types and options there are.

use crate::commands;
use crate::prepared::Prepared;
use qapi::{Command, Describe, Value};

commands![QueryCommands, QueryEvents, QueryQmpSchema, QueryCommandLineOptions];

/// The names of all commands.
#[derive(Command, Debug, Clone)]
#[command(reply = Prepared<Vec<NameOnly>>, preconfig)]
pub struct QueryCommands {}

/// The names of all events.
#[derive(Command, Debug, Clone)]
#[command(reply = Prepared<Vec<NameOnly>>, preconfig, features("deprecated"))]
pub struct QueryEvents {}

#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(name = "CommandInfo")]
pub struct NameOnly {
    pub name: String,
}

/// The types of all commands and events.
#[derive(Command, Debug, Clone)]
#[command(reply = Prepared<Vec<SchemaInfo>>, preconfig)]
pub struct QueryQmpSchema {}

/// One command, event or type. Names of types mean nothing but for built-in ones.
#[derive(Describe, Debug, Clone)]
pub struct SchemaInfo {
    pub name: String,
    pub features: Option<Vec<String>>,
    #[qapi(flatten)]
    pub kind: SchemaKind,
}

#[derive(Describe, Debug, Clone)]
#[qapi(tag = "meta-type", tag_name = "SchemaMetaType")]
pub enum SchemaKind {
    Builtin(SchemaBuiltin),
    Enum(SchemaEnum),
    Array(SchemaArray),
    Object(SchemaObject),
    Alternate(SchemaAlternate),
    Command(SchemaCommand),
    Event(SchemaEvent),
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaBuiltin {
    pub json_type: JsonType,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonType {
    String,
    Number,
    Int,
    Boolean,
    Null,
    Object,
    Array,
    Value,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaEnum {
    pub members: Vec<SchemaEnumMember>,
    #[qapi(features("deprecated"))]
    pub values: Vec<String>,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaEnumMember {
    pub name: String,
    pub features: Option<Vec<String>>,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaArray {
    pub element_type: String,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaObject {
    pub members: Vec<SchemaObjectMember>,
    /// member that chooses the variant
    pub tag: Option<String>,
    pub variants: Option<Vec<SchemaObjectVariant>>,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaObjectMember {
    pub name: String,
    #[qapi(name = "type")]
    pub kind: String,
    /// present (and null) for optional members
    pub default: Option<Value>,
    pub features: Option<Vec<String>>,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaObjectVariant {
    pub case: String,
    #[qapi(name = "type")]
    pub kind: String,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaAlternate {
    pub members: Vec<SchemaAlternateMember>,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaAlternateMember {
    #[qapi(name = "type")]
    pub kind: String,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaCommand {
    pub arg_type: String,
    pub ret_type: String,
    pub allow_oob: Option<bool>,
}

#[derive(Describe, Debug, Clone)]
pub struct SchemaEvent {
    pub arg_type: String,
}

/// The options of the command line that take parameters, and those parameters.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<CommandLineOptionInfo>, preconfig)]
pub struct QueryCommandLineOptions {
    /// only this one
    pub option: Option<String>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct CommandLineOptionInfo {
    pub option: String,
    pub parameters: Vec<CommandLineParameterInfo>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct CommandLineParameterInfo {
    pub name: String,
    #[qapi(name = "type")]
    pub kind: CommandLineParameterType,
    pub help: Option<String>,
    pub default: Option<String>,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandLineParameterType {
    String,
    Boolean,
    Number,
    Size,
}
