//! The state folder of a local instance: where everything is, who holds it, and which processes belong to it.
//!
//! Promises: one instance per folder (a lock that the kernel releases when its holder dies); every file is replaced
//! in one step, so a reader never sees half of it; a process is written down as soon as it runs.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::process::{ProcessId, boot_id};

/// What went wrong with the state folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "there is no folder for the state, as neither XDG_STATE_HOME nor HOME is set: name one with --state-dir"
    )]
    NoHome,
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "another local instance{} uses {}: stop it with 'certeus-operator down --state-dir {}', or choose \
         another --state-dir", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), dir.display(),
        dir.display()
    )]
    Held { pid: Option<i32>, dir: PathBuf },
    #[error(
        "{} cannot be entered by the user that PostgreSQL runs as when started by root: run 'chmod o+x {}', or \
         choose another --state-dir", path.display(), path.display()
    )]
    Unreachable { path: PathBuf },
}

/// Paths below the state folder. Only this type knows their names.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
}

/// Everything that is created below the folder, for [`StateDir::purge`].
const ENTRIES: &[&str] = &[
    "database-url",
    "log-anchor",
    "log-anchor.lock",
    "log-anchor.new",
    "logs",
    "pods",
    "postgres",
    "processes.json",
    "signing-key",
    "status.json",
    "lock",
];

impl StateDir {
    /// The folder for this user: `/var/lib/certeus` for root, otherwise below `$XDG_STATE_HOME` or `~/.local/state`.
    ///
    /// # Errors
    /// When the user has no home: a folder below `/tmp` could be somebody else's.
    pub(crate) fn default_path() -> Result<PathBuf, Error> {
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/certeus"));
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|folder| folder.join("certeus"))
            .ok_or(Error::NoHome)
    }

    /// Names the folder without creating it.
    pub(crate) fn at(root: &Path) -> Result<Self, Error> {
        let root = std::path::absolute(root).map_err(io_error("find", root))?;
        Ok(Self { root })
    }

    /// Creates the folder. PostgreSQL runs as another user when we are root, so it is then open for passing through.
    pub(crate) fn create(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.root).map_err(io_error("create", &self.root))?;
        let is_root = rustix::process::geteuid().is_root();
        let mode = if is_root { 0o711 } else { 0o700 };
        fs::set_permissions(&self.root, fs::Permissions::from_mode(mode))
            .map_err(io_error("change the mode of", &self.root))?;
        let root = fs::canonicalize(&self.root).map_err(io_error("find", &self.root))?;
        for parent in root.ancestors().filter(|_| is_root) {
            let mode = fs::metadata(parent).map_err(io_error("read", parent))?.permissions().mode();
            if mode & 0o001 == 0 {
                return Err(Error::Unreachable { path: parent.to_owned() });
            }
        }
        for private in [self.pods(), self.logs()] {
            fs::create_dir_all(&private).map_err(io_error("create", &private))?;
            fs::set_permissions(&private, fs::Permissions::from_mode(0o700))
                .map_err(io_error("change the mode of", &private))?;
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn exists(&self) -> bool {
        self.lock_file().exists()
    }

    /// The folder that stands for a pod's file system.
    pub(crate) fn pod(&self, name: &str) -> PathBuf {
        self.pods().join(name)
    }

    fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.root.join("postgres")
    }

    pub(crate) fn database_url(&self) -> PathBuf {
        self.root.join("database-url")
    }

    /// The key that signs the log. The first pod makes it, and all share it.
    pub(crate) fn signing_key(&self) -> PathBuf {
        self.root.join("signing-key")
    }

    /// The newest signed checkpoint, kept beside the database. All pods share it.
    pub(crate) fn log_anchor(&self) -> PathBuf {
        self.root.join("log-anchor")
    }

    pub(crate) fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }

    fn processes(&self) -> PathBuf {
        self.root.join("processes.json")
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Takes the folder for this process, until the returned lock is dropped.
    pub(crate) fn lock(&self) -> Result<File, Error> {
        let path = self.lock_file();
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                let pid = self.read_processes()?.and_then(|found| found.operator).map(|process| process.pid);
                Err(Error::Held { pid, dir: self.root.clone() })
            }
            Err(TryLockError::Error(source)) => Err(Error::Io { action: "lock", path, source }),
        }
    }

    /// The processes that the last instance wrote down; `None` when there are none of this boot.
    pub(crate) fn read_processes(&self) -> Result<Option<Processes>, Error> {
        let path = self.processes();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { action: "read", path, source }),
        };
        let processes: Processes = serde_json::from_slice(&text).map_err(|error| Error::Io {
            action: "read",
            path,
            source: error.into(),
        })?;
        Ok(Some(processes).filter(|processes| processes.boot_id == boot_id()))
    }

    pub(crate) fn write_processes(&self, processes: &Processes) -> Result<(), Error> {
        write_json(&self.processes(), processes)
    }

    /// Removes what tells of an instance that is no more.
    pub(crate) fn forget_instance(&self) -> Result<(), Error> {
        for path in [self.status(), self.database_url(), self.processes()] {
            remove(&path)?;
        }
        Ok(())
    }

    /// Removes all that was ever created here, and the folder itself unless it holds something else.
    pub(crate) fn purge(&self) -> Result<(), Error> {
        for entry in ENTRIES {
            remove(&self.root.join(entry))?;
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(io_error("remove", &self.root)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// The processes of an instance. Written whenever one starts or ends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Processes {
    boot_id: String,
    pub(crate) operator: Option<ProcessId>,
    pub(crate) postgres: Option<ProcessId>,
    /// By pod name.
    pub(crate) pods: BTreeMap<String, ProcessId>,
}

impl Processes {
    pub(crate) fn of_this_operator() -> Self {
        let operator = ProcessId::current();
        Self { boot_id: boot_id(), operator, postgres: None, pods: BTreeMap::new() }
    }
}

/// Replaces a file in one step. Readable by its owner only: it may hold a secret.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| fs::rename(&new, path)).map_err(io_error("write", path))
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| io_error("write", path)(error.into()))?;
    write_private(path, &bytes)
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(crate) fn io_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let state = StateDir::at(&parent.path().join("state")).unwrap();
        state.create().unwrap();
        (parent, state)
    }

    #[test]
    fn a_second_instance_is_told_who_holds_the_folder() {
        let (_parent, state) = state();
        let lock = state.lock().unwrap();
        state.write_processes(&Processes::of_this_operator()).unwrap();
        let error = state.lock().unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        drop(lock);
        state.lock().unwrap();
    }

    #[test]
    fn processes_of_an_earlier_boot_are_ignored() {
        let (_parent, state) = state();
        let mut processes = Processes::of_this_operator();
        state.write_processes(&processes).unwrap();
        assert!(state.read_processes().unwrap().is_some());
        processes.boot_id = "another".to_owned();
        state.write_processes(&processes).unwrap();
        assert!(state.read_processes().unwrap().is_none());
    }

    #[test]
    fn purge_leaves_what_is_not_ours() {
        let (_parent, state) = state();
        drop(state.lock().unwrap());
        write_private(&state.status(), b"{}").unwrap();
        fs::write(state.root().join("notes.txt"), "mine").unwrap();
        state.purge().unwrap();
        let left: Vec<_> =
            fs::read_dir(state.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
        fs::remove_file(state.root().join("notes.txt")).unwrap();
        state.purge().unwrap();
        assert!(!state.root().exists());
    }
}
