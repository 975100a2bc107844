//! The events that the recorder sends. Each is a function of its number, so that the checker knows every byte, type and
//! time that must be in the database from the number alone. Their shapes are those that a careless store would change.

use crate::dice::mix;

/// Microseconds of event number 0: 2026-01-31T12:00:00Z.
const FIRST_TIME: i64 = 1_769_860_800_000_000;

/// One event, known by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event(pub u64);

impl Event {
    /// Its JSON, exactly as sent.
    #[must_use]
    pub fn json(self) -> String {
        let Self(number) = self;
        let time = self.time();
        match self.shape() {
            0 => format!(r#"{{"type":"payment.made","timestamp":{time},"n":{number},"amount":12.50}}"#),
            1 => format!("{{ \"n\":{number},\t\"timestamp\" : {time} ,\"type\":\"refund\\u002emade\" }}"),
            2 => format!(
                r#"{{"type":"caf\u00e9 ☕","timestamp":"{}","n":{number},"x":1E400,"x":-0.0}}"#,
                rfc3339(time)
            ),
            3 => format!(
                r#"{{"n":{number},"nested":{{"type":7,"timestamp":[]}},"type":"a\/b","timestamp":"{}"}}"#,
                rfc3339(time)
            ),
            _ => {
                let filler = "0123456789abcdef".repeat(usize::try_from(mix(!number) % 1200).unwrap_or(0));
                format!(r#"{{"type":"large","timestamp":{time},"n":{number},"filler":"{filler}"}}"#)
            }
        }
    }

    /// Its type, with JSON's escapes undone.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self.shape() {
            0 => "payment.made",
            1 => "refund.made",
            2 => "café ☕",
            3 => "a/b",
            _ => "large",
        }
    }

    /// Its time in microseconds since 1970.
    #[must_use]
    pub fn time(self) -> i64 {
        // Not in the order of numbers, as with producers whose clocks differ.
        FIRST_TIME + i64::try_from(mix(self.0) % 10_000_000_000).unwrap_or(0)
    }

    /// The number in an event's stored bytes.
    #[must_use]
    pub fn number_in(payload: &[u8]) -> Option<Self> {
        let key = br#""n":"#;
        let at = payload.windows(key.len()).position(|window| window == key)? + key.len();
        let digits = payload[at..].iter().take_while(|byte| byte.is_ascii_digit());
        digits.map(|digit| char::from(*digit)).collect::<String>().parse().ok().map(Self)
    }

    fn shape(self) -> u64 {
        // Large ones are rare.
        match mix(self.0) % 100 {
            99 => 4,
            other => other % 4,
        }
    }
}

fn rfc3339(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_json_and_carry_their_number() {
        for number in (0..2000).chain([u64::MAX]) {
            let json = Event(number).json();
            let _well_formed: &serde_json::value::RawValue =
                serde_json::from_str(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
            assert_eq!(Event::number_in(json.as_bytes()), Some(Event(number)));
        }
    }
}
