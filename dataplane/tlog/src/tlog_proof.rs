//! Proof files (C2SP `tlog-proof`): one entry's inclusion proof with the signed checkpoint it leads to, for verifying offline.
//!
//! Owns the file's syntax and the order of checks. The entry itself is not in the file: a verifier knows it, or derives it with
//! the help of `extra`, which nothing authenticates.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::{Checkpoint, OpenError};
use crate::hash::{Hash, HashTextError};
use crate::note::{NOTE_BYTES_MAX, NoteError, SignedNote, Verified, VerifierKey};
use crate::proof::{self, PROOF_HASHES_MAX, verify_inclusion};
use crate::text::parse_decimal;

/// A proof file is at most this long: a note, and as much again for `extra`.
pub const TLOG_PROOF_BYTES_MAX: usize = 2 * NOTE_BYTES_MAX;

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// What a proof file says, unverified until [`Self::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlogProof {
    /// Bytes with a meaning for the application, not covered by any signature; empty for none.
    pub extra: Vec<u8>,
    /// Index of the entry in the log.
    pub index: u64,
    /// The inclusion proof, leaf's sibling first.
    pub hashes: Vec<Hash>,
    /// The signed checkpoint.
    pub checkpoint: SignedNote,
}

/// Why bytes are not a proof file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Longer than [`TLOG_PROOF_BYTES_MAX`].
    #[error("a proof file of {0} bytes is too long")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("the proof file is not UTF-8")]
    Utf8,
    /// The first line is not the format's name.
    #[error("the proof file does not begin with {HEADER:?}")]
    Header,
    /// The line `extra` is not Base64 of at least one byte.
    #[error("the proof file's line `extra` is not Base64 of at least one byte")]
    Extra,
    /// There is no line `index` with a number in its only spelling.
    #[error("the proof file has no line `index` with a decimal number")]
    Index,
    /// More hashes than any proof has.
    #[error("the proof file has more than {PROOF_HASHES_MAX} hashes")]
    TooManyHashes,
    /// A line of the proof is not a hash.
    #[error("line {line} of the inclusion proof is malformed")]
    Hash {
        /// Counted from 1 at the first hash.
        line: usize,
        /// What is wrong.
        source: HashTextError,
    },
    /// There is no blank line with a checkpoint after it.
    #[error("the proof file has no checkpoint")]
    NoCheckpoint,
    /// What follows the blank line is not a signed note.
    #[error("the proof file's checkpoint is malformed")]
    Checkpoint(#[from] NoteError),
}

/// Why a proof file proves nothing of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The checkpoint is not to be trusted.
    #[error("the checkpoint is not to be trusted")]
    Checkpoint(#[from] OpenError),
    /// The leaf is not proven to be in the checkpoint's tree.
    #[error("the inclusion proof does not hold")]
    Inclusion(#[from] proof::VerifyError),
}

impl TlogProof {
    /// Reads a proof file. Accepts exactly what formatting the result gives back.
    ///
    /// # Errors
    /// When the bytes are not a proof file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        if bytes.len() > TLOG_PROOF_BYTES_MAX {
            return Err(ParseError::TooLong(bytes.len()));
        }
        let file = std::str::from_utf8(bytes).map_err(|_| ParseError::Utf8)?;
        let (header, rest) = file.split_once('\n').ok_or(ParseError::Header)?;
        if header != HEADER {
            return Err(ParseError::Header);
        }
        let (extra, rest) = parse_extra(rest)?;
        let (index, mut rest) = rest.split_once('\n').ok_or(ParseError::Index)?;
        let index = index.strip_prefix("index ").and_then(parse_decimal).ok_or(ParseError::Index)?;
        let mut hashes = Vec::new();
        loop {
            let (line, after) = rest.split_once('\n').ok_or(ParseError::NoCheckpoint)?;
            rest = after;
            if line.is_empty() {
                break;
            }
            if hashes.len() == PROOF_HASHES_MAX {
                return Err(ParseError::TooManyHashes);
            }
            let hash = Hash::from_base64(line);
            hashes.push(hash.map_err(|source| ParseError::Hash { line: hashes.len() + 1, source })?);
        }
        Ok(Self { extra, index, hashes, checkpoint: SignedNote::parse(rest.as_bytes())? })
    }

    /// Checks that the leaf is in the tree of a checkpoint of the log `origin` signed by one of `keys`. Returns the checkpoint
    /// and who signed it; whether those are enough is for the caller to say.
    ///
    /// # Errors
    /// When that is not proven.
    pub fn verify<'k>(
        &self,
        leaf_hash: &Hash,
        origin: &str,
        keys: &'k [VerifierKey],
    ) -> Result<(Checkpoint, Vec<Verified<'k>>), VerifyError> {
        let (checkpoint, verified) = Checkpoint::verify_note(&self.checkpoint, origin, keys)?;
        verify_inclusion(self.index, checkpoint.size(), leaf_hash, &self.hashes, &checkpoint.root())?;
        Ok((checkpoint, verified))
    }
}

impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if !self.extra.is_empty() {
            writeln!(f, "extra {}", STANDARD.encode(&self.extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        self.hashes.iter().try_for_each(|hash| writeln!(f, "{hash}"))?;
        write!(f, "\n{}", self.checkpoint)
    }
}

/// The optional second line, and what follows it.
fn parse_extra(rest: &str) -> Result<(Vec<u8>, &str), ParseError> {
    let Some(after) = rest.strip_prefix("extra ") else { return Ok((Vec::new(), rest)) };
    let (encoded, rest) = after.split_once('\n').ok_or(ParseError::Extra)?;
    let extra = STANDARD.decode(encoded).map_err(|_| ParseError::Extra)?;
    if extra.is_empty() { Err(ParseError::Extra) } else { Ok((extra, rest)) }
}

#[cfg(test)]
mod tests;
