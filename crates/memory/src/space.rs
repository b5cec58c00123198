use crate::view::{FlatRange, FlatView, Target};
use crate::{Gpa, Handler, RamBlock};
use arc_swap::{ArcSwap, Guard};
use base::Mutex;
use base::rank::ranks;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which of a machine's two spaces this is: it decides what unassigned addresses read as
/// and where addresses end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpaceKind {
    /// Physical memory; unassigned addresses read as zero.
    #[default]
    Memory,
    /// I/O ports 0 to 0xffff; unassigned ports read as all ones.
    Port,
}

/// Names a mapping in later edits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MappingId(u64);

struct Mapping {
    start: Gpa,
    len: u64,
    priority: i32,
    enabled: bool,
    target: Target,
    name: Arc<str>,
}

type Listener = Arc<dyn Fn(&Arc<FlatView>) + Send + Sync>;

#[derive(Default)]
struct Map {
    mappings: BTreeMap<MappingId, Mapping>,
    next: u64,
    listeners: Vec<Listener>,
}

/// Physical memory or ports: mappings with priorities (higher wins, of equals the newer),
/// changed in transactions and published as a [`FlatView`].
pub struct AddressSpace {
    kind: SpaceKind,
    map: Mutex<Map>,
    view: ArcSwap<FlatView>,
    generation: AtomicU64,
}

/// A transaction on an [`AddressSpace`]; nothing is visible before it ends.
pub struct Edit<'a> {
    map: &'a mut Map,
}

impl AddressSpace {
    pub fn new(kind: SpaceKind) -> Arc<Self> {
        let unassigned = if kind == SpaceKind::Port { u64::MAX } else { 0 };
        Arc::new(AddressSpace {
            kind,
            map: Mutex::ranked(ranks::MEMORY, Map::default()),
            view: ArcSwap::from_pointee(FlatView { kind, unassigned, ..FlatView::default() }),
            generation: AtomicU64::new(0),
        })
    }

    pub fn kind(&self) -> SpaceKind {
        self.kind
    }

    /// The present view (a cheap guard; do not hold it for long).
    #[inline]
    pub fn view(&self) -> Guard<Arc<FlatView>> {
        self.view.load()
    }

    /// The present view, to keep.
    pub fn snapshot(&self) -> Arc<FlatView> {
        self.view.load_full()
    }

    /// Number of publications so far; see [`FlatView::generation`].
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Runs one transaction and publishes the new view, then calls the listeners (with no
    /// lock held).
    pub fn edit<R>(&self, change: impl FnOnce(&mut Edit<'_>) -> R) -> R {
        let mut map = self.map.lock();
        let result = change(&mut Edit { map: &mut map });
        let generation = self.generation.load(Ordering::Acquire) + 1;
        let view = Arc::new(FlatView {
            ranges: flatten(&map.mappings, self.kind),
            kind: self.kind,
            unassigned: self.view.load().unassigned,
            generation,
            hint: Default::default(),
        });
        self.view.store(view.clone());
        self.generation.store(generation, Ordering::Release);
        let listeners = map.listeners.clone();
        drop(map);
        for listener in listeners {
            listener(&view);
        }
        result
    }

    /// Calls `listener` after every publication, and once now.
    pub fn on_change(&self, listener: impl Fn(&Arc<FlatView>) + Send + Sync + 'static) {
        let listener: Listener = Arc::new(listener);
        self.map.lock().listeners.push(listener.clone());
        listener(&self.snapshot());
    }

    /// See [`FlatView::load`].
    pub fn load(&self, address: Gpa, size: u8) -> u64 {
        self.view().load(address, size)
    }

    /// See [`FlatView::store`].
    pub fn store(&self, address: Gpa, size: u8, value: u64) {
        // The handler may edit this very space: hold the view by reference count.
        self.snapshot().store(address, size, value);
    }

    /// See [`FlatView::read`].
    pub fn read(&self, address: Gpa, to: &mut [u8]) {
        self.snapshot().read(address, to);
    }

    /// See [`FlatView::write`].
    pub fn write(&self, address: Gpa, from: &[u8]) {
        self.snapshot().write(address, from);
    }
}

impl Edit<'_> {
    /// Maps `len` bytes at `start`, enabled.
    pub fn map(&mut self, name: &str, start: Gpa, len: u64, priority: i32, target: Target) -> MappingId {
        let id = MappingId(self.map.next);
        self.map.next += 1;
        let mapping = Mapping { start, len, priority, enabled: true, target, name: name.into() };
        self.map.mappings.insert(id, mapping);
        id
    }

    /// Maps a whole RAM block.
    pub fn ram(&mut self, block: RamBlock, start: Gpa) -> MappingId {
        self.map(block.name(), start, block.len(), 0, Target::Ram { block, offset: 0 })
    }

    /// Maps a device's registers (priority 1, above RAM).
    pub fn io(&mut self, name: &str, start: Gpa, len: u64, handler: Arc<dyn Handler>) -> MappingId {
        self.map(name, start, len, 1, Target::Io { handler, offset: 0 })
    }

    pub fn unmap(&mut self, id: MappingId) {
        self.map.mappings.remove(&id);
    }

    pub fn set_enabled(&mut self, id: MappingId, enabled: bool) {
        if let Some(mapping) = self.map.mappings.get_mut(&id) {
            mapping.enabled = enabled;
        }
    }

    pub fn move_to(&mut self, id: MappingId, start: Gpa) {
        if let Some(mapping) = self.map.mappings.get_mut(&id) {
            mapping.start = start;
        }
    }

    /// Replaces what a mapping leads to (PAM, flash modes).
    pub fn retarget(&mut self, id: MappingId, target: Target) {
        if let Some(mapping) = self.map.mappings.get_mut(&id) {
            mapping.target = target;
        }
    }

    /// The handler type erased helper for [`Target::Io`] at offset 0.
    pub fn io_target(handler: Arc<dyn Handler>) -> Target {
        Target::Io { handler, offset: 0 }
    }
}

fn flatten(mappings: &BTreeMap<MappingId, Mapping>, kind: SpaceKind) -> Vec<FlatRange> {
    let end = if kind == SpaceKind::Port { 0xffff } else { u64::MAX };
    // Highest priority first, newest first among equals: each fills what is still free.
    let mut order: Vec<_> =
        mappings.iter().filter(|(_, m)| m.enabled && m.len > 0 && m.start <= end).collect();
    order.sort_by_key(|&(id, m)| (std::cmp::Reverse(m.priority), std::cmp::Reverse(*id)));
    let mut taken: BTreeMap<Gpa, FlatRange> = BTreeMap::new();
    for (_, mapping) in order {
        let last = mapping.start.saturating_add(mapping.len - 1).min(end);
        let mut at = mapping.start;
        loop {
            // Skip what is taken at `at`.
            if let Some((_, range)) = taken.range(..=at).next_back()
                && range.last >= at
            {
                if range.last >= last {
                    break;
                }
                at = range.last + 1;
                continue;
            }
            let stop = taken.range(at..).next().map_or(last, |(&start, _)| last.min(start.saturating_sub(1)));
            let target = mapping.target.advanced(at - mapping.start);
            taken.insert(at, FlatRange { start: at, last: stop, target, name: mapping.name.clone() });
            if stop >= last {
                break;
            }
            at = stop + 1;
        }
    }
    taken.into_values().collect()
}
