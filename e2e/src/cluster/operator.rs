//! The operator as it is installed: with the rights that the chart gives it and no others, in one namespace.
//!
//! The rights are read from `config/default/operator.yaml`, which is made from the chart. What that binds for the whole cluster is
//! bound in the namespace of the test here, which is what the chart does when it is told to watch namespaces.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::front::Front;
use super::guard::Process;
use super::space::{Space, repository};
use crate::http;

/// The name of everything that is installed.
const NAME: &str = "certeus";
const MANIFESTS: &str = "config/default/operator.yaml";
/// The lease that operators share.
pub const LEASE: &str = "certeus-operator";
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Installs account and roles in the namespace; gives the account's token.
///
/// # Errors
/// When the API server refuses them.
pub fn install(space: &Space) -> Result<String> {
    let path = repository().join(MANIFESTS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut wanted = Vec::new();
    for document in text.split("\n---\n") {
        let mut object: Value = serde_saphyr::from_str(document).context("a manifest is not YAML")?;
        match object["kind"].as_str() {
            Some("ServiceAccount" | "Role" | "RoleBinding") => {}
            Some("ClusterRole") => {
                // One for the namespace, so that tests of different sources do not meet in it.
                object["kind"] = json!("Role");
            }
            Some("ClusterRoleBinding") => {
                object["kind"] = json!("RoleBinding");
                object["roleRef"]["kind"] = json!("Role");
            }
            _ => continue,
        }
        object["metadata"]["namespace"] = json!(space.name());
        for subject in object["subjects"].as_array_mut().into_iter().flatten() {
            subject["namespace"] = json!(space.name());
        }
        wanted.push(object.to_string());
    }
    space.apply(&wanted.join("\n---\n"))?;
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 86_400 },
    });
    let accounts = space.api::<ServiceAccount>();
    let issued: Value =
        space.block(accounts.create_subresource("token", NAME, &PostParams::default(), &request))?;
    Ok(issued["status"]["token"].as_str().context("a token request without a token")?.to_owned())
}

/// A running operator, killed when dropped.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    front: Front,
    admin: SocketAddr,
    identity: String,
    log: PathBuf,
}

impl Operator {
    /// Starts the program with this token, with a front between it and the API server.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(space: &Space, program: &std::path::Path, token: &str) -> Result<Self> {
        Self::start_beside(space, program, token, &[])
    }

    /// Starts it as [`Self::start`] does, to watch these namespaces as well.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start_beside(
        space: &Space,
        program: &std::path::Path,
        token: &str,
        others: &[&str],
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let identity = format!("operator-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let front = Front::start(([127, 0, 0, 1], 0).into(), space.plane().config()?)?;
        let kubeconfig = space.dir().join(format!("{identity}.kubeconfig"));
        space.plane().kubeconfig_for(&kubeconfig, token, Some(front.address()))?;
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = space.dir().join(format!("{identity}.log"));
        let file = File::create(&log).context("cannot create a log")?;
        let mut command = Command::new(program);
        command.args(["run", "--namespace", space.name(), "--lease-namespace", space.name()]);
        command.args(others.iter().flat_map(|namespace| ["--namespace", namespace]));
        command.arg(format!("--listen={admin}")).arg("--log-level=info,certeus_operator=debug");
        command.env_clear().env("KUBECONFIG", &kubeconfig).env("HOME", space.dir());
        command.env("POD_NAME", &identity).env("POD_NAMESPACE", space.name()).env("RUST_BACKTRACE", "1");
        let process = Process::start(command.stdout(file.try_clone()?).stderr(file))?;
        Ok(Self { process, front, admin, identity, log })
    }

    /// Between it and the API server.
    #[must_use]
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// Whether it holds the lease.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub fn leads(&self, space: &Space) -> Result<bool> {
        let lease = space.get::<Lease>(LEASE)?;
        let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
        Ok(holder.starts_with(&self.identity))
    }

    /// The sum of all series of a metric whose labels contain these texts; `None` when there is none.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let reply = http::request(self.admin, "GET", "/metrics").context("the operator does not answer")?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let series = text.lines().filter(|line| {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            &line[..end] == name && labels.iter().all(|label| line.contains(label))
        });
        let values: Vec<f64> = series.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect();
        Ok((!values.is_empty()).then(|| values.iter().sum()))
    }

    /// The status of one of its health routes.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn health(&self, path: &str) -> Result<u16> {
        Ok(http::request(self.admin, "GET", path).context("the operator does not answer")?.status)
    }

    /// `kill -9`.
    pub fn kill(self) {
        drop(self);
    }

    /// SIGTERM; waits for its end, which must be a good one.
    ///
    /// # Errors
    /// When it ends with another status than 0, or not in time.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::TERM);
        let mut status = None;
        crate::wait_for("the operator's end", END_TIMEOUT, || {
            status = self.process.ended()?;
            Ok(status.is_some())
        })?;
        match status {
            Some(status) if status.success() => Ok(()),
            other => bail!("the operator ended with {other:?}; its log is {}", self.log.display()),
        }
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When nobody can tell.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// All that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
