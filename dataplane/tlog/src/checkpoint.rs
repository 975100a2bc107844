//! Checkpoints (C2SP `tlog-checkpoint`): the text that says which root a log has at which size.
//!
//! Owns the text's syntax and [`Checkpoint::open`], which trusts it only with a known key's signature. Whether two checkpoints
//! are consistent is [`crate::proof::verify_consistency`]'s matter.

use std::fmt;

use crate::hash::Hash;
use crate::note::{NoteError, SignedNote, Verified, VerifierKey, VerifyError};
use crate::{SIZE_MAX, text};

/// A log's statement about its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: Hash,
    /// Zero or more whole lines.
    extensions: String,
}

/// Why a text is not a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// An origin is a non-empty line.
    #[error("the origin must be a line that is not empty and has no control character")]
    Origin,
    /// The second line is not a number of leaves from 0 to 2^63 - 1 in its only spelling.
    #[error("the tree size is not a decimal number from 0 to 2^63 - 1 without leading zeros")]
    Size,
    /// The third line is not 32 bytes in Base64.
    #[error("the root is not a hash in Base64")]
    Root,
    /// Lines after the third are not empty, and all end with a newline.
    #[error("an extension line is empty or not ended")]
    Extension,
}

/// Why a signed note is not a checkpoint to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not a signed note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Not signed as it must be.
    #[error(transparent)]
    Signature(#[from] VerifyError),
    /// Its text is not a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint of another log.
    #[error("the checkpoint is of the log {found:?}")]
    Origin {
        /// The log whose checkpoint it is.
        found: String,
    },
}

impl Checkpoint {
    /// A checkpoint without extension lines.
    ///
    /// # Errors
    /// When the origin cannot be a line, or the size is above [`SIZE_MAX`].
    pub fn new(origin: &str, size: u64, root: Hash) -> Result<Self, CheckpointError> {
        if origin.is_empty() || origin.bytes().any(|byte| byte < b' ') {
            return Err(CheckpointError::Origin);
        }
        if size > SIZE_MAX {
            return Err(CheckpointError::Size);
        }
        Ok(Self { origin: origin.to_owned(), size, root, extensions: String::new() })
    }

    /// Reads a note's text. Accepts exactly what [`Self::to_text`] of the result gives back.
    ///
    /// # Errors
    /// When the text is not a checkpoint.
    pub fn from_text(text: &str) -> Result<Self, CheckpointError> {
        let (origin, rest) = text.split_once('\n').ok_or(CheckpointError::Origin)?;
        let (size, rest) = rest.split_once('\n').ok_or(CheckpointError::Size)?;
        let (root, extensions) = rest.split_once('\n').ok_or(CheckpointError::Root)?;
        let size = text::parse_decimal(size).ok_or(CheckpointError::Size)?;
        let root = Hash::from_base64(root).map_err(|_| CheckpointError::Root)?;
        let bad = |line: &str| {
            line.len() < 2 || !line.ends_with('\n') || line.bytes().any(|b| b < b' ' && b != b'\n')
        };
        if extensions.split_inclusive('\n').any(bad) {
            return Err(CheckpointError::Extension);
        }
        Ok(Self { extensions: extensions.to_owned(), ..Self::new(origin, size, root)? })
    }

    /// Reads and verifies a signed checkpoint of the log `origin`: at least one of `keys` signed it, and none of them wrongly.
    /// Give the log's own keys: one of a witness among them would do in their place. Returns who signed as well, so that a
    /// caller can ask for more than one.
    ///
    /// # Errors
    /// When it is not to be trusted.
    pub fn open<'k>(
        note: &[u8],
        origin: &str,
        keys: &'k [VerifierKey],
    ) -> Result<(Self, Vec<Verified<'k>>), OpenError> {
        Self::verify_note(&SignedNote::parse(note)?, origin, keys)
    }

    /// Like [`Self::open`], of a note already parsed.
    ///
    /// # Errors
    /// When it is not to be trusted.
    pub fn verify_note<'k>(
        note: &SignedNote,
        origin: &str,
        keys: &'k [VerifierKey],
    ) -> Result<(Self, Vec<Verified<'k>>), OpenError> {
        let verified = note.verify(keys)?;
        let checkpoint = Self::from_text(note.text())?;
        if checkpoint.origin != origin {
            return Err(OpenError::Origin { found: checkpoint.origin });
        }
        Ok((checkpoint, verified))
    }

    /// The text of the note to be signed.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.to_string()
    }

    /// The log's name.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The tree's root.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.root
    }

    /// The lines after the third, which mean nothing here, and which ML-DSA-44 cosignatures do not cover.
    pub fn extensions(&self) -> impl Iterator<Item = &str> {
        self.extensions.lines()
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}\n{}", self.origin, self.size, self.root, self.extensions)
    }
}

#[cfg(test)]
mod tests;
