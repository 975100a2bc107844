//! One spooled request, and its bytes: everything that is needed to submit it again (`docs/formats/spool.md`).
//!
//! Owns the record's layout. Pure. Never decides whether a request is valid: the body was checked when it came, and
//! holds only events that were accepted.

use bytes::{BufMut, Bytes};

use crate::submission::Format;

/// Bytes of the longest idempotency key or producer id.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Bytes of the longest body: above what the pod takes in one request.
pub(crate) const BODY_BYTES_MAX: usize = 64 << 20;
/// Bytes of the longest record: the body, and fields that are far shorter than this.
pub(crate) const RECORD_BYTES_MAX: usize = BODY_BYTES_MAX + 4096;

/// Where a producer says the request stands among its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The producer's id.
    pub(crate) producer: String,
    /// The producer's epoch.
    pub(crate) epoch: u64,
    /// The request's sequence number.
    pub(crate) sequence: u64,
}

/// A request as the spool keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// When it was admitted, in milliseconds since the Unix epoch.
    pub(crate) admitted_ms: u64,
    /// How the body is laid out.
    pub(crate) format: Format,
    /// Number of events in the body.
    pub(crate) event_count: u32,
    /// The key under which the request is stored once, however often it is submitted.
    pub(crate) key: String,
    /// What tells whether another request with this key is the same one.
    pub(crate) fingerprint: [u8; 32],
    /// The producer's place, when it gave one.
    pub(crate) place: Option<Place>,
    /// The events.
    pub(crate) body: Bytes,
}

/// Why bytes are not a record. As a checksum covers them, this means another version or a defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// A field reaches beyond the end.
    #[error("the record is cut short")]
    Short,
    /// A field has a value that this version does not know.
    #[error("the record's {0} is not one this version knows")]
    Unknown(&'static str),
}

const JSON: u8 = 1;
const NDJSON: u8 = 2;
const WITHOUT_PLACE: u8 = 0;
const WITH_PLACE: u8 = 1;

impl Record {
    /// Appends the record's bytes.
    ///
    /// # Panics
    /// When a name is longer than [`NAME_BYTES_MAX`]: the caller has checked it.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Self { admitted_ms, format, event_count, key, fingerprint, place, body } = self;
        out.reserve(body.len() + key.len() + 128);
        out.put_u64(*admitted_ms);
        out.put_u8(match format {
            Format::Json => JSON,
            Format::Ndjson => NDJSON,
        });
        out.put_u32(*event_count);
        put_name(out, key);
        out.put_slice(fingerprint);
        match place {
            None => out.put_u8(WITHOUT_PLACE),
            Some(Place { producer, epoch, sequence }) => {
                out.put_u8(WITH_PLACE);
                put_name(out, producer);
                out.put_u64(*epoch);
                out.put_u64(*sequence);
            }
        }
        out.put_slice(body);
    }

    /// Reads a record; the body is not copied.
    pub(crate) fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut rest = Fields(bytes);
        let admitted_ms = rest.u64()?;
        let format = match rest.u8()? {
            JSON => Format::Json,
            NDJSON => Format::Ndjson,
            _ => return Err(DecodeError::Unknown("format")),
        };
        let event_count = u32::from_be_bytes(rest.array()?);
        let key = rest.name("key")?;
        let fingerprint = rest.array()?;
        let place = match rest.u8()? {
            WITHOUT_PLACE => None,
            WITH_PLACE => {
                Some(Place { producer: rest.name("producer")?, epoch: rest.u64()?, sequence: rest.u64()? })
            }
            _ => return Err(DecodeError::Unknown("place")),
        };
        Ok(Self { admitted_ms, format, event_count, key, fingerprint, place, body: rest.0 })
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    assert!(name.len() <= NAME_BYTES_MAX, "a name of {} bytes reached the spool", name.len());
    out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.put_slice(name.as_bytes());
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

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn name(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let length = usize::from(self.u8()?);
        let bytes = self.take(length)?;
        String::from_utf8(bytes.into()).map_err(|_not_text| DecodeError::Unknown(field))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Record> {
        let place = ("[a-z]{1,255}", any::<u64>(), any::<u64>())
            .prop_map(|(producer, epoch, sequence)| Place { producer, epoch, sequence });
        (
            any::<(u64, bool, u32, [u8; 32])>(),
            "\\PC{0,60}",
            proptest::option::of(place),
            proptest::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(|((admitted_ms, json, event_count, fingerprint), key, place, body)| Record {
                admitted_ms,
                format: if json { Format::Json } else { Format::Ndjson },
                event_count,
                key,
                fingerprint,
                place,
                body: body.into(),
            })
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was_and_no_prefix_of_its_fields_is_one(record in records()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert!(bytes.len() <= RECORD_BYTES_MAX);
            let fields = bytes.len() - record.body.len();
            for end in 0..fields {
                let cut = Bytes::copy_from_slice(&bytes[..end]);
                prop_assert_eq!(Record::decode(cut), Err(DecodeError::Short));
            }
            prop_assert_eq!(Record::decode(bytes.into()), Ok(record));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = Record::decode(bytes.into());
        }
    }
}
