use base::Mutex;
use device::Services;
use memory::{AddressSpace, Handler, MappingId};
use std::sync::Arc;

/// A range of registers that a base register of the chipset places.
pub struct Window {
    space: Arc<AddressSpace>,
    name: &'static str,
    len: u64,
    handler: Arc<dyn Handler>,
    placed: Mutex<Option<(MappingId, u64)>>,
}

impl Window {
    pub fn ports(services: &Services, name: &'static str, len: u64, handler: Arc<dyn Handler>) -> Self {
        Window { space: services.ports.clone(), name, len, handler, placed: Mutex::new(None) }
    }

    pub fn memory(services: &Services, name: &'static str, len: u64, handler: Arc<dyn Handler>) -> Self {
        Window { space: services.memory.clone(), name, len, handler, placed: Mutex::new(None) }
    }

    /// Shows the registers at `base`, or nowhere.
    pub fn place(&self, base: Option<u64>) {
        self.place_sized(base, self.len);
    }

    /// As [`Window::place`], only the first `len` bytes.
    pub fn place_sized(&self, base: Option<u64>, len: u64) {
        let mut placed = self.placed.lock();
        if placed.map(|(_, at)| at) == base && len == self.len {
            return;
        }
        *placed = self.space.edit(|edit| {
            if let Some((id, _)) = placed.take() {
                edit.unmap(id);
            }
            base.map(|at| (edit.io(self.name, at, len.min(self.len), self.handler.clone()), at))
        });
    }
}
