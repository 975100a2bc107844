use certeus_autoscale::{MissingReason, PodPhase, Reason, State};
use certeus_crds::LedgerClusterStatus;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::manifest::{Object, parse as parse_manifests};
use crate::validate::validate;

/// Pods have been up for this long when a test begins, so that none counts as starting.
const START: Duration = Duration::from_secs(1000);

fn cluster(spec: &str) -> Cluster {
    let text = format!(
        "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: {{ name: demo, generation: 4 }}\n\
         spec: {{ database: {{ embedded: true }}, resources: {{ requests: {{ cpu: 100m }} }}, {spec} }}"
    );
    match parse_manifests(std::path::Path::new("test.yaml"), &text).unwrap().remove(0).object {
        Object::LedgerCluster(cluster) => validate(&cluster).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn scaled() -> Cluster {
    cluster("autoscaling: { min: 1, max: 4, cooldown: 0s }")
}

/// A page of a healthy pod: CPU seconds used so far and events waiting of 1000.
fn page(cpu_seconds: f64, queue_events: u32) -> String {
    format!(
        "certeus_process_start_time_seconds 100\ncerteus_process_cpu_seconds_total {cpu_seconds}\n\
         certeus_ledger_queue_events {queue_events}\ncerteus_ledger_queue_events_max 1000\n\
         certeus_ledger_queue_bytes 0\ncerteus_ledger_queue_bytes_max 1000\n\
         certeus_ledger_queue_oldest_age_seconds 0\ncerteus_ledger_commit_duration_seconds_sum {cpu_seconds}\n\
         certeus_ledger_commit_duration_seconds_count 200\ncerteus_ledger_database_up 1\ncerteus_draining 0\n"
    )
}

const RUNNING: PodPhase =
    PodPhase::Running { ready: true, started_at: Duration::ZERO, ready_changed_at: Duration::ZERO };

/// A ready pod, scraped at [`START`] and two seconds later.
fn pod(name: &str, before: &str, after: &str) -> PodScrape {
    PodScrape {
        name: name.to_owned(),
        phase: RUNNING,
        previous: Some(parse(START, before)),
        latest: Ok(parse(START + Duration::from_secs(2), after)),
    }
}

fn observe_one(pod: &PodScrape) -> PodObservation {
    observe(&scaled(), START + Duration::from_secs(2), 1, std::slice::from_ref(pod)).pods.remove(0)
}

fn decide_once(cluster: &Cluster, replicas: u32, pods: &[PodScrape]) -> (Observation, Outcome) {
    let observation = observe(cluster, START + Duration::from_secs(2), replicas, pods);
    let outcome = decide(cluster, &mut State::new(START, replicas), &observation);
    (observation, outcome)
}

#[test]
fn cpu_is_the_rate_between_two_scrapes_over_the_request() {
    // 0.16 s of CPU in 2 s is 0.08 cores of 0.1 requested.
    let cpu = observe_one(&pod("demo-0", &page(10.0, 0), &page(10.16, 0))).cpu.unwrap();
    assert!((cpu.utilization - 0.8).abs() < 1e-9, "{cpu:?}");
    assert_eq!(cpu.since, START);
}

#[test]
fn commits_are_counted_between_two_scrapes() {
    let after = page(10.5, 0).replace("count 200", "count 250");
    let downstream = observe_one(&pod("demo-0", &page(10.0, 0), &after)).downstream.unwrap();
    assert_eq!((downstream.commits, downstream.commit_seconds), (50.0, 0.5));
}

#[test]
fn a_rate_needs_two_scrapes_of_one_process() {
    let healthy = pod("demo-0", &page(10.0, 0), &page(10.16, 0));
    let restarted = page(10.16, 0).replace("start_time_seconds 100", "start_time_seconds 101");
    let same_moment = PodScrape { previous: healthy.latest.clone().ok(), ..healthy.clone() };
    let cases = [
        pod("restarted, counter already past the old value", &page(10.0, 0), &restarted),
        pod("counter went back", &page(10.0, 0), &page(9.0, 0)),
        PodScrape { previous: None, ..healthy.clone() },
        same_moment,
    ];
    for case in cases {
        let seen = observe_one(&case);
        assert_eq!(seen.cpu, Err(MissingReason::TooFewScrapes), "{}", case.name);
        assert!(seen.queue.is_ok(), "one scrape is enough for the queue");
    }
    // Without the start time a replaced process cannot be told from the old one.
    let anonymous = page(10.16, 0).replace("certeus_process_start_time_seconds 100\n", "");
    assert_eq!(observe_one(&pod("demo-0", &page(10.0, 0), &anonymous)).cpu, Err(MissingReason::NotReported));
}

#[test]
fn what_was_not_reported_is_missing_with_its_reason() {
    let without = |line: &str| {
        let page = page(10.16, 5).lines().filter(|l| !l.starts_with(line)).collect::<Vec<_>>().join("\n");
        observe_one(&pod("demo-0", &self::page(10.0, 5), &page))
    };
    for metric in
        ["queue_events ", "queue_events_max", "queue_bytes ", "queue_bytes_max", "queue_oldest_age_seconds"]
    {
        let seen = without(&format!("certeus_ledger_{metric}"));
        assert_eq!(seen.queue, Err(MissingReason::NotReported), "{metric}");
        assert!(seen.cpu.is_ok(), "other metrics stay");
    }
    assert_eq!(without("certeus_process_cpu_seconds_total").cpu, Err(MissingReason::NotReported));

    let nan = page(10.16, 5).replace("queue_bytes 0", "queue_bytes NaN");
    assert_eq!(observe_one(&pod("demo-0", &page(10.0, 5), &nan)).queue, Err(MissingReason::NotANumber));

    let healthy = pod("demo-0", &page(10.0, 0), &page(10.16, 0));
    let silent = PodScrape { latest: Err(MissingReason::Unreachable), ..healthy.clone() };
    let seen = observe_one(&silent);
    assert_eq!(
        (seen.cpu.err(), seen.queue.err()),
        (Some(MissingReason::Unreachable), Some(MissingReason::Unreachable))
    );

    let late = START + Duration::from_secs(2) + SAMPLE_AGE_MAX;
    let at = |now| observe(&scaled(), now, 1, std::slice::from_ref(&healthy)).pods.remove(0).queue;
    assert!(at(late).is_ok());
    assert_eq!(at(late + Duration::from_millis(1)), Err(MissingReason::Stale));
}

#[test]
fn a_pod_that_says_it_drains_is_not_counted() {
    let draining = page(10.16, 0).replace("certeus_draining 0", "certeus_draining 1");
    assert_eq!(observe_one(&pod("demo-0", &page(10.0, 0), &draining)).phase, PodPhase::Draining);
    assert_eq!(observe_one(&pod("demo-0", &page(10.0, 0), &page(10.16, 0))).phase, RUNNING);
}

#[test]
fn load_grows_a_cluster_idleness_shrinks_it_and_silence_does_neither() {
    let busy = [pod("demo-0", &page(10.0, 0), &page(10.4, 0))];
    assert_eq!(decide_once(&scaled(), 1, &busy).1.desired, 3, "2.0 of one request, aiming at 0.7");
    let full = [pod("demo-0", &page(10.0, 900), &page(10.1, 900).replace("count 200", "count 300"))];
    assert_eq!(decide_once(&scaled(), 1, &full).1.desired, 3, "0.9 of the queue, aiming at 0.3");

    let idle = |name: &str| pod(name, &page(10.0, 0), &page(10.01, 0));
    assert_eq!(decide_once(&scaled(), 2, &[idle("demo-0"), idle("demo-1")]).1.desired, 1);
    let silent = PodScrape { latest: Err(MissingReason::Unreachable), ..idle("demo-1") };
    assert_eq!(decide_once(&scaled(), 2, &[idle("demo-0"), silent]).1.desired, 2);
    let lost_metric = pod("demo-1", &page(10.0, 0), &page(10.01, 0).replace("process_cpu", "process_gpu"));
    assert_eq!(decide_once(&scaled(), 2, &[idle("demo-0"), lost_metric]).1.desired, 2);
}

#[test]
fn a_paused_cluster_stays_and_a_fixed_one_has_its_count() {
    let busy = [pod("demo-0", &page(10.0, 0), &page(11.0, 0))];
    let paused = cluster("paused: true, autoscaling: { min: 1, max: 4 }");
    assert_eq!(decide_once(&paused, 1, &busy).1, Outcome { desired: 1, decision: None });
    let fixed = cluster("replicas: 2, autoscaling: { enabled: false }");
    assert_eq!(decide_once(&fixed, 1, &busy).1, Outcome { desired: 2, decision: None });
}

fn conditions(status: &LedgerClusterStatus) -> Vec<String> {
    status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
}

fn status_of(
    cluster: &Cluster,
    replicas: u32,
    pods: &[PodScrape],
    before: Option<&LedgerClusterStatus>,
    second: i64,
) -> LedgerClusterStatus {
    let (observation, outcome) = decide_once(cluster, replicas, pods);
    let now = Timestamp::from_second(second).unwrap();
    status(cluster, Observed { pods, observation: &observation, outcome: &outcome, before, now })
}

#[test]
fn status_explains_a_surge_and_keeps_the_explanation() {
    let busy = [pod("demo-0", &page(10.0, 0), &page(10.4, 0))];
    let first = status_of(&scaled(), 1, &busy, None, 60);
    assert_eq!((first.replicas, first.ready_replicas, first.desired_replicas), (1, 1, 3));
    assert_eq!(first.observed_generation, Some(4));
    assert_eq!(
        first.selector.as_deref(),
        Some("app.kubernetes.io/instance=demo,app.kubernetes.io/name=certeus-dataplane")
    );
    let triggers: Vec<_> =
        first.triggers.iter().map(|t| (t.name.as_str(), t.value, t.proposed_replicas)).collect();
    assert_eq!(triggers, [("cpu", Some(2.0), Some(3)), ("queueDepth", Some(0.0), Some(0))]);
    let decision = first.last_decision.clone().unwrap();
    assert_eq!((decision.from, decision.to, decision.reason.as_str()), (1, 3, Reason::ScaleUp.as_str()));
    assert!(decision.message.contains("cpu 2.00 is above 0.80 and asks for 3"), "{}", decision.message);
    assert_eq!(
        conditions(&first),
        [
            "Ready=True PodsReady",
            "Progressing=True AddingPods",
            "ScalingActive=True Measured",
            "ScalingLimited=False NotLimited",
            "Degraded=False AsExpected"
        ]
    );

    // Later nothing asks for a change: the surge stays the last decision, and conditions that hold keep their time.
    let calm = |name: &str| pod(name, &page(10.0, 200), &page(10.12, 200));
    let pods = [calm("demo-0"), calm("demo-1"), calm("demo-2")];
    let second = status_of(&scaled(), 3, &pods, Some(&first), 90);
    assert_eq!(second.last_decision, first.last_decision);
    assert_eq!(second.conditions[1].reason, "Stable");
    let times: Vec<&Time> = second.conditions.iter().map(|c| &c.last_transition_time).collect();
    let at = |second| Time(Timestamp::from_second(second).unwrap());
    assert_eq!(times, [&at(60), &at(90), &at(60), &at(60), &at(60)]);

    // An unchanged world gives an unchanged status, so that nothing is written.
    assert_eq!(status_of(&scaled(), 3, &pods, Some(&second), 120), second);
}

#[test]
fn status_tells_what_is_wrong() {
    let healthy = pod("demo-0", &page(10.0, 0), &page(10.1, 0));
    let silent = PodScrape { latest: Err(MissingReason::Unreachable), ..healthy.clone() };
    let status = status_of(&scaled(), 1, &[silent], None, 0);
    assert_eq!(conditions(&status)[2], "ScalingActive=False MeasurementFailed");
    assert!(
        status.conditions[2].message.contains("demo-0: pod did not answer"),
        "{}",
        status.conditions[2].message
    );
    assert_eq!((status.triggers[0].value, status.triggers[0].error.is_some()), (None, true));

    let unready = PodPhase::Running { ready: false, started_at: Duration::ZERO, ready_changed_at: START };
    let cut_off = pod("demo-0", &page(10.0, 0), &page(10.1, 0).replace("database_up 1", "database_up 0"));
    let status = status_of(&scaled(), 1, &[PodScrape { phase: unready, ..cut_off }], None, 0);
    assert_eq!(conditions(&status)[0], "Ready=False PodsNotReady");
    assert_eq!(conditions(&status)[4], "Degraded=True DatabaseUnavailable");

    let at_max: Vec<_> = (0..4).map(|n| pod(&format!("demo-{n}"), &page(10.0, 0), &page(10.4, 0))).collect();
    let status = status_of(&scaled(), 4, &at_max, None, 0);
    assert_eq!(conditions(&status)[3], "ScalingLimited=True Max");
    assert_eq!(status.conditions[3].message, "4 pods instead of 12");
}
