//! Compares what was promised with what is there. Pure: a snapshot and a journal in, violations out.
//!
//! Uses no code of the ledger. Reports at most [`REPORTED_MAX`] violations of a kind, since one cause can have thousands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use crate::envelope::{ENTRY_BYTES, Envelope};
use crate::event::Event;
use crate::journal::{Entry, Name, Outcome, Sequence};
use crate::log::{self, Shown};
use crate::snapshot::{Batch, Snapshot};

/// Violations of one kind that are listed.
const REPORTED_MAX: usize = 10;
/// The low bits of an event's id that are its position in its batch.
const POSITION_MASK: u128 = (1 << 20) - 1;

/// An invariant that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Indexes run from 0 to the head without a gap.
    Gapless,
    /// Every batch has exactly its events, and every event its batch.
    Complete,
    /// Every log entry is the hash of its event.
    Entry,
    /// The times in a batch's row are those of its events.
    Times,
    /// Every event is one that a client sent, byte for byte.
    Bytes,
    /// No event is there twice.
    Once,
    /// What was acknowledged is where its receipt says; what a spool promised is there.
    Acknowledged,
    /// A request's events are there together and in order, or not at all.
    Whole,
    /// What was refused is not there.
    Refused,
    /// Events carry the sequence that their producer gave them, and a producer's requests stand in its order.
    Producer,
    /// Every checkpoint that was ever shown is the root of what is in the database.
    Checkpoint,
    /// What was acknowledged as sealed is covered by a checkpoint.
    Sealed,
    /// What was sent after an acknowledgement stands behind it.
    Order,
}

/// Everything that is wrong.
#[derive(Debug, Default)]
pub struct Violations {
    found: BTreeMap<Rule, (usize, Vec<String>)>,
}

impl Violations {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The rules that are broken.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        self.found.keys().copied().collect()
    }

    fn add(&mut self, rule: Rule, text: impl FnOnce() -> String) {
        let (count, texts) = self.found.entry(rule).or_default();
        *count += 1;
        if texts.len() < REPORTED_MAX {
            texts.push(text());
        }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rule, (count, texts)) in &self.found {
            writeln!(f, "{rule:?}: {count} violations")?;
            for text in texts {
                writeln!(f, "  {text}")?;
            }
        }
        Ok(())
    }
}

/// Where the events of the snapshot stand, by their number.
struct Places<'a> {
    by_number: HashMap<u64, Place>,
    entries: &'a [Entry],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    index: i64,
    id: u128,
}

/// Checks the whole ledger against everything that its clients did. `entries` must be what is known after all clients
/// have stopped: what is sent later is not expected in the snapshot, and must not be.
#[must_use]
pub fn check(snapshot: &Snapshot, entries: &[Entry]) -> Violations {
    let mut violations = Violations::default();
    check_indexes(snapshot, &mut violations);
    let places = check_rows(snapshot, entries, &mut violations);
    for entry in entries {
        check_request(entry, &places, &mut violations);
    }
    check_order(&places, &mut violations);
    check_producers(&places, &mut violations);
    violations
}

/// Checks every checkpoint that was ever shown. All of them being roots of one sequence of entries, each is consistent
/// with every later one.
#[must_use]
pub fn check_log(snapshot: &Snapshot, entries: &[Entry], shown: &BTreeSet<Shown>) -> Violations {
    let mut violations = Violations::default();
    let sizes = shown.iter().map(|shown| shown.size).collect();
    let in_order = snapshot.batches.iter().flat_map(|batch| batch.entries.chunks(ENTRY_BYTES));
    let roots = log::roots(in_order, &sizes);
    for Shown { size, root } in shown {
        if roots.get(size) != Some(root) {
            violations.add(Rule::Checkpoint, || {
                let known = if roots.contains_key(size) { "another root" } else { "fewer events" };
                format!("a checkpoint over {size} events was shown, and the database has {known}")
            });
        }
    }
    let covered = sizes.last().copied().unwrap_or(0);
    for entry in entries {
        let Outcome::Acknowledged { receipt, .. } = &entry.outcome else { continue };
        if receipt.ack == "sealed" && receipt.first_index + receipt.count > covered {
            violations.add(Rule::Sealed, || format!("{receipt:?}, but checkpoints end at {covered}"));
        }
    }
    violations
}

fn check_indexes(snapshot: &Snapshot, violations: &mut Violations) {
    let mut next = 0;
    for batch in &snapshot.batches {
        if batch.first_index != next {
            violations.add(Rule::Gapless, || {
                format!("batch {:032x} begins at {} instead of {next}", batch.id, batch.first_index)
            });
        }
        next = batch.first_index + i64::from(batch.event_count);
    }
    if snapshot.next_index != next {
        violations.add(Rule::Gapless, || format!("the head is at {} instead of {next}", snapshot.next_index));
    }
}

/// Rows against their batches, and against what was sent.
fn check_rows<'a>(snapshot: &Snapshot, entries: &'a [Entry], violations: &mut Violations) -> Places<'a> {
    let batches: HashMap<u128, (&Batch, HashMap<u32, Sequence>)> =
        snapshot.batches.iter().map(|batch| (batch.id, (batch, sequences(batch, violations)))).collect();
    let sent: u64 = entries.iter().map(|entry| entry.count).sum();
    let mut seen: HashMap<u128, Seen> = HashMap::new();
    let mut places = Places { by_number: HashMap::new(), entries };
    for row in &snapshot.rows {
        let Some((batch, sequences)) = batches.get(&(row.id & !POSITION_MASK)) else {
            violations.add(Rule::Complete, || format!("event {:032x} has no batch", row.id));
            continue;
        };
        let position = u32::try_from(row.id & POSITION_MASK).unwrap_or(u32::MAX);
        let place = Place { index: batch.first_index + i64::from(position), id: row.id };
        seen.entry(batch.id).or_default().add(row.time);

        let sequence = sequences.get(&position);
        let envelope = Envelope {
            ledger: &snapshot.ledger,
            id: row.id,
            kind: &row.kind,
            time: row.time,
            sequence: sequence.map(|sequence| (&sequence.producer[..], sequence.epoch, sequence.number)),
            payload: &row.payload,
        };
        let start = position as usize * ENTRY_BYTES;
        let stored = batch.entries.get(start..start + ENTRY_BYTES);
        let computed = batch.salt(position).map(|salt| envelope.entry(&salt));
        if computed.is_none() || stored != computed.as_ref().map(|entry| &entry[..]) {
            violations.add(Rule::Entry, || {
                format!("event {:032x} at index {} does not match its entry", row.id, place.index)
            });
        }
        let event = Event::number_in(&row.payload).filter(|event| event.0 < sent);
        let as_sent = event.filter(|event| {
            row.payload == event.json().as_bytes() && row.kind == event.kind() && row.time == event.time()
        });
        let Some(Event(number)) = as_sent else {
            violations.add(Rule::Bytes, || {
                let payload = String::from_utf8_lossy(&row.payload[..row.payload.len().min(200)]);
                format!("event {:032x} at index {} was not sent like this: {payload}", row.id, place.index)
            });
            continue;
        };
        let given = places.request_of(number).and_then(|request| sequence_of(request, number));
        if sequence != given.as_ref() {
            violations
                .add(Rule::Producer, || format!("event {number} has {sequence:?} instead of {given:?}"));
        }
        if let Some(other) = places.by_number.insert(number, place) {
            violations.add(Rule::Once, || format!("event {number} is at {other:?} and at {place:?}"));
        }
    }
    for batch in &snapshot.batches {
        let seen = seen.remove(&batch.id).unwrap_or_default();
        if seen.count != batch.event_count {
            violations.add(Rule::Complete, || {
                format!("batch {:032x} has {} of {} events", batch.id, seen.count, batch.event_count)
            });
        } else if (seen.min_time, seen.max_time) != (batch.min_time, batch.max_time) {
            violations
                .add(Rule::Times, || format!("batch {:032x} has other times than its events", batch.id));
        }
    }
    places
}

fn sequences(batch: &Batch, violations: &mut Violations) -> HashMap<u32, Sequence> {
    batch.sequences().unwrap_or_else(|| {
        violations.add(Rule::Producer, || format!("batch {:032x} has unreadable producers", batch.id));
        HashMap::new()
    })
}

/// What a producer gave the event with this number of its request.
fn sequence_of(request: &Entry, number: u64) -> Option<Sequence> {
    let Name::Sequence(first) = &request.name else { return None };
    Some(Sequence { number: first.number + number - request.first_number, ..first.clone() })
}

struct Seen {
    count: i32,
    min_time: i64,
    max_time: i64,
}

impl Default for Seen {
    fn default() -> Self {
        Self { count: 0, min_time: i64::MAX, max_time: i64::MIN }
    }
}

impl Seen {
    fn add(&mut self, time: i64) {
        self.count += 1;
        self.min_time = self.min_time.min(time);
        self.max_time = self.max_time.max(time);
    }
}

fn check_request(entry: &Entry, places: &Places<'_>, violations: &mut Violations) {
    let Entry { first_number, count, outcome, .. } = entry;
    let found = places.of(entry);
    if let Outcome::Acknowledged { receipt, .. } = outcome {
        let first_id = receipt.first_id.replace('-', "");
        let first_id = u128::from_str_radix(&first_id, 16).unwrap_or(u128::MAX);
        let expected = (0..*count).map(|position| {
            let index = i64::try_from(receipt.first_index + position).unwrap_or(i64::MAX);
            Some(Place { index, id: first_id + u128::from(position) })
        });
        let known = matches!(&receipt.ack[..], "committed" | "sealed");
        if receipt.count != *count || !known || !expected.eq(found.iter().copied()) {
            violations.add(Rule::Acknowledged, || {
                let there = found.iter().flatten().count();
                let first = found.first();
                format!("events {first_number} (+{count}): {receipt:?}, but {there} are there, the first {first:?}")
            });
        }
        return;
    }
    if matches!(outcome, Outcome::Spooled { .. }) && found.contains(&None) {
        violations.add(Rule::Acknowledged, || {
            let there = found.iter().flatten().count();
            format!("events {first_number} (+{count}) were spooled, and {there} are there")
        });
    }
    let there: Vec<Place> = found.iter().flatten().copied().collect();
    if *outcome == Outcome::NotStored && !there.is_empty() {
        violations.add(Rule::Refused, || {
            format!("events {first_number} (+{count}) were refused, and {} are there: {there:?}", there.len())
        });
    }
    let together =
        there.windows(2).all(|pair| pair[1].index == pair[0].index + 1 && pair[1].id == pair[0].id + 1);
    if !there.is_empty() && (there.len() != found.len() || !together) {
        violations.add(Rule::Whole, || {
            format!("events {first_number} (+{count}): {} are there, together: {together}", there.len())
        });
    }
}

/// Commit order is index order: nothing that was sent after an acknowledgement may stand before what it acknowledged.
fn check_order(places: &Places<'_>, violations: &mut Violations) {
    let mut acknowledged: Vec<(u64, u64)> = places
        .entries
        .iter()
        .filter_map(|entry| match &entry.outcome {
            Outcome::Acknowledged { receipt, at } => Some((*at, receipt.first_index)),
            Outcome::Unknown | Outcome::Spooled { .. } | Outcome::NotStored => None,
        })
        .collect();
    acknowledged.sort_unstable();
    let mut sent: Vec<(u64, i64, u64)> = places
        .entries
        .iter()
        .filter_map(|entry| {
            let first = places.by_number.get(&entry.first_number)?;
            Some((entry.sent_at, first.index, entry.first_number))
        })
        .collect();
    sent.sort_unstable();
    let mut highest: Option<u64> = None;
    let mut before = acknowledged.into_iter().peekable();
    for (sent_at, index, number) in sent {
        while let Some((_, acknowledged)) = before.next_if(|(at, _)| *at < sent_at) {
            highest = highest.max(Some(acknowledged));
        }
        if highest.is_some_and(|highest| u64::try_from(index).is_ok_and(|index| index <= highest)) {
            violations.add(Rule::Order, || {
                format!("event {number} is at {index}, behind nothing, although index {highest:?} was acknowledged before it was sent")
            });
        }
    }
}

/// Whatever was given up, repeated or fenced in between: a producer's later request never stands before an earlier one.
fn check_producers(places: &Places<'_>, violations: &mut Violations) {
    let mut stored: Vec<(&Sequence, i64)> = places
        .entries
        .iter()
        .filter_map(|entry| match &entry.name {
            Name::Sequence(first) => Some((first, places.by_number.get(&entry.first_number)?.index)),
            Name::None | Name::Key(_) => None,
        })
        .collect();
    stored.sort_unstable();
    for pair in stored.windows(2) {
        let [(earlier, before), (later, after)] = pair else { continue };
        if earlier.producer == later.producer && before >= after {
            violations.add(Rule::Producer, || format!("{later:?} is at {after}, {earlier:?} at {before}"));
        }
    }
}

impl<'a> Places<'a> {
    /// The request that an event was sent with; requests are numbered in the order of the journal.
    fn request_of(&self, number: u64) -> Option<&'a Entry> {
        let after = self.entries.partition_point(|entry| entry.first_number <= number);
        self.entries[..after].last().filter(|entry| number < entry.first_number + entry.count)
    }

    fn of(&self, entry: &Entry) -> Vec<Option<Place>> {
        (entry.first_number..)
            .zip(0..entry.count)
            .map(|(number, _)| self.by_number.get(&number).copied())
            .collect()
    }
}

#[cfg(test)]
mod tests;
