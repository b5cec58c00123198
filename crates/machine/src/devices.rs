//! The machine's devices: created from models, kept in creation order, shown in the object
//! tree.

mod hotplug;

use base::{Mutex, Result, bail, fail};
use device::{Bus, BusKind, BusNumbers, Device, Hotplug, IrqLine, Model, Props, ResetKind, Services, Wiring};
use qom::{Object, PropertyInfo, Tree};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The parent type of memory balloons, of which a machine has one.
const BALLOON: &str = "virtio-balloon-pci-base";

/// One device of the machine.
pub struct Entry {
    /// Absolute path in the object tree.
    pub path: String,
    pub id: Option<String>,
    pub props: Props,
    /// Name of the bus it sits on.
    pub bus: Option<String>,
    pub device: Arc<dyn Device>,
    pub hotplugged: bool,
    /// Its wires to interrupt controllers.
    pub outputs: Vec<IrqLine>,
}

impl Entry {
    pub fn model(&self) -> &'static Model {
        self.device.model()
    }

    /// Where its inner part is ([`Device::inner_type`]).
    pub fn inner_path(&self) -> String {
        format!("{}/virtio-backend", self.path)
    }
}

/// All devices and buses of a machine and the models it knows.
pub struct Devices {
    models: Vec<&'static Model>,
    services: Services,
    tree: Arc<Tree>,
    globals: Vec<(String, String, String)>,
    entries: Mutex<Vec<Arc<Entry>>>,
    buses: Mutex<Vec<Arc<dyn Bus>>>,
    bus_numbers: BusNumbers,
    asked: Mutex<Vec<hotplug::Asked>>,
    /// Set once the board is complete: what comes later is hot-plugged.
    complete: AtomicBool,
}

impl Devices {
    pub(crate) fn new(
        models: Vec<&'static Model>,
        services: Services,
        tree: Arc<Tree>,
        globals: Vec<(String, String, String)>,
    ) -> Self {
        Devices {
            models,
            services,
            tree,
            globals,
            entries: Mutex::default(),
            buses: Mutex::default(),
            bus_numbers: BusNumbers::default(),
            asked: Mutex::default(),
            complete: AtomicBool::new(false),
        }
    }

    /// Every model this build knows, user-creatable or not.
    pub fn models(&self) -> &[&'static Model] {
        &self.models
    }

    pub fn model(&self, name: &str) -> Option<&'static Model> {
        self.models.iter().copied().find(|model| model.answers_to(name))
    }

    /// All devices in order of creation.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().clone()
    }

    pub fn buses(&self) -> Vec<Arc<dyn Bus>> {
        self.buses.lock().clone()
    }

    /// A device by its id or path.
    pub fn find(&self, id: &str) -> Option<Arc<Entry>> {
        self.entries.lock().iter().find(|e| e.id.as_deref() == Some(id) || e.path == id).cloned()
    }

    /// Calls `act` on each device in order of creation.
    pub fn each(&self, act: impl Fn(&dyn Device)) {
        for entry in self.entries() {
            act(&*entry.device);
        }
    }

    pub(crate) fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Takes in a device that the board made itself.
    pub(crate) fn adopt(&self, device: Arc<dyn Device>, bus: Option<&str>) -> Arc<Entry> {
        self.adopt_wired(device, bus, Vec::new())
    }

    /// [`Devices::adopt`] for a device at `path` with these properties.
    pub(crate) fn adopt_at(&self, path: &str, device: Arc<dyn Device>, props: Props) -> Arc<Entry> {
        self.enter(Entry {
            path: path.to_string(),
            id: None,
            props,
            bus: None,
            device,
            hotplugged: false,
            outputs: Vec::new(),
        })
    }

    /// [`Devices::adopt`] for a device with these interrupt outputs.
    pub(crate) fn adopt_wired(
        &self,
        device: Arc<dyn Device>,
        bus: Option<&str>,
        outputs: Vec<IrqLine>,
    ) -> Arc<Entry> {
        let path = self.tree.free_path("/machine/unattached", "device");
        self.enter(Entry {
            path,
            id: None,
            props: Props::default(),
            bus: bus.map(str::to_string),
            device,
            hotplugged: false,
            outputs,
        })
    }

    /// Takes in a bus that the board made itself and named `KIND.NUMBER`.
    pub(crate) fn add_bus(&self, bus: Arc<dyn Bus>) {
        if let Some((kind, _)) = bus.name().split_once('.') {
            self.bus_numbers.take(kind);
        }
        self.buses.lock().push(bus);
    }

    /// Creates a board device from its model on a given bus.
    pub(crate) fn make(
        &self,
        name: &str,
        bus: &Arc<dyn Bus>,
        given: Map<String, Value>,
    ) -> Result<Arc<Entry>> {
        let model = self.model(name).ok_or_else(|| fail!("unknown board device '{name}'"))?;
        let path = self.tree.free_path("/machine/unattached", "device");
        self.create(model, bus.clone(), None, path, &given)
    }

    /// Creates the devices of the command line.
    pub(crate) fn add_asked(&self, spec: &spec::MachineSpec) -> Result<()> {
        for (at, asked) in spec.devices.iter().enumerate() {
            let driver = asked.get("driver").and_then(Value::as_str).unwrap_or_default();
            self.add(asked).map_err(|failure| failure.within(spec.places.device(at, driver)))?;
        }
        Ok(())
    }

    /// Creates a device that the board has for a drive; keys as in [`Devices::add`].
    pub(crate) fn add_for_drive(&self, asked: &Map<String, Value>) -> Result<Arc<Entry>> {
        self.add_below("/machine/unattached", asked)
    }

    /// Creates a device as `-device` and `device_add` ask: `driver`, `id`, `bus` and the
    /// model's properties.
    pub fn add(&self, asked: &Map<String, Value>) -> Result<Arc<Entry>> {
        self.add_below("/machine/peripheral-anon", asked)
    }

    fn add_below(&self, nameless: &str, asked: &Map<String, Value>) -> Result<Arc<Entry>> {
        let mut given = asked.clone();
        let text = |value: Value| value.as_str().map(str::to_string).ok_or(());
        let driver = given.shift_remove("driver").ok_or_else(|| fail!("Parameter 'driver' is missing"))?;
        let driver =
            text(driver).map_err(|()| fail!("Invalid parameter type for 'driver', expected: string"))?;
        let id = given.shift_remove("id").map(text).transpose();
        let id = id.map_err(|()| fail!("Invalid parameter type for 'id', expected: string"))?;
        let bus = given.shift_remove("bus").map(text).transpose();
        let bus = bus.map_err(|()| fail!("Invalid parameter type for 'bus', expected: string"))?;
        let model = self.user_model(&driver)?;
        if model.parent == BALLOON && self.entries.lock().iter().any(|other| other.model().parent == BALLOON)
        {
            bail!("Only one balloon device is supported");
        }
        let hotplug = self.complete.load(Ordering::Acquire);
        if hotplug && !model.hotpluggable {
            bail!("Parameter 'driver' expects a pluggable device type");
        }
        if let Some(id) = &id {
            if !spec::id_wellformed(id) {
                bail!("Parameter 'id' expects an identifier");
            }
            if self.find(id).is_some() {
                bail!("Duplicate ID '{id}' for device");
            }
        }
        let bus = self.choose_bus(model, bus.as_deref())?;
        if hotplug && bus.hotplug() == Hotplug::No {
            bail!("Bus '{}' does not support hotplugging", bus.name());
        }
        let path = match &id {
            Some(id) => format!("/machine/peripheral/{id}"),
            None => self.tree.free_path(nameless, "device"),
        };
        self.create(model, bus, id, path, &given)
    }

    /// The model behind a `driver=` name, or the customary error.
    pub fn user_model(&self, driver: &str) -> Result<&'static Model> {
        let model = self.model(driver).ok_or_else(|| {
            let failure = fail!("'{driver}' is not a valid device model name");
            let names = self.models.iter().map(|model| model.name);
            match spec::nearest(driver, names) {
                Some(near) => failure.hint(format!("the nearest model is '{near}'")),
                None => failure,
            }
        })?;
        if !model.user_creatable {
            bail!("Parameter 'driver' expects a pluggable device type");
        }
        Ok(model)
    }

    fn choose_bus(&self, model: &Model, wanted: Option<&str>) -> Result<Arc<dyn Bus>> {
        let buses = self.buses();
        if let Some(name) = wanted {
            let bus = buses.iter().find(|bus| bus.name() == name).or_else(|| {
                // `bus=ID` means the first bus of that device.
                self.find(name).and_then(|entry| {
                    let own = entry.device.buses();
                    let first = own.first()?.name();
                    buses.iter().find(|bus| bus.name() == first)
                })
            });
            let bus = bus.ok_or_else(|| fail!("Bus '{name}' not found"))?;
            if bus.kind() != model.bus {
                bail!("Device '{}' can't go on {} bus", model.name, bus.kind().name());
            }
            if is_full(&**bus) {
                bail!("Bus '{name}' is full");
            }
            return Ok(bus.clone());
        }
        let fitting: Vec<_> = buses.iter().filter(|bus| bus.kind() == model.bus).collect();
        let free = fitting.iter().find(|bus| !bus.is_full());
        match free.or(fitting.first()).filter(|bus| !is_full(&****bus)) {
            Some(bus) => Ok((*bus).clone()),
            None => bail!("No '{}' bus found for device '{}'", model.bus.name(), model.name),
        }
    }

    fn create(
        &self,
        model: &'static Model,
        bus: Arc<dyn Bus>,
        id: Option<String>,
        path: String,
        given: &Map<String, Value>,
    ) -> Result<Arc<Entry>> {
        let mut all = Map::new();
        let mut taken = None;
        for (driver, property, value) in &self.globals {
            let names_it = model.answers_to(driver) || driver == model.parent;
            if names_it && model.property(property).is_some() {
                if let Some(drive) =
                    given.get("drive").and_then(Value::as_str).filter(|_| property == "drive")
                {
                    bail!("-global {driver}.drive=... conflicts with drive={drive}");
                }
                if property == "drive" && self.services.backends.is_taken(value) {
                    taken = Some(format!("can't apply global {driver}.{property}={value}"));
                }
                all.insert(property.clone(), value.as_str().into());
            }
        }
        all.extend(given.clone());
        let props = Props::check(model, &all)?;
        self.check_boot_index(&props)?;
        let hotplugged = self.complete.load(Ordering::Acquire);
        let mut wiring = Wiring {
            services: &self.services,
            bus: bus.clone(),
            bus_numbers: &self.bus_numbers,
            id: id.as_deref(),
            qom_path: path.clone(),
            hotplugged,
            outputs: Default::default(),
        };
        let device = (model.create)(&props, &mut wiring).map_err(|why| match taken {
            Some(global) => why.within(global),
            None => why,
        })?;
        let outputs = std::mem::take(&mut *wiring.outputs.lock());
        if hotplugged {
            device.reset(ResetKind::Cold);
        }
        if let Some(function) = device.pci() {
            function.core().attach(device.clone());
        }
        let entry = self.enter(Entry { path, id, props, bus: Some(bus.name()), device, hotplugged, outputs });
        if hotplugged {
            self.announce(&entry);
        }
        Ok(entry)
    }

    fn check_boot_index(&self, props: &Props) -> Result<()> {
        let names = ["bootindex", "bootindexA", "bootindexB"];
        let indexes =
            |props: &Props| names.into_iter().filter_map(|name| props.opt_u64(name)).collect::<Vec<_>>();
        let entries = self.entries();
        let mut used: Vec<u64> = entries.iter().flat_map(|other| indexes(&other.props)).collect();
        for index in indexes(props) {
            if used.contains(&index) {
                bail!("The bootindex {index} has already been used");
            }
            used.push(index);
        }
        Ok(())
    }

    fn enter(&self, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        self.tree.insert(&entry.path, Arc::new(DeviceObject(entry.clone())));
        if entry.device.inner_type().is_some() {
            self.tree.insert(&entry.inner_path(), Arc::new(InnerObject(DeviceObject(entry.clone()))));
        }
        for bus in entry.device.buses() {
            let path = format!("{}/{}", entry.path, bus.name());
            self.tree.insert(&path, Arc::new(BusObject(bus.clone())));
            self.buses.lock().push(bus);
        }
        self.entries.lock().push(entry.clone());
        entry
    }

    /// Fails for a global whose driver does not have the property.
    pub(crate) fn check_globals(&self, places: &[String]) -> Result<()> {
        for (at, (driver, property, _)) in self.globals.iter().enumerate() {
            let mut named = self.named(driver).peekable();
            if named.peek().is_some() && named.all(|model| model.property(property).is_none()) {
                let failure = fail!("Property '{driver}.{property}' not found");
                return Err(places.get(at).map_or(failure.clone(), |place| failure.within(place)));
            }
        }
        Ok(())
    }

    /// The globals of drivers that this build does not have, as `driver.property`.
    pub fn foreign_globals(&self) -> Vec<String> {
        let foreign = self.globals.iter().filter(|(driver, ..)| self.named(driver).next().is_none());
        foreign.map(|(driver, property, _)| format!("{driver}.{property}")).collect()
    }

    /// The models that a global for `driver` concerns.
    fn named<'a>(&'a self, driver: &'a str) -> impl Iterator<Item = &'static Model> + 'a {
        self.models.iter().copied().filter(move |m| m.answers_to(driver) || m.parent == driver)
    }
}

/// A device in the object tree.
struct DeviceObject(Arc<Entry>);

impl Object for DeviceObject {
    fn type_name(&self) -> String {
        self.0.model().name.to_string()
    }

    fn properties(&self) -> Vec<PropertyInfo> {
        let mut all: Vec<_> = ["realized", "hotplugged", "hotpluggable"]
            .into_iter()
            .map(|name| PropertyInfo::new(name, "bool"))
            .collect();
        all.push(PropertyInfo::new("type", "string"));
        if self.0.bus.is_some() {
            all.push(PropertyInfo::new("parent_bus", "link<bus>"));
        }
        all.extend(self.0.model().all_properties().map(|p| PropertyInfo::new(p.name, p.type_name())));
        let dynamic = self.0.device.dynamic_properties();
        all.extend(dynamic.iter().map(|(name, kind)| PropertyInfo::new(*name, *kind)));
        all
    }

    fn get(&self, name: &str) -> Result<Value> {
        Ok(match name {
            "type" => self.type_name().into(),
            "realized" => true.into(),
            "hotplugged" => self.0.hotplugged.into(),
            "hotpluggable" => self.0.model().hotpluggable.into(),
            "parent_bus" => self.0.bus.clone().unwrap_or_default().into(),
            _ => {
                if let Some(value) = self.0.device.dynamic_property(name) {
                    return Ok(value);
                }
                let property = self.0.model().property(name).ok_or_else(|| Tree::no_property(name))?;
                match self.0.props.get(name) {
                    Some(value) => value.clone(),
                    None if matches!(property.type_name().as_str(), "str") => "".into(),
                    None => Value::from(0),
                }
            }
        })
    }

    fn set(&self, name: &str, value: &Value) -> Result<()> {
        if let Some(result) = self.0.device.set_dynamic_property(name, value) {
            return result;
        }
        if self.0.model().property(name).is_some() {
            let who = match &self.0.id {
                Some(id) => format!("device '{id}'"),
                None => "anonymous device".into(),
            };
            bail!(
                "Attempt to set property '{name}' on {who} (type '{}') after it was realized",
                self.0.model().name
            );
        }
        if self.properties().iter().any(|property| property.name == name) {
            return Err(Tree::not_permitted());
        }
        Err(Tree::no_property(name))
    }
}

/// The inner part of a device, with the properties of the whole.
struct InnerObject(DeviceObject);

impl Object for InnerObject {
    fn type_name(&self) -> String {
        self.0.0.device.inner_type().unwrap_or_default().into()
    }

    fn properties(&self) -> Vec<PropertyInfo> {
        self.0.properties()
    }

    fn get(&self, name: &str) -> Result<Value> {
        if name == "type" { Ok(self.type_name().into()) } else { self.0.get(name) }
    }

    fn set(&self, name: &str, value: &Value) -> Result<()> {
        self.0.set(name, value)
    }
}

/// PCI functions find out themselves that there is no place: their customary message is another.
fn is_full(bus: &dyn Bus) -> bool {
    // These say themselves which place there is not.
    !matches!(bus.kind(), BusKind::Pci | BusKind::Floppy) && bus.is_full()
}

/// A bus in the object tree.
struct BusObject(Arc<dyn Bus>);

impl Object for BusObject {
    fn type_name(&self) -> String {
        self.0.kind().name().to_string()
    }

    fn properties(&self) -> Vec<PropertyInfo> {
        vec![PropertyInfo::new("type", "string"), PropertyInfo::new("realized", "bool")]
    }

    fn get(&self, name: &str) -> Result<Value> {
        match name {
            "type" => Ok(self.type_name().into()),
            "realized" => Ok(true.into()),
            _ => Err(Tree::no_property(name)),
        }
    }
}
