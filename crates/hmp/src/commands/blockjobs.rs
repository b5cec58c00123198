//! Block jobs.

use crate::Session;
use crate::parse::Args;
use base::Result;
use schema::blockjobs::*;
use serde_json::json;
use std::fmt::Write;

pub async fn info(session: Session, _: Args) -> Result<String> {
    let jobs = session.control.call(QueryBlockJobs {}).await?;
    if jobs.is_empty() {
        return Ok("No active jobs\n".into());
    }
    let mut out = String::new();
    for job in jobs {
        let what = match job.kind.as_str() {
            "stream" => format!("Streaming device {}", job.device),
            kind => format!("Type {kind}, device {}", job.device),
        };
        let _ = writeln!(
            out,
            "{what}: Completed {} of {} bytes, speed limit {} bytes/s",
            job.offset, job.len, job.speed
        );
    }
    Ok(out)
}

/// What `drive_mirror` and `drive_backup` have in common.
fn copy(args: &Args) -> serde_json::Value {
    json!({
        "device": args.need("device"),
        "target": args.need("target"),
        "format": args.text("format"),
        "sync": if args.flag("f") { "full" } else { "top" },
        "mode": if args.flag("n") { "existing" } else { "absolute-paths" },
    })
}

pub async fn mirror(session: Session, args: Args) -> Result<String> {
    session.ask::<DriveMirror>(copy(&args)).await.map(|()| String::new())
}

pub async fn backup(session: Session, args: Args) -> Result<String> {
    let mut asked = copy(&args);
    asked["compress"] = args.flag("c").into();
    session.ask::<DriveBackup>(asked).await.map(|()| String::new())
}

pub async fn stream(session: Session, args: Args) -> Result<String> {
    let (device, base) = (args.need("device"), args.text("base"));
    let asked = json!({"job-id": device, "device": device, "base": base, "speed": args.int("speed")});
    session.ask::<BlockStream>(asked).await.map(|()| String::new())
}

pub async fn set_speed(session: Session, args: Args) -> Result<String> {
    let asked = json!({"device": args.need("device"), "speed": args.int("speed")});
    session.ask::<BlockJobSetSpeed>(asked).await.map(|()| String::new())
}

pub async fn cancel(session: Session, args: Args) -> Result<String> {
    let asked = json!({"device": args.need("device"), "force": args.flag("f")});
    session.ask::<BlockJobCancel>(asked).await.map(|()| String::new())
}

pub async fn complete(session: Session, args: Args) -> Result<String> {
    session.ask::<BlockJobComplete>(json!({"device": args.need("device")})).await.map(|()| String::new())
}

pub async fn pause(session: Session, args: Args) -> Result<String> {
    session.ask::<BlockJobPause>(json!({"device": args.need("device")})).await.map(|()| String::new())
}

pub async fn resume(session: Session, args: Args) -> Result<String> {
    session.ask::<BlockJobResume>(json!({"device": args.need("device")})).await.map(|()| String::new())
}
