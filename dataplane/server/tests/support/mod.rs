//! A pod as a process beside a real PostgreSQL, and a small HTTP client to talk to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use certeus_localpg::{LocalPg, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A running pod; killed when dropped.
pub(crate) struct Pod {
    child: Child,
    pub(crate) api: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A pod's settings.
#[derive(Default)]
pub(crate) struct Settings<'a> {
    pub(crate) yaml: &'a str,
    pub(crate) env: &'a [(&'a str, &'a str)],
}

pub(crate) fn postgres() -> LocalPg {
    LocalPg::start(&Options::default()).unwrap()
}

pub(crate) fn command(
    database_url: &str,
    settings: &Settings<'_>,
    file: &tempfile::NamedTempFile,
) -> Command {
    file.as_file().write_all(settings.yaml.as_bytes()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_certeus-dataplane"));
    command
        .arg("--config")
        .arg(file.path())
        .env_remove("CERTEUS_API_KEY")
        .env("CERTEUS_DB_URL", database_url)
        .env("CERTEUS_API_LISTEN", "127.0.0.1:0")
        .env("CERTEUS_ADMIN_LISTEN", "127.0.0.1:0")
        .envs(settings.env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Pod {
    pub(crate) fn start(database_url: &str, settings: &Settings<'_>) -> Self {
        Self::start_with(database_url, settings, Stdio::null())
    }

    /// Starts the pod and reads its addresses from the log.
    pub(crate) fn start_with(database_url: &str, settings: &Settings<'_>, stdin: Stdio) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut child = command(database_url, settings, &file).stdin(stdin).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        // From here on a panic kills the process.
        let mut pod = Self { child, api: unknown, admin: unknown };
        let mut line = String::new();
        while pod.api == unknown {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the pod ended before it served");
            let entry: Value =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            if let (Some(api), Some(admin)) = (entry["api.address"].as_str(), entry["admin.address"].as_str())
            {
                pod.api = api.parse().unwrap();
                pod.admin = admin.parse().unwrap();
            }
        }
        // The log must go on being read, or the pod would block on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        pod
    }

    pub(crate) fn ready(self) -> Self {
        let started = Instant::now();
        while self.get("/health/ready").status != 200 {
            assert!(started.elapsed() < Duration::from_secs(30), "the pod does not become ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        self
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the pod's end; gives its exit code.
    pub(crate) fn wait(mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < Duration::from_secs(30), "the pod does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        request(self.api, "GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        request(self.api, "POST", path, headers, body)
    }

    /// Appends a JSON body.
    pub(crate) fn append(&self, body: &str) -> Reply {
        self.post("/v1/ledger/events", &[JSON], body.as_bytes())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _already_reaped = self.child.wait();
    }
}

pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");
pub(crate) const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Status and the last part of the problem's type.
    pub(crate) fn problem(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let kind = self.json()["type"].as_str().unwrap().to_owned();
        (self.status, kind.strip_prefix("https://certeus.io/problems/").unwrap().to_owned())
    }
}

/// One request on a connection of its own.
pub(crate) fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // A pod may refuse a large body before it has read it all.
    let _refused_early = stream.write_all(body);
    read_reply(stream)
}

pub(crate) fn read_reply(mut stream: TcpStream) -> Reply {
    let mut raw = Vec::new();
    let mut piece = [0_u8; 64 << 10];
    // A reset after the reply is what a refused upload gives.
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        raw.extend_from_slice(&piece[..read]);
    }
    let end =
        raw.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or_else(|| panic!("no reply: {raw:?}"));
    let head = String::from_utf8(raw[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head, body: raw[end + 4..].to_vec() }
}

/// A listening socket for a pod to inherit.
pub(crate) fn shared_socket() -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}
