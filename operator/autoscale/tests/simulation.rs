//! The product's defaults in a closed loop with a simulated cluster: they recover in bounded time, do not flap, and the
//! table in the documentation is what the simulation prints.

#[path = "../examples/simulate/plant.rs"]
mod plant;
#[path = "../examples/simulate/race.rs"]
mod race;

use race::{AUTOSCALERS, SCENARIOS, run, table};

const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;

#[test]
fn the_documented_table_is_what_the_simulation_prints() {
    let documented = include_str!("../../../docs/autoscaling.md");
    let printed = table(1).unwrap();
    assert!(documented.contains(&printed), "put this into docs/autoscaling.md:\n{printed}");
}

/// A load that rises and falls once is followed by growing and then shrinking: one reversal, not more. Spikes within one
/// cooldown of each other and noise cause none of their own.
#[test]
fn replicas_do_not_flap() {
    let [certeus, ..] = AUTOSCALERS;
    for seed in SEEDS {
        for (scenario, reversals_max) in SCENARIOS.iter().zip([1, 1, 1, 0, 1]) {
            let outcome = run(scenario, &certeus, seed).unwrap();
            assert!(outcome.reversals <= reversals_max, "{}, seed {seed}: {outcome:?}", scenario.name);
        }
    }
}

#[test]
fn recovery_is_bounded() {
    let [certeus, ..] = AUTOSCALERS;
    for seed in SEEDS {
        for (scenario, recover_seconds_max) in SCENARIOS.iter().zip([60.0, 0.0, 45.0, 45.0]) {
            let outcome = run(scenario, &certeus, seed).unwrap();
            assert!(
                outcome.recover_seconds <= recover_seconds_max,
                "{}, seed {seed}: {outcome:?}",
                scenario.name
            );
        }
    }
}

#[test]
fn less_is_late_and_refused_than_under_the_defaults_of_others() {
    let ([certeus, others @ ..], [loads @ .., _database]) = (AUTOSCALERS, SCENARIOS);
    for seed in SEEDS {
        for scenario in &loads {
            let ours = run(scenario, &certeus, seed).unwrap();
            for other in &others {
                let theirs = run(scenario, other, seed).unwrap();
                let better = ours.late_seconds <= theirs.late_seconds && ours.rejected <= theirs.rejected;
                assert!(better, "{}, seed {seed}: {ours:?}, {} {theirs:?}", scenario.name, other.name);
            }
        }
    }
}

/// While the database is the bottleneck no pod is added. The few added afterwards work off what piled up.
#[test]
fn a_saturated_database_is_not_given_more_pods() {
    let ([certeus, _hpa, keda, _keda_cached], [.., database]) = (AUTOSCALERS, SCENARIOS);
    for seed in SEEDS {
        let (ours, theirs) = (run(&database, &certeus, seed).unwrap(), run(&database, &keda, seed).unwrap());
        assert!(ours.pod_seconds < 0.5 * theirs.pod_seconds, "seed {seed}: {ours:?} {theirs:?}");
        assert!(ours.replicas_max < theirs.replicas_max, "seed {seed}: {ours:?} {theirs:?}");
    }
}

#[test]
fn a_run_can_be_repeated() {
    let ([certeus, ..], [.., noise, _database]) = (AUTOSCALERS, SCENARIOS);
    assert_eq!(run(&noise, &certeus, 7), run(&noise, &certeus, 7));
}
