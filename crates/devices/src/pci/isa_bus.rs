use device::{Bus, BusKind};
use std::any::Any;
use std::sync::Arc;

/// The ISA bus behind a bridge. Ports and interrupt lines are the machine's own, so that it
/// only is the place where ISA devices are listed.
pub struct IsaBus(&'static str);

impl IsaBus {
    pub fn new(name: &'static str) -> Arc<Self> {
        Arc::new(IsaBus(name))
    }
}

impl Bus for IsaBus {
    fn name(&self) -> String {
        self.0.to_string()
    }
    fn kind(&self) -> BusKind {
        BusKind::Isa
    }
    fn is_full(&self) -> bool {
        false
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
