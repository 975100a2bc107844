//! The archive: events as Parquet files in a folder or an S3 bucket, each file enough by itself to hash its events again.
//!
//! Owns the file format (`docs/formats/archive.md`) and all traffic with the object store. Knows no database, no clock and
//! no retention: what is archived, and when, is the caller's. Promises: a file that [`Archive::verify`] has passed was read
//! back in full, has the digest that was computed while it was written, and each of its rows matches its log entry. Limits:
//! memory is that of about two row groups ([`GROUP_ROWS_MAX`], [`GROUP_BYTES_MAX`]), whatever the size of a file.
//!
//! Read next: `format`, then `file`.

mod file;
mod format;
mod location;
mod row;

pub use file::{FILE_BYTES_MAX, FILE_ROWS_MAX, File, FileWriter, Written};
pub use format::{GROUP_BYTES_MAX, GROUP_ROWS_MAX};
pub use location::{Archive, Location, LocationError};
pub use row::{Content, Row};

/// Why the archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object store failed.
    #[error("the archive's store failed")]
    Store(#[from] object_store::Error),
    /// What was written cannot be encoded, or what was read is not Parquet.
    #[error("the archived file cannot be encoded or decoded")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Coding ended in a panic of the library, which only a damaged file can cause.
    #[error("the archived file cannot be encoded or decoded: the library gave up")]
    Undecodable,
    /// The file is Parquet, and not as this software writes it.
    #[error("the archived file is not as written: {0}")]
    Malformed(&'static str),
    /// The object holds other bytes than were written.
    #[error("the object has another digest or length than the file that was written")]
    Digest,
    /// A row's bytes are not those that its log entry commits to.
    #[error("row {0} does not match its log entry")]
    Altered(uuid::Uuid),
}

impl Error {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Store(object_store::Error::NotFound { .. }))
    }

    /// Whether the store could not be asked, so that a later try may succeed; otherwise stored bytes are wrong or gone.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Store(object_store::Error::NotFound { .. }) => false,
            Self::Store(_) => true,
            Self::Parquet(_) | Self::Undecodable | Self::Malformed(_) | Self::Digest | Self::Altered(_) => {
                false
            }
        }
    }
}
