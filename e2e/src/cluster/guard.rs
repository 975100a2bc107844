//! Processes that end with this one, however it ends: by its return, a panic, Ctrl-C or `kill -9`.
//!
//! A shell waits for the end of a pipe that only this process holds. The kernel closes it when the process ends; the shell then
//! kills every process group that is still noted in a folder, and removes the files of the test unless it failed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process_group};

/// What the shell does; its argument is the folder.
const SCRIPT: &str = r#"
cat >/dev/null
for group in "$1"/groups/*; do
    if [ -e "$group" ]; then kill -KILL "-${group##*/}"; fi
done
sleep 0.2
if [ ! -e "$1/keep" ]; then rm -rf -- "$1"; fi
"#;

/// The folder of this process, and the shell that cleans up after it.
#[derive(Debug)]
pub struct Guard {
    dir: PathBuf,
    /// Never written to.
    _pipe: ChildStdin,
}

impl Guard {
    /// That of this process.
    ///
    /// # Errors
    /// When there is no room for a folder, or no shell.
    pub fn get() -> Result<&'static Self> {
        static GUARD: OnceLock<Result<Guard, String>> = OnceLock::new();
        let guard = GUARD.get_or_init(|| Self::start().map_err(|error| format!("{error:#}")));
        guard.as_ref().map_err(|text| anyhow!("{text}"))
    }

    fn start() -> Result<Self> {
        let parent = std::env::temp_dir().join("certeus-e2e");
        let dir = parent.join(format!("cluster-{}", std::process::id()));
        // A process of the same number, long ago, may have kept its folder.
        let _gone = fs::remove_dir_all(&dir);
        let groups = dir.join("groups");
        fs::create_dir_all(&groups).with_context(|| format!("cannot create {}", groups.display()))?;
        // PostgreSQL runs as another user when we run as root, and must get at its folder.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "certeus-e2e-guard"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C must not end it.
            .process_group(0)
            .spawn()
            .context("cannot run sh")?;
        let pipe = shell.stdin.take().context("the shell has no standard input")?;
        Ok(Self { dir, _pipe: pipe })
    }

    /// Where files of this process go.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the files: a test failed.
    pub fn keep(&self) {
        // Nobody is left to tell if even this fails.
        let _written = fs::write(self.dir.join("keep"), "");
    }

    /// Notes a process group that somebody else started; it is killed when this process ends.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn note(&self, group: u32) -> Result<()> {
        fs::write(self.note_of(group), "").context("cannot note a process")
    }

    fn note_of(&self, group: u32) -> PathBuf {
        self.dir.join("groups").join(group.to_string())
    }
}

/// A process with a group of its own, killed with all that it started when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    note: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it, without standard input.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(command: &mut Command) -> Result<Self> {
        let guard = Guard::get()?;
        let spawned = command.stdin(Stdio::null()).process_group(0).spawn();
        let child = spawned.with_context(|| format!("cannot run {}", command.get_program().display()))?;
        // From here on an error kills it.
        let process = Self { note: guard.note_of(child.id()), child, ended: None };
        guard.note(process.child.id())?;
        Ok(process)
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// When nobody can tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().context("cannot watch a process")?;
        }
        Ok(self.ended)
    }

    /// Sends a signal to the process and all that it started; to one that has ended, nothing.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // Gone already, and its end not seen yet: its number is still its own.
            let _gone = kill_process_group(Pid::from_child(&self.child), signal);
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ended = self.child.wait();
        let _removed = fs::remove_file(&self.note);
    }
}
