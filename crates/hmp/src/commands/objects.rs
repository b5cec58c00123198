use crate::Session;
use crate::parse::{Args, key_values};
use base::Result;
use schema::chardev::{ChardevRemove, RingbufRead, RingbufWrite};
use schema::qom::{DeviceAdd, DeviceDel, IothreadInfo, ObjectDel, QomGet, QomList, QomSet, QueryIothreads};
use std::fmt::Write;

pub async fn chardev_remove(session: Session, args: Args) -> Result<String> {
    session.control.call(ChardevRemove { id: args.need("id") }).await.map(|()| String::new())
}

pub async fn ringbuf_write(session: Session, args: Args) -> Result<String> {
    let command = RingbufWrite { device: args.need("device"), data: args.need("data"), format: None };
    session.control.call(command).await.map(|()| String::new())
}

/// Control characters are shown as `\uXXXX`, a backslash doubled.
pub async fn ringbuf_read(session: Session, args: Args) -> Result<String> {
    let command = RingbufRead { device: args.need("device"), size: args.need_int("size"), format: None };
    let mut out = String::new();
    for c in session.control.call(command).await?.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            c if (c < ' ' && c != '\n') || c == '\x7f' => drop(write!(out, "\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    Ok(out + "\n")
}

pub async fn qom_list(session: Session, args: Args) -> Result<String> {
    let Some(path) = args.text("path") else { return Ok("/\n".into()) };
    let list = session.control.call(QomList { path: path.into() }).await?;
    Ok(list.into_iter().map(|p| format!("{} ({})\n", p.name, p.kind)).collect())
}

pub async fn qom_get(session: Session, args: Args) -> Result<String> {
    let command = QomGet { path: args.need("path"), property: args.need("property") };
    let value = session.control.call(command).await?;
    Ok(format!("{}\n", serde_json::to_string_pretty(&value).unwrap_or_default()))
}

/// The value is JSON, or a text if it does not look like JSON.
pub async fn qom_set(session: Session, args: Args) -> Result<String> {
    let text = args.need("value");
    let value = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
    let command = QomSet { path: args.need("path"), property: args.need("property"), value };
    session.control.call(command).await.map(|()| String::new())
}

/// The whole of `-device`'s syntax.
pub async fn device_add(session: Session, args: Args) -> Result<String> {
    let mut properties = key_values(&args.need("device"), "driver");
    let mut take = |name: &str| properties.shift_remove(name).and_then(|v| v.as_str().map(str::to_string));
    let (driver, bus, id) = (take("driver"), take("bus"), take("id"));
    let driver = driver.ok_or_else(|| base::fail!("Parameter 'driver' is missing"))?;
    session.control.call(DeviceAdd { driver, bus, id, properties }).await.map(|()| String::new())
}

pub async fn device_del(session: Session, args: Args) -> Result<String> {
    session.control.call(DeviceDel { id: args.need("id") }).await.map(|()| String::new())
}

pub async fn object_del(session: Session, args: Args) -> Result<String> {
    session.control.call(ObjectDel { id: args.need("id") }).await.map(|()| String::new())
}

pub async fn iothreads(session: Session, _: Args) -> Result<String> {
    let mut out = String::new();
    for thread in session.control.call(QueryIothreads {}).await? {
        let IothreadInfo { id, thread_id, poll_max_ns, poll_grow, poll_shrink } = thread;
        let _ = writeln!(
            out,
            "{id}:\n  thread_id={thread_id}\n  poll-max-ns={poll_max_ns}\n  poll-grow={poll_grow}\n  \
             poll-shrink={poll_shrink}"
        );
    }
    Ok(out)
}
