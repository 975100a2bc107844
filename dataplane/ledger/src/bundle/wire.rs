//! A bundle's bytes: a JWS in compact serialisation (RFC 7515) whose payload is JSON.
//!
//! Strict: the header has three members and no other, base64url has one spelling, and the payload has no unknown member.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use certeus_tlog::Hash;
use certeus_tlog::note::{Algorithm, JWS_SIGNATURE_BYTES, SignedNote, VerifierKey};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use uuid::{Uuid, Version};

use super::{BUNDLE_BYTES_MAX, Bundle, Claims, ENTRIES_MAX, Entry, Error, PAYLOAD_BYTES_MAX, Trust};
use crate::timestamp::Timestamp;

pub(super) const TYPE: &str = "certeus-bundle+jws";
pub(super) const VERSION: u64 = 1;
/// The one algorithm (RFC 8037), never chosen by who sends a bundle.
const ALGORITHM: &str = "EdDSA";
/// A header is far below this.
const HEADER_BYTES_MAX: usize = 1_024;
const MICROS_PER_SECOND: i64 = 1_000_000;

/// The header. What is no text in it is an error, and so is anything more, such as `crit`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    kid: Option<Cow<'a, str>>,
    typ: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload<'a> {
    v: u64,
    rid: Uuid,
    #[serde(borrow)]
    iss: Cow<'a, str>,
    iat: u64,
    #[serde(borrow)]
    ledger: Cow<'a, str>,
    #[serde(borrow)]
    claims: &'a RawValue,
    #[serde(borrow)]
    entries: Vec<WireEntry<'a>>,
    #[serde(borrow)]
    checkpoint: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEntry<'a> {
    id: Uuid,
    index: u64,
    /// The event, base64url; null when it was erased.
    event: Option<String>,
    /// Base64, as in a proof file.
    #[serde(borrow)]
    extra: Cow<'a, str>,
    /// Base64 each.
    hashes: Vec<String>,
}

/// The version alone, which says how to read the rest.
#[derive(Deserialize)]
struct Versioned {
    v: u64,
}

/// What is signed of a bundle.
pub(super) fn signing_input(bundle: &Bundle, key: &VerifierKey) -> Result<String, Error> {
    let Bundle { rid, origin, issued_at, ledger, claims, entries, checkpoint } = bundle;
    let entry = |entry: &Entry| WireEntry {
        id: entry.id,
        index: entry.index,
        event: entry.payload.as_ref().map(|payload| BASE64_URL_SAFE_NO_PAD.encode(payload)),
        extra: BASE64_STANDARD.encode(&entry.extra).into(),
        hashes: entry.hashes.iter().map(Hash::to_string).collect(),
    };
    let payload = Payload {
        v: VERSION,
        rid: *rid,
        iss: origin.into(),
        iat: u64::try_from(issued_at.micros() / MICROS_PER_SECOND).unwrap_or(0),
        ledger: ledger.into(),
        claims: claims.as_json(),
        entries: entries.iter().map(entry).collect(),
        checkpoint: checkpoint.to_string().into(),
    };
    let kid = format!("{:08x}", key.id());
    let header = Header { alg: ALGORITHM.into(), kid: Some(kid.into()), typ: Some(TYPE.into()) };
    let header = serde_json::to_vec(&header).map_err(Error::Header)?;
    let payload = serde_json::to_vec(&payload).map_err(Error::Payload)?;
    within("payload", payload.len(), PAYLOAD_BYTES_MAX)?;
    let mut input = BASE64_URL_SAFE_NO_PAD.encode(header);
    input.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(payload, &mut input);
    Ok(input)
}

/// The whole JWS.
pub(super) fn with_signature(mut input: String, signature: &[u8; JWS_SIGNATURE_BYTES]) -> String {
    input.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut input);
    input
}

fn within(part: &'static str, bytes: usize, max: usize) -> Result<(), Error> {
    if bytes <= max { Ok(()) } else { Err(Error::TooLarge { part, bytes, max }) }
}

/// The parts of a JWS: header, payload, signature.
fn parts(jws: &str) -> Option<[&str; 3]> {
    let (header, rest) = jws.split_once('.')?;
    let (payload, signature) = rest.split_once('.')?;
    (!signature.contains('.')).then_some([header, payload, signature])
}

fn decode(part: &'static str, text: &str) -> Result<Vec<u8>, Error> {
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Base64(part))
}

/// Reads a bundle whose signature is that of a trusted key.
pub(super) fn read(jws: &str, trust: &Trust) -> Result<Bundle, Error> {
    within("text", jws.len(), BUNDLE_BYTES_MAX)?;
    let [header, payload, signature] = parts(jws).ok_or(Error::Parts)?;
    within("header", header.len(), HEADER_BYTES_MAX)?;
    let input = &jws[..header.len() + 1 + payload.len()];
    let kid = key_id(&decode("header", header)?)?;
    let signature = decode("signature", signature)?;
    let signature = signature.try_into().map_err(|_| Error::Signature)?;
    // Two keys may have the same id: it has 32 bits.
    let mut keys = trust.keys.iter().filter(|key| {
        key.algorithm() == Algorithm::Ed25519
            && key.name() == trust.origin
            && format!("{:08x}", key.id()) == kid
    });
    match (keys.clone().next(), keys.any(|key| key.verify_jws(input, &signature).is_ok())) {
        (None, _) => return Err(Error::UnknownKey(kid)),
        (Some(_), false) => return Err(Error::Signature),
        (Some(_), true) => {}
    }
    let payload = decode("payload", payload)?;
    within("payload", payload.len(), PAYLOAD_BYTES_MAX)?;
    let Versioned { v } = serde_json::from_slice(&payload).map_err(Error::Payload)?;
    if v != VERSION {
        return Err(Error::Version(v));
    }
    checked(serde_json::from_slice(&payload).map_err(Error::Payload)?)
}

/// The key's id, from a header that is ours.
fn key_id(header: &[u8]) -> Result<String, Error> {
    let Header { alg, kid, typ } = serde_json::from_slice(header).map_err(Error::Header)?;
    if alg != ALGORITHM {
        return Err(Error::Algorithm(alg.into_owned()));
    }
    if typ.as_deref() != Some(TYPE) {
        return Err(Error::Type { found: typ.map(Cow::into_owned) });
    }
    Ok(kid.unwrap_or_default().into_owned())
}

fn checked(payload: Payload<'_>) -> Result<Bundle, Error> {
    let Payload { v: _, rid, iss, iat, ledger, claims, entries, checkpoint } = payload;
    if rid.get_version() != Some(Version::SortRand) {
        return Err(Error::Field("rid"));
    }
    let micros = i64::try_from(iat).ok().and_then(|seconds| seconds.checked_mul(MICROS_PER_SECOND));
    let issued_at = micros.and_then(|micros| Timestamp::from_micros(micros).ok());
    let issued_at = issued_at.ok_or(Error::Field("iat"))?;
    if entries.len() > ENTRIES_MAX {
        return Err(Error::TooManyEntries(entries.len()));
    }
    Ok(Bundle {
        rid,
        origin: iss.into_owned(),
        issued_at,
        ledger: ledger.into_owned(),
        claims: Claims::new(claims)?,
        entries: entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        checkpoint: SignedNote::parse(checkpoint.as_bytes())?,
    })
}

fn entry(entry: WireEntry<'_>) -> Result<Entry, Error> {
    let WireEntry { id, index, event, extra, hashes } = entry;
    let event = event.map(|event| BASE64_URL_SAFE_NO_PAD.decode(event)).transpose();
    let hashes: Result<_, _> = hashes.iter().map(|hash| Hash::from_base64(hash)).collect();
    Ok(Entry {
        id,
        index,
        payload: event.map_err(|_| Error::Field("entries.event"))?,
        extra: BASE64_STANDARD.decode(&*extra).map_err(|_| Error::Field("entries.extra"))?,
        hashes: hashes.map_err(|_| Error::Field("entries.hashes"))?,
    })
}

/// Header and payload of a bundle as JSON, for people to read. Verifies nothing.
///
/// # Errors
/// When it is not a JWS.
pub fn decoded(jws: &str) -> Result<String, Error> {
    let [header, payload, _] = parts(jws).ok_or(Error::Parts)?;
    let text = |name, part| String::from_utf8(decode(name, part)?).map_err(|_| Error::Field(name));
    Ok(format!(r#"{{"header":{},"payload":{}}}"#, text("header", header)?, text("payload", payload)?))
}

/// The members of an object, each of which is there once.
pub(super) struct Members<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let (mut members, mut names) = (Vec::new(), HashSet::new());
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("{name:?} is there more than once")));
            }
            members.push((name, value));
        }
        Ok(Members(members))
    }
}
