//! Finds the installed PostgreSQL server programs.

use std::path::{Path, PathBuf};

use crate::Error;

/// Paths of the server programs that a private server needs.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// Creates a database cluster.
    pub initdb: PathBuf,
    /// The server.
    pub postgres: PathBuf,
}

impl Binaries {
    /// Looks in `PATH`, then where Debian and the PGDG packages install servers, newest version first.
    ///
    /// # Errors
    /// [`Error::NotInstalled`] when there is no complete set.
    pub fn find() -> Result<Self, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        folders.extend(versioned(Path::new("/usr/lib/postgresql"), ""));
        folders.extend(versioned(Path::new("/usr"), "pgsql-"));
        folders.iter().find_map(|folder| Self::in_folder(folder)).ok_or(Error::NotInstalled)
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        let found = Self { initdb: folder.join("initdb"), postgres: folder.join("postgres") };
        (found.initdb.is_file() && found.postgres.is_file()).then_some(found)
    }
}

/// The `bin` folders below `parent` named `<prefix><major version>`, newest first.
fn versioned(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, bin)| bin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_comes_first() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["9", "15", "17", "common"] {
            std::fs::create_dir(parent.path().join(name)).unwrap();
        }
        let expected: Vec<PathBuf> = ["17/bin", "15/bin", "9/bin"].map(|v| parent.path().join(v)).into();
        assert_eq!(versioned(parent.path(), ""), expected);
    }
}
