//! The anchor: the newest signed checkpoint, kept where a restore of the database does not reach.
//!
//! Owns reading and the compare-and-set. Knows nothing of what the text says: whoever reads it checks its signature.
//! Promises: what [`Anchor::compare_and_set`] confirmed survives a crash of the machine; two callers that expect the same
//! text do not both succeed; a reader sees a whole checkpoint or none.

mod object;

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use object::ObjectAnchor;

use crate::error::Class;

/// A checkpoint with a line for each of a few keys is far below this.
const ANCHOR_BYTES_MAX: u64 = 64 << 10;
/// The lock is held for a few milliseconds, unless its holder was stopped in the middle.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// Whatever it is kept in: the lock on the database outlives a wait of this length.
const STEP_MAX: Duration = Duration::from_secs(8);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Why the anchor could not be used. Whether a write took effect is then unknown: read before the next one.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The address is of no known kind.
    #[error(
        "must be file:// and an absolute path, such as file:///var/lib/certeus/anchor, or s3://bucket/key"
    )]
    Address,
    /// A step on the file system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody holds the lock.
    #[error("{} is locked by another process", .0.display())]
    Locked(PathBuf),
    /// The file is not a checkpoint.
    #[error("{0} is no text of 1 to {ANCHOR_BYTES_MAX} bytes")]
    Content(String),
    /// The object store failed.
    #[error("cannot use {url}")]
    Store {
        /// The object.
        url: Arc<str>,
        /// Why not.
        source: object_store::Error,
    },
    /// It took too long.
    #[error("there was no answer in time")]
    Timeout,
}

impl AnchorError {
    /// What the caller does next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Address => Class::Invalid,
            Self::Io { .. } | Self::Locked(_) | Self::Store { .. } | Self::Timeout => Class::Unavailable,
            Self::Content(_) => Class::Corrupt,
        }
    }
}

/// What became of a compare-and-set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Swap {
    /// The new text is durable.
    Done,
    /// Something else than expected is there; nothing was written.
    Conflict(Option<String>),
}

/// Where the newest checkpoint is kept besides the database.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// A file, on a volume that is not restored together with the database.
    File(Arc<Path>),
    /// An object in a bucket.
    Object(ObjectAnchor),
}

impl FromStr for Anchor {
    type Err = AnchorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = text.strip_prefix("s3://") {
            return Ok(Self::Object(ObjectAnchor::s3(text, rest)?));
        }
        let path = text.strip_prefix("file://").map(Path::new).filter(|path| path.is_absolute());
        let path = path.filter(|path| path.file_name().is_some()).ok_or(AnchorError::Address)?;
        Ok(Self::File(path.into()))
    }
}

impl std::fmt::Display for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "file://{}", path.display()),
            Self::Object(object) => f.write_str(object.url()),
        }
    }
}

impl Anchor {
    /// The checkpoint as it was last set; `None` when there never was one.
    pub(crate) async fn read(&self) -> Result<Option<String>, AnchorError> {
        in_time(async {
            match self {
                Self::File(path) => {
                    let path = Arc::clone(path);
                    blocking(move || read_file(&path)).await
                }
                Self::Object(object) => object.read().await,
            }
        })
        .await
    }

    /// Replaces the expected text by a new one.
    pub(crate) async fn compare_and_set(
        &self,
        expected: Option<String>,
        new: String,
    ) -> Result<Swap, AnchorError> {
        in_time(async {
            match self {
                Self::File(path) => {
                    let path = Arc::clone(path);
                    blocking(move || swap_file(&path, expected.as_deref(), &new)).await
                }
                Self::Object(object) => object.swap(expected.as_deref(), new).await,
            }
        })
        .await
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, AnchorError>>) -> Result<T, AnchorError> {
    tokio::time::timeout(STEP_MAX, work).await.unwrap_or(Err(AnchorError::Timeout))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AnchorError> + Send + 'static,
) -> Result<T, AnchorError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(AnchorError::Timeout))
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> AnchorError + use<'a> {
    move |source| AnchorError::Io { action, path: path.to_owned(), source }
}

fn read_file(path: &Path) -> Result<Option<String>, AnchorError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(ANCHOR_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    let fits = bytes.len() as u64 <= ANCHOR_BYTES_MAX;
    let text = String::from_utf8(bytes).ok().filter(|text| fits && !text.is_empty());
    text.map(Some).ok_or_else(|| AnchorError::Content(path.display().to_string()))
}

/// The name with something added.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn swap_file(path: &Path, expected: Option<&str>, new: &str) -> Result<Swap, AnchorError> {
    // A file of its own, since the anchor itself is replaced. The kernel releases the lock when its holder ends.
    let lock_path = beside(path, ".lock");
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
    let lock = lock.map_err(failed("open", &lock_path))?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(AnchorError::Locked(path.to_owned()));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_RETRY),
        }
    }
    let found = read_file(path)?;
    if found.as_deref() != expected {
        return Ok(Swap::Conflict(found));
    }
    let next = beside(path, ".new");
    let written = File::options().create(true).truncate(true).write(true).mode(0o600).open(&next).and_then(
        |mut file| {
            file.write_all(new.as_bytes())?;
            // Before the rename: a name must never stand for bytes that a crash can take away.
            file.sync_all()
        },
    );
    written.map_err(failed("write", &next))?;
    fs::rename(&next, path).map_err(failed("replace", path))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    // The rename itself is durable once its folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("flush", folder))?;
    Ok(Swap::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_whoever_knows_the_present_text_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        let file: Anchor = format!("file://{}", folder.path().join("anchor").display()).parse().unwrap();
        let store = Arc::new(object_store::memory::InMemory::new());
        for anchor in [file, Anchor::Object(ObjectAnchor::in_store(store))] {
            compare_and_set(anchor).await;
        }
    }

    async fn compare_and_set(anchor: Anchor) {
        assert_eq!(anchor.read().await.unwrap(), None);
        let set = |expected: Option<&str>, new: &str| {
            let (anchor, expected, new) = (anchor.clone(), expected.map(str::to_owned), new.to_owned());
            async move { anchor.compare_and_set(expected, new).await.unwrap() }
        };
        assert_eq!(set(None, "one").await, Swap::Done);
        assert_eq!(set(None, "other").await, Swap::Conflict(Some("one".to_owned())));
        assert_eq!(set(Some("one"), "two").await, Swap::Done);
        assert_eq!(anchor.read().await.unwrap().as_deref(), Some("two"));
        // Of many that expect the same, one succeeds.
        let many: Vec<_> = (0..20).map(|n| tokio::spawn(set(Some("two"), &format!("n{n}")))).collect();
        let mut done = 0;
        for one in many {
            done += usize::from(one.await.unwrap() == Swap::Done);
        }
        assert_eq!(done, 1);
    }

    #[tokio::test]
    async fn what_is_no_checkpoint_is_told_apart_from_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anchor");
        let anchor: Anchor = format!("file://{}", path.display()).parse().unwrap();
        for content in [&b""[..], b"\xff", &vec![b'x'; 70_000]] {
            fs::write(&path, content).unwrap();
            assert_eq!(anchor.read().await.unwrap_err().class(), Class::Corrupt);
        }
        let nowhere: Anchor = format!("file://{}/no/anchor", folder.path().display()).parse().unwrap();
        assert_eq!(nowhere.read().await.unwrap(), None);
        let refused = nowhere.compare_and_set(None, "x".to_owned()).await.unwrap_err();
        assert_eq!(refused.class(), Class::Unavailable);
    }

    #[test]
    fn an_address_is_a_file_with_an_absolute_path() {
        for bad in [
            "",
            "/var/anchor",
            "file://relative",
            "file:///",
            "s3://bucket",
            "s3://bucket/",
            "s3://Bad/key",
            "s3://a/../b",
        ] {
            assert!(bad.parse::<Anchor>().is_err(), "{bad}");
        }
        assert_eq!("file:///a/b".parse::<Anchor>().unwrap().to_string(), "file:///a/b");
    }
}
