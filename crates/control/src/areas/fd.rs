use crate::{Call, Routes};
use base::{Failure, Result, fail};
use qapi::{Map, Value};
use schema::fd::*;

pub fn route(routes: &mut Routes) {
    routes.add(getfd);
    routes.add(closefd);
    routes.add(add_fd);
    routes.add(remove_fd);
    routes.add(query_fdsets);
}

async fn getfd(call: Call, command: Getfd) -> Result<()> {
    let monitor = call.monitor()?;
    let fd = monitor.take_received()?;
    if command.fdname.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Failure::expects("fdname", "a name not starting with a digit"));
    }
    monitor.name_fd(&command.fdname, fd);
    Ok(())
}

async fn closefd(call: Call, command: Closefd) -> Result<()> {
    match call.monitor()?.take_named(&command.fdname) {
        Some(_) => Ok(()),
        None => Err(fail!("File descriptor named '{}' not found", command.fdname)),
    }
}

async fn add_fd(call: Call, command: AddFd) -> Result<AddfdInfo> {
    let fd = call.monitor()?.take_received()?;
    let negative = |_| Failure::expects("fdset-id", "a non-negative value");
    let set = command.fdset_id.map(u64::try_from).transpose().map_err(negative)?;
    let (set, fd) = call.world().fdsets.add(set, fd, command.opaque);
    Ok(AddfdInfo { fdset_id: set as i64, fd: fd.into() })
}

async fn remove_fd(call: Call, command: RemoveFd) -> Result<()> {
    let RemoveFd { fdset_id, fd } = command;
    match u64::try_from(fdset_id) {
        Ok(set) => call.world().fdsets.remove(set, fd),
        Err(_) => Err(match fd {
            Some(fd) => fail!("File descriptor named 'fdset-id:{fdset_id}, fd:{fd}' not found"),
            None => fail!("File descriptor named 'fdset-id:{fdset_id}' not found"),
        }),
    }
}

async fn query_fdsets(call: Call, _: QueryFdsets) -> Result<Vec<FdsetInfo>> {
    let member = |member: base::fd::SetMember| FdsetFdInfo { fd: member.fd.into(), opaque: member.opaque };
    // The last set first.
    let sets = call.world().fdsets.list().into_iter().rev();
    Ok(sets
        .map(|(id, members)| FdsetInfo {
            fdset_id: id as i64,
            fds: members.into_iter().map(member).collect(),
        })
        .collect())
}

/// Hands the sockets that options name, given by `getfd`, to the block layer; their names are added
/// to `offered`, to be withdrawn.
pub(super) fn offer(call: &Call, options: &Map, offered: &mut Vec<String>) -> Result<()> {
    for (key, value) in options {
        let Value::Object(table) = value else { continue };
        let is_socket = key == "server" && table.get("type").is_some_and(|kind| kind == "fd");
        let name = table.get("str").and_then(Value::as_str).filter(|_| is_socket);
        if let Some(name) = name.filter(|name| !name.starts_with(|c: char| c.is_ascii_digit())) {
            let named = call.take_named(name);
            let named = named.ok_or_else(|| fail!("File descriptor named '{name}' has not been found"))?;
            call.world().host.graph.offer_fd(name, named);
            offered.push(name.to_string());
        }
        offer(call, table, offered)?;
    }
    Ok(())
}
