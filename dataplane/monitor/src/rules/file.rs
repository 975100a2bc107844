//! One file per document: a line that names the format and the SHA-256 of all that follows, then JSON.
//!
//! A file is written beside its place, synced, moved there, and the folder synced: after a crash there is the old one or the new
//! one. What the checksum does not fit was torn or altered, and is set aside under a name that is not read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::document::{Document, Key};

const FORMAT: &str = "certeus-rules v1 ";
const EXTENSION: &str = "rules";
const UNFINISHED: &str = "unfinished";
const SET_ASIDE: &str = "corrupt";
/// A document and its key, escaped: no file of ours is larger.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    key: Key,
    document: Document,
}

/// The bytes of a file.
fn encode(key: &Key, document: &Document) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(&Content { key: key.clone(), document: document.clone() })?;
    Ok([FORMAT.as_bytes(), hex(&json).as_bytes(), b"\n", &json].concat())
}

/// Reads the bytes of a file; what is wrong with them otherwise.
pub(super) fn decode(bytes: &[u8]) -> Result<(Key, Document), String> {
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or("has no first line")?;
    let (head, json) = (&bytes[..end], &bytes[end + 1..]);
    let digest = head.strip_prefix(FORMAT.as_bytes()).ok_or("is of another format")?;
    if digest != hex(json).as_bytes() {
        return Err("does not match its checksum".to_owned());
    }
    let Content { key, document } = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    Ok((key, document))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folders that are to have a new name once `path` is made: until they are synced, a crash may take the whole folder with it.
fn names_to_sync(path: &Path) -> Vec<PathBuf> {
    let parent =
        |path: &Path| path.parent().filter(|parent| !parent.as_os_str().is_empty()).map(Path::to_owned);
    let missing = path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
    missing.map(|path| parent(path).unwrap_or_else(|| ".".into())).collect()
}

/// A folder of such files, used by one process.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// What a folder held when it was read.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) documents: Vec<(Key, Document)>,
    /// Files that could not be used, and why.
    pub(super) unusable: Vec<(PathBuf, String)>,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads every file, makes the folder when it is new, and cleans up what a crash left.
    pub(super) fn read(&self) -> io::Result<Found> {
        let names = names_to_sync(&self.path);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        for folder in names {
            File::open(folder)?.sync_all()?;
        }
        let mut found = Found::default();
        for entry in fs::read_dir(&self.path)? {
            // What cannot be read hurts only itself.
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    found.unusable.push((self.path.clone(), error.to_string()));
                    continue;
                }
            };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(EXTENSION) => match self.read_one(&path) {
                    Ok(content) => found.documents.push(content),
                    Err(reason) => {
                        // If it cannot be moved it is found again, and told again.
                        let reason = match fs::rename(&path, path.with_extension(SET_ASIDE)) {
                            Ok(()) => reason,
                            Err(error) => format!("{reason}; it cannot be set aside either: {error}"),
                        };
                        found.unusable.push((path, reason));
                    }
                },
                Some(UNFINISHED) => {
                    if let Err(error) = fs::remove_file(&path) {
                        found.unusable.push((path, format!("cannot be removed: {error}")));
                    }
                }
                Some(_) | None => {}
            }
        }
        Ok(found)
    }

    fn read_one(&self, path: &Path) -> Result<(Key, Document), String> {
        let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
        if length > FILE_BYTES_MAX {
            return Err(format!("has {length} bytes"));
        }
        let (key, document) = decode(&fs::read(path).map_err(|error| error.to_string())?)?;
        if self.place(&key) != path {
            return Err(format!("holds the rules of {key}, which have another place"));
        }
        Ok((key, document))
    }

    /// Names may be as long as file names: a digest always fits.
    fn place(&self, key: &Key) -> PathBuf {
        let digest = hex(key.to_string().as_bytes());
        self.path.join(&digest[..32]).with_extension(EXTENSION)
    }

    /// Writes a document in place of what was there. If this fails, the old one or the new one is there.
    pub(super) fn write(&self, key: &Key, document: &Document) -> io::Result<()> {
        let place = self.place(key);
        let unfinished = place.with_extension(UNFINISHED);
        let mut file = File::create(&unfinished)?;
        file.write_all(&encode(key, document)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, &place)?;
        self.sync()
    }

    /// Removes a document, if it is there.
    pub(super) fn remove(&self, key: &Key) -> io::Result<()> {
        match fs::remove_file(self.place(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => self.sync(),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_new_name_on_the_way_to_a_new_folder_is_synced() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        assert_eq!(names_to_sync(&path), [parent.path().join("a"), parent.path().to_owned()]);
        Folder::new(path.clone()).read().unwrap();
        assert_eq!(names_to_sync(&path), Vec::<PathBuf>::new());
        assert_eq!(names_to_sync(Path::new("not-there/b")), [Path::new("not-there"), Path::new(".")]);
    }
}
