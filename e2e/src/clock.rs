//! A wall clock that jumps, for one process: `libfaketime`, told through a file. The monotonic clock stays true.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where Debian and Fedora install the library's variant for programs with threads.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// The clock of one process.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right for now; `None` when the library is not installed.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn new(file: &Path) -> Result<Option<Self>> {
        let Some(library) = LIBRARIES.iter().map(PathBuf::from).find(|path| path.exists()) else {
            return Ok(None);
        };
        let clock = Self { library, file: file.to_owned() };
        clock.set(0)?;
        Ok(Some(clock))
    }

    /// Sets it so many seconds before (negative) or after the true time, also while the process runs.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set(&self, offset_seconds: i64) -> Result<()> {
        // Replaced as a whole: the library may read at any moment.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{offset_seconds:+}\n")).context("cannot write a clock")?;
        std::fs::rename(&new, &self.file).context("cannot set a clock")
    }

    /// The environment in which a process has this clock.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.file)),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}
