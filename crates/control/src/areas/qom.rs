use super::types;
use crate::{Call, Routes};
use base::{Failure, Result, fail};
use block::{IoThread, PollLimits};
use cpu::models::{Property, Request};
use schema::introspect::CommandLineParameterType;
use schema::qom::*;
use serde_json::Value;

pub fn route(routes: &mut Routes) {
    routes.add(qom_list);
    routes.add(qom_get);
    routes.add(qom_set);
    routes.add(qom_list_types);
    routes.add(qom_list_properties);
    routes.add(device_list_properties);
    routes.add(device_add);
    routes.add(device_del);
    routes.add(object_add);
    routes.add(object_del);
    routes.add(query_iothreads);
}

fn property(name: String, kind: String) -> ObjectPropertyInfo {
    ObjectPropertyInfo { name, kind, description: None, default_value: None }
}

async fn qom_list(call: Call, command: QomList) -> Result<Vec<ObjectPropertyInfo>> {
    let list = call.world().host.tree.list(&command.path)?;
    Ok(list.into_iter().map(|info| property(info.name, info.kind)).collect())
}

async fn qom_get(call: Call, command: QomGet) -> Result<Value> {
    call.world().host.tree.get(&command.path, &command.property)
}

/// What `drive` of a device means now: it alone of what a device was made with may change.
fn drive(call: &Call, path: &str, property: &str) -> Option<block::Backend> {
    let (at, _) = call.world().host.tree.resolve(path).ok().filter(|_| property == "drive")?;
    call.world().drive_of_device(&at).ok()
}

async fn qom_set(call: Call, command: QomSet) -> Result<()> {
    let Some(drive) = drive(&call, &command.path, &command.property) else {
        return call.world().host.tree.set(&command.path, &command.property, &command.value);
    };
    let name = command.value.as_str();
    let name = name.ok_or_else(|| fail!("Invalid parameter type for 'drive', expected: string"))?;
    let node = call.world().host.graph.lookup(None, Some(name))?;
    super::blockdev::there(&call, async move { drive.exchange(&node).await }).await
}

async fn qom_list_types(call: Call, command: QomListTypes) -> Result<Vec<ObjectTypeInfo>> {
    let types = types::registry(call.machine());
    let list = types.list(command.implements.as_deref(), command.with_abstract.unwrap_or(false));
    Ok(list
        .into_iter()
        .map(|info| ObjectTypeInfo {
            name: info.name.clone(),
            is_abstract: info.is_abstract.then_some(true),
            parent: info.parent.clone(),
        })
        .collect())
}

/// Properties of a table of models or object types.
fn table<'a>(properties: impl Iterator<Item = &'a device::Property>) -> Vec<ObjectPropertyInfo> {
    properties
        .map(|row| ObjectPropertyInfo {
            description: (!row.help.is_empty()).then(|| row.help.to_string()),
            default_value: row.default.and_then(|text| row.canonical(&text.into(), "").ok()),
            ..property(row.name.into(), row.type_name())
        })
        .collect()
}

async fn device_list_properties(
    call: Call,
    command: DeviceListProperties,
) -> Result<Vec<ObjectPropertyInfo>> {
    let name = command.typename;
    if let Some(model) = call.machine().devices.models().iter().find(|model| model.name == name) {
        return Ok(table(model.all_properties()));
    }
    let types = types::registry(call.machine());
    match types.get(&name) {
        None => Err(Failure::device_not_found(&name)),
        Some(_) if types.is_a(&name, "device") => Ok(Vec::new()),
        Some(_) => Err(Failure::expects("typename", "device")),
    }
}

async fn qom_list_properties(call: Call, command: QomListProperties) -> Result<Vec<ObjectPropertyInfo>> {
    let name = command.typename;
    let mut list = vec![property("type".into(), "string".into())];
    if let Some(kind) = machine::Objects::types().iter().find(|kind| kind.name == name) {
        list.extend(table(kind.properties.iter()));
        return Ok(list);
    }
    if let Some(model) = call.machine().devices.models().iter().find(|model| model.name == name) {
        list.extend(
            ["realized", "hotplugged", "hotpluggable"].map(|name| property(name.into(), "bool".into())),
        );
        list.push(property("parent_bus".into(), "link<bus>".into()));
        list.extend(table(model.all_properties()));
        return Ok(list);
    }
    if let Some(model) = name.strip_suffix("-x86_64-cpu") {
        list.extend(cpu_properties(&call, model)?);
        return Ok(list);
    }
    let types = types::registry(call.machine());
    if types.get(&name).is_none() {
        return Err(Failure::device_not_found(&name));
    }
    if types.is_a(&name, "machine") {
        list.extend(machine_properties(&call));
    }
    Ok(list)
}

/// What `-cpu MODEL,key=value` takes, and what a CPU tells of itself.
fn cpu_properties(call: &Call, model: &str) -> Result<Vec<ObjectPropertyInfo>> {
    let type_name = || Failure::device_not_found(format!("{model}-x86_64-cpu"));
    let request = Request::parse(model).map_err(|_| type_name())?;
    let offer = machine::engines::offer(call.machine().engine.name());
    let resolved = request.resolve(&offer).map_err(|_| type_name())?;
    let mut list: Vec<_> = ["enforce", "check", "migratable", "host-phys-bits", "host-cache-info", "kvm"]
        .map(|name| property(name.into(), "bool".into()))
        .into();
    let places = ["socket-id", "die-id", "core-id", "thread-id", "apic-id"];
    list.extend(places.map(|name| property(name.into(), "int".into())));
    list.push(property("unavailable-features".into(), "strList".into()));
    list.extend(resolved.properties().into_iter().map(|(name, value)| {
        let kind = match value {
            Property::Bool(_) => "bool",
            Property::Number(_) => "int",
            Property::Text(_) => "string",
        };
        property(name.into(), kind.into())
    }));
    Ok(list)
}

/// The keys of `-machine`.
fn machine_properties(call: &Call) -> Vec<ObjectPropertyInfo> {
    let options = call.world().options.iter().filter(|option| option.option == "machine");
    options
        .flat_map(|option| &option.parameters)
        .filter(|key| !["type", "accel"].contains(&key.name.as_str()))
        .map(|key| {
            let kind = match key.kind {
                CommandLineParameterType::Boolean => "bool",
                CommandLineParameterType::Number => "int",
                CommandLineParameterType::Size => "size",
                CommandLineParameterType::String => "string",
            };
            ObjectPropertyInfo { description: key.help.clone(), ..property(key.name.clone(), kind.into()) }
        })
        .collect()
}

async fn device_add(call: Call, command: DeviceAdd) -> Result<()> {
    let mut asked = command.properties;
    asked.insert("driver".into(), command.driver.into());
    for (name, value) in [("bus", command.bus), ("id", command.id)] {
        if let Some(value) = value {
            asked.insert(name.into(), value.into());
        }
    }
    call.machine().devices.add(&asked).map(drop)
}

async fn device_del(call: Call, command: DeviceDel) -> Result<()> {
    call.machine().devices.unplug(&command.id)
}

async fn object_add(call: Call, command: ObjectAdd) -> Result<()> {
    let ObjectAdd { kind, id, props, properties } = command;
    let mut asked = qapi::Map::new();
    asked.insert("qom-type".into(), kind.qom_type.into());
    asked.insert("id".into(), id.into());
    asked.extend(properties);
    match props {
        None => {}
        Some(Value::Object(props)) => asked.extend(props),
        Some(_) => return Err(fail!("Invalid parameter type for 'props', expected: dict")),
    }
    call.world().host.objects.add(&asked, true)
}

async fn object_del(call: Call, command: ObjectDel) -> Result<()> {
    call.world().host.objects.remove(&command.id)
}

async fn query_iothreads(call: Call, _: QueryIothreads) -> Result<Vec<IothreadInfo>> {
    let objects = &call.world().host.objects;
    let threads = objects.list().into_iter().filter(|(_, kind)| *kind == "iothread");
    Ok(threads
        .filter_map(|(id, _)| {
            let thread = objects.find(&id)?.downcast::<IoThread>().ok()?;
            let PollLimits { most, grow, shrink } = thread.polling();
            Some(IothreadInfo {
                id,
                thread_id: thread.thread_id().into(),
                poll_max_ns: most as i64,
                poll_grow: grow as i64,
                poll_shrink: shrink as i64,
            })
        })
        .collect())
}
