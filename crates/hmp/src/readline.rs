//! The line editor of a monitor, byte by byte: what comes in from a terminal, what goes back to
//! it. Emacs-like keys and a VT100's arrows; each change redraws the line.

/// Bytes of a line at most; more are not taken.
const MAX_LINE: usize = 4095;
const MAX_HISTORY: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Start,
    /// After ESC [ with the number read so far.
    Csi(u32),
    /// After ESC O.
    Ss3,
}

/// The editor's state.
#[derive(Default)]
pub(crate) struct Readline {
    prompt: &'static str,
    line: Vec<u8>,
    cursor: usize,
    shown: Vec<u8>,
    shown_cursor: usize,
    escape: Escape,
    history: Vec<Vec<u8>>,
    /// Place in the history while going through it.
    recall: Option<usize>,
}

/// What a key means for the monitor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Nothing,
    /// A finished line.
    Line(String),
}

impl Readline {
    pub fn new(prompt: &'static str) -> Self {
        Readline { prompt, ..Self::default() }
    }

    /// Shows the prompt on a fresh line, with what has been typed already.
    pub fn show_prompt(&mut self, out: &mut Vec<u8>) {
        out.extend(self.prompt.as_bytes());
        self.shown.clear();
        self.shown_cursor = 0;
        self.escape = Escape::None;
        self.redraw(out);
    }

    /// Forgets the line being typed.
    pub fn restart(&mut self) {
        self.line.clear();
        self.cursor = 0;
    }

    pub fn history(&self) -> Vec<String> {
        self.history.iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect()
    }

    /// One byte of input. `complete` gives the words that may stand at the end of a beginning.
    pub fn byte(&mut self, byte: u8, out: &mut Vec<u8>, complete: &dyn Fn(&str) -> Vec<String>) -> Key {
        match self.escape {
            Escape::None => match byte {
                b'\n' | b'\r' => return self.finish(out),
                b'\t' => self.complete(out, complete),
                27 => self.escape = Escape::Start,
                155 => self.escape = Escape::Csi(0),
                _ => self.edit(byte, out),
            },
            Escape::Start => {
                self.escape = match byte {
                    b'[' => Escape::Csi(0),
                    b'O' => Escape::Ss3,
                    _ => Escape::None,
                }
            }
            Escape::Csi(number) => self.csi(byte, number),
            Escape::Ss3 => {
                match byte {
                    b'F' => self.cursor = self.line.len(),
                    b'H' => self.cursor = 0,
                    _ => {}
                }
                self.escape = Escape::None;
            }
        }
        self.redraw(out);
        Key::Nothing
    }

    fn csi(&mut self, byte: u8, number: u32) {
        self.escape = Escape::None;
        match byte {
            b'0'..=b'9' => {
                self.escape = Escape::Csi(number.saturating_mul(10).saturating_add(u32::from(byte - b'0')))
            }
            b'A' => self.older(),
            b'B' => self.newer(),
            b'C' => self.forward(),
            b'D' => self.cursor = self.cursor.saturating_sub(1),
            b'F' => self.cursor = self.line.len(),
            b'H' => self.cursor = 0,
            b'~' => match number {
                1 | 7 => self.cursor = 0,
                3 => self.delete(),
                4 | 8 => self.cursor = self.line.len(),
                _ => {}
            },
            _ => {}
        }
    }

    fn edit(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            1 => self.cursor = 0,
            2 => self.cursor = self.cursor.saturating_sub(1),
            3 => {
                // Ctrl-C: a fresh line.
                self.restart();
                out.extend(b"\r\n");
                self.show_prompt(out);
            }
            4 => self.delete(),
            5 => self.cursor = self.line.len(),
            6 => self.forward(),
            8 | 127 => self.erase(),
            11 => self.line.truncate(self.cursor),
            14 => self.newer(),
            16 => self.older(),
            21 => {
                self.line.drain(..self.cursor);
                self.cursor = 0;
            }
            23 => self.delete_word(),
            32.. if self.line.len() < MAX_LINE => {
                self.line.insert(self.cursor, byte);
                self.cursor += 1;
            }
            _ => {}
        }
    }

    fn forward(&mut self) {
        self.cursor = (self.cursor + 1).min(self.line.len());
    }

    fn delete(&mut self) {
        if self.cursor < self.line.len() {
            self.line.remove(self.cursor);
        }
    }

    /// Deletes the byte before the cursor.
    fn erase(&mut self) {
        if self.cursor > 0 {
            self.cursor -= 1;
            self.delete();
        }
    }

    fn delete_word(&mut self) {
        let before = &self.line[..self.cursor];
        let word_end = before.iter().rposition(|&b| b != b' ').map_or(0, |at| at + 1);
        let start = before[..word_end].iter().rposition(|&b| b == b' ').map_or(0, |at| at + 1);
        self.line.drain(start..self.cursor);
        self.cursor = start;
    }

    fn older(&mut self) {
        let at = self.recall.unwrap_or(self.history.len());
        if at > 0 {
            self.recall_line(at - 1);
        }
    }

    fn newer(&mut self) {
        match self.recall {
            Some(at) if at + 1 < self.history.len() => self.recall_line(at + 1),
            Some(_) => {
                self.recall = None;
                self.restart();
            }
            None => {}
        }
    }

    fn recall_line(&mut self, at: usize) {
        self.recall = Some(at);
        self.line = self.history[at].clone();
        self.cursor = self.line.len();
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Key {
        let line = std::mem::take(&mut self.line);
        self.cursor = 0;
        self.shown.clear();
        self.shown_cursor = 0;
        self.recall = None;
        out.extend(b"\r\n");
        if !line.is_empty() {
            self.history.retain(|old| *old != line);
            self.history.push(line.clone());
            if self.history.len() > MAX_HISTORY {
                self.history.remove(0);
            }
        }
        Key::Line(String::from_utf8_lossy(&line).into_owned())
    }

    fn complete(&mut self, out: &mut Vec<u8>, complete: &dyn Fn(&str) -> Vec<String>) {
        let begun = String::from_utf8_lossy(&self.line[..self.cursor]).into_owned();
        let word = begun.rsplit(' ').next().unwrap_or_default();
        let mut found = complete(&begun);
        found.sort_unstable();
        found.dedup();
        let Some(first) = found.first() else { return };
        let common = found.iter().fold(first.len(), |n, other| {
            first.bytes().zip(other.bytes()).take(n).take_while(|(a, b)| a == b).count()
        });
        for &byte in first.as_bytes()[..common].iter().skip(word.len()) {
            self.edit(byte, out);
        }
        if found.len() == 1 {
            if !first.ends_with('/') {
                self.edit(b' ', out);
            }
            return;
        }
        out.extend(b"\r\n");
        let width = (found.iter().map(String::len).max().unwrap_or(0) + 2).clamp(10, 80);
        for row in found.chunks((80 / width).max(1)) {
            row.iter().for_each(|name| out.extend(format!("{name:<width$}").as_bytes()));
            out.extend(b"\r\n");
        }
        self.show_prompt(out);
    }

    /// Brings the terminal from what it shows to what the line is.
    fn redraw(&mut self, out: &mut Vec<u8>) {
        if self.line != self.shown {
            (0..self.shown_cursor).for_each(|_| out.extend(b"\x1b[D"));
            out.extend(&self.line);
            out.extend(b"\x1b[K");
            self.shown.clone_from(&self.line);
            self.shown_cursor = self.line.len();
        }
        let left = self.shown_cursor.saturating_sub(self.cursor);
        let right = self.cursor.saturating_sub(self.shown_cursor);
        (0..left).for_each(|_| out.extend(b"\x1b[D"));
        (0..right).for_each(|_| out.extend(b"\x1b[C"));
        self.shown_cursor = self.cursor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(begun: &str) -> Vec<String> {
        let word = begun.rsplit(' ').next().unwrap();
        ["status", "stop", "system_reset"]
            .iter()
            .filter(|w| w.starts_with(word))
            .map(|w| w.to_string())
            .collect()
    }

    fn type_in(editor: &mut Readline, bytes: &[u8]) -> (Vec<String>, String) {
        let (mut lines, mut out) = (Vec::new(), Vec::new());
        for &byte in bytes {
            if let Key::Line(line) = editor.byte(byte, &mut out, &words) {
                lines.push(line);
            }
        }
        (lines, String::from_utf8(out).unwrap())
    }

    #[test]
    fn echo_as_terminals_expect_it() {
        let mut editor = Readline::new("(qemu) ");
        let (lines, out) = type_in(&mut editor, b"quit\n");
        assert_eq!(lines, ["quit"]);
        assert_eq!(out, "q\x1b[K\x1b[Dqu\x1b[K\x1b[D\x1b[Dqui\x1b[K\x1b[D\x1b[D\x1b[Dquit\x1b[K\r\n");
    }

    #[test]
    fn keys() {
        let line = |bytes: &[u8]| type_in(&mut Readline::new(""), bytes).0.remove(0);
        assert_eq!(line(b"bc\x01a\x05d\n"), "abcd");
        assert_eq!(line(b"one two  \x17\n"), "one ");
        assert_eq!(line(b"abc\x02\x02\x0b\n"), "a");
        assert_eq!(line(b"abc\x02\x15\n"), "c");
        assert_eq!(line(b"abc\x7f\x08\n"), "a");
        assert_eq!(line(b"abc\x03x\n"), "x");
        assert_eq!(line(b"ac\x1b[Db\x1b[C!\n"), "abc!");
        assert_eq!(line(b"xabc\x1b[1~\x1b[3~\x1bOF.\n"), "abc.");
        assert_eq!(line(b"\x02\x04\x7f\x17\x0b\x1b[A\x1b[B\x1b[99999999999999~ok\n"), "ok");
        assert_eq!(line("sy\t\n".as_bytes()), "system_reset ");
        assert_eq!(line(&[vec![b'a'; 5000], vec![b'\n']].concat()).len(), MAX_LINE);
    }

    #[test]
    fn history_and_completion() {
        let mut editor = Readline::new("> ");
        assert_eq!(
            type_in(&mut editor, b"one\ntwo\none\n\n\x1b[A\x1b[A\n\x10\x10\x0e\n").0,
            ["one", "two", "one", "", "two", "two"]
        );
        assert_eq!(editor.history(), ["one", "two"]);
        let (_, out) = type_in(&mut editor, b"st\t");
        assert!(out.ends_with("\r\nstatus    stop      \r\n> st\x1b[K"), "{out:?}");
    }
}
