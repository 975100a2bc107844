use super::*;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn history_stays_bounded() {
    let mut state = State::new(s(0), 1);
    for second in 0..100_000 {
        let replicas = u32::try_from(second % 20).unwrap();
        state.record_scale(s(second), replicas, 19 - replicas);
        state.recommend_up(replicas, s(3600));
        state.recommend_down(replicas, s(3600));
    }
    assert!(state.events.len() <= SCALE_EVENTS_MAX);
    assert!(state.up.len() <= 20 && state.down.len() <= 20);
}

#[test]
fn merged_events_still_count_within_the_period() {
    let mut state = State::new(s(0), 0);
    for count in 0..1000 {
        state.record_scale(s(u64::from(count)), count, count + 1);
    }
    assert_eq!(state.replicas_at_start(1000, PERIOD_MAX), 0);
    assert_eq!(state.replicas_at_start(1000, s(10)), 990);
}

#[test]
fn a_write_that_changes_nothing_is_no_event() {
    let mut state = State::new(s(0), 3);
    state.record_scale(s(1), 3, 3);
    assert_eq!(state, State { now: s(1), ..State::new(s(0), 3) });
}

/// The two queues must give what a scan of the whole window gives.
#[test]
fn windows_agree_with_a_plain_scan() {
    let window = s(10);
    let mut state = State::new(s(0), 5);
    let mut all = vec![(0u64, 5u32)];
    let mut value = 7u32;
    for second in 1..500u64 {
        value = (value * 31 + 11) % 23;
        state.now = s(second);
        all.push((second, value));
        let within = || all.iter().filter(|(at, _)| at + 10 > second).map(|(_, replicas)| *replicas);
        assert_eq!(Some(state.recommend_up(value, window)), within().min());
        assert_eq!(Some(state.recommend_down(value, window)), within().max());
    }
}
