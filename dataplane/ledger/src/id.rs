//! Event ids: UUIDs of version 7 (RFC 9562) whose low bits are the event's position in its batch.
//!
//! Owns the bit layout. Never reads a clock or a random source. Promises: ids of one batch count up by one; ids of
//! later batches are greater, up to clock differences between pods; an id alone leads to its partition (by time),
//! its row (the primary key) and its batch (by clearing the position), so no second index is ever needed.
//!
//! ```text
//! | 48 bits: Unix ms of the batch | 0111 | 12 random bits | 10 | 42 random bits | 20 bits: position |
//! ```

use uuid::Uuid;

const POSITION_BITS: u32 = 20;

/// A batch holds at most this many events.
pub const BATCH_EVENTS_MAX: usize = 1 << POSITION_BITS;

const POSITION_MASK: u128 = (1 << POSITION_BITS) - 1;
const VERSION_AND_VARIANT_MASK: u128 = 0xF << 76 | 0b11 << 62;
const VERSION_7_RFC_VARIANT: u128 = 0x7 << 76 | 0b10 << 62;
const MILLIS_PER_DAY: u64 = 86_400_000;

/// Names one commit batch. Chosen before the commit, so that a repeat after a lost reply is recognised by its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchId(u128);

impl BatchId {
    /// From the batch's time in milliseconds since the Unix epoch and 128 random bits, of which 54 are used.
    #[must_use]
    pub fn new(unix_ms: u64, random: u128) -> Self {
        let time = u128::from(unix_ms & 0xFFFF_FFFF_FFFF) << 80;
        let random = random & ((1 << 80) - 1) & !VERSION_AND_VARIANT_MASK & !POSITION_MASK;
        Self(time | VERSION_7_RFC_VARIANT | random)
    }

    /// The batch that an event belongs to.
    #[must_use]
    pub fn of(event: Uuid) -> Self {
        Self(event.as_u128() & !POSITION_MASK)
    }

    /// The id of the event at `position` in this batch.
    ///
    /// # Panics
    /// When `position` is not below [`BATCH_EVENTS_MAX`], which the batch limits exclude.
    #[must_use]
    pub fn event(self, position: usize) -> Uuid {
        assert!(position < BATCH_EVENTS_MAX, "position {position} does not fit into an event id");
        Uuid::from_u128(self.0 | position as u128)
    }

    /// As a UUID: the id of the batch's first event.
    #[must_use]
    pub fn uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    /// The day, counted from 1970-01-01 UTC, whose partition holds the batch.
    #[must_use]
    pub fn day(self) -> Day {
        let millis = u64::try_from(self.0 >> 80).unwrap_or(u64::MAX);
        Day(u32::try_from(millis / MILLIS_PER_DAY).unwrap_or(u32::MAX))
    }
}

/// The position of an event within its batch.
#[must_use]
pub fn position(event: Uuid) -> usize {
    // Masked to 20 bits, so nothing is cut off.
    usize::try_from(event.as_u128() & POSITION_MASK).unwrap_or(usize::MAX)
}

/// A UTC day, counted from 1970-01-01: one partition of the event table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(u32);

impl Day {
    /// The day of a time in milliseconds since the Unix epoch.
    #[must_use]
    pub fn of_unix_ms(unix_ms: u64) -> Self {
        Self(u32::try_from(unix_ms / MILLIS_PER_DAY).unwrap_or(u32::MAX))
    }

    /// From its number since 1970-01-01.
    #[must_use]
    pub(crate) fn of_number(number: u32) -> Self {
        Self(number)
    }

    /// Its number since 1970-01-01.
    #[must_use]
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    /// The day before; the first day has none and is its own.
    #[must_use]
    pub(crate) fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The day after.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The smallest id of the day; the partition's bounds are this and that of the next day.
    #[must_use]
    pub fn first_id(self) -> Uuid {
        Uuid::from_u128(u128::from(u64::from(self.0) * MILLIS_PER_DAY) << 80)
    }

    /// As `YYYYMMDD`, the suffix of the partition's name.
    #[must_use]
    pub fn suffix(self) -> String {
        let seconds = i64::from(self.0) * 86_400;
        jiff::Timestamp::from_second(seconds)
            .map_or_else(|_| format!("d{}", self.0), |start| start.strftime("%Y%m%d").to_string())
    }

    /// The inverse of [`Self::suffix`].
    #[must_use]
    pub fn from_suffix(text: &str) -> Option<Self> {
        if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let date = jiff::civil::Date::new(
            text[..4].parse().ok()?,
            text[4..6].parse().ok()?,
            text[6..].parse().ok()?,
        );
        let start = date.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(Self::of_unix_ms(u64::try_from(start.timestamp().as_millisecond()).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout_is_that_of_the_module_head() {
        let id = BatchId::new(0x0123_4567_89AB, u128::MAX).event(5);
        assert_eq!(id.to_string(), "01234567-89ab-7fff-bfff-fffffff00005");
        assert_eq!(id.get_version_num(), 7);
    }

    #[test]
    fn days_and_their_bounds() {
        let day = Day::of_unix_ms(1_769_860_800_000);
        assert_eq!(day.suffix(), "20260131");
        assert_eq!(day.next().suffix(), "20260201");
        assert_eq!(day.first_id().to_string(), "019c1159-7000-0000-0000-000000000000");
    }

    proptest! {
        #[test]
        fn an_id_leads_back_to_its_batch_position_and_day(
            unix_ms in 0_u64..1 << 48, random: u128, at in 0..BATCH_EVENTS_MAX
        ) {
            let batch = BatchId::new(unix_ms, random);
            let event = batch.event(at);
            prop_assert_eq!(BatchId::of(event), batch);
            prop_assert_eq!(position(event), at);
            prop_assert_eq!(batch.day(), Day::of_unix_ms(unix_ms));
            if unix_ms < 253_402_300_800_000 {
                prop_assert_eq!(Day::from_suffix(&batch.day().suffix()), Some(batch.day()));
            }
            prop_assert!(batch.day().first_id() <= event && event < batch.day().next().first_id());
            prop_assert_eq!(event.get_variant(), uuid::Variant::RFC4122);
        }
    }
}
