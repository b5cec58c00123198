//! Integer expressions: C's operators `+ - * / % & | ^ ~ ( )`, character constants, `$register`.

use base::{Result, bail, fail};

/// How deep parentheses and signs may nest.
const DEPTH: usize = 64;

/// Evaluates the expression at the start of `text`. Returns its value and what follows it.
pub(crate) fn eval<'a>(text: &'a str, register: &dyn Fn(&str) -> Result<u64>) -> Result<(i64, &'a str)> {
    let mut parser = Parser { rest: text, register, depth: 0 };
    let value = parser.sum()?;
    Ok((value, parser.rest))
}

struct Parser<'a, 'r> {
    rest: &'a str,
    register: &'r dyn Fn(&str) -> Result<u64>,
    depth: usize,
}

impl Parser<'_, '_> {
    fn skip(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn next(&mut self) {
        let mut chars = self.rest.chars();
        chars.next();
        self.rest = chars.as_str();
    }

    fn sum(&mut self) -> Result<i64> {
        let mut value = self.logic()?;
        while let Some(op @ ('+' | '-')) = self.skip() {
            self.next();
            let right = self.logic()?;
            value = if op == '+' { value.wrapping_add(right) } else { value.wrapping_sub(right) };
        }
        Ok(value)
    }

    fn logic(&mut self) -> Result<i64> {
        let mut value = self.product()?;
        while let Some(op @ ('&' | '|' | '^')) = self.skip() {
            self.next();
            let right = self.product()?;
            value = match op {
                '&' => value & right,
                '|' => value | right,
                _ => value ^ right,
            };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<i64> {
        let mut value = self.unary()?;
        while let Some(op @ ('*' | '/' | '%')) = self.skip() {
            self.next();
            let right = self.unary()?;
            value = match op {
                '*' => value.wrapping_mul(right),
                _ if right == 0 => bail!("division by zero"),
                '/' => value.wrapping_div(right),
                _ => value.wrapping_rem(right),
            };
        }
        Ok(value)
    }

    fn unary(&mut self) -> Result<i64> {
        self.depth += 1;
        if self.depth > DEPTH {
            bail!("expression is nested too deeply");
        }
        let first = self.skip().ok_or_else(|| fail!("unexpected end of expression"))?;
        let value = match first {
            '+' | '-' | '~' => {
                self.next();
                let value = self.unary()?;
                match first {
                    '-' => value.wrapping_neg(),
                    '~' => !value,
                    _ => value,
                }
            }
            '(' => {
                self.next();
                let value = self.sum()?;
                if self.skip() != Some(')') {
                    bail!("')' expected");
                }
                self.next();
                value
            }
            '\'' => self.character()?,
            '$' => {
                self.next();
                let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_.".contains(c)));
                let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
                self.rest = rest;
                (self.register)(name)? as i64
            }
            _ => self.number()?,
        };
        self.depth -= 1;
        Ok(value)
    }

    fn character(&mut self) -> Result<i64> {
        self.next();
        let value = self.rest.chars().next().ok_or_else(|| fail!("character constant expected"))?;
        self.next();
        if !self.rest.starts_with('\'') {
            bail!("missing terminating ' character");
        }
        self.next();
        Ok(i64::from(u32::from(value)))
    }

    fn number(&mut self) -> Result<i64> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        let lower = word.to_ascii_lowercase();
        let value = if let Some(hex) = lower.strip_prefix("0x") {
            u64::from_str_radix(hex, 16)
        } else if lower.len() > 1 && lower.starts_with('0') {
            u64::from_str_radix(&lower[1..], 8)
        } else {
            lower.parse()
        };
        self.rest = rest;
        match value {
            Ok(value) => Ok(value as i64),
            Err(e) if matches!(e.kind(), std::num::IntErrorKind::PosOverflow) => bail!("number too large"),
            Err(_) => bail!("invalid char in expression"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<i64> {
        let register = |name: &str| if name == "rip" { Ok(0xfff0) } else { Err(fail!("unknown register")) };
        eval(text, &register).map(|(v, _)| v)
    }

    #[test]
    fn expressions() {
        assert_eq!(value("1 + 2*3").unwrap(), 7);
        assert_eq!(value("(1+2)*-3").unwrap(), -9);
        assert_eq!(value("$rip + 0x10").unwrap(), 0x10000);
        assert_eq!(value("010|'A'").unwrap(), 8 | 65);
        assert_eq!(value("0xffffffffffffffff").unwrap(), -1);
        assert_eq!(value("~0 % 7").unwrap(), -1);
        assert_eq!(value("-9223372036854775808 / -1").unwrap(), i64::MIN);
        for (bad, text) in [
            ("1/0", "division by zero"),
            ("(1", "')' expected"),
            ("", "unexpected end of expression"),
            ("zz", "invalid char in expression"),
            ("$xyz", "unknown register"),
            ("99999999999999999999", "number too large"),
            ("'a", "missing terminating ' character"),
        ] {
            assert_eq!(value(bad).unwrap_err().text, text);
        }
        assert!(value(&"(".repeat(10_000)).is_err());
        assert!(value(&"-".repeat(10_000)).is_err());
    }
}
