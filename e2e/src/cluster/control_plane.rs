//! etcd, kube-apiserver and kube-controller-manager on free loopback ports, one set for each process of tests.
//!
//! With `USE_EXISTING_CLUSTER=1` the current kubeconfig's cluster is used instead, and nothing is started.
//! Whoever asks gets an administrator's rights; [`ControlPlane::kubeconfig_for`] makes less of them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

use super::guard::{Guard, Process};
use super::runtime;
use crate::wait_for;

/// A machine that compiles beside this is slow.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    /// Ended by the guard, as this is never dropped. None of a cluster that is not ours.
    processes: Vec<Process>,
}

impl ControlPlane {
    /// That of this process, started when it is asked for first.
    ///
    /// # Errors
    /// When the programs cannot be had, or do not start.
    pub fn get() -> Result<&'static Self> {
        static PLANE: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
        let plane = PLANE.get_or_init(|| {
            let plane = if std::env::var("USE_EXISTING_CLUSTER").is_ok_and(|value| value == "1") {
                Self::existing()
            } else {
                Self::start()
            };
            plane.map_err(|error| format!("{error:#}"))
        });
        plane.as_ref().map_err(|text| anyhow!("no control plane: {text}"))
    }

    fn existing() -> Result<Self> {
        let own = std::env::var_os("KUBECONFIG").map(PathBuf::from);
        let usual = || std::env::home_dir().map(|home| home.join(".kube/config"));
        let kubeconfig = own.or_else(usual).context("there is no kubeconfig")?;
        ensure!(kubeconfig.is_file(), "there is no {}", kubeconfig.display());
        Ok(Self { kubectl: "kubectl".into(), kubeconfig, processes: Vec::new() })
    }

    fn start() -> Result<Self> {
        let programs = programs()?;
        let dir = Guard::get()?.dir().join("control-plane");
        fs::create_dir_all(&dir)?;
        let begun = Instant::now();
        // Between the choice of a port and its use somebody else may take it.
        let mut result = Self::start_once(&programs, &dir);
        for attempt in 1..3 {
            let Err(error) = &result else { break };
            eprintln!("the control plane did not start: {error:#}; trying again");
            let dir = dir.join(format!("again-{attempt}"));
            fs::create_dir_all(&dir)?;
            result = Self::start_once(&programs, &dir);
        }
        eprintln!(
            "control plane of {} started in {:.1} s",
            programs.display(),
            begun.elapsed().as_secs_f32()
        );
        result
    }

    fn start_once(programs: &Path, dir: &Path) -> Result<Self> {
        let [etcd_port, peer_port, api_port] = free_ports()?;
        let log = |name: &str| File::create(dir.join(format!("{name}.log"))).context("cannot create a log");
        let run = |name: &str, arguments: &[String]| -> Result<Process> {
            let mut command = Command::new(programs.join(name));
            command.args(arguments).env_clear().env("HOME", dir).env("PATH", "/usr/bin:/bin");
            Process::start(command.stdout(log(name)?).stderr(log(&format!("{name}-errors"))?))
        };
        let path = |name: &str| dir.join(name).display().to_string();

        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let etcd = run(
            "etcd",
            &[
                format!("--data-dir={}", path("etcd")),
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
                // Nothing of this is needed after a power failure.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        )?;

        let token = random_token()?;
        fs::write(dir.join("tokens.csv"), format!("{token},admin,admin,\"system:masters\"\n"))?;
        let (private, public) = signing_key()?;
        fs::write(dir.join("accounts.key"), private)?;
        fs::write(dir.join("accounts.pub"), public)?;
        let api_server = run(
            "kube-apiserver",
            &[
                format!("--etcd-servers={etcd_url}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                format!("--secure-port={api_port}"),
                // It makes itself a certificate there.
                format!("--cert-dir={}", dir.display()),
                format!("--token-auth-file={}", path("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-signing-key-file={}", path("accounts.key")),
                format!("--service-account-key-file={}", path("accounts.pub")),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                // Endpoints refuse loopback, so there is nothing to reconcile.
                "--endpoint-reconciler-type=none".to_owned(),
            ],
        )?;
        let certificate = dir.join("apiserver.crt");
        let mut processes = vec![etcd, api_server];
        wait_for("the API server's certificate", START_TIMEOUT, || {
            all_run(&mut processes, dir)?;
            Ok(certificate.is_file() && fs::read_to_string(&certificate)?.contains("END CERTIFICATE"))
        })?;
        let kubeconfig = dir.join("kubeconfig");
        let server = format!("https://127.0.0.1:{api_port}");
        write_kubeconfig(&kubeconfig, &server, Some(&certificate), &json!({ "token": token }))?;
        let mut plane = Self { kubectl: programs.join("kubectl"), kubeconfig, processes: Vec::new() };
        wait_for("the API server", START_TIMEOUT, || {
            all_run(&mut processes, dir)?;
            Ok(plane.is_ready())
        })?;
        processes.push(run("kube-controller-manager", &[
            format!("--kubeconfig={}", plane.kubeconfig.display()),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            format!("--root-ca-file={}", certificate.display()),
            // There are no volumes, and nothing waits for them.
            "--controllers=*,-persistentvolume-binder-controller,-persistentvolume-attach-detach-controller,\
             -persistentvolume-expander-controller"
                .to_owned(),
            "--kube-api-qps=300".to_owned(),
            "--kube-api-burst=600".to_owned(),
            "--concurrent-statefulset-syncs=20".to_owned(),
            // Nobody here waits for 15 s.
            "--horizontal-pod-autoscaler-sync-period=1s".to_owned(),
        ])?);
        plane.processes = processes;
        Ok(plane)
    }

    fn is_ready(&self) -> bool {
        runtime().block_on(async {
            let Ok(client) = self.connect().await else { return false };
            let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else { return false };
            client.request_text(request).await.is_ok()
        })
    }

    async fn connect(&self) -> Result<Client> {
        client_of(&self.kubeconfig).await
    }

    /// A client with an administrator's rights.
    ///
    /// # Errors
    /// When the kubeconfig is of no use.
    pub fn client(&self) -> Result<Client> {
        runtime().block_on(self.connect())
    }

    /// Whether somebody else started it and may go on using it.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.processes.is_empty()
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where the API server is, and what its certificate is checked with.
    ///
    /// # Errors
    /// When the kubeconfig is of no use.
    pub fn config(&self) -> Result<Config> {
        runtime().block_on(config_of(&self.kubeconfig))
    }

    /// A kubeconfig whose only credential is this token, for the server at `address` without TLS (a [`super::front::Front`])
    /// or for the API server itself.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_for(&self, to: &Path, token: &str, address: Option<SocketAddr>) -> Result<()> {
        let user = json!({ "token": token });
        if let Some(address) = address {
            return write_kubeconfig(to, &format!("http://{address}"), None, &user);
        }
        let text = fs::read_to_string(&self.kubeconfig).context("cannot read the kubeconfig")?;
        let mut config = Kubeconfig::from_yaml(&text).context("not a kubeconfig")?;
        for named in &mut config.auth_infos {
            named.auth_info = Some(serde_json::from_value(user.clone())?);
        }
        fs::write(to, serde_json::to_vec(&config)?).context("cannot write a kubeconfig")
    }

    /// `kubectl` as administrator; what it printed, or on failure what it complained about.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments).env("HOME", Guard::get()?.dir());
        let output = command.output().context("cannot run kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A client with what a kubeconfig holds.
pub(crate) async fn client_of(kubeconfig: &Path) -> Result<Client> {
    Client::try_from(config_of(kubeconfig).await?).context("cannot make a client")
}

async fn config_of(kubeconfig: &Path) -> Result<Config> {
    let read = Kubeconfig::read_from(kubeconfig).context("cannot read the kubeconfig")?;
    Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.context("not a kubeconfig")
}

fn write_kubeconfig(
    to: &Path,
    server: &str,
    certificate: Option<&Path>,
    user: &serde_json::Value,
) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "e2e", "cluster": { "server": server, "certificate-authority": certificate } }],
        "users": [{ "name": "e2e", "user": user }],
        "contexts": [{ "name": "e2e", "context": { "cluster": "e2e", "user": "e2e" } }],
        "current-context": "e2e",
    });
    fs::write(to, config.to_string()).context("cannot write a kubeconfig")
}

/// The folder with all four programs; `scripts/controlplane.sh` says where they are looked for, and builds them.
fn programs() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/controlplane.sh");
    // What it says while it builds is for whoever waits.
    let output = Command::new(&script).stderr(std::process::Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(output.status.success(), "{} failed", script.display());
    Ok(PathBuf::from(String::from_utf8(output.stdout).context("not a path")?.trim_end()))
}

fn all_run(processes: &mut [Process], dir: &Path) -> Result<()> {
    for process in processes {
        if let Some(status) = process.ended()? {
            bail!("a program ended with {status}:\n{}", tails(dir));
        }
    }
    Ok(())
}

/// The last lines of all logs in a folder.
pub(crate) fn tails(dir: &Path) -> String {
    let mut text = String::new();
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
        let log = fs::read(path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(3000)..]).into_owned();
        if !log.trim().is_empty() {
            text += &format!("--- {}\n{}\n", path.display(), log.trim_end());
        }
    }
    text
}

/// Ports that were free a moment ago, all different.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_unspecified| anyhow!("no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What tokens of service accounts are signed and checked with, as PEM.
fn signing_key() -> Result<(String, String)> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
    let pair = pair.map_err(|_unspecified| anyhow!("cannot make a key"))?;
    let private = pair.to_pkcs8v1().map_err(|_unspecified| anyhow!("cannot write a key"))?;
    let public: PublicKeyX509Der<'_> =
        pair.public_key().as_der().map_err(|_unspecified| anyhow!("cannot write a key"))?;
    Ok((pem("PRIVATE KEY", private.as_ref()), pem("PUBLIC KEY", public.as_ref())))
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}
