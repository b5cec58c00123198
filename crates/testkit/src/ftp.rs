//! An FTP server for tests: one file under several names.

use crate::web::listen;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Serves `good`, `cut` (half of what is left, then the data connection ends) and `locked`
/// (user `user`, password `word`).
pub struct Ftp {
    port: u16,
}

#[derive(Default)]
struct Session {
    user: String,
    password: String,
    from: usize,
    data: Option<TcpListener>,
}

impl Ftp {
    pub fn new(content: Vec<u8>) -> std::io::Result<Ftp> {
        let content = Arc::new(content);
        let port = listen(move |stream| {
            // A client may leave at any time.
            let _ = Session::default().serve(stream, &content);
        })?;
        Ok(Ftp { port })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("ftp://127.0.0.1:{}/{path}", self.port)
    }
}

impl Session {
    fn serve(&mut self, stream: TcpStream, content: &[u8]) -> std::io::Result<()> {
        let mut out = stream.try_clone()?;
        out.write_all(b"220 ready\r\n")?;
        for line in BufReader::new(stream).lines() {
            let line = line?;
            let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
            let answer = self.answer(&mut out, (command, argument), content)?;
            // At once: the end of the line would wait for the client's acknowledgement.
            out.write_all(format!("{answer}\r\n").as_bytes())?;
            if command == "QUIT" {
                break;
            }
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        match name.rsplit('/').next() {
            Some("good" | "cut") => true,
            Some("locked") => self.user == "user" && self.password == "word",
            _ => false,
        }
    }

    fn answer(
        &mut self,
        out: &mut TcpStream,
        (command, argument): (&str, &str),
        content: &[u8],
    ) -> std::io::Result<String> {
        Ok(match command {
            "USER" => {
                self.user = argument.into();
                "331 password".into()
            }
            "PASS" => {
                self.password = argument.into();
                "230 in".into()
            }
            "PWD" => "257 \"/\"".into(),
            "TYPE" | "CWD" | "PBSZ" => "200 yes".into(),
            "SIZE" if self.has(argument) => format!("213 {}", content.len()),
            "REST" => match argument.parse() {
                Ok(from) if from <= content.len() => {
                    self.from = from;
                    "350 go on".into()
                }
                _ => "501 no".into(),
            },
            "EPSV" => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let port = listener.local_addr()?.port();
                self.data = Some(listener);
                format!("229 here (|||{port}|)")
            }
            "RETR" if self.has(argument) => match self.data.take() {
                Some(listener) => {
                    out.write_all(b"150 coming\r\n")?;
                    let rest = &content[std::mem::take(&mut self.from)..];
                    let cut = argument.ends_with("cut");
                    let sent = if cut { rest.len().div_ceil(2) } else { rest.len() };
                    let whole = listener.accept()?.0.write_all(&rest[..sent]).is_ok();
                    if whole && !cut { "226 done".into() } else { "426 cut off".into() }
                }
                None => "425 no connection".into(),
            },
            "SIZE" | "RETR" => "550 no such file".into(),
            "QUIT" => "221 bye".into(),
            _ => "502 what?".into(),
        })
    }
}
