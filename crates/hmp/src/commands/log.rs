use super::info::name_of;
use crate::Session;
use crate::parse::Args;
use base::{Failure, Result, fail};
use schema::trace::{TraceEventGetState, TraceEventSetState, TraceEventState};

pub async fn log(_: Session, args: Args) -> Result<String> {
    let items = args.need("items");
    if matches!(items.as_str(), "help" | "?") {
        return Ok(trace::Items::help());
    }
    let items = trace::Items::parse(&items)
        .map_err(|name| fail!("'{name}' is not a log item").hint("Try \"help log\" for more information"))?;
    items.apply();
    Ok(String::new())
}

pub async fn logfile(_: Session, args: Args) -> Result<String> {
    let path = args.need("filename");
    trace::set_file(Some(&path)).map_err(|e| Failure::os(format!("Could not open '{path}'"), &e))?;
    Ok(String::new())
}

pub async fn trace_event(session: Session, args: Args) -> Result<String> {
    let enable = match args.need("option").as_str() {
        "on" => true,
        "off" => false,
        other => return Ok(format!("unexpected argument \"{other}\"\n")),
    };
    let command = TraceEventSetState { name: args.need("name"), enable, ignore_unavailable: true };
    session.control.call(command).await.map(|()| String::new())
}

pub async fn trace_events(session: Session, args: Args) -> Result<String> {
    let name = args.text("name").unwrap_or("*").to_string();
    let list = session.control.call(TraceEventGetState { name }).await?;
    let line = |e: schema::trace::TraceEventInfo| match e.state {
        TraceEventState::Unavailable => format!("{} : {}\n", e.name, name_of(&e.state)),
        state => format!("{} : state {}\n", e.name, u8::from(state == TraceEventState::Enabled)),
    };
    Ok(list.into_iter().map(line).collect())
}
