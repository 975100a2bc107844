//! One spooled request, and its bytes: everything that is needed to submit it again (`docs/formats/spool.md`).
//!
//! Owns the record's layout. Pure. Keeps only the events that were accepted, each as it came.

use bytes::{BufMut, Bytes};

use crate::request::{BodyDigest, IdempotencyKey, Identity, ProducerSequence};
use crate::submission::{self, Submission};

/// Bytes of the longest record: more than a pod takes in one request, with the lengths of its events.
pub(crate) const RECORD_BYTES_MAX: usize = 64 << 20;

const KEY: u8 = 1;
const PRODUCER: u8 = 2;

/// Why bytes are not a record. As a checksum covers them, this means another version or a defect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// A field reaches beyond the end.
    #[error("the record is cut short")]
    Short,
    /// A field has a value that this version does not know.
    #[error("the record's {0} is not one that this version knows")]
    Unknown(&'static str),
    /// The events are not events.
    #[error("the record's events cannot be read")]
    Events(#[from] submission::Error),
}

/// The bytes of a request that was admitted at a time, in milliseconds since the Unix epoch.
///
/// # Panics
/// When the request has no identity: submitted again, it could be stored twice.
pub(crate) fn encode(admitted_ms: u64, submission: &Submission) -> Vec<u8> {
    let (identity, BodyDigest(digest)) = submission.identity().expect("a spooled request has an identity");
    let bytes: usize = submission.events().map(|event| event.payload.len() + 4).sum();
    let mut out = Vec::with_capacity(bytes + 512);
    out.put_u64(admitted_ms);
    match identity {
        Identity::Key(key) => {
            out.put_u8(KEY);
            put_text(&mut out, key.as_str());
        }
        Identity::Producer(producer) => {
            out.put_u8(PRODUCER);
            put_text(&mut out, producer.id());
            out.put_u32(producer.epoch());
            out.put_u64(producer.first());
        }
    }
    out.put_slice(digest);
    out.put_u32(narrow(submission.len()));
    for event in submission.events() {
        out.put_u32(narrow(event.payload.len()));
    }
    for event in submission.events() {
        out.put_slice(event.payload);
    }
    out
}

/// When a record's request was admitted; 0 when the bytes are no record.
pub(crate) fn admitted_ms(record: &[u8]) -> u64 {
    record.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The request of a record; its events are not copied.
pub(crate) fn decode(record: Bytes) -> Result<Submission, DecodeError> {
    let mut rest = Fields(record);
    let _admitted_ms: [u8; 8] = rest.array()?;
    let identity = match rest.u8()? {
        KEY => {
            let key = rest.text("key")?;
            Identity::Key(IdempotencyKey::new(&key).map_err(|_invalid| DecodeError::Unknown("key"))?)
        }
        PRODUCER => {
            let (id, epoch, first) = (rest.text("producer")?, rest.u32()?, rest.array()?);
            let producer = ProducerSequence::new(&id, epoch, u64::from_be_bytes(first));
            Identity::Producer(producer.map_err(|_invalid| DecodeError::Unknown("producer"))?)
        }
        _ => return Err(DecodeError::Unknown("kind of identity")),
    };
    let digest = BodyDigest(rest.array()?);
    let count = rest.u32()? as usize;
    // Each event has a length, so the number of events is bounded by the record's own size.
    let lengths = rest.take(count.checked_mul(4).ok_or(DecodeError::Short)?)?;
    let lengths = lengths.as_chunks::<4>().0.iter().map(|length| u32::from_be_bytes(*length) as usize);
    Ok(Submission::restore(rest.0, lengths, (identity, digest))?)
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).expect("a request body is bounded far below 4 GiB")
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Keys have at most 255 bytes, producers' ids fewer.
    out.put_u8(u8::try_from(text.len()).expect("an identity was checked"));
    out.put_slice(text.as_bytes());
}

/// What is left to read.
struct Fields(Bytes);

impl Fields {
    fn take(&mut self, count: usize) -> Result<Bytes, DecodeError> {
        if count > self.0.len() { Err(DecodeError::Short) } else { Ok(self.0.split_to(count)) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(&self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let length = usize::from(self.u8()?);
        let bytes = self.take(length)?;
        String::from_utf8(bytes.into()).map_err(|_not_text| DecodeError::Unknown(field))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::submission::{Format, Limits, OnBadEvent};

    fn parse(body: &str, format: Format, identity: Identity) -> Submission {
        let limits = Limits { request_events_max: 100, event_bytes_max: 1000, encrypted_fields: None };
        let body = Bytes::copy_from_slice(body.as_bytes());
        let parsed = Submission::parse(body, format, &limits, OnBadEvent::RefuseOne).unwrap();
        parsed.submission.unwrap().identified(identity, &[1, 2]).unwrap()
    }

    fn identities() -> impl Strategy<Value = Identity> {
        let key = "[!-~]{1,255}".prop_map(|key| Identity::Key(IdempotencyKey::new(&key).unwrap()));
        let producer = ("[!-~]{1,128}", any::<u32>(), 0..u64::MAX / 4).prop_map(|(id, epoch, first)| {
            Identity::Producer(ProducerSequence::new(&id, epoch, first).unwrap())
        });
        prop_oneof![key, producer]
    }

    proptest! {
        #[test]
        fn a_request_comes_back_as_it_was_and_no_prefix_of_it_does(
            identity in identities(),
            events in proptest::collection::vec(("[a-zé\"\\\\]{1,9}", 0..9_u8, "[ \n]{0,2}"), 1..6),
            json in any::<bool>(),
            admitted_ms in any::<u64>(),
        ) {
            let events: Vec<String> = events
                .iter()
                .map(|(kind, n, space)| {
                    let space = if json { space.as_str() } else { " " };
                    let kind = serde_json::to_string(kind).unwrap();
                    format!("{{\"type\":{kind},{space}\"timestamp\":{n}, \"case_id\":{kind}}}")
                })
                .collect();
            // One is refused, and so not kept.
            let (format, body) = if json {
                (Format::Json, format!("[ {} ,{{}}]", events.join(" , ")))
            } else {
                (Format::Ndjson, format!("\n{}\n{{}}\n", events.join("\n\n")))
            };
            let submission = parse(&body, format, identity);
            let bytes = Bytes::from(encode(admitted_ms, &submission));
            prop_assert_eq!(super::admitted_ms(&bytes), admitted_ms);
            for end in 0..bytes.len() {
                prop_assert!(decode(bytes.slice(..end)).is_err());
            }
            let restored = decode(bytes).unwrap();
            prop_assert_eq!(restored.identity(), submission.identity());
            let of = |submission: &Submission| -> Vec<(String, i64, Vec<u8>)> {
                let events = submission.events();
                events.map(|event| (event.kind.to_owned(), event.time.micros(), event.payload.to_vec())).collect()
            };
            prop_assert_eq!(of(&restored), of(&submission));
            prop_assert!(restored.cases().eq(submission.cases()));
            prop_assert_eq!(restored.len(), events.len());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = decode(bytes.into());
        }
    }

    /// Brackets around the events would count as a level.
    #[test]
    fn an_event_may_be_as_deep_as_when_it_came() {
        let body =
            format!("{{\"type\":\"a\",\"timestamp\":1,\"x\":{}1{}}}", "[".repeat(127), "]".repeat(127));
        let identity = Identity::Key(IdempotencyKey::new("k").unwrap());
        let submission = parse(&body, Format::Ndjson, identity);
        assert_eq!(decode(encode(1, &submission).into()).unwrap().len(), 1);
    }
}
