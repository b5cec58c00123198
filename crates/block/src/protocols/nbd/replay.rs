//! A server that was written down: for tests and fuzzing.

use super::connection::Connection;
use super::handshake::{self, Wanted};
use super::wire::*;
use crate::types::IoResult;
use tokio::io::AsyncWriteExt;

/// How far a client came with a written-down server.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Size of the export, once it was chosen.
    pub size: Option<u64>,
    /// 4096 bytes read from offset 4096.
    pub read: Option<IoResult<Vec<u8>>>,
    /// Length and state of the extent at 0.
    pub extent: Option<IoResult<Option<(u32, u32)>>>,
}

/// Lets a client negotiate, read and ask for block status with a server that sends `bytes`,
/// whatever the client says.
pub async fn replay(bytes: &[u8]) -> Replayed {
    let mut done = Replayed::default();
    let (mut near, mut far) = tokio::io::duplex(1 << 20);
    if far.write_all(bytes.get(..1 << 19).unwrap_or(bytes)).await.is_err() || far.shutdown().await.is_err() {
        return done;
    }
    let (context, context_needed) = ("base:allocation".to_string(), false);
    let wanted = Wanted { export: "disk".into(), tls: None, context, context_needed };
    if handshake::greet(&mut near).await.is_err() {
        return done;
    }
    let (reader, writer) = tokio::io::split(near);
    let Ok((connection, info)) = Connection::over(Box::new(reader), Box::new(writer), &wanted).await else {
        return done;
    };
    done.size = Some(info.size);
    // Both are under way before the first answer is read: requests are numbered from 1.
    let read = connection.request(CMD_READ, 0, (4096, 4096), &[]);
    let status = connection.request(CMD_BLOCK_STATUS, FLAG_REQ_ONE, (0, 65536), &[]);
    let (read, status) = tokio::join!(read, status);
    done.read = Some(read.map(|answer| answer.data.unwrap_or_default()));
    done.extent = Some(status.map(|answer| answer.extent));
    drop(far);
    done
}
