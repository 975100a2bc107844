//! An operator process in a state folder of its own, and ways to look at it from outside.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const OPERATOR: &str = env!("CARGO_BIN_EXE_certeus-operator");
const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits for a condition.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process runs; one that ended and was not reaped yet does not.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Sends one request and returns the body of the reply.
pub(crate) fn http(address: &str, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "{request} HTTP/1.1\r\nhost: {address}\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (_head, body) = reply.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(body.to_owned())
}

/// Manifests and a state folder.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    manifests: String,
    pod: String,
}

/// What a command printed.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
    pub(crate) errors: String,
}

impl Site {
    /// A cluster of one to three pods that scales on queue depth, with the given `spec.ledger`.
    pub(crate) fn new(ledger: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // PostgreSQL runs as another user when the tests run as root.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let pod = Path::new(OPERATOR).with_file_name("examples").join("fake-pod");
        assert!(pod.exists(), "build the stand-in first: cargo build --package certeus-operator --examples");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let site = Self { manifests: text(&manifests), pod: text(&pod), folder };
        site.write_cluster(ledger);
        site
    }

    pub(crate) fn write_cluster(&self, ledger: &str) {
        self.write_cluster_with(ledger, "");
    }

    /// The same with further lines of `spec`.
    pub(crate) fn write_cluster_with(&self, ledger: &str, spec: &str) {
        let text = format!(
            "apiVersion: certeus.io/v1alpha1\n\
             kind: LedgerCluster\n\
             metadata: {{ name: demo }}\n\
             spec:\n  \
               database: {{ embedded: true }}\n  \
               ledger: {{ {ledger} }}\n  \
               autoscaling: {{ min: 1, max: 3, cooldown: 1s, cpu: {{ enabled: false }} }}\n\
             {spec}"
        );
        self.write_file("cluster.yaml", &text);
    }

    pub(crate) fn write_file(&self, name: &str, text: &str) {
        std::fs::write(Path::new(&self.manifests).join(name), text).unwrap();
    }

    pub(crate) fn manifests(&self) -> &str {
        &self.manifests
    }

    pub(crate) fn pod(&self) -> &str {
        &self.pod
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(OPERATOR);
        command.args(args).arg("--state-dir").arg(self.state());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).stdin(Stdio::null()).output().unwrap();
        Ran {
            code: output.status.code(),
            text: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A running `certeus-operator local`.
pub(crate) struct Instance<'a> {
    site: &'a Site,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl<'a> Instance<'a> {
    pub(crate) fn start(site: &'a Site) -> Self {
        let args = ["local", "-f", site.manifests(), "--api-listen", "127.0.0.1:0", "--admin-port", "0"];
        let mut command = site.command(&args);
        command.args(["--dataplane", site.pod()]).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let kept = lines.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("{line}");
                kept.lock().unwrap().push(line);
            }
        });
        Self { site, child, lines }
    }

    /// The state that `status` shows once the condition holds.
    pub(crate) fn wait_for(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut found = Value::Null;
        until(what, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the operator ended while waiting for {what}: {ended:?}");
            let status = self.site.run(&["status", "-o", "json"]);
            found = serde_json::from_str(&status.text).unwrap_or_default();
            status.code == Some(0) && holds(&found)
        });
        found
    }

    pub(crate) fn wait_for_line(&self, part: &str) {
        until(part, || self.lines.lock().unwrap().iter().any(|line| line.contains(part)));
    }

    /// Repeats a signal as an impatient user would.
    pub(crate) fn signal_until_line(&self, signal: Signal, part: &str) {
        until(part, || {
            self.signal(signal);
            self.lines.lock().unwrap().iter().any(|line| line.contains(part))
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        self.wait_exit_within(TIMEOUT)
    }

    pub(crate) fn wait_exit_within(&mut self, timeout: Duration) -> Option<i32> {
        let deadline = Instant::now() + timeout;
        let mut ended = None;
        until("the operator's end", || {
            ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_some() || Instant::now() < deadline,
                "the operator did not end within {timeout:?}"
            );
            ended.is_some()
        });
        ended.and_then(|status| status.code())
    }
}

impl Drop for Instance<'_> {
    /// A failed test leaves nothing behind either.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _stopped = self.site.run(&["down"]);
            let _reaped = self.child.wait();
        }
    }
}
