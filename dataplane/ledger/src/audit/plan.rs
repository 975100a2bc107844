//! Cuts the ledger into pieces that are audited one by one: ranges of ids, and the stretches of archived days.
//!
//! Owns where pieces begin and end. Promises: the ranges cover all ids, and the stretches all ids of the archived days, each id
//! in exactly one of them; nothing that was cut is lost when a call is dropped while it waits.

use std::collections::VecDeque;
use std::ops::Range;

use uuid::Uuid;

use super::AuditError;
use super::source::{IdRange, Source};
use super::state::FilePlace;
use crate::id::{BatchId, Day};

/// Events of a piece, about: some 50 MB of typical rows, whose entries are 4 MiB.
pub(super) const JOB_EVENTS: u64 = 131_072;
/// Batch ids that are looked up at a time to cut.
pub(super) const PLAN_BATCHES: i64 = 10_000;

/// Ids of an archived day, and the recorded file that must have what lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) ids: Range<u128>,
    /// The first id of its record, by which it is found; `None` behind the last file of a day.
    pub(super) file: Option<Uuid>,
    /// Where the audit goes on after it.
    pub(super) then: FilePlace,
}

/// What is to be done next.
pub(super) struct Plan {
    ranges: VecDeque<IdRange>,
    /// Where cutting of ranges goes on; `None` at the end.
    from: Option<Uuid>,
    stretches: VecDeque<Stretch>,
    /// Where the first day's stretches go on.
    place: FilePlace,
    /// Archived days to be cut; `None` before they were looked up.
    days: Option<VecDeque<Day>>,
}

impl Plan {
    /// Goes on where an audit is.
    pub(super) fn new(from: Option<Uuid>, place: FilePlace) -> Self {
        Self { ranges: VecDeque::new(), from, stretches: VecDeque::new(), place, days: None }
    }

    /// The next range of ids to read. Ranges end where batches do, and the last one has no end, so that no row is left out.
    pub(super) async fn next_range(&mut self, source: &Source) -> Result<Option<IdRange>, AuditError> {
        if let Some(range) = self.ranges.pop_front() {
            return Ok(Some(range));
        }
        let Some(from) = self.from else { return Ok(None) };
        let batches = source.batch_ids(from, PLAN_BATCHES).await?;
        let (mut start, mut events) = (from, 0);
        for (id, count) in &batches {
            if events + count > JOB_EVENTS && events > 0 {
                self.ranges.push_back(IdRange { from: start, to: Some(*id) });
                (start, events) = (*id, 0);
            }
            events += count;
        }
        let more = i64::try_from(batches.len()).is_ok_and(|count| count == PLAN_BATCHES);
        self.from = match batches.last() {
            // The last batch of a full list begins the next one.
            Some((last, _)) if more => {
                if *last > start {
                    self.ranges.push_back(IdRange { from: start, to: Some(*last) });
                }
                Some(*last)
            }
            _ => {
                self.ranges.push_back(IdRange { from: start, to: None });
                None
            }
        };
        Ok(self.ranges.pop_front())
    }

    /// The next stretch of an archived day, of those days that are archived when this is called first.
    pub(super) async fn next_stretch(
        &mut self,
        source: &Source,
        ledger: &str,
    ) -> Result<Option<Stretch>, AuditError> {
        let first_day = BatchId::of(self.place.from).day();
        if self.days.is_none() {
            let days = source.archived_days(ledger).await?;
            let mut days: Vec<Day> = days.iter().filter_map(|day| Day::from_suffix(day)).collect();
            days.retain(|day| *day >= first_day);
            days.sort_unstable();
            self.days = Some(days.into());
        }
        while self.stretches.is_empty() {
            let Some(day) = self.days.as_ref().and_then(VecDeque::front).copied() else { return Ok(None) };
            let files = source.files_of(ledger, day).await?;
            self.stretches.extend(stretches(day, self.place, &files));
            let _cut_now = self.days.as_mut().and_then(VecDeque::pop_front);
        }
        Ok(self.stretches.pop_front())
    }
}

/// Cuts a day where its files end: `files` are the first and last ids of their records, in the order of the first. What overlaps
/// an earlier file is that one's.
fn stretches(day: Day, place: FilePlace, files: &[(Uuid, Uuid)]) -> Vec<Stretch> {
    let (start, end) = (day.first_id().as_u128(), day.next().first_id().as_u128());
    let begun = BatchId::of(place.from).day() == day;
    let (mut from, after) = if begun { (place.from.as_u128(), place.after) } else { (start, Uuid::nil()) };
    let mut cut = Vec::new();
    for (first, last) in files.iter().filter(|(first, _)| *first > after) {
        // The place after it must be one of this day, whatever the record says: no batch has the last id.
        let to = last.as_u128().saturating_add(1).clamp(from, end - 1);
        let then = FilePlace { from: Uuid::from_u128(to), after: *first };
        cut.push(Stretch { ids: from..to, file: Some(*first), then });
        from = to;
    }
    let then = FilePlace { from: Uuid::from_u128(end), after: Uuid::nil() };
    cut.push(Stretch { ids: from..end, file: None, then });
    cut
}

/// Where a part of a range of ids ends that has as many events as are audited at a time. `batches` are those from its begin on, in
/// the order of ids, and `more` whether there are further ones.
pub(super) fn part_end(ids: &Range<u128>, batches: &[(Uuid, u64)], more: bool) -> u128 {
    let mut events = 0;
    for (id, count) in batches {
        if id.as_u128() >= ids.end {
            return ids.end;
        }
        if events + count > JOB_EVENTS && events > 0 {
            return id.as_u128();
        }
        events += count;
    }
    match batches.last() {
        Some((last, _)) if more && last.as_u128() > ids.start => last.as_u128(),
        _ => ids.end,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the records say, and wherever it is interrupted.
        #[test]
        fn each_id_of_a_day_is_in_one_stretch_and_each_file_is_read(
            mut files in proptest::collection::vec((0_u64..1000, 0_u64..2000), 0..8), stop in 0_usize..9,
        ) {
            let day = Day::of_unix_ms(1_769_860_800_000);
            let start = day.first_id().as_u128();
            files.sort_unstable();
            files.dedup_by_key(|(first, _)| *first);
            let id = |at: u64| Uuid::from_u128(start + u128::from(at) * ((day.next().first_id().as_u128() - start) / 1500));
            let files: Vec<(Uuid, Uuid)> = files.into_iter().map(|(first, last)| (id(first), id(last))).collect();
            let whole = stretches(day, FilePlace::default(), &files);
            let mut from = start;
            for stretch in &whole {
                prop_assert_eq!(stretch.ids.start, from);
                from = stretch.ids.end;
            }
            prop_assert_eq!(from, day.next().first_id().as_u128());
            let read: Vec<Uuid> = whole.iter().filter_map(|stretch| stretch.file).collect();
            prop_assert_eq!(read, files.iter().map(|(first, _)| *first).collect::<Vec<_>>());
            // The place after the last stretch is the next day's.
            if let Some(done) = whole[..whole.len() - 1].get(stop) {
                prop_assert_eq!(BatchId::of(done.then.from).day(), day);
                prop_assert_eq!(&stretches(day, done.then, &files)[..], &whole[stop + 1..]);
            }
        }

        #[test]
        fn parts_of_a_range_are_bounded_and_come_to_its_end(
            counts in proptest::collection::vec(1_u64..200_000, 1..20), from in 0_u128..5, more: bool,
        ) {
            let batches: Vec<(Uuid, u64)> =
                (0..).zip(&counts).map(|(n, count)| (Uuid::from_u128(n << 20), *count)).collect();
            let ids = (from.min(counts.len() as u128 - 1) << 20) + 7..15 << 20;
            let rest = |at: u128| -> Vec<(Uuid, u64)> {
                batches.iter().copied().filter(|(id, _)| id.as_u128() >= at >> 20 << 20).collect()
            };
            let mut at = ids.start;
            while at < ids.end {
                let given = rest(at);
                let to = part_end(&(at..ids.end), &given, more && given.len() > 1);
                prop_assert!(at < to && to <= ids.end);
                let inside: Vec<u64> = given.iter().filter(|(id, _)| id.as_u128() < to).map(|(_, count)| *count).collect();
                prop_assert!(inside.len() == 1 || inside.iter().sum::<u64>() <= JOB_EVENTS || given.is_empty());
                at = to;
            }
        }
    }
}
