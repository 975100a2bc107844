//! Checks that the batches of a ledger follow each other without a gap, and feeds their entries to the tree.
//!
//! Pure. What is missing is filled with unknown leaves, so that the tree can go on after it.

use uuid::Uuid;

use super::finding::{Finding, Kind};
use super::tree::TreeAudit;
use crate::envelope::ENTRY_BYTES;

/// A batch row, in the order of first indexes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SequenceRow<'a> {
    pub(crate) first_index: u64,
    pub(crate) event_count: u32,
    pub(crate) id: Uuid,
    pub(crate) entries: &'a [u8],
}

/// The part of a batch's entries that the tree has not had, where it goes to once gaps are filled. `None` if there is none.
pub(crate) fn admit<'a>(tree: &mut TreeAudit, expected: u64, row: &SequenceRow<'a>) -> Admitted<'a> {
    let SequenceRow { first_index, event_count, id, entries } = *row;
    let end = first_index + u64::from(event_count);
    let wanted = usize::try_from(event_count).unwrap_or(usize::MAX).saturating_mul(ENTRY_BYTES);
    if first_index > expected {
        missing(tree, expected, first_index);
    }
    if first_index < expected {
        let last = expected.min(end).saturating_sub(1).max(first_index);
        let detail = "two batches cover the same indexes; this is the second";
        tree.findings
            .push(Finding { id: Some(id), ..Finding::range(Kind::BatchOverlap, first_index, last, detail) });
    }
    let unknown = first_index.saturating_sub(expected);
    if entries.len() != wanted || event_count == 0 {
        let last = end.saturating_sub(1).max(first_index);
        let detail = format!("the batch has {} bytes of log entries for {event_count} events", entries.len());
        tree.findings.push(Finding {
            id: Some(id),
            ..Finding::range(Kind::BatchMalformed, first_index, last, detail)
        });
        return Admitted { unknown: unknown + end.saturating_sub(first_index.max(expected)), entries: &[] };
    }
    let skip = usize::try_from(expected.saturating_sub(first_index)).unwrap_or(usize::MAX);
    Admitted { unknown, entries: entries.get(skip.saturating_mul(ENTRY_BYTES)..).unwrap_or_default() }
}

/// What goes into the tree: first some leaves of which nothing is known, then entries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Admitted<'a> {
    pub(crate) unknown: u64,
    pub(crate) entries: &'a [u8],
}

/// Reports that no batch covers the indexes from `from` up to `to`.
pub(crate) fn missing(tree: &mut TreeAudit, from: u64, to: u64) {
    let detail = "no batch covers these indexes: its row was removed";
    if tree.findings.extend(Kind::BatchMissing, from, to - 1) {
        return;
    }
    tree.findings.push(Finding::range(Kind::BatchMissing, from, to - 1, detail));
}
