//! An idle cluster under the product's defaults whose scrapes now and then fail: it must still shrink in time, and never
//! to fewer pods than it would need if the pods it could not see were full.

use std::time::Duration;

use certeus_autoscale::{
    CpuSample, MissingReason, Observation, PodObservation, PodPhase, Policy, PolicyConfig, PolicyError,
    QueueSample, State, decide,
};

const SCRAPE_EVERY: Duration = Duration::from_secs(2);
const START: Duration = Duration::from_secs(10_000);

fn pod(name: String, now: Duration, is_seen: bool) -> PodObservation {
    let missing = MissingReason::Unreachable;
    let queue =
        QueueSample { events: 0.0, events_max: 1e5, bytes: 0.0, bytes_max: 1e6, oldest_age_seconds: 0.0 };
    PodObservation {
        name,
        phase: PodPhase::Running {
            ready: true,
            started_at: Duration::ZERO,
            ready_changed_at: Duration::ZERO,
        },
        cpu: if is_seen {
            Ok(CpuSample { utilization: 0.05, since: now - SCRAPE_EVERY })
        } else {
            Err(missing)
        },
        queue: if is_seen { Ok(queue) } else { Err(missing) },
        downstream: Err(missing),
    }
}

/// Runs a cluster that does as decided for `length`. Returns how long it took to shrink first, and the final count.
fn run(
    start: u32,
    length: Duration,
    mut is_seen: impl FnMut(u32) -> bool,
) -> Result<(Option<Duration>, u32), PolicyError> {
    let policy = Policy::new(PolicyConfig::default())?;
    let mut state = State::new(START, start);
    let (mut replicas, mut shrank_after) = (start, None);
    let mut elapsed = Duration::ZERO;
    while elapsed < length {
        let now = START + elapsed;
        let pods = (0..replicas).map(|index| pod(format!("pod-{index}"), now, is_seen(index))).collect();
        let desired = decide(&policy, &mut state, &Observation { now, replicas, pods }).desired;
        assert!(desired <= replicas, "grew without load");
        if desired < replicas {
            shrank_after.get_or_insert(elapsed);
            state.record_scale(now, replicas, desired);
            replicas = desired;
        }
        elapsed += SCRAPE_EVERY;
    }
    Ok((shrank_after, replicas))
}

/// Fails this many of a thousand scrapes, spread by a fixed sequence (Knuth's MMIX generator).
fn failing(permille: u64, mut seed: u64) -> impl FnMut(u32) -> bool {
    move |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % 1000 >= permille
    }
}

#[test]
fn rare_scrape_failures_delay_shrinking_by_little() {
    let cooldown = PolicyConfig::default().behavior.scale_down.stabilization_window;
    // Two pods of seven unseen at once may need all seven, which now and then starts a window anew.
    for (start, delay_max) in [(20, 10), (7, 600)] {
        for permille in [0, 1, 5, 10] {
            for seed in 1..=8 {
                let (shrank_after, last) = run(start, cooldown * 4, failing(permille, seed)).unwrap();
                let context =
                    format!("{start} pods, {permille} of 1000 fail, seed {seed}: {shrank_after:?}, {last}");
                let delay = shrank_after.and_then(|after| after.checked_sub(cooldown)).expect(&context);
                assert!(delay <= Duration::from_secs(delay_max), "{context}");
                // One full queue at its target of 0.30 needs four pods; the minimum of three needs a clear window.
                assert!(last <= 4, "{context}");
            }
        }
    }
}

#[test]
fn a_pod_never_seen_is_taken_as_full_for_good() {
    let hour = Duration::from_secs(3600);
    // One full queue needs four pods at the target of 0.30, two need seven.
    for (unseen, last) in [(1, 4), (2, 20), (20, 20)] {
        assert_eq!(run(20, hour, |index| index >= unseen).unwrap().1, last, "{unseen} unseen of 20");
    }
}
