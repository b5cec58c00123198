//! `authz-simple` and `authz-list-file`: who may come in, by name.

use super::{ObjectType, Objects, UserObject};
use base::{Failure, Mutex, Result, bail, fail};
use device::{Property, PropertyKind};
use serde_json::{Map, Value};
use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

pub(super) static SIMPLE: ObjectType = ObjectType {
    name: "authz-simple",
    parent: "authz",
    properties: &[Property::unset("identity", PropertyKind::Str, "The one name that is allowed")],
    create: simple,
};

pub(super) static LIST_FILE: ObjectType = ObjectType {
    name: "authz-list-file",
    parent: "authz",
    properties: &[
        Property::unset("filename", PropertyKind::Str, "JSON file with 'policy' and 'rules'"),
        Property::new("refresh", PropertyKind::Bool, "on", "Follow changes of the file"),
    ],
    create: list_file,
};

/// What [`Objects::find`] gives for an object of this kind.
pub struct Authorisation(Names);

enum Names {
    One(String),
    File(File),
}

struct File {
    path: PathBuf,
    /// The rules and when the file they are from was written; `None` if it is not followed.
    rules: Mutex<(Rules, Option<SystemTime>)>,
}

struct Rules {
    rules: Vec<Rule>,
    allow_others: bool,
}

struct Rule {
    pattern: String,
    glob: bool,
    allow: bool,
}

impl tls::Authorise for Authorisation {
    fn is_allowed(&self, identity: &str) -> bool {
        match &self.0 {
            Names::One(name) => name == identity,
            Names::File(file) => file.is_allowed(identity),
        }
    }
}

impl UserObject for Arc<Authorisation> {
    fn payload(&self) -> Arc<dyn Any + Send + Sync> {
        self.clone()
    }
}

fn simple(_: &Objects, _id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    let identity = values.get("identity").and_then(Value::as_str);
    let identity = identity.ok_or_else(|| fail!("The 'identity' property must be set"))?;
    Ok(Arc::new(Arc::new(Authorisation(Names::One(identity.into())))))
}

fn list_file(_: &Objects, _id: &str, values: &Map<String, Value>) -> Result<Arc<dyn UserObject>> {
    let path = values.get("filename").and_then(Value::as_str);
    let path = PathBuf::from(path.ok_or_else(|| fail!("filename not provided"))?);
    let refresh = values.get("refresh").and_then(Value::as_bool).unwrap_or(true);
    let written = written(&path).filter(|_| refresh);
    let rules = read(&path)?;
    Ok(Arc::new(Arc::new(Authorisation(Names::File(File { path, rules: Mutex::new((rules, written)) })))))
}

fn written(path: &PathBuf) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn read(path: &PathBuf) -> Result<Rules> {
    let name = path.display();
    let text = std::fs::read(path).map_err(|why| Failure::os(format!("Unable to read '{name}'"), &why))?;
    let whole: Value =
        serde_json::from_slice(&text).map_err(|why| fail!("Unable to parse '{name}': {why}"))?;
    let policy = |value: Option<&Value>, default| match value.map(|value| value.as_str()) {
        None => Ok(default),
        Some(Some("allow")) => Ok(true),
        Some(Some("deny")) => Ok(false),
        _ => Err(fail!("'{name}': a policy is 'allow' or 'deny'")),
    };
    let mut rules = Vec::new();
    for rule in whole["rules"].as_array().into_iter().flatten() {
        let Some(pattern) = rule["match"].as_str() else { bail!("'{name}': a rule lacks 'match'") };
        let glob = match rule.get("format").map(|format| format.as_str()) {
            None | Some(Some("exact")) => false,
            Some(Some("glob")) => true,
            _ => bail!("'{name}': a format is 'exact' or 'glob'"),
        };
        let Some(allow) = rule.get("policy") else { bail!("'{name}': a rule lacks 'policy'") };
        rules.push(Rule { pattern: pattern.into(), glob, allow: policy(Some(allow), false)? });
    }
    Ok(Rules { rules, allow_others: policy(whole.get("policy"), false)? })
}

impl File {
    fn is_allowed(&self, identity: &str) -> bool {
        let mut held = self.rules.lock();
        let now = written(&self.path);
        if held.1.is_some() && now.is_some() && held.1 != now {
            // A file that does not make sense any more lets nobody in.
            let none = || Rules { rules: Vec::new(), allow_others: false };
            *held = (read(&self.path).unwrap_or_else(|_| none()), now);
        }
        let fits = |rule: &&Rule| match rule.glob {
            true => matches(rule.pattern.as_bytes(), identity.as_bytes()),
            false => rule.pattern == identity,
        };
        held.0.rules.iter().find(fits).map_or(held.0.allow_others, |rule| rule.allow)
    }
}

/// Shell patterns with `*` and `?`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use tls::Authorise;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("CN=*,O=x", "CN=a,O=x", true),
            ("CN=*,O=x", "CN=a,O=y", false),
            ("*", "", true),
            ("a?c*", "abcd", true),
            ("a?c", "ac", false),
            ("*b*b", "abab", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn a_list_file_is_followed_and_a_broken_one_lets_nobody_in() {
        let path = std::env::temp_dir().join(format!("ryokan-authz-{}", std::process::id()));
        let rules = r#"{"rules": [{"match": "CN=bad*", "policy": "deny", "format": "glob"},
            {"match": "CN=one", "policy": "allow"}], "policy": "deny"}"#;
        std::fs::write(&path, rules).unwrap();
        let rules = Mutex::new((read(&path).unwrap(), Some(SystemTime::UNIX_EPOCH)));
        let list = Authorisation(Names::File(File { path: path.clone(), rules }));
        assert!(list.is_allowed("CN=one") && !list.is_allowed("CN=two") && !list.is_allowed("CN=bad1"));
        std::fs::write(&path, "{").unwrap();
        if let Names::File(file) = &list.0 {
            file.rules.lock().1 = Some(SystemTime::UNIX_EPOCH);
        }
        assert!(!list.is_allowed("CN=one"));
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
