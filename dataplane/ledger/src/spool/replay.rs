//! Replay: brings what was spooled into the database once that is back.
//!
//! Owns the order and what becomes of a request that the database does not take. Promises: requests go out in the order in
//! which they were spooled, a window at a time, through the ordinary commit with their identity, so that a repeat after
//! a crash stores nothing twice; a request leaves the spool when it is committed, or was set aside with an error; one
//! bad request never stops the others.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::log::{Entry, NewRecord};
use super::{Command, Spool, SpoolError, record};
use crate::breaker::BreakerState;
use crate::commit::{CommitError, Receipt};
use crate::id::BATCH_EVENTS_MAX;
use crate::ledger::Shared;
use crate::queue::Pending;

/// One window is read, committed and deleted at a time: about a batch.
const WINDOW_BYTES: usize = 8 << 20;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// What becomes of a record.
enum Fate {
    /// It is in the database.
    Done,
    /// Not now.
    Later,
    /// Its producer's events before it are missing: they are in another pod's spool, or their producer was told that they
    /// failed and sends them again. However long that takes, it was acknowledged.
    Gap,
    /// Never.
    Refused(String),
}

/// How replaying a window went.
enum Window {
    /// There was nothing to replay.
    Empty,
    /// Something left the spool.
    Progress,
    /// Nothing did.
    Stuck,
}

/// Replays until the ledger closes and the spool is empty, or the database is away then.
pub(crate) async fn run(
    shared: Arc<Shared>,
    spool: Arc<Spool>,
    batches: mpsc::Sender<Vec<Pending>>,
    mut closing: watch::Receiver<bool>,
) {
    let mut status = spool.status.clone();
    let mut database = shared.health.subscribe();
    let mut backoff = BACKOFF_MIN;
    loop {
        let (records, usable) =
            (status.borrow_and_update().records, shared.health.state() != BreakerState::Open);
        database.mark_unchanged();
        if records > 0 && usable {
            match replay_window(&shared, &spool, &batches).await {
                Window::Progress => backoff = BACKOFF_MIN,
                Window::Empty | Window::Stuck => {
                    if *closing.borrow() && backoff == BACKOFF_MAX {
                        tracing::warn!(
                            records,
                            "what is spooled cannot be committed now: it stays for the next start"
                        );
                        return;
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
            continue;
        }
        if *closing.borrow() {
            if records > 0 {
                let path = spool.path.display();
                tracing::warn!(records, %path, "commits do not go through: what is spooled stays for the next start");
            }
            return;
        }
        tokio::select! {
            changed = status.changed() => changed.expect("the spool's thread ended"),
            // Lives in the ledger, as this task does.
            _changed = database.changed() => {}
            // The breaker has states that availability does not show.
            () = tokio::time::sleep(BACKOFF_MAX), if records > 0 => {}
            _closing = closing.changed() => {}
        }
    }
}

/// Commits the oldest records and takes them out of the spool.
async fn replay_window(shared: &Shared, spool: &Spool, batches: &mpsc::Sender<Vec<Pending>>) -> Window {
    let Some(Some(entries)) = spool.ask(|reply| Command::Read(WINDOW_BYTES, reply)).await else {
        return Window::Stuck;
    };
    if entries.is_empty() {
        return Window::Empty;
    }
    let fates = submit(shared, entries, batches).await;
    let mut done: Vec<Entry> = Vec::new();
    let mut gaps = 0;
    for (entry, fate) in fates {
        let gone = match fate {
            Fate::Done => {
                shared.metrics.spool_replayed.inc();
                true
            }
            Fate::Later => false,
            Fate::Gap => {
                gaps += 1;
                put_back(spool, &entry).await
            }
            Fate::Refused(reason) => set_aside(shared, spool, &entry, &reason).await,
        };
        // What stands behind a record that stays is replayed again with it; its identity keeps it single.
        if !gone {
            break;
        }
        done.push(entry);
    }
    let Some(last) = done.last() else { return Window::Stuck };
    let (position, records) = (last.position, done.len() as u64);
    match spool.ask(|reply| Command::Advance(position, records, reply)).await {
        Some(true) if gaps < done.len() => Window::Progress,
        // The others have to come first.
        Some(true) | Some(false) | None => Window::Stuck,
    }
}

/// Sends records to a writer as one batch, and waits for what becomes of each.
async fn submit(
    shared: &Shared,
    entries: Vec<Entry>,
    batches: &mpsc::Sender<Vec<Pending>>,
) -> Vec<(Entry, Fate)> {
    let (admitted, sealed) = (Instant::now(), shared.log.size());
    let (mut pendings, mut outcomes, mut events) = (Vec::new(), Vec::new(), 0);
    for entry in entries {
        let decoded = record::decode(entry.record.clone()).map_err(|error| crate::postgres::describe(&error));
        let decoded = decoded.and_then(|submission| match submission.len() {
            ..=BATCH_EVENTS_MAX => Ok(submission),
            more => Err(format!("it has {more} events, and a batch can have {BATCH_EVENTS_MAX}")),
        });
        let count = decoded.as_ref().map_or(0, |submission| submission.len());
        if events > 0 && events + count > shared.queue.config().batch_events {
            break;
        }
        events += count;
        let outcome = decoded.map(|submission| {
            let (reply, outcome) = oneshot::channel();
            pendings.push(Pending { submission, admitted, reply });
            outcome
        });
        outcomes.push((entry, outcome));
    }
    if !pendings.is_empty() && batches.send(pendings).await.is_err() {
        return Vec::new();
    }
    let mut fates = Vec::with_capacity(outcomes.len());
    for (entry, outcome) in outcomes {
        let fate = match outcome {
            Ok(outcome) => match outcome.await {
                // It has to come again, into the database that is put in this one's place.
                Ok(Ok(receipt)) if shared.contradicts(&receipt, sealed) => Fate::Later,
                Ok(outcome) => fate(outcome.map_err(|failed| failed.error)),
                // A writer that ended without an answer.
                Err(_ended) => Fate::Later,
            },
            Err(reason) => Fate::Refused(reason),
        };
        fates.push((entry, fate));
    }
    fates
}

fn fate(outcome: Result<Receipt, CommitError>) -> Fate {
    match outcome {
        Ok(_) | Err(CommitError::Duplicate) => Fate::Done,
        Err(CommitError::Unavailable | CommitError::OutcomeUnknown) => Fate::Later,
        Err(CommitError::SequenceGap { .. }) => Fate::Gap,
        Err(
            error @ (CommitError::Rejected
            | CommitError::KeyReused
            | CommitError::SequenceReused
            | CommitError::SequenceOverlap { .. }
            | CommitError::ProducerFenced { .. }),
        ) => Fate::Refused(error.to_string()),
    }
}

/// Spools a record again, behind all others.
async fn put_back(spool: &Spool, entry: &Entry) -> bool {
    let again = NewRecord { admitted_ms: record::admitted_ms(&entry.record), bytes: entry.record.to_vec() };
    match spool.append_record(again).await {
        Ok(()) => true,
        // It stays where it is. If it is at the end as well, the database tells the two apart from one.
        Err(SpoolError::Full | SpoolError::Closed | SpoolError::Unknown) => false,
    }
}

/// Keeps a record that the database will never take, where somebody can look at it.
async fn set_aside(shared: &Shared, spool: &Spool, entry: &Entry, reason: &str) -> bool {
    let copy = entry.clone();
    let Some(Some(file)) = spool.ask(|reply| Command::Reject(copy, reply)).await else { return false };
    shared.metrics.spool_rejected.inc();
    tracing::error!(
        reason,
        file,
        "a spooled request was acknowledged, and the database refuses it: it was set aside"
    );
    true
}
