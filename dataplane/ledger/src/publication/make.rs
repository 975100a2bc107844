//! Makes bundles: reads the events, proves each against one checkpoint, and signs.
//!
//! Stores nothing.

use std::collections::HashSet;

use certeus_tlog::note::SignedNote;
use uuid::{Builder, Uuid};

use super::{PublicationError, SEAL_WAIT, blocking};
use crate::bundle::{self, Bundle, Claims, Entry};
use crate::ledger::Ledger;
use crate::log::{Latest, LogError, extra};
use crate::store::{Content, StoredEvent};
use crate::timestamp::Timestamp;
use crate::writer::unix_ms;

impl Ledger {
    /// Makes and signs a bundle of events, all of them proven against one checkpoint, which is waited for if need be. Gives its name
    /// and the JWS. `strict`: see [`bundle::check_strict`].
    ///
    /// # Errors
    /// When an event is unknown, the bundle too large, or something cannot be proven.
    pub async fn bundle(
        &self,
        claims: Claims,
        ids: &[Uuid],
        strict: bool,
    ) -> Result<(Uuid, String), PublicationError> {
        let keys = self.signing_keys().ok_or(LogError::Off)?;
        let _turn = self.bundling_turn().await?;
        let found = self.entries(ids).await?;
        if strict {
            let proven: Vec<_> =
                found.iter().map(|(event, _)| (event.id, event.payload().is_none())).collect();
            bundle::check_strict(&claims, &proven)?;
        }
        let size = found.iter().map(|(event, _)| event.index + 1).max().unwrap_or(0);
        let latest = self.sealed(size, SEAL_WAIT).await?;
        let mut entries = Vec::with_capacity(found.len());
        for (event, extra) in found {
            entries.push(self.prove_entry(event, extra, &latest).await?);
        }
        let rid = Builder::from_unix_timestamp_millis(unix_ms(), &rand::random()).into_uuid();
        let bundle = Bundle {
            rid,
            origin: keys.origin().to_owned(),
            issued_at: now(),
            ledger: self.name().to_owned(),
            claims,
            entries,
            checkpoint: SignedNote::parse(latest.signed.note.as_bytes()).map_err(|_| LogError::Unproven)?,
        };
        let ledger = self.clone();
        let jws = blocking(move || {
            let keys = ledger.signing_keys().ok_or(LogError::Off)?;
            Ok(bundle.sign(keys)?)
        });
        Ok((rid, jws.await?))
    }

    /// The events of these ids, and what makes their log entries.
    async fn entries(&self, ids: &[Uuid]) -> Result<Vec<(StoredEvent, Vec<u8>)>, PublicationError> {
        if ids.len() > bundle::ENTRIES_MAX {
            return Err(bundle::Error::TooManyEntries(ids.len()).into());
        }
        let mut seen = HashSet::new();
        if let Some((position, id)) = ids.iter().enumerate().find(|(_, id)| !seen.insert(**id)) {
            return Err(bundle::Error::Repeated { position, id: *id }.into());
        }
        let (mut found, mut bytes) = (Vec::with_capacity(ids.len()), 0);
        for (position, id) in ids.iter().enumerate() {
            let mut hashed = Vec::new();
            let event = self.event_in(*id, &mut hashed).await?;
            let event = event.ok_or(PublicationError::Unknown { position, id: *id })?;
            // Not read further than can be used: Base64 makes three bytes four.
            bytes += event.payload().map_or(0, |payload| payload.len().div_ceil(3) * 4);
            let max = bundle::PAYLOAD_BYTES_MAX;
            if bytes > max {
                return Err(bundle::Error::TooLarge { part: "payload", bytes, max }.into());
            }
            let extra = extra(&event, &hashed);
            found.push((event, extra));
        }
        Ok(found)
    }

    async fn prove_entry(
        &self,
        event: StoredEvent,
        extra: Vec<u8>,
        latest: &Latest,
    ) -> Result<Entry, LogError> {
        let proof = self.entry_proof(event.index, &event.entry, extra, latest).await?;
        let payload = match event.content {
            Content::Intact { payload, .. } => Some(payload),
            Content::Erased(_) => None,
        };
        Ok(Entry { id: event.id, index: proof.index, payload, extra: proof.extra, hashes: proof.hashes })
    }
}

/// The time in whole seconds.
fn now() -> Timestamp {
    let micros = i64::try_from(unix_ms() / 1000 * 1_000_000).unwrap_or(0);
    Timestamp::from_micros(micros).unwrap_or(Timestamp::MIN)
}
