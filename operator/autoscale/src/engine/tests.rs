//! What the HPA's own tests check of its calculator and controller, asked of this engine, and what is asked of it beyond.

use std::time::Duration;

use crate::*;

const NOW: Duration = Duration::from_secs(10_000);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Triggers without a band and the HPA's tolerance: its own arithmetic. Windows and rates are off unless a test sets
/// them.
fn hpa(target: f64) -> PolicyConfig {
    let free = |tolerance| ScalingRules {
        stabilization_window: Duration::ZERO,
        select_policy: SelectPolicy::Max,
        policies: vec![RatePolicy { change: Change::Pods(u32::MAX), period: s(1) }],
        tolerance,
    };
    PolicyConfig {
        replicas_min: 1,
        replicas_max: 1000,
        cpu: Some(exact(target)),
        queue_depth: None,
        behavior: Behavior { scale_up: free(0.1), scale_down: free(0.1) },
        downstream_guard: None,
        ..PolicyConfig::default()
    }
}

fn exact(target: f64) -> Trigger {
    Trigger { target, scale_up_threshold: target, scale_down_threshold: target }
}

/// A pod ready for long, with this CPU, an empty queue and fast commits.
fn pod(cpu: f64) -> PodObservation {
    PodObservation {
        name: String::new(),
        phase: PodPhase::Running { ready: true, started_at: s(1), ready_changed_at: s(5) },
        cpu: Ok(CpuSample { utilization: cpu, since: NOW - s(2) }),
        queue: Ok(queue(0.0)),
        downstream: Ok(DownstreamSample { commits: 100.0, commit_seconds: 0.5 }),
    }
}

fn queue(fullness: f64) -> QueueSample {
    QueueSample {
        events: fullness * 1000.0,
        events_max: 1000.0,
        bytes: 0.0,
        bytes_max: 1.0,
        oldest_age_seconds: 0.0,
    }
}

fn without_cpu() -> PodObservation {
    PodObservation { cpu: Err(MissingReason::Unreachable), ..pod(0.0) }
}

fn in_phase(phase: PodPhase, pod: PodObservation) -> PodObservation {
    PodObservation { phase, ..pod }
}

fn never_ready(pod: PodObservation) -> PodObservation {
    in_phase(
        PodPhase::Running { ready: false, started_at: NOW - s(400), ready_changed_at: NOW - s(400) },
        pod,
    )
}

/// Ready for one second, so its CPU sample still holds the work of starting.
fn warming(pod: PodObservation) -> PodObservation {
    in_phase(PodPhase::Running { ready: true, started_at: NOW - s(5), ready_changed_at: NOW - s(1) }, pod)
}

fn cpus(values: &[f64]) -> Vec<PodObservation> {
    values.iter().copied().map(pod).collect()
}

fn seen(current: u32, mut pods: Vec<PodObservation>) -> Observation {
    for (index, pod) in pods.iter_mut().enumerate() {
        pod.name = format!("pod-{index}");
    }
    Observation { now: NOW, replicas: current, pods }
}

fn decide_once(config: PolicyConfig, observation: &Observation) -> Decision {
    let mut state = State::new(NOW - s(1), observation.replicas);
    decide(&Policy::new(config).unwrap(), &mut state, observation)
}

#[track_caller]
fn check(config: PolicyConfig, current: u32, pods: Vec<PodObservation>, desired: u32, reason: Reason) {
    let decision = decide_once(config, &seen(current, pods));
    assert_eq!((decision.desired, decision.reason()), (desired, reason), "{decision}");
}

mod arithmetic {
    use super::*;

    #[test]
    fn grows_and_shrinks_to_the_target() {
        check(hpa(0.3), 3, cpus(&[0.3, 0.5, 0.7]), 5, Reason::ScaleUp);
        check(hpa(0.5), 5, cpus(&[0.1, 0.3, 0.5, 0.25, 0.25]), 3, Reason::ScaleDown);
    }

    #[test]
    fn exact_multiples_do_not_round_up() {
        // 4.2 / 0.7 is 6.000000000000001 in floating point.
        check(hpa(0.7), 4, cpus(&[1.05; 4]), 6, Reason::ScaleUp);
    }

    #[test]
    fn small_deviations_are_tolerated_per_direction() {
        check(hpa(1.0), 3, cpus(&[1.01, 1.03, 1.02]), 3, Reason::WithinBand);
        check(hpa(1.0), 10, cpus(&[1.1; 10]), 10, Reason::WithinBand);
        check(hpa(1.0), 10, cpus(&[1.101; 10]), 12, Reason::ScaleUp);
        check(hpa(1.0), 10, cpus(&[0.9; 10]), 10, Reason::WithinBand);
        let mut config = hpa(1.0);
        config.behavior.scale_up.tolerance = 0.5;
        config.behavior.scale_down.tolerance = 0.0;
        check(config.clone(), 10, cpus(&[1.4; 10]), 10, Reason::WithinBand);
        check(config, 10, cpus(&[0.9; 10]), 9, Reason::ScaleDown);
    }

    #[test]
    fn nothing_happens_inside_the_band() {
        let config = PolicyConfig { cpu: PolicyConfig::default().cpu, ..hpa(0.7) };
        check(config.clone(), 10, cpus(&[0.8; 10]), 10, Reason::WithinBand);
        check(config.clone(), 10, cpus(&[0.81; 10]), 12, Reason::ScaleUp);
        check(config.clone(), 10, cpus(&[0.4; 10]), 10, Reason::WithinBand);
        check(config, 10, cpus(&[0.39; 10]), 6, Reason::ScaleDown);
    }

    #[test]
    fn starting_pods_count_as_idle_for_growth() {
        let mut pods = cpus(&[0.3, 0.5, 0.7]);
        pods[0] = never_ready(pods[0].clone());
        check(hpa(0.3), 3, pods, 4, Reason::ScaleUp);
        let pods = vec![pod(0.4), never_ready(pod(0.5)), never_ready(pod(0.6))];
        check(hpa(0.3), 3, pods, 3, Reason::WithinBand);
        let pending = || in_phase(PodPhase::Pending, without_cpu());
        check(hpa(0.3), 3, vec![pod(0.8), pending(), pending()], 3, Reason::WithinBand);
    }

    #[test]
    fn what_is_not_measured_yet_gets_its_chance_before_more_is_added() {
        let banded = || PolicyConfig { cpu: PolicyConfig::default().cpu, ..hpa(0.7) };
        // 3.0 over four pods is inside the band, though the three measured are above it.
        let with = |other| vec![pod(1.0), pod(1.0), pod(1.0), other];
        check(banded(), 4, with(never_ready(pod(1.0))), 4, Reason::WithinBand);
        check(banded(), 4, with(without_cpu()), 4, Reason::WithinBand);
        check(banded(), 4, with(in_phase(PodPhase::Draining, pod(0.0))), 5, Reason::ScaleUp);
    }

    #[test]
    fn hot_cpu_of_a_fresh_pod_is_not_load() {
        check(hpa(0.3), 3, vec![warming(pod(9.0)), pod(0.5), pod(0.7)], 4, Reason::ScaleUp);
        check(hpa(0.5), 3, vec![warming(pod(9.0)), pod(0.5), pod(0.5)], 3, Reason::WithinBand);
        let pods = vec![pod(0.1), pod(0.3), pod(0.5), warming(pod(0.25)), warming(pod(0.25))];
        check(hpa(0.5), 5, pods, 2, Reason::ScaleDown);
    }

    #[test]
    fn a_fresh_pod_counts_once_measured_since_it_was_ready() {
        let phase = PodPhase::Running { ready: true, started_at: NOW - s(9), ready_changed_at: NOW - s(2) };
        check(hpa(0.3), 3, vec![in_phase(phase, pod(0.9)), pod(0.3), pod(0.3)], 5, Reason::ScaleUp);
    }

    #[test]
    fn a_restarted_pod_counts_as_starting_again() {
        let restarted =
            PodPhase::Running { ready: false, started_at: NOW - s(3), ready_changed_at: NOW - s(3) };
        check(hpa(0.5), 2, vec![pod(0.5), in_phase(restarted, pod(4.0))], 2, Reason::WithinBand);
    }

    #[test]
    fn a_pod_that_lost_its_readiness_late_still_carries_load() {
        let lost =
            PodPhase::Running { ready: false, started_at: NOW - s(900), ready_changed_at: NOW - s(100) };
        check(hpa(0.5), 2, vec![pod(0.5), in_phase(lost, pod(1.5))], 4, Reason::ScaleUp);
        // Unseen it counts as full: 1.2 needs three pods.
        let lost_unseen = in_phase(lost, without_cpu());
        check(hpa(0.5), 3, vec![pod(0.1), pod(0.1), lost_unseen], 3, Reason::WithinBand);
    }

    #[test]
    fn starting_pending_failed_and_draining_pods_do_not_hold_up_shrinking() {
        let mut pods = cpus(&[0.1, 0.3, 0.5]);
        pods.extend([never_ready(pod(0.25)), never_ready(without_cpu())]);
        check(hpa(0.5), 5, pods, 2, Reason::ScaleDown);
        let pending = || in_phase(PodPhase::Pending, without_cpu());
        check(hpa(0.5), 5, vec![pod(0.1), pending(), pending(), pending(), pending()], 1, Reason::ScaleDown);
        for phase in [PodPhase::Failed, PodPhase::Draining] {
            let mut pods = cpus(&[0.1, 0.3, 0.5, 0.25, 0.25]);
            pods.extend([in_phase(phase, without_cpu()), in_phase(phase, pod(9.0))]);
            check(hpa(0.5), 5, pods, 3, Reason::ScaleDown);
        }
    }

    #[test]
    fn surge_pods_of_a_rollout_do_not_change_the_count() {
        check(hpa(0.5), 2, cpus(&[0.5, 0.5, 0.5]), 2, Reason::WithinBand);
        check(hpa(0.5), 2, vec![pod(0.5), pod(0.5), never_ready(pod(2.0))], 2, Reason::WithinBand);
        // Far more pods than the spec asks for, and cool: shrinking never ends above the spec.
        let banded = PolicyConfig { cpu: PolicyConfig::default().cpu, ..hpa(0.7) };
        check(banded, 2, cpus(&[0.35; 8]), 2, Reason::WithinBand);
        // Fewer pods than the spec asks for, and hot: never an excuse to shrink the spec.
        check(hpa(0.5), 10, cpus(&[0.9; 3]), 10, Reason::WithinBand);
    }

    #[test]
    fn missing_samples_count_as_idle_for_growth() {
        check(hpa(1.0), 2, vec![pod(1.9), without_cpu()], 2, Reason::WithinBand);
        check(hpa(1.0), 2, vec![pod(2.4), without_cpu()], 3, Reason::ScaleUp);
        check(hpa(0.5), 3, vec![never_ready(pod(0.1)), without_cpu(), pod(3.5)], 7, Reason::ScaleUp);
        check(hpa(0.5), 3, vec![never_ready(pod(0.1)), without_cpu(), pod(0.45)], 3, Reason::WithinBand);
    }

    #[test]
    fn missing_samples_count_as_full_for_shrinking() {
        let pods = vec![pod(0.4), pod(0.0), without_cpu(), pod(0.0), pod(0.0)];
        check(hpa(1.0), 5, pods, 2, Reason::ScaleDown);
        // Full is all of a pod's capacity or, where that is more, the threshold above which it asks for growth.
        let trigger = |up| Some(Trigger { target: 0.5, scale_up_threshold: up, scale_down_threshold: 0.5 });
        for (up, desired) in [(0.5, 4), (1.0, 4), (1.9, 6)] {
            let mut pods = cpus(&[0.1; 9]);
            pods.push(without_cpu());
            check(PolicyConfig { cpu: trigger(up), ..hpa(0.5) }, 10, pods, desired, Reason::ScaleDown);
        }
    }

    #[test]
    fn missing_samples_that_may_hide_enough_load_forbid_shrinking() {
        let pods = vec![pod(0.1), pod(0.1), without_cpu(), without_cpu()];
        check(hpa(0.5), 4, pods, 4, Reason::FailedTriggerForbidsShrink);
        // Two full pods and two at a tenth would do with three, yet a complete view might show 0.55 and no call to shrink.
        let config = || PolicyConfig { cpu: PolicyConfig::default().cpu, ..hpa(0.7) };
        let pods = vec![pod(0.1), pod(0.1), without_cpu(), without_cpu(), pod(0.1)];
        check(config(), 5, pods, 5, Reason::FailedTriggerForbidsShrink);
    }

    #[test]
    fn a_value_that_is_no_measurement_is_a_missing_sample() {
        for (value, reason) in [
            (f64::NAN, MissingReason::NotANumber),
            (f64::INFINITY, MissingReason::Infinite),
            (f64::NEG_INFINITY, MissingReason::Infinite),
            (-0.1, MissingReason::Negative),
        ] {
            let decision = decide_once(hpa(0.5), &seen(4, cpus(&[0.1, 0.1, 0.1, value])));
            assert_eq!(decision.desired, 3, "{decision}");
            let measured = decision.triggers[0].outcome.as_ref().unwrap();
            assert_eq!(measured.missing, [MissingSample { pod: "pod-3".to_owned(), reason }]);
        }
    }

    #[test]
    fn absurd_values_saturate() {
        check(hpa(0.001), 3, cpus(&[f64::MAX; 3]), 1000, Reason::Max);
        let many = vec![pod(f64::MAX); 5000];
        check(hpa(0.001), u32::MAX, many, 1000, Reason::Max);
        check(hpa(0.5), 2, cpus(&[0.0, f64::MIN_POSITIVE]), 1, Reason::Min);
        check(hpa(0.5), 0, cpus(&[]), 1, Reason::Min);
    }
}

mod queue_depth {
    use super::*;

    fn config() -> PolicyConfig {
        PolicyConfig { cpu: None, queue_depth: Some(exact(0.5)), queue_age_full: s(2), ..hpa(0.5) }
    }

    fn with_queue(queue: QueueSample) -> PodObservation {
        PodObservation { queue: Ok(queue), cpu: Err(MissingReason::NotReported), ..pod(0.0) }
    }

    #[test]
    fn the_worst_of_events_bytes_and_age_counts() {
        let idle = queue(0.0);
        check(config(), 2, vec![with_queue(queue(1.0)); 2], 4, Reason::ScaleUp);
        let bytes = QueueSample { bytes: 1.0, ..idle };
        check(config(), 2, vec![with_queue(bytes); 2], 4, Reason::ScaleUp);
        // One event, stuck: pressure, though the queue is almost empty, but not more than a full queue's.
        for (age, desired) in [(1.5, 3), (2.0, 4), (400.0, 4)] {
            let stuck = QueueSample { events: 1.0, oldest_age_seconds: age, ..idle };
            check(config(), 2, vec![with_queue(stuck); 2], desired, Reason::ScaleUp);
        }
        check(config(), 2, vec![with_queue(idle); 2], 1, Reason::Min);
    }

    #[test]
    fn a_queue_without_bounds_or_with_a_bad_part_is_not_measured() {
        let good = queue(0.0);
        for (bad, reason) in [
            (QueueSample { events_max: 0.0, ..good }, MissingReason::ZeroCapacity),
            (QueueSample { bytes_max: 0.0, ..good }, MissingReason::ZeroCapacity),
            (QueueSample { bytes: f64::NAN, ..good }, MissingReason::NotANumber),
            (QueueSample { bytes_max: f64::INFINITY, ..good }, MissingReason::Infinite),
            (QueueSample { oldest_age_seconds: -1.0, ..good }, MissingReason::Negative),
        ] {
            let decision = decide_once(config(), &seen(2, vec![with_queue(good), with_queue(bad)]));
            assert_eq!(decision.desired, 2, "{decision}");
            let missing = &decision.triggers[0].outcome.as_ref().unwrap().missing;
            assert_eq!(missing, &[MissingSample { pod: "pod-1".to_owned(), reason }]);
        }
    }

    #[test]
    fn a_young_ready_pods_queue_counts_at_once() {
        let fresh = || warming(with_queue(queue(1.0)));
        check(config(), 2, vec![fresh(), fresh()], 4, Reason::ScaleUp);
    }
}

mod several_triggers {
    use super::*;

    fn both() -> PolicyConfig {
        PolicyConfig { queue_depth: Some(exact(0.5)), ..hpa(0.5) }
    }

    fn pods(cpu: Result<f64, MissingReason>, fullness: Result<f64, MissingReason>) -> Vec<PodObservation> {
        let one = PodObservation {
            cpu: cpu.map(|utilization| CpuSample { utilization, since: NOW - s(2) }),
            queue: fullness.map(queue),
            ..pod(0.0)
        };
        vec![one; 4]
    }

    const LOST: MissingReason = MissingReason::Unreachable;

    #[test]
    fn the_largest_proposal_wins() {
        check(both(), 4, pods(Ok(0.75), Ok(1.0)), 8, Reason::ScaleUp);
        check(both(), 4, pods(Ok(0.75), Ok(0.0)), 6, Reason::ScaleUp);
        check(both(), 4, pods(Ok(0.25), Ok(0.1)), 2, Reason::ScaleDown);
        check(both(), 4, pods(Ok(0.5), Ok(0.0)), 4, Reason::WithinBand);
    }

    #[test]
    fn a_failed_trigger_lets_the_other_grow_but_not_shrink() {
        check(both(), 4, pods(Ok(1.0), Err(LOST)), 8, Reason::ScaleUp);
        check(both(), 4, pods(Err(LOST), Ok(1.0)), 8, Reason::ScaleUp);
        check(both(), 4, pods(Ok(0.1), Err(LOST)), 4, Reason::FailedTriggerForbidsShrink);
        check(both(), 4, pods(Err(LOST), Ok(0.0)), 4, Reason::FailedTriggerForbidsShrink);
    }

    #[test]
    fn with_nothing_measured_the_present_count_stays() {
        check(both(), 4, pods(Err(LOST), Err(LOST)), 4, Reason::FailedTriggerForbidsShrink);
        check(both(), 4, vec![], 4, Reason::FailedTriggerForbidsShrink);
        let failure = |pods| decide_once(hpa(0.5), &seen(4, pods)).triggers.remove(0).outcome.unwrap_err();
        assert_eq!(failure(vec![]), TriggerFailure::NoPods);
        assert_eq!(failure(vec![in_phase(PodPhase::Failed, pod(0.1))]), TriggerFailure::NoPods);
        assert_eq!(failure(vec![never_ready(pod(0.1))]), TriggerFailure::AllStarting);
        let first = MissingSample { pod: "pod-0".to_owned(), reason: LOST };
        assert_eq!(failure(vec![without_cpu(), without_cpu()]), TriggerFailure::NoSample { first });
    }
}

mod limits {
    use super::*;

    fn at(seconds: u64, observation: &Observation) -> Observation {
        let mut moved = observation.clone();
        moved.now = NOW + s(seconds);
        moved
    }

    #[test]
    fn bounds_hold_whatever_the_load_and_the_present_count() {
        let config = PolicyConfig { replicas_min: 3, replicas_max: 5, ..hpa(0.5) };
        check(config.clone(), 4, cpus(&[2.0; 4]), 5, Reason::Max);
        check(config.clone(), 4, cpus(&[0.0; 4]), 3, Reason::Min);
        check(config.clone(), 9, cpus(&[0.5; 9]), 5, Reason::Max);
        check(config.clone(), 1, cpus(&[0.5]), 3, Reason::Min);
        check(config.clone(), 9, vec![], 5, Reason::Max);
        check(config.clone(), 0, vec![], 3, Reason::Min);
        let fixed = PolicyConfig { replicas_max: 3, ..config };
        check(fixed.clone(), 3, cpus(&[2.0; 3]), 3, Reason::Max);
        check(fixed, 3, cpus(&[0.0; 3]), 3, Reason::Min);
    }

    #[test]
    fn a_count_beyond_the_bounds_returns_at_once_despite_windows_and_rates() {
        let config = PolicyConfig { replicas_min: 3, replicas_max: 5, ..PolicyConfig::default() };
        check(config.clone(), 50, cpus(&[0.5; 50]), 5, Reason::Max);
        let mut slow = config;
        slow.behavior.scale_up.select_policy = SelectPolicy::Disabled;
        check(slow, 1, cpus(&[0.5]), 3, Reason::Min);
    }

    #[test]
    fn default_growth_is_double_or_four_more() {
        let config = PolicyConfig { replicas_max: 100, ..PolicyConfig::default() };
        check(config.clone(), 3, cpus(&[9.0; 3]), 7, Reason::RatePolicy);
        check(config, 10, cpus(&[9.0; 10]), 20, Reason::RatePolicy);
    }

    fn with_rates(up: &[RatePolicy], down: &[RatePolicy], select: SelectPolicy) -> Policy {
        let mut config = hpa(0.5);
        config.behavior.scale_up.policies = up.to_vec();
        config.behavior.scale_down.policies = down.to_vec();
        config.behavior.scale_up.select_policy = select;
        config.behavior.scale_down.select_policy = select;
        Policy::new(config).unwrap()
    }

    fn pods_per(pods: u32, seconds: u64) -> RatePolicy {
        RatePolicy { change: Change::Pods(pods), period: s(seconds) }
    }

    fn percent_per(percent: u32, seconds: u64) -> RatePolicy {
        RatePolicy { change: Change::Percent(percent), period: s(seconds) }
    }

    #[test]
    fn the_selected_rate_policy_limits_the_step() {
        let rates = [pods_per(2, 60), percent_per(50, 60)];
        let (busy, idle) = (seen(10, cpus(&[5.0; 10])), seen(10, cpus(&[0.0; 10])));
        for (select, up, down) in
            [(SelectPolicy::Max, 15, 5), (SelectPolicy::Min, 12, 8), (SelectPolicy::Disabled, 10, 10)]
        {
            let policy = with_rates(&rates, &rates, select);
            let mut state = State::new(NOW - s(1), 10);
            let decision = decide(&policy, &mut state, &busy);
            assert_eq!(decision.desired, up, "{decision}");
            let reason =
                if select == SelectPolicy::Disabled { Reason::ScalingDisabled } else { Reason::RatePolicy };
            assert_eq!(decision.reason(), reason);
            assert_eq!(decide(&policy, &mut state, &idle).desired, down);
        }
    }

    #[test]
    fn part_of_a_pod_counts_as_one() {
        let policy = with_rates(&[percent_per(10, 60)], &[percent_per(10, 60)], SelectPolicy::Max);
        let mut state = State::new(NOW - s(1), 5);
        assert_eq!(decide(&policy, &mut state, &seen(5, cpus(&[5.0; 5]))).desired, 6);
        assert_eq!(decide(&policy, &mut state, &seen(5, cpus(&[0.0; 5]))).desired, 4);
        let policy = with_rates(&[pods_per(1, 1)], &[percent_per(1000, 60)], SelectPolicy::Max);
        assert_eq!(decide(&policy, &mut state, &seen(5, cpus(&[0.0; 5]))).desired, 1);
    }

    #[test]
    fn changes_within_the_period_use_up_its_allowance() {
        let policy = with_rates(&[pods_per(4, 60)], &[pods_per(4, 60)], SelectPolicy::Max);
        let mut state = State::new(NOW, 3);
        state.record_scale(NOW, 3, 6);
        let six = seen(6, cpus(&[5.0; 6]));
        assert_eq!(decide(&policy, &mut state, &at(1, &six)).desired, 7);
        assert_eq!(decide(&policy, &mut state, &at(59, &six)).desired, 7);
        assert_eq!(decide(&policy, &mut state, &at(60, &six)).desired, 10);
        // Growth in the period gives shrinking back as much again: the period began with 3.
        let mut state = State::new(NOW, 3);
        state.record_scale(NOW, 3, 6);
        assert_eq!(decide(&policy, &mut state, &at(1, &seen(6, cpus(&[0.0; 6])))).desired, 1);
        let mut state = State::new(NOW, 10);
        state.record_scale(NOW, 10, 6);
        let six = seen(6, cpus(&[0.0; 6]));
        assert_eq!(decide(&policy, &mut state, &at(59, &six)).desired, 6);
        assert_eq!(decide(&policy, &mut state, &at(60, &six)).desired, 2);
        // A spent allowance never turns into a move the other way.
        let mut state = State::new(NOW, 3);
        state.record_scale(NOW, 3, 30);
        let thirty = at(1, &seen(30, cpus(&[5.0; 30])));
        assert_eq!(decide(&policy, &mut state, &thirty).desired, 30);
    }

    #[test]
    fn shrinking_waits_for_the_whole_window_to_agree() {
        let mut config = hpa(0.5);
        config.behavior.scale_down.stabilization_window = s(300);
        let policy = Policy::new(config).unwrap();
        let mut state = State::new(NOW, 10);
        let (idle, half) = (seen(10, cpus(&[0.1; 10])), seen(10, cpus(&[0.3; 10])));
        let first = decide(&policy, &mut state, &at(1, &idle));
        assert_eq!((first.desired, first.reason()), (10, Reason::StabilizedWindow));
        assert_eq!(decide(&policy, &mut state, &at(100, &half)).desired, 10);
        assert_eq!(decide(&policy, &mut state, &at(299, &idle)).desired, 10);
        // The seed is out, the recommendation of 6 at 100 s is not.
        assert_eq!(decide(&policy, &mut state, &at(300, &idle)).desired, 6);
        assert_eq!(decide(&policy, &mut state, &at(399, &idle)).desired, 6);
        assert_eq!(decide(&policy, &mut state, &at(400, &idle)).desired, 2);
    }

    #[test]
    fn growth_waits_for_its_window_too() {
        let mut config = hpa(0.5);
        config.behavior.scale_up.stabilization_window = s(60);
        let policy = Policy::new(config).unwrap();
        let mut state = State::new(NOW, 2);
        let busy = seen(2, cpus(&[2.0; 2]));
        assert_eq!(decide(&policy, &mut state, &at(1, &busy)).desired, 2);
        // A moment without samples neither agrees nor disagrees.
        assert_eq!(decide(&policy, &mut state, &at(30, &seen(2, vec![]))).desired, 2);
        assert_eq!(decide(&policy, &mut state, &at(59, &busy)).desired, 2);
        assert_eq!(decide(&policy, &mut state, &at(60, &busy)).desired, 8);
        // A single calm sample starts the window anew.
        assert_eq!(decide(&policy, &mut state, &at(61, &seen(2, cpus(&[0.5; 2])))).desired, 2);
        assert_eq!(decide(&policy, &mut state, &at(62, &busy)).desired, 2);
    }

    #[test]
    fn time_without_samples_does_not_count_towards_shrinking() {
        let mut config = hpa(0.5);
        config.behavior.scale_down.stabilization_window = s(300);
        let policy = Policy::new(config).unwrap();
        let mut state = State::new(NOW, 10);
        for second in 0..600 {
            assert_eq!(
                decide(&policy, &mut state, &at(second, &seen(10, vec![without_cpu(); 10]))).desired,
                10
            );
        }
        let idle = seen(10, cpus(&[0.1; 10]));
        assert_eq!(decide(&policy, &mut state, &at(600, &idle)).desired, 10);
        assert_eq!(decide(&policy, &mut state, &at(898, &idle)).desired, 10);
        assert_eq!(decide(&policy, &mut state, &at(899, &idle)).desired, 2);
    }

    #[test]
    fn a_moment_seen_in_part_counts_towards_shrinking_as_far_as_it_was_seen() {
        let mut config = PolicyConfig { cpu: PolicyConfig::default().cpu, ..hpa(0.7) };
        config.behavior.scale_down.stabilization_window = s(300);
        let policy = Policy::new(config).unwrap();
        let mut state = State::new(NOW, 5);
        let part = seen(5, vec![pod(0.1), pod(0.1), pod(0.1), without_cpu(), without_cpu()]);
        let idle = seen(5, cpus(&[0.1; 5]));
        assert_eq!(decide(&policy, &mut state, &at(200, &part)).desired, 5);
        // Too little is seen to shrink now, though the window is over.
        let held = decide(&policy, &mut state, &at(300, &part));
        assert_eq!((held.desired, held.reason()), (5, Reason::FailedTriggerForbidsShrink));
        // 2.3 at the target of 0.7 need four pods.
        assert_eq!(decide(&policy, &mut state, &at(301, &idle)).desired, 4);
        assert_eq!(decide(&policy, &mut state, &at(599, &idle)).desired, 4);
        assert_eq!(decide(&policy, &mut state, &at(600, &idle)).desired, 1);
    }

    #[test]
    fn fallback_needs_failures_in_a_row_and_never_shrinks() {
        let config = PolicyConfig {
            queue_depth: Some(exact(0.5)),
            fallback: Some(Fallback { failures: 3, replicas: 6 }),
            ..hpa(0.5)
        };
        let policy = Policy::new(config).unwrap();
        let mut state = State::new(NOW, 4);
        let unseen = |replicas| {
            let pod = PodObservation { queue: Err(MissingReason::Unreachable), ..without_cpu() };
            seen(replicas, vec![pod; 4])
        };
        let (blind, fine) = (unseen(4), seen(4, cpus(&[0.5; 4])));
        let mut desired = |second: u64, observation: &Observation| {
            let decision = decide(&policy, &mut state, &at(second, observation));
            (decision.desired, decision.reason())
        };
        let hold = (4, Reason::FailedTriggerForbidsShrink);
        assert_eq!(desired(1, &blind), hold);
        assert_eq!(desired(2, &blind), hold);
        // Asking twice about one moment does not make it two failures.
        assert_eq!(desired(2, &blind), hold);
        assert_eq!(desired(3, &fine), (4, Reason::WithinBand));
        assert_eq!(desired(4, &blind), hold);
        assert_eq!(desired(5, &blind), hold);
        assert_eq!(desired(6, &blind), (6, Reason::Fallback));
        assert_eq!(desired(6, &blind), (6, Reason::Fallback));
        assert_eq!(desired(7, &unseen(9)), (9, Reason::FailedTriggerForbidsShrink));
        // One trigger of two is enough to be partly blind.
        let no_queue = PodObservation { queue: Err(MissingReason::NotReported), ..pod(0.5) };
        assert_eq!(desired(8, &seen(4, vec![no_queue; 4])), (6, Reason::Fallback));
    }

    #[test]
    fn a_cluster_that_is_only_starting_needs_no_fallback() {
        let fallback = Some(Fallback { failures: 1, replicas: 6 });
        let config = PolicyConfig { fallback, ..hpa(0.5) };
        check(config.clone(), 4, vec![], 4, Reason::FailedTriggerForbidsShrink);
        let starting = vec![in_phase(PodPhase::Pending, without_cpu()), never_ready(without_cpu())];
        check(config, 4, starting, 4, Reason::FailedTriggerForbidsShrink);
    }

    #[test]
    fn a_slow_database_holds_growth_and_does_not_shrink() {
        let guard = DownstreamGuard { commit_latency: Duration::from_millis(500), cpu_below: 0.4 };
        let config =
            PolicyConfig { queue_depth: Some(exact(0.5)), downstream_guard: Some(guard), ..hpa(0.5) };
        let waiting =
            |cpu, downstream| vec![PodObservation { queue: Ok(queue(1.0)), downstream, ..pod(cpu) }; 4];
        let slow = Ok(DownstreamSample { commits: 10.0, commit_seconds: 5.1 });
        let fast = Ok(DownstreamSample { commits: 10.0, commit_seconds: 5.0 });
        let stalled = Ok(DownstreamSample { commits: 0.0, commit_seconds: 0.0 });
        check(config.clone(), 4, waiting(0.1, slow), 4, Reason::DownstreamSaturated);
        check(config.clone(), 4, waiting(0.1, stalled), 4, Reason::DownstreamSaturated);
        check(config.clone(), 4, waiting(0.1, fast), 8, Reason::ScaleUp);
        // Busy pods are not waiting for the database.
        check(config.clone(), 4, waiting(0.4, slow), 8, Reason::ScaleUp);
        // What is not measured holds nothing.
        check(config.clone(), 4, waiting(0.1, Err(MissingReason::Unreachable)), 8, Reason::ScaleUp);
        let garbage = Ok(DownstreamSample { commits: f64::NAN, commit_seconds: 9.0 });
        check(config.clone(), 4, waiting(0.1, garbage), 8, Reason::ScaleUp);
        // Most of the pods that commit decide: not one that hangs, not the many commits of the fast, and not the idle.
        let mixed = |downstream: [_; 4]| {
            let with = |downstream| PodObservation { queue: Ok(queue(1.0)), downstream, ..pod(0.1) };
            downstream.map(with).to_vec()
        };
        let hanging = Ok(DownstreamSample { commits: 1.0, commit_seconds: 300.0 });
        let many_fast = Ok(DownstreamSample { commits: 1000.0, commit_seconds: 5.0 });
        check(config.clone(), 4, mixed([hanging, fast, fast, fast]), 8, Reason::ScaleUp);
        check(config.clone(), 4, mixed([many_fast, slow, slow, slow]), 4, Reason::DownstreamSaturated);
        check(config.clone(), 4, mixed([many_fast, slow, slow, many_fast]), 8, Reason::ScaleUp);
        check(config.clone(), 4, mixed([fast, stalled, stalled, stalled]), 8, Reason::ScaleUp);
        check(config.clone(), 4, mixed([slow, stalled, stalled, stalled]), 4, Reason::DownstreamSaturated);
        // The guard only holds: with an empty queue the cluster may still shrink for lack of load.
        let idle = vec![PodObservation { downstream: slow, ..pod(0.1) }; 4];
        check(config.clone(), 4, idle, 1, Reason::ScaleDown);
        // And the minimum is not growth that could be held.
        let below_min = PolicyConfig { replicas_min: 6, ..config };
        check(below_min, 4, waiting(0.1, slow), 6, Reason::Min);
    }

    #[test]
    fn a_clock_that_runs_backwards_or_overflows_is_survived() {
        let policy = Policy::new(PolicyConfig::default()).unwrap();
        let mut state = State::new(NOW, 10);
        let (idle, half) = (seen(10, cpus(&[0.1; 10])), seen(10, cpus(&[0.35; 10])));
        assert_eq!(decide(&policy, &mut state, &at(200, &idle)).desired, 10);
        // Back at 0 s, yet noted as of 200 s: it does not expire before its time.
        assert_eq!(decide(&policy, &mut state, &half).desired, 10);
        assert_eq!(decide(&policy, &mut state, &at(499, &idle)).desired, 5);
        assert_eq!(decide(&policy, &mut state, &at(500, &idle)).desired, 3);
        state.record_scale(Duration::MAX, 10, 12);
        let mut end = idle;
        end.now = Duration::MAX;
        assert!((3..=20).contains(&decide(&policy, &mut state, &end).desired));
    }
}

#[test]
fn a_decision_explains_itself() {
    let mut pods = cpus(&[0.9, 0.9, 0.9]);
    pods.push(without_cpu());
    let config = PolicyConfig { replicas_max: 5, ..PolicyConfig::default() };
    let grown = decide_once(PolicyConfig { cpu: Some(exact(0.5)), ..config.clone() }, &seen(4, pods));
    assert_eq!(
        grown.to_string(),
        "scale from 4 to 5: cpu 0.90 is above 0.50 and asks for 6 (1 of 4 pods without sample, first pod-3: pod did \
         not answer), queueDepth 0.00 is below 0.10 and asks for 0; at most 5"
    );
    let part = seen(5, vec![pod(0.1), pod(0.1), pod(0.1), without_cpu(), without_cpu()]);
    assert_eq!(
        decide_once(PolicyConfig { cpu: PolicyConfig::default().cpu, ..hpa(0.7) }, &part).to_string(),
        "stay at 5: cpu 0.10 is below 0.40 only where seen (2 of 5 pods without sample, first pod-3: pod did not answer); \
         5 instead of 4, as missing samples forbid shrinking"
    );
    let held = decide_once(config, &seen(4, vec![]));
    assert_eq!(
        held.to_string(),
        "stay at 4: cpu unknown, as there are no pods to measure, queueDepth unknown, as there are no pods to measure"
    );
}
