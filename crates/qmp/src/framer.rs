//! Cuts a byte stream into JSON messages, in the dialect of `spec/wire.md` §7: single quotes
//! allowed, no separators needed, errors recovered from at the next byte. Works a byte at a
//! time as well as in bulk, and holds at most one message of bounded size.

use crate::builder::{Builder, Step, Token};
use serde_json::{Number, Value};

/// Token text allowed in one message, in bytes.
const MAX_TEXT: usize = 64 << 20;

#[derive(Debug, PartialEq)]
pub enum Message {
    Value(Value),
    /// Something that is no JSON value was passed over.
    Bad,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Between,
    Keyword,
    Str(u8),
    Escape(u8),
    /// Inside `\uXXXX`: the quote, how many digits are there, their value.
    Unicode(u8, u8, u16),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

pub struct Framer {
    state: State,
    token: Vec<u8>,
    /// The first half of a surrogate pair, when the escape before was one.
    high: Option<u16>,
    /// The string under way holds something that no string may hold.
    spoiled: bool,
    /// Bytes of the message so far.
    size: usize,
    builder: Builder,
    /// A lexical error was reported and the same line goes on: one error is enough.
    quiet: bool,
}

impl Default for Framer {
    fn default() -> Self {
        Framer {
            state: State::Between,
            token: Vec::new(),
            high: None,
            spoiled: false,
            size: 0,
            builder: Builder::default(),
            quiet: false,
        }
    }
}

impl Framer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no message is under way.
    pub fn is_idle(&self) -> bool {
        self.state == State::Between && self.builder.is_empty()
    }

    /// Takes bytes off the front of `input` up to the end of the next message. `None` when the
    /// input is used up.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Message> {
        while let Some((&byte, rest)) = input.split_first() {
            if let State::Str(quote) = self.state
                && byte != quote
                && byte != b'\\'
            {
                let length = plain_run(input, quote, self.loose_string());
                if length > 0 {
                    self.high_alone();
                    self.token.extend_from_slice(&input[..length]);
                    *input = &input[length..];
                    if let Some(message) = self.grown(length) {
                        return Some(message);
                    }
                    continue;
                }
            }
            let (used, message) = self.byte(byte);
            if used {
                *input = rest;
            }
            if message.is_some() {
                return message;
            }
        }
        None
    }

    /// Handles one byte; says whether it was used up, and what became complete.
    fn byte(&mut self, byte: u8) -> (bool, Option<Message>) {
        use State::*;
        if byte == b'\n' && self.loose_string() {
            let message = self.lexical_error();
            self.quiet = false;
            return (true, message);
        }
        if self.quiet && (byte >= 0xfe || byte < 0x20 && self.state == Between) {
            self.quiet = false;
        }
        let next = match (self.state, byte) {
            (Between, _) => return (true, self.between(byte)),
            (Keyword, b'a'..=b'z') => Keyword,
            (Keyword, 0..0x80) => return (false, self.keyword()),
            (Str(quote), _) if byte == quote => return (true, self.string()),
            (Str(quote), b'\\') => Escape(quote),
            (Escape(quote), _) => return (true, self.escape(quote, byte)),
            (Unicode(quote, count, value), _) => return (true, self.unicode(quote, count, value, byte)),
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') => Digits,
            (Digits, b'0'..=b'9') => Digits,
            (Zero | Digits, b'.') => Point,
            (Digits | Fraction, b'e' | b'E') => E,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (E, b'+' | b'-') => Sign,
            (E | Sign | Exponent, b'0'..=b'9') => Exponent,
            (Zero, b'0'..=b'9') => return (true, self.lexical_error()),
            (Zero | Digits | Fraction | Exponent, 0..0x80) => return (false, self.number()),
            _ => return (true, self.lexical_error()),
        };
        if matches!(next, Escape(_)) {
            self.state = next;
            return (true, self.grown(1));
        }
        self.token.push(byte);
        self.state = next;
        (true, self.grown(1))
    }

    /// A string outside any object or list can only be a mistake, so it ends with its line:
    /// else a stray quote would swallow all that follows.
    fn loose_string(&self) -> bool {
        matches!(self.state, State::Str(_)) && (self.quiet || self.builder.is_empty())
    }

    fn between(&mut self, byte: u8) -> Option<Message> {
        let token = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return None,
            b'{' => Token::OpenBrace,
            b'}' => Token::CloseBrace,
            b'[' => Token::OpenBracket,
            b']' => Token::CloseBracket,
            b',' => Token::Comma,
            b':' => Token::Colon,
            b'"' | b'\'' => {
                self.state = State::Str(byte);
                return self.grown(1);
            }
            _ => {
                self.state = match byte {
                    b'a'..=b'z' => State::Keyword,
                    b'-' => State::Minus,
                    b'0' => State::Zero,
                    b'1'..=b'9' => State::Digits,
                    _ => return self.lexical_error(),
                };
                self.token.push(byte);
                return self.grown(1);
            }
        };
        self.grown(1).or_else(|| self.put(token))
    }

    /// Counts bytes of the message; too many end it.
    fn grown(&mut self, by: usize) -> Option<Message> {
        self.size += by;
        if self.size > MAX_TEXT { self.lexical_error() } else { None }
    }

    fn put(&mut self, token: Token) -> Option<Message> {
        self.state = State::Between;
        if self.token.capacity() > 1 << 16 {
            self.token = Vec::new();
        }
        self.token.clear();
        match self.builder.token(token) {
            Step::More => return None,
            Step::Done(value) => {
                self.size = 0;
                if self.quiet && !value.is_object() {
                    return None;
                }
                self.quiet = false;
                return Some(Message::Value(value));
            }
            Step::Bad => self.size = 0,
            Step::TooMuch => return self.lexical_error(),
        }
        if self.quiet { None } else { Some(Message::Bad) }
    }

    /// Gives up the message under way; what follows is read as new input.
    fn lexical_error(&mut self) -> Option<Message> {
        let told = self.quiet;
        *self = Framer { quiet: true, ..Framer::default() };
        if told { None } else { Some(Message::Bad) }
    }

    fn keyword(&mut self) -> Option<Message> {
        let token = match self.token.as_slice() {
            b"true" => Token::Scalar(Value::Bool(true)),
            b"false" => Token::Scalar(Value::Bool(false)),
            b"null" => Token::Scalar(Value::Null),
            _ => Token::Nonsense,
        };
        self.put(token)
    }

    fn number(&mut self) -> Option<Message> {
        let text = std::str::from_utf8(&self.token).unwrap_or_default();
        let whole = matches!(self.state, State::Zero | State::Digits);
        let mut number = None;
        if whole {
            number = text.parse::<i64>().ok().map(Number::from);
            number = number.or_else(|| text.parse::<u64>().ok().map(Number::from));
        }
        let number = number.or_else(|| text.parse::<f64>().ok().and_then(Number::from_f64));
        self.put(number.map_or(Token::Nonsense, |number| Token::Scalar(Value::Number(number))))
    }

    fn string(&mut self) -> Option<Message> {
        self.high_alone();
        let bytes = std::mem::take(&mut self.token);
        let spoiled = std::mem::take(&mut self.spoiled);
        match String::from_utf8(bytes) {
            Ok(text) if !spoiled => self.put(Token::Scalar(Value::String(text))),
            _ => self.put(Token::Nonsense),
        }
    }

    /// A first surrogate that is not followed by a second spoils the string.
    fn high_alone(&mut self) {
        if self.high.take().is_some() {
            self.spoiled = true;
        }
    }

    fn escape(&mut self, quote: u8, byte: u8) -> Option<Message> {
        let plain = match byte {
            b'u' => {
                self.state = State::Unicode(quote, 0, 0);
                return self.grown(1);
            }
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'"' | b'\'' | b'/' | b'\\' => byte,
            _ => return self.lexical_error(),
        };
        self.high_alone();
        self.token.push(plain);
        self.state = State::Str(quote);
        self.grown(1)
    }

    fn unicode(&mut self, quote: u8, count: u8, value: u16, byte: u8) -> Option<Message> {
        let Some(digit) = (byte as char).to_digit(16) else { return self.lexical_error() };
        let value = value << 4 | digit as u16;
        if count < 3 {
            self.state = State::Unicode(quote, count + 1, value);
            return self.grown(1);
        }
        self.state = State::Str(quote);
        let point = match (self.high.take(), value) {
            (None, 0xd800..0xdc00) => {
                self.high = Some(value);
                return self.grown(1);
            }
            (Some(high), 0xdc00..0xe000) => {
                0x10000 + ((u32::from(high) - 0xd800) << 10) + (u32::from(value) - 0xdc00)
            }
            (Some(_), _) => 0,
            (None, _) => u32::from(value),
        };
        match char::from_u32(point) {
            Some(c) if point != 0 => self.token.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => self.spoiled = true,
        }
        self.grown(1)
    }
}

/// How many bytes at the start of `input` stand in a string for themselves.
fn plain_run(input: &[u8], quote: u8, loose: bool) -> usize {
    let line_end = if loose { b'\n' } else { 0 };
    let special =
        |&byte: &u8| byte == quote || byte == b'\\' || byte == 0 || byte == line_end || never_utf8(byte);
    input.iter().position(special).unwrap_or(input.len())
}

/// Bytes that occur in no UTF-8 text.
fn never_utf8(byte: u8) -> bool {
    matches!(byte, 0xc0 | 0xc1 | 0xf5..)
}

#[cfg(test)]
#[path = "framer_tests.rs"]
mod tests;
