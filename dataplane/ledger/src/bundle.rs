//! Proof bundles: claims, the events they rest on, and what proves that those are in the log, signed as one JWS.
//!
//! Owns the format (`docs/formats/bundle.md` is its specification) and its verification. Pure. Promises: nothing of a bundle is
//! looked at before its signature holds, but for its header; a bundle that opens has every event proven against one checkpoint of
//! the log. What its claims say is the claimant's matter, except that [`check_strict`] wants evidence for each of them.

mod wire;

use std::collections::HashSet;
use std::fmt;

use certeus_tlog::checkpoint::{Checkpoint, OpenError};
use certeus_tlog::note::{JwsError, NoteError, SignedNote, VerifierKey};
use certeus_tlog::proof::{VerifyError, verify_inclusion};
use certeus_tlog::tlog_proof::TlogProof;
use certeus_tlog::{Hash, leaf_hash};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::envelope::{ENTRY_BYTES, Envelope, HeadError};
use crate::json::{self, Scanner};
use crate::log::{EXTRA_ERASED, EXTRA_INTACT, SigningKeys};
use crate::store::SALT_BYTES;
use crate::timestamp::Timestamp;

pub use wire::decoded;

/// Events in a bundle.
pub const ENTRIES_MAX: usize = 1_000;
/// Bytes of a bundle's payload, as JSON.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// Bytes of a bundle: header, payload and signature in base64url.
pub const BUNDLE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX.div_ceil(3) * 4 + 2_048;

/// Levels that stand around the claims in a request or a decoded bundle, so that readers with the usual limit can read those.
const OUTER_DEPTH: u32 = 4;

/// Why something is not a bundle, or not one to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Longer than any bundle.
    #[error("a bundle's {part} of {bytes} bytes is too long: it has at most {max}")]
    TooLarge {
        /// What is too long.
        part: &'static str,
        /// Its length, or a part of it that is too long already.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// More events than any bundle has.
    #[error("{0} entries are too many: a bundle has at most {ENTRIES_MAX}")]
    TooManyEntries(usize),
    /// Not three parts with dots between them.
    #[error("not a compact JWS: it has three parts with dots between them")]
    Parts,
    /// A part is not spelled as it must be.
    #[error("the {0} is not base64url without padding, in its only spelling")]
    Base64(&'static str),
    /// The header is not one of ours.
    #[error("the header is not that of a bundle: {0}")]
    Header(#[source] serde_json::Error),
    /// Another algorithm than ours, such as `none`.
    #[error("the header's `alg` is {0:?}, and must be \"EdDSA\"")]
    Algorithm(String),
    /// Another type of JWS.
    #[error("the header's `typ` is {found:?}, and must be \"certeus-bundle+jws\"")]
    Type {
        /// What it says.
        found: Option<String>,
    },
    /// No Ed25519 key of the log has this id.
    #[error("the header's `kid` is {0:?}, which is no Ed25519 key of this log")]
    UnknownKey(String),
    /// Signed by another key, or altered.
    #[error("the signature does not belong to this bundle and key: one of them was altered")]
    Signature,
    /// The payload is not one of ours.
    #[error("the payload is not that of a bundle: {0}")]
    Payload(#[source] serde_json::Error),
    /// A format that this software does not know.
    #[error("the bundle has version {0}, and only 1 is known")]
    Version(u64),
    /// A field holds what the format does not allow.
    #[error("the payload's `{0}` is not valid")]
    Field(&'static str),
    /// The bundle of another log.
    #[error("the bundle is of the log {found:?}, ledger {ledger:?}")]
    Foreign {
        /// The origin in it.
        found: String,
        /// The ledger in it.
        ledger: String,
    },
    /// The claims are not what claims must be.
    #[error("`claims` {0}")]
    Claims(#[from] ClaimsError),
    /// The same event twice.
    #[error("entry {position} repeats event {id}")]
    Repeated {
        /// Position in the list, from 0.
        position: usize,
        /// The event.
        id: Uuid,
    },
    /// The checkpoint is not a signed note.
    #[error("the checkpoint is malformed")]
    Note(#[from] NoteError),
    /// The checkpoint is not one of the log.
    #[error("the checkpoint is not to be trusted: {0}")]
    Checkpoint(#[from] OpenError),
    /// An entry is not proven.
    #[error("entry {position}, event {id}: {source}")]
    Entry {
        /// Position in the list, from 0.
        position: usize,
        /// The event.
        id: Uuid,
        /// Why not.
        source: EntryError,
    },
    /// Something that must be proven is not.
    #[error(transparent)]
    NotProven(#[from] NotProven),
    /// Signing failed.
    #[error("cannot sign")]
    Sign(#[from] JwsError),
}

/// Why claims cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    /// Not a JSON object with unique keys.
    #[error("must be a JSON object with each member once: {0}")]
    Object(#[source] serde_json::Error),
    /// Malformed, or nested too deeply.
    #[error("cannot be taken: {0}")]
    Syntax(#[from] json::Error),
}

/// Why an entry is not proven.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// What makes the log entry is not there, or does not suit the event.
    #[error("its `extra` is neither that of an event that is shown nor that of an erased one that is not")]
    Extra,
    /// What should be the head of an envelope is none.
    #[error("its `extra` holds no envelope")]
    Head(#[from] HeadError),
    /// The envelope is that of another event.
    #[error("its envelope is of another event, ledger or length")]
    Other,
    /// An erased event that is not at this place of the log.
    #[error("this ledger has no erased event of this id at this index")]
    NotErased,
    /// The log does not have it.
    #[error("{0}")]
    Inclusion(#[from] VerifyError),
}

/// What strict mode refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    /// Nothing is proven.
    #[error("there are no entries, so nothing is proven")]
    NoEntries,
    /// A claim names no events.
    #[error(
        "claim {claim:?} has no evidence: it must be an object whose member `evidence` is a list of one event id or more"
    )]
    Evidence {
        /// The claim.
        claim: String,
    },
    /// A claim names an event that is not among the entries.
    #[error("claim {claim:?} names event {id}, which is not among the entries")]
    Missing {
        /// The claim.
        claim: String,
        /// The event.
        id: Uuid,
    },
    /// The content of an event cannot be proven any more.
    #[error("entry {position}, event {id}, was erased: only its place is proven, not what it said")]
    Erased {
        /// Position in the list, from 0.
        position: usize,
        /// The event.
        id: Uuid,
    },
}

/// Claims: a JSON object with each member once, kept as it was written.
#[derive(Debug, Clone)]
pub struct Claims(Box<RawValue>);

impl Claims {
    /// Checks claims.
    ///
    /// # Errors
    /// When they are not an object with unique members, or nested too deeply.
    pub fn new(claims: &RawValue) -> Result<Self, ClaimsError> {
        Scanner::new(claims.get().as_bytes(), 0, OUTER_DEPTH).value()?;
        serde_json::from_str::<wire::Members<'_>>(claims.get()).map_err(ClaimsError::Object)?;
        Ok(Self(claims.to_owned()))
    }

    /// As written.
    #[must_use]
    pub fn as_json(&self) -> &RawValue {
        &self.0
    }

    fn members(&self) -> Vec<(String, &RawValue)> {
        // Checked when they were made.
        serde_json::from_str::<wire::Members<'_>>(self.0.get())
            .map_or_else(|_| Vec::new(), |members| members.0)
    }
}

/// An event with what proves it, but for the checkpoint, which all entries of a bundle share.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The event's id. Of an erased event nothing in the bundle proves it.
    pub id: Uuid,
    /// Its index in the log.
    pub index: u64,
    /// Its bytes as stored; `None` when they were erased.
    pub payload: Option<Vec<u8>>,
    /// What makes the log entry of the bytes, as in a proof file.
    pub extra: Vec<u8>,
    /// The inclusion proof, leaf's sibling first.
    pub hashes: Vec<Hash>,
}

/// Neither payload nor salt is for logs.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).field("index", &self.index).finish_non_exhaustive()
    }
}

impl Entry {
    /// The entry as a proof file of its own.
    #[must_use]
    pub fn proof(&self, checkpoint: &SignedNote) -> TlogProof {
        let Self { id: _, index, payload: _, extra, hashes } = self;
        let (extra, hashes) = (extra.clone(), hashes.clone());
        TlogProof { extra, index: *index, hashes, checkpoint: checkpoint.clone() }
    }

    /// The log entry that is proven: rebuilt from the event, or of an erased event as it stands here.
    ///
    /// # Errors
    /// When `extra` and event do not belong together.
    pub fn log_entry(&self, ledger: &str) -> Result<[u8; ENTRY_BYTES], EntryError> {
        match (self.extra.split_first(), &self.payload) {
            (Some((&EXTRA_INTACT, rest)), Some(payload)) => {
                let (salt, head) = rest.split_first_chunk::<SALT_BYTES>().ok_or(EntryError::Extra)?;
                let (head, payload_len) = Envelope::read_head(head)?;
                if head.ledger != ledger || head.id != self.id || payload_len != payload.len() {
                    return Err(EntryError::Other);
                }
                Ok(Envelope { head, payload }.entry(salt, &mut Vec::new()))
            }
            (Some((&EXTRA_ERASED, entry)), None) => entry.try_into().map_err(|_| EntryError::Extra),
            _ => Err(EntryError::Extra),
        }
    }

    fn verify(&self, ledger: &str, checkpoint: &Checkpoint) -> Result<(), EntryError> {
        let leaf = leaf_hash(&self.log_entry(ledger)?);
        Ok(verify_inclusion(self.index, checkpoint.size(), &leaf, &self.hashes, &checkpoint.root())?)
    }
}

/// A bundle, to be signed, or whose signature holds.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its name: a UUIDv7.
    pub rid: Uuid,
    /// The log's origin.
    pub origin: String,
    /// When it was made, in whole seconds.
    pub issued_at: Timestamp,
    /// The ledger.
    pub ledger: String,
    /// What is claimed.
    pub claims: Claims,
    /// The events.
    pub entries: Vec<Entry>,
    /// The signed checkpoint that all entries are proven against.
    pub checkpoint: SignedNote,
}

/// Whose bundles are trusted.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The log's origin.
    pub origin: String,
    /// The ledger.
    pub ledger: String,
    /// The log's keys, retired ones included.
    pub keys: Vec<VerifierKey>,
}

/// A bundle of which everything was verified that can be without asking the log.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The bundle.
    pub bundle: Bundle,
    /// What its checkpoint says.
    pub checkpoint: Checkpoint,
}

impl Bundle {
    /// Signs the bundle.
    ///
    /// # Errors
    /// When it is too large.
    pub fn sign(&self, keys: &SigningKeys) -> Result<String, Error> {
        if self.entries.len() > ENTRIES_MAX {
            return Err(Error::TooManyEntries(self.entries.len()));
        }
        let key = keys.bundle_key().ok_or(JwsError::Algorithm)?;
        let input = wire::signing_input(self, key.verifier())?;
        let signature = key.sign_jws(&input)?;
        Ok(wire::with_signature(input, &signature))
    }

    /// Reads a bundle and verifies its signature, its checkpoint's, and the proof of every entry.
    ///
    /// # Errors
    /// When it is not a bundle of that log, or does not prove what it should.
    pub fn open(bundle: &str, trust: &Trust) -> Result<Opened, Error> {
        let bundle = wire::read(bundle, trust)?;
        if bundle.origin != trust.origin || bundle.ledger != trust.ledger {
            return Err(Error::Foreign { found: bundle.origin, ledger: bundle.ledger });
        }
        let (checkpoint, _) = Checkpoint::verify_note(&bundle.checkpoint, &trust.origin, &trust.keys)?;
        let mut seen = HashSet::new();
        for (position, entry) in bundle.entries.iter().enumerate() {
            let id = entry.id;
            if !seen.insert(id) {
                return Err(Error::Repeated { position, id });
            }
            let proven = entry.verify(&bundle.ledger, &checkpoint);
            proven.map_err(|source| Error::Entry { position, id, source })?;
        }
        Ok(Opened { bundle, checkpoint })
    }
}

/// A claim of strict mode; other members of it are the claimant's.
#[derive(Deserialize)]
struct Evidence {
    evidence: Vec<Uuid>,
}

/// The rule of strict mode: there are entries, none of them erased, and every claim is an object with a list `evidence` of ids,
/// not empty, each among the entries. `entries` are ids, and whether the event was erased.
///
/// # Errors
/// With the first claim or entry that breaks the rule.
pub fn check_strict(claims: &Claims, entries: &[(Uuid, bool)]) -> Result<(), NotProven> {
    if entries.is_empty() {
        return Err(NotProven::NoEntries);
    }
    if let Some((position, (id, _))) = entries.iter().enumerate().find(|(_, (_, erased))| *erased) {
        return Err(NotProven::Erased { position, id: *id });
    }
    let ids: HashSet<Uuid> = entries.iter().map(|(id, _)| *id).collect();
    for (claim, value) in claims.members() {
        let evidence = match serde_json::from_str::<Evidence>(value.get()) {
            // A list in place of the object would do for serde.
            Ok(Evidence { evidence }) if value.get().starts_with('{') && !evidence.is_empty() => evidence,
            Ok(_) | Err(_) => return Err(NotProven::Evidence { claim }),
        };
        if let Some(id) = evidence.into_iter().find(|id| !ids.contains(id)) {
            return Err(NotProven::Missing { claim, id });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
