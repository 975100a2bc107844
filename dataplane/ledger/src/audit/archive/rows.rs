//! The rows of an archived file, one row group in memory at a time, and what is wrong with the file as a whole.

use certeus_archive::{File, Row};
use uuid::Uuid;

use super::failed;
use crate::audit::AuditError;
use crate::audit::finding::{FINDINGS_MAX, Finding, Findings, Kind};
use crate::audit::records::{Extent, RecordedFile};
use crate::audit::source::Source;
use crate::id::BatchId;
use crate::postgres::describe;

/// Reads a file from begin to end.
pub(super) struct FileRows {
    location: String,
    name: String,
    file: File,
    /// The next group to be read.
    group: usize,
    rows: std::vec::IntoIter<Row>,
    /// A row that was read ahead.
    ahead: Option<Row>,
    last: Option<Uuid>,
    /// What was read so far; `None` before the first row.
    extent: Option<Extent>,
    /// Row groups that cannot be read, and why not.
    unreadable: Vec<String>,
    misplaced: Vec<Misplaced>,
    /// Further ones, which are only counted.
    more_misplaced: u64,
}

/// Rows that do not belong where they stand, and have ids that follow each other.
struct Misplaced {
    first: Uuid,
    count: u32,
    why: &'static str,
}

impl FileRows {
    pub(super) fn new(location: String, name: String, file: File) -> Self {
        Self {
            location,
            name,
            file,
            group: 0,
            rows: Vec::new().into_iter(),
            ahead: None,
            last: None,
            extent: None,
            unreadable: Vec::new(),
            misplaced: Vec::new(),
            more_misplaced: 0,
        }
    }

    /// The next row, if its id is below a limit. Their ids ascend, whatever the file has.
    pub(super) async fn next_below(&mut self, limit: u128) -> Result<Option<Row>, AuditError> {
        if self.ahead.is_none() {
            self.ahead = self.next().await?;
        }
        Ok(self.ahead.take_if(|row| row.id.as_u128() < limit))
    }

    async fn next(&mut self) -> Result<Option<Row>, AuditError> {
        loop {
            for row in self.rows.by_ref() {
                count(&mut self.extent, &row);
                if self.last.is_none_or(|last| last < row.id) {
                    self.last = Some(row.id);
                    return Ok(Some(row));
                }
                add(
                    &mut self.misplaced,
                    &mut self.more_misplaced,
                    row.id,
                    "it stands there twice or out of order",
                );
            }
            if self.group == self.file.groups() {
                return Ok(None);
            }
            let group = self.group;
            self.group += 1;
            match self.file.rows(group).await {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(error) if error.is_unavailable() => return Err(failed(&self.location, error)),
                Err(error) => {
                    self.unreadable
                        .push(format!("has an unreadable row group {group}: {}", describe(&error)));
                }
            }
        }
    }

    /// Takes note of a row that belongs elsewhere.
    pub(super) fn misplace(&mut self, row: &Row, why: &'static str) {
        add(&mut self.misplaced, &mut self.more_misplaced, row.id, why);
    }

    /// Compares the whole of what was read with its record, and names what was misplaced.
    pub(super) async fn finish(
        self,
        record: &RecordedFile,
        source: &Source,
        ledger: &str,
        findings: &mut Findings,
    ) -> Result<(), AuditError> {
        for detail in &self.unreadable {
            findings.push(about_file(Kind::ArchiveAltered, record, detail));
        }
        if self.unreadable.is_empty() && self.extent != Some(record.extent) {
            findings.push(about_file(Kind::ArchiveAltered, record, &difference(&record.extent, self.extent)));
        }
        for Misplaced { first, count, why } in &self.misplaced {
            let index = source.index_of(ledger, *first).await?;
            let told = if index.is_some() { "" } else { ", and no batch tells of it" };
            let many = if *count == 1 { String::new() } else { format!("{count} events from this one on: ") };
            let detail = format!("{many}in the archived file {}, {why}{told}", self.name);
            findings.push(Finding {
                indexes: index.map(|index| (index, index + u64::from(*count) - 1)),
                ..Finding::about(Kind::EventMisplaced, Some(*first), detail)
            });
        }
        findings.count_more(self.more_misplaced);
        Ok(())
    }
}

fn add(misplaced: &mut Vec<Misplaced>, more: &mut u64, id: Uuid, why: &'static str) {
    let follows = |last: &Misplaced| {
        let next = last.first.as_u128() + u128::from(last.count) == id.as_u128();
        next && last.why == why && BatchId::of(last.first) == BatchId::of(id)
    };
    let room = misplaced.len() < FINDINGS_MAX;
    match misplaced.last_mut() {
        Some(last) if follows(last) => last.count += 1,
        _ if room => misplaced.push(Misplaced { first: id, count: 1, why }),
        _ => *more += 1,
    }
}

fn count(extent: &mut Option<Extent>, row: &Row) {
    // Beyond 63 bits an index is altered, which is found by itself.
    let index = i64::try_from(row.index).unwrap_or(i64::MAX);
    let extent = extent.get_or_insert(Extent {
        first_id: row.id,
        last_id: row.id,
        first_index: index,
        last_index: index,
        events: 0,
        erased: 0,
    });
    extent.first_id = extent.first_id.min(row.id);
    extent.last_id = extent.last_id.max(row.id);
    extent.first_index = extent.first_index.min(index);
    extent.last_index = extent.last_index.max(index);
    extent.events += 1;
    extent.erased += i64::from(row.content.is_none());
}

/// What a record says otherwise than its file.
fn difference(recorded: &Extent, found: Option<Extent>) -> String {
    let Some(found) = found else { return "has no events".to_owned() };
    let Extent { events, erased, first_id, last_id, first_index, last_index } = *recorded;
    let differs = [
        (events != found.events, format!("{} events instead of {events}", found.events)),
        (erased != found.erased, format!("{} erased events instead of {erased}", found.erased)),
        (
            (first_id, last_id) != (found.first_id, found.last_id),
            format!("ids from {} to {} instead of {first_id} to {last_id}", found.first_id, found.last_id),
        ),
        (
            (first_index, last_index) != (found.first_index, found.last_index),
            format!(
                "indexes from {} to {} instead of {first_index} to {last_index}",
                found.first_index, found.last_index
            ),
        ),
    ];
    let differs = differs.into_iter().filter_map(|(differs, what)| differs.then_some(what));
    format!("differs from its record: it has {}", differs.collect::<Vec<_>>().join(", "))
}

/// A finding about a file, at the indexes that its record names.
pub(super) fn about_file(kind: Kind, record: &RecordedFile, detail: &str) -> Finding {
    let RecordedFile { name, extent, .. } = record;
    let index = |index: i64| u64::try_from(index).unwrap_or_default();
    let (first, last) = (index(extent.first_index), index(extent.last_index));
    Finding {
        id: Some(extent.first_id),
        ..Finding::range(kind, first, last.max(first), format!("the archived file {name} {detail}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u128, index: u64) -> Row {
        let id = Uuid::from_u128(id);
        Row {
            index,
            id,
            time_micros: 0,
            committed_micros: 0,
            kind: "t".to_owned(),
            entry: [0; 32],
            content: None,
        }
    }

    #[test]
    fn what_a_record_says_otherwise_is_said_and_nothing_else() {
        let mut extent = None;
        assert_eq!(difference(&counted(&[row(7, 1)]), extent), "has no events");
        for (id, index) in [(5, 9), (6, 3)] {
            count(&mut extent, &row(id, index));
        }
        let found = extent.unwrap();
        assert_eq!((found.first_index, found.last_index, found.events, found.erased), (3, 9, 2, 2));
        let text = difference(&Extent { events: 3, ..found }, extent);
        assert_eq!(text, "differs from its record: it has 2 events instead of 3");
        let text = difference(&Extent { erased: 0, last_index: 4, ..found }, extent);
        assert!(
            text.ends_with("2 erased events instead of 0, indexes from 3 to 9 instead of 3 to 4"),
            "{text}"
        );
        let text = difference(&Extent { last_id: Uuid::nil(), ..found }, extent);
        assert!(text.contains("ids from") && !text.contains("indexes"), "{text}");
    }

    fn counted(rows: &[Row]) -> Extent {
        let mut extent = None;
        rows.iter().for_each(|row| count(&mut extent, row));
        extent.unwrap()
    }

    #[test]
    fn misplaced_events_that_follow_each_other_are_one_finding_and_there_is_a_bound() {
        let (mut misplaced, mut more) = (Vec::new(), 0);
        for id in [1, 2, 3, 5, 1 << 20] {
            add(&mut misplaced, &mut more, Uuid::from_u128(id), "a");
        }
        add(&mut misplaced, &mut more, Uuid::from_u128((1 << 20) + 1), "b");
        let counts: Vec<u32> = misplaced.iter().map(|one| one.count).collect();
        assert_eq!((counts, more), (vec![3, 1, 1, 1], 0));
        (0..2000).for_each(|n| add(&mut misplaced, &mut more, Uuid::from_u128(n << 20), "c"));
        assert_eq!((misplaced.len(), more), (FINDINGS_MAX, 2004 - FINDINGS_MAX as u64));
    }
}
