//! JSON text as a QMP server writes it: ASCII only, `", "` and `": "` as separators, floats
//! with at most six decimals; the pretty form indents by four.

use serde_json::{Number, Value};
use std::fmt::Write;

/// The message as one line (several in the pretty form), ended by `\r\n`.
pub fn line(value: &Value, pretty: bool) -> String {
    let mut out = String::with_capacity(128);
    write(&mut out, value, pretty.then_some(0));
    out.push_str("\r\n");
    out
}

/// The value without line end.
pub fn compact(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, None);
    out
}

/// `indent` is the level of indentation in the pretty form.
fn write(out: &mut String, value: &Value, indent: Option<usize>) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_string(out, text),
        Value::Array(list) => {
            let inner = indent.map(|level| level + 1);
            out.push('[');
            for (at, value) in list.iter().enumerate() {
                separate(out, at, inner);
                write(out, value, inner);
            }
            finish(out, indent);
            out.push(']');
        }
        Value::Object(map) => {
            let inner = indent.map(|level| level + 1);
            out.push('{');
            for (at, (name, value)) in map.iter().enumerate() {
                separate(out, at, inner);
                write_string(out, name);
                out.push_str(": ");
                write(out, value, inner);
            }
            finish(out, indent);
            out.push('}');
        }
    }
}

fn separate(out: &mut String, at: usize, inner: Option<usize>) {
    match inner {
        None if at > 0 => out.push_str(", "),
        None => {}
        Some(level) => {
            out.push_str(if at > 0 { ",\r\n" } else { "\r\n" });
            out.extend(std::iter::repeat_n("    ", level));
        }
    }
}

/// Also where nothing is inside, as is customary.
fn finish(out: &mut String, indent: Option<usize>) {
    if let Some(level) = indent {
        out.push_str("\r\n");
        out.extend(std::iter::repeat_n("    ", level));
    }
}

fn write_number(out: &mut String, number: &Number) {
    match number.as_f64() {
        Some(float) if number.is_f64() => {
            let start = out.len();
            let _ = write!(out, "{float:.6}");
            let kept = out[start..].trim_end_matches('0').trim_end_matches('.').len();
            out.truncate(start + kept);
        }
        _ => {
            let _ = write!(out, "{number}");
        }
    }
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    loop {
        let special = |b: u8| b == b'"' || b == b'\\' || !(0x20..0x7f).contains(&b);
        let plain = rest.bytes().position(special).unwrap_or(rest.len());
        out.push_str(&rest[..plain]);
        rest = &rest[plain..];
        let Some(c) = rest.chars().next() else { break };
        rest = &rest[c.len_utf8()..];
        write_escaped(out, c);
    }
    out.push('"');
}

fn write_escaped(out: &mut String, c: char) {
    let short = match c {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\u{8}' => "\\b",
        '\u{c}' => "\\f",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        _ => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04X}");
            }
            return;
        }
    };
    out.push_str(short);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn customary_form() {
        let value = json!({"return": [], "id": {"a": [1, -2, true, null], "b": {}}});
        assert_eq!(compact(&value), r#"{"return": [], "id": {"a": [1, -2, true, null], "b": {}}}"#);
        assert!(line(&value, false).ends_with("}\r\n"));
    }

    #[test]
    fn pretty_form() {
        let value = json!({"a": {"b": [1, 2]}, "c": {}, "d": []});
        let want = "{\r\n    \"a\": {\r\n        \"b\": [\r\n            1,\r\n            2\r\n        ]\r\n    },\r\n    \"c\": {\r\n    },\r\n    \"d\": [\r\n    ]\r\n}\r\n";
        assert_eq!(line(&value, true), want);
    }

    #[test]
    fn strings_are_ascii() {
        let value = json!("a\"\\/\u{8}\u{c}\n\r\t\u{1}\u{7f}é€😀");
        assert_eq!(compact(&value), r#""a\"\\/\b\f\n\r\t\u0001\u007F\u00E9\u20AC\uD83D\uDE00""#);
    }

    #[test]
    fn numbers() {
        for (value, text) in [
            (json!(0.5), "0.5"),
            (json!(1.0), "1"),
            (json!(100.0), "100"),
            (json!(-0.1234567), "-0.123457"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(i64::MIN), "-9223372036854775808"),
            (json!(1e22), "10000000000000000000000"),
        ] {
            assert_eq!(compact(&value), text);
        }
    }
}
