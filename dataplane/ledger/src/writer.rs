//! A writer: takes batches from the queue and commits them, one after the other, over a connection of its own.
//!
//! Owns what happens when a commit fails, and the answers. Promises: a receipt is given only after PostgreSQL
//! confirmed the commit; a batch whose reply was lost is repeated under the same keys and so is stored once; a
//! failed connection is never used again. Limits: [`COMMIT_DEADLINE`].
//!
//! One transaction (`session.rs`), and where it may stop:
//! 1. the claims of requests that have an identity. If one is taken, nothing is stored: what stands in the way is looked up,
//!    its requests are answered, and the others are committed under a new batch id.
//! 2. `COPY` of the events: rolled back with the connection, the batch is repeated.
//! 3. the head row moves on and the batch's row is written: the same. The head's row lock is held from here to the
//!    flush, so index order is commit order, without a gap.
//! 4. `COMMIT`, sent together with 3: if the reply is lost, the batch may be stored. The repeat then meets its own
//!    keys, waits for the earlier transaction if that still runs, and reads the batch's row.
//!
//! Below [`INSERT_EVENTS_MAX`] events all of it is one statement, one round trip.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::commit::{Batch, CommitError, Encrypted, Receipt};
use crate::dedup::{self, Claim, Known, Verdict};
use crate::envelope::BatchSecret;
use crate::field::{Encryption, Encryptor};
use crate::id::{BatchId, Day};
use crate::ledger::Shared;
use crate::log;
use crate::postgres::Failure;
use crate::queue::{Pending, Taken};
use crate::session::{Failed, Session};

/// How long after its admission a request is answered when the database is away.
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);
/// What a commit is given at least, however long its requests waited.
const COMMIT_MIN: Duration = Duration::from_secs(5);
/// A connection that does not answer for this long is given up, while there is still time to try on another one.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// After so many bytes, some tenths of a millisecond, other tasks of the thread get their turn.
const ENCRYPT_BYTES: usize = 128 * 1024;
/// Up to here one `INSERT` statement is quicker than the three round trips of a `COPY`.
const INSERT_EVENTS_MAX: usize = 500;

/// Commits batches until the queue is closed and empty.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut writer = Writer { shared: &shared, session: None };
    while let Some(taken) = shared.queue.take().await {
        writer.commit_taken(taken).await;
    }
}

/// Likewise, and commits what the spool replays, each batch of it by itself, until there is neither.
pub(crate) async fn run_with_replay(shared: Arc<Shared>, mut replayed: mpsc::Receiver<Vec<Pending>>) {
    let mut writer = Writer { shared: &shared, session: None };
    let (mut queue_open, mut replay_open) = (true, true);
    while queue_open || replay_open {
        tokio::select! {
            taken = shared.queue.take(), if queue_open => match taken {
                Some(taken) => writer.commit_taken(taken).await,
                None => queue_open = false,
            },
            batch = replayed.recv(), if replay_open => match batch {
                Some(requests) => writer.commit_all(requests).await,
                None => replay_open = false,
            },
        }
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    session: Option<Session>,
}

/// Whether an earlier attempt at a batch may have been committed.
#[derive(Default)]
struct Doubt {
    /// An earlier attempt's outcome is unknown.
    earlier: bool,
    /// This attempt has sent what commits.
    sent: bool,
    /// An attempt met a claim that is taken: by whom must be looked up.
    contested: bool,
}

/// Requests that are looked at together, with what is known about them.
struct Round {
    requests: Vec<Pending>,
    known: Known,
}

/// How committing a batch ended.
enum Ended {
    /// It is stored from this index on.
    Committed(u64),
    /// Nothing of it is stored, since some of its requests are not new.
    NotNew(Known),
}

impl Writer<'_> {
    /// Commits what was taken and answers every request in it.
    async fn commit_taken(&mut self, mut taken: Taken<'_>) {
        let requests = std::mem::take(&mut taken.requests);
        self.commit_all(requests).await;
    }

    async fn commit_all(&mut self, requests: Vec<Pending>) {
        let mut rounds = VecDeque::from([Round { requests, known: Known::default() }]);
        while let Some(round) = rounds.pop_front() {
            for next in self.commit_round(round).await.into_iter().rev() {
                rounds.push_front(next);
            }
        }
    }

    /// Commits the new ones among some requests as one batch and answers what can be answered. Gives back what is left, in
    /// rounds of its own, each smaller than this one or with more known about it.
    async fn commit_round(&mut self, round: Round) -> Vec<Round> {
        let Round { requests, known } = round;
        let keyring = self.shared.encryption.as_deref().map(|encryption| &encryption.keyring);
        let claims: Vec<Option<Claim<'_>>> =
            requests.iter().map(|pending| Claim::of(pending, &self.shared.name, keyring)).collect();
        let plan = dedup::plan(&claims, &known);
        let is_new = |at: &usize| plan.verdicts[*at] == Verdict::New;
        let new: Vec<usize> = (0..requests.len()).filter(is_new).collect();
        let mut outcomes: Vec<Option<Result<Receipt, CommitError>>> =
            plan.verdicts.iter().map(answered).collect();
        let mut left = Known::default();
        let mut apart = false;
        if !new.is_empty() {
            let started = Instant::now();
            let batch_requests: Vec<&Pending> = new.iter().map(|at| &requests[*at]).collect();
            let batch_claims: Vec<Option<Claim<'_>>> = new.iter().map(|at| claims[*at]).collect();
            let mut batch = Batch {
                ledger: &self.shared.name,
                id: BatchId::new(unix_ms(), rand::rng().random()),
                secret: BatchSecret(rand::rng().random()),
                requests: &batch_requests,
                claims: &batch_claims,
                advances: &plan.advances,
                encrypted: None,
            };
            if let Some(encryption) = self.shared.encryption.as_deref().filter(|on| !on.fields.is_empty()) {
                batch.encrypted = Some(encrypt(encryption, &batch).await);
            }
            let asked: Vec<&Claim<'_>> = claims.iter().flatten().collect();
            match self.commit(&batch, &asked).await {
                Ok(Ended::Committed(first_index)) => {
                    self.shared.metrics.committed(batch.event_count(), started.elapsed());
                    for (at, receipt) in new.iter().zip(batch.receipts(first_index)) {
                        outcomes[*at] = Some(Ok(receipt));
                    }
                }
                Ok(Ended::NotNew(found)) => left = found,
                // Rows that the database refuses are one request's fault: the others must not suffer.
                Err(CommitError::Rejected) if requests.len() > 1 => apart = true,
                Err(error) => {
                    self.shared.metrics.commit_failures.get(error.class()).inc();
                    for at in &new {
                        outcomes[*at] = Some(Err(error));
                    }
                }
            }
            for (at, verdict) in plan.verdicts.iter().enumerate() {
                if let (Verdict::SameAs(leader), Some(claim)) = (verdict, &claims[at]) {
                    outcomes[at] =
                        outcomes[*leader].map(|outcome| shared_outcome(outcome, claim, &claims[*leader]));
                }
            }
        }
        let mut rest = Vec::new();
        for (pending, outcome) in requests.into_iter().zip(outcomes) {
            match outcome {
                Some(outcome) => {
                    let duplicate = outcome == Err(CommitError::Duplicate);
                    if duplicate || outcome.is_ok_and(|receipt| receipt.replayed) {
                        self.shared.metrics.requests_repeated.inc();
                    }
                    pending.answer(outcome);
                }
                None => rest.push(pending),
            }
        }
        if rest.is_empty() {
            Vec::new()
        } else if apart {
            rest.into_iter()
                .map(|pending| Round { requests: vec![pending], known: Known::default() })
                .collect()
        } else {
            vec![Round { requests: rest, known: left }]
        }
    }

    /// Commits a batch, repeating it while that can help. `asked` are all claims that a look at what is stored covers.
    async fn commit(&mut self, batch: &Batch<'_>, asked: &[&Claim<'_>]) -> Result<Ended, CommitError> {
        let oldest = batch.requests.iter().map(|pending| pending.admitted).min();
        let mut deadline = oldest.unwrap_or_else(Instant::now) + COMMIT_DEADLINE;
        if self.shared.is_available() {
            deadline = deadline.max(Instant::now() + COMMIT_MIN);
        }
        if Instant::now() >= deadline || self.shared.prefers_spool() {
            return Err(CommitError::Unavailable);
        }
        let mut doubt = Doubt::default();
        let mut looked = false;
        let mut backoff = BACKOFF_MIN;
        loop {
            doubt.sent = false;
            let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_MAX);
            let failed =
                match tokio::time::timeout_at(attempt_deadline, self.attempt(batch, asked, &mut doubt)).await
                {
                    Ok(Ok(ended)) => {
                        if matches!(ended, Ended::Committed(_)) {
                            self.shared.health.committed(&self.shared.metrics);
                        }
                        return Ok(ended);
                    }
                    Ok(Err(failed)) => failed,
                    Err(_elapsed) => {
                        Failed { failure: Failure::Lost, reason: "the database does not answer".to_owned() }
                    }
                };
            if failed.failure == Failure::Claimed && !looked {
                // Nothing is wrong with the connection, and looking up who was first needs no pause.
                (looked, doubt.contested) = (true, true);
                continue;
            }
            // Whatever went wrong, the connection's state is not worth finding out.
            self.session = None;
            tracing::warn!(
                failure = ?failed.failure, reason = failed.reason, batch.id = %batch.id.uuid(),
                batch.events = batch.event_count(), "a commit attempt failed"
            );
            match failed.failure {
                Failure::Rejected if doubt.earlier => return Err(CommitError::OutcomeUnknown),
                Failure::Rejected => return Err(CommitError::Rejected),
                // The earlier attempt was committed after all, which the next one reads.
                Failure::Duplicate => doubt.earlier = true,
                // Again: somebody is taking claims at the same time.
                Failure::Claimed => doubt.contested = true,
                Failure::Refused => self.shared.health.failed(&self.shared.metrics, &failed.reason),
                Failure::Lost => {
                    if doubt.sent && !doubt.earlier {
                        // There must be time for at least one look on another connection.
                        deadline = deadline.max(Instant::now() + COMMIT_MIN);
                    }
                    doubt.earlier |= doubt.sent;
                    self.shared.health.failed(&self.shared.metrics, &failed.reason);
                }
            }
            // Where there is a spool, what is certainly not stored need not wait for the database; nor need what may be stored, if its
            // replay is known again.
            let is_named = || batch.claims.iter().all(Option::is_some);
            let may_spool = !doubt.earlier || is_named() && self.shared.spool_takes_requests();
            if Instant::now() + backoff >= deadline || may_spool && self.shared.prefers_spool() {
                return Err(if doubt.earlier {
                    CommitError::OutcomeUnknown
                } else {
                    CommitError::Unavailable
                });
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Opens a session, to a database that has what was signed: behind a new connection may be another one, such as an old backup.
    /// Behind an open connection the database stays the same.
    async fn open(&self, day: Day) -> Result<Session, Failed> {
        // Read before the database, which has grown since, if it is the right one.
        let signed = self.shared.log.known_size().await;
        let session = Session::open(&self.shared.database, day).await?;
        let committed = session.next_index(&self.shared.name).await?;
        if committed < signed {
            self.shared.log.refuse(&log::Refusal::Behind { committed, signed });
            return Err(Failed::log_refused());
        }
        Ok(session)
    }

    async fn attempt(
        &mut self,
        batch: &Batch<'_>,
        asked: &[&Claim<'_>],
        doubt: &mut Doubt,
    ) -> Result<Ended, Failed> {
        if self.shared.log.refuses() {
            return Err(Failed::log_refused());
        }
        let session = match self.session.take() {
            Some(session) if session.serves(batch.id.day()) => session,
            _ => self.open(batch.id.day()).await?,
        };
        let session = self.session.insert(session);
        if doubt.contested {
            let known = session.look_up(batch.ledger, asked).await?;
            doubt.contested = false;
            if known.stored.values().any(|stored| stored.batch == batch.id) {
                // It was our own earlier attempt that took the claims.
                doubt.earlier = true;
            } else {
                let verdicts = dedup::plan(batch.claims, &known).verdicts;
                if dedup::must_part(&verdicts, doubt.earlier) {
                    return Ok(Ended::NotNew(known));
                }
            }
        }
        if doubt.earlier
            && let Some(first_index) = session.find(batch).await?
        {
            return Ok(Ended::Committed(first_index));
        }
        let first_index = if batch.event_count() <= INSERT_EVENTS_MAX {
            session.insert(batch, &mut doubt.sent).await?
        } else {
            session.copy(batch, &mut doubt.sent).await?
        };
        let first_index = u64::try_from(first_index);
        Ok(Ended::Committed(first_index.expect("the head's check constraint keeps indexes at 0 or above")))
    }
}

/// Encrypts the payloads of a batch, under a key that no other rows ever share: its salt is drawn here.
async fn encrypt(encryption: &Encryption, batch: &Batch<'_>) -> Encrypted {
    let mut encryptor = Encryptor::new(encryption, batch.ledger, batch.id, rand::rng().random());
    let mut encrypted = Encrypted::new(&encryptor, batch.event_count());
    let mut bytes = 0;
    for row in batch.rows() {
        encrypted.push(&mut encryptor, &row.event);
        bytes += row.event.payload.len();
        if bytes >= ENCRYPT_BYTES {
            bytes = 0;
            tokio::task::yield_now().await;
        }
    }
    encrypted
}

/// The outcome of a request that needs no commit.
fn answered(verdict: &Verdict) -> Option<Result<Receipt, CommitError>> {
    match verdict {
        Verdict::Answered(outcome) => Some(*outcome),
        Verdict::New | Verdict::SameAs(_) | Verdict::Later => None,
    }
}

/// What the same request gets, sent again while the first was on its way.
fn shared_outcome(
    outcome: Result<Receipt, CommitError>,
    claim: &Claim<'_>,
    leader: &Option<Claim<'_>>,
) -> Result<Receipt, CommitError> {
    let receipt = outcome?;
    if leader.is_some_and(|leader| leader.body == claim.body) {
        Ok(Receipt { replayed: true, ..receipt })
    } else {
        Err(dedup::reused(claim))
    }
}

/// Milliseconds since the Unix epoch. A clock before 1970 counts as 1970: ids stay unique, only less ordered.
pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
