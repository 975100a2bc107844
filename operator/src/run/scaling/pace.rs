//! When a cluster has its turn, and when a pod that does not answer is asked again. Pure.

use std::time::Duration;

/// From one scrape of a pod to the next. A load step is in the samples after two of them at most, the decision follows at once:
/// well under 3 s.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Past a pod's first misses, which any network has, it is asked less and less often: silent pods must not take the places
/// of those that answer.
const MISSES_MIN: u32 = 3;
const MISS_INTERVAL_MAX: Duration = Duration::from_secs(8);

/// The offset of the `index`th cluster within [`INTERVAL`]: multiples of the golden ratio fill it evenly however many there
/// are, and whichever of them go.
pub(super) fn phase(index: u32) -> Duration {
    /// 2^32 times the golden ratio's fraction.
    const STEP: u32 = 0x9e37_79b9;
    INTERVAL.mul_f64(f64::from(index.wrapping_mul(STEP)) / 2f64.powi(32))
}

/// How long until the next turn of a cluster with this phase, on any clock that all of them share; never zero.
pub(super) fn until_turn(now: Duration, phase: Duration) -> Duration {
    let since_turn = (now + INTERVAL).saturating_sub(phase).as_nanos() % INTERVAL.as_nanos();
    INTERVAL - Duration::from_nanos(u64::try_from(since_turn).unwrap_or_default())
}

/// How long after a scrape the next one is due, after so many misses in a row. A little less than the interval, so that a
/// turn which comes slightly early is not left out.
pub(super) fn scrape_again_after(misses: u32) -> Duration {
    let wait = match misses.checked_sub(MISSES_MIN) {
        None => INTERVAL,
        Some(further) => (INTERVAL * 2).saturating_mul(1 << further.min(8)).min(MISS_INTERVAL_MAX),
    };
    wait - INTERVAL / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_turns_of_a_thousand_clusters_are_spread_evenly() {
        for clusters in [10_u32, 100, 1000] {
            // Some are deleted, others come: numbers are never used again.
            for first in [0, 17, 4_000_000_000] {
                let slots = (clusters / 5).min(50);
                let mut turns = vec![0; slots as usize];
                for index in first..first + clusters {
                    let share = phase(index).as_nanos() * u128::from(slots) / INTERVAL.as_nanos();
                    turns[usize::try_from(share).unwrap()] += 1;
                }
                let even = clusters / slots;
                let (least, most) = (*turns.iter().min().unwrap(), *turns.iter().max().unwrap());
                assert!(
                    least + 3 >= even && most <= even + 3,
                    "{clusters} from {first}: {least} to {most} of {even}"
                );
            }
        }
    }

    #[test]
    fn a_turn_comes_once_per_interval() {
        let phase = Duration::from_millis(300);
        let at = |milliseconds| until_turn(Duration::from_millis(milliseconds), phase).as_millis();
        assert_eq!([at(5_000), at(5_299), at(5_300), at(5_301), at(5_999)], [300, 1, 1000, 999, 301]);
    }

    #[test]
    fn silent_pods_are_asked_less_often() {
        let waits: Vec<u64> = (0..9).map(|misses| scrape_again_after(misses).as_secs()).collect();
        assert_eq!(waits, [0, 0, 0, 1, 3, 7, 7, 7, 7]);
    }
}
