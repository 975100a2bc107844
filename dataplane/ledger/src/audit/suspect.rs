//! Judges the rows that are not as they should be: altered, missing, added, or in each other's place.
//!
//! Pure. An event's log entry commits to its id and has a salt of its own, so a row that was moved matches nothing where it
//! stands. Only when it is hashed under the id and salt of another suspect does its true place show. All pairs are tried, which
//! is why the number of those with content is bounded by [`CONTENTS_MAX`].

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use uuid::Uuid;

use super::finding::{Finding, Kind};
use super::rows::{EventRow, More, entry_of};
use crate::commit::{POSTGRES_EPOCH_MICROS, postgres_micros};
use crate::envelope::ProducerPlace;
use crate::id::BatchId;
use crate::submission::{Format, Limits, OnBadEvent, Submission};

/// Suspects kept; more are counted.
pub(crate) const SUSPECTS_MAX: usize = 4096;
/// Suspects whose content is read again and tried in other places: 512 x 512 hashes take some 0.2 s.
pub(crate) const CONTENTS_MAX: usize = 512;

/// Rows of one batch that are kept one by one when no batch covers them; each may be a moved one. More are counted together.
const ADDED_BY_ONE: usize = 64;

/// What a row holds under its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    postgres_micros: i64,
    kind: Vec<u8>,
    payload: Vec<u8>,
}

impl Content {
    /// Of the columns of a row; the time in microseconds since 2000-01-01.
    pub(crate) fn new(postgres_micros: i64, kind: Vec<u8>, payload: Vec<u8>) -> Self {
        Self { postgres_micros, kind, payload }
    }

    /// Of an archived row, whatever it holds; of an erased one there is no payload.
    pub(super) fn of_archived(row: certeus_archive::Row) -> Self {
        Self {
            postgres_micros: row.time_micros.saturating_sub(POSTGRES_EPOCH_MICROS),
            kind: row.kind.into_bytes(),
            payload: row.content.map(|content| content.payload.into()).unwrap_or_default(),
        }
    }

    /// As a row under another id.
    fn under(&self, id: Uuid) -> EventRow<'_> {
        let Self { postgres_micros, kind, payload } = self;
        EventRow { id, postgres_micros: *postgres_micros, kind, payload }
    }
}

/// Where an event belongs, and what its log entry is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: u64,
    pub(crate) id: Uuid,
    pub(crate) salt: [u8; 32],
    pub(crate) entry: [u8; 32],
    /// Id, epoch and sequence number of its producer.
    pub(crate) producer: Option<(String, u32, u64)>,
    /// What its batch says of the key that its members are encrypted with.
    pub(crate) key_id: Option<Vec<u8>>,
}

impl Place {
    /// The log entry of content in this place.
    fn entry_of(&self, ledger: &str, content: &Content, scratch: &mut Vec<u8>) -> Option<[u8; 32]> {
        let producer = self.producer.as_ref();
        let more = More {
            producer: producer.map(|(id, epoch, sequence)| ProducerPlace {
                id,
                epoch: *epoch,
                sequence: *sequence,
            }),
            key_id: self.key_id.as_deref().unwrap_or_default(),
        };
        entry_of(ledger, &content.under(self.id), &more, &self.salt, scratch)
    }

    /// Whether the content is what this place's log entry commits to.
    fn takes(&self, ledger: &str, content: &Content, scratch: &mut Vec<u8>) -> bool {
        self.entry_of(ledger, content, scratch) == Some(self.entry)
    }
}

/// Events that are not as they should be: names only, so that they can be kept in a file and shown to anybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Suspects {
    /// Rows that do not match their log entries.
    pub(crate) altered: Vec<(u64, Uuid)>,
    /// The first event without a row, and how many follow each other.
    pub(crate) missing: Vec<(u64, Uuid, u32)>,
    /// A row that no batch covers, and how many there are with it of what would be one batch.
    pub(crate) added: Vec<(Uuid, u32)>,
    /// Further ones, which are only counted.
    pub(crate) more: u64,
}

impl Suspects {
    /// A row that does not match its log entry.
    pub(super) fn altered(&mut self, index: u64, id: Uuid) {
        if self.has_room() {
            self.altered.push((index, id));
        }
    }

    /// No rows for `count` events from this one on.
    pub(super) fn missing(&mut self, index: u64, id: Uuid, count: u32) {
        if self.has_room() {
            self.missing.push((index, id, count));
        }
    }

    /// A row that no batch covers.
    pub(super) fn added(&mut self, id: Uuid) {
        self.push_added(id, 1);
    }

    fn push_added(&mut self, id: Uuid, count: u32) {
        let same = |one: &(Uuid, u32)| BatchId::of(one.0) == BatchId::of(id);
        let many = self.added.len().checked_sub(ADDED_BY_ONE).is_some_and(|at| same(&self.added[at]));
        match self.added.last_mut() {
            Some((_, before)) if many => *before += count,
            _ => {
                if self.has_room() {
                    self.added.push((id, count));
                }
            }
        }
    }

    /// Adds those of a later stretch.
    pub(crate) fn append(&mut self, other: Self) {
        let Self { altered, missing, added, more } = other;
        altered.into_iter().for_each(|(index, id)| self.altered(index, id));
        missing.into_iter().for_each(|(index, id, count)| self.missing(index, id, count));
        added.into_iter().for_each(|(id, count)| self.push_added(id, count));
        self.more += more;
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.kept() as u64 + self.more
    }

    fn kept(&self) -> usize {
        self.altered.len() + self.missing.len() + self.added.len()
    }

    fn has_room(&mut self) -> bool {
        let room = self.kept() < SUSPECTS_MAX;
        self.more += u64::from(!room);
        room
    }
}

/// A row that does not match its log entry. Without content it was not read again.
#[derive(Debug)]
pub(crate) struct Altered {
    pub(crate) place: Place,
    pub(crate) content: Option<Content>,
}

/// Rows that are not there.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(crate) place: Place,
    pub(crate) count: u32,
    /// Whether they should be in the archive.
    pub(crate) archived: bool,
}

/// Rows under ids that no batch covers.
#[derive(Debug)]
pub(crate) struct Added {
    pub(crate) id: Uuid,
    pub(crate) count: u32,
    /// Of the first.
    pub(crate) content: Option<Content>,
}

/// Suspects of which the row of their batch no longer tells where they belong: it was removed or cut while the audit ran.
#[derive(Debug)]
pub(crate) struct Displaced {
    /// What they were found to be before.
    pub(crate) kind: Kind,
    pub(crate) index: u64,
    pub(crate) id: Uuid,
    pub(crate) count: u32,
}

/// The suspects, with what is needed to judge them.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) altered: Vec<Altered>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) added: Vec<Added>,
    pub(crate) displaced: Vec<Displaced>,
}

impl Evidence {
    /// Entries as the stored rows have them, by index: what the log had if the row is right and its entry is not.
    pub(crate) fn computed_entries(&self, ledger: &str) -> HashMap<u64, [u8; 32]> {
        let mut scratch = Vec::new();
        let computed = |one: &Altered| Some((one.place.index, one.computed(ledger, &mut scratch)?));
        self.altered.iter().filter_map(computed).collect()
    }

    /// What became of them. `rightful` are the indexes whose entry, not whose row, was found to be altered.
    pub(crate) fn judge(&self, ledger: &str, rightful: &HashSet<u64>) -> Vec<Finding> {
        let mut judge = Judge { ledger, evidence: self, scratch: Vec::new(), found: Vec::new() };
        let mut explained = HashSet::new();
        judge.entries_in_other_places(&mut explained);
        judge.entries_altered(rightful, &mut explained);
        let mut arrived = HashSet::new();
        judge.contents_in_other_places(&mut explained, &mut arrived);
        judge.the_rest(&explained, &arrived);
        judge.found
    }
}

impl Altered {
    fn computed(&self, ledger: &str, scratch: &mut Vec<u8>) -> Option<[u8; 32]> {
        self.place.entry_of(ledger, self.content.as_ref()?, scratch)
    }
}

struct Judge<'a> {
    ledger: &'a str,
    evidence: &'a Evidence,
    scratch: Vec<u8>,
    found: Vec<Finding>,
}

impl<'a> Judge<'a> {
    /// Rows whose hash stands as the entry of another event: entries have changed places.
    fn entries_in_other_places(&mut self, explained: &mut HashSet<u64>) {
        let evidence = self.evidence;
        let by_entry: HashMap<[u8; 32], &Place> =
            evidence.altered.iter().map(|one| (one.place.entry, &one.place)).collect();
        let computed = evidence.computed_entries(self.ledger);
        let stands_at = |index: u64| by_entry.get(computed.get(&index)?).copied();
        for one in &evidence.altered {
            let index = one.place.index;
            let Some(other) = stands_at(index).filter(|_| !explained.contains(&index)) else { continue };
            explained.insert(index);
            self.found.push(if stands_at(other.index).is_some_and(|back| back.index == index) {
                explained.insert(other.index);
                let detail = format!(
                    "its log entry has changed places with that of event {} ({})",
                    other.index, other.id
                );
                Finding::event(Kind::EventsSwapped, index, one.place.id, detail)
            } else {
                let detail = format!("its log entry stands at event {} ({})", other.index, other.id);
                Finding::event(Kind::EventMoved, index, one.place.id, detail)
            });
        }
    }

    /// Entries that were altered while their rows were not.
    fn entries_altered(&mut self, rightful: &HashSet<u64>, explained: &mut HashSet<u64>) {
        for Altered { place, content: _ } in &self.evidence.altered {
            if rightful.contains(&place.index) && explained.insert(place.index) {
                let detail = "its log entry was altered; the event itself is as it was signed";
                self.found.push(Finding::event(Kind::EntriesAltered, place.index, place.id, detail));
            }
        }
    }

    /// Which place the content of each row belongs to, if not to its own.
    fn homes(&mut self, explained: &HashSet<u64>) -> BTreeMap<Uuid, &'a Place> {
        let evidence = self.evidence;
        let missing = evidence.missing.iter().filter(|one| one.count == 1).map(|one| &one.place);
        let altered = evidence.altered.iter().map(|one| &one.place);
        let places = altered.chain(missing).filter(|place| !explained.contains(&place.index));
        let places: Vec<&Place> = places.take(CONTENTS_MAX).collect();
        let rows = evidence.altered.iter().map(|one| (one.place.id, one.content.as_ref()));
        let rows = rows.chain(evidence.added.iter().map(|one| (one.id, one.content.as_ref())));
        let mut homes = BTreeMap::new();
        for (id, content) in rows {
            let Some(content) = content else { continue };
            let takes =
                |place: &&&Place| place.id != id && place.takes(self.ledger, content, &mut self.scratch);
            if let Some(home) = places.iter().find(takes) {
                homes.insert(id, *home);
            }
        }
        homes
    }

    /// Rows that match in another place than their own.
    fn contents_in_other_places(&mut self, explained: &mut HashSet<u64>, arrived: &mut HashSet<Uuid>) {
        let homes = self.homes(explained);
        let index_of: HashMap<Uuid, u64> =
            self.evidence.altered.iter().map(|one| (one.place.id, one.place.index)).collect();
        for (&row, home) in &homes {
            let mutual = homes.get(&home.id).is_some_and(|other| other.id == row);
            match index_of.get(&row) {
                Some(index) if mutual => {
                    if explained.contains(index) {
                        continue;
                    }
                    explained.extend([*index, home.index]);
                    let detail = format!(
                        "its type, time and payload have changed places with those of event {} ({})",
                        home.index, home.id
                    );
                    self.found.push(Finding::event(Kind::EventsSwapped, *index, row, detail));
                }
                Some(index) => {
                    explained.insert(*index);
                    let detail = format!(
                        "in its place stands what was event {} ({}); what belongs here is not found there",
                        home.index, home.id
                    );
                    self.found.push(Finding::event(Kind::EventAltered, *index, row, detail));
                }
                None => {
                    explained.insert(home.index);
                    arrived.insert(row);
                    let detail = format!("stands under the id {row} instead of its own");
                    self.found.push(Finding::event(Kind::EventMoved, home.index, home.id, detail));
                }
            }
        }
    }

    fn the_rest(&mut self, explained: &HashSet<u64>, arrived: &HashSet<Uuid>) {
        for one in self.evidence.altered.iter().filter(|one| !explained.contains(&one.place.index)) {
            let Altered { place, content } = one;
            let finding = match content {
                Some(content) if content.payload.is_empty() => Finding::event(
                    Kind::EventEmptied,
                    place.index,
                    place.id,
                    "its payload was emptied, and no erasure is on record",
                ),
                content => {
                    let what = content.as_ref().and_then(|content| self.altered_column(place, content));
                    let what = what.unwrap_or("its stored bytes are not those that its log entry commits to");
                    Finding::event(Kind::EventAltered, place.index, place.id, what)
                }
            };
            self.found.push(finding);
        }
        for Missing { place, count, archived } in &self.evidence.missing {
            if *count == 1 && explained.contains(&place.index) {
                continue;
            }
            let last = place.index + u64::from(*count) - 1;
            let detail = match (archived, count) {
                (false, 1) => "its row was removed".to_owned(),
                (false, _) => format!("their {count} rows were removed"),
                (true, 1) => "it is archived, and not in the file that should have it".to_owned(),
                (true, _) => {
                    format!("{count} events are archived, and not in the file that should have them")
                }
            };
            self.found.push(Finding {
                id: Some(place.id),
                ..Finding::range(Kind::EventMissing, place.index, last, detail)
            });
        }
        for Displaced { kind, index, id, count } in &self.evidence.displaced {
            let last = index + u64::from(*count) - 1;
            let detail = "the row of its batch was removed or cut while the audit ran, so it cannot be said more closely";
            self.found.push(Finding { id: Some(*id), ..Finding::range(*kind, *index, last, detail) });
        }
        let left: Vec<&Added> = self.evidence.added.iter().filter(|one| !arrived.contains(&one.id)).collect();
        for rows in left.chunk_by(|a, b| BatchId::of(a.id) == BatchId::of(b.id)) {
            let detail = match rows.iter().map(|one| one.count).sum() {
                1 => "this row was added, or its batch removed: no batch tells of it".to_owned(),
                count => format!(
                    "{count} rows from this one on were added, or their batch removed: no batch tells of them"
                ),
            };
            self.found.push(Finding::about(Kind::EventAdded, rows.first().map(|one| one.id), detail));
        }
    }

    /// Which column is altered, if it is `type` or `event_time`: both also stand in the payload.
    fn altered_column(&mut self, place: &Place, content: &Content) -> Option<&'static str> {
        let limits =
            Limits { request_events_max: 1, event_bytes_max: content.payload.len(), encrypted_fields: None };
        let body = Bytes::copy_from_slice(&content.payload);
        let parsed = Submission::parse(body, Format::Json, &limits, OnBadEvent::RefuseAll).ok()?.submission?;
        let event = parsed.events().next()?;
        let (kind, time) = (event.kind.as_bytes().to_vec(), postgres_micros(event.time));
        let candidates = [
            (kind.clone(), content.postgres_micros, "its column `type` was altered; its payload was not"),
            (content.kind.clone(), time, "its column `event_time` was altered; its payload was not"),
            (kind, time, "its columns `type` and `event_time` were altered; its payload was not"),
        ];
        candidates.into_iter().find_map(|(kind, postgres_micros, what)| {
            let candidate = Content { postgres_micros, kind, payload: content.payload.clone() };
            place.takes(self.ledger, &candidate, &mut self.scratch).then_some(what)
        })
    }
}
