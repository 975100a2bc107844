//! Notices edits of the manifests: asks once a second what the files look like, which works on every file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a manifest file looks like from outside.
type Looks = (PathBuf, u64, Option<SystemTime>);

/// A folder of manifests and how it looked when last asked.
pub(crate) struct Folder {
    path: PathBuf,
    seen: Vec<Looks>,
    /// Changed since the last report, waiting until it holds still.
    unsettled: bool,
}

impl Folder {
    /// Remembers how the folder looks now: call it before reading the files, so that no edit falls between.
    pub(crate) fn watch(path: PathBuf) -> Self {
        let seen = looks(&path).unwrap_or_default();
        Self { path, seen, unsettled: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the files changed and then looked the same twice in a row, so that a half-written file is not read.
    pub(crate) fn has_changed(&mut self) -> bool {
        let now = looks(&self.path).unwrap_or_default();
        if now != self.seen {
            self.seen = now;
            self.unsettled = true;
            return false;
        }
        std::mem::take(&mut self.unsettled)
    }
}

fn looks(path: &Path) -> io::Result<Vec<Looks>> {
    let look = |path: PathBuf| match fs::metadata(&path) {
        Ok(metadata) => Some(Ok((path, metadata.len(), metadata.modified().ok()))),
        // Gone since the folder was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error)),
    };
    files(path)?.into_iter().filter_map(look).collect()
}

/// The manifest files of a folder, by name; or the one file that was named. Hidden files are an editor's, not the user's.
pub(crate) fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_may_be_named_and_an_editors_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        fs::write(&file, "a").unwrap();
        std::os::unix::fs::symlink("user@host.1234", folder.path().join(".#cluster.yaml")).unwrap();
        assert_eq!(files(folder.path()).unwrap(), std::slice::from_ref(&file));
        assert_eq!(files(&file).unwrap(), std::slice::from_ref(&file));
        let mut watched = Folder::watch(file.clone());
        fs::write(&file, "ab").unwrap();
        assert!(!watched.has_changed());
        assert!(watched.has_changed());
    }

    #[test]
    fn a_change_is_told_once_and_only_when_it_holds_still() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        fs::write(&file, "a").unwrap();
        let mut watched = Folder::watch(folder.path().to_owned());
        assert!(!watched.has_changed());
        fs::write(folder.path().join("notes.txt"), "not a manifest").unwrap();
        assert!(!watched.has_changed());
        fs::write(&file, "ab").unwrap();
        assert!(!watched.has_changed());
        fs::write(&file, "abc").unwrap();
        assert!(!watched.has_changed(), "still being written");
        assert!(watched.has_changed());
        assert!(!watched.has_changed());
        fs::remove_file(&file).unwrap();
        assert!(!watched.has_changed());
        assert!(watched.has_changed());
    }
}
