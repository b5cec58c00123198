//! Block nodes.

use crate::{Call, Routes};
use base::{Failure, Result, bail, fail};
use block::{Fut, Options, Origin, jobs, query};
use qapi::{Map, Value};
use schema::block::BlockDeviceInfo;
use schema::blockdev::*;
use std::sync::Arc;

pub fn route(routes: &mut Routes) {
    routes.add(blockdev_add);
    routes.add(blockdev_del);
    routes.add(blockdev_reopen);
    routes.add(x_blockdev_reopen);
    routes.add(blockdev_create);
    routes.add(x_blockdev_amend);
    routes.add(query_named_block_nodes);
    routes.add(block_resize);
    routes.add(block_set_write_threshold);
    routes.add(change_backing_file);
    routes.add(change_children);
    routes.add(set_iothread);
    routes.add(query_graph);
}

pub(super) fn graph(call: &Call) -> Arc<block::Graph> {
    call.world().host.graph.clone()
}

/// The back end that a command means by `device` or by the `id` (or path) of the device that
/// holds it, and the name it was given by.
pub(super) fn drive(
    call: &Call,
    device: Option<String>,
    id: Option<String>,
) -> Result<(block::Backend, String)> {
    match (device, id) {
        (Some(device), None) => {
            let found = graph(call).backend(&device);
            Ok((found.ok_or_else(|| Failure::device_not_found(&device))?, device))
        }
        (None, Some(id)) => Ok((call.world().drive_of_device(&id)?, id)),
        _ => bail!("Need exactly one of 'device' and 'id'"),
    }
}

/// Runs `work` on the block layer's own thread, where what it starts goes on.
pub(super) async fn there<T: Send + 'static>(
    call: &Call,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let handle = graph(call).main_thread().handle().clone();
    handle.spawn(work).await.map_err(|_| fail!("The block layer failed"))?
}

async fn blockdev_add(call: Call, command: BlockdevAdd) -> Result<()> {
    let graph = graph(&call);
    let options = Options::crumple(command.options)?.typed();
    let at = graph.clone();
    if let (Some(Value::Object(first)), 1) = (options.get("options"), options.0.len()) {
        return first_form(&call, first.clone()).await;
    }
    if !options.contains("driver") {
        bail!("Parameter 'driver' is missing");
    }
    check_names(&options, "")?;
    let mut offered = Vec::new();
    let added = match super::fd::offer(&call, &options.0, &mut offered) {
        Ok(()) => there(&call, async move { at.add(options).await.map(drop) }).await,
        Err(why) => Err(why),
    };
    offered.iter().for_each(|name| graph.withdraw_fd(name));
    added
}

/// The form of 2015: `options` with an `id` that names a back end.
async fn first_form(call: &Call, options: Map) -> Result<()> {
    let at = graph(call);
    let mut options = Options::crumple(options)?.said(Origin::Typed("options.".into()));
    let id = options.take_str("id")?;
    if !options.contains("driver") {
        match options.contains("file") || options.contains("filename") {
            true => bail!("Parameter 'driver' is missing"),
            false if id.is_some() => bail!("Must specify either driver or file"),
            false => {}
        }
    }
    match id {
        None if !options.contains("node-name") => bail!("Block device needs an ID"),
        None => there(call, async move { at.add(options).await.map(drop) }).await,
        Some(id) if !spec::id_wellformed(&id) => bail!("Invalid device name"),
        Some(id) => {
            there(call, async move {
                let backend = at.open_tree(&id, options).await?;
                if backend.check_key().is_err() {
                    backend.delete();
                    at.collect().await;
                    bail!("blockdev-add doesn't support encrypted devices");
                }
                Ok(())
            })
            .await
        }
    }
}

async fn blockdev_del(call: Call, command: BlockdevDel) -> Result<()> {
    let at = graph(&call);
    there(&call, async move { at.delete(&command.node_name).await }).await
}

async fn blockdev_reopen(call: Call, command: BlockdevReopen) -> Result<()> {
    reopen(&call, command.options).await
}

async fn x_blockdev_reopen(call: Call, command: XBlockdevReopen) -> Result<()> {
    reopen(&call, vec![command.options]).await
}

const NAMES: [&str; 3] = ["driver", "node-name", "filename"];

/// Refuses what is no string where a name is looked at before it is taken.
fn check_names(options: &Options, path: &str) -> Result<()> {
    for (key, value) in &options.0 {
        match value {
            value if NAMES.contains(&key.as_str()) && !value.is_string() => {
                bail!("Invalid parameter type for '{path}{key}', expected: string")
            }
            Value::Object(table) => {
                check_names(&table.clone().into(), &format!("{path}{key}."))?;
            }
            _ => {}
        }
    }
    Ok(())
}

async fn reopen(call: &Call, list: Vec<Map>) -> Result<()> {
    let at = graph(call);
    there(call, async move {
        let said = list.into_iter().zip(0..).map(|(options, number)| {
            let path = format!("options[{number}].");
            let options = Options::crumple(options)?;
            check_names(&options, &path)?;
            Ok(options.said(Origin::Typed(path)))
        });
        at.reopen(said.collect::<Result<_>>()?).await
    })
    .await
}

/// The body of a job that is one piece of work; its failure is told in words.
struct Whole {
    work: Option<Fut<'static, Result<()>>>,
    why: Option<String>,
}

impl jobs::Body for Whole {
    fn run<'a>(&'a mut self, job: &'a jobs::Job) -> Fut<'a, std::io::Result<()>> {
        Box::pin(async move {
            job.set_len(1);
            let Some(work) = self.work.take() else { return Ok(()) };
            let result = work.await;
            job.advance(1);
            result.map_err(|why| {
                self.why = Some(why.text);
                std::io::Error::other("told by `reason`")
            })
        })
    }

    fn reason(&mut self) -> Option<String> {
        self.why.take()
    }
}

/// Starts a job that is one piece of work and stays until it is dismissed.
fn start_whole(
    graph: &Arc<block::Graph>,
    kind: jobs::Kind,
    id: String,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<()> {
    let setup = jobs::Setup { auto_dismiss: false, block_job: false, ..jobs::Setup::new(kind, id) };
    graph.jobs.start(setup, Whole { work: Some(Box::pin(work)), why: None }).map(drop)
}

async fn blockdev_create(call: Call, command: BlockdevCreate) -> Result<()> {
    let graph = graph(&call);
    let options = Options::from(command.options).said(Origin::Typed("options.".into()));
    let name = options.get_str("driver").ok_or_else(|| fail!("Parameter 'driver' is missing"))?;
    let Some(driver) = block::formats::find(name) else {
        bail!("Parameter 'driver' does not accept value '{name}'")
    };
    if driver.create.is_none() {
        bail!("Driver does not support blockdev-create");
    }
    block::graph::create::check_words(driver, &options)?;
    let at = graph.clone();
    start_whole(&graph, jobs::Kind::Create, command.job_id, async move { at.create(options).await })
}

async fn x_blockdev_amend(call: Call, command: XBlockdevAmend) -> Result<()> {
    let graph = graph(&call);
    let node = graph.lookup(None, Some(&command.node_name))?;
    let mut options = Options::from(command.options).said(Origin::Typed("options.".into()));
    let name = options.need_str("driver")?;
    let driver = node.driver();
    if name != driver.name {
        bail!("x-blockdev-amend doesn't support changing the block driver");
    }
    if !driver.amends {
        bail!("Driver does not support x-blockdev-amend");
    }
    if node.is_read_only() {
        bail!("Block node is read-only");
    }
    let (at, force) = (graph.clone(), command.force.unwrap_or(false));
    let held = node.clone();
    let work = async move {
        let done = held.layer().amend(&mut options, at.vault(), force).await;
        at.amending(&held, false)?;
        done
    };
    graph.amending(&node, true)?;
    let started = start_whole(&graph, jobs::Kind::Amend, command.job_id, work);
    if started.is_err() {
        graph.amending(&node, false)?;
    }
    started
}

async fn query_named_block_nodes(call: Call, command: QueryNamedBlockNodes) -> Result<Vec<BlockDeviceInfo>> {
    let nodes: Vec<query::NodeInfo> = graph(&call).query_nodes(command.flat.unwrap_or(false)).await;
    Ok(nodes.into_iter().map(super::block::node).collect())
}

async fn block_resize(call: Call, command: BlockResize) -> Result<()> {
    let at = graph(&call);
    let node = at.lookup(command.device.as_deref(), command.node_name.as_deref())?;
    let Ok(size) = u64::try_from(command.size) else { bail!("Parameter 'size' expects a >0 size") };
    // What a filter passes on changes, too.
    let mut resized = std::iter::successors(Some(node.clone()), |node| node.filtered());
    if resized.any(|node| node.check_busy().is_err()) {
        bail!("Device '{}' is in use", command.device.or(command.node_name).unwrap_or_default());
    }
    there(&call, async move { at.resize(&node, size).await }).await
}

async fn change_backing_file(call: Call, command: ChangeBackingFile) -> Result<()> {
    let at = graph(&call);
    let ChangeBackingFile { device, image_node_name, backing_file } = command;
    let root = at.lookup(Some(&device), Some(&device)).map_err(|why| match at.backend(&device) {
        Some(_) => why,
        None => Failure::device_not_found(&device),
    })?;
    root.check_root()?;
    let image = at.lookup(None, Some(&image_node_name))?;
    if image.backing().is_none() {
        bail!("not allowing backing file change on an image without a backing file");
    }
    root.check_busy()?;
    if super::blockjobs::in_chain(&root, |node| Arc::ptr_eq(node, &image)).is_none() {
        bail!("'{device}' and image file are not in the same chain");
    }
    there(&call, async move { at.change_backing_file(&image, &backing_file).await }).await
}

async fn block_set_write_threshold(call: Call, command: BlockSetWriteThreshold) -> Result<()> {
    let name = command.node_name;
    let node = graph(&call).find(&name).ok_or_else(|| fail!("Device '{name}' not found"))?;
    node.set_write_threshold(command.write_threshold);
    Ok(())
}

async fn change_children(call: Call, command: XBlockdevChange) -> Result<()> {
    let at = graph(&call);
    let parent = at.lookup(Some(&command.parent), Some(&command.parent))?;
    match (command.child, command.node) {
        (Some(child), None) => there(&call, async move { at.remove_child(&parent, &child).await }).await,
        (None, Some(name)) => {
            let node = at.find(&name).ok_or_else(|| fail!("Node '{name}' not found"))?;
            there(&call, async move { at.add_child(&parent, &node).await }).await
        }
        (Some(_), Some(_)) => bail!("The parameters child and node are in conflict"),
        (None, None) => bail!("Either child or node must be specified"),
    }
}

async fn set_iothread(call: Call, command: XBlockdevSetIothread) -> Result<()> {
    let (graph, name) = (graph(&call), command.node_name);
    let node = graph.find(&name).ok_or_else(|| fail!("Failed to find node with node-name='{name}'"))?;
    let thread = match command.iothread {
        Value::Null => None,
        Value::String(id) => {
            let object = call.world().host.objects.find(&id).and_then(|object| object.downcast().ok());
            let thread: Option<Arc<block::IoThread>> = object;
            Some(thread.ok_or_else(|| fail!("Cannot find iothread {id}"))?)
        }
        _ => bail!("Invalid parameter type for 'iothread', expected: string or null"),
    };
    graph.set_thread(&node, thread.as_deref(), command.force.unwrap_or(false))
}

async fn query_graph(call: Call, _: XDebugQueryBlockGraph) -> Result<XDbgBlockGraph> {
    let graph = graph(&call);
    let (mut nodes, mut edges) = (Vec::new(), Vec::new());
    let add = |nodes: &mut Vec<XDbgBlockGraphNode>, kind: &str, name: &str| {
        let id = nodes.len() as u64 + 1;
        nodes.push(XDbgBlockGraphNode { id, kind: kind.into(), name: name.into() });
        id
    };
    let shown = |backend: &block::Backend| {
        let device = || backend.front_end().map(|front| front.qdev_id()).unwrap_or_default();
        if backend.name().is_empty() { device() } else { backend.name().to_string() }
    };
    let backends = graph.backends();
    for backend in &backends {
        add(&mut nodes, "block-backend", &shown(backend));
    }
    for job in graph.jobs.list().iter().filter(|job| job.setup.block_job) {
        add(&mut nodes, "block-job", job.id());
    }
    let listed = graph.nodes();
    for node in &listed {
        add(&mut nodes, "block-driver", node.name());
    }
    let words = |perm: block::Perm| {
        let names = perm.names();
        let words = names.rsplit(", ").filter(|word| !word.is_empty()).map(|word| word.replace(' ', "-"));
        words.collect()
    };
    for node in &listed {
        for edge in node.parents() {
            let (kind, name) = match edge.parent() {
                block::Parent::Node(name) => ("block-driver", name.clone()),
                block::Parent::Backend(name) => {
                    let holder = backends.iter().find(|backend| backend.holds(&edge));
                    ("block-backend", holder.map_or_else(|| name.clone(), &shown))
                }
                block::Parent::Job { id, .. } => ("block-job", id.clone()),
                block::Parent::Named(name) => ("block-backend", name.clone()),
            };
            let id_of = |nodes: &[XDbgBlockGraphNode], kind: &str, name: &str| {
                nodes.iter().find(|one| one.kind == kind && one.name == name).map(|one| one.id)
            };
            let parent = id_of(&nodes, kind, &name).unwrap_or_else(|| add(&mut nodes, kind, &name));
            let child = id_of(&nodes, "block-driver", node.name()).unwrap_or_default();
            let (perm, shared) = edge.perm();
            let (name, perm, shared_perm) = (edge.name().to_string(), words(perm), words(shared));
            edges.push(XDbgBlockGraphEdge { parent, child, name, perm, shared_perm });
        }
    }
    // As customary: what was found last is told first.
    nodes.reverse();
    edges.reverse();
    Ok(XDbgBlockGraph { nodes, edges })
}
