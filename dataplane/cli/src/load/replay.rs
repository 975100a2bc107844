//! The events of an NDJSON file as request bodies, each line unchanged. Holds one body and one line in memory, both
//! bounded, and never looks into the lines: what is wrong with an event is for the server to say. Blank lines are
//! not events and are skipped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

/// A request ends before it grows past this, whatever number of events was asked for.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Why a file cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot open '{}': {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read line {line} of '{}': {source}", path.display())]
    Read { path: PathBuf, line: u64, source: io::Error },
    #[error("line {line} of '{}' is longer than {BODY_BYTES_MAX} bytes", path.display())]
    LineTooLong { path: PathBuf, line: u64 },
}

/// A file that is being sent.
#[derive(Debug)]
pub(crate) struct Replay {
    path: PathBuf,
    reader: BufReader<File>,
    /// The line read last, counted from 1.
    line_number: u64,
    /// An event that was read but did not fit into the last body; empty when there is none.
    held_back: Vec<u8>,
}

impl Replay {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        let reader = BufReader::with_capacity(1 << 18, file);
        Ok(Self { path: path.to_owned(), reader, line_number: 0, held_back: Vec::new() })
    }

    /// The next events, at most `batch` of them, and how many they are. `None` at the end of the file.
    pub(crate) fn body(&mut self, batch: usize) -> Result<Option<(Bytes, usize)>, Error> {
        let mut body = BytesMut::new();
        let mut count = 0;
        while count < batch && self.read_event()? {
            if count > 0 {
                if body.len() + 1 + self.held_back.len() > BODY_BYTES_MAX {
                    break;
                }
                body.extend_from_slice(b"\n");
            }
            body.extend_from_slice(&self.held_back);
            self.held_back.clear();
            count += 1;
        }
        Ok((count > 0).then(|| (body.freeze(), count)))
    }

    /// Fills `held_back` with the next event, unless one waits there already. False at the end of the file.
    fn read_event(&mut self) -> Result<bool, Error> {
        while self.held_back.is_empty() {
            self.line_number += 1;
            let mut limited = self.reader.by_ref().take(BODY_BYTES_MAX as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.held_back).map_err(|source| Error::Read {
                path: self.path.clone(),
                line: self.line_number,
                source,
            })?;
            if read == 0 {
                return Ok(false);
            }
            if self.held_back.last() == Some(&b'\n') {
                self.held_back.pop();
            } else if read > BODY_BYTES_MAX {
                return Err(Error::LineTooLong { path: self.path.clone(), line: self.line_number });
            }
            if self.held_back.iter().all(u8::is_ascii_whitespace) {
                self.held_back.clear();
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bodies a file is cut into.
    fn bodies(content: &[u8], batch: usize) -> Result<Vec<(Bytes, usize)>, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let mut replay = Replay::open(file.path())?;
        std::iter::from_fn(|| replay.body(batch).transpose()).collect()
    }

    #[test]
    fn lines_keep_their_bytes_and_order() {
        let found = bodies(b"{\"a\": 1 }\n\n  \n{\"b\":\"\xc3\xa4\"}\r\n{\"c\":3}", 2).unwrap();
        let expected: [(&[u8], usize); 2] = [(b"{\"a\": 1 }\n{\"b\":\"\xc3\xa4\"}\r", 2), (b"{\"c\":3}", 1)];
        assert_eq!(found.iter().map(|(body, count)| (&body[..], *count)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_empty_file_has_no_bodies() {
        assert!(bodies(b"\n", 10).unwrap().is_empty());
    }

    #[test]
    fn a_body_stays_below_its_limit_without_losing_an_event() {
        let line = vec![b'x'; BODY_BYTES_MAX / 2];
        let content = [&line[..], &line[..], &line[..]].join(&b'\n');
        let counts: Vec<usize> = bodies(&content, 10).unwrap().iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 1, 1]);
    }

    #[test]
    fn a_line_beyond_the_limit_is_named() {
        let content = [b"{}\n", &vec![b'x'; BODY_BYTES_MAX + 1][..]].concat();
        let error = bodies(&content, 1).unwrap_err();
        assert!(matches!(error, Error::LineTooLong { line: 2, .. }), "{error}");
        // One byte less is fine.
        assert_eq!(bodies(&content[..content.len() - 1], 1).unwrap().len(), 2);
    }
}
