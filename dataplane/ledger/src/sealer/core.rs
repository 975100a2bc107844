//! What the sealer does next: a state machine without a clock, a database or a file.
//!
//! Owns the tree of the ledger and the order of the steps. [`Core::step`] takes what happened and says what to do; the
//! driver does it and comes back. Promises: it signs a checkpoint only of entries that were read as committed, only when
//! what was signed before is a prefix of it, and never again after anything was in doubt: then it steps down, and the
//! next claim looks at everything anew. Recovery is therefore the way that every start takes.
//!
//! A publication, and what is true if the process dies after each step:
//! 1. *sign*: nothing is outside this process; the next sealer signs the same tree or a larger one.
//! 2. *anchor*: the anchor is ahead of the database's head by this checkpoint. The entries below it are committed, so
//!    the next sealer appends them, must meet the anchor's root on the way, and signs from there on.
//! 3. *store*: tiles, history and head are in the database together. Nobody was told yet; followers poll.
//! 4. *announce*: done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::proof::verify_consistency;
use certeus_tlog::tile::TileId;
use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash};

use crate::envelope::ENTRY_BYTES;
use crate::log::{KeyError, Refusal, Signed, SigningKeys};

/// An idle sealer looks this often, so that its session and with it the lock stay alive (see `LEASE` in `driver.rs`).
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
    Proving(Checkpoint),
    Reading,
    Waiting,
    Anchoring(Box<Publication>),
    Storing(Box<Publication>),
    Announcing,
    Ended,
}

/// The sealer of one ledger from a claim to the next.
#[derive(Debug)]
pub(crate) struct Core {
    keys: Arc<SigningKeys>,
    interval: Duration,
    has_anchor: bool,
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
    /// The newest of these two, while the tree has not grown to it yet.
    ahead: Option<Checkpoint>,
    /// A checkpoint is due although the tree did not grow.
    renew: bool,
    wanted: bool,
    more: bool,
    published_at: Option<Instant>,
}

impl Core {
    /// A sealer that has the lock and knows nothing yet; the first command.
    pub(crate) fn start(
        keys: Arc<SigningKeys>,
        interval: Duration,
        has_anchor: bool,
        shown: Option<Checkpoint>,
    ) -> (Self, Command) {
        let core = Self {
            keys,
            interval,
            has_anchor,
            phase: if has_anchor { Phase::ReadingAnchor } else { Phase::Claiming },
            epoch: 0,
            frontier: Frontier::new(),
            full: Vec::new(),
            published: None,
            committed: 0,
            anchor: None,
            shown,
            ahead: None,
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
            (Phase::Claiming, Event::Claimed(claim)) => self.claimed(*claim),
            (Phase::Proving(anchor), Event::Proof(proof)) => self.anchor_proven(&anchor, &proof),
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
        self.ahead.is_none()
    }

    fn claimed(&mut self, claim: Claim) -> Result<Command, Refusal> {
        let Claim { epoch, head, edge, committed, was_refused } = claim;
        self.epoch = epoch;
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
        self.compare_anchor()
    }

    fn compare_anchor(&mut self) -> Result<Command, Refusal> {
        let anchor = self.anchor.as_ref().map(|text| self.keys.verify(text)).transpose();
        let known = anchor.map_err(Refusal::Anchor)?.into_iter().chain(self.shown.take());
        // Neither: what the database says is believed this once.
        let Some(anchor) = known.max_by_key(Checkpoint::size) else { return Ok(self.read()) };
        let size = self.frontier.size();
        if anchor.size() > self.committed {
            return Err(Refusal::Behind { committed: self.committed, signed: anchor.size() });
        }
        if anchor.size() < size {
            let command = Command::Prove { from: anchor.size(), to: size };
            self.phase = Phase::Proving(anchor);
            return Ok(command);
        }
        self.ahead = Some(anchor);
        self.check_ahead()?;
        Ok(self.read())
    }

    fn anchor_proven(&mut self, anchor: &Checkpoint, proof: &[Hash]) -> Result<Command, Refusal> {
        let (size, root) = (self.frontier.size(), self.frontier.root());
        verify_consistency(anchor.size(), size, &anchor.root(), &root, proof)
            .map_err(|_| Refusal::Forked { size: anchor.size() })?;
        Ok(self.read())
    }

    /// Compares with the anchor's checkpoint once the tree has its size.
    fn check_ahead(&mut self) -> Result<(), Refusal> {
        if let Some(ahead) = self.ahead.take_if(|ahead| ahead.size() == self.frontier.size())
            && ahead.root() != self.frontier.root()
        {
            return Err(Refusal::Forked { size: ahead.size() });
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
                // Stops at the anchor's size, where the root must be the anchor's.
                let until = self.ahead.as_ref().map_or(u64::MAX, |ahead| ahead.size() - self.frontier.size());
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
        if self.ahead.is_none() && (self.renew || grown && (wanted || next <= now.at)) {
            return self.sign(now.unix_seconds);
        }
        if self.more || self.ahead.is_some() {
            return self.read();
        }
        self.wanted = false;
        let look = now.at + LOOK_INTERVAL;
        self.phase = Phase::Waiting;
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
