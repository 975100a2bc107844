//! What commands are given to read: files, standard input, URLs, keys.
//!
//! Owns the bounds on their size and the precise errors. Never trusts what it reads: that is for the commands.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use certeus_tlog::note::{KeyError, VerifierKey};

use crate::http;
use crate::load::Endpoint;

/// Larger than the largest event, and any proof, checkpoint or list of keys.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Why an input cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read '{}'", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("'{}' is longer than {FILE_BYTES_MAX} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("'{}' is not UTF-8 text", path.display())]
    NotText { path: PathBuf },
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("'{text}' is neither a public key ({source}) nor a file that can be read ({file})")]
    Key { text: String, source: KeyError, file: io::Error },
    #[error("line {line} of '{file}' is not a public key")]
    KeyLine { file: String, line: usize, source: KeyError },
    #[error(
        "'{file}' holds a private key; verifying takes the public one, which `certeus key public` prints"
    )]
    PrivateKey { file: String },
    #[error("'{file}' holds no key")]
    NoKey { file: String },
}

/// The bytes of a file; of standard input for `-`.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let read = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = if path == Path::new("-") {
        read(&mut io::stdin())
    } else {
        File::open(path).and_then(|mut file| read(&mut file))
    };
    let bytes = bytes.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::TooLong { path: path.to_owned() });
    }
    Ok(bytes)
}

/// The text of a file; of standard input for `-`.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    String::from_utf8(read(path)?).map_err(|_not_utf8| Error::NotText { path: path.to_owned() })
}

/// The bytes of a file, or of what an `http://` address answers.
pub(crate) fn read_or_fetch(source: &str) -> Result<Vec<u8>, Error> {
    if !is_url(source) {
        return read(Path::new(source));
    }
    let endpoint: Endpoint = source.parse().map_err(http::Error::Url)?;
    Ok(http::Site::new(endpoint)?.get("", None)?)
}

/// Whether a source is an address; everything else is a file.
pub(crate) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The keys that an option names: one key itself, or a file with a key a line.
fn keys(source: &str) -> Result<Vec<VerifierKey>, Error> {
    if source.starts_with("PRIVATE+KEY+") {
        return Err(Error::PrivateKey { file: "the option".to_owned() });
    }
    let not_a_key = match VerifierKey::parse(source) {
        Ok(key) => return Ok(vec![key]),
        Err(error) => error,
    };
    let text = match read_text(Path::new(source)) {
        Ok(text) => text,
        Err(Error::Read { source: file, .. }) => {
            return Err(Error::Key { text: source.to_owned(), source: not_a_key, file });
        }
        Err(error) => return Err(error),
    };
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with("PRIVATE+KEY+") {
            return Err(Error::PrivateKey { file: source.to_owned() });
        }
        let key = VerifierKey::parse(line);
        keys.push(key.map_err(|error| Error::KeyLine {
            file: source.to_owned(),
            line: number,
            source: error,
        })?);
    }
    if keys.is_empty() { Err(Error::NoKey { file: source.to_owned() }) } else { Ok(keys) }
}

/// The keys that options name, each once.
pub(crate) fn all_keys(sources: &[String]) -> Result<Vec<VerifierKey>, Error> {
    let mut all = Vec::new();
    for source in sources {
        for key in keys(source)? {
            if !all.contains(&key) {
                all.push(key);
            }
        }
    }
    Ok(all)
}

/// The log's name: the one given, or that of all its keys. The error is one of usage.
pub(crate) fn origin(given: Option<&str>, keys: &[VerifierKey]) -> Result<String, String> {
    let name = keys.first().map(VerifierKey::name).unwrap_or_default();
    match (given, keys.iter().find(|key| key.name() != name)) {
        (Some(origin), _) => Ok(origin.to_owned()),
        (None, None) => Ok(name.to_owned()),
        (None, Some(other)) => {
            let other = other.name();
            Err(format!("the keys are of two logs, {name:?} and {other:?}: say which with --origin"))
        }
    }
}

/// An error with its causes on one line. A cause whose words are already said is left out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            // Writing to a string cannot fail.
            let _infallible = write!(text, ": {words}");
        }
        next = cause.source();
    }
    text
}
