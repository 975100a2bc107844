//! One pod as a process: starts it, watches its readiness, asks it to drain, and says when it ended.
//!
//! The pod gets the listening API socket as its standard input and accepts from it, like all the others: a connection
//! waits in the socket's queue until some pod takes it, so none is refused while pods come and go. A pod is put in a
//! process group of its own, so that Ctrl-C in a terminal reaches the operator alone.
//! Never decides anything: `plan.rs` does. Read next: `driver.rs`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

use super::plan::Event;
use super::process::ProcessId;
use super::state::{self, StateDir, io_error};
use super::template::{API_KEY, DATABASE_URL, Launch, SIGNING_KEY, Template};
use crate::admin::{Admin, ApiKey, Reply};
use crate::errors::chain;

/// How often a pod is asked while an answer is awaited that something else waits for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const READY_INTERVAL: Duration = Duration::from_secs(1);
/// One late answer of a busy pod is not the loss of it (Kubernetes: `failureThreshold`).
const READY_FAILURES_MAX: u32 = 3;
/// A log is moved aside when it is longer, and the one moved aside before is removed.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Passed on to pods; everything else of our own environment stays here, as it would in a container.
const INHERITED: &[&str] = &["PATH", "HOME", "TMPDIR", "RUST_BACKTRACE"];

/// Why a pod could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(
        "port {0} for its admin interface is taken: stop the program that uses it, or choose another --admin-port"
    )]
    AdminPort(SocketAddr, #[source] io::Error),
    #[error("there is no port number left above --admin-port for pod {0}")]
    NoAdminPort(u32),
    #[error("cannot run {}", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("its process ended at once")]
    Gone,
}

/// What all pods of this machine share.
pub(crate) struct Site {
    pub(crate) program: PathBuf,
    pub(crate) state: StateDir,
    /// The API socket, listening.
    pub(crate) listener: TcpListener,
    /// The admin port of pod 0; 0 lets the system choose for each pod.
    pub(crate) admin_port: u16,
    /// The URL of the private database; `None` when a Secret names another.
    pub(crate) database_url: Option<String>,
}

/// A started pod.
pub(crate) struct Handle {
    pub(crate) name: String,
    pub(crate) process: ProcessId,
    pub(crate) admin: Admin,
    pub(crate) started: Timestamp,
    /// Taken when the pod is asked to drain.
    drain: Option<oneshot::Sender<()>>,
}

impl Handle {
    /// Asks the pod to drain. The answer is [`Event::Drained`].
    pub(crate) fn drain(&mut self) {
        if let Some(drain) = self.drain.take() {
            // A pod that just ended no longer listens, and reports its end instead.
            let _ended = drain.send(());
        }
    }
}

/// What a pod's task tells the driver.
pub(crate) struct Report {
    pub(crate) ordinal: u32,
    pub(crate) event: Event,
    /// Why, where there is something to say.
    pub(crate) detail: Option<String>,
}

impl Site {
    /// The admin address of a pod.
    pub(crate) fn admin_address(&self, ordinal: u32) -> Result<SocketAddr, Error> {
        let port = match self.admin_port {
            0 => 0,
            first => u16::try_from(ordinal)
                .ok()
                .and_then(|ordinal| first.checked_add(ordinal))
                .ok_or(Error::NoAdminPort(ordinal))?,
        };
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // The pod binds it again; bound here first, a port that is taken has a clear message.
        let bound = TcpListener::bind(wanted).and_then(|listener| listener.local_addr());
        bound.map_err(|source| Error::AdminPort(wanted, source))
    }

    /// Starts a pod and a task that reports what becomes of it. The last report is [`Event::Exited`].
    pub(crate) fn start(
        &self,
        template: &Template,
        ordinal: u32,
        reports: mpsc::Sender<Report>,
    ) -> Result<(Handle, impl Future<Output = ()> + Send + use<>), Error> {
        let address = self.admin_address(ordinal)?;
        let name = template.pod_name(ordinal);
        let folder = self.state.pod(&name);
        let launch = template.launch(ordinal, &folder);
        prepare(&launch)?;
        let log_path = self.state.log(&name);
        bound_log(&log_path)?;
        let opened = File::options().create(true).append(true).mode(0o600).open(&log_path);
        let log = opened.map_err(io_error("open", &log_path))?;
        let errors = log.try_clone().map_err(io_error("open", &log_path))?;
        let spawn_error = |source| Error::Spawn { program: self.program.clone(), source };
        let socket: OwnedFd = self.listener.try_clone().map_err(spawn_error)?.into();
        let mut command = Command::new(&self.program);
        command.env_clear();
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .args(&launch.args)
            .envs(&launch.env)
            .env("CERTEUS_API_LISTEN", "fd:0")
            .env("CERTEUS_ADMIN_LISTEN", address.to_string())
            .envs(self.database_url.as_ref().map(|url| (DATABASE_URL, url)))
            .current_dir(&folder)
            .stdin(Stdio::from(socket))
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true);
        if !template.anchored {
            // One for all pods, which share this machine.
            command
                .env("CERTEUS_LOG_ANCHOR", format!("file://{}", self.state.log_anchor().display()))
                .env("CERTEUS_LOG_ANCHOR_SHARED", "true");
        }
        if template.env(SIGNING_KEY).is_none() {
            // No Secret brings a key: the pods make one of their own on first use.
            command
                .env("CERTEUS_SIGNING_KEY_FILE", self.state.signing_key())
                .env("CERTEUS_LOG_ORIGIN", format!("localhost/{}", template.workload));
        }
        let child = command.spawn().map_err(spawn_error)?;
        let process = child.id().and_then(ProcessId::of).ok_or(Error::Gone)?;
        let admin = Admin { address, api_key: template.env(API_KEY).map(ApiKey::new) };
        let (drain, drain_asked) = oneshot::channel();
        let watch = watch(child, ordinal, admin.clone(), drain_asked, log_path, reports);
        Ok((Handle { name, process, admin, started: Timestamp::now(), drain: Some(drain) }, watch))
    }
}

/// Makes the folders and files that stand for the pod's volumes.
fn prepare(launch: &Launch) -> Result<(), Error> {
    for folder in &launch.fresh_folders {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", folder)(error).into());
            }
            Ok(()) | Err(_) => {}
        }
    }
    for folder in &launch.folders {
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        created.map_err(io_error("create", folder))?;
    }
    for (path, bytes) in &launch.files {
        state::write_private(path, bytes)?;
    }
    Ok(())
}

/// Keeps a log bounded. The pod appends, so it goes on at the new end after the cut.
pub(crate) fn bound_log(path: &Path) -> Result<(), state::Error> {
    let file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    if file.metadata().map_err(io_error("read", path))?.len() <= LOG_BYTES_MAX {
        return Ok(());
    }
    fs::copy(path, path.with_extension("log.old"))
        .and_then(|_| file.set_len(0))
        .map_err(io_error("cut", path))
}

/// The last line that a program wrote to its log.
fn last_line(path: &Path) -> Option<String> {
    const TAIL_BYTES: u64 = 2048;
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    tail.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

async fn watch(
    mut child: Child,
    ordinal: u32,
    admin: Admin,
    drain_asked: oneshot::Receiver<()>,
    log: PathBuf,
    reports: mpsc::Sender<Report>,
) {
    let ended = tokio::select! {
        ended = child.wait() => ended,
        () = probe(ordinal, &admin, drain_asked, &reports) => child.wait().await,
    };
    let line = last_line(&log).map(|line| format!("; last log line: {line}")).unwrap_or_default();
    let detail = match ended {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("{}{line}; log: {}", describe(status), log.display())),
        Err(error) => Some(format!("cannot wait for it: {error}")),
    };
    // The driver outlives its pods; without it there is nobody left to tell.
    let _nobody = reports.send(Report { ordinal, event: Event::Exited, detail }).await;
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Reports changes of readiness until the pod is asked to drain, then when it has drained.
async fn probe(
    ordinal: u32,
    admin: &Admin,
    mut drain_asked: oneshot::Receiver<()>,
    reports: &mpsc::Sender<Report>,
) {
    let report = async |event, detail| {
        // As above.
        let _nobody = reports.send(Report { ordinal, event, detail }).await;
    };
    let mut ready = false;
    let mut failures = 0;
    loop {
        let wait = if ready { READY_INTERVAL } else { POLL_INTERVAL };
        tokio::select! {
            asked = &mut drain_asked => match asked {
                Ok(()) => break,
                Err(_driver_gone) => return,
            },
            () = tokio::time::sleep(wait) => {}
        }
        let is_up = admin.get("/health/ready").await.is_ok_and(|reply| reply.status.is_success());
        failures = if is_up { 0 } else { failures + 1 };
        let now_ready = failures == 0 || (ready && failures < READY_FAILURES_MAX);
        if now_ready != ready {
            ready = now_ready;
            report(Event::Ready(ready), None).await;
        }
    }
    let detail = match admin.post("/admin/drain").await.and_then(Reply::success) {
        Ok(_) => {
            while !has_drained(admin).await {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            None
        }
        // SIGTERM drains as well, only without telling how far it is.
        Err(error) => Some(format!("cannot be asked to drain: {}", chain(&error))),
    };
    report(Event::Drained, detail).await;
}

/// The part of a pod's drain state that is needed here.
#[derive(Deserialize)]
struct DrainState {
    state: String,
}

/// An unanswered question is not a yes: the deadline bounds the wait.
async fn has_drained(admin: &Admin) -> bool {
    let Ok(body) = admin.get("/admin/drain").await.and_then(Reply::success) else { return false };
    serde_json::from_slice::<DrainState>(&body).is_ok_and(|drain| drain.state == "drained")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_cut_and_its_writer_goes_on() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("demo-0.log");
        bound_log(&path).unwrap();
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        writer.set_len(LOG_BYTES_MAX).unwrap();
        writer.write_all(b"\nlast words\n\n").unwrap();
        assert_eq!(last_line(&path).as_deref(), Some("last words"));
        bound_log(&path).unwrap();
        writer.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(fs::metadata(path.with_extension("log.old")).unwrap().len() > LOG_BYTES_MAX);
    }
}
