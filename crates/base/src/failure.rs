use std::fmt;

/// Error classes of the QMP error object (`spec/wire.md` §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Class {
    #[default]
    GenericError,
    CommandNotFound,
    DeviceNotActive,
    DeviceNotFound,
    DeviceEncrypted,
    KvmMissingCap,
}

impl Class {
    /// The class name as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::GenericError => "GenericError",
            Class::CommandNotFound => "CommandNotFound",
            Class::DeviceNotActive => "DeviceNotActive",
            Class::DeviceNotFound => "DeviceNotFound",
            Class::DeviceEncrypted => "DeviceEncrypted",
            Class::KvmMissingCap => "KVMMissingCap",
        }
    }
}

/// Why a request of a user could not be met: a class for programs, a sentence for people.
///
/// `errno` is kept where the cause was a system call, because guests and job policies
/// (`enospc`) distinguish on it.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    pub class: Class,
    pub text: String,
    pub errno: Option<i32>,
    /// A second line for people at a terminal (`hint: ...`); never part of the QMP text.
    pub hint: Option<String>,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure of class GenericError.
    pub fn new(text: impl Into<String>) -> Self {
        Failure { class: Class::GenericError, text: text.into(), errno: None, hint: None }
    }

    /// A failure of another class.
    pub fn of(class: Class, text: impl Into<String>) -> Self {
        Failure { class, ..Failure::new(text) }
    }

    /// `"<what>: <strerror>"` from a failed system call.
    pub fn os(what: impl fmt::Display, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error();
        Failure { errno, ..Failure::new(format!("{what}: {}", strerror(error))) }
    }

    /// Adds a hint for people.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts `"<what>: "` before the text.
    pub fn within(mut self, what: impl fmt::Display) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }

    /// DeviceNotFound with its customary text.
    pub fn device_not_found(id: impl fmt::Display) -> Self {
        Failure::of(Class::DeviceNotFound, format!("Device '{id}' not found"))
    }

    /// "Parameter 'x' expects y".
    pub fn expects(name: impl fmt::Display, what: impl fmt::Display) -> Self {
        Failure::new(format!("Parameter '{name}' expects {what}"))
    }
}

/// The customary strerror text, without Rust's "(os error N)".
pub fn strerror(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.as_str(), self.text)
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure { errno: error.raw_os_error(), ..Failure::new(strerror(&error)) }
    }
}

/// Builds a [`Failure`] of class GenericError: `fail!("no {x}")`.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { $crate::Failure::new(format!($($arg)*)) };
}

/// Returns early with a [`Failure`] of class GenericError.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::Failure::new(format!($($arg)*))) };
}
