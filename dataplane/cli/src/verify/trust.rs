//! When a checkpoint is to be believed: who must have signed it, and how new it must be.
//!
//! Pure: the present time is handed in. Promises: an accepted checkpoint is of the log asked for, signed by one of its keys
//! and by as many witnesses as asked for, none of whose signatures is wrong.

use std::time::Duration;

use certeus_tlog::checkpoint::{Checkpoint, OpenError};
use certeus_tlog::note::{self, Algorithm, SignedNote, Verified, VerifierKey};
use certeus_tlog::proof;

/// What is asked of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    pub(crate) origin: String,
    /// Of the log; one of them must have signed.
    pub(crate) keys: Vec<VerifierKey>,
    pub(crate) witnesses: Vec<VerifierKey>,
    /// How many of the witnesses must have cosigned.
    pub(crate) threshold: usize,
    pub(crate) freshness: Option<Freshness>,
    /// One that the checkpoint must not be older than.
    pub(crate) seen: Option<Checkpoint>,
}

/// How old the newest signed time may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Freshness {
    pub(crate) max_age: Duration,
    /// Seconds since the Unix epoch.
    pub(crate) now: u64,
}

/// A checkpoint that is believed.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) signers: Vec<Signer>,
    pub(crate) witnesses: Vec<Signer>,
}

/// A key that signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signer {
    pub(crate) name: String,
    pub(crate) key_id: u32,
    pub(crate) algorithm: Algorithm,
    /// The signed time, seconds since the Unix epoch.
    pub(crate) time: Option<u64>,
}

impl From<Verified<'_>> for Signer {
    fn from(Verified { key, time }: Verified<'_>) -> Self {
        // Zero says that the cosigner makes no statement about time.
        let time = time.filter(|time| *time > 0);
        Self { name: key.name().to_owned(), key_id: key.id(), algorithm: key.algorithm(), time }
    }
}

/// Why something is not proven.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// None of the log's keys signed.
    #[error("wrong key: none of the keys given signed the checkpoint; it is signed by {signers}")]
    WrongKey { signers: String },
    /// A signature in a key's name is not that key's.
    #[error("the checkpoint was altered, or its signature forged")]
    Signature(#[source] note::VerifyError),
    /// Of another log.
    #[error("the checkpoint is of the log {found:?}, not of {origin:?}")]
    Origin { found: String, origin: String },
    /// Signed, but no checkpoint.
    #[error("what was signed is not a checkpoint")]
    NoCheckpoint(#[source] certeus_tlog::checkpoint::CheckpointError),
    /// Too few witnesses.
    #[error("{got} of the {threshold} witnesses asked for have cosigned")]
    Witnesses { got: usize, threshold: usize },
    /// A cosignature in a witness's name is not that witness's.
    #[error("a cosignature is forged")]
    Cosignature(#[source] note::VerifyError),
    /// Older than one already seen.
    #[error("stale: the checkpoint is of {size} events, and one seen before is of {seen}")]
    Stale { size: u64, seen: u64 },
    /// Same size, other root: a proof of misbehaviour.
    #[error("forked: two signed checkpoints of {size} events have different roots, {root} and {seen}")]
    Forked { size: u64, root: String, seen: String },
    /// The checkpoint seen before is not to be believed itself.
    #[error("the checkpoint of --newer-than cannot be used")]
    Seen(#[source] Box<Refusal>),
    /// Too old by its signed times.
    #[error("stale: the newest time that was signed is {age} s ago, and {max_age} s are allowed")]
    Age { age: u64, max_age: u64 },
    /// No time was signed.
    #[error(
        "nothing says how old the checkpoint is: no signature carries a time (Ed25519 signatures of a log never do); \
         ask for a witness, or use --newer-than"
    )]
    NoTime,
    /// Nothing is in an empty log.
    #[error("the checkpoint is of an empty log (size 0), so it holds no event")]
    EmptyLog,
    /// Beyond the checkpoint.
    #[error("the proof is of index {index}, which is beyond the checkpoint: it has {size} events")]
    IndexBeyond { index: u64, size: u64 },
    /// Another length than was committed to.
    #[error("the event has {got} bytes, and the proof is of one with {want}{hint}")]
    PayloadLength { got: usize, want: usize, hint: &'static str },
    /// The hashes do not lead to the root.
    #[error("the event is not proven: its bytes, its place or the proof were altered")]
    Inclusion(#[source] proof::VerifyError),
    /// The later checkpoint does not follow from the earlier.
    #[error("the log was rewritten, or the consistency proof is not of these checkpoints")]
    Inconsistent(#[source] proof::VerifyError),
}

impl Refusal {
    /// Its name in JSON.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::WrongKey { .. } => "wrong-key",
            Self::Signature(_) => "invalid-signature",
            Self::Origin { .. } => "wrong-origin",
            Self::NoCheckpoint(_) => "no-checkpoint",
            Self::Witnesses { .. } => "too-few-witnesses",
            Self::Cosignature(_) => "invalid-cosignature",
            Self::Stale { .. } | Self::Age { .. } => "stale",
            Self::Forked { .. } => "forked",
            Self::Seen(inner) => inner.reason(),
            Self::NoTime => "no-time",
            Self::EmptyLog => "empty-log",
            Self::IndexBeyond { .. } => "index-beyond-checkpoint",
            Self::PayloadLength { .. } => "payload-length",
            Self::Inclusion(_) => "not-included",
            Self::Inconsistent(_) => "inconsistent",
        }
    }
}

impl Trust {
    /// The same trust without bounds on age.
    pub(crate) fn of_any_age(self) -> Self {
        Self { freshness: None, seen: None, ..self }
    }

    /// Opens a checkpoint, if all that is asked of it holds.
    pub(crate) fn open(&self, note: &SignedNote) -> Result<Opened, Refusal> {
        let (checkpoint, signers) =
            Checkpoint::verify_note(note, &self.origin, &self.keys).map_err(|error| match error {
                OpenError::Signature(note::VerifyError::NoKnownKey) => {
                    let name = |one: &note::Signature| format!("{}+{:08x}", one.name(), one.key_id());
                    let signers: Vec<String> = note.signatures().iter().map(name).collect();
                    Refusal::WrongKey { signers: signers.join(", ") }
                }
                OpenError::Signature(error) => Refusal::Signature(error),
                OpenError::Origin { found } => Refusal::Origin { found, origin: self.origin.clone() },
                OpenError::Checkpoint(error) => Refusal::NoCheckpoint(error),
                // A note already parsed.
                OpenError::Note(_) => {
                    Refusal::NoCheckpoint(certeus_tlog::checkpoint::CheckpointError::Origin)
                }
            })?;
        let cosigners = match note.verify(&self.witnesses) {
            Ok(cosigners) => cosigners,
            Err(note::VerifyError::NoKnownKey) => Vec::new(),
            Err(error) => return Err(Refusal::Cosignature(error)),
        };
        let opened = Opened {
            checkpoint,
            signers: signers.into_iter().map(Signer::from).collect(),
            witnesses: cosigners.into_iter().map(Signer::from).collect(),
        };
        self.check_witnesses(&opened)?;
        self.check_age(&opened)?;
        Ok(opened)
    }

    fn check_witnesses(&self, opened: &Opened) -> Result<(), Refusal> {
        // A witness with two keys is still one witness.
        let mut names: Vec<&str> = opened.witnesses.iter().map(|witness| witness.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let (got, threshold) = (names.len(), self.threshold);
        if got < threshold { Err(Refusal::Witnesses { got, threshold }) } else { Ok(()) }
    }

    fn check_age(&self, opened: &Opened) -> Result<(), Refusal> {
        let checkpoint = &opened.checkpoint;
        if let Some(seen) = &self.seen {
            if checkpoint.size() < seen.size() {
                return Err(Refusal::Stale { size: checkpoint.size(), seen: seen.size() });
            }
            if checkpoint.size() == seen.size() && checkpoint.root() != seen.root() {
                return Err(Refusal::Forked {
                    size: seen.size(),
                    root: checkpoint.root().to_string(),
                    seen: seen.root().to_string(),
                });
            }
        }
        let Some(Freshness { max_age, now }) = self.freshness else { return Ok(()) };
        let times = opened.signers.iter().chain(&opened.witnesses).filter_map(|signer| signer.time);
        let age = now.saturating_sub(times.max().ok_or(Refusal::NoTime)?);
        let max_age = max_age.as_secs();
        if age > max_age { Err(Refusal::Age { age, max_age }) } else { Ok(()) }
    }
}
