//! Runs a LedgerCluster on this machine: the same manifests and the same reasoning as in Kubernetes, with pods as
//! processes and a private PostgreSQL.
//!
//! Owns the processes it starts and one state folder. Past one machine, Kubernetes: this is no second orchestrator.
//! Promises: a pod drains before it is stopped; nothing it started survives it, except when it is killed, and then the
//! next `local` or `down` ends what is left. Reading order: `driver.rs`, `plan.rs`, `pod.rs`, `template.rs`, `state.rs`.

mod cluster;
mod down;
mod driver;
mod folder;
mod plan;
mod pod;
mod postgres;
mod process;
mod scaler;
mod signals;
mod snapshot;
mod state;
mod status;
mod table;
mod template;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

use crate::cli::{DownArgs, Exit, LocalArgs, StateArgs, StatusArgs};
use cluster::Cluster;
use folder::Folder;
use pod::Site;
use postgres::Postgres;
use signals::Signals;
use state::{Processes, StateDir};
use template::DATABASE_URL;

/// Connections that wait for a pod; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
const DATAPLANE: &str = "certeus-dataplane";

/// Why a command on a local instance failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Status(#[from] status::Error),
    #[error(transparent)]
    Manifests(#[from] cluster::Error),
    #[error(
        "the pod binary {} does not exist or cannot be executed: build it with 'cargo build --package {DATAPLANE}', or \
         name another with --dataplane", .0.display()
    )]
    NoDataplane(PathBuf),
    #[error("address {0} is in use: stop the program that uses it, or choose another with --api-listen")]
    ApiInUse(SocketAddr),
    #[error("cannot listen on {0}")]
    ApiListen(SocketAddr, #[source] io::Error),
    #[error(transparent)]
    Pod(#[from] pod::Error),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
}

impl Error {
    /// The exit code that the help promises for it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Manifests(_) => Exit::InvalidManifests,
            Self::NoDataplane(_)
            | Self::Postgres(postgres::Error::Server(certeus_localpg::Error::NotInstalled)) => {
                Exit::NotInstalled
            }
            Self::ApiInUse(_) | Self::Pod(pod::Error::AdminPort(..)) => Exit::AddressInUse,
            Self::State(state::Error::Held { .. })
            | Self::Status(status::Error::NotRunning(_) | status::Error::Changing(_)) => Exit::OtherInstance,
            Self::State(_)
            | Self::Status(_)
            | Self::ApiListen(..)
            | Self::Pod(_)
            | Self::Postgres(_)
            | Self::Signals(_)
            | Self::Runtime(_) => Exit::Failure,
        }
    }
}

/// `certeus-operator local`.
pub(crate) fn local(args: LocalArgs) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(run(args))
}

/// `certeus-operator status`.
pub(crate) fn status(args: StatusArgs) -> Result<String, Error> {
    let StatusArgs { output, state } = args;
    Ok(status::run(&state_dir(state)?, output)?)
}

/// `certeus-operator down`.
pub(crate) fn down(args: DownArgs) -> Result<(), Error> {
    let DownArgs { purge, state } = args;
    Ok(down::run(&state_dir(state)?, purge)?)
}

fn state_dir(args: StateArgs) -> Result<StateDir, Error> {
    let StateArgs { state_dir } = args;
    let root = state_dir.map_or_else(StateDir::default_path, Ok)?;
    Ok(StateDir::at(&root)?)
}

/// Everything that can be refused is, before anything is started.
async fn run(args: LocalArgs) -> Result<(), Error> {
    let LocalArgs { manifests, api_listen, admin_port, dataplane, state } = args;
    let signals = Signals::listen().map_err(Error::Signals)?;
    let folder = Folder::watch(std::path::absolute(&manifests).unwrap_or(manifests));
    let cluster = Cluster::load(folder.path())?;
    cluster.check_listen(api_listen)?;
    let program = find_dataplane(dataplane)?;
    let state = state_dir(state)?;
    state.create()?;
    let lock = state.lock()?;
    down::end_leftovers(&state)?;
    let mut processes = Processes::of_this_operator();
    state.write_processes(&processes)?;

    let listener = listen(api_listen)?;
    let mut site = Site { program, state, listener, admin_port, database_url: None };
    site.admin_address(0)?;
    let (reports, postgres_reports) = mpsc::channel(8);
    let postgres = if cluster.has_embedded_database() {
        say(&format!("PostgreSQL starts; its data is in {}", site.state.postgres().display()));
        let postgres = Postgres::start(&site.state.postgres(), cluster.connections_max(), reports).await?;
        processes.postgres = postgres.process;
        site.state.write_processes(&processes)?;
        site.database_url = Some(postgres.url.clone());
        Some(postgres)
    } else {
        None
    };
    if let Some(url) = site.database_url.as_deref().or(cluster.template.env(DATABASE_URL)) {
        state::write_private(&site.state.database_url(), url.as_bytes())?;
        say(&format!("the database's URL is in {}", site.state.database_url().display()));
    }

    let state = site.state.clone();
    driver::run(site, folder, cluster, processes, postgres, postgres_reports, signals).await;
    state.forget_instance()?;
    drop(lock);
    say("stopped; nothing is left running");
    Ok(())
}

fn find_dataplane(named: Option<PathBuf>) -> Result<PathBuf, Error> {
    let beside = || std::env::current_exe().ok()?.parent().map(|folder| folder.join(DATAPLANE));
    let path = named.or_else(beside).unwrap_or_else(|| PathBuf::from(DATAPLANE));
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    // Pods run in folders of their own.
    match path.canonicalize() {
        Ok(path) if executable(&path) => Ok(path),
        Ok(path) => Err(Error::NoDataplane(path)),
        Err(_missing) => Err(Error::NoDataplane(path)),
    }
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    };
    bind().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => Error::ApiInUse(address),
        _ => Error::ApiListen(address, error),
    })
}

/// Tells the user something, with the time.
fn say(text: &str) {
    let now = Timestamp::now();
    // Without a reader there is nobody to tell; the work goes on.
    let _nobody = writeln!(io::stderr(), "{now:.0}  {text}");
}
