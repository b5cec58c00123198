use std::sync::{Arc, OnceLock};

type Set = dyn Fn(bool) + Send + Sync;

/// One end of an interrupt wire (or any other one-bit line): the source sets its level.
/// Clones drive the same input. May be called from any thread.
#[derive(Clone)]
pub struct IrqLine(Arc<Wire>);

struct Wire {
    set: Box<Set>,
    tap: OnceLock<Box<Set>>,
}

impl IrqLine {
    pub fn new(set: impl Fn(bool) + Send + Sync + 'static) -> Self {
        IrqLine(Arc::new(Wire { set: Box::new(set), tap: OnceLock::new() }))
    }

    /// A wire of its own into the same input.
    pub fn another(&self) -> Self {
        let line = self.clone();
        IrqLine::new(move |level| line.set(level))
    }

    /// Has `tell` called for each level that is set on this wire, after it is set. False:
    /// somebody listens already.
    pub fn tap(&self, tell: Box<dyn Fn(bool) + Send + Sync>) -> bool {
        self.0.tap.set(tell).is_ok()
    }

    /// A line that leads nowhere.
    pub fn unconnected() -> Self {
        IrqLine::new(|_| ())
    }

    pub fn set(&self, level: bool) {
        (self.0.set)(level);
        if let Some(tell) = self.0.tap.get() {
            tell(level);
        }
    }

    pub fn raise(&self) {
        self.set(true);
    }

    pub fn lower(&self) {
        self.set(false);
    }

    /// High and low again: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A message-signalled interrupt (PCI 3.0 §6.8, Intel SDM vol. 3A §11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    pub address: u64,
    pub data: u32,
}

/// Takes message-signalled interrupts (the local APICs' bus).
pub trait MsiSink: Send + Sync {
    fn send(&self, message: MsiMessage);
}
