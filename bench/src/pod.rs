//! One data-plane pod, as it is when nobody configures anything but what a measurement is about.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait_for;

/// A running pod, killed when dropped.
pub(crate) struct Pod {
    child: Child,
    api: SocketAddr,
}

impl Pod {
    pub(crate) fn start(
        program: &Path,
        database_url: &str,
        log: &Path,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let (api, admin) = (free_address()?, free_address()?);
        let log = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = Command::new(program)
            .env("CERTEUS_DB_URL", database_url)
            .env("CERTEUS_API_LISTEN", api.to_string())
            .env("CERTEUS_ADMIN_LISTEN", admin.to_string())
            .env_remove("CERTEUS_API_KEY")
            .env_remove("CERTEUS_SIGNING_KEY")
            .env_remove("CERTEUS_SIGNING_KEY_FILE")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(log.try_clone().context("cannot use the pod's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}: is it built?", program.display()))?;
        let mut pod = Self { child, api };
        wait_for("the start of the pod", Duration::from_secs(30), || {
            if let Some(status) = pod.child.try_wait().context("cannot watch the pod")? {
                bail!("the pod ended with {status}; its log says why");
            }
            Ok(is_ready(admin).unwrap_or(false))
        })?;
        Ok(pod)
    }

    pub(crate) fn api(&self) -> SocketAddr {
        self.api
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Drains and ends it.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("cannot end the pod")?;
        let status = self.child.wait().context("cannot wait for the pod")?;
        ensure!(status.success(), "the pod ended with {status}");
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // After `stop` it has ended already, and otherwise an error is already being reported.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET /health/ready HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    Ok(reply.starts_with(b"HTTP/1.1 200"))
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free port")?;
    listener.local_addr().context("cannot find a free port")
}
