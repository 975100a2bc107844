//! The folder that holds the spool's files: the seam between the spool's logic and a file system, real or simulated.
//!
//! Owns what each operation promises. All of it blocks and runs on the spool's own thread. Never retries: what a failed
//! write or sync left behind is for `log.rs` to judge.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Held while a process uses the folder.
const LOCK: &str = "lock";

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub(crate) struct Error {
    /// What was tried.
    pub(crate) action: &'static str,
    /// On what.
    pub(crate) path: PathBuf,
    /// Why it failed.
    #[source]
    pub(crate) source: io::Error,
}

/// What the spool needs of a file system.
pub(crate) trait Directory {
    /// A file that is being written.
    type File;

    /// The files' names and lengths.
    fn list(&mut self) -> Result<Vec<(String, u64)>, Error>;
    /// Creates a file, which must not exist. Its name is durable after [`Self::sync_names`].
    fn create(&mut self, name: &str) -> Result<Self::File, Error>;
    /// Writes behind what was written. After an error any part of it may have been.
    fn write(&mut self, file: &mut Self::File, bytes: &[u8]) -> Result<(), Error>;
    /// Makes what was written durable. After an error nothing is known about it, not even after a later success.
    fn sync(&mut self, file: &mut Self::File) -> Result<(), Error>;
    /// Makes created, renamed and removed names durable.
    fn sync_names(&mut self) -> Result<(), Error>;
    /// Reads up to `count` bytes; fewer at the end of the file.
    fn read(&mut self, name: &str, offset: u64, count: usize) -> Result<Vec<u8>, Error>;
    /// Cuts a file to a length, durably.
    fn truncate(&mut self, name: &str, length: u64) -> Result<(), Error>;
    /// Renames a file, replacing one of the new name. A file that is not there was renamed before.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), Error>;
    /// Removes a file. One that is not there was removed before.
    fn remove(&mut self, name: &str) -> Result<(), Error>;
    /// Bytes that can still be written to the file system.
    fn free_bytes(&mut self) -> Result<u64, Error>;
}

/// A folder of a real file system.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// The folder itself, for syncing names.
    handle: File,
    /// Locked until this is dropped.
    _lock: File,
}

impl Folder {
    /// Opens a folder, making it when it is new, and keeps every other process out of it.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let error = |action| move |source| Error { action, path: path.to_owned(), source };
        let names = names_to_sync(path);
        fs::create_dir_all(path).map_err(error("create the folder"))?;
        for folder in names {
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(error("sync the name of the folder"))?;
        }
        let handle = File::open(path).map_err(error("open the folder"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK))
            .map_err(error("lock the folder"))?;
        lock.try_lock().map_err(|refused| {
            let source = match refused {
                TryLockError::Error(source) => source,
                TryLockError::WouldBlock => io::Error::other("another process uses it"),
            };
            error("lock the folder")(source)
        })?;
        Ok(Self { path: path.to_owned(), handle, _lock: lock })
    }

    fn error(&self, action: &'static str, name: &str) -> impl Fn(io::Error) -> Error {
        let path = self.path.join(name);
        move |source| Error { action, path: path.clone(), source }
    }
}

/// The folders that are to have a new name once `path` is made: until they are synced, a crash may take the whole folder with it.
fn names_to_sync(path: &Path) -> Vec<PathBuf> {
    let parent =
        |path: &Path| path.parent().filter(|parent| !parent.as_os_str().is_empty()).map(Path::to_owned);
    let missing = path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
    missing.map(|path| parent(path).unwrap_or_else(|| ".".into())).collect()
}

/// A file of a [`Folder`] that is being written.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: File,
    name: String,
}

impl Directory for Folder {
    type File = OpenFile;

    fn list(&mut self) -> Result<Vec<(String, u64)>, Error> {
        let error = self.error("list", "");
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(&error)? {
            let entry = entry.map_err(&error)?;
            // A name that is not text is not one of ours.
            if let Ok(name) = entry.file_name().into_string() {
                files.push((name, entry.metadata().map_err(&error)?.len()));
            }
        }
        Ok(files)
    }

    fn create(&mut self, name: &str) -> Result<OpenFile, Error> {
        let file = OpenOptions::new().append(true).create_new(true).open(self.path.join(name));
        Ok(OpenFile { file: file.map_err(self.error("create", name))?, name: name.to_owned() })
    }

    fn write(&mut self, file: &mut OpenFile, bytes: &[u8]) -> Result<(), Error> {
        file.file.write_all(bytes).map_err(self.error("write", &file.name))
    }

    fn sync(&mut self, file: &mut OpenFile) -> Result<(), Error> {
        file.file.sync_data().map_err(self.error("sync", &file.name))
    }

    fn sync_names(&mut self) -> Result<(), Error> {
        self.handle.sync_all().map_err(self.error("sync the folder", ""))
    }

    fn read(&mut self, name: &str, offset: u64, count: usize) -> Result<Vec<u8>, Error> {
        let error = self.error("read", name);
        let file = File::open(self.path.join(name)).map_err(&error)?;
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(interrupted) if interrupted.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(error(source)),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn truncate(&mut self, name: &str, length: u64) -> Result<(), Error> {
        let error = self.error("truncate", name);
        let file = OpenOptions::new().write(true).open(self.path.join(name)).map_err(&error)?;
        file.set_len(length).and_then(|()| file.sync_all()).map_err(error)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        absent_is_done(fs::rename(self.path.join(from), self.path.join(to)))
            .map_err(self.error("rename", from))
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        absent_is_done(fs::remove_file(self.path.join(name))).map_err(self.error("remove", name))
    }

    fn free_bytes(&mut self) -> Result<u64, Error> {
        let found = rustix::fs::fstatvfs(&self.handle)
            .map_err(|error| self.error("measure the free space of", "")(error.into()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

fn absent_is_done(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_processes_and_keeps_what_it_is_given() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("new/spool");
        let mut folder = Folder::open(&path).unwrap();
        let refused = Folder::open(&path).unwrap_err();
        assert_eq!(refused.source.to_string(), "another process uses it");

        let mut file = folder.create("a").unwrap();
        assert!(folder.create("a").is_err(), "a file is never overwritten");
        folder.write(&mut file, b"hello ").unwrap();
        folder.write(&mut file, b"world").unwrap();
        folder.sync(&mut file).unwrap();
        folder.sync_names().unwrap();
        assert_eq!(folder.read("a", 6, 100).unwrap(), b"world");
        folder.truncate("a", 5).unwrap();
        // A file is written at its end, wherever that is.
        folder.write(&mut file, b"!").unwrap();
        folder.rename("a", "b").unwrap();
        folder.rename("a", "b").unwrap();
        assert_eq!(folder.read("b", 0, 100).unwrap(), b"hello!");
        assert!(folder.list().unwrap().contains(&("b".to_owned(), 6)));
        folder.remove("b").unwrap();
        folder.remove("b").unwrap();
        assert!(folder.free_bytes().unwrap() > 0);
        let error = folder.read("b", 0, 1).unwrap_err();
        assert!(error.to_string().ends_with("spool/b"), "{error}");
        drop(folder);
        Folder::open(&path).unwrap();
    }

    #[test]
    fn every_new_name_on_the_way_to_a_new_folder_is_synced() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        assert_eq!(names_to_sync(&path), [parent.path().join("a"), parent.path().to_owned()]);
        Folder::open(&path).unwrap();
        assert_eq!(names_to_sync(&path), Vec::<PathBuf>::new());
        assert_eq!(names_to_sync(Path::new("not-there/b")), [Path::new("not-there"), Path::new(".")]);
    }
}
