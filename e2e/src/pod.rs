//! A pod as a process that can be killed, frozen and started again.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{http, wait_for};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const END_TIMEOUT: Duration = Duration::from_secs(90);

/// How to start a pod.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// The program.
    pub program: PathBuf,
    /// Its whole environment beyond what the harness sets.
    pub env: Vec<(String, String)>,
    /// Its configuration file's text.
    pub config: String,
}

/// A running pod, killed when dropped.
#[derive(Debug)]
pub struct Pod {
    child: Child,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Pod {
    /// Starts a pod on free ports and waits until it listens; the database may be away. Its log goes to `log`.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn start(spec: &PodSpec, log: &Path) -> Result<Self> {
        let config = log.with_extension("yaml");
        std::fs::write(&config, &spec.config).context("cannot write the pod's configuration")?;
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = Command::new(&spec.program)
            .arg("--config")
            .arg(&config)
            .env_clear()
            .env("CERTEUS_API_LISTEN", "127.0.0.1:0")
            .env("CERTEUS_ADMIN_LISTEN", "127.0.0.1:0")
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            // Ctrl-C is for the harness, which then decides what becomes of its pods.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", spec.program.display()))?;
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        // From here on an error kills the process.
        let mut pod = Self { child, api: unknown, admin: unknown };
        wait_for("a pod's start", START_TIMEOUT, || {
            if let Some(status) = pod.child.try_wait().context("cannot watch the pod")? {
                bail!("the pod ended with {status}; its log is {}", log.display());
            }
            let text = std::fs::read_to_string(log).context("cannot read the pod's log")?;
            let Some((api, admin)) = text.lines().find_map(addresses) else { return Ok(false) };
            (pod.api, pod.admin) = (api, admin);
            Ok(true)
        })?;
        Ok(pod)
    }

    /// Where it takes requests.
    #[must_use]
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where it tells how it is.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits until it takes events.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_until_ready(&self) -> Result<()> {
        wait_for("a pod to be ready", START_TIMEOUT, || {
            Ok(http::request(self.admin, "GET", "/health/ready").is_ok_and(|reply| reply.status == 200))
        })
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill a pod")?;
        self.child.wait().context("cannot wait for a pod")?;
        Ok(())
    }

    /// SIGSTOP: it does nothing, and its connections stay.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM; waits for its end, which must be a good one.
    ///
    /// # Errors
    /// When it ends with another status than 0, or not in time.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        wait_for("a pod's end", END_TIMEOUT, || {
            let Some(status) = self.child.try_wait().context("cannot watch the pod")? else {
                return Ok(false);
            };
            ensure!(status.success(), "a pod that was told to stop ended with {status}");
            Ok(true)
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("cannot signal a pod")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It has ended already, or an error is already being reported.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// The line in which a pod says where it listens.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let entry: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = |field: &str| entry[field].as_str()?.parse().ok();
    Some((address("api.address")?, address("admin.address")?))
}
