//! Takes away all that a case made, by name.

use super::{ANSWER, Walk, list, text};
use serde_json::json;
use std::time::Instant;

/// What the process has open.
pub fn descriptors(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut found: Vec<String> = entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|to| to.display().to_string())
        .collect();
    found.sort();
    found
}

/// What `list` has more of than `other`.
fn beyond(list: &[String], other: &[String]) -> Vec<String> {
    let mut rest = other.to_vec();
    let missing = list.iter().filter(|one| match rest.iter().position(|known| known == *one) {
        Some(at) => {
            rest.swap_remove(at);
            false
        }
        None => true,
    });
    missing.cloned().collect()
}

impl Walk {
    /// Repeats `round` until it finds nothing more to do.
    fn until_done(&mut self, what: &str, mut round: impl FnMut(&mut Walk) -> Vec<String>) {
        let end = Instant::now() + ANSWER;
        let begin = self.log.len();
        loop {
            // What comes to nothing is told of once.
            self.log.truncate(begin + 100);
            let left = round(self);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{what} do not go away: {left:?}");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    pub fn take_away(&mut self) {
        self.log.push("(all is taken away)".into());
        self.until_done("exports", |walk| {
            let exports = list(walk.query("query-block-exports", json!({})));
            let ids: Vec<String> = exports.iter().map(|one| text(&one["id"])).collect();
            for id in &ids {
                let _ = walk.ask("block-export-del", json!({"id": id, "mode": "hard"}));
            }
            ids
        });
        let _ = self.ask("nbd-server-stop", json!({}));
        self.until_done("jobs", Walk::end_jobs);
        self.until_done("devices", |walk| {
            let named = walk.children("/machine/peripheral").into_iter().filter(|id| id != "s0");
            let mut ids: Vec<String> = named.collect();
            let unnamed = walk.children("/machine/peripheral-anon");
            ids.extend(unnamed.iter().map(|name| format!("/machine/peripheral-anon/{name}")));
            for id in &ids {
                let _ = walk.ask("device_del", json!({ "id": id }));
            }
            if !ids.is_empty() {
                let _ = walk.ask("system_reset", json!({}));
            }
            ids
        });
        self.until_done("drives", |walk| {
            let drives = list(walk.query("query-block", json!({})));
            let ids: Vec<String> = drives.iter().map(|one| text(&one["device"])).collect();
            for id in &ids {
                let _ = walk.ask("human-monitor-command", json!({"command-line": format!("drive_del {id}")}));
            }
            ids
        });
        self.until_done("nodes", |walk| {
            walk.refresh();
            let names = walk.make.nodes.clone();
            for name in &names {
                let _ = walk.ask("blockdev-del", json!({"node-name": name}));
            }
            names
        });
        self.until_done("objects", |walk| {
            let ids = walk.children("/objects");
            for id in &ids {
                let _ = walk.ask("object-del", json!({ "id": id }));
            }
            ids
        });
        self.until_done("fd sets", |walk| {
            let sets = list(walk.query("query-fdsets", json!({})));
            for set in &sets {
                let _ = walk.ask("remove-fd", json!({"fdset-id": set["fdset-id"]}));
            }
            sets.iter().map(|set| set.to_string()).collect()
        });
        // A descriptor that came with no command waits for the next one.
        let (path, id) = (format!("{}/r0.raw", self.make.dir), self.asked + 1);
        self.asked = id;
        let message = json!({"execute": "getfd", "arguments": {"fdname": "last"}, "id": id});
        self.vm.qmp.send_fd(&format!("{message}\n"), std::fs::File::open(path).unwrap()).unwrap();
        self.fds.insert("last".into());
        let _ = self.answer(false, id);
        for name in std::mem::take(&mut self.fds) {
            let _ = self.ask("closefd", json!({"fdname": name}));
        }
    }

    fn children(&mut self, path: &str) -> Vec<String> {
        let found = list(self.query("qom-list", json!({ "path": path })));
        let children = found.iter().filter(|one| text(&one["type"]).starts_with("child<"));
        children.map(|one| text(&one["name"])).collect()
    }

    /// Moves every job towards its end; those that there were.
    fn end_jobs(&mut self) -> Vec<String> {
        let jobs = list(self.query("query-jobs", json!({})));
        for job in &jobs {
            let id = json!({"id": job["id"]});
            let _ = match job["status"].as_str().unwrap_or_default() {
                "concluded" => self.ask("job-dismiss", id),
                "pending" => self.ask("job-finalize", id),
                "paused" | "standby" => {
                    let _ = self.ask("job-resume", id.clone());
                    self.ask("job-cancel", id)
                }
                _ => self.ask("job-cancel", id),
            };
        }
        jobs.iter().map(|job| job.to_string()).collect()
    }

    /// Nodes and descriptors are as before.
    pub fn nothing_left(&mut self, before: &[String]) {
        let graph = self.query("x-debug-query-block-graph", json!({}));
        assert_eq!(graph["nodes"], json!([]), "{graph}");
        let end = Instant::now() + ANSWER;
        let pid = self.vm.pid();
        while descriptors(pid).len() != before.len() {
            let (more, fewer) = (beyond(&descriptors(pid), before), beyond(before, &descriptors(pid)));
            assert!(Instant::now() < end, "open: {more:?}, closed: {fewer:?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
