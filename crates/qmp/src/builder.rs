//! Builds one JSON value from tokens as they come. After a mistake it keeps counting braces
//! and brackets, so that the end of the bad message is found, but holds no data.

use crate::Map;
use serde_json::Value;

/// Nesting allowed for braces and, separately, for brackets.
const MAX_NESTING: i32 = 1024;
/// Tokens allowed in one message.
const MAX_TOKENS: u32 = 1 << 21;

#[derive(Debug)]
pub enum Token {
    Scalar(Value),
    /// A letter word that is not a JSON literal.
    Nonsense,
    Comma,
    Colon,
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
}

/// What a token did to the message.
#[derive(Debug, PartialEq)]
pub enum Step {
    More,
    Done(Value),
    /// The message is complete, but it was no JSON.
    Bad,
    /// The message is beyond a limit; it is dropped here.
    TooMuch,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Expect {
    Value,
    /// A value or the end: just after `[`.
    First,
    Key,
    /// A key or the end: just after `{`.
    FirstKey,
    Colon,
    Comma,
}

enum Open {
    List(Vec<Value>),
    Object(Map, String),
}

pub struct Builder {
    stack: Vec<Open>,
    expect: Expect,
    braces: i32,
    brackets: i32,
    tokens: u32,
    bad: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Builder { stack: Vec::new(), expect: Expect::Value, braces: 0, brackets: 0, tokens: 0, bad: false }
    }
}

impl Builder {
    /// Whether nothing of a message has been seen.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Marks the message as wrong for a reason that is no matter of grammar.
    pub fn spoil(&mut self) {
        self.bad = true;
        self.stack = Vec::new();
    }

    pub fn reset(&mut self) {
        *self = Builder::default();
    }

    pub fn token(&mut self, token: Token) -> Step {
        self.tokens += 1;
        match token {
            Token::OpenBrace => self.braces += 1,
            Token::CloseBrace => self.braces -= 1,
            Token::OpenBracket => self.brackets += 1,
            Token::CloseBracket => self.brackets -= 1,
            _ => {}
        }
        if self.braces > MAX_NESTING || self.brackets > MAX_NESTING || self.tokens > MAX_TOKENS {
            self.reset();
            return Step::TooMuch;
        }
        let done = if self.bad { None } else { self.grammar(token) };
        let stray = self.braces < 0 || self.brackets < 0;
        if !stray && (self.braces > 0 || self.brackets > 0) {
            return Step::More;
        }
        let good = !self.bad && !stray;
        self.reset();
        match done {
            Some(value) if good => Step::Done(value),
            _ => Step::Bad,
        }
    }

    /// Takes a token by the grammar; gives the value when it is complete.
    fn grammar(&mut self, token: Token) -> Option<Value> {
        use Expect::*;
        match (self.expect, token) {
            (Value | First, Token::Scalar(value)) => return self.value(value),
            (Key | FirstKey, Token::Scalar(serde_json::Value::String(name))) => {
                if let Some(Open::Object(_, key)) = self.stack.last_mut() {
                    *key = name;
                }
                self.expect = Colon;
            }
            (Colon, Token::Colon) => self.expect = Value,
            (Comma, Token::Comma) => {
                self.expect = if matches!(self.stack.last(), Some(Open::List(_))) { Value } else { Key };
            }
            (Value | First, Token::OpenBrace) => {
                self.stack.push(Open::Object(Map::new(), String::new()));
                self.expect = FirstKey;
            }
            (Value | First, Token::OpenBracket) => {
                self.stack.push(Open::List(Vec::new()));
                self.expect = First;
            }
            (First | Comma, Token::CloseBracket) if matches!(self.stack.last(), Some(Open::List(_))) => {
                return self.close();
            }
            (FirstKey | Comma, Token::CloseBrace) if matches!(self.stack.last(), Some(Open::Object(..))) => {
                return self.close();
            }
            _ => self.spoil(),
        }
        None
    }

    fn close(&mut self) -> Option<Value> {
        match self.stack.pop()? {
            Open::List(list) => self.value(Value::Array(list)),
            Open::Object(map, _) => self.value(Value::Object(map)),
        }
    }

    /// Puts a complete value where it belongs; at the top it is the message.
    fn value(&mut self, value: Value) -> Option<Value> {
        self.expect = Expect::Comma;
        match self.stack.last_mut() {
            None => return Some(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Object(map, key)) => {
                map.insert(std::mem::take(key), value);
            }
        }
        None
    }
}
