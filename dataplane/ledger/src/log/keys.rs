//! The keys that sign the log.
//!
//! Owns their sources (lines of text, or a file that is made on first use) and what they sign: checkpoints under one name,
//! the log's origin. Never shows a secret key.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use certeus_tlog::Hash;
use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, SignedNote, SignerKey, VerifierKey};

/// Keys that may sign at the same time: two algorithms, and both twice during a rotation.
const KEYS_MAX: usize = 4;
/// A file of keys is far below this.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// What is wrong with a key, or with what a key should have signed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Nothing there.
    #[error("no signing key")]
    None,
    /// More than make sense.
    #[error("more than {KEYS_MAX} signing keys")]
    TooMany,
    /// One line is not a key.
    #[error("line {line}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// Why not.
        source: certeus_tlog::note::KeyError,
    },
    /// The name is the log's origin, of which there is one.
    #[error("the keys have different names: all sign the same log, whose origin their name is")]
    Names,
    /// The same key twice.
    #[error("line {0} repeats a key")]
    Repeated(usize),
    /// A key of another kind.
    #[error("line {0} is a witness's key: a log signs with Ed25519 or ML-DSA-44")]
    Witness(usize),
    /// C2SP wants it.
    #[error("none of the keys is an Ed25519 key, which every verifier of checkpoints understands")]
    NoEd25519,
    /// A new key needs a name.
    #[error("there is no key in {}, and no origin to make one for: set log.origin", .0.display())]
    NoOrigin(PathBuf),
    /// The file has a key of another log.
    #[error("the key in {} is that of {found}, and log.origin is {expected}", path.display())]
    Origin {
        /// The file.
        path: PathBuf,
        /// The origin that was configured.
        expected: String,
        /// The key's name.
        found: String,
    },
    /// The file system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A new key could not be made.
    #[error("cannot make a key")]
    Make(#[source] certeus_tlog::note::KeyError),
    /// The origin cannot stand in a checkpoint.
    #[error("cannot make a checkpoint")]
    Checkpoint(#[from] certeus_tlog::checkpoint::CheckpointError),
    /// Signing failed.
    #[error("cannot sign")]
    Sign(#[from] certeus_tlog::note::SignError),
    /// What should be a checkpoint of this log, signed by one of our keys, is not.
    #[error("not a checkpoint that one of the configured keys has signed")]
    Open(#[from] certeus_tlog::checkpoint::OpenError),
    /// The note says something else than what stands beside it.
    #[error("its size or root is not the one that was signed")]
    Mismatch,
}

/// A checkpoint with its signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What is signed.
    pub checkpoint: Checkpoint,
    /// The signed note, as it is published.
    pub note: String,
}

/// The keys of one log; each signs every checkpoint.
#[derive(Debug)]
pub struct SigningKeys {
    keys: Vec<SignerKey>,
    verifiers: Vec<VerifierKey>,
}

impl FromStr for SigningKeys {
    type Err = KeyError;

    /// From one key a line, in Go's form.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut keys: Vec<SignerKey> = Vec::new();
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let key = SignerKey::parse(text.trim()).map_err(|source| KeyError::Line { line, source })?;
            if keys.iter().any(|known| known.verifier() == key.verifier()) {
                return Err(KeyError::Repeated(line));
            }
            if key.verifier().algorithm() == Algorithm::CosignatureV1 {
                return Err(KeyError::Witness(line));
            }
            if keys.len() == KEYS_MAX {
                return Err(KeyError::TooMany);
            }
            keys.push(key);
        }
        let verifiers: Vec<VerifierKey> = keys.iter().map(|key| key.verifier().clone()).collect();
        let first = verifiers.first().ok_or(KeyError::None)?;
        if verifiers.iter().any(|key| key.name() != first.name()) {
            return Err(KeyError::Names);
        }
        if verifiers.iter().all(|key| key.algorithm() != Algorithm::Ed25519) {
            return Err(KeyError::NoEd25519);
        }
        Ok(Self { keys, verifiers })
    }
}

impl SigningKeys {
    /// The keys in a file. If there is none, it is made, with one new Ed25519 key of that name.
    ///
    /// # Errors
    /// When the file cannot be read or made, holds something else, or its keys have another name.
    pub fn load_or_create(path: &Path, origin: Option<&str>) -> Result<Self, KeyError> {
        let failed = |action| move |source| KeyError::Io { action, path: path.to_owned(), source };
        let found = match fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let origin = origin.ok_or_else(|| KeyError::NoOrigin(path.to_owned()))?;
                create(path, origin)?;
                fs::metadata(path).map_err(failed("read"))?
            }
            Err(error) => return Err(failed("read")(error)),
        };
        if found.len() > FILE_BYTES_MAX {
            return Err(KeyError::TooMany);
        }
        let keys: Self = fs::read_to_string(path).map_err(failed("read"))?.parse()?;
        match origin {
            Some(expected) if expected != keys.origin() => {
                let (expected, found) = (expected.to_owned(), keys.origin().to_owned());
                Err(KeyError::Origin { path: path.to_owned(), expected, found })
            }
            Some(_) | None => Ok(keys),
        }
    }

    /// The log's origin, which is the keys' name.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.verifiers.first().map_or("", VerifierKey::name)
    }

    /// The public keys.
    #[must_use]
    pub fn verifiers(&self) -> &[VerifierKey] {
        &self.verifiers
    }

    /// Signs a tree with every key. `time` is in seconds since the Unix epoch, for the algorithms that sign it.
    pub(crate) fn sign(&self, size: u64, root: Hash, time: u64) -> Result<Signed, KeyError> {
        let checkpoint = Checkpoint::new(self.origin(), size, root)?;
        let note = SignedNote::sign(checkpoint.to_text(), &self.keys, time)?.to_string();
        Ok(Signed { checkpoint, note })
    }

    /// The key that signs bundles: the first Ed25519 key, of which there is one.
    pub(crate) fn bundle_key(&self) -> Option<&SignerKey> {
        self.keys.iter().find(|key| key.verifier().algorithm() == Algorithm::Ed25519)
    }

    /// The checkpoint of a note that at least one of our keys has signed, and in whose names no signature is wrong.
    pub(crate) fn verify(&self, note: &str) -> Result<Checkpoint, KeyError> {
        Ok(Checkpoint::open(note.as_bytes(), self.origin(), &self.verifiers)?.0)
    }

    /// Whether a note has a signature of each of our keys.
    pub(crate) fn all_signed(&self, note: &str) -> bool {
        Checkpoint::open(note.as_bytes(), self.origin(), &self.verifiers)
            .is_ok_and(|(_, verified)| verified.len() == self.verifiers.len())
    }
}

/// Makes a file with a new key. When another pod does the same at this moment, one file wins and both use it.
fn create(path: &Path, origin: &str) -> Result<(), KeyError> {
    let failed = |action| move |source| KeyError::Io { action, path: path.to_owned(), source };
    let key = SignerKey::from_seed(origin, Algorithm::Ed25519, rand::random()).map_err(KeyError::Make)?;
    let mut name = path.as_os_str().to_owned();
    // Nobody else's: pods and threads may do the same at once.
    name.push(format!(".{:016x}.new", rand::random::<u64>()));
    let new = PathBuf::from(name);
    // Written under another name, so that nobody reads half a key.
    let written = File::options().create_new(true).write(true).mode(0o600).open(&new).and_then(|mut file| {
        file.write_all(key.to_secret_text().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    });
    // A link, unlike a rename, replaces nothing: a key that has signed must not be lost.
    let linked = written.and_then(|()| match fs::hard_link(&new, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let removed = fs::remove_file(&new);
    linked.and(removed).map_err(failed("create"))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("flush the folder of"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(name: &str, algorithm: Algorithm, seed: u8) -> String {
        SignerKey::from_seed(name, algorithm, [seed; 32]).unwrap().to_secret_text().to_string()
    }

    fn refusal(lines: &[String]) -> String {
        let error = lines.join("\n").parse::<SigningKeys>().unwrap_err();
        assert!(lines.iter().all(|line| !format!("{error} {error:?}").contains(line)), "{error:?}");
        error.to_string()
    }

    #[test]
    fn only_keys_of_one_log_are_taken() {
        let ed25519 = |name, seed| key(name, Algorithm::Ed25519, seed);
        let both: SigningKeys =
            format!("\n{}\n{}\n", ed25519("a.example", 1), key("a.example", Algorithm::MlDsa44, 2))
                .parse()
                .unwrap();
        assert_eq!((both.origin(), both.verifiers().len()), ("a.example", 2));
        assert_eq!(refusal(&[]), "no signing key");
        assert!(refusal(&[ed25519("a.example", 1), ed25519("b.example", 1)]).contains("different names"));
        assert_eq!(refusal(&[ed25519("a", 1), ed25519("a", 1)]), "line 2 repeats a key");
        assert_eq!(refusal(&[ed25519("a", 1), "nonsense".to_owned()]), "line 2");
        assert!(refusal(&[key("a", Algorithm::MlDsa44, 1)]).contains("Ed25519"));
        assert!(refusal(&[key("a", Algorithm::CosignatureV1, 1)]).contains("witness"));
        let five: Vec<String> = (1..=5).map(|seed| ed25519("a", seed)).collect();
        assert_eq!(refusal(&five), "more than 4 signing keys");
    }

    #[test]
    fn what_is_signed_verifies_with_any_of_the_keys_and_with_no_others() {
        let (old, new) = (key("a", Algorithm::Ed25519, 1), key("a", Algorithm::Ed25519, 2));
        let ours = |text: &str| text.parse::<SigningKeys>().unwrap();
        let overlap = ours(&format!("{old}\n{new}"));
        let signed = overlap.sign(7, Hash([3; 32]), 1_000).unwrap();
        assert_eq!(signed.checkpoint.size(), 7);
        for keys in [&overlap, &ours(&old), &ours(&new)] {
            assert_eq!(keys.verify(&signed.note).unwrap(), signed.checkpoint);
            assert!(keys.all_signed(&signed.note));
        }
        let old_only = ours(&old).sign(7, Hash([3; 32]), 1_000).unwrap();
        assert!(overlap.verify(&old_only.note).is_ok() && !overlap.all_signed(&old_only.note));
        for wrong in [ours(&new), ours(&key("b", Algorithm::Ed25519, 1))] {
            assert!(wrong.verify(&old_only.note).is_err());
        }
        assert!(overlap.verify(&old_only.note.replace("\n7\n", "\n8\n")).is_err());
        assert!(overlap.verify("").is_err());
    }

    #[test]
    fn a_key_file_is_made_once_and_then_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing-key");
        assert!(matches!(SigningKeys::load_or_create(&path, None), Err(KeyError::NoOrigin(_))));
        let made: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || SigningKeys::load_or_create(&path, Some("a.example")).unwrap())
            })
            .collect();
        let made: Vec<_> = made.into_iter().map(|thread| thread.join().unwrap()).collect();
        let again = SigningKeys::load_or_create(&path, None).unwrap();
        assert!(made.iter().all(|keys| keys.verifiers() == again.verifiers()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let other = SigningKeys::load_or_create(&path, Some("b.example"));
        assert!(matches!(other, Err(KeyError::Origin { .. })));
    }
}
