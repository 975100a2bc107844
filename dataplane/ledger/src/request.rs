//! Who a request says it is, so that the same request sent twice is stored once.
//!
//! Owns idempotency keys, producer sequences, the digests under which they are remembered, and for how long. Pure.
//! Promises: a request of one day is recognised until the end of the next one, at least 24 h.
//!
//! What is remembered lies in partitions of [`PERIOD_DAYS`] days, which are dropped whole. A unique index ends at the
//! border of its partition, so a request is entered into the period of its day *and* into that of the next day,
//! where the two differ. Two days that follow each other thus always share a period, in which two transactions with the
//! same request meet, however long either takes, and although the clocks of their pods differ by up to a day.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::id::Day;

/// Bytes of the longest idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Bytes of the longest producer id.
pub const PRODUCER_BYTES_MAX: usize = 128;
/// The greatest sequence number: PostgreSQL's `bigint`.
pub const SEQUENCE_MAX: u64 = i64::MAX as u64;

/// Days of a partition. A third of the requests are entered twice, and none is kept longer than six days.
const PERIOD_DAYS: u32 = 3;

const KEY_DOMAIN: &[u8; 15] = b"certeus/key/v1\0";
const PRODUCER_DOMAIN: &[u8; 20] = b"certeus/producer/v1\0";
const BODY_DOMAIN: &[u8; 16] = b"certeus/body/v1\0";

/// Why something is not the identity of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The idempotency key has a wrong length or character.
    #[error("an idempotency key is 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters")]
    Key,
    /// The producer's id has a wrong length or character.
    #[error("a producer's id is 1 to {PRODUCER_BYTES_MAX} visible ASCII characters")]
    Producer,
    /// The sequence numbers of the request go too far.
    #[error("a sequence number is at most {SEQUENCE_MAX}, also that of the request's last event")]
    Sequence,
}

/// A client's name for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    /// Checks a key.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub fn new(key: &str) -> Result<Self, IdentityError> {
        let valid = is_visible_ascii(key, IDEMPOTENCY_KEY_BYTES_MAX);
        if valid { Ok(Self(key.into())) } else { Err(IdentityError::Key) }
    }

    /// A key that nobody else has: 128 bits in hexadecimal digits, handed in as this module has no random source.
    pub(crate) fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}").into())
    }

    /// The ledger's own key for the event that records a bundle. No client can send it: it has a space.
    pub(crate) fn of_bundle(rid: Uuid) -> Self {
        Self(format!("certeus.bundle {rid}").into())
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A producer's numbers for the events of a request: `first`, and the following ones for the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerSequence {
    id: Box<str>,
    epoch: u32,
    first: u64,
}

impl ProducerSequence {
    /// Checks the parts.
    ///
    /// # Errors
    /// When one of them is not valid.
    pub fn new(id: &str, epoch: u32, first: u64) -> Result<Self, IdentityError> {
        if !is_producer_id(id) {
            return Err(IdentityError::Producer);
        }
        if first > SEQUENCE_MAX {
            return Err(IdentityError::Sequence);
        }
        Ok(Self { id: id.into(), epoch, first })
    }

    /// The producer's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The producer's life.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The number of the request's first event.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }
}

/// What makes two requests the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A key that the client chose.
    Key(IdempotencyKey),
    /// A producer's sequence numbers.
    Producer(ProducerSequence),
}

/// The digest under which a request of a ledger is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestKey(pub(crate) [u8; 32]);

/// The digest of what a request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BodyDigest(pub(crate) [u8; 32]);

impl Identity {
    /// Lengths stand before the parts, so that no two identities have the same input.
    pub(crate) fn key(&self, ledger: &str) -> RequestKey {
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        match self {
            Self::Key(key) => {
                part(KEY_DOMAIN);
                part(ledger.as_bytes());
                part(key.0.as_bytes());
            }
            Self::Producer(ProducerSequence { id, epoch, first }) => {
                part(PRODUCER_DOMAIN);
                part(ledger.as_bytes());
                part(id.as_bytes());
                part(&epoch.to_be_bytes());
                part(&first.to_be_bytes());
            }
        }
        RequestKey(hasher.finalize().into())
    }
}

impl BodyDigest {
    /// Of a body, and of whatever else of the request changes its outcome.
    ///
    /// The identity goes in as a salt: whoever reads the digest, which may outlive an erased payload by some days, and does not
    /// know the client's key, cannot test guesses of the body.
    pub(crate) fn of(identity: &Identity, options: &[u8], body: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(BODY_DOMAIN);
        hasher.update(identity.key("").0);
        hasher.update((options.len() as u64).to_be_bytes());
        hasher.update(options);
        hasher.update(body);
        Self(hasher.finalize().into())
    }
}

/// Days whose requests are remembered together: one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period(u32);

impl Period {
    fn of(day: Day) -> Self {
        Self(day.number() / PERIOD_DAYS)
    }

    /// The one or two periods that a request of a day is entered into, in order.
    pub(crate) fn of_request(day: Day) -> impl Iterator<Item = Self> {
        let (today, tomorrow) = (Self::of(day), Self::of(day.next()));
        std::iter::once(today).chain((tomorrow != today).then_some(tomorrow))
    }

    /// The oldest period that is still needed: requests of the day before may be under way.
    pub(crate) fn oldest_needed(today: Day) -> Self {
        Self::of(today.previous())
    }

    /// As the column of the table: its number since 1970.
    pub(crate) fn number(self) -> i32 {
        i32::try_from(self.0).unwrap_or(i32::MAX)
    }

    /// Its first day.
    pub(crate) fn first_day(self) -> Day {
        Day::of_number(self.0.saturating_mul(PERIOD_DAYS))
    }
}

/// Whether a text can be a producer's id.
pub(crate) fn is_producer_id(text: &str) -> bool {
    is_visible_ascii(text, PRODUCER_BYTES_MAX)
}

fn is_visible_ascii(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn key(text: &str) -> Identity {
        Identity::Key(IdempotencyKey::new(text).unwrap())
    }

    fn producer(id: &str, epoch: u32, first: u64) -> Identity {
        Identity::Producer(ProducerSequence::new(id, epoch, first).unwrap())
    }

    #[test]
    fn identities_that_differ_have_digests_that_differ() {
        let identities = [
            (key("a"), "l"),
            (key("la"), ""),
            (key("b"), "l"),
            (producer("a", 0, 0), "l"),
            (producer("a", 0, 1), "l"),
            (producer("a", 1, 0), "l"),
            (producer("la", 0, 0), ""),
        ];
        let digests: HashSet<_> = identities.iter().map(|(identity, ledger)| identity.key(ledger)).collect();
        assert_eq!(digests.len(), identities.len());
        let bodies = [(&b"a"[..], &b"bc"[..]), (b"ab", b"c"), (b"", b"abc")];
        let digest = |salt, (options, body)| BodyDigest::of(&key(salt), options, body).0;
        let digests: HashSet<_> = bodies.iter().flat_map(|of| [digest("k", *of), digest("l", *of)]).collect();
        assert_eq!(digests.len(), 2 * bodies.len());
    }

    #[test]
    fn limits_are_exact() {
        for (text, valid) in [
            ("", false),
            ("a", true),
            ("~!", true),
            ("a b", false),
            ("\u{e9}", false),
            ("a\u{7f}", false),
            (&"k".repeat(IDEMPOTENCY_KEY_BYTES_MAX), true),
            (&"k".repeat(IDEMPOTENCY_KEY_BYTES_MAX + 1), false),
        ] {
            assert_eq!(IdempotencyKey::new(text).is_ok(), valid, "{text:?}");
        }
        let long = "p".repeat(PRODUCER_BYTES_MAX + 1);
        assert!(ProducerSequence::new(&long[1..], 0, SEQUENCE_MAX).is_ok());
        assert_eq!(ProducerSequence::new(&long, 0, 0), Err(IdentityError::Producer));
        assert_eq!(ProducerSequence::new("p", 0, SEQUENCE_MAX + 1), Err(IdentityError::Sequence));
    }

    /// The rule on which uniqueness across midnight rests.
    #[test]
    fn days_that_follow_each_other_share_a_period_and_what_is_needed_is_kept() {
        let periods = |day: Day| Period::of_request(day).collect::<Vec<_>>();
        let mut day = Day::of_number(20_000);
        let mut twice = 0;
        for _ in 0..30 {
            let (today, tomorrow) = (periods(day), periods(day.next()));
            assert!(today.is_sorted() && today.iter().any(|period| tomorrow.contains(period)), "{today:?}");
            // Also for those who are a day behind.
            assert!(Period::oldest_needed(day.next()) <= today[0]);
            assert!(Period::of(today[0].first_day()) == today[0] && today[0].first_day() <= day);
            twice += today.len() - 1;
            day = day.next();
        }
        assert_eq!(twice, 10);
    }
}
