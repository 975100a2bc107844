//! The private PostgreSQL that all parts share, and what it does without Certeus: the ceiling.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use certeus_localpg::{LocalPg, Options};

use crate::child;

/// The server, stopped when dropped.
pub(crate) struct Postgres {
    server: LocalPg,
    url: String,
    user: String,
    password: String,
}

impl Postgres {
    pub(crate) fn start() -> Result<Self> {
        let server = LocalPg::start(&Options::default()).context("cannot start PostgreSQL")?;
        let url = server.url();
        let credentials = url.strip_prefix("postgres://").and_then(|url| url.split_once('@'));
        let (user, password) = credentials
            .and_then(|(both, _)| both.split_once(':'))
            .context("PostgreSQL's URL has no password")?;
        Ok(Self { user: user.to_owned(), password: password.to_owned(), url, server })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub(crate) fn version(&self) -> Result<String> {
        self.query("SHOW server_version")
    }

    /// Makes an empty database; gives its URL.
    pub(crate) fn create_database(&self, name: &str) -> Result<String> {
        self.query(&format!("CREATE DATABASE {name}"))?;
        let (server, _) = self.url.rsplit_once('/').context("PostgreSQL's URL names no database")?;
        Ok(format!("{server}/{name}"))
    }

    /// Drops a database by its URL.
    pub(crate) fn drop_database(&self, url: &str) -> Result<()> {
        let (_, name) = url.rsplit_once('/').context("the URL names no database")?;
        self.query(&format!("DROP DATABASE {name} WITH (FORCE)")).map(drop)
    }

    /// Writes out what is dirty, so that a measurement does not pay for the one before.
    pub(crate) fn settle(&self) -> Result<()> {
        self.query("CHECKPOINT").map(drop)
    }

    /// How many events all ledgers hold, by their heads.
    pub(crate) fn stored_events(&self) -> Result<u64> {
        let stored = self.query("SELECT coalesce(sum(next_index), 0) FROM certeus.heads")?;
        stored.parse().with_context(|| format!("'{stored}' is not a number of events"))
    }

    /// Makes a file of stored events, as COPY's binary format has them, and an empty table like theirs.
    pub(crate) fn export(&self, rows: u64, dir: &Path) -> Result<PathBuf> {
        let path = std::path::absolute(dir.join("rows.bin")).context("cannot name the file of rows")?;
        let path_text = path.to_str().context("the output folder's name is not text")?;
        ensure!(!path_text.contains('\''), "the output folder's name has a quote in it");
        self.query(&format!(
            "\\copy (SELECT id, event_time, type, payload FROM certeus.events ORDER BY id LIMIT {rows}) \
             TO '{path_text}' (FORMAT binary)"
        ))?;
        // A plain table: what partitions cost is Certeus' cost.
        self.query("CREATE TABLE public.ceiling (LIKE certeus.events INCLUDING ALL)")?;
        Ok(path)
    }

    /// Empties the tables of events, so that a run begins with what a ceiling run begins with. Heads stay, and count on.
    pub(crate) fn forget_events(&self) -> Result<()> {
        self.query("TRUNCATE certeus.events, certeus.batches").map(drop)
    }

    /// Rows per second of one `psql \copy` over TCP into a table with the same columns and primary key.
    pub(crate) fn ceiling(&self, file: &Path, rows: u64) -> Result<f64> {
        self.query("TRUNCATE public.ceiling")?;
        self.settle()?;
        let begin = Instant::now();
        self.query(&format!("\\copy public.ceiling FROM '{}' (FORMAT binary)", file.display()))?;
        let seconds = begin.elapsed().as_secs_f64();
        let copied = self.query("SELECT count(*) FROM public.ceiling")?;
        ensure!(copied == rows.to_string(), "{copied} rows were copied instead of {rows}");
        Ok(rows as f64 / seconds)
    }

    /// Runs one statement or psql command with psql.
    fn query(&self, command: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.args(["--host", "127.0.0.1", "--port", &self.server.port().to_string()])
            .args(["--username", &self.user, "--dbname", "postgres"])
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"])
            .args(["--command", command])
            // Not on the command line, where every user could read the password.
            .env("PGPASSWORD", &self.password)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = child::run(&mut psql)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "psql could not '{command}': {}", errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
