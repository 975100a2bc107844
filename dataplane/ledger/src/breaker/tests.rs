use proptest::prelude::*;

use super::*;

fn at(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

#[test]
fn failures_among_successes_leave_it_closed_and_a_row_of_them_opens_it() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    assert_eq!((breaker.state(), breaker.admit()), (BreakerState::Open, false));
    breaker.committed(now);
    for _ in 0..100 {
        for _ in 1..FAILURES_MAX {
            breaker.failed(now);
            assert!(breaker.admit());
        }
        // An answer to a read takes nothing back, a commit does.
        breaker.probed(Probe::Answers, now);
        breaker.committed(now);
    }
    for _ in 1..FAILURES_MAX {
        breaker.failed(now);
    }
    breaker.probed(Probe::Answers, now);
    breaker.failed(now);
    assert_eq!((breaker.state(), breaker.admit()), (BreakerState::Open, false));
}

#[test]
fn one_slow_probe_is_no_outage_two_are_and_rare_failures_do_not_add_up() {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(now);
    breaker.committed(now);
    for _ in 0..10 {
        breaker.probe_failed(now);
        assert_eq!((breaker.state(), breaker.next_probe().0), (BreakerState::Closed, now + HOLD_MIN));
        now += FORGET;
        breaker.probed(Probe::Answers, now);
    }
    breaker.probe_failed(now);
    breaker.probe_failed(now + HOLD_MIN);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn a_few_requests_try_a_database_that_is_back() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    breaker.probed(Probe::Writes, now);
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    assert_eq!((0..1000).filter(|_| breaker.admit()).count(), TRIALS_MAX as usize);
    breaker.failed(now);
    assert_eq!(breaker.state(), BreakerState::Open);
    // Not before the hold is over.
    breaker.probed(Probe::Writes, now);
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker.probed(Probe::Writes, now + HOLD_MIN);
    breaker.committed(now + HOLD_MIN);
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn without_traffic_probes_alone_close_it() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    for _ in 0..PROBES_MIN {
        assert_ne!(breaker.state(), BreakerState::Closed);
        breaker.probed(Probe::Writes, now);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(breaker.next_probe(), (now + PROBE_INTERVAL, Probe::Answers));
}

/// What a simulated database does.
#[derive(Debug, Clone, Copy)]
struct Database {
    takes_probes: bool,
    takes_commits: bool,
}

/// How often the breaker changed.
#[derive(Debug, Default)]
struct Changes {
    openings: u32,
    closings: u32,
}

/// Runs writers and prober against a database for a while, in steps of 10 ms.
fn run(
    breaker: &mut Breaker,
    start: Instant,
    from_ms: u64,
    for_ms: u64,
    database: Database,
    rate: u64,
) -> Changes {
    let mut changes = Changes::default();
    for ms in (from_ms..from_ms + for_ms).step_by(10) {
        let now = at(start, ms);
        let before = breaker.state();
        let (due, probe) = breaker.next_probe();
        if now >= due {
            // A standby or a read-only server fails both kinds.
            let succeeds = database.takes_probes;
            if succeeds { breaker.probed(probe, now) } else { breaker.probe_failed(now) }
        }
        if rate > 0 && ms % rate < 10 && breaker.admit() {
            if database.takes_commits { breaker.committed(now) } else { breaker.failed(now) }
        }
        let became = |state| u32::from(before != state && breaker.state() == state);
        changes.openings += became(BreakerState::Open);
        changes.closings += became(BreakerState::Closed);
    }
    changes
}

#[test]
fn a_database_that_takes_probes_but_no_commits_does_not_make_readiness_flap() {
    let start = Instant::now();
    let mut breaker = Breaker::new(start);
    let full = Database { takes_probes: true, takes_commits: false };
    let first_minute = run(&mut breaker, start, 0, 60_000, full, 20);
    assert!(first_minute.openings <= 20 && first_minute.closings <= 1, "{first_minute:?}");
    let hour = run(&mut breaker, start, 60_000, 3_600_000, full, 20);
    assert!(hour.openings <= 3600 / 5 + 1 && hour.closings == 0, "{hour:?}");
    // Once it is well again, that is noticed within the hold, and is forgotten by the first commit.
    let well = Database { takes_probes: true, takes_commits: true };
    run(&mut breaker, start, 3_660_000, 6_000, well, 20);
    assert_eq!((breaker.state(), breaker.hold), (BreakerState::Closed, HOLD_MIN));
}

#[derive(Debug, Clone, Copy)]
enum Input {
    Committed,
    Failed,
    ProbeIfDue { succeeds: bool },
    Admit,
    Wait(u64),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let input = prop_oneof![
        1 => Just(Input::Committed),
        3 => Just(Input::Failed),
        3 => any::<bool>().prop_map(|succeeds| Input::ProbeIfDue { succeeds }),
        3 => Just(Input::Admit),
        3 => (0_u64..3000).prop_map(Input::Wait),
    ];
    proptest::collection::vec(input, 0..200)
}

proptest! {
    #[test]
    fn whatever_happens_it_keeps_its_promises(inputs in inputs(), rate in prop_oneof![Just(0), Just(10), Just(500)]) {
        let start = Instant::now();
        let mut breaker = Breaker::new(start);
        let mut ms = 0;
        let mut wrote_since_open = false;
        for input in inputs {
            let now = at(start, ms);
            let before = breaker.state();
            match input {
                Input::Committed => breaker.committed(now),
                Input::Failed => breaker.failed(now),
                Input::ProbeIfDue { succeeds } => {
                    let (due, probe) = breaker.next_probe();
                    prop_assert_eq!(probe == Probe::Answers, before == BreakerState::Closed);
                    if now >= due {
                        if succeeds { breaker.probed(probe, now) } else { breaker.probe_failed(now) }
                        wrote_since_open |= succeeds && probe == Probe::Writes;
                    }
                }
                Input::Admit => prop_assert_eq!(breaker.admit() && before == BreakerState::Open, false),
                Input::Wait(wait) => ms += wait,
            }
            let after = breaker.state();
            if matches!(input, Input::Committed) {
                prop_assert_eq!(after, BreakerState::Closed);
            } else if before == BreakerState::Open && after != BreakerState::Open {
                prop_assert_eq!(after, BreakerState::HalfOpen);
                prop_assert!(wrote_since_open);
            }
            if after == BreakerState::Open {
                wrote_since_open &= before == BreakerState::Open;
            }
            // There is always a next look, and it is never far off.
            let (due, _) = breaker.next_probe();
            prop_assert!(due <= now + HOLD_MAX.max(PROBE_INTERVAL));
        }
        // Whatever came before, a database that is well again is used within the longest hold.
        let well = Database { takes_probes: true, takes_commits: true };
        let patience = u64::try_from((HOLD_MAX * 2 + PROBE_INTERVAL * 3).as_millis()).unwrap();
        run(&mut breaker, start, ms, patience, well, rate);
        prop_assert_eq!(breaker.state(), BreakerState::Closed);
    }
}
