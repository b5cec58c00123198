//! Makes commands out of the table, and spoils some of them.

use super::table::{COMMANDS, PARTS};
use serde_json::{Value, json};
use testkit::Dice;

pub struct Maker {
    pub dice: Dice,
    /// Where images are.
    pub dir: String,
    /// Names of nodes that were there a moment ago.
    pub nodes: Vec<String>,
    /// How deep values nest.
    depth: u32,
}

/// Image files that a case begins with: of formats raw and qcow2.
pub const RAW: [&str; 3] = ["r0.raw", "r1.raw", "r2.raw"];
pub const QCOW2: [&str; 5] = ["q0.qcow2", "q1.qcow2", "q2.qcow2", "q3.qcow2", "q4.qcow2"];

impl Maker {
    pub fn new(seed: u64, dir: String) -> Maker {
        Maker { dice: Dice::new(seed), dir, nodes: Vec::new(), depth: 0 }
    }

    /// A command and its arguments.
    pub fn command(&mut self) -> (&'static str, Value) {
        // Without nodes, little can be done.
        if self.nodes.len() < 6 && self.dice.once_in(3) {
            return ("blockdev-add", self.word("disk-image"));
        }
        let total: u64 = COMMANDS.iter().map(|row| row.0).sum();
        let mut at = self.dice.below(total);
        let row = COMMANDS.iter().find(|row| {
            let found = at < row.0;
            at = at.saturating_sub(row.0);
            found
        });
        let (_, name, template) = row.unwrap_or(&COMMANDS[0]);
        let mut arguments = self.fill(&parse(template));
        if self.dice.once_in(7) {
            self.spoil(&mut arguments);
        }
        (name, arguments)
    }

    fn fill(&mut self, template: &Value) -> Value {
        match template {
            Value::Object(fields) => {
                let mut made = serde_json::Map::new();
                for (key, value) in fields {
                    let name = key.trim_end_matches('?');
                    if name == key || self.dice.once_in(4) {
                        made.insert(name.into(), self.fill(value));
                    }
                }
                Value::Object(made)
            }
            Value::Array(list) if list.first() == Some(&json!("$many")) => {
                let count = 1 + self.dice.below(4) - u64::from(self.dice.once_in(8));
                (0..count).map(|_| self.fill(&list[1])).collect()
            }
            Value::Array(list) => list.iter().map(|one| self.fill(one)).collect(),
            Value::String(text) => match text.strip_prefix('$') {
                Some(word) => self.word(word),
                None => template.clone(),
            },
            other => other.clone(),
        }
    }

    fn numbered(&mut self, letter: &str, count: u64) -> String {
        format!("{letter}{}", self.dice.below(count))
    }

    fn file(&mut self, of: &[&str]) -> String {
        format!("{}/{}", self.dir, self.dice.pick(of))
    }

    fn name(&mut self, word: &str) -> Option<String> {
        Some(match word {
            "new" => self.numbered("n", 10),
            "node" if self.nodes.is_empty() || self.dice.once_in(6) => self.numbered("n", 10),
            "node" => self.dice.pick(&self.nodes).clone(),
            "drive" => self.numbered("d", 3),
            "disk" if self.dice.once_in(6) => self.numbered("d", 3),
            "disk" => return self.name("node"),
            "job" if self.dice.once_in(8) => return self.name("drive"),
            "job" => self.numbered("j", 3),
            "bitmap" => self.numbered("b", 3),
            "group" => self.numbered("g", 2),
            "thread" => self.numbered("t", 2),
            "export" => self.numbered("e", 3),
            "snapshot" => self.numbered("s", 3),
            "secret" => self.numbered("x", 2),
            "fd" => self.numbered("fd", 2),
            "device-id" => self.numbered("v", 4),
            "device-path" => format!("/machine/peripheral/v{}", self.dice.below(4)),
            "group-path" => format!("/objects/g{}", self.dice.below(2)),
            "fdset" => format!("/dev/fdset/{}", self.dice.below(3)),
            "socket" => format!("{}/nbd", self.dir),
            "raw-path" => self.file(&RAW),
            "qcow2-path" => self.file(&QCOW2),
            "fresh" => format!("{}/new{}.qcow2", self.dir, self.dice.below(6)),
            "file" => {
                let kind = *self.dice.pick(&["raw-path", "qcow2-path", "qcow2-path", "fresh"]);
                return self.name(kind);
            }
            "format" => {
                (*self.dice.pick(&["qcow2", "qcow2", "raw", "qed", "vmdk", "vdi", "luks", "dmg"])).into()
            }
            "policy" => (*self.dice.pick(&["report", "ignore", "enospc", "stop", "auto"])).into(),
            "io" => self.io(),
            "hmp" => self.hmp(),
            _ => return None,
        })
    }

    fn word(&mut self, word: &str) -> Value {
        if let Some(name) = self.name(word) {
            return name.into();
        }
        let numbers: &[u64] = match word {
            "size" => &[0, 1, 512, 4096, 65536, 1 << 20, 3 << 20, 4 << 20, (5 << 20) + 512, 64 << 20],
            "speed" => &[0, 1, 65536, 1 << 20, 1 << 40],
            "granularity" => &[0, 512, 4096, 65536, 1 << 20, 2 << 20, 1 << 31],
            "limit" => &[0, 0, 1, 100, 1 << 20, 1 << 50],
            "small" => &[0, 1, 2, 3, 16],
            "set" => &[0, 1, 2],
            "errno" => &[5, 28, 1, 0],
            _ => &[],
        };
        if !numbers.is_empty() {
            return (*self.dice.pick(numbers)).into();
        }
        if word == "bool" {
            return self.dice.once_in(2).into();
        }
        if let Some((_, templates)) = PARTS.iter().find(|part| part.0 == word) {
            if self.depth > 3 {
                return self.name("node").into();
            }
            self.depth += 1;
            let template: &str = self.dice.pick::<&str>(templates);
            let made = self.fill(&parse(template));
            self.depth -= 1;
            return made;
        }
        let words: Vec<&str> = word.split('|').collect();
        assert!(words.len() > 1, "no such word: {word}");
        match *self.dice.pick(&words) {
            "on" if words == ["on", "off"] => true.into(),
            "off" if words == ["on", "off"] => false.into(),
            word => word.into(),
        }
    }

    /// A `qemu-io` command of the human monitor.
    fn io(&mut self) -> String {
        let disk = self.name("disk").unwrap_or_default();
        let (at, len) = (self.dice.below(72) << 16, (1 + self.dice.below(16)) << 14);
        let what = match self.dice.below(8) {
            0 | 1 => format!("write -P {} {at} {len}", self.dice.below(256)),
            2 => format!("aio_write -P {} {at} {len}", self.dice.below(256)),
            3 => format!("write -z {at} {len}"),
            4 => format!("write -zu {at} {len}"),
            5 => format!("discard {at} {len}"),
            6 => format!("read {at} {len}"),
            _ => "flush".into(),
        };
        format!("qemu-io {disk} \"{what}\"")
    }

    fn hmp(&mut self) -> String {
        let (drive, disk) = (self.name("drive").unwrap_or_default(), self.name("disk").unwrap_or_default());
        let device = self.name("device-id").unwrap_or_default();
        let file = self.name("file").unwrap_or_default();
        match self.dice.below(10) {
            0..3 => format!("drive_add 0 if=none,id={drive},file={file}"),
            3 => format!("drive_del {drive}"),
            4 => format!("drive_del {disk}"),
            5 => format!("commit {drive}"),
            6 => "commit all".into(),
            7 => format!("eject -f {device}"),
            8 => format!("change {drive} {file}"),
            _ => "info block -v -n".into(),
        }
    }

    /// Makes something of `value` what it should not be.
    fn spoil(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() && !self.dice.once_in(5) => {
                let keys: Vec<String> = fields.keys().cloned().collect();
                let key = self.dice.pick(&keys).clone();
                match self.dice.below(6) {
                    0 => drop(fields.remove(&key)),
                    1 => {
                        let bad = self.bad();
                        fields.insert(
                            ["x", "", "node-name", "driver", "id", "speed"][bad.to_string().len() % 6].into(),
                            bad,
                        );
                    }
                    _ => self.spoil(&mut fields[&key]),
                }
            }
            Value::Array(list) if !list.is_empty() && !self.dice.once_in(5) => {
                let at = self.dice.below(list.len() as u64) as usize;
                match self.dice.below(4) {
                    0 => list.push(list[at].clone()),
                    _ => self.spoil(&mut list[at]),
                }
            }
            other => *other = self.bad(),
        }
    }

    fn bad(&mut self) -> Value {
        match self.dice.below(24) {
            0 => json!(0),
            1 => json!(-1),
            2 => json!(i64::MIN),
            3 => json!(i64::MAX),
            4 => json!(u64::MAX),
            5 => json!(1e300),
            6 => json!(0.5),
            7 => json!(1u64 << 62),
            8 => json!(""),
            9 => json!("\u{0}"),
            10 => json!("\u{fffd}\u{10ffff}\u{7f}"),
            11 => json!("x".repeat(3000)),
            12 => json!("%s%n\\'\"$(x)"),
            13 => json!([]),
            14 => json!({}),
            15 => Value::Null,
            16 => json!(true),
            17 => json!([[[[{"a": [[]]}]]]]),
            18 => json!("json:{\"driver\":\"null-co\"}"),
            19 => json!("/dev/null"),
            20 => json!("nbd+unix:///e0?socket=/nonexistent"),
            _ => {
                let sort = *self.dice.pick(&[
                    "node",
                    "drive",
                    "job",
                    "bitmap",
                    "file",
                    "device-id",
                    "thread",
                    "group",
                ]);
                self.word(sort)
            }
        }
    }
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}
