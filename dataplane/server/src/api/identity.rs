//! The headers by which a client names its request, so that it may be sent again safely.
//!
//! Owns their syntax. What they mean, `certeus_ledger::request` says.

use axum::http::HeaderMap;
use certeus_ledger::request::{IDEMPOTENCY_KEY_BYTES_MAX, IdempotencyKey, Identity, ProducerSequence};
use utoipa::IntoParams;

use crate::problem::{Code, Error};

const KEY: &str = "idempotency-key";
const PRODUCER_ID: &str = "producer-id";
const PRODUCER_EPOCH: &str = "producer-epoch";
const PRODUCER_SEQUENCE: &str = "producer-sequence";

/// The headers, for the API's description.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes headers, which are read one by one")]
pub(super) struct IdentityHeaders {
    /// The client's name for this request: 1 to 255 visible ASCII characters, best in double quotes. Sent again with the same
    /// key within 24 h, the request is stored once and gets the same reply, with `Idempotency-Replayed: true`.
    #[param(rename = "Idempotency-Key", example = "\"8e03978e-40d5-43e8-bc93-6894a57f9324\"")]
    idempotency_key: Option<String>,
    /// Instead of a key: who numbers the events, 1 to 128 visible ASCII characters. All three headers belong together.
    #[param(rename = "Producer-Id", max_length = 128)]
    producer_id: Option<String>,
    /// The life of the producer. A greater one than before fences the old one and begins with sequence 0.
    #[param(rename = "Producer-Epoch")]
    producer_epoch: Option<u32>,
    /// Number of the request's first event; the others count up by one. It must follow the producer's last event.
    #[param(rename = "Producer-Sequence")]
    producer_sequence: Option<u64>,
}

/// The identity that the headers give a request.
///
/// # Errors
/// When they are malformed, incomplete, or both kinds are there.
pub(super) fn identity_of(headers: &HeaderMap) -> Result<Option<Identity>, Error> {
    let key = single(headers, KEY)?;
    let producer = [PRODUCER_ID, PRODUCER_EPOCH, PRODUCER_SEQUENCE].map(|name| single(headers, name));
    let [id, epoch, sequence] = producer;
    match (key, id?, epoch?, sequence?) {
        (None, None, None, None) => Ok(None),
        (Some(key), None, None, None) => Ok(Some(Identity::Key(idempotency_key(key)?))),
        (None, Some(id), Some(epoch), Some(sequence)) => {
            let epoch = number(PRODUCER_EPOCH, epoch)?;
            let sequence = number(PRODUCER_SEQUENCE, sequence)?;
            Ok(Some(Identity::Producer(ProducerSequence::new(id, epoch, sequence)?)))
        }
        (Some(_), ..) => Err(invalid("send either Idempotency-Key or the Producer headers, not both")),
        (None, ..) => Err(invalid("Producer-Id, Producer-Epoch and Producer-Sequence belong together")),
    }
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(Code::InvalidRequest, detail)
}

/// A header's value; one that is repeated or not ASCII is refused, since nobody could tell what was meant.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(format!("{name} is there more than once")));
    }
    let text = value
        .to_str()
        .map_err(|_not_ascii| invalid(format!("{name} has other than visible ASCII characters")))?;
    Ok(Some(text.trim()))
}

/// A string of RFC 8941, section 3.3.3, as the draft for this header wants it, or the bare key, as most clients send it.
fn idempotency_key(value: &str) -> Result<IdempotencyKey, Error> {
    let Some(quoted) = value.strip_prefix('"') else { return Ok(IdempotencyKey::new(value)?) };
    let broken =
        || invalid(format!("{KEY} is not a string in double quotes, where only \\\" and \\\\ are escapes"));
    let mut key = String::with_capacity(quoted.len().min(IDEMPOTENCY_KEY_BYTES_MAX));
    let mut characters = quoted.chars();
    loop {
        match characters.next().ok_or_else(broken)? {
            '"' => break,
            '\\' => key.push(characters.next().filter(|next| matches!(next, '"' | '\\')).ok_or_else(broken)?),
            plain => key.push(plain),
        }
    }
    if !characters.as_str().is_empty() {
        return Err(broken());
    }
    Ok(IdempotencyKey::new(&key)?)
}

/// Decimal digits alone: no sign, as `parse` would take.
fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Error> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.ok_or_else(|| {
        invalid(format!("{name} is {text:?}, and must be a decimal number that is not too large"))
    })
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn identity(headers: &[(&'static str, &str)]) -> Option<Option<Identity>> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        identity_of(&map).ok()
    }

    #[test]
    fn keys_are_read_quoted_and_bare() {
        let key = |text: &str| Some(Some(Identity::Key(IdempotencyKey::new(text).unwrap())));
        for (value, text) in
            [("abc", "abc"), (r#""abc""#, "abc"), (r#" "a\"\\" "#, r#"a"\"#), ("a\"b", "a\"b")]
        {
            assert_eq!(identity(&[(KEY, value)]), key(text), "{value}");
        }
        for value in ["", "\"", "\"\"", "\"a", "\"a\"b", r#""a\n""#, "a b", "\"a b\"", &"x".repeat(256)] {
            assert_eq!(identity(&[(KEY, value)]), None, "{value}");
        }
        assert_eq!(identity(&[(KEY, "a"), (KEY, "a")]), None);
        assert_eq!(identity(&[]), Some(None));
    }

    #[test]
    fn producer_headers_belong_together_and_exclude_a_key() {
        let all = [(PRODUCER_ID, "p"), (PRODUCER_EPOCH, "4294967295"), (PRODUCER_SEQUENCE, "12")];
        let expected = Identity::Producer(ProducerSequence::new("p", u32::MAX, 12).unwrap());
        assert_eq!(identity(&all), Some(Some(expected)));
        for missing in 0..3 {
            let mut two = all.to_vec();
            two.remove(missing);
            assert_eq!(identity(&two), None);
        }
        assert_eq!(identity(&[all[0], all[1], all[2], (KEY, "a")]), None);
        for (name, value) in [
            (PRODUCER_EPOCH, "4294967296"),
            (PRODUCER_EPOCH, "+1"),
            (PRODUCER_SEQUENCE, ""),
            (PRODUCER_SEQUENCE, "9223372036854775808"),
        ] {
            let wrong: Vec<_> =
                all.iter().map(|(n, v)| if *n == name { (*n, value) } else { (*n, *v) }).collect();
            assert_eq!(identity(&wrong), None, "{name} {value}");
        }
    }
}
