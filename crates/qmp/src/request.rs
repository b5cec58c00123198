use crate::Map;
use base::{Class, Failure, Result, fail};
use serde_json::Value;
use std::os::fd::OwnedFd;

/// A request whose form is right; whether the command exists is not known yet.
#[derive(Debug)]
pub struct Request {
    pub command: String,
    pub arguments: Map,
    pub id: Option<Value>,
    /// Given as `exec-oob`.
    pub oob: bool,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Request {
    /// The checks of `spec/wire.md` §4, step 2. Failures of this step carry no id.
    pub fn check(value: Value, oob_allowed: bool) -> Result<Request> {
        let Value::Object(map) = value else { return Err(fail!("Expected 'object' in QMP input")) };
        let mut execute: Option<(String, bool)> = None;
        let mut arguments = Map::new();
        let mut id = None;
        for (key, value) in map {
            match key.as_str() {
                "execute" => put_command(&mut execute, "execute", value)?,
                "exec-oob" if oob_allowed => put_command(&mut execute, "exec-oob", value)?,
                "arguments" => {
                    let Value::Object(map) = value else { return Err(expects("arguments", "object")) };
                    arguments = map;
                }
                "id" => id = Some(value),
                _ => return Err(fail!("QMP input object member '{key}' is unexpected")),
            }
        }
        match execute {
            Some((command, oob)) => Ok(Request { command, arguments, id, oob, fds: Vec::new() }),
            None => Err(fail!("Expected 'execute' in QMP input")),
        }
    }
}

fn put_command(slot: &mut Option<(String, bool)>, key: &str, value: Value) -> Result<()> {
    let Value::String(command) = value else { return Err(expects(key, "string")) };
    if slot.is_some() {
        return Err(fail!("QMP input member 'execute' clashes with 'exec-oob'"));
    }
    *slot = Some((command, key == "exec-oob"));
    Ok(())
}

fn expects(member: &str, kind: &str) -> Failure {
    fail!("QMP input object member '{member}' expects '{kind}'")
}

/// "The command x has not been found".
pub(crate) fn unknown_command(name: &str) -> Failure {
    Failure::of(Class::CommandNotFound, format!("The command {name} has not been found"))
}

/// What a session still negotiating says to any command but one.
pub(crate) fn not_negotiated(name: &str) -> Failure {
    Failure::of(
        Class::CommandNotFound,
        format!("Expecting capabilities negotiation with 'qmp_capabilities' before command '{name}'"),
    )
}

pub fn success_reply(value: Value, id: Option<Value>) -> Value {
    reply("return", value, id)
}

pub fn error_reply(failure: &Failure, id: Option<Value>) -> Value {
    let mut error = Map::new();
    let text = if failure.text.is_empty() { "An undefined error has occurred" } else { &failure.text };
    error.insert("class".into(), failure.class.as_str().into());
    error.insert("desc".into(), text.into());
    reply("error", Value::Object(error), id)
}

fn reply(key: &str, value: Value, id: Option<Value>) -> Value {
    let mut map = Map::with_capacity(2);
    map.insert(key.into(), value);
    if let Some(id) = id {
        map.insert("id".into(), id);
    }
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn form_errors() {
        for (value, oob, text) in [
            (json!(3), false, "Expected 'object' in QMP input"),
            (json!([{"execute": "stop"}]), false, "Expected 'object' in QMP input"),
            (json!({"execute": 1}), false, "QMP input object member 'execute' expects 'string'"),
            (
                json!({"execute": "a", "arguments": []}),
                false,
                "QMP input object member 'arguments' expects 'object'",
            ),
            (json!({"execute": "a", "x": 1}), false, "QMP input object member 'x' is unexpected"),
            (json!({"exec-oob": "a"}), false, "QMP input object member 'exec-oob' is unexpected"),
            (json!({"id": 1}), false, "Expected 'execute' in QMP input"),
            (
                json!({"exec-oob": "a", "execute": "b"}),
                true,
                "QMP input member 'execute' clashes with 'exec-oob'",
            ),
        ] {
            assert_eq!(Request::check(value.clone(), oob).unwrap_err().text, text, "{value}");
        }
        let request = Request::check(json!({"exec-oob": "a", "id": null}), true).unwrap();
        assert!(request.oob && request.id == Some(Value::Null) && request.arguments.is_empty());
    }
}
