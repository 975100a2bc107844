//! Keeps the private PostgreSQL of a local instance running, with the database `certeus` in it.
//!
//! One task owns the server. It comes back on the same port, so that the URL that pods were given stays true and they
//! reconnect by themselves.

use std::path::Path;
use std::time::Duration;

use certeus_localpg::{LocalPg, Options};
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::process::ProcessId;
use crate::errors::chain;

const DATABASE: &str = "certeus";
/// Beside those of pods: `psql` and other tools, PostgreSQL's own reserve for its superuser.
const RESERVED_CONNECTIONS: u32 = 20;
/// Leaves room for an edit that asks for more.
const CONNECTIONS_MIN: u32 = 200;
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const RESTART_WAIT: Duration = Duration::from_secs(2);

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Server(#[from] certeus_localpg::Error),
    #[error("cannot create the database '{DATABASE}'")]
    Create(#[source] tokio_postgres::Error),
    #[error("the task that owns PostgreSQL ended")]
    Task(#[from] tokio::task::JoinError),
}

/// What became of the server.
pub(crate) enum Report {
    Died { how: String },
    RestartFailed { why: String },
    Restarted { process: Option<ProcessId> },
}

/// A running server, owned by a task.
pub(crate) struct Postgres {
    /// The URL of database `certeus`. It contains the password.
    pub(crate) url: String,
    pub(crate) process: Option<ProcessId>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), certeus_localpg::Error>>,
}

impl Postgres {
    /// Starts the server in `dir` for this many connections of pods; a server that an earlier instance left there is stopped first.
    pub(crate) async fn start(
        dir: &Path,
        connections_max: u32,
        reports: mpsc::Sender<Report>,
    ) -> Result<Self, Error> {
        let connections = connections_max.saturating_add(RESERVED_CONNECTIONS).max(CONNECTIONS_MIN);
        let mut settings = vec![("max_connections".to_owned(), connections.to_string())];
        let options = Options { dir: Some(dir.to_owned()), settings: settings.clone(), ..Options::default() };
        let server = launch(options.clone()).await?;
        create_database(&server.url()).await?;
        let url = server.database_url(DATABASE);
        let process = ProcessId::of(server.pid());
        // Settings win over the port that the server would choose next time.
        settings.push(("port".to_owned(), server.port().to_string()));
        let restart = Options { settings, ..options };
        let (stop, stop_asked) = oneshot::channel();
        let task = tokio::spawn(keep_running(server, restart, stop_asked, reports));
        Ok(Self { url, process, stop, task })
    }

    /// Stops the server in order; what was committed stays.
    pub(crate) async fn stop(self) -> Result<(), Error> {
        // The task ends by itself only after it was asked to.
        let _ended = self.stop.send(());
        Ok(self.task.await??)
    }
}

/// Makes the server drop everything and end; what was committed stays and is recovered at the next start.
pub(crate) fn stop_at_once(process: ProcessId) {
    process.signal(Signal::QUIT);
}

async fn launch(options: Options) -> Result<LocalPg, Error> {
    Ok(tokio::task::spawn_blocking(move || LocalPg::start(&options)).await??)
}

async fn create_database(url: &str) -> Result<(), Error> {
    let (client, connection) =
        tokio_postgres::connect(url, tokio_postgres::NoTls).await.map_err(Error::Create)?;
    let work = async move {
        let found = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&DATABASE]).await?;
        if found.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await?;
        }
        Ok(())
    };
    // The connection ends when the work drops its client.
    let (done, _closed) = tokio::join!(work, connection);
    done.map_err(Error::Create)
}

async fn keep_running(
    mut server: LocalPg,
    options: Options,
    mut stop_asked: oneshot::Receiver<()>,
    reports: mpsc::Sender<Report>,
) -> Result<(), certeus_localpg::Error> {
    let report = async |report| {
        // The driver outlives this task; without it there is nobody left to tell.
        let _nobody = reports.send(report).await;
    };
    loop {
        tokio::select! {
            _ = &mut stop_asked => {
                return tokio::task::spawn_blocking(move || server.stop()).await.unwrap_or(Ok(()));
            }
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let how = match server.exited() {
            Ok(None) => continue,
            Ok(Some(status)) => format!("{status}; log: {}", server.log_file().display()),
            Err(error) => format!("cannot wait for it: {error}"),
        };
        report(Report::Died { how }).await;
        drop(server);
        server = loop {
            match launch(options.clone()).await {
                Ok(server) => break server,
                Err(error) => report(Report::RestartFailed { why: chain(&error) }).await,
            }
            tokio::select! {
                _ = &mut stop_asked => return Ok(()),
                () = tokio::time::sleep(RESTART_WAIT) => {}
            }
        };
        report(Report::Restarted { process: ProcessId::of(server.pid()) }).await;
    }
}
