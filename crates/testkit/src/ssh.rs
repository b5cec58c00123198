//! An SSH server (Debian's `sshd`, one process for each connection) and an agent with the key
//! that it accepts, both for the present user and one test.

use crate::images::tool;
use crate::web::listen;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

pub struct Ssh {
    dir: PathBuf,
    pub port: u16,
    connections: Arc<Mutex<Vec<(TcpStream, Child)>>>,
    agent: Child,
}

impl Ssh {
    /// Keeps its keys in `dir`, which it makes.
    pub fn new(dir: &Path) -> std::io::Result<Ssh> {
        std::fs::create_dir_all(dir.join("home/.ssh"))?;
        let path = |name: &str| dir.join(name).display().to_string();
        for (kind, name) in [("ed25519", "host"), ("ed25519", "user")] {
            tool("ssh-keygen", &["-q", "-t", kind, "-N", "", "-f", &path(name)]);
        }
        std::fs::copy(dir.join("user.pub"), dir.join("accepted"))?;
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nSubsystem sftp internal-sftp\nPidFile none\n",
            path("host"),
            path("accepted")
        );
        std::fs::write(dir.join("config"), config)?;
        // Where sshd, run by root, locks itself up.
        let _ = std::fs::create_dir_all("/run/sshd");
        let agent =
            Command::new("ssh-agent").args(["-D", "-a", &path("agent")]).stdout(Stdio::null()).spawn()?;
        let socket = path("agent");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !Path::new(&socket).exists() {
            assert!(std::time::Instant::now() < end, "ssh-agent does not come");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let added =
            Command::new("ssh-add").args(["-q", &path("user")]).env("SSH_AUTH_SOCK", &socket).status()?;
        assert!(added.success());
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (kept, config) = (connections.clone(), path("config"));
        let port = listen(move |stream| {
            let Ok(child) = serve(&stream, &config) else { return };
            kept.lock().unwrap().push((stream, child));
        })?;
        Ok(Ssh { dir: dir.to_path_buf(), port, connections, agent })
    }

    /// What a process needs to reach the agent and to have no home but the test's.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name: &str| self.dir.join(name).display().to_string();
        [("SSH_AUTH_SOCK", path("agent")), ("HOME", path("home"))]
    }

    /// The file of known hosts of [`Ssh::environment`].
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("home/.ssh/known_hosts")
    }

    /// `type base64` of the server's key, and its fingerprint by MD5 or SHA-256 in hexadecimal.
    pub fn host_key(&self) -> String {
        let line = std::fs::read_to_string(self.dir.join("host.pub")).unwrap();
        line.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }

    /// The server's fingerprint by MD5, with colons.
    pub fn fingerprint(&self) -> String {
        let out = Command::new("ssh-keygen")
            .args(["-l", "-E", "md5", "-f"])
            .arg(self.dir.join("host.pub"))
            .output();
        let text = String::from_utf8(out.unwrap().stdout).unwrap();
        text.split("MD5:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_string()
    }

    /// From now on nobody can log in.
    pub fn accept_nobody(&self) {
        std::fs::write(self.dir.join("accepted"), "").unwrap();
    }

    /// Ends all connections.
    pub fn cut(&self) {
        for (stream, child) in self.connections.lock().unwrap().iter_mut() {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = child.kill();
        }
    }
}

fn serve(stream: &TcpStream, config: &str) -> std::io::Result<Child> {
    let end = || stream.try_clone().map(|stream| Stdio::from(OwnedFd::from(stream)));
    Command::new("/usr/sbin/sshd")
        .args(["-i", "-q", "-f", config])
        .stdin(end()?)
        .stdout(end()?)
        .stderr(Stdio::null())
        .spawn()
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.cut();
        for (_, child) in self.connections.lock().unwrap().iter_mut() {
            let _ = child.wait();
        }
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}
