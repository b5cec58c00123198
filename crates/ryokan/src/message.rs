//! What the program says on standard error: `[TIME ][GUEST ]PROGRAM: TEXT` (`-msg`).

use base::clock::Calendar;
use spec::Invocation;
use std::fmt::Display;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How messages begin.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    program: String,
    timestamp: bool,
    guest: Option<String>,
}

impl Messages {
    /// Those of a program whose command line is not read yet.
    pub fn new(program: &str) -> Messages {
        Messages { program: program.to_string(), ..Messages::default() }
    }

    /// From here on as `-msg` asks.
    pub fn settle(&mut self, invocation: &Invocation) {
        self.timestamp = invocation.message.timestamp;
        self.guest = invocation.machine.name.clone().filter(|_| invocation.message.guest_name);
    }

    pub fn say(&self, what: impl Display) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        eprintln!("{}", self.line(now, what));
    }

    pub fn warn(&self, what: impl Display) {
        self.say(format_args!("warning: {what}"));
    }

    fn line(&self, now: Duration, what: impl Display) -> String {
        let time = if self.timestamp { format!("{} ", utc(now)) } else { String::new() };
        let guest = self.guest.as_ref().map(|guest| format!("{guest} ")).unwrap_or_default();
        format!("{time}{guest}{}: {what}", self.program)
    }
}

/// Time since 1970 as ISO 8601 with microseconds.
fn utc(now: Duration) -> String {
    let Calendar { year, month, day, hour, minute, second, .. } =
        Calendar::from_seconds(now.as_secs() as i64);
    let micros = now.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_begin_as_asked() {
        let mut messages = Messages::new("q");
        let now = Duration::new(1_000_000_000, 5_000);
        assert_eq!(messages.line(now, "a"), "q: a");
        let mut invocation = Invocation::default();
        invocation.machine.name = Some("g".into());
        messages.settle(&invocation);
        assert_eq!(messages.line(now, "a"), "q: a");
        invocation.message = spec::invocation::MessageFormat { timestamp: true, guest_name: true };
        messages.settle(&invocation);
        assert_eq!(messages.line(now, "a"), "2001-09-09T01:46:40.000005Z g q: a");
    }
}
