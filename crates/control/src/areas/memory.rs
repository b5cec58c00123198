use crate::{Call, Routes};
use base::{Failure, Result, fail};
use schema::memory::*;
use serde_json::Value;
use std::io::Write;

/// Bytes read and written at a time.
const CHUNK: u64 = 64 << 10;

pub fn route(routes: &mut Routes) {
    routes.add(memsave);
    routes.add(pmemsave);
    routes.add(query_memory_size_summary);
    routes.add(query_memdev);
    routes.add(query_memory_devices);
    routes.add(balloon);
    routes.add(query_balloon);
}

async fn balloon(call: Call, command: Balloon) -> Result<()> {
    // Without a balloon no value is right.
    call.machine().balloon_actual()?;
    match u64::try_from(command.value) {
        Ok(target) if target > 0 => call.machine().set_balloon(target),
        _ => Err(Failure::expects("value", "a size")),
    }
}

async fn query_balloon(call: Call, _: QueryBalloon) -> Result<BalloonInfo> {
    Ok(BalloonInfo { actual: call.machine().balloon_actual()? as i64 })
}

async fn memsave(call: Call, command: Memsave) -> Result<()> {
    let Memsave { val, size, filename, cpu_index } = command;
    let cpu = usize::try_from(cpu_index.unwrap_or(0)).ok();
    let cpu = cpu.filter(|&cpu| call.machine().vcpu(cpu).is_some());
    let cpu = cpu.ok_or_else(|| Failure::expects("cpu-index", "a CPU number"))?;
    let machine = call.machine().clone();
    save(&call, &filename, val, size, move |at, len| {
        let bytes = machine.read_linear(cpu, at, len)?;
        bytes.ok_or_else(|| fail!("Invalid addr 0x{val:016x}/size {size} specified"))
    })
    .await
}

async fn pmemsave(call: Call, command: Pmemsave) -> Result<()> {
    let Pmemsave { val, size, filename } = command;
    let space = call.machine().services.memory.clone();
    save(&call, &filename, val, size, move |at, len| {
        let mut bytes = vec![0; len];
        space.read(at, &mut bytes);
        Ok(bytes)
    })
    .await
}

/// Writes `size` bytes from `start` on, got by `read`, to a file; off the main thread.
async fn save(
    call: &Call,
    filename: &str,
    start: i64,
    size: i64,
    read: impl Fn(u64, usize) -> Result<Vec<u8>> + Send + 'static,
) -> Result<()> {
    let size = u64::try_from(size).map_err(|_| Failure::expects("size", "a non-negative number"))?;
    let mut file = call.world().create_file(filename)?;
    let work = move || -> Result<()> {
        let mut done = 0;
        while done < size {
            let at = (start as u64).wrapping_add(done);
            // Pieces end at page borders, so that an unmapped page loses nothing before it.
            let step = (size - done).min(CHUNK - at % 4096);
            let bytes = read(at, step as usize)?;
            file.write_all(&bytes).map_err(|_| fail!("An IO error has occurred"))?;
            done += step;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| fail!("saving memory: {error}"))?
}

async fn query_memory_size_summary(call: Call, _: QueryMemorySizeSummary) -> Result<MemoryInfo> {
    let plugged = dimms(&call).iter().map(|MemoryDeviceInfo::Dimm(dimm)| dimm.size as u64).sum();
    Ok(MemoryInfo { base_memory: call.machine().memory.size(), plugged_memory: Some(plugged) })
}

async fn query_memdev(call: Call, _: QueryMemdev) -> Result<Vec<Memdev>> {
    let objects = call.world().host.objects.list();
    let backends = objects.into_iter().filter(|(_, kind)| kind.starts_with("memory-backend-"));
    backends.map(|(id, _)| memdev(&call, id)).collect()
}

fn memdev(call: &Call, id: String) -> Result<Memdev> {
    let path = format!("/objects/{id}");
    let get = |name: &str| call.world().host.tree.get(&path, name).unwrap_or_default();
    let flag = |name: &str| get(name).as_bool().unwrap_or_default();
    let nodes = get("host-nodes").as_array().cloned().unwrap_or_default();
    let policy = get("policy").as_str().and_then(HostMemPolicy::from_name);
    Ok(Memdev {
        size: get("size").as_u64().unwrap_or_default(),
        merge: flag("merge"),
        dump: flag("dump"),
        prealloc: flag("prealloc"),
        share: flag("share"),
        reserve: get("reserve").as_bool(),
        host_nodes: nodes.iter().filter_map(Value::as_u64).map(|node| node as u16).collect(),
        policy: policy.unwrap_or(HostMemPolicy::Default),
        id: Some(id),
    })
}

async fn query_memory_devices(call: Call, _: QueryMemoryDevices) -> Result<Vec<MemoryDeviceInfo>> {
    Ok(dimms(&call))
}

fn dimms(call: &Call) -> Vec<MemoryDeviceInfo> {
    let entries = call.machine().devices.entries().into_iter();
    let dimms = entries.filter(|entry| entry.model().name == "pc-dimm");
    dimms
        .map(|entry| {
            let get = |name: &str| call.world().host.tree.get(&entry.path, name).unwrap_or_default();
            let number = |name: &str| get(name).as_i64().unwrap_or_default();
            MemoryDeviceInfo::Dimm(PcDimmDeviceInfo {
                id: entry.id.clone(),
                addr: number("addr"),
                size: number("size"),
                slot: number("slot"),
                node: number("node"),
                memdev: get("memdev").as_str().unwrap_or_default().to_string(),
                hotplugged: entry.hotplugged,
                hotpluggable: entry.model().hotpluggable,
            })
        })
        .collect()
}
