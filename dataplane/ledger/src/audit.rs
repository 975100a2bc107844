//! The audit: reads a whole ledger again, from the payloads' bytes up, and names what is not as it was committed and signed.
//!
//! Owns what is checked, how findings are named, and the format of a saved audit. Never writes to the database, never holds up
//! its writers for longer than a read of a few seconds, and trusts nothing in it: the keys, and the checkpoints that the auditor
//! brings, are all that is believed. What is not signed yet can be compared with the batches only, and is counted as such.
//! Memory is bounded by the number of jobs, whatever the size of the ledger.
//!
//! Read next: `run.rs` (the three readings), `rows.rs` (events), `archive.rs` (their files), `tree.rs` (log), `suspect.rs` and `explain.rs` (what happened).

mod archive;
pub mod copy;
mod evidence;
mod explain;
pub mod finding;
mod log;
mod plan;
mod records;
pub mod rows;
mod run;
mod sequence;
mod source;
mod state;
mod suspect;
mod tree;

#[cfg(test)]
mod tests;

use certeus_tlog::Hash;
use certeus_tlog::checkpoint::OpenError;

pub use archive::ArchiveFrom;
pub use finding::{Finding, Findings, Kind};
pub use rows::RowCounts;
pub use run::{Audit, Options};
pub use state::StateError;

use crate::LocationError;
use crate::error::Class;

/// Why an audit cannot be done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The database cannot be reached.
    #[error("cannot connect to the database")]
    Connect(#[source] tokio_postgres::Error),
    /// A query failed.
    #[error("the database failed")]
    Database(#[from] tokio_postgres::Error),
    /// There is no ledger at all.
    #[error("the database has no schema `certeus`: it holds no ledger")]
    NoSchema,
    /// The tables are not those that this software knows.
    #[error(
        "the database schema has version {found}, and this program audits version {known}: use the program of that version"
    )]
    Schema {
        /// Version in the database.
        found: i32,
        /// Version known here.
        known: i32,
    },
    /// There is no such ledger.
    #[error("there is no ledger {0:?}")]
    NoLedger(String),
    /// A checkpoint that the auditor brings is not to be believed.
    #[error("the checkpoint {name} cannot be used")]
    Checkpoint {
        /// Where it comes from.
        name: String,
        /// What is wrong with it.
        source: OpenError,
    },
    /// The saved audit cannot be gone on with.
    #[error("the saved audit cannot be used")]
    State(#[from] StateError),
    /// A stream of rows is not what it should be.
    #[error("the database sent something unexpected")]
    Copy(#[from] copy::CopyError),
    /// A row is not what the schema says.
    #[error("the database holds something impossible in {0}")]
    Columns(&'static str),
    /// An index is damaged.
    #[error(transparent)]
    OutOfOrder(#[from] rows::OutOfOrder),
    /// The place of archived files cannot be used.
    #[error("the archive at {location} cannot be opened")]
    ArchiveLocation {
        /// The place.
        location: String,
        /// Why not.
        source: LocationError,
    },
    /// Archived files cannot be read. Says nothing about them.
    #[error("the archive at {location} cannot be read")]
    Archive {
        /// Their place.
        location: String,
        /// Why not.
        source: certeus_archive::Error,
    },
    /// The place has none of the files.
    #[error(
        "the archive at {location} has none of the {files} newest files that are recorded as written to it"
    )]
    ArchiveEmpty {
        /// The place.
        location: String,
        /// Files that were asked for.
        files: usize,
    },
    /// An archived file is not the same for long enough to be read.
    #[error("the archived file that begins with event {0} is replaced again and again by erasures")]
    ArchiveChanges(uuid::Uuid),
    /// A defect of this software.
    #[error("a part of the audit ended unexpectedly")]
    Bug,
}

impl AuditError {
    /// What the caller does next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Connect(_)
            | Self::Database(_)
            | Self::ArchiveLocation { .. }
            | Self::Archive { .. }
            | Self::ArchiveEmpty { .. }
            | Self::ArchiveChanges(_) => Class::Unavailable,
            Self::NoSchema
            | Self::Schema { .. }
            | Self::NoLedger(_)
            | Self::Checkpoint { .. }
            | Self::State(_) => Class::Invalid,
            Self::Copy(_) | Self::Columns(_) | Self::OutOfOrder(_) => Class::Corrupt,
            Self::Bug => Class::Bug,
        }
    }

    /// Whether it is the archive that cannot be read, which another place of its files may help with.
    #[must_use]
    pub fn concerns_archive(&self) -> bool {
        matches!(self, Self::ArchiveLocation { .. } | Self::Archive { .. } | Self::ArchiveEmpty { .. })
    }
}

/// How far an audit is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Events to be audited.
    pub through: u64,
    /// Rows done.
    pub rows: RowCounts,
    /// Whether archived events are read as well.
    pub reads_archive: bool,
    /// Log entries done.
    pub tree_size: u64,
    /// Things found so far that are not as they should be.
    pub problems: u64,
}

/// What an audit came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// The ledger.
    pub ledger: String,
    /// The log.
    pub origin: String,
    /// Events that the ledger held when the audit began.
    pub events: u64,
    /// What was done of their rows.
    pub rows: RowCounts,
    /// So many events, from the first on, are those of a signed checkpoint.
    pub confirmed: u64,
    /// The root of all events.
    pub root: Hash,
    /// Checkpoints compared with.
    pub checkpoints: u64,
    /// What is wrong.
    pub findings: Findings,
}
