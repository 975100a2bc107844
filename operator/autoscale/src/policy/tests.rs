use super::*;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn error(change: impl FnOnce(&mut PolicyConfig)) -> PolicyError {
    let mut config = PolicyConfig::default();
    change(&mut config);
    Policy::new(config).unwrap_err()
}

#[test]
fn the_default_is_valid_and_as_documented() {
    let policy = Policy::new(PolicyConfig::default()).unwrap();
    let config = policy.config();
    assert_eq!((config.replicas_min, config.replicas_max), (3, 20));
    let cpu = Trigger { target: 0.70, scale_up_threshold: 0.80, scale_down_threshold: 0.40 };
    assert_eq!(config.cpu, Some(cpu));
    assert_eq!(config.behavior.scale_down.stabilization_window, s(300));
}

#[test]
fn bounds_must_be_in_order_and_within_the_limit() {
    for (min, max) in [(0, 5), (6, 5), (1, REPLICAS_LIMIT + 1)] {
        let found = error(|config| (config.replicas_min, config.replicas_max) = (min, max));
        assert_eq!(found, PolicyError::ReplicaBounds { min, max });
    }
    let fixed = PolicyConfig { replicas_min: 5, replicas_max: 5, ..PolicyConfig::default() };
    assert!(Policy::new(fixed).is_ok());
}

#[test]
fn a_trigger_needs_its_numbers_in_order() {
    for (down, target, up) in [
        (0.5, 0.4, 0.8),
        (0.4, 0.9, 0.8),
        (-0.1, 0.7, 0.8),
        (0.0, 0.0, 0.8),
        (0.4, f64::NAN, 0.8),
        (f64::NAN, 0.7, 0.8),
        (0.4, 0.7, f64::INFINITY),
        (0.4, 0.7, 1000.1),
    ] {
        let trigger = Trigger { target, scale_up_threshold: up, scale_down_threshold: down };
        let found = error(|config| config.queue_depth = Some(trigger));
        assert!(matches!(found, PolicyError::Trigger { trigger: TriggerKind::QueueDepth, .. }), "{found}");
    }
    let same = Trigger { target: 0.5, scale_up_threshold: 0.5, scale_down_threshold: 0.5 };
    assert!(Policy::new(PolicyConfig { cpu: Some(same), ..PolicyConfig::default() }).is_ok());
}

#[test]
fn every_other_field_is_checked_and_named() {
    let none = error(|config| (config.cpu, config.queue_depth) = (None, None));
    assert_eq!(none, PolicyError::NoTrigger);
    let window = error(|config| config.behavior.scale_down.stabilization_window = s(3601));
    assert_eq!(window, PolicyError::StabilizationWindow { direction: "scaleDown", window: s(3601) });
    let empty = error(|config| config.behavior.scale_up.policies.clear());
    assert_eq!(empty, PolicyError::NoRatePolicy { direction: "scaleUp" });
    for (change, period) in [
        (Change::Pods(0), s(15)),
        (Change::Percent(0), s(15)),
        (Change::Pods(1), s(0)),
        (Change::Pods(1), s(1801)),
    ] {
        let rate = error(|config| config.behavior.scale_down.policies.push(RatePolicy { change, period }));
        assert_eq!(rate, PolicyError::RatePolicy { direction: "scaleDown", index: 1 });
    }
    for tolerance in [-0.1, f64::INFINITY] {
        let found = error(|config| config.behavior.scale_up.tolerance = tolerance);
        assert_eq!(found, PolicyError::Tolerance { direction: "scaleUp", tolerance });
    }
    let age = error(|config| config.queue_age_full = Duration::ZERO);
    assert_eq!(age, PolicyError::ZeroDuration { field: "queueAgeFull" });
    for (failures, replicas) in [(0, 5), (1, 2), (1, 21)] {
        let found = error(|config| config.fallback = Some(Fallback { failures, replicas }));
        assert_eq!(found, PolicyError::Fallback { failures, replicas });
    }
    let guard = |commit_latency, cpu_below| Some(DownstreamGuard { commit_latency, cpu_below });
    let latency = error(|config| config.downstream_guard = guard(Duration::ZERO, 0.4));
    assert_eq!(latency, PolicyError::ZeroDuration { field: "downstreamGuard.commitLatency" });
    let cpu = error(|config| config.downstream_guard = guard(s(1), 0.0));
    assert_eq!(cpu, PolicyError::GuardCpu { cpu_below: 0.0 });
}

#[test]
fn growth_disabled_needs_no_rate_policy() {
    let mut config = PolicyConfig::default();
    config.behavior.scale_up.policies.clear();
    config.behavior.scale_up.select_policy = SelectPolicy::Disabled;
    assert!(Policy::new(config).is_ok());
}
