//! The operator's clock: never runs backwards, and takes the times of day that the API server writes down.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Both clocks, read once at the same moment.
static START: OnceLock<(Instant, Duration)> = OnceLock::new();

/// Time since the Unix epoch, as the clock showed it at the process' start and counted monotonically since.
pub(crate) fn now() -> Duration {
    let (instant, time) = START.get_or_init(|| (Instant::now(), since_unix_epoch(Timestamp::now())));
    *time + instant.elapsed()
}

/// A time of day of the API server on the same scale. Clocks may differ, so it can lie a little ahead of [`now`].
pub(crate) fn since_unix_epoch(time: Timestamp) -> Duration {
    time.duration_since(Timestamp::UNIX_EPOCH).try_into().unwrap_or_default()
}

/// A moment of [`now`] as the API server writes it down: to the second.
pub(crate) fn timestamp(at: Duration) -> Timestamp {
    i64::try_from(at.as_secs()).ok().and_then(|at| Timestamp::from_second(at).ok()).unwrap_or(Timestamp::MAX)
}
