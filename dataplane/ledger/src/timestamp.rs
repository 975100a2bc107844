//! Event time: read from RFC 3339 text or from a Unix number in s, ms, us or ns, kept as microseconds.
//!
//! Owns the accepted range and the rule that tells the units apart. Never reads a clock.

use std::fmt;

/// Microseconds since the Unix epoch, within [`Timestamp::MIN`] to [`Timestamp::MAX`].
///
/// Finer digits stay in the payload, whose bytes are kept; PostgreSQL's `timestamptz` has microseconds too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// Why a value is not an event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither RFC 3339 nor a number.
    #[error("is not an RFC 3339 time such as 2026-01-31T12:00:00Z")]
    NotRfc3339,
    /// A number that is not a plain decimal one.
    #[error("is not a plain decimal number")]
    NotDecimal,
    /// Before 1970 or after 2199.
    #[error("is outside 1970-01-01 to 2199-12-31")]
    OutOfRange,
}

const MICROS_PER_SECOND: i64 = 1_000_000;

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const MIN: Self = Self(0);
    /// 2199-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self(7_258_118_400 * MICROS_PER_SECOND - 1);

    /// From microseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn from_micros(micros: i64) -> Result<Self, Error> {
        if (Self::MIN.0..=Self::MAX.0).contains(&micros) { Ok(Self(micros)) } else { Err(Error::OutOfRange) }
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    /// From RFC 3339 text; finer digits than microseconds are cut off.
    ///
    /// # Errors
    /// When the text is not RFC 3339 or the time is out of range.
    pub fn from_rfc3339(text: &str) -> Result<Self, Error> {
        // `jiff` also takes ISO 8601 forms that RFC 3339 does not have (weeks, no offset, a bracketed zone).
        let bytes = text.as_bytes();
        let shape = bytes.len() >= 20 && bytes[4] == b'-' && bytes[7] == b'-' && bytes[13] == b':';
        if !shape || !bytes[..4].iter().all(u8::is_ascii_digit) || text.contains('[') {
            return Err(Error::NotRfc3339);
        }
        // The dropped reason never says more than that it is not RFC 3339.
        let time: jiff::Timestamp = text.parse().map_err(|_: jiff::Error| Error::NotRfc3339)?;
        Self::from_micros(time.as_microsecond())
    }

    /// From a JSON number: Unix time whose unit follows from its magnitude.
    ///
    /// Below 1e11 it is seconds, below 1e14 milliseconds, below 1e17 microseconds, else nanoseconds: each unit then
    /// covers 1973 to 5138, and seconds from 1970 on. Decimals are read exactly, without a detour over `f64`.
    ///
    /// # Errors
    /// When it has an exponent, or is out of range.
    pub fn from_number(text: &str) -> Result<Self, Error> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if text.starts_with('-') {
            return Err(Error::OutOfRange);
        }
        if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
            return Err(Error::NotDecimal);
        }
        // 20 digits or more are out of range in every unit.
        let number: u64 = whole.parse().map_err(|_: std::num::ParseIntError| Error::OutOfRange)?;
        let (exponent, divisor) = match number {
            0..100_000_000_000 => (6, 1),
            100_000_000_000..100_000_000_000_000 => (3, 1),
            100_000_000_000_000..100_000_000_000_000_000 => (0, 1),
            _ => (0, 1000),
        };
        let decimals = fraction
            .bytes()
            .chain(std::iter::repeat(b'0'))
            .take(exponent)
            .fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let scale = (0..exponent).fold(1_u64, |scale, _| scale * 10);
        let micros = number / divisor * scale + decimals;
        // Above `i64::MAX` is out of range as well.
        i64::try_from(micros).map_err(|_| Error::OutOfRange).and_then(Self::from_micros)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, with as many decimals as are not zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => time.fmt(f),
            // Not reachable: the range above lies within that of `jiff`.
            Err(_) => write!(f, "{} us", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn micros(time: Result<Timestamp, Error>) -> Result<i64, Error> {
        time.map(Timestamp::micros)
    }

    #[test]
    fn rfc3339_is_read_in_any_offset_and_nothing_else_is() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Ok(0)),
            ("2026-01-31T12:00:00.123456789+02:00", Ok(1_769_853_600_123_456)),
            ("2026-01-31t12:00:00z", Ok(1_769_860_800_000_000)),
            ("2026-01-31 12:00:00Z", Ok(1_769_860_800_000_000)),
            ("2199-12-31T23:59:59.999999Z", Ok(Timestamp::MAX.micros())),
            ("2200-01-01T00:00:00Z", Err(Error::OutOfRange)),
            ("1969-12-31T23:59:59Z", Err(Error::OutOfRange)),
            ("2026-02-30T00:00:00Z", Err(Error::NotRfc3339)),
            ("2026-01-31T12:00:00", Err(Error::NotRfc3339)),
            ("2026-W05-6T12:00:00Z", Err(Error::NotRfc3339)),
            ("2026-01-31T12:00:00+02:00[Europe/Paris]", Err(Error::NotRfc3339)),
            ("yesterday", Err(Error::NotRfc3339)),
            ("", Err(Error::NotRfc3339)),
        ] {
            assert_eq!(micros(Timestamp::from_rfc3339(text)), expected, "{text}");
        }
    }

    #[test]
    fn units_are_told_apart_by_magnitude() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("1769860800", Ok(1_769_860_800_000_000)),
            ("1769860800.5", Ok(1_769_860_800_500_000)),
            ("1769860800.1234567", Ok(1_769_860_800_123_456)),
            ("1769860800123", Ok(1_769_860_800_123_000)),
            ("1769860800123.4", Ok(1_769_860_800_123_400)),
            ("1769860800123456", Ok(1_769_860_800_123_456)),
            ("1769860800123456789", Ok(1_769_860_800_123_456)),
            ("-1", Err(Error::OutOfRange)),
            ("99999999999", Err(Error::OutOfRange)),
            ("9999999999999999999", Err(Error::OutOfRange)),
            ("99999999999999999999999", Err(Error::OutOfRange)),
            ("1e9", Err(Error::NotDecimal)),
            ("", Err(Error::NotDecimal)),
        ] {
            assert_eq!(micros(Timestamp::from_number(text)), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_numbers_of_one_instant_agree(micros in 200_000_000_000_000_i64..Timestamp::MAX.micros()) {
            let time = Timestamp::from_micros(micros).unwrap();
            prop_assert_eq!(Timestamp::from_rfc3339(&time.to_string()), Ok(time));
            prop_assert_eq!(Timestamp::from_number(&micros.to_string()), Ok(time));
            let seconds = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
            prop_assert_eq!(Timestamp::from_number(&seconds), Ok(time));
        }
    }
}
