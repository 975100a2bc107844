//! Units in configuration values: durations such as `100ms` and sizes such as `64Mi`, as in the LedgerCluster resource.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A duration of whole milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Millis(pub(super) Duration);

/// A duration of whole days, 1 to [`DAYS_MAX`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Days(pub(super) Duration);

/// A hundred years: events are kept for ever by leaving the key out.
const DAYS_MAX: u64 = 36_500;

/// A number of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes(pub(super) usize);

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

fn millis(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return None,
    };
    number.checked_mul(factor).map(Duration::from_millis)
}

fn days(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let valid = unit == "d" && (1..=DAYS_MAX).contains(&number);
    valid.then(|| Duration::from_secs(number * 86_400))
}

fn bytes(text: &str) -> Option<usize> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return None,
    };
    usize::try_from(number.checked_mul(factor)?).ok()
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = millis(&text).map(Self);
        found.ok_or_else(|| {
            de::Error::custom(format_args!("{text:?} is not a duration such as 100ms, 5s or 1m"))
        })
    }
}

impl<'de> Deserialize<'de> for Days {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = days(&text).map(Self);
        found.ok_or_else(|| {
            de::Error::custom(format_args!(
                "{text:?} is not a number of days such as 400d, 1d to {DAYS_MAX}d"
            ))
        })
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        let text = match Raw::deserialize(deserializer)? {
            Raw::Number(number) => number.to_string(),
            Raw::Text(text) => text,
        };
        let found = bytes(&text).map(Self);
        found.ok_or_else(|| {
            de::Error::custom(format_args!("{text:?} is not a size such as 64Mi, 1Gi or 1048576"))
        })
    }
}
