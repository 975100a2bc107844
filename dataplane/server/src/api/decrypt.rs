//! Encrypted fields in replies: who sees them decrypted, and what the reply says about it.
//!
//! Decides by the key that a caller showed and by what it asked for. Never hides that a reply is not what is stored:
//! log entries and proofs cover the stored bytes alone.

use axum::http::{HeaderMap, HeaderValue, header};
use certeus_ledger::field::{Decrypted, KeyId};
use certeus_ledger::{Ledger, StoredEvent};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::auth::Access;
use crate::problem::{Code, Error};

/// Above so many bytes decryption runs where it does not hold up other requests.
const DECRYPT_INLINE_BYTES_MAX: usize = 1 << 20;

/// How to show an event.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct DecryptQuery {
    /// Whether encrypted fields are decrypted; unless given, for those who may see them. With `false` the event is shown
    /// as it is stored, which is what proofs cover.
    pub(crate) decrypt: Option<bool>,
}

/// An event as a caller sees it.
pub(crate) struct Seen {
    /// The event, with its payload as stored.
    pub(crate) stored: StoredEvent,
    /// The payload with its values decrypted, where something was.
    pub(crate) decrypted: Option<Vec<u8>>,
    /// The key that would be needed to decrypt it.
    pub(crate) missing_key: Option<KeyId>,
}

impl Seen {
    /// The payload that is shown, unless it was erased.
    pub(crate) fn payload(&self) -> Option<&[u8]> {
        self.decrypted.as_deref().or_else(|| self.stored.payload())
    }
}

/// Whether fields are decrypted for a caller.
///
/// # Errors
/// When it asks for what it may not see.
pub(crate) fn is_wanted(access: Access, asked: Option<bool>) -> Result<bool, Error> {
    if asked == Some(true) && !access.decrypt {
        let detail =
            "this API key does not decrypt: show the key of CERTEUS_DECRYPT_API_KEY, or leave `decrypt` out";
        return Err(Error::new(Code::Forbidden, detail));
    }
    Ok(asked.unwrap_or(access.decrypt))
}

/// Shows events as they are stored, or decrypted where that is `wanted` and possible.
///
/// # Errors
/// When the key is here, and what is stored about it does not fit.
pub(crate) fn see(ledger: &Ledger, events: Vec<StoredEvent>, wanted: bool) -> Result<Vec<Seen>, Error> {
    let bytes: usize = events.iter().filter_map(StoredEvent::payload).map(<[u8]>::len).sum();
    let decrypt = || {
        let mut decryptor = ledger.decryptor();
        let see = |stored: StoredEvent| {
            let key_id = stored.key_id.filter(|_| wanted);
            let (decrypted, missing_key) = match key_id.zip(stored.payload()) {
                None => (None, None),
                Some((key_id, payload)) => match decryptor.decrypt(stored.id, &key_id, payload)? {
                    Decrypted::Nothing => (None, None),
                    Decrypted::Payload(payload) => (Some(payload), None),
                    Decrypted::MissingKey(id) => (None, Some(id)),
                },
            };
            Ok(Seen { stored, decrypted, missing_key })
        };
        events.into_iter().map(see).collect()
    };
    if wanted && bytes > DECRYPT_INLINE_BYTES_MAX { tokio::task::block_in_place(decrypt) } else { decrypt() }
}

/// Says in a reply's headers what was decrypted, for those that cannot say it beside each event.
pub(crate) fn describe(events: &[Seen], headers: &mut HeaderMap) {
    let mut missing: Vec<String> =
        events.iter().filter_map(|seen| seen.missing_key).map(|id| id.to_string()).collect();
    missing.sort_unstable();
    missing.dedup();
    if let (false, Ok(ids)) = (missing.is_empty(), HeaderValue::from_str(&missing.join(", "))) {
        headers.insert("certeus-missing-key-ids", ids);
    }
    if events.iter().any(|seen| seen.decrypted.is_some()) {
        headers.insert("certeus-decrypted", HeaderValue::from_static("true"));
        // Caches know nothing of keys in X-API-Key.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
