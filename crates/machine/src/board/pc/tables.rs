//! What the user said about tables that the guest sees: `-numa`, `-smbios`, `-fw_cfg`.

use super::Platform;
use base::{MIB, Result, bail, fail};
use firmware::{FwCfg, NumaNode, rom, smbios};
use serde_json::Value;
use spec::Tree;
use spec::machine::MachineSpec;
use spec::size::parse_size;
use std::path::Path;

const MAX_NODES: usize = 128;
/// Largest item that `-fw_cfg file=` takes.
const MAX_ITEM: u64 = 256 * MIB;

/// All values of a key: a string, or a list where it was given several times.
fn values<'a>(tree: &'a Tree, key: &str) -> Vec<&'a str> {
    match tree.get(key) {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn text<'a>(tree: &'a Tree, key: &str) -> Option<&'a str> {
    values(tree, key).last().copied()
}

fn number(tree: &Tree, key: &str) -> Result<Option<u32>> {
    let parse = |text: &str| text.parse().map_err(|_| base::Failure::expects(key, "a number"));
    text(tree, key).map(parse).transpose()
}

fn only(tree: &Tree, keys: &[&str]) -> Result<()> {
    match tree.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(fail!("Invalid parameter '{key}'")),
        None => Ok(()),
    }
}

/// Nodes, their memory and distances, and which CPUs belong to them.
pub(super) fn numa(spec: &MachineSpec, platform: &mut Platform) -> Result<()> {
    if spec.numa.is_empty() {
        return Ok(());
    }
    let mut nodes: Vec<Option<(NumaNode, Option<u64>)>> = Vec::new();
    let mut placed = vec![None; platform.cpus.len()];
    for tree in spec.numa.iter().filter(|tree| text(tree, "type") == Some("node")) {
        node(spec, tree, &mut nodes, &mut placed)?;
    }
    let count = nodes.len();
    if count == 0 || nodes.iter().any(Option::is_none) {
        bail!("numa: Node ID missing: {}", nodes.iter().position(Option::is_none).unwrap_or(0));
    }
    let (mut records, given): (Vec<NumaNode>, Vec<Option<u64>>) = nodes.into_iter().flatten().unzip();
    share_memory(&mut records, &given, platform)?;
    for tree in &spec.numa {
        match text(tree, "type") {
            Some("node") => {}
            Some("dist") => distance(tree, &mut records)?,
            Some("cpu") => cpu(spec, tree, count, &mut placed)?,
            other => bail!("Invalid parameter type '{}', expected: node, dist, cpu", other.unwrap_or("")),
        }
    }
    let places = crate::cpus::places(&spec.smp);
    for (index, slot) in platform.cpus.iter_mut().enumerate() {
        // Without a word about it, sockets take turns.
        let turn = places.get(index).map_or(0, |place| place.socket as usize % count);
        slot.node = placed[index].unwrap_or(turn as u32);
    }
    platform.numa = records;
    Ok(())
}

type Nodes = Vec<Option<(NumaNode, Option<u64>)>>;

fn node(spec: &MachineSpec, tree: &Tree, nodes: &mut Nodes, placed: &mut [Option<u32>]) -> Result<()> {
    only(tree, &["type", "nodeid", "cpus", "mem", "memdev"])?;
    let id = number(tree, "nodeid")?.map_or(nodes.len(), |id| id as usize);
    if id >= MAX_NODES {
        bail!("Max number of NUMA nodes reached: {id}");
    }
    if nodes.get(id).is_some_and(Option::is_some) {
        bail!("Duplicate NUMA nodeid: {id}");
    }
    nodes.resize(nodes.len().max(id + 1), None);
    let memory = match (text(tree, "mem"), text(tree, "memdev")) {
        (Some(_), Some(_)) => bail!("cannot specify both mem= and memdev="),
        (Some(size), None) => {
            Some(parse_size(size, MIB).ok_or_else(|| base::Failure::expects("mem", "a size"))?)
        }
        (None, Some(object)) => Some(backend_size(spec, object)?),
        (None, None) => None,
    };
    nodes[id] = Some((NumaNode::default(), memory));
    for range in values(tree, "cpus").iter().flat_map(|list| list.split(':')) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let parse = |text: &str| text.parse::<usize>().map_err(|_| fail!("Invalid CPU range '{range}'"));
        for index in parse(first)?..=parse(last)? {
            let slot = placed.get_mut(index).ok_or_else(|| {
                fail!("CPU index ({index}) should be smaller than maxcpus ({})", spec.smp.maxcpus)
            })?;
            if slot.is_some_and(|other| other as usize != id) {
                bail!("CPU {index} is already in another NUMA node");
            }
            *slot = Some(id as u32);
        }
    }
    Ok(())
}

/// The size of a memory back end that `-object` made.
fn backend_size(spec: &MachineSpec, id: &str) -> Result<u64> {
    let object = spec.objects.iter().map(|object| &object.tree).find(|object| text(object, "id") == Some(id));
    let object = object.ok_or_else(|| fail!("memdev={id} not found"))?;
    match object.get("size") {
        Some(Value::String(size)) => {
            parse_size(size, 1).ok_or_else(|| base::Failure::expects("size", "a size"))
        }
        Some(Value::Number(size)) => size.as_u64().ok_or_else(|| base::Failure::expects("size", "a size")),
        _ => bail!("memdev={id} is not a memory back end"),
    }
}

/// Gives nodes what was said, or all of them the same.
fn share_memory(nodes: &mut [NumaNode], given: &[Option<u64>], platform: &Platform) -> Result<()> {
    let ram = platform.ram_low + platform.ram_high;
    if given.iter().all(Option::is_none) {
        let each = ram / nodes.len() as u64 & !(8 * MIB - 1);
        let last = nodes.len() - 1;
        let shares = nodes.iter_mut().enumerate();
        shares.for_each(|(i, n)| n.memory = if i == last { ram - each * last as u64 } else { each });
        return Ok(());
    }
    let mut total = 0u64;
    for (node, given) in nodes.iter_mut().zip(given) {
        node.memory = given.unwrap_or(0);
        total = total.saturating_add(node.memory);
    }
    if total != ram {
        bail!("total memory for NUMA nodes (0x{total:x}) should equal RAM size (0x{ram:x})");
    }
    Ok(())
}

/// `dist`: also the way back, unless that is given by itself.
fn distance(tree: &Tree, nodes: &mut [NumaNode]) -> Result<()> {
    only(tree, &["type", "src", "dst", "val"])?;
    let count = nodes.len();
    let need = |key: &str| number(tree, key)?.ok_or_else(|| fail!("Parameter '{key}' is missing"));
    let (from, to, value) = (need("src")? as usize, need("dst")? as usize, need("val")?);
    if from >= count || to >= count {
        bail!("Invalid node {}, max possible could be {}", from.max(to), count - 1);
    }
    let value = match u8::try_from(value) {
        Ok(10) if from != to => bail!("Local distance of node {from} should be 10."),
        Ok(value) if value >= 10 => value,
        _ => bail!("NUMA distance ({value}) is invalid, it shouldn't be less than 10."),
    };
    if from == to && value != 10 {
        bail!("Local distance of node {from} should be 10.");
    }
    for (node, row) in nodes.iter_mut().enumerate() {
        if row.distances.is_empty() {
            row.distances = (0..count).map(|other| if other == node { 10 } else { 20 }).collect();
        }
    }
    nodes[from].distances[to] = value;
    if nodes[to].distances[from] == 20 {
        nodes[to].distances[from] = value;
    }
    Ok(())
}

/// `cpu`: the CPUs that match a topology go to a node.
fn cpu(spec: &MachineSpec, tree: &Tree, count: usize, placed: &mut [Option<u32>]) -> Result<()> {
    only(tree, &["type", "node-id", "socket-id", "die-id", "core-id", "thread-id"])?;
    let node = number(tree, "node-id")?.ok_or_else(|| fail!("Parameter 'node-id' is missing"))?;
    if node as usize >= count {
        bail!(
            "Invalid node-id={node}, NUMA node must be defined with -numa node,nodeid=ID before it's used with -numa cpu,node-id=ID"
        );
    }
    let ids = ["socket-id", "die-id", "core-id", "thread-id"].map(|key| number(tree, key));
    let [socket, die, core, thread] = ids;
    let (socket, die, core, thread) = (socket?, die?, core?, thread?);
    let mut any = false;
    for (index, place) in crate::cpus::places(&spec.smp).iter().enumerate() {
        let is = |wanted: Option<u32>, has: u32| wanted.is_none_or(|wanted| wanted == has);
        if is(socket, place.socket) && is(die, place.die) && is(core, place.core) && is(thread, place.thread)
        {
            placed[index] = Some(node);
            any = true;
        }
    }
    if any { Ok(()) } else { Err(fail!("no match found")) }
}

/// `-smbios type=N,key=value...`.
pub(super) fn smbios(spec: &MachineSpec, config: &mut smbios::Config) -> Result<()> {
    for tree in &spec.smbios {
        if tree.contains_key("file") {
            bail!("-smbios file= is not supported; give the fields with type=");
        }
        let kind = text(tree, "type").ok_or_else(|| fail!("Must specify either 'file' or 'type'"))?;
        let kind = kind.parse().map_err(|_| fail!("SMBIOS type {kind} is invalid"))?;
        for key in tree.keys().filter(|key| *key != "type") {
            for value in values(tree, key) {
                config.set(kind, key, value)?;
            }
        }
    }
    Ok(())
}

/// `-fw_cfg name=N,file=F` or `string=S`.
pub(super) fn fw_cfg(spec: &MachineSpec, device: &FwCfg) -> Result<()> {
    for tree in &spec.fw_cfg {
        let name = text(tree, "name").ok_or_else(|| fail!("Parameter 'name' is missing"))?;
        let data = match (text(tree, "file"), text(tree, "string")) {
            (Some(file), None) => rom::read_limited(Path::new(file), MAX_ITEM)
                .map_err(|e| e.within(format!("can't load {file}")))?,
            (None, Some(string)) => string.as_bytes().to_vec(),
            _ => bail!("file or string: exactly one of them is needed"),
        };
        device.add_file(name, data)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use firmware::Chipset;
    use spec::machine::Smp;

    fn tree(text: &str) -> Tree {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_string(), value.into())).collect()
    }

    fn built(numa_options: &[&str]) -> Result<Platform> {
        let smp = Smp { cpus: 4, maxcpus: 4, sockets: 4, ..Smp::default() };
        let numa_options = numa_options.iter().map(|text| tree(text)).collect();
        let spec = MachineSpec { smp, numa: numa_options, ..MachineSpec::default() };
        let mut platform = Platform::new(Chipset::I440fx, 4, 512 * MIB);
        numa(&spec, &mut platform)?;
        Ok(platform)
    }

    #[test]
    fn numa_nodes() {
        let platform = built(&[
            "type=node,cpus=0-1,mem=128",
            "type=node,nodeid=1,cpus=2-3,mem=384M",
            "type=dist,src=0,dst=1,val=30",
        ])
        .unwrap();
        assert_eq!(platform.numa.iter().map(|n| n.memory / MIB).collect::<Vec<_>>(), [128, 384]);
        assert_eq!(platform.numa[1].distances, [30, 10]);
        assert_eq!(platform.cpus.iter().map(|c| c.node).collect::<Vec<_>>(), [0, 0, 1, 1]);
        let shared = built(&["type=node", "type=node", "type=cpu,node-id=1,socket-id=0"]).unwrap();
        assert_eq!(shared.numa.iter().map(|n| n.memory / MIB).collect::<Vec<_>>(), [256, 256]);
        assert_eq!(shared.cpus.iter().map(|c| c.node).collect::<Vec<_>>(), [1, 1, 0, 1]);
    }

    #[test]
    fn numa_errors() {
        let error = |options: &[&str]| built(options).unwrap_err().text;
        assert_eq!(
            error(&["type=node,mem=1G"]),
            "total memory for NUMA nodes (0x40000000) should equal RAM size (0x20000000)"
        );
        assert!(error(&["type=node", "type=node,nodeid=0"]).contains("Duplicate NUMA nodeid: 0"));
        assert!(error(&["type=node,cpus=9"]).contains("smaller than maxcpus"));
        assert!(error(&["type=node,colour=red"]).contains("Invalid parameter 'colour'"));
        assert!(error(&["type=node,nodeid=3"]).contains("Node ID missing: 0"));
        assert!(error(&["type=node", "type=dist,src=0,dst=5,val=20"]).contains("Invalid node 5"));
        assert!(error(&["type=node,memdev=m"]).contains("memdev=m not found"));
    }
}
