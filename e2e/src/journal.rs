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
    /// Promised by a pod's spool, and its receipt was not fetched yet.
    Spooled {
        /// The key that the pod gave it.
        key: Option<String>,
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
    /// Nanoseconds at which requests were sent first and promised by a spool.
    spooled: Vec<(u64, u64)>,
    /// Answers that there is no room.
    full: usize,
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
        let inner = Inner {
            entries: Vec::new(),
            next_number: 0,
            surprises: Vec::new(),
            spooled: Vec::new(),
            full: 0,
            file: File::create(path)?,
        };
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

    /// Notes a spool's promise, and the key that the pod made for it.
    pub fn spooled(&self, ticket: Ticket, key: Option<String>) {
        let mut inner = self.lock();
        let at = self.now();
        let sent_at = inner.entries[ticket.0].sent_at;
        inner.spooled.push((sent_at, at));
        inner.end(ticket, Outcome::Spooled { key, at });
    }

    /// Notes an answer that there is no room.
    pub fn full(&self) {
        self.lock().full += 1;
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

    /// The requests that a spool promised and of which there is no receipt.
    #[must_use]
    pub fn without_receipt(&self) -> Vec<(Ticket, Entry)> {
        let inner = self.lock();
        let all = inner.entries.iter().enumerate();
        let spooled = all.filter(|(_, entry)| matches!(entry.outcome, Outcome::Spooled { .. }));
        spooled.map(|(number, entry)| (Ticket(number), entry.clone())).collect()
    }

    /// How many requests a spool promised, also those of which there is a receipt by now.
    #[must_use]
    pub fn spooled_count(&self) -> usize {
        self.lock().spooled.len()
    }

    /// How many requests were both sent and promised by a spool in this time.
    #[must_use]
    pub fn spooled_within(&self, from: u64, to: u64) -> usize {
        let within = |(sent_at, at): &&(u64, u64)| from <= *sent_at && *at <= to;
        self.lock().spooled.iter().filter(within).count()
    }

    /// How many answers said that there is no room.
    #[must_use]
    pub fn full_count(&self) -> usize {
        self.lock().full
    }

    /// Nanoseconds since the journal's beginning.
    #[must_use]
    pub fn now(&self) -> u64 {
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
