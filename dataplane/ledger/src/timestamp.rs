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

    /// From RFC 3339 text; finer digits than microseconds are cut off, and a leap second is the second after it.
    ///
    /// # Errors
    /// When the text is not RFC 3339 (section 5.6) or the time is out of range.
    pub fn from_rfc3339(text: &str) -> Result<Self, Error> {
        parse_rfc3339(text.as_bytes()).ok_or(Error::NotRfc3339).and_then(Self::from_micros)
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

/// Microseconds since the Unix epoch, for any year of four digits.
fn parse_rfc3339(text: &[u8]) -> Option<i64> {
    let (date_time, mut rest) = text.split_at_checked(19)?;
    let number = |range: std::ops::Range<usize>| digits(&date_time[range]);
    let separators = [date_time[4], date_time[7], date_time[13], date_time[16]] == *b"--::";
    if !separators || !matches!(date_time[10], b'T' | b't' | b' ') {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
        return None;
    }
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix(b".") {
        let length = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        fraction = after[..length]
            .iter()
            .chain(std::iter::repeat(&b'0'))
            .take(6)
            .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        rest = &after[length..];
    }
    let offset_minutes = match rest {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    let minutes = (days_from_epoch(year, month, day) * 24 + hour) * 60 + minute - offset_minutes;
    // Leap seconds end a UTC day.
    let leap = second == 60 && minutes.rem_euclid(24 * 60) == 24 * 60 - 1;
    if hour > 23 || minute > 59 || (second > 59 && !leap) {
        return None;
    }
    Some((minutes * 60 + second) * MICROS_PER_SECOND + fraction)
}

/// A number of digits only.
fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar: years begin in March, so that the leap day is last, and
/// 400 years have 146,097 days.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - 719_468
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
            ("9999-12-31T23:59:59Z", Err(Error::OutOfRange)),
            ("0000-01-01T00:00:00Z", Err(Error::OutOfRange)),
            ("2026-01-31T12:00:00.123456789123Z", Ok(1_769_860_800_123_456)),
            ("2026-01-31T12:00:00.Z", Err(Error::NotRfc3339)),
            ("2026-01-31T12:00:00+25:00", Err(Error::NotRfc3339)),
            ("2026-01-31T12:00:00+0200", Err(Error::NotRfc3339)),
            ("2026-01-31T12:00:60Z", Err(Error::NotRfc3339)),
            ("2026-12-31T23:59:60Z", Ok(1_798_761_600_000_000)),
            ("2027-01-01T01:59:60+02:00", Ok(1_798_761_600_000_000)),
            ("2026-01-31T24:00:00Z", Err(Error::NotRfc3339)),
            ("2026-00-31T00:00:00Z", Err(Error::NotRfc3339)),
            ("2100-02-29T00:00:00Z", Err(Error::NotRfc3339)),
            ("2096-02-29T00:00:00Z", Ok(3_981_312_000_000_000)),
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
        /// `jiff` is the referee for the calendar.
        #[test]
        fn every_second_of_the_range_is_read_as_the_referee_writes_it(
            seconds in 0..Timestamp::MAX.micros() / 1_000_000, offset in -1439_i64..1440
        ) {
            let local = jiff::Timestamp::from_second(seconds + offset * 60).unwrap();
            let sign = if offset < 0 { '-' } else { '+' };
            let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
            let text = format!("{}{sign}{hours:02}:{minutes:02}", local.strftime("%Y-%m-%dT%H:%M:%S"));
            prop_assert_eq!(micros(Timestamp::from_rfc3339(&text)), Ok(seconds * 1_000_000), "{}", text);
        }

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
