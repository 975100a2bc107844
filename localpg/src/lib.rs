//! A private PostgreSQL server on this machine: found among the installed binaries, initialised in a folder of
//! ours, reachable only over TCP on 127.0.0.1 with a password of its own, stopped when dropped.
//!
//! Owns the server process and its folder. Never touches a PostgreSQL that it did not start, never listens beyond
//! loopback, never weakens durability (`fsync` stays on: what the ledger acknowledges must be true here too).
//! PostgreSQL refuses to run as root, so a root caller's server runs as `postgres`, or as `nobody`.
//! Read next: `binaries.rs`, `owner.rs`.

mod binaries;
mod owner;

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

pub use binaries::Binaries;
use owner::Owner;

/// The role that owns the databases of a private server.
const USER: &str = "certeus";
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A fast shutdown writes a checkpoint; after a long run that is seconds, not minutes.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Settings of every private server; `Options::settings` come after and win.
const SETTINGS: &[(&str, &str)] = &[
    ("unix_socket_directories", ""),
    ("listen_addresses", "127.0.0.1"),
    ("max_connections", "200"),
    ("shared_buffers", "256MB"),
    // Sustained ingest would otherwise force a checkpoint every few seconds.
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "15min"),
    // Recycled log files are kept, and new ones not filled with zeros first: both stall commits for tens of milliseconds.
    ("min_wal_size", "2GB"),
    ("wal_init_zero", "off"),
    // A pod that lost its connection must find its own unfinished transaction gone soon.
    ("tcp_keepalives_idle", "30"),
];

/// What went wrong with a private server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No PostgreSQL server is installed.
    #[error(
        "no PostgreSQL server binaries (initdb, postgres) in PATH or /usr/lib/postgresql/*/bin: \
         install them, for example with 'apt-get install postgresql'"
    )]
    NotInstalled,
    /// Running as root and neither `postgres` nor `nobody` exists.
    #[error("PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody' to run it as")]
    NoUser,
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// `initdb` or the server ended with an error; `log` is the tail of what it printed.
    #[error("{program} failed: {log}")]
    Program {
        /// The program's name.
        program: &'static str,
        /// The last lines it printed.
        log: String,
    },
    /// The server did not become ready, or did not stop, in time.
    #[error("PostgreSQL did not {what} within {} s; its log is {}", timeout.as_secs(), log.display())]
    Timeout {
        /// `start` or `stop`.
        what: &'static str,
        /// The limit.
        timeout: Duration,
        /// The server's log file.
        log: PathBuf,
    },
}

/// How to start a private server.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where data, log and password live. Kept between runs. `None`: a temporary folder, removed at the end.
    pub dir: Option<PathBuf>,
    /// Further `postgresql.conf` settings.
    pub settings: Vec<(String, String)>,
    /// What the server's environment has beside the usual.
    pub env: Vec<(String, String)>,
}

/// A running private server. Dropping it stops the server.
#[derive(Debug)]
pub struct LocalPg {
    child: Child,
    dir: PathBuf,
    port: u16,
    password: String,
    stopped: bool,
    /// Removed after the server has stopped, as fields drop after `Drop::drop`.
    _temporary: Option<tempfile::TempDir>,
}

impl LocalPg {
    /// Initialises the folder when it is new, starts the server and waits until it takes connections.
    ///
    /// A server that an earlier, killed owner left running on the same folder is stopped first.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, the folder cannot be used, or the server does not come up.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let binaries = Binaries::find()?;
        let owner = Owner::for_server()?;
        let (dir, temporary) = match &options.dir {
            Some(dir) => (dir.clone(), None),
            None => {
                let dir = tempfile::Builder::new()
                    .prefix("certeus-pg-")
                    .tempdir()
                    .map_err(io_error("create", &std::env::temp_dir()))?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let dir = fs::canonicalize(&dir).map_err(io_error("open", &dir))?;
        give_to(owner, &dir)?;
        let data = dir.join("data");
        stop_leftover(&data)?;
        let password = if data.join("PG_VERSION").exists() {
            read_trimmed(&dir.join("password"))?
        } else {
            initialise(&binaries, owner, &dir)?
        };
        let (child, port) = launch(&binaries, owner, &dir, options)?;
        Ok(Self { child, dir, port, password, stopped: false, _temporary: temporary })
    }

    /// The connection URL of the maintenance database `postgres`, as the owner of everything.
    #[must_use]
    pub fn url(&self) -> String {
        self.database_url("postgres")
    }

    /// The connection URL of a database by name. It contains the password.
    #[must_use]
    pub fn database_url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the postmaster.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The server's log file.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("postgresql.log")
    }

    /// Whether the server ended by itself, and how.
    ///
    /// # Errors
    /// When the operating system cannot tell.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Stops the server: open transactions are rolled back, what was committed stays.
    ///
    /// # Errors
    /// When the server does not end in time; it is then killed.
    pub fn stop(mut self) -> Result<(), Error> {
        self.shut_down()
    }

    fn shut_down(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(());
        }
        // Once its end was seen, its process id may belong to another process.
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return Ok(());
        }
        let pid = Pid::from_child(&self.child);
        for (signal, timeout) in [(Signal::INT, STOP_TIMEOUT), (Signal::QUIT, Duration::from_secs(5))] {
            // An error means that the process is gone, which is what the wait below looks for.
            let _gone = kill_process(pid, signal);
            let deadline = Instant::now() + timeout;
            while Instant::now() < deadline {
                if matches!(self.child.try_wait(), Ok(Some(_))) {
                    return Ok(());
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map_err(io_error("kill the server in", &self.dir))?;
        Err(Error::Timeout { what: "stop", timeout: STOP_TIMEOUT, log: self.log_file() })
    }
}

impl Drop for LocalPg {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            eprintln!("{error}");
        }
    }
}

/// Creates the database cluster and its password; returns the password.
fn initialise(binaries: &Binaries, owner: Owner, dir: &Path) -> Result<String, Error> {
    let password_file = dir.join("password");
    let password = random_password()?;
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(&password_file)
        .and_then(|mut file| io::Write::write_all(&mut file, password.as_bytes()))
        .map_err(io_error("write", &password_file))?;
    give_to(owner, &password_file)?;
    let data = dir.join("data");
    if data.exists() {
        // A first start that was interrupted: there is no PG_VERSION, so nothing was ever stored.
        fs::remove_dir_all(&data).map_err(io_error("remove", &data))?;
    }
    let mut command = Command::new(&binaries.initdb);
    command
        .arg("--pgdata")
        .arg(&data)
        .args(["--username", USER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"])
        .args(["--data-checksums", "--pwfile"])
        .arg(&password_file)
        .current_dir(dir)
        .stdin(Stdio::null());
    owner.apply(&mut command);
    let output = command.output().map_err(io_error("run", &binaries.initdb))?;
    if !output.status.success() {
        let printed = [output.stdout, output.stderr].concat();
        return Err(Error::Program { program: "initdb", log: tail(&String::from_utf8_lossy(&printed)) });
    }
    Ok(password)
}

/// Starts the server on a free port and waits until it is ready.
fn launch(binaries: &Binaries, owner: Owner, dir: &Path, options: &Options) -> Result<(Child, u16), Error> {
    const ATTEMPTS: u32 = 5;
    let data = dir.join("data");
    let log_path = dir.join("postgresql.log");
    let mut attempt = 0;
    loop {
        attempt += 1;
        // Another process may take the port between this and the server's own bind: hence the attempts.
        let port = free_port().map_err(io_error("find a free port for", dir))?;
        let log = File::create(&log_path).map_err(io_error("create", &log_path))?;
        give_to(owner, &log_path)?;
        let mut command = Command::new(&binaries.postgres);
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        for (name, value) in SETTINGS {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for (name, value) in &options.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let errors = log.try_clone().map_err(io_error("open", &log_path))?;
        command.envs(options.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(dir).stdin(Stdio::null()).stdout(log).stderr(errors);
        // Ctrl-C in a terminal must reach our process alone, which then stops the server in order.
        command.process_group(0);
        owner.apply(&mut command);
        let mut child = command.spawn().map_err(io_error("run", &binaries.postgres))?;
        match wait_until_ready(&mut child, &data, &log_path) {
            Ok(()) => return Ok((child, port)),
            Err(Error::Program { log, .. }) if attempt < ATTEMPTS && log.contains("in use") => {}
            Err(error) => {
                // Already failing: the first error is the one to report.
                let _already_gone = child.kill().and_then(|()| child.wait());
                return Err(error);
            }
        }
    }
}

/// The eighth line of `postmaster.pid` says `ready` once connections are taken (PostgreSQL `miscadmin.h`).
fn wait_until_ready(child: &mut Child, data: &Path, log: &Path) -> Result<(), Error> {
    let pid_file = data.join("postmaster.pid");
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if child.try_wait().map_err(io_error("wait for the server in", data))?.is_some() {
            let log = tail(&fs::read_to_string(log).unwrap_or_default());
            return Err(Error::Program { program: "postgres", log });
        }
        let ready = fs::read_to_string(&pid_file).is_ok_and(|text| {
            let mut lines = text.lines();
            lines.next() == Some(&child.id().to_string())
                && lines.nth(6).is_some_and(|state| state.trim() == "ready")
        });
        if ready {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout { what: "start", timeout: START_TIMEOUT, log: log.to_owned() });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Stops a server that an earlier owner left running on this data folder.
fn stop_leftover(data: &Path) -> Result<(), Error> {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else { return Ok(()) };
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    // A recycled process id must not be signalled: only a server whose command line names this folder is ours.
    let command_line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let named = command_line.split(|byte| *byte == 0).any(|arg| Path::new(as_os(arg)) == data);
    if !named || kill_process(pid, Signal::INT).is_err() {
        return Ok(());
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    while test_kill_process(pid).is_ok() && !is_zombie(pid) {
        if Instant::now() > deadline {
            let log = data.with_file_name("postgresql.log");
            return Err(Error::Timeout { what: "stop", timeout: STOP_TIMEOUT, log });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Whether a process has ended and only waits for its parent to notice.
fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The state follows the command name, which is in parentheses and may hold anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

fn as_os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn random_password() -> Result<String, Error> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(io_error("read", path))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn give_to(owner: Owner, path: &Path) -> Result<(), Error> {
    if let Some((uid, gid)) = owner.ids() {
        chown(path, Some(uid), Some(gid)).map_err(io_error("change the owner of", path))?;
    }
    if path.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(io_error("change the mode of", path))?;
    }
    Ok(())
}

fn read_trimmed(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(io_error("read", path))
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// The last lines of a program's output, on one line.
fn tail(text: &str) -> String {
    const LINES: usize = 5;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn psql(pg: &LocalPg, sql: &str) -> String {
        let output = Command::new("psql").arg(pg.url()).args(["-Atqc", sql]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn data_survives_a_stop_and_a_killed_owner() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let options = Options { dir: Some(parent.path().join("pg")), ..Options::default() };

        let pg = LocalPg::start(&options).unwrap();
        psql(&pg, "create table t as select 1 as n");
        assert_eq!(psql(&pg, "show fsync"), "on");
        pg.stop().unwrap();

        // An owner that is killed cannot stop its server: the next one finds it running.
        let orphan = LocalPg::start(&options).unwrap();
        psql(&orphan, "insert into t values (2)");
        let orphan_pid = orphan.pid();
        let reaper = std::thread::spawn({
            let mut child = ManuallyForgotten::take(orphan);
            move || child.wait()
        });
        let pg = LocalPg::start(&options).unwrap();
        reaper.join().unwrap().unwrap();
        assert_ne!(pg.pid(), orphan_pid);
        assert_eq!(psql(&pg, "select sum(n) from t"), "3");
    }

    /// Gives up the server without stopping it, as a killed owner would, but keeps the child to reap.
    struct ManuallyForgotten;
    impl ManuallyForgotten {
        fn take(mut pg: LocalPg) -> Child {
            pg.stopped = true;
            let stand_in = Command::new("true").spawn().unwrap();
            std::mem::replace(&mut pg.child, stand_in)
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = LocalPg::start(&Options { dir: Some("/proc/nowhere".into()), ..Options::default() });
        assert_eq!(error.unwrap_err().to_string(), "cannot create /proc/nowhere");
    }
}
