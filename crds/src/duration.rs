//! Durations as operators write them: `100ms`, `5m`, `1h30m`, `90d`.
//!
//! The syntax is that of Prometheus (units `y w d h m s ms`, largest first, each at most once, or a bare `0`), so that rules
//! port unchanged; a year is 365 days. Resolution is one millisecond. The printed form is canonical: parsing it gives the same value.

use std::fmt;
use std::str::FromStr;
use std::time;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What the API server accepts; the same language as [`Duration::from_str`], overflow aside.
pub(crate) const PATTERN: &str =
    "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$";

/// Unit and its length in milliseconds, largest first.
const UNITS: [(&str, u64); 7] = [
    ("y", 31_536_000_000),
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// A span of time with millisecond resolution, written like `1h30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration {
    millis: u64,
}

/// Why a text is not a [`Duration`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form `1h30m`.
    #[error(
        "{0:?} is not a duration; write numbers with units y, w, d, h, m, s, ms, largest first, such as 100ms, 5m or 1h30m"
    )]
    Syntax(String),
    /// More milliseconds than fit 63 bits.
    #[error("duration {0:?} is too long")]
    TooLong(String),
}

impl Duration {
    /// The longest duration; 63 bits, so that it fits the integers of every system that reads it.
    pub const MAX: Self = Self { millis: i64::MAX as u64 };

    /// A duration of whole milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self { millis }
    }

    /// A duration of whole seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self { millis: secs * 1000 }
    }

    /// Length in milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.millis
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        Self::from_millis(duration.millis)
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        if text == "0" {
            return Ok(Self::default());
        }
        let syntax = || DurationError::Syntax(text.to_owned());
        let too_long = || DurationError::TooLong(text.to_owned());
        let mut rest = text;
        let mut units = UNITS.iter();
        let mut millis: u64 = 0;
        if rest.is_empty() {
            return Err(syntax());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = after.split_at(letters);
            // Searching only what is left of the list is what demands "largest first, each once".
            let (_, unit_millis) = units.find(|(name, _)| *name == unit).ok_or_else(syntax)?;
            if number.is_empty() {
                return Err(syntax());
            }
            let number: u64 = number.parse().map_err(|_overflow| too_long())?;
            millis = number
                .checked_mul(*unit_millis)
                .and_then(|part| millis.checked_add(part))
                .ok_or_else(too_long)?;
            rest = after;
        }
        if millis > Self::MAX.millis { Err(too_long()) } else { Ok(Self { millis }) }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.millis;
        for (unit, unit_millis) in UNITS {
            // Years and weeks are read but only printed when they say it exactly: `90d`, not `12w6d`.
            let exact_only = unit == "y" || unit == "w";
            if rest < unit_millis || (exact_only && !self.millis.is_multiple_of(unit_millis)) {
                continue;
            }
            write!(f, "{}{unit}", rest / unit_millis)?;
            rest %= unit_millis;
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // 32 characters hold every duration up to `MAX`; the bound keeps the cost estimate of CEL rules low.
        json_schema!({ "type": "string", "pattern": PATTERN, "minLength": 1, "maxLength": 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, millis: u64, printed: &str) {
        let duration: Duration = text.parse().unwrap();
        assert_eq!((duration.as_millis(), duration.to_string().as_str()), (millis, printed), "{text}");
    }

    #[test]
    fn reads_what_prometheus_reads_and_prints_it_canonically() {
        check("0", 0, "0s");
        check("0s", 0, "0s");
        check("100ms", 100, "100ms");
        check("300s", 300_000, "5m");
        check("1h30m", 5_400_000, "1h30m");
        check("1m1ms", 60_001, "1m1ms");
        check("90d", 7_776_000_000, "90d");
        check("2w", 1_209_600_000, "2w");
        check("1y", 31_536_000_000, "1y");
        check("1d1s", 86_401_000, "1d1s");
        // Two weeks and one second is no whole number of weeks, so days carry it.
        check("2w1s", 1_209_601_000, "14d1s");
    }

    #[test]
    fn refuses_other_forms_and_says_what_is_right() {
        for bad in
            ["", " ", "5", "m", "5 m", "-5m", "1.5h", "5m1h", "1m1m", "1s1m", "5µs", "1M", "0x", "00", "٣s"]
        {
            let error = bad.parse::<Duration>().unwrap_err();
            assert_eq!(error, DurationError::Syntax(bad.to_owned()));
            assert!(error.to_string().contains("1h30m"), "{error}");
        }
        for long in ["99999999999999999999s", "18446744073709551615s", "292471209y"] {
            assert_eq!(long.parse::<Duration>().unwrap_err(), DurationError::TooLong(long.to_owned()));
        }
    }

    #[test]
    fn is_a_string_on_the_wire() {
        assert_eq!(serde_json::to_value(Duration::from_millis(100)).unwrap(), "100ms");
        assert!(serde_json::from_str::<Duration>("100").is_err());
    }

    proptest! {
        #[test]
        fn printing_and_parsing_round_trip(millis in 0..=Duration::MAX.millis) {
            let duration = Duration::from_millis(millis);
            let printed = duration.to_string();
            prop_assert!(printed.len() <= 32, "{}", printed);
            prop_assert_eq!(printed.parse::<Duration>().unwrap(), duration);
        }

        #[test]
        fn parsing_any_text_never_panics(text in "[0-9ywdhms .-]{0,24}") {
            if let Ok(duration) = text.parse::<Duration>() {
                prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
            }
        }
    }
}
