//! What was sent and what was promised, by the clients' own record.
//!
//! Owns the record in memory and its copy in a file, one JSON line for every step, which is what is left to read when a
//! run failed. Judges nothing: `checker.rs` does.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// A request's place in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(usize);

/// The ledger's word that events are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// How far they got: `committed`.
    pub ack: String,
    /// Index of the first event.
    pub first_index: u64,
    /// Number of events.
    pub count: u64,
    /// Id of the first event.
    pub first_id: String,
}

/// What a client knows about a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing yet, or no answer came: stored once or not at all.
    Unknown,
    /// Acknowledged.
    Acknowledged {
        /// With this receipt.
        receipt: Receipt,
        /// Nanoseconds after the journal's beginning.
        at: u64,
    },
    /// Every attempt was refused with the promise that nothing was stored, or cannot have arrived.
    NotStored,
}

/// How a client named its request, so that it might send it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// Not at all.
    None,
    /// By an idempotency key.
    Key(String),
    /// By a producer's sequence.
    Sequence(Sequence),
}

/// Where a producer is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Sequence {
    /// The producer's id.
    pub producer: String,
    /// Its life.
    pub epoch: u32,
    /// Number of the request's first event.
    pub number: u64,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// Number of its first event; the others count up.
    pub first_number: u64,
    /// Number of events.
    pub count: u64,
    /// When it was sent first, in nanoseconds after the journal's beginning.
    pub sent_at: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// The record of one run on one database.
#[derive(Debug)]
pub struct Journal {
    begun: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    entries: Vec<Entry>,
    next_number: u64,
    surprises: Vec<String>,
    file: File,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Sent { request: usize, first_number: u64, count: u64, name: &'a Name, at: u64 },
    Ended { request: usize, outcome: &'a Outcome },
    Surprise { text: &'a str, at: u64 },
}

impl Journal {
    /// An empty journal, copied to a new file.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let inner =
            Inner { entries: Vec::new(), next_number: 0, surprises: Vec::new(), file: File::create(path)? };
        Ok(Self { begun: Instant::now(), inner: Mutex::new(inner) })
    }

    /// Notes a new request of so many events, before it is sent. Its name follows from its first number.
    pub fn sent(&self, count: u64, name: impl FnOnce(u64) -> Name) -> (Ticket, Entry) {
        let mut inner = self.lock();
        // Under the lock, so that the clock and the order of the lines agree.
        let at = self.now();
        let first_number = inner.next_number;
        inner.next_number += count;
        let request = inner.entries.len();
        let name = name(first_number);
        inner.write(&Line::Sent { request, first_number, count, name: &name, at });
        let entry = Entry { name, first_number, count, sent_at: at, outcome: Outcome::Unknown };
        inner.entries.push(entry.clone());
        (Ticket(request), entry)
    }

    /// Notes a receipt.
    pub fn acknowledged(&self, ticket: Ticket, receipt: Receipt) {
        let mut inner = self.lock();
        let outcome = Outcome::Acknowledged { receipt, at: self.now() };
        inner.end(ticket, outcome);
    }

    /// Notes that a request was given up, and that no attempt at it can have been stored.
    pub fn not_stored(&self, ticket: Ticket) {
        self.lock().end(ticket, Outcome::NotStored);
    }

    /// Notes an answer that must never be given.
    pub fn surprise(&self, text: String) {
        let at = self.now();
        let mut inner = self.lock();
        inner.write(&Line::Surprise { text: &text, at });
        inner.surprises.push(text);
    }

    /// A copy of what is known now.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().entries.clone()
    }

    /// Answers that must never be given.
    #[must_use]
    pub fn surprises(&self) -> Vec<String> {
        self.lock().surprises.clone()
    }

    /// How many requests were acknowledged.
    #[must_use]
    pub fn acknowledged_count(&self) -> usize {
        let is = |entry: &&Entry| matches!(entry.outcome, Outcome::Acknowledged { .. });
        self.lock().entries.iter().filter(is).count()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A client that panicked has failed the run already; what the others know is still good.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn end(&mut self, ticket: Ticket, outcome: Outcome) {
        self.write(&Line::Ended { request: ticket.0, outcome: &outcome });
        self.entries[ticket.0].outcome = outcome;
    }

    fn write(&mut self, line: &Line<'_>) {
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        // The check uses what is in memory; the file is for people, and a full disk must not end the run.
        let _written = self.file.write_all(&text);
    }
}
