//! Property tables of models and the checked values of one device.

use crate::Model;
use base::{Failure, Result, fail};
use serde_json::{Map, Value};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PropertyKind {
    Bool,
    U8,
    U16,
    U32,
    I32,
    U64,
    /// Bytes, with suffixes in string form.
    Size,
    Str,
    /// Name of a character device.
    Chardev,
    /// Name of a block back end or node.
    Drive,
    /// Id of an object of the given type (`link<...>`).
    Link(&'static str),
    OnOffAuto,
    Enum(&'static str, &'static [&'static str]),
    /// `slot[.function]` in hex.
    PciAddress,
    Mac,
    /// Numbers by name; the owner knows the names.
    Table(&'static str),
}

/// One row of a model's property table.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    pub name: &'static str,
    pub kind: PropertyKind,
    /// The default as the user would write it; `None`: unset.
    pub default: Option<&'static str>,
    pub help: &'static str,
}

impl Property {
    pub const fn new(
        name: &'static str,
        kind: PropertyKind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Property { name, kind, default: Some(default), help }
    }

    pub const fn unset(name: &'static str, kind: PropertyKind, help: &'static str) -> Self {
        Property { name, kind, default: None, help }
    }

    /// The type name that `device-list-properties` gives.
    pub fn type_name(&self) -> String {
        match self.kind {
            PropertyKind::Bool => "bool".into(),
            PropertyKind::U8 => "uint8".into(),
            PropertyKind::U16 => "uint16".into(),
            PropertyKind::U32 => "uint32".into(),
            PropertyKind::I32 => "int32".into(),
            PropertyKind::U64 => "uint64".into(),
            PropertyKind::Size => "size".into(),
            PropertyKind::Str | PropertyKind::Chardev | PropertyKind::Drive | PropertyKind::Mac => {
                "str".into()
            }
            PropertyKind::PciAddress => "int32".into(),
            PropertyKind::Link(to) => format!("link<{to}>"),
            PropertyKind::OnOffAuto => "OnOffAuto".into(),
            PropertyKind::Enum(name, _) | PropertyKind::Table(name) => name.into(),
        }
    }

    /// Refuses a value of JSON that is not of the property's own type.
    pub fn check_type(&self, value: &Value) -> Result<()> {
        let wrong = |key: &str, expected: &str| {
            Err(fail!("Invalid parameter type for '{key}', expected: {expected}"))
        };
        let integer = |value: &Value| value.is_i64() || value.is_u64();
        match (self.kind, value) {
            (PropertyKind::Bool, Value::Bool(_)) => Ok(()),
            (PropertyKind::Bool, _) => wrong(self.name, "boolean"),
            (PropertyKind::Table(_), Value::Object(table)) => {
                match table.iter().find(|(_, one)| !integer(one)) {
                    Some((key, _)) => wrong(&format!("{}.{key}", self.name), "integer"),
                    None => Ok(()),
                }
            }
            (PropertyKind::Table(_), _) => wrong(self.name, "object"),
            (
                PropertyKind::U8
                | PropertyKind::U16
                | PropertyKind::U32
                | PropertyKind::I32
                | PropertyKind::U64
                | PropertyKind::Size,
                value,
            ) => {
                if integer(value) {
                    Ok(())
                } else {
                    wrong(self.name, "integer")
                }
            }
            (_, Value::String(_)) => Ok(()),
            _ => wrong(self.name, "string"),
        }
    }

    /// Brings a value (string form from a command line, true type from JSON) into canonical
    /// form: bool, number or string.
    pub fn canonical(&self, value: &Value, device: &str) -> Result<Value> {
        let bad = || {
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            fail!("Property '{device}.{}' doesn't take value '{text}'", self.name)
        };
        let unknown = |text: &str| fail!("Parameter '{}' does not accept value '{text}'", self.name);
        let (min, max): (i128, i128) = match self.kind {
            PropertyKind::Bool => {
                return match value {
                    Value::Bool(on) => Ok(Value::Bool(*on)),
                    Value::String(text) => match text.as_str() {
                        "on" | "yes" | "true" | "y" => Ok(Value::Bool(true)),
                        "off" | "no" | "false" | "n" => Ok(Value::Bool(false)),
                        _ => Err(Failure::expects(self.name, "'on' or 'off'")),
                    },
                    _ => Err(bad()),
                };
            }
            PropertyKind::U8 => (0, u8::MAX.into()),
            PropertyKind::U16 => (0, u16::MAX.into()),
            PropertyKind::U32 => (0, u32::MAX.into()),
            PropertyKind::I32 => (i32::MIN.into(), i32::MAX.into()),
            PropertyKind::U64 | PropertyKind::Size => (0, u64::MAX.into()),
            PropertyKind::OnOffAuto => {
                return match value {
                    Value::Bool(on) => Ok(if *on { "on" } else { "off" }.into()),
                    Value::String(text) if ["on", "off", "auto"].contains(&text.as_str()) => {
                        Ok(value.clone())
                    }
                    Value::String(text) => Err(unknown(text)),
                    _ => Err(bad()),
                };
            }
            PropertyKind::Table(_) => {
                return if value.is_object() { Ok(value.clone()) } else { Err(bad()) };
            }
            PropertyKind::Enum(_, choices) => {
                let text = value.as_str().ok_or_else(bad)?;
                return if choices.contains(&text) { Ok(value.clone()) } else { Err(unknown(text)) };
            }
            _ => {
                return match value {
                    Value::String(_) => Ok(value.clone()),
                    Value::Number(number) => Ok(number.to_string().into()),
                    _ => Err(bad()),
                };
            }
        };
        let number = match value {
            Value::Number(number) => number.as_i64().map(i128::from).or(number.as_u64().map(i128::from)),
            Value::String(text) if self.kind == PropertyKind::Size => parse_size(text),
            Value::String(text) => parse_int(text),
            _ => None,
        };
        let number = number.ok_or_else(bad)?;
        if number < min || number > max {
            return Err(fail!(
                "Property {device}.{} doesn't take value {number} (minimum: {min}, maximum: {max})",
                self.name
            ));
        }
        Ok(u64::try_from(number).map_or_else(|_| Value::from(number as i64), Value::from))
    }
}

fn parse_int(text: &str) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => i128::from(u64::from_str_radix(hex, 16).ok()?),
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    Some(if negative { -value } else { value })
}

fn parse_size(text: &str) -> Option<i128> {
    let shift = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'B' => 0,
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        b'P' => 50,
        b'E' => 60,
        _ => return parse_int(text),
    };
    parse_int(&text[..text.len() - 1])?.checked_mul(1 << shift)
}

/// The checked property values of one device, defaults filled in.
#[derive(Clone, Debug, Default)]
pub struct Props {
    values: Map<String, Value>,
    given: Vec<String>,
}

impl Props {
    /// Checks `given` (without `driver`, `id` and `bus`) against the model's table.
    pub fn check(model: &Model, given: &Map<String, Value>) -> Result<Props> {
        let mut values = Map::new();
        for property in model.all_properties() {
            if let Some(default) = property.default {
                let value = property.canonical(&Value::from(default), model.name)?;
                values.entry(property.name).or_insert(value);
            }
        }
        for (name, value) in given {
            let property =
                model.property(name).ok_or_else(|| fail!("Property '{}.{name}' not found", model.name))?;
            values.insert(name.clone(), property.canonical(value, model.name)?);
        }
        Ok(Props { values, given: given.keys().cloned().collect() })
    }

    /// Whether the user gave this property (as opposed to its default).
    pub fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|given| given == name)
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    pub fn set(&mut self, name: &str, value: Value) {
        self.values.insert(name.to_string(), value);
    }

    /// The number of a property that has a default (0 if unset).
    pub fn u64(&self, name: &str) -> u64 {
        self.opt_u64(name).unwrap_or(0)
    }

    pub fn opt_u64(&self, name: &str) -> Option<u64> {
        self.values.get(name).and_then(Value::as_u64)
    }

    pub fn i64(&self, name: &str) -> i64 {
        self.values.get(name).and_then(Value::as_i64).unwrap_or(0)
    }

    pub fn bool(&self, name: &str) -> bool {
        self.values.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn str(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(Value::as_str)
    }

    /// An OnOffAuto property, `auto` resolved.
    pub fn on_off_auto(&self, name: &str, auto: bool) -> bool {
        match self.str(name) {
            Some("on") => true,
            Some("off") => false,
            _ => auto,
        }
    }
}
