use certeus_autoscale::{MissingReason, PodPhase, State};

use super::*;
use crate::manifest::{Object, parse as parse_manifests};
use crate::validate::validate;

/// Pods have been up for this long when a test begins, so that none counts as starting.
pub(super) const START: Duration = Duration::from_secs(1000);

pub(super) fn cluster(spec: &str) -> Cluster {
    let text = format!(
        "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: {{ name: demo, generation: 4 }}\n\
         spec: {{ database: {{ embedded: true }}, resources: {{ requests: {{ cpu: 100m }} }}, {spec} }}"
    );
    match parse_manifests(std::path::Path::new("test.yaml"), &text).unwrap().remove(0).object {
        Object::LedgerCluster(cluster) => validate(&cluster).unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn scaled() -> Cluster {
    cluster("autoscaling: { min: 1, max: 4, cooldown: 0s }")
}

/// A page of a healthy pod: CPU seconds used so far and events waiting of 1000.
pub(super) fn page(cpu_seconds: f64, queue_events: u32) -> String {
    format!(
        "certeus_process_start_time_seconds 100\ncerteus_process_cpu_seconds_total {cpu_seconds}\n\
         certeus_ledger_queue_events {queue_events}\ncerteus_ledger_queue_events_max 1000\n\
         certeus_ledger_queue_bytes 0\ncerteus_ledger_queue_bytes_max 1000\n\
         certeus_ledger_queue_oldest_age_seconds 0\ncerteus_ledger_commit_duration_seconds_sum {cpu_seconds}\n\
         certeus_ledger_commit_duration_seconds_count 200\ncerteus_ledger_database_up 1\ncerteus_draining 0\n"
    )
}

pub(super) const RUNNING: PodPhase =
    PodPhase::Running { ready: true, started_at: Duration::ZERO, ready_changed_at: Duration::ZERO };

/// A ready pod, scraped at [`START`] and two seconds later.
pub(super) fn pod(name: &str, before: &str, after: &str) -> PodScrape {
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

pub(super) fn decide_once(cluster: &Cluster, replicas: u32, pods: &[PodScrape]) -> (Observation, Outcome) {
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
fn a_page_that_came_late_is_no_load() {
    let with = |uptime: f64, cpu| format!("certeus_process_uptime_seconds {uptime}\n{}", page(cpu, 0));
    // 0.08 s of work in a second of the pod's own time, though two seconds lie between the replies.
    let late = pod("demo-0", &with(100.0, 10.0), &with(101.0, 10.08));
    assert!((observe_one(&late).cpu.unwrap().utilization - 0.8).abs() < 1e-9);
    let same = pod("demo-0", &with(100.0, 10.0), &with(100.0, 10.0));
    assert_eq!(observe_one(&same).cpu, Err(MissingReason::TooFewScrapes));
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

#[test]
fn a_stopped_cluster_has_no_pods_and_a_new_one_its_fewest() {
    let busy = [pod("demo-0", &page(10.0, 0), &page(11.0, 0))];
    let stopped = cluster("stopped: true, autoscaling: { min: 1, max: 4 }");
    assert_eq!(decide_once(&stopped, 1, &busy).1, Outcome { desired: 0, decision: None });
    assert_eq!(decide_once(&stopped, 0, &[]).1, Outcome { desired: 0, decision: None });
    let new = cluster("autoscaling: { min: 2, max: 4 }");
    assert_eq!(decide_once(&new, 0, &[]).1, Outcome { desired: 2, decision: None });
}

#[test]
fn a_dry_run_decides_and_leaves_the_count() {
    let busy = [pod("demo-0", &page(10.0, 0), &page(10.4, 0))];
    let dry = cluster("dryRun: true, autoscaling: { min: 1, max: 4 }");
    let outcome = decide_once(&dry, 1, &busy).1;
    assert_eq!((outcome.desired, outcome.replicas(&dry, 1)), (3, 1));
    assert_eq!(outcome.replicas(&scaled(), 1), 3);
}
