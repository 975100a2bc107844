//! What an audit finds: each finding names what is wrong and where.
//!
//! Owns the closed list of kinds and the bound on how many findings are kept. Pure. Never holds a payload: a report may be
//! shown to those who may not read events.

use std::fmt;

use uuid::Uuid;

/// Findings kept; more are counted. Whoever reads the first thousand knows enough to stop.
pub const FINDINGS_MAX: usize = 1000;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An event's bytes are not those that its log entry commits to.
    EventAltered,
    /// A batch tells of an event that is not there.
    EventMissing,
    /// Rows that no batch tells of.
    EventAdded,
    /// Two events have changed places.
    EventsSwapped,
    /// An event stands under another id than its own.
    EventMoved,
    /// A payload was emptied without a record of an erasure.
    EventEmptied,
    /// An archived event stands in a file where it does not belong.
    EventMisplaced,
    /// A recorded file is not in the archive.
    ArchiveMissing,
    /// An archived file is not the one that was recorded, or not as its record says.
    ArchiveAltered,
    /// No batch covers these indexes.
    BatchMissing,
    /// Two batches cover the same indexes.
    BatchOverlap,
    /// A batch row holds what is never written.
    BatchMalformed,
    /// Two batches have changed places.
    BatchesSwapped,
    /// Log entries are not those that the signed log was made from.
    EntriesAltered,
    /// A stored tile is not that of the signed log.
    TileAltered,
    /// A stored tile that the log must have is not there.
    TileMissing,
    /// A checkpoint that no given key has signed, or of another log, or that is none at all.
    CheckpointInvalid,
    /// A signed checkpoint whose root is not that of the stored events.
    CheckpointMismatch,
    /// A signed checkpoint is of more events than the database holds.
    DatabaseBehind,
    /// The ledger's head does not follow from its batches or its log.
    HeadWrong,
}

impl Kind {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EventAltered => "event-altered",
            Self::EventMissing => "event-missing",
            Self::EventAdded => "event-added",
            Self::EventsSwapped => "events-swapped",
            Self::EventMoved => "event-moved",
            Self::EventEmptied => "event-emptied",
            Self::EventMisplaced => "event-misplaced",
            Self::ArchiveMissing => "archive-missing",
            Self::ArchiveAltered => "archive-altered",
            Self::BatchMissing => "batch-missing",
            Self::BatchOverlap => "batch-overlap",
            Self::BatchMalformed => "batch-malformed",
            Self::BatchesSwapped => "batches-swapped",
            Self::EntriesAltered => "entries-altered",
            Self::TileAltered => "tile-altered",
            Self::TileMissing => "tile-missing",
            Self::CheckpointInvalid => "checkpoint-invalid",
            Self::CheckpointMismatch => "checkpoint-mismatch",
            Self::DatabaseBehind => "database-behind",
            Self::HeadWrong => "head-wrong",
        }
    }

    /// The kind of a name, as a saved audit has it.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// All kinds.
    pub const ALL: [Self; 20] = [
        Self::EventAltered,
        Self::EventMissing,
        Self::EventAdded,
        Self::EventsSwapped,
        Self::EventMoved,
        Self::EventEmptied,
        Self::EventMisplaced,
        Self::ArchiveMissing,
        Self::ArchiveAltered,
        Self::BatchMissing,
        Self::BatchOverlap,
        Self::BatchMalformed,
        Self::BatchesSwapped,
        Self::EntriesAltered,
        Self::TileAltered,
        Self::TileMissing,
        Self::CheckpointInvalid,
        Self::CheckpointMismatch,
        Self::DatabaseBehind,
        Self::HeadWrong,
    ];
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// First and last index concerned, both included; `None` when it has no place in the ledger.
    pub indexes: Option<(u64, u64)>,
    /// Id of the first event concerned, where it is one event, or of the batch.
    pub id: Option<Uuid>,
    /// What is wrong, in one sentence.
    pub detail: String,
}

impl Finding {
    /// About the events `first` to `last`, both included.
    pub(crate) fn range(kind: Kind, first: u64, last: u64, detail: impl Into<String>) -> Self {
        Self { kind, indexes: Some((first, last)), id: None, detail: detail.into() }
    }

    /// About one event.
    pub(crate) fn event(kind: Kind, index: u64, id: Uuid, detail: impl Into<String>) -> Self {
        Self { kind, indexes: Some((index, index)), id: Some(id), detail: detail.into() }
    }

    /// About something that has no index.
    pub(crate) fn about(kind: Kind, id: Option<Uuid>, detail: impl Into<String>) -> Self {
        Self { kind, indexes: None, id, detail: detail.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match self.indexes {
            Some((first, last)) if first == last => write!(f, ": event {first}")?,
            Some((first, last)) => write!(f, ": events {first} to {last}")?,
            None => {}
        }
        if let Some(id) = self.id {
            write!(f, " ({id})")?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// Findings, the first [`FINDINGS_MAX`] of them in full.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    kept: Vec<Finding>,
    count: u64,
}

impl Findings {
    /// Adds one.
    pub(crate) fn push(&mut self, finding: Finding) {
        self.count += 1;
        if self.kept.len() < FINDINGS_MAX {
            self.kept.push(finding);
        }
    }

    /// Lets the last finding of a kind go on to `last`, if it ends just before `first`.
    pub(crate) fn extend(&mut self, kind: Kind, first: u64, last: u64) -> bool {
        let end =
            self.kept.iter_mut().rev().find(|one| one.kind == kind).and_then(|one| one.indexes.as_mut());
        match end {
            Some((_, end)) if *end + 1 == first => {
                *end = last;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Adds all of `other`.
    pub(crate) fn append(&mut self, other: Self) {
        let uncounted = other.count - other.kept.len() as u64;
        other.kept.into_iter().for_each(|finding| self.push(finding));
        self.count += uncounted;
    }

    /// Counts further ones.
    pub(crate) fn count_more(&mut self, count: u64) {
        self.count += count;
    }

    /// From a saved audit: `count` findings, of which some are kept.
    pub(crate) fn restore(kept: Vec<Finding>, count: u64) -> Self {
        Self { count: count.max(kept.len() as u64), kept }
    }

    /// In the order of the ledger; those without a place come last.
    pub(crate) fn sort(&mut self) {
        self.kept.sort_by_key(|finding| (finding.indexes.is_none(), finding.indexes, finding.kind));
    }

    /// Those that were kept.
    #[must_use]
    pub fn kept(&self) -> &[Finding] {
        &self.kept
    }

    /// How many there are, with those that were not kept.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}
