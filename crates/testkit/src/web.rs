//! A web server for tests: one file, served as well or as badly as the path says.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many requests of `/together` must be there before one is answered.
pub const TOGETHER: usize = 4;
/// The most bytes in an answer of `/short`.
pub const SHORT: usize = 70_000;

/// Paths: `good`, `redirect`, `locked` (user `user`, password `word`), `cookie` (`a=b`), `cut`
/// (half of each answer), `short`, `together`; and the bad ones: `404` and other numbers,
/// `norange`, `ignores`, `wrong`, `unsaid`, `grown`, `dead`, `mute`, `endless`, `headers`,
/// `nolength`, `huge`, `negative`.
pub struct Web {
    port: u16,
    state: Arc<State>,
}

struct State {
    content: Vec<u8>,
    requests: Mutex<Vec<String>>,
    waiting: Mutex<usize>,
    all_there: Condvar,
}

struct Request {
    method: String,
    path: String,
    fields: Vec<(String, String)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listener on loopback whose connections `serve` gets, each on a thread of its own.
pub(crate) fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> std::io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(port)
}

impl Web {
    pub fn new(content: Vec<u8>) -> std::io::Result<Web> {
        let state = Arc::new(State {
            content,
            requests: Mutex::default(),
            waiting: Mutex::new(0),
            all_there: Condvar::new(),
        });
        let at = state.clone();
        let port = listen(move |stream| {
            // A client may leave at any time.
            let _ = at.serve(stream);
        })?;
        Ok(Web { port, state })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// What was asked for so far: `GET /good bytes=0-99`.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.state.requests).clone()
    }
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace().map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut fields = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(':') {
            Some((name, value)) => fields.push((name.to_ascii_lowercase(), value.trim().to_string())),
            None => return Ok(Some(Request { method, path, fields })),
        }
    }
}

impl Request {
    fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(one, _)| one == name).map_or("", |(_, value)| value)
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut out = stream;
        while let Some(request) = read_request(&mut reader)? {
            let line = format!("{} {} {}", request.method, request.path, request.field("range"));
            lock(&self.requests).push(line.trim_end().to_string());
            let path = request.path.trim_start_matches('/').split(['/', '.']).next().unwrap_or_default();
            match (request.method.as_str(), path) {
                ("HEAD", _) => self.head(&mut out, path, &request)?,
                (_, "dead") => return Ok(()),
                (_, "mute") => {
                    reader.fill_buf()?;
                    return Ok(());
                }
                (_, "endless") => return self.endless(&mut out, &request),
                (_, "headers") => loop {
                    out.write_all(b"HTTP/1.1 206 Partial Content\r\n")?;
                    out.write_all(&b"X-Field: value\r\n".repeat(1000))?;
                },
                _ => {
                    if !self.body(&mut out, path, &request)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// A response without body that is no success, if the path or the request ask for one.
    fn refusal(&self, path: &str, request: &Request) -> Option<String> {
        let status = match path {
            "locked" if request.field("authorization") != "Basic dXNlcjp3b3Jk" => {
                "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"".to_string()
            }
            "cookie" if request.field("cookie") != "a=b" => "403 Forbidden".into(),
            "redirect" => "302 Found\r\nLocation: /good".into(),
            number if number.parse::<u16>().is_ok() => format!("{number} Because"),
            _ => return None,
        };
        Some(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"))
    }

    fn head(&self, out: &mut TcpStream, path: &str, request: &Request) -> std::io::Result<()> {
        if let Some(refusal) = self.refusal(path, request) {
            return out.write_all(refusal.as_bytes());
        }
        let length = match path {
            "nolength" => String::new(),
            "huge" => format!("Content-Length: {}\r\n", i64::MAX),
            "negative" => "Content-Length: -5\r\n".into(),
            _ => format!("Content-Length: {}\r\n", self.content.len()),
        };
        let ranges = if path == "norange" { "" } else { "accept-ranges: bytes\r\n" };
        out.write_all(format!("HTTP/1.1 200 OK\r\n{ranges}{length}\r\n").as_bytes())
    }

    /// First byte and end of the range asked for, which must lie within the file.
    fn range(&self, request: &Request) -> Option<(usize, usize)> {
        let (first, last) = request.field("range").strip_prefix("bytes=")?.split_once('-')?;
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < self.content.len()).then_some((first, last + 1))
    }

    /// Whether the connection goes on.
    fn body(&self, out: &mut TcpStream, path: &str, request: &Request) -> std::io::Result<bool> {
        if let Some(refusal) = self.refusal(path, request) {
            out.write_all(refusal.as_bytes())?;
            return Ok(true);
        }
        let size = self.content.len();
        let Some((first, mut end)) = self.range(request).filter(|_| path != "ignores") else {
            out.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes())?;
            out.write_all(&self.content)?;
            return Ok(true);
        };
        match path {
            "short" => end = end.min(first + SHORT),
            "together" => self.wait_for_others(),
            _ => {}
        }
        let range = match path {
            "wrong" => format!("Content-Range: bytes {}-{}/{size}\r\n", first + 512, end + 511),
            "grown" => format!("Content-Range: bytes {first}-{}/{}\r\n", end - 1, size + 1),
            "unsaid" => String::new(),
            _ => format!("Content-Range: bytes {first}-{}/{size}\r\n", end - 1),
        };
        let length = end - first;
        let head = format!("HTTP/1.1 206 Partial Content\r\n{range}Content-Length: {length}\r\n\r\n");
        out.write_all(head.as_bytes())?;
        let sent = if path == "cut" { length.div_ceil(2) } else { length };
        out.write_all(&self.content[first..first + sent])?;
        Ok(sent == length)
    }

    fn endless(&self, out: &mut TcpStream, request: &Request) -> std::io::Result<()> {
        let (first, end) = self.range(request).unwrap_or((0, 1));
        let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{end}/*\r\n\r\n");
        out.write_all(head.as_bytes())?;
        out.write_all(&self.content[first..end])?;
        loop {
            out.write_all(&[0xee; 65536])?;
        }
    }

    fn wait_for_others(&self) {
        let mut waiting = lock(&self.waiting);
        *waiting += 1;
        self.all_there.notify_all();
        while *waiting < TOGETHER {
            let (guard, limit) = self
                .all_there
                .wait_timeout(waiting, Duration::from_secs(60))
                .unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
            if limit.timed_out() {
                return;
            }
        }
    }
}

/// TLS before a port on loopback, by socat. Ends when dropped.
pub struct Shield {
    child: Child,
    pub port: u16,
}

impl Shield {
    /// `credentials`: a folder with `server-cert.pem` and `server-key.pem`.
    pub fn new(credentials: &std::path::Path, port: u16) -> Result<Shield, String> {
        let file = |name: &str| credentials.join(name).display().to_string();
        let listen = format!(
            "OPENSSL-LISTEN:0,bind=127.0.0.1,fork,verify=0,cert={},key={}",
            file("server-cert.pem"),
            file("server-key.pem")
        );
        let mut child = Command::new("socat")
            .args(["-d", "-d", &listen, &format!("TCP:127.0.0.1:{port}")])
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("socat: {e}"))?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no standard error")?).lines();
        let port = loop {
            let line = lines.next().and_then(Result::ok);
            let Some(line) = line else {
                let _ = child.kill();
                let _ = child.wait();
                return Err("socat does not listen".into());
            };
            if line.contains("listening on")
                && let Some(port) = line.rsplit(':').next().and_then(|text| text.trim().parse().ok())
            {
                break port;
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Shield { child, port })
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
