//! A private PostgreSQL that can be treated as badly as the world treats servers.
//!
//! Owns the server process across deaths and restarts on the same data, and superuser connections for looking and for
//! tampering. Kills nothing but processes whose parent is the server it started.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use certeus_localpg::{LocalPg, Options};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use crate::{alive, wait_for};

/// Small enough for many servers at a time on a small machine and for a small disk.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "32MB"),
    ("min_wal_size", "32MB"),
    ("max_wal_size", "256MB"),
    ("max_connections", "60"),
    // Otherwise a checkpoint after each crash takes its time.
    ("checkpoint_completion_target", "0"),
];
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// A PostgreSQL server and its data.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    settings: Vec<(String, String)>,
    env: Vec<(String, String)>,
    server: Option<LocalPg>,
    /// Where logs of earlier lives go.
    logs: PathBuf,
    lives: u32,
}

impl Postgres {
    /// Starts a server in `dir`, with further settings and environment. Its logs are copied to `logs`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        dir: &Path,
        logs: &Path,
        settings: &[(&str, &str)],
        env: &[(String, String)],
    ) -> Result<Self> {
        let settings = SETTINGS.iter().chain(settings);
        let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut postgres = Self {
            dir: dir.to_owned(),
            settings,
            env: env.to_vec(),
            server: None,
            logs: logs.to_owned(),
            lives: 0,
        };
        postgres.restart()?;
        Ok(postgres)
    }

    /// Starts the server again after its end, on the same data and another port.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "PostgreSQL runs already");
        let options =
            Options { dir: Some(self.dir.clone()), settings: self.settings.clone(), env: self.env.clone() };
        let deadline = Instant::now() + RESTART_TIMEOUT;
        // Children of a killed postmaster may hold its memory for a moment, and a server then refuses to start.
        let server = loop {
            match LocalPg::start(&options) {
                Ok(server) => break server,
                Err(error) if Instant::now() > deadline => return Err(error).context("PostgreSQL"),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        self.server = Some(server);
        self.lives += 1;
        Ok(())
    }

    /// Where it listens now.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.running().port()).into()
    }

    /// The number of its process, which is also that of a process group.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.running().pid()
    }

    /// The URL of a database, through another address than its own.
    #[must_use]
    pub fn url_through(&self, address: SocketAddr, database: &str) -> String {
        let own = self.running().database_url(database);
        own.replace(&self.address().to_string(), &address.to_string())
    }

    /// A connection as superuser, around all proxies.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn connect(&self, database: &str) -> Result<Sql> {
        Sql::connect(&self.running().database_url(database))
    }

    /// Ends in order: what is open is rolled back.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.keep_log();
        let server = self.server.take().context("PostgreSQL does not run")?;
        server.stop().context("PostgreSQL does not stop")
    }

    /// Ends at once without a checkpoint, by its own "immediate" shutdown.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_immediately(&mut self) -> Result<()> {
        self.end_by(Signal::QUIT)
    }

    /// `kill -9` of the postmaster; its backends find out by themselves.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_postmaster(&mut self) -> Result<()> {
        self.end_by(Signal::KILL)
    }

    /// `kill -9` of every process of the server.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_all(&mut self) -> Result<()> {
        let children = children_of(self.running().pid());
        self.kill_postmaster()?;
        for child in children {
            kill(child, Signal::KILL);
        }
        Ok(())
    }

    /// `kill -9` of one backend that is busy with a statement like this, as soon as there is one; false when none came
    /// within the limit. The server then ends all others and recovers.
    #[must_use]
    pub fn kill_backend_in(&self, database: &str, statement: &str, limit: Duration) -> bool {
        const BUSY: &str = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND state = 'active' \
             AND query LIKE $2 AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1";
        let deadline = Instant::now() + limit;
        let mut connection = None;
        while Instant::now() < deadline {
            // It may still be about to recover from the kill before.
            let Some(sql) = connection.take().or_else(|| self.connect("postgres").ok()) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let Ok(busy) = sql.query(BUSY, &[&database, &statement]) else { continue };
            connection = Some(sql);
            let pid = busy.first().and_then(|row| u32::try_from(row.get::<_, i32>(0)).ok());
            if let Some(pid) = pid.filter(|pid| children_of(self.running().pid()).contains(pid)) {
                kill(pid, Signal::KILL);
                return true;
            }
        }
        false
    }

    /// Waits until the server takes commits again after a backend was killed.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_until_recovered(&self) -> Result<()> {
        wait_for("PostgreSQL's recovery", RESTART_TIMEOUT, || Ok(self.answers()))
    }

    /// Whether it takes connections and statements.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.connect("postgres").and_then(|sql| sql.query("SELECT 1", &[])).is_ok()
    }

    /// How often the running server gave up its processes and recovered.
    #[must_use]
    pub fn panics(&self) -> usize {
        let log = self.server.as_ref().and_then(|server| std::fs::read_to_string(server.log_file()).ok());
        log.map_or(0, |log| log.lines().filter(|line| line.contains("PANIC:")).count())
    }

    /// Whether it ended by itself.
    ///
    /// # Errors
    /// When nobody can tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        match &mut self.server {
            Some(server) => Ok(server.exited().context("cannot watch PostgreSQL")?.is_some()),
            None => Ok(true),
        }
    }

    /// Forgets a server that ended by itself.
    pub fn forget(&mut self) {
        self.keep_log();
        self.server = None;
    }

    /// A copy of all data; the server must not run.
    ///
    /// # Errors
    /// When it runs, or the copy fails.
    pub fn back_up(&self, to: &Path) -> Result<()> {
        ensure!(self.server.is_none(), "a copy of a running server's files is not a backup");
        copy_tree(&self.dir, to)
    }

    /// Puts a backup in the place of all data; the server must not run.
    ///
    /// # Errors
    /// When it runs, or the copy fails.
    pub fn restore(&self, from: &Path) -> Result<()> {
        ensure!(self.server.is_none(), "PostgreSQL still runs");
        std::fs::remove_dir_all(&self.dir).context("cannot remove the data")?;
        copy_tree(from, &self.dir)
    }

    fn end_by(&mut self, signal: Signal) -> Result<()> {
        let mut server = self.server.take().context("PostgreSQL does not run")?;
        kill(server.pid(), signal);
        wait_for("PostgreSQL's end", RESTART_TIMEOUT, || {
            Ok(server.exited().context("cannot watch PostgreSQL")?.is_some())
        })?;
        self.keep_log();
        Ok(())
    }

    fn running(&self) -> &LocalPg {
        self.server.as_ref().expect("scenarios ask a server that runs")
    }

    fn keep_log(&self) {
        let kept = self.logs.join(format!("postgresql-{}.log", self.lives));
        // A log that cannot be copied must not hide why a run failed.
        let _kept = std::fs::copy(self.dir.join("postgresql.log"), kept);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.keep_log();
    }
}

/// A connection that is used from ordinary code.
#[derive(Debug)]
pub struct Sql {
    runtime: Runtime,
    client: Client,
}

impl Sql {
    /// Connects.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn connect(url: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            // Its end reaches every query.
            tokio::spawn(connection);
            anyhow::Ok(client)
        })?;
        Ok(Self { runtime, client })
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// When it fails.
    pub fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.runtime.block_on(self.client.query(sql, parameters)).with_context(|| sql.to_owned())
    }

    /// Runs a statement; gives the number of rows it changed.
    ///
    /// # Errors
    /// When it fails.
    pub fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        self.runtime.block_on(self.client.execute(sql, parameters)).with_context(|| sql.to_owned())
    }

    /// Runs statements without parameters.
    ///
    /// # Errors
    /// When one fails.
    pub fn batch(&self, sql: &str) -> Result<()> {
        self.runtime.block_on(self.client.batch_execute(sql)).with_context(|| sql.to_owned())
    }
}

/// Living processes whose parent is this one.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in parentheses: the state, then the parent.
        let parent_field = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent_field == Some(parent) && alive(*pid)
    })
    .collect()
}

fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that is gone already is what is wanted.
        let _gone = kill_process(pid, signal);
    }
}

/// Copies a folder with owners and modes, as PostgreSQL insists on its own.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    ensure!(copied.context("cannot run cp")?.success(), "cannot copy {}", from.display());
    Ok(())
}
