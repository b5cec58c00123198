//! The human monitor (HMP): line editing, parsing, and commands that call the control plane by
//! its typed door and print in the customary layout.
//!
//! [`human_monitor`] is what `human-monitor-command` runs; [`HmpPort`] is a monitor on a
//! character device (`-monitor`, `-mon mode=readline`).

#![forbid(unsafe_code)]

mod commands;
mod expr;
mod parse;
mod port;
mod readline;
mod table;

pub use port::HmpPort;
pub use table::{Doc, docs};

use base::Result;
use control::{Control, HumanMonitor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a command can reach. Clones are the same session.
#[derive(Clone)]
pub struct Session {
    pub control: Control,
    /// The default CPU (`cpu N`).
    cpu: Arc<AtomicUsize>,
    history: Arc<base::Mutex<Vec<String>>>,
}

impl Session {
    pub fn new(control: Control, cpu: usize) -> Self {
        Session { control, cpu: Arc::new(AtomicUsize::new(cpu)), history: Arc::default() }
    }

    pub fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed)
    }

    fn machine(&self) -> &Arc<machine::Machine> {
        &self.control.world().machine
    }

    /// Runs a command with its arguments in wire form; those that are null are not given.
    pub(crate) async fn ask<C: qapi::Command + 'static>(
        &self,
        arguments: serde_json::Value,
    ) -> Result<C::Reply> {
        let serde_json::Value::Object(mut given) = arguments else { base::bail!("arguments are an object") };
        given.retain(|_, value| !value.is_null());
        self.control.call(qapi::arguments::<C>(given)?).await
    }

    /// Runs one line. What it prints has lines ending in `\n`; an error is part of it.
    pub async fn run(&self, line: &str) -> String {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return String::new();
        }
        let (command, args) = match parse::line(self, line) {
            Ok(parsed) => parsed,
            Err(text) => return text,
        };
        match (command.run)(self.clone(), args).await {
            Ok(text) => text,
            Err(failure) => {
                let hint = failure.hint.as_ref().map(|h| format!("{h}\n")).unwrap_or_default();
                format!("Error: {}\n{hint}", failure.text)
            }
        }
    }
}

/// What `human-monitor-command` runs.
pub fn human_monitor() -> HumanMonitor {
    Arc::new(|control, line, cpu| {
        Box::pin(async move {
            let text = Session::new(control, cpu).run(&line).await;
            let printed: Result<String> = Ok(text.replace('\n', "\r\n"));
            printed
        })
    })
}

#[cfg(test)]
mod tests;
