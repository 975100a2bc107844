//! `certeus key`: makes signing keys and shows the public halves.
//!
//! Owns the key file: one key a line, readable by its owner only, never overwritten. Never prints a private key, and takes
//! randomness from the operating system alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use certeus_tlog::note::{Algorithm, KeyError, SEED_BYTES, SignError, SignerKey};
use clap::{Subcommand, ValueEnum};
use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use crate::input;

const NEW_AFTER_HELP: &str = "\
The name is that of the log, by convention like a URL without 'https://'. Pods sign with the key when
CERTEUS_SIGNING_KEY holds the file's content. Hand out the line that is printed, not the file.

Example:
  certeus key new --name log.example.com/default --out log.key > log.vkey";

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a signing key: the private key goes into a new file, the public one is printed.
    #[command(after_help = NEW_AFTER_HELP)]
    New {
        /// Name of the log that the key will sign for
        #[arg(long, value_name = "ORIGIN")]
        name: String,
        /// Kind of signature
        #[arg(long, value_enum, default_value_t = KeyAlgorithm::Ed25519)]
        algorithm: KeyAlgorithm,
        /// File to write the private key to; it must not exist
        #[arg(long, value_name = "FILE", default_value = "log.key")]
        out: PathBuf,
    },
    /// Print the public keys of the private keys in a file.
    Public {
        /// File with private keys, one a line; '-' is standard input
        file: PathBuf,
    },
}

/// Algorithms that logs sign with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyAlgorithm {
    /// What every verifier understands
    #[value(name = "ed25519")]
    Ed25519,
    /// Post-quantum, as a second key beside an Ed25519 key of the same name
    #[value(name = "ml-dsa-44")]
    MlDsa44,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the name cannot be used: {0}")]
    Name(KeyError),
    #[error("the operating system gives no random bytes")]
    Random(#[source] rand::rngs::SysError),
    #[error("'{}' exists; a key is never overwritten", path.display())]
    Exists { path: PathBuf },
    #[error("cannot write '{}'", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Read(#[from] input::Error),
    #[error("line {line} of '{}' is not a private key", path.display())]
    Line { path: PathBuf, line: usize, source: KeyError },
    #[error("'{}' holds no key", path.display())]
    Empty { path: PathBuf },
    #[error("the new key does not sign")]
    Sign(#[from] SignError),
}

/// Runs the command and gives what is to be printed.
pub(crate) fn run(command: Command) -> Result<String, Error> {
    match command {
        Command::New { name, algorithm, out } => {
            let mut seed = Zeroizing::new([0; SEED_BYTES]);
            SysRng.try_fill_bytes(seed.as_mut_slice()).map_err(Error::Random)?;
            create(&name, algorithm, &seed, &out)
        }
        Command::Public { file } => public(&file),
    }
}

fn create(name: &str, algorithm: KeyAlgorithm, seed: &[u8; SEED_BYTES], out: &Path) -> Result<String, Error> {
    let algorithm = match algorithm {
        KeyAlgorithm::Ed25519 => Algorithm::Ed25519,
        KeyAlgorithm::MlDsa44 => Algorithm::MlDsa44,
    };
    let key = SignerKey::from_seed(name, algorithm, *seed).map_err(Error::Name)?;
    let mut line = key.to_secret_text();
    line.push('\n');
    write_new(out, line.as_bytes()).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists { path: out.to_owned() },
        _ => Error::Write { path: out.to_owned(), source },
    })?;
    Ok(format!("{}\n", key.verifier()))
}

/// A key that is lost to a crash after its public half was handed out could not be replaced quietly: it is flushed first.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn public(path: &Path) -> Result<String, Error> {
    let text = Zeroizing::new(input::read_text(path)?);
    let mut keys = String::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let key = SignerKey::parse(line.trim()).map_err(|source| Error::Line {
            path: path.to_owned(),
            line: number,
            source,
        })?;
        keys.push_str(&format!("{}\n", key.verifier()));
    }
    if keys.is_empty() { Err(Error::Empty { path: path.to_owned() }) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use certeus_tlog::note::VerifierKey;

    use super::*;

    #[test]
    fn a_new_key_is_for_its_owner_alone_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        for (algorithm, wanted) in
            [(KeyAlgorithm::Ed25519, Algorithm::Ed25519), (KeyAlgorithm::MlDsa44, Algorithm::MlDsa44)]
        {
            let printed = create("log.example/a", algorithm, &[7; 32], &path).unwrap();
            let verifier = VerifierKey::parse(printed.trim_end()).unwrap();
            assert_eq!((verifier.name(), verifier.algorithm()), ("log.example/a", wanted));
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(public(&path).unwrap(), printed);

            let before = std::fs::read(&path).unwrap();
            let error = create("log.example/a", algorithm, &[8; 32], &path).unwrap_err();
            assert!(matches!(error, Error::Exists { .. }), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), before);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn what_is_not_a_private_key_is_named_without_repeating_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        assert!(matches!(create("a b", KeyAlgorithm::Ed25519, &[7; 32], &path), Err(Error::Name(_))));
        let good = SignerKey::from_seed("log", Algorithm::Ed25519, [7; 32]).unwrap().to_secret_text();
        std::fs::write(&path, format!("{}\n\n{}x\n", *good, *good)).unwrap();
        let error = public(&path).unwrap_err();
        assert!(matches!(error, Error::Line { line: 3, .. }), "{error}");
        assert!(!crate::input::chain(&error).contains("PRIVATE+KEY+log"), "{error}");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(public(&path), Err(Error::Empty { .. })));
    }
}
