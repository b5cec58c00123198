use crate::pc::dma::IsaDma;
use device::{Bus, BusKind};
use std::any::Any;
use std::sync::{Arc, OnceLock};

/// The ISA bus behind a bridge. Ports and interrupt lines are the machine's own; it is the
/// place where ISA devices are listed and find the DMA controllers.
pub struct IsaBus {
    name: String,
    dma: OnceLock<Arc<IsaDma>>,
}

impl IsaBus {
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(IsaBus { name: name.into(), dma: OnceLock::new() })
    }

    /// The board's DMA controllers, once they are there.
    pub fn dma(&self) -> Option<Arc<IsaDma>> {
        self.dma.get().cloned()
    }

    pub fn set_dma(&self, dma: Arc<IsaDma>) {
        let _ = self.dma.set(dma);
    }
}

impl Bus for IsaBus {
    fn name(&self) -> String {
        self.name.clone()
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
