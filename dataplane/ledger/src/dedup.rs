//! Which requests of a batch are new, and what the others are answered.
//!
//! Owns the rules of idempotency keys and producer sequences. Pure: what is stored is handed in. Never answers what it
//! does not know: without a look at the database every request counts as new, and the commit itself finds out (its
//! inserts collide). Only then is looked up what stands in the way, and [`plan`] is asked again.
//!
//! Read next: `session.rs`, whose statements enforce what is assumed here.

use std::collections::HashMap;

use crate::commit::{CommitError, Receipt};
use crate::field::Keyring;
use crate::id::BatchId;
use crate::queue::Pending;
use crate::request::{BodyDigest, Identity, ProducerSequence, RequestKey};

/// What a request claims: to be the first one of its identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub(crate) key: RequestKey,
    pub(crate) body: BodyDigest,
    pub(crate) producer: Option<&'a ProducerSequence>,
    pub(crate) event_count: usize,
    /// With what the digest is stored, where values of the request are encrypted.
    pub(crate) keyring: Option<&'a Keyring>,
}

impl<'a> Claim<'a> {
    /// The claim of a request that has an identity.
    pub(crate) fn of(pending: &'a Pending, ledger: &str, keyring: Option<&'a Keyring>) -> Option<Self> {
        let (identity, body) = pending.submission.identity()?;
        let producer = match identity {
            Identity::Key(_) => None,
            Identity::Producer(producer) => Some(producer),
        };
        let (key, event_count) = (identity.key(ledger), pending.submission.len());
        Some(Self { key, body: *body, producer, event_count, keyring })
    }

    /// The digest of what it asks for, as it is stored.
    pub(crate) fn stored_body(&self) -> BodyDigest {
        let keyed = self.keyring.and_then(|keyring| keyring.request_digests(&self.body.0).next());
        keyed.map_or(self.body, BodyDigest)
    }

    /// Whether a stored digest is of what it asks for: under any key, or from before there was one.
    fn asks_for(&self, stored: BodyDigest) -> bool {
        let keyed = |keyring: &Keyring| keyring.request_digests(&self.body.0).any(|keyed| keyed == stored.0);
        stored == self.body || self.keyring.is_some_and(keyed)
    }
}

/// A request that was committed before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) body: BodyDigest,
    pub(crate) batch: BatchId,
    pub(crate) receipt: Receipt,
}

/// How far a producer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProducerState {
    pub(crate) epoch: u32,
    pub(crate) next: u64,
}

/// What was found in the database about the requests in question.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) stored: HashMap<RequestKey, Stored>,
    /// `None` when nobody has looked; a producer that is not in it is a new one.
    pub(crate) producers: Option<HashMap<String, ProducerState>>,
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is committed with this batch.
    New,
    /// It is the same as an earlier one of this batch, whose place is given, and shares its outcome.
    SameAs(usize),
    /// What it is depends on how this batch ends: it is looked at again afterwards.
    Later,
    /// It is answered; nothing of it is committed.
    Answered(Result<Receipt, CommitError>),
}

/// What the new requests of one producer in a batch do to its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Advance<'a> {
    pub(crate) producer: &'a str,
    pub(crate) epoch: u32,
    pub(crate) first: u64,
    pub(crate) next: u64,
}

/// The verdicts in the order of the requests, and the advances in the order of the producers.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) advances: Vec<Advance<'a>>,
}

/// A producer's requests in this batch.
struct Open<'a> {
    advance: Advance<'a>,
    /// One of them waits for the next round, and so must all after it.
    held: bool,
}

/// Decides about the requests of a batch; `None` is a request without an identity.
pub(crate) fn plan<'a>(claims: &[Option<Claim<'a>>], known: &Known) -> Plan<'a> {
    let mut leaders: HashMap<RequestKey, usize> = HashMap::new();
    let mut open: HashMap<&str, Open<'a>> = HashMap::new();
    let mut verdicts: Vec<Verdict> = Vec::with_capacity(claims.len());
    for claim in claims {
        let verdict = match claim {
            None => Verdict::New,
            Some(claim) => {
                let leader = leaders.get(&claim.key).map(|at| (*at, verdicts[*at]));
                match (stored_verdict(claim, known), leader) {
                    (Some(outcome), _) => Verdict::Answered(outcome),
                    (None, Some((at, Verdict::New))) => Verdict::SameAs(at),
                    (None, Some((_, Verdict::Later))) => Verdict::Later,
                    (None, Some(_) | None) => {
                        leaders.insert(claim.key, verdicts.len());
                        let sequence = |producer| sequence(claim, producer, known, &mut open);
                        claim.producer.map_or(Verdict::New, sequence)
                    }
                }
            }
        };
        verdicts.push(verdict);
    }
    let mut advances: Vec<Advance<'a>> = open.into_values().map(|open| open.advance).collect();
    advances.sort_unstable_by_key(|advance| advance.producer);
    Plan { verdicts, advances }
}

/// What is stored about the request itself.
fn stored_verdict(claim: &Claim<'_>, known: &Known) -> Option<Result<Receipt, CommitError>> {
    // A producer that was replaced is told so, even if what it repeats was stored in its time.
    if let (Some(producer), Some(states)) = (claim.producer, &known.producers)
        && let Some(state) = states.get(producer.id())
        && producer.epoch() < state.epoch
    {
        return Some(Err(CommitError::ProducerFenced { epoch: state.epoch }));
    }
    let stored = known.stored.get(&claim.key)?;
    Some(if claim.asks_for(stored.body) {
        Ok(Receipt { replayed: true, ..stored.receipt })
    } else {
        Err(reused(claim))
    })
}

/// The answer to a request that shares the identity of another one but not what it asks for.
pub(crate) fn reused(claim: &Claim<'_>) -> CommitError {
    if claim.producer.is_some() { CommitError::SequenceReused } else { CommitError::KeyReused }
}

/// Where a producer's request stands among its others.
fn sequence<'a>(
    claim: &Claim<'_>,
    producer: &'a ProducerSequence,
    known: &Known,
    open: &mut HashMap<&'a str, Open<'a>>,
) -> Verdict {
    let next = producer.first() + claim.event_count as u64;
    if let Some(Open { advance, held }) = open.get_mut(producer.id()) {
        // Whatever does not follow exactly can only be judged once it is known what became of the others.
        *held |= advance.epoch != producer.epoch() || advance.next != producer.first();
        if *held {
            return Verdict::Later;
        }
        advance.next = next;
        return Verdict::New;
    }
    if let Some(states) = &known.producers
        && let Err(refusal) = follows(states.get(producer.id()).copied(), producer, claim.event_count as u64)
    {
        return Verdict::Answered(Err(refusal));
    }
    let advance = Advance { producer: producer.id(), epoch: producer.epoch(), first: producer.first(), next };
    open.insert(producer.id(), Open { advance, held: false });
    Verdict::New
}

/// Whether a producer's events are the next ones.
fn follows(state: Option<ProducerState>, request: &ProducerSequence, count: u64) -> Result<(), CommitError> {
    let expected = match state {
        Some(state) if request.epoch() < state.epoch => {
            return Err(CommitError::ProducerFenced { epoch: state.epoch });
        }
        Some(state) if request.epoch() == state.epoch => state.next,
        // A new producer, or a new life of one.
        Some(_) | None => 0,
    };
    match request.first() {
        first if first == expected => Ok(()),
        first if first > expected => Err(CommitError::SequenceGap { expected }),
        first if first + count <= expected => Err(CommitError::Duplicate),
        _ => Err(CommitError::SequenceOverlap { expected }),
    }
}

/// Whether requests must leave their batch because of what was found, which gives the others a new batch id.
///
/// `in_doubt`: an earlier attempt at the batch may still succeed. Then nothing of it may be stored under a new id, unless what
/// was found excludes that for ever. It mostly does, as keys stay taken and producers only advance: a gap is the one
/// obstacle that can go away.
pub(crate) fn must_part(verdicts: &[Verdict], in_doubt: bool) -> bool {
    verdicts.iter().any(|verdict| match verdict {
        Verdict::New | Verdict::SameAs(_) | Verdict::Later => false,
        Verdict::Answered(Err(CommitError::SequenceGap { .. })) => !in_doubt,
        Verdict::Answered(_) => true,
    })
}

#[cfg(test)]
mod tests;
