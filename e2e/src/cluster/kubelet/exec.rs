//! What a kubelet does to a container from outside: a GET, a connection, a command beside it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::template::Launch;
use crate::cluster::guard::Process;

/// Something to do to a container, resolved once.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Get { port: u16, path: String },
    Connect { port: u16 },
    Run { words: Vec<String> },
    Sleep(Duration),
}

impl Action {
    pub(super) fn new(
        container: &Container,
        get: Option<&HTTPGetAction>,
        connect: Option<&TCPSocketAction>,
        exec: Option<&ExecAction>,
    ) -> Option<Self> {
        if let Some(get) = get {
            let path = get.path.clone().unwrap_or_else(|| "/".to_owned());
            return Some(Self::Get { port: port_of(container, &get.port)?, path });
        }
        if let Some(connect) = connect {
            return Some(Self::Connect { port: port_of(container, &connect.port)? });
        }
        Some(Self::Run { words: exec?.command.clone()? })
    }

    /// Does it; whether it went well.
    pub(super) async fn run(self, address: Ipv4Addr, launch: &Launch, limit: Duration) -> bool {
        let done = async {
            match self {
                Self::Get { port, path } => {
                    get(address, port, &path).await.is_ok_and(|status| (200..400).contains(&status))
                }
                Self::Connect { port } => TcpStream::connect((address, port)).await.is_ok(),
                Self::Run { words } => run(&launch.localise(&words, address), launch).await,
                Self::Sleep(time) => {
                    tokio::time::sleep(time).await;
                    true
                }
            }
        };
        timeout(limit, done).await.unwrap_or(false)
    }
}

pub(super) fn port_of(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let port = ports.find(|port| port.name.as_ref() == Some(name))?;
            u16::try_from(port.container_port).ok()
        }
    }
}

/// The status of a GET.
async fn get(address: Ipv4Addr, port: u16, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect((address, port)).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: kube-probe\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    stream.take(64 << 10).read_to_end(&mut reply).await?;
    let head = String::from_utf8_lossy(&reply);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

async fn run(words: &[String], launch: &Launch) -> bool {
    let Some((program, args)) = words.split_first() else { return false };
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(&launch.env).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut process) = Process::start(&mut command) else { return false };
    loop {
        match process.ended() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(_) => return false,
        }
    }
}

/// Starts the container's process; what it prints is added to `log`.
pub(super) fn start(launch: &Launch, log: &Path) -> anyhow::Result<Process> {
    let file = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).env_clear().envs(&launch.env);
    Process::start(command.stdout(file.try_clone()?).stderr(file))
}
