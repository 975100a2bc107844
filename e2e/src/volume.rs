//! A volume whose writes and syncs fail for a while, for chosen processes: a small library (`volume.c`) that they preload.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const SOURCE: &str = include_str!("volume.c");

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Writes fail, and nothing is written.
    Write,
    /// Writes fail half-way.
    TornWrite,
    /// What is written is there, and cannot be made durable.
    Sync,
}

/// Each of them.
pub const FAULTS: &[Fault] = &[Fault::Write, Fault::TornWrite, Fault::Sync];

/// A folder that is sound until it is told to fail.
#[derive(Debug)]
pub struct FaultyVolume {
    library: PathBuf,
    path: PathBuf,
    fault: PathBuf,
}

impl FaultyVolume {
    /// One below `dir`; `None` when there is no C compiler.
    ///
    /// # Errors
    /// When the library cannot be built.
    pub fn new(dir: &Path) -> Result<Option<Self>> {
        let (source, library, path) = (dir.join("volume.c"), dir.join("volume.so"), dir.join("volume"));
        std::fs::write(&source, SOURCE).context("cannot write the library's source")?;
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
        let Ok(built) = built else { return Ok(None) };
        ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
        // As the kernel tells a file's path.
        let path = path.canonicalize()?;
        Ok(Some(Self { library, path, fault: dir.join("volume-fault") }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on it fails, also for what is under way.
    ///
    /// # Errors
    /// When the sign cannot be given.
    pub fn fail(&self, fault: Fault) -> Result<()> {
        let letter = match fault {
            Fault::Write => "w",
            Fault::TornWrite => "t",
            Fault::Sync => "s",
        };
        // Never seen empty.
        let new = self.fault.with_extension("new");
        std::fs::write(&new, letter).context("cannot write a fault")?;
        std::fs::rename(&new, &self.fault).context("cannot begin a fault")
    }

    /// From now on it is sound.
    ///
    /// # Errors
    /// When the sign cannot be taken back.
    pub fn heal(&self) -> Result<()> {
        std::fs::remove_file(&self.fault).context("cannot end a fault")
    }

    /// The environment of a process for which it fails.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("CERTEUS_E2E_VOLUME", text(&self.path)),
            ("CERTEUS_E2E_VOLUME_FAULT", text(&self.fault)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}
