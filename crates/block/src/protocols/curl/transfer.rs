//! Transfers by libcurl. A thread for each file drives its transfers, so that requests go on
//! beside each other and no other thread ever waits for a server.

use super::unusable;
use super::whole::Spool;
use base::{Failure, Result, fail};
use curl::easy::{Easy2, Handler, HttpVersion, WriteError};
use curl::multi::{Easy2Handle, Multi, MultiWaker};
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::oneshot;

trace::points! {
    /// A transfer failed or was cut off.
    pub CURL_TRANSFER = "curl_transfer";
}

/// Attempts in a row that may bring nothing, and all attempts for one range.
const FRUITLESS: u32 = 3;
const ATTEMPTS: u32 = 64;
/// Before the second attempt that brings nothing; the third waits twice as long.
const PAUSE: Duration = Duration::from_millis(200);
/// The largest size that is taken for true, in bytes.
const MAX_SIZE: f64 = (1u64 << 53) as f64;
/// How long libcurl may sleep: it is woken for new jobs, but TFTP's own repetitions, and the end
/// of its patience, need it awake.
const SLEEP: Duration = Duration::from_secs(600);
const SLEEP_WHOLE: Duration = Duration::from_millis(200);

/// Where authorities lie, on the usual systems.
const AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A remote file and how to come to it.
pub(super) struct Source {
    pub url: String,
    /// For one transfer; zero for any time.
    pub timeout: Duration,
    pub username: Option<String>,
    pub password: Option<String>,
    pub proxy_username: Option<String>,
    pub proxy_password: Option<String>,
    pub cookie: Option<String>,
    /// The server's certificate must be one for its name by a known authority.
    pub verify: bool,
}

impl Source {
    /// A file of which nothing is known but its URL.
    pub fn plain(url: String) -> Source {
        Source {
            url,
            timeout: Duration::ZERO,
            username: None,
            password: None,
            proxy_username: None,
            proxy_password: None,
            cookie: None,
            verify: true,
        }
    }
}

/// The near side of the thread, which ends with it.
pub(super) struct Client {
    jobs: Option<mpsc::Sender<Job>>,
    waker: MultiWaker,
}

struct Job {
    goal: Goal,
    done: oneshot::Sender<Ended>,
}

/// What a transfer is for.
enum Goal {
    /// Only the size of the file is asked for.
    Size,
    /// A part of a file of known size.
    Part { range: Range<u64>, size: u64 },
    /// All of a file.
    Whole(Spool),
}

/// What a transfer brought.
struct Ended {
    data: Vec<u8>,
    spool: Option<Spool>,
    /// Of the file, -1 if the server does not say.
    length: f64,
    accepts_ranges: bool,
    error: Option<Trouble>,
}

struct Trouble {
    text: String,
    /// The connection failed, not the request.
    passing: bool,
    timed_out: bool,
}

impl Ended {
    fn new(length: f64, error: Option<Trouble>) -> Self {
        Ended { data: Vec::new(), spool: None, length, accepts_ranges: false, error }
    }
}

impl Client {
    pub fn start(source: Source) -> Result<Client> {
        let (jobs, queue) = mpsc::channel();
        let (tell, told) = mpsc::sync_channel(1);
        let run = move || {
            let multi = Multi::new();
            if tell.send(multi.waker()).is_ok() {
                serve(&multi, &queue, &source);
            }
        };
        let thread = std::thread::Builder::new().name("curl".into()).spawn(run);
        thread.map_err(|why| Failure::os("Could not start a thread for transfers", &why))?;
        let waker = told.recv().map_err(|_| unusable("libcurl does not start"))?;
        Ok(Client { jobs: Some(jobs), waker })
    }

    async fn perform(&self, goal: Goal) -> Option<Ended> {
        let (done, ended) = oneshot::channel();
        self.jobs.as_ref()?.send(Job { goal, done }).ok()?;
        self.waker.wakeup().ok()?;
        ended.await.ok()
    }

    /// Asks for the size of the file in bytes, and whether parts of it can be had.
    pub async fn size(&self) -> Result<u64> {
        let Some(ended) = self.perform(Goal::Size).await else { return Err(fail!("libcurl has ended")) };
        match ended {
            Ended { error: Some(error), .. } => Err(Failure::new(error.text)),
            Ended { length, .. } if length < 0.0 => Err(fail!("Server didn't report file size.")),
            Ended { length, .. } if length > MAX_SIZE => {
                Err(fail!("The server's file size is not credible."))
            }
            Ended { accepts_ranges: false, .. } => {
                Err(fail!("Server does not support 'range' (byte ranges)."))
            }
            Ended { length, .. } => Ok(length as u64),
        }
    }

    /// Fetches all of the file; returns its size in bytes.
    pub async fn fetch_whole(&self, spool: Spool) -> Result<(Spool, u64)> {
        let Some(ended) = self.perform(Goal::Whole(spool)).await else {
            return Err(fail!("libcurl has ended"));
        };
        match ended {
            Ended { error: Some(error), .. } => Err(Failure::new(error.text)),
            Ended { spool: Some(spool), length, .. } => {
                let got = spool.len();
                if length >= 0.0 && length != got as f64 {
                    return Err(fail!("The server sent {got} bytes of a file of {length} bytes"));
                }
                Ok((spool, got))
            }
            Ended { spool: None, .. } => Err(fail!("libcurl has lost the file")),
        }
    }

    /// Reads a range of the file of `size` bytes; goes on where a transfer was cut off.
    pub async fn fetch(&self, wanted: Range<u64>, size: u64) -> Option<Vec<u8>> {
        let len = (wanted.end - wanted.start) as usize;
        let mut data: Vec<u8> = Vec::new();
        let mut fruitless = 0;
        for _ in 0..ATTEMPTS {
            let from = wanted.start + data.len() as u64;
            let ended = self.perform(Goal::Part { range: from..wanted.end, size }).await?;
            fruitless = if ended.data.is_empty() { fruitless + 1 } else { 0 };
            if data.is_empty() {
                data = ended.data;
            } else {
                data.extend_from_slice(&ended.data);
            }
            if data.len() == len {
                return Some(data);
            }
            if let Some(error) = ended.error {
                trace::trace!(
                    CURL_TRANSFER,
                    "from {from} to {} got {}: {}",
                    wanted.end,
                    data.len(),
                    error.text
                );
                if !error.passing || (error.timed_out && fruitless > 0) {
                    return None;
                }
            }
            if fruitless >= FRUITLESS {
                return None;
            }
            tokio::time::sleep(PAUSE * fruitless).await;
        }
        None
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.jobs = None;
        // A thread that has ended needs no call.
        let _ = self.waker.wakeup();
    }
}

type Transfer = (Easy2Handle<Inbox>, oneshot::Sender<Ended>);

/// Makes transfers until nobody can ask for more.
fn serve(multi: &Multi, queue: &mpsc::Receiver<Job>, source: &Source) {
    let mut transfers: HashMap<usize, Transfer> = HashMap::new();
    let mut next = 0;
    loop {
        loop {
            match queue.try_recv() {
                Ok(job) => {
                    next += 1;
                    if let Some(transfer) = begin(multi, source, job, next) {
                        transfers.insert(next, transfer);
                    }
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
        if multi.perform().is_err() {
            return;
        }
        let mut ended = Vec::new();
        multi.messages(|message| {
            if let Ok(token) = message.token()
                && let Some((handle, _)) = transfers.get(&token)
                && let Some(result) = message.result_for2(handle)
            {
                ended.push((token, result.err()));
            }
        });
        for (token, error) in ended {
            if let Some((handle, done)) = transfers.remove(&token) {
                // Nobody waits for a request that was dropped.
                let _ = done.send(finish(multi, handle, error));
            }
        }
        let sleep = if whole(&transfers) { SLEEP_WHOLE } else { SLEEP };
        if multi.poll(&mut [], sleep).is_err() {
            return;
        }
    }
}

/// Whether a file is on its way in one piece.
fn whole(transfers: &HashMap<usize, Transfer>) -> bool {
    transfers.values().any(|(handle, _)| matches!(handle.get_ref().goal, Goal::Whole(_)))
}

/// Begins a transfer; if that cannot be done, the job is answered.
fn begin(multi: &Multi, source: &Source, job: Job, token: usize) -> Option<Transfer> {
    let inbox = Inbox::new(job.goal);
    let begun = set_up(source, inbox).and_then(|easy| {
        let added = multi.add2(easy).map_err(|why| fail!("{why}"));
        let mut handle = added?;
        handle.set_token(token).map_err(said)?;
        Ok(handle)
    });
    match begun {
        Ok(handle) => Some((handle, job.done)),
        Err(why) => {
            let error = Trouble { text: why.text, passing: false, timed_out: false };
            let _ = job.done.send(Ended::new(-1.0, Some(error)));
            None
        }
    }
}

fn said(error: curl::Error) -> Failure {
    Failure::new(error.extra_description().unwrap_or(error.description()))
}

fn set_up(source: &Source, inbox: Inbox) -> Result<Easy2<Inbox>> {
    let range = match &inbox.goal {
        Goal::Part { range, .. } => Some(format!("{}-{}", range.start, range.end - 1)),
        _ => None,
    };
    let whole = matches!(inbox.goal, Goal::Whole(_));
    let mut easy = Easy2::new(inbox);
    let mut configure = || {
        easy.url(&source.url)?;
        easy.fail_on_error(true)?;
        easy.follow_location(true)?;
        easy.http_version(HttpVersion::V11)?;
        // A file in one piece takes as long as it takes: its inbox ends what stands still.
        easy.timeout(if whole { Duration::ZERO } else { source.timeout })?;
        easy.progress(whole)?;
        easy.ssl_verify_peer(source.verify)?;
        easy.ssl_verify_host(source.verify)?;
        if let Some(path) = authorities() {
            easy.cainfo(path)?;
        }
        if let Some(name) = &source.username {
            easy.username(name)?;
        }
        if let Some(password) = &source.password {
            easy.password(password)?;
        }
        if let Some(name) = &source.proxy_username {
            easy.proxy_username(name)?;
        }
        if let Some(password) = &source.proxy_password {
            easy.proxy_password(password)?;
        }
        if let Some(cookie) = &source.cookie {
            easy.cookie(cookie)?;
        }
        match &range {
            Some(range) => easy.range(range),
            None => easy.nobody(!whole),
        }
    };
    configure().map_err(said)?;
    Ok(easy)
}

/// The file of authorities: what the environment says, else that of the system.
fn authorities() -> Option<PathBuf> {
    let given = ["CURL_CA_BUNDLE", "SSL_CERT_FILE"].into_iter().find_map(std::env::var_os);
    let given = given.filter(|path| !path.is_empty()).map(PathBuf::from);
    given.or_else(|| AUTHORITIES.iter().map(PathBuf::from).find(|path| path.is_file()))
}

/// To libcurl it is an error that a TFTP server tells a size of zero: it asks for no file then.
fn says_empty(text: &str) -> bool {
    let told = text.strip_prefix("invalid tsize -:").and_then(|rest| rest.split_once(":-"));
    told.is_some_and(|(size, _)| size.bytes().all(|byte| byte == b'0'))
}

fn finish(multi: &Multi, handle: Easy2Handle<Inbox>, error: Option<curl::Error>) -> Ended {
    let length = handle.content_length_download().unwrap_or(-1.0);
    // What libcurl 7.88 says further of TFTP is that its socket has no other end.
    let whole = matches!(handle.get_ref().goal, Goal::Whole(_));
    let trouble = |error: curl::Error| {
        let further = error.extra_description().filter(|_| !whole);
        let text = further.unwrap_or(error.description()).to_string();
        let timed_out = error.is_operation_timedout();
        let cut_off = error.is_partial_file() || error.is_recv_error() || error.is_send_error();
        let absent = error.is_got_nothing() || error.is_couldnt_connect();
        Trouble { text, passing: cut_off || absent || timed_out, timed_out }
    };
    let error = error.filter(|error| !(whole && error.extra_description().is_some_and(says_empty)));
    let mut error = error.map(trouble);
    let mut ended = Ended::new(length, None);
    // Dropping the handle ends the transfer, where it must be taken out by hand.
    if let Ok(mut easy) = multi.remove2(handle) {
        let inbox = easy.get_mut();
        ended.data = std::mem::take(&mut inbox.data);
        ended.accepts_ranges = inbox.answer.is_none() || inbox.accepts_ranges;
        if let Some(text) = inbox.refused.take() {
            error = Some(Trouble { text, passing: false, timed_out: false });
        }
        if let Goal::Whole(spool) = std::mem::replace(&mut inbox.goal, Goal::Size) {
            ended.spool = Some(spool);
        }
    }
    ended.error = error;
    ended
}

/// Takes what comes in for one transfer. The server is not trusted: only the bytes asked for
/// are kept.
struct Inbox {
    goal: Goal,
    data: Vec<u8>,
    /// Status of the last HTTP response; other protocols have none.
    answer: Option<u32>,
    /// First byte and size of the file, if known, as `Content-Range` says them.
    part: Option<(u64, Option<u64>)>,
    accepts_ranges: bool,
    /// Why the response is of no use.
    refused: Option<String>,
}

impl Inbox {
    fn new(goal: Goal) -> Self {
        Inbox { goal, data: Vec::new(), answer: None, part: None, accepts_ranges: false, refused: None }
    }

    /// What is wrong with an HTTP response to a request for a range from `start` on, of a file of
    /// `known` bytes.
    fn objection(&self, start: u64, known: u64) -> Option<String> {
        match (self.answer, self.part) {
            (None, _) => None,
            (Some(206), Some((first, _))) if first != start => {
                Some(format!("The server sent bytes from {first} on instead of {start}"))
            }
            (Some(206), Some((_, Some(size)))) if size != known => {
                Some(format!("The size of the file changed from {known} to {size}"))
            }
            (Some(206), Some(_)) => None,
            (Some(206), None) => Some("The server does not say which bytes it sent".into()),
            // The whole file begins with what was asked for.
            (Some(200), _) if start == 0 => None,
            (Some(200), _) => Some("The server sent the whole file instead of a part".into()),
            (Some(status), _) => Some(format!("The server answered with status {status}")),
        }
    }
}

impl Handler for Inbox {
    fn header(&mut self, line: &[u8]) -> bool {
        let line = String::from_utf8_lossy(line);
        if line.starts_with("HTTP/") {
            let status = line.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok());
            (self.answer, self.part, self.accepts_ranges) = (Some(status.unwrap_or(0)), None, false);
        } else if let Some((name, value)) = line.split_once(':') {
            let value = value.trim();
            if name.eq_ignore_ascii_case("accept-ranges") {
                self.accepts_ranges = value.eq_ignore_ascii_case("bytes");
            } else if name.eq_ignore_ascii_case("content-range") {
                self.part = content_range(value);
            }
        }
        true
    }

    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, WriteError> {
        let (range, size) = match &mut self.goal {
            Goal::Size => return Ok(data.len()),
            Goal::Part { range, size } => (range.clone(), *size),
            Goal::Whole(spool) => {
                self.refused = spool.take(data).err();
                return Ok(if self.refused.is_none() { data.len() } else { 0 });
            }
        };
        let len = (range.end - range.start) as usize;
        if self.data.is_empty() {
            self.refused = self.objection(range.start, size);
            if self.refused.is_some() {
                return Ok(0);
            }
            self.data.reserve_exact(len);
        }
        let taken = data.len().min(len - self.data.len());
        self.data.extend_from_slice(&data[..taken]);
        // Taking less than came in ends the transfer.
        Ok(taken)
    }

    fn progress(&mut self, announced: f64, _: f64, _: f64, _: f64) -> bool {
        if let Goal::Whole(spool) = &self.goal
            && self.refused.is_none()
        {
            self.refused = spool.objection(announced);
        }
        self.refused.is_none()
    }
}

/// `bytes 0-99/1000` or `bytes 0-99/*`: first byte, size.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (unit, rest) = value.split_once(' ')?;
    let (range, size) = rest.trim().split_once('/')?;
    let (first, _) = range.split_once('-')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let size = match size.trim() {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    Some((first.trim().parse().ok()?, size))
}
