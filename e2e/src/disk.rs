//! A small disk of its own (tmpfs), and ways to fill it. Needs the right to mount.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const PIECE: &[u8] = &[0xAA; 64 << 10];

/// A mounted tmpfs, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many MiB at `path`; `None` when this process may not.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn mount(path: &Path, mebibytes: u64) -> Result<Option<Self>> {
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        let size = format!("size={mebibytes}m,mode=755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "certeus-e2e"]).arg(path).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        Ok(mounted.then(|| Self { path: path.to_owned() }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it up, then frees so many KiB again.
    ///
    /// # Errors
    /// When it cannot be filled for another reason than being full.
    pub fn fill(&self, free_kibibytes: u64) -> Result<()> {
        let mut file = File::create(self.ballast()).context("cannot create the ballast")?;
        let full = loop {
            if let Err(error) = file.write_all(PIECE) {
                break error;
            }
        };
        ensure!(full.kind() == std::io::ErrorKind::StorageFull, "cannot fill the disk: {full}");
        let length = file.metadata()?.len();
        file.set_len(length.saturating_sub(free_kibibytes << 10)).context("cannot free space")
    }

    /// Frees what [`Self::fill`] took.
    ///
    /// # Errors
    /// When it cannot.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("cannot remove the ballast")
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may still have a file open.
        if !Command::new("umount").arg("-l").arg(&self.path).status().is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.path.display());
        }
    }
}
