//! What the sealer does next: a state machine without a clock, a database or a file.
//!
//! Owns the tree of the ledger and the order of the steps. [`Core::step`] takes what happened and says what to do; the
//! driver does it and comes back. Promises: it signs a checkpoint only of entries that were read as committed, only when
//! what was signed before is a prefix of it, and never again after anything was in doubt: then it steps down, and the
//! next claim looks at everything anew. Recovery is therefore the way that every start takes.
//!
//! A sealer whose anchor is older than that of another pod cannot know what that pod knows. It waits before it signs first,
//! in which time the other looks at the database, finds it older than the log, and raises the epoch with a witness: the
//! checkpoint that is missing. From then on every claim compares with it.
//!
//! A publication, and what is true if the process dies after each step:
//! 1. *sign*: nothing is outside this process; the next sealer signs the same tree or a larger one.
//! 2. *anchor*: the anchor is ahead of the database's head by this checkpoint. The entries below it are committed, so
//!    the next sealer appends them, must meet the anchor's root on the way, and signs from there on.
//! 3. *store*: tiles, history and head are in the database together. Nobody was told yet; followers poll.
//! 4. *announce*: done.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::proof::verify_consistency;
use certeus_tlog::tile::TileId;
use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash};

use crate::envelope::ENTRY_BYTES;
use crate::log::{KeyError, Refusal, Signed, SigningKeys};

/// An idle sealer looks this often, so that its session and with it the lock stay alive (see `LEASE` in `session.rs`).
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The ledger's log as the database has it when a sealer takes over.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// The new epoch: writes of earlier ones are refused from here on.
    pub(crate) epoch: i64,
    /// The newest checkpoint; `None` before the first.
    pub(crate) head: Option<StoredHead>,
    /// The partial tiles of the head's tree.
    pub(crate) edge: Vec<(TileId, Vec<Hash>)>,
    /// Events committed.
    pub(crate) committed: u64,
    /// Checkpoints that other pods know and did not find in the database.
    pub(crate) witnesses: Vec<String>,
    /// The sealer before refused to sign.
    pub(crate) was_refused: bool,
}

/// A checkpoint as the database has it: to be verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredHead {
    pub(crate) size: u64,
    pub(crate) root: Hash,
    pub(crate) note: String,
}

/// Committed log entries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entries {
    /// Parts of batches in index order: the index of the first entry, and the entries.
    pub(crate) stretches: Vec<(u64, Vec<u8>)>,
    /// Events committed.
    pub(crate) committed: u64,
    /// As much was read as is read at once: there may be more.
    pub(crate) more: bool,
    /// Epoch and head as the database had them; `None` when the read began before the last step.
    pub(crate) seen: Option<(i64, Option<StoredHead>)>,
}

impl Entries {
    /// Number of entries.
    pub(crate) fn events(&self) -> u64 {
        self.stretches.iter().map(|(_, bytes)| (bytes.len() / ENTRY_BYTES) as u64).sum()
    }
}

/// What a publication writes into the database, in one transaction.
#[derive(Debug, Clone)]
pub(crate) struct Publication {
    pub(crate) epoch: i64,
    /// The size that the database's head must still have.
    pub(crate) old_size: u64,
    pub(crate) signed: Arc<Signed>,
    /// Tiles above level 0 that are new or wider than before.
    pub(crate) tiles: Vec<(TileId, Vec<Hash>)>,
}

/// The time, as the driver's clocks have it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) at: Instant,
    /// Seconds since the Unix epoch, for the signatures that carry it.
    pub(crate) unix_seconds: u64,
}

/// What the driver does next.
#[derive(Debug)]
pub(crate) enum Command {
    /// Raise the epoch and read the log's state: [`Event::Claimed`].
    Claim,
    /// [`Event::Anchor`].
    ReadAnchor,
    /// Prove that the tree of one size begins with that of another: [`Event::Proof`].
    Prove { from: u64, to: u64 },
    /// Read entries from an index on: [`Event::Entries`].
    Read { from: u64 },
    /// [`Event::AnchorSet`].
    SetAnchor { expected: Option<String>, new: String },
    /// [`Event::Stored`].
    Store(Box<Publication>),
    /// Tell this process: [`Event::Announced`].
    Announce(Arc<Signed>),
    /// [`Event::Woken`], at this time or when a checkpoint is asked for.
    Wait { until: Instant },
    /// Keep the lock, sign nothing, say why, and begin anew after a while.
    Refuse(Refusal),
    /// Let go of everything, and begin anew.
    StepDown(&'static str),
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    Claimed(Box<Claim>),
    /// The anchor's text; `None` when it was never set.
    Anchor(Option<String>),
    Proof(Vec<Hash>),
    Entries(Entries),
    /// Whether the anchor now has the new text, for certain.
    AnchorSet(bool),
    /// Whether the head was still that of this epoch and size.
    Stored(bool),
    Announced,
    /// Whether somebody asked for a checkpoint.
    Woken {
        wanted: bool,
    },
}

#[derive(Debug)]
enum Phase {
    ReadingAnchor,
    Claiming,
    /// The last of these.
    Proving(Vec<Checkpoint>),
    Reading,
    Waiting,
    Anchoring(Box<Publication>),
    Storing(Box<Publication>),
    Announcing,
    Ended,
}

/// What a sealer is told once.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) keys: Arc<SigningKeys>,
    /// Between two checkpoints.
    pub(crate) interval: Duration,
    pub(crate) has_anchor: bool,
    /// From a claim to the first signature: in this time every other pod looks at the database. Zero when all of them have the
    /// same anchor, so that none knows more.
    pub(crate) objection_wait: Duration,
}

/// The sealer of one ledger from a claim to the next.
#[derive(Debug)]
pub(crate) struct Core {
    keys: Arc<SigningKeys>,
    interval: Duration,
    has_anchor: bool,
    objection_wait: Duration,
    phase: Phase,
    epoch: i64,
    frontier: Frontier,
    /// Tiles above level 0 that became full since the last publication.
    full: Vec<(TileId, Vec<Hash>)>,
    published: Option<StoredHead>,
    committed: u64,
    /// What the anchor holds.
    anchor: Option<String>,
    /// The newest checkpoint that this process has shown.
    shown: Option<Checkpoint>,
    /// Checkpoints known from elsewhere that the tree has not grown to yet, the smallest last.
    ahead: Vec<Checkpoint>,
    /// Nothing is signed before, so that pods that know more can say so.
    signs_from: Instant,
    /// A checkpoint is due although the tree did not grow.
    renew: bool,
    wanted: bool,
    more: bool,
    published_at: Option<Instant>,
}

impl Core {
    /// A sealer that has the lock since `now` and knows nothing yet; the first command.
    pub(crate) fn start(now: Instant, settings: Settings, shown: Option<Checkpoint>) -> (Self, Command) {
        let Settings { keys, interval, has_anchor, objection_wait } = settings;
        let core = Self {
            keys,
            interval,
            has_anchor,
            objection_wait,
            phase: if has_anchor { Phase::ReadingAnchor } else { Phase::Claiming },
            epoch: 0,
            frontier: Frontier::new(),
            full: Vec::new(),
            published: None,
            committed: 0,
            anchor: None,
            shown,
            ahead: Vec::new(),
            signs_from: now,
            renew: false,
            wanted: false,
            more: false,
            published_at: None,
        };
        // The anchor first: what it names was committed before, so that the database, read later, must have it.
        (core, if has_anchor { Command::ReadAnchor } else { Command::Claim })
    }

    /// Takes what happened; gives what to do next.
    ///
    /// # Panics
    /// When the event does not answer the last command: the driver is wrong.
    pub(crate) fn step(&mut self, now: Now, event: Event) -> Command {
        let phase = std::mem::replace(&mut self.phase, Phase::Ended);
        let next = match (phase, event) {
            (Phase::ReadingAnchor, Event::Anchor(text)) => {
                self.anchor = text;
                self.phase = Phase::Claiming;
                Ok(Command::Claim)
            }
            (Phase::Claiming, Event::Claimed(claim)) => self.claimed(now.at, *claim),
            (Phase::Proving(known), Event::Proof(proof)) => self.proven(known, &proof),
            (Phase::Reading, Event::Entries(entries)) => {
                let ours = |(epoch, head): &(i64, Option<StoredHead>)| {
                    (*epoch, head) == (self.epoch, &self.published)
                };
                if entries.seen.as_ref().is_none_or(ours) {
                    self.append(&entries).map(|()| self.publish_or_wait(now))
                } else {
                    Ok(Command::StepDown("the database has another head than this sealer left there"))
                }
            }
            (Phase::Waiting, Event::Woken { wanted }) => {
                self.wanted |= wanted;
                Ok(self.read())
            }
            (Phase::Anchoring(publication), Event::AnchorSet(done)) => {
                if done {
                    self.anchor = Some(publication.signed.note.clone());
                    Ok(self.store(publication))
                } else {
                    // Another sealer was here, or the write may have been lost or not.
                    Ok(Command::StepDown("the anchor is not what was expected"))
                }
            }
            (Phase::Storing(publication), Event::Stored(done)) => {
                if done {
                    Ok(self.announce(*publication, now.at))
                } else {
                    Ok(Command::StepDown("another sealer has taken over"))
                }
            }
            (Phase::Announcing, Event::Announced) => Ok(self.publish_or_wait(now)),
            (phase, event) => panic!("{event:?} does not answer what was asked for in {phase:?}"),
        };
        next.unwrap_or_else(Command::Refuse)
    }

    /// Whether what was read so far is what was signed.
    pub(crate) fn agrees(&self) -> bool {
        self.ahead.is_empty()
    }

    fn claimed(&mut self, now: Instant, claim: Claim) -> Result<Command, Refusal> {
        let Claim { epoch, head, edge, committed, witnesses, was_refused } = claim;
        self.epoch = epoch;
        self.signs_from = now + self.objection_wait;
        self.committed = committed;
        self.renew = was_refused;
        if let Some(head) = head {
            verified_head(&self.keys, &head)?;
            if committed < head.size {
                return Err(Refusal::Behind { committed, signed: head.size });
            }
            let find =
                |tile: TileId| edge.iter().find(|(id, _)| *id == tile).map(|(_, hashes)| hashes).ok_or(());
            self.frontier =
                Frontier::resume(head.size, find).map_err(|_| Refusal::Tiles { size: head.size })?;
            if self.frontier.root() != head.root {
                return Err(Refusal::Tiles { size: head.size });
            }
            self.renew |= !self.keys.all_signed(&head.note);
            self.published = Some(head);
        }
        self.compare_known(&witnesses)
    }

    /// Compares the tree with every checkpoint known from elsewhere: the anchor, what other pods say, and what this process showed.
    fn compare_known(&mut self, witnesses: &[String]) -> Result<Command, Refusal> {
        let mut known: Vec<Checkpoint> = self.shown.take().into_iter().collect();
        if let Some(text) = &self.anchor {
            known.push(self.keys.verify(text).map_err(Refusal::Anchor)?);
        }
        for text in witnesses {
            known.push(self.keys.verify(text).map_err(Refusal::Witness)?);
        }
        // With none, what the database says is believed this once.
        if let Some(signed) = known.iter().map(Checkpoint::size).max()
            && signed > self.committed
        {
            return Err(Refusal::Behind { committed: self.committed, signed });
        }
        let size = self.frontier.size();
        let (known, mut ahead): (Vec<_>, Vec<_>) = known.into_iter().partition(|known| known.size() < size);
        ahead.sort_by_key(|ahead| Reverse(ahead.size()));
        self.ahead = ahead;
        self.check_ahead()?;
        Ok(self.prove_next(known))
    }

    /// Asks for the next proof, and goes on once there is nothing left to prove.
    fn prove_next(&mut self, known: Vec<Checkpoint>) -> Command {
        let Some(last) = known.last() else { return self.read() };
        let command = Command::Prove { from: last.size(), to: self.frontier.size() };
        self.phase = Phase::Proving(known);
        command
    }

    fn proven(&mut self, mut known: Vec<Checkpoint>, proof: &[Hash]) -> Result<Command, Refusal> {
        let (size, root) = (self.frontier.size(), self.frontier.root());
        if let Some(last) = known.pop() {
            verify_consistency(last.size(), size, &last.root(), &root, proof)
                .map_err(|_| Refusal::Forked { size: last.size() })?;
        }
        Ok(self.prove_next(known))
    }

    /// Compares with the checkpoints ahead that the tree has grown to.
    fn check_ahead(&mut self) -> Result<(), Refusal> {
        let (size, root) = (self.frontier.size(), self.frontier.root());
        while let Some(ahead) = self.ahead.pop_if(|ahead| ahead.size() == size) {
            if ahead.root() != root {
                return Err(Refusal::Forked { size });
            }
        }
        Ok(())
    }

    fn append(&mut self, entries: &Entries) -> Result<(), Refusal> {
        let Entries { stretches, committed, more, seen: _ } = entries;
        for (first, bytes) in stretches {
            if *first != self.frontier.size() {
                return Err(Refusal::Gap { missing: self.frontier.size() });
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                // Stops at the size of each checkpoint ahead, where the root must be that checkpoint's.
                let until = self.ahead.last().map_or(u64::MAX, |ahead| ahead.size() - self.frontier.size());
                let length = usize::try_from(until)
                    .map_or(rest.len(), |events| rest.len().min(events.saturating_mul(ENTRY_BYTES)));
                let (part, after) = rest.split_at(length);
                let full = &mut self.full;
                for entry in part.chunks(ENTRY_BYTES) {
                    self.frontier.append(leaf_hash(entry), |tile, hashes| {
                        if tile.level() > 0 {
                            full.push((tile, hashes.to_vec()));
                        }
                    });
                }
                self.check_ahead()?;
                rest = after;
            }
        }
        if *committed < self.frontier.size() {
            return Err(Refusal::Behind { committed: *committed, signed: self.frontier.size() });
        }
        if !more && *committed > self.frontier.size() {
            return Err(Refusal::Gap { missing: self.frontier.size() });
        }
        self.committed = *committed;
        self.more = *more;
        Ok(())
    }

    fn publish_or_wait(&mut self, now: Now) -> Command {
        let grown = self.published.as_ref().is_none_or(|last| last.size < self.frontier.size());
        let next = self.published_at.map_or(now.at, |at| at + self.interval);
        // What is asked for is everything committed when it was asked for.
        let wanted = self.wanted && !self.more;
        let due = self.renew || grown && (wanted || next <= now.at);
        if due && self.ahead.is_empty() && self.signs_from <= now.at {
            return self.sign(now.unix_seconds);
        }
        if self.more || !self.ahead.is_empty() {
            return self.read();
        }
        let look = now.at + LOOK_INTERVAL;
        self.phase = Phase::Waiting;
        // What is asked for before anything may be signed stays asked for.
        if due {
            return Command::Wait { until: self.signs_from.min(look) };
        }
        self.wanted = false;
        Command::Wait { until: if grown { next.min(look) } else { look.min(now.at + self.interval) } }
    }

    fn read(&mut self) -> Command {
        self.phase = Phase::Reading;
        Command::Read { from: self.frontier.size() }
    }

    fn sign(&mut self, unix_seconds: u64) -> Command {
        let (size, root) = (self.frontier.size(), self.frontier.root());
        let old_size = self.published.as_ref().map_or(0, |last| last.size);
        // What a signature must never cover: less than was signed before, or more than is durable.
        assert!(old_size <= size && size <= self.committed, "{old_size} <= {size} <= {}", self.committed);
        assert!(
            self.published.as_ref().is_none_or(|last| last.size != size || last.root == root),
            "two roots for {size} entries"
        );
        let signed = match self.keys.sign(size, root, unix_seconds) {
            Ok(signed) => Arc::new(signed),
            Err(error) => return Command::Refuse(Refusal::Sign(error)),
        };
        let wider = |tile: TileId| {
            let hashes = |size: u64| size >> (8 * tile.level());
            tile.level() > 0 && hashes(old_size) < hashes(size)
        };
        let partial = self.frontier.partial_tiles().filter(|(tile, _)| wider(*tile));
        let partial = partial.map(|(tile, hashes)| (tile, hashes.to_vec()));
        let tiles = self.full.iter().cloned().chain(partial).collect();
        let publication = Box::new(Publication { epoch: self.epoch, old_size, signed, tiles });
        if !self.has_anchor {
            return self.store(publication);
        }
        let new = publication.signed.note.clone();
        self.phase = Phase::Anchoring(publication);
        Command::SetAnchor { expected: self.anchor.clone(), new }
    }

    fn store(&mut self, publication: Box<Publication>) -> Command {
        let command = Command::Store(publication.clone());
        self.phase = Phase::Storing(publication);
        command
    }

    fn announce(&mut self, publication: Publication, now: Instant) -> Command {
        self.full.clear();
        let Signed { checkpoint, note } = &*publication.signed;
        let (size, root) = (checkpoint.size(), checkpoint.root());
        self.published = Some(StoredHead { size, root, note: note.clone() });
        self.published_at = Some(now);
        self.renew = false;
        self.phase = Phase::Announcing;
        Command::Announce(publication.signed)
    }
}

/// The checkpoint that the database's head row says and our keys have signed.
pub(crate) fn verified_head(keys: &SigningKeys, head: &StoredHead) -> Result<Checkpoint, Refusal> {
    let checkpoint = keys.verify(&head.note).map_err(Refusal::Head)?;
    if (checkpoint.size(), checkpoint.root()) != (head.size, head.root) {
        return Err(Refusal::Head(KeyError::Mismatch));
    }
    Ok(checkpoint)
}

#[cfg(test)]
mod tests;
