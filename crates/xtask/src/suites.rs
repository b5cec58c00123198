//! `cargo xtask suites`: QEMU's own block test suite (qemu-iotests of 7.2) with Ryokan in QEMU's place.
//!
//! The suite and the tools of the same version come from Debian; nothing of them is kept here.
//! JSON objects are compared with sorted keys, lines without the blanks at their ends, and the SHUTDOWN
//! event of `quit` may come anywhere.

use crate::run::{Result, output, root, step};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SOURCE: &str = "http://deb.debian.org/debian/pool/main/q/qemu/qemu_7.2+dfsg.orig.tar.xz";
/// The storage daemon is in the last one.
const TOOLS: [&str; 3] = ["qemu-utils=1:7.2*", "qemu-block-extra=1:7.2*", "qemu-system-common=1:7.2*"];

/// Status of `timeout` when the time was over.
const TIMED_OUT: i32 = 124;

/// A test and the image format it runs with.
const PASSING: &str = include_str!("suites/passing.txt");

/// `[FORMAT TEST...]`: without arguments all that are known to pass, each of which must. `RYOKAN` may name a binary.
pub fn run(args: &[String]) -> Result {
    let list: Vec<(String, String)> = match args {
        [] => PASSING.lines().filter_map(|line| line.split_once(' ')).map(owned).collect(),
        [format, tests @ ..] => tests.iter().map(|test| (test.clone(), format.clone())).collect(),
    };
    if list.is_empty() {
        return Err("usage: cargo xtask suites [FORMAT TEST...]   (for example: qcow2 030 041)".into());
    }
    if std::env::var_os("RYOKAN").is_none() {
        step("build", "cargo", &["build", "--quiet", "--release", "--package", "ryokan"])?;
    }
    let suite = Suite::fetch(&root().join("target/suites"))?;
    let mut failed = Vec::new();
    for (test, format) in &list {
        let verdict = suite.test(test, format)?;
        println!("{test:>35} {format:<10} {verdict}");
        if verdict != Verdict::Pass {
            failed.push(format!("{test} ({format})"));
        }
    }
    println!(
        "{} of {} passed; outputs are in {}",
        list.len() - failed.len(),
        list.len(),
        suite.dir.display()
    );
    if failed.is_empty() { Ok(()) } else { Err(format!("not passed: {}", failed.join(", "))) }
}

fn owned((test, format): (&str, &str)) -> (String, String) {
    (test.to_string(), format.to_string())
}

#[derive(PartialEq)]
enum Verdict {
    Pass,
    Skipped,
    Failed,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Pass => "pass",
            Verdict::Skipped => "skipped itself",
            Verdict::Failed => "FAILED",
        })
    }
}

/// The suite, unpacked in `dir`.
struct Suite {
    dir: PathBuf,
}

impl Suite {
    fn fetch(dir: &Path) -> Result<Suite> {
        let suite = Suite { dir: dir.to_path_buf() };
        let at = |error: std::io::Error| format!("{}: {error}", dir.display());
        fs::create_dir_all(suite.build().join("storage-daemon")).map_err(at)?;
        fs::create_dir_all(suite.build().join("tests/qemu-iotests")).map_err(at)?;
        if !suite.source().exists() {
            let folder = dir.display().to_string();
            step("suite", "curl", &["-sSfL", "-o", &format!("{folder}/suite.tar.xz"), SOURCE])?;
            let parts = ["*/tests/qemu-iotests", "*/python", "*/scripts"];
            let mut args = vec!["-C", &folder, "-xf"];
            let archive = format!("{folder}/suite.tar.xz");
            args.extend([archive.as_str(), "--wildcards"]);
            args.extend(parts);
            step("unpack", "tar", &args)?;
            let download = format!("cd {folder} && apt-get -qq download {}", TOOLS.join(" "));
            step("tools", "sh", &["-c", &download])?;
            step(
                "unpack tools",
                "sh",
                &["-c", &format!("cd {folder} && for d in *.deb; do dpkg-deb -x $d .; done")],
            )?;
        }
        suite.links().map_err(at)?;
        Ok(suite)
    }

    fn source(&self) -> PathBuf {
        self.dir.join("qemu-7.2.0/tests/qemu-iotests")
    }

    fn build(&self) -> PathBuf {
        self.dir.join("build")
    }

    /// What the suite expects in a build folder. The emulator must call itself by QEMU's name.
    fn links(&self) -> std::io::Result<()> {
        let build = self.build();
        let link = |from: PathBuf, to: PathBuf| match to.exists() {
            true => Ok(()),
            false => symlink(from, to),
        };
        link(self.source().join("check"), build.join("tests/qemu-iotests/check"))?;
        for tool in ["qemu-img", "qemu-io", "qemu-nbd", "storage-daemon/qemu-storage-daemon"] {
            let name = tool.rsplit('/').next().unwrap_or(tool);
            link(self.dir.join("usr/bin").join(name), build.join(tool))?;
        }
        let start = build.join("qemu-system-x86_64");
        let ours = testkit::vm::binary();
        let script = format!("#!/bin/bash\nexec -a qemu-system-x86_64 {} \"$@\"\n", ours.display());
        fs::write(&start, script)?;
        fs::set_permissions(&start, fs::Permissions::from_mode(0o755))
    }

    fn test(&self, test: &str, format: &str) -> Result<Verdict> {
        let scratch = self.dir.join("out").join(format!("{format}-{}", test.replace('/', "_")));
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
        // Sockets have short names.
        let sockets = output("mktemp", &["-d"])?.trim().to_string();
        let done = Command::new("timeout")
            .args(["-k", "5", "300", "./check", &format!("-{format}"), test.trim_start_matches("tests/")])
            .current_dir(self.build().join("tests/qemu-iotests"))
            .env("TEST_DIR", &scratch)
            .env("SOCK_DIR", &sockets)
            .stdin(Stdio::null())
            .output();
        let _ = fs::remove_dir_all(&sockets);
        let done = done.map_err(|error| format!("check: {error}"))?;
        let said = String::from_utf8_lossy(&done.stdout);
        if said.contains("Not run:") {
            return Ok(Verdict::Skipped);
        }
        if done.status.success() || self.same_but_for_order(test, format, &scratch) {
            return Ok(Verdict::Pass);
        }
        let ran = said.contains("Failures:") || done.status.code() == Some(TIMED_OUT);
        match ran {
            true => Ok(Verdict::Failed),
            false => {
                Err(format!("check did not run {test}: {said}{}", String::from_utf8_lossy(&done.stderr)))
            }
        }
    }

    fn same_but_for_order(&self, test: &str, format: &str, scratch: &Path) -> bool {
        let name = test.rsplit('/').next().unwrap_or(test);
        let Ok(got) = fs::read_to_string(scratch.join(format!("{name}.out.bad"))) else { return false };
        let forms = [format!(".pc.{format}"), ".pc".into(), format!(".{format}"), String::new()];
        let expected =
            |form: &String| fs::read_to_string(self.source().join(format!("{test}{form}.out"))).ok();
        let Some(wanted) = forms.iter().find_map(expected) else { return false };
        ordered(&got) == ordered(&wanted)
    }
}

/// The lines with the keys of JSON objects sorted, those over several lines in one; the SHUTDOWN
/// events of `quit` come last.
fn ordered(text: &str) -> Vec<String> {
    let (mut lines, mut last) = (Vec::new(), Vec::new());
    for line in joined(text) {
        let start = line.find('{').unwrap_or(line.len());
        let (head, rest) = line.split_at(start);
        // What stands in place of a number is no JSON.
        let number = |rest: String, word: &&str| rest.replace(*word, " 0");
        let rest = [" TIMESTAMP", " SIZE", " LEN", " OFFSET"].iter().fold(rest.to_string(), number);
        let line = match serde_json::from_str::<Value>(&rest) {
            Ok(mut object) => {
                object.sort_all_objects();
                format!("{head}{object}")
            }
            Err(_) => line.to_string(),
        };
        let ends = line.contains("\"SHUTDOWN\"") && line.contains("host-qmp-quit");
        if ends { last.push(line) } else { lines.push(line) }
    }
    lines.append(&mut last);
    lines
}

/// The lines without blanks at their ends; what stands between lines `{` and `}` is one.
fn joined(text: &str) -> Vec<String> {
    let (mut lines, mut open) = (Vec::<String>::new(), false);
    for line in text.lines().map(str::trim_end) {
        match lines.last_mut().filter(|_| open) {
            Some(object) => {
                // The suite takes lines out: what was the last item may leave its comma.
                if line.trim_start().starts_with('}') && object.ends_with(',') {
                    object.pop();
                }
                object.push_str(line);
            }
            None => lines.push(line.to_string()),
        }
        open = if open { line != "}" } else { line == "{" };
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::ordered;

    #[test]
    fn only_order_is_overlooked() {
        let wanted = "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"host-qmp-quit\"}}\na {\"b\": 1, \"c\":  TIMESTAMP}\n";
        let got = "a {\"c\":  TIMESTAMP, \"b\": 1}\n{\"data\": {\"reason\": \"host-qmp-quit\"}, \"event\": \"SHUTDOWN\"}\n";
        assert_eq!(ordered(wanted), ordered(got));
        assert_ne!(ordered(wanted), ordered(&got.replace("\"b\": 1", "\"b\": 2")));
        assert_ne!(ordered("x\ny\n"), ordered("y\nx\n"));
        let long = "{\n  \"b\": 1, \n  \"c\":  TIMESTAMP\n}\nx\n";
        let other = "{\n  \"c\":  TIMESTAMP,\n  \"b\": 1,\n}\nx\n";
        assert_eq!(ordered(long), ordered(other));
        assert_ne!(ordered(long), ordered(&other.replace("\"b\": 1", "\"b\": 2")));
        assert_ne!(ordered(long), ordered(&other.replace('x', "y")));
    }
}
