use std::collections::BTreeSet;

use certeus_autoscale::{MissingReason, PodPhase, Reason};
use certeus_crds::{FieldError, LedgerCluster, LedgerClusterStatus, SpooledVolume};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::tests::{RUNNING, START, cluster, decide_once, page, pod, scaled};
use super::*;

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
    status_in(cluster, replicas, pods, None, before, second)
}

fn status_in(
    cluster: &Cluster,
    replicas: u32,
    pods: &[PodScrape],
    surroundings: Option<Surroundings<'_>>,
    before: Option<&LedgerClusterStatus>,
    second: i64,
) -> LedgerClusterStatus {
    let (_, Outcome { desired, decision }) = decide_once(cluster, replicas, pods);
    let (decision, now, applied) = (decision.as_ref(), at(second), replicas);
    status(cluster, &Observed { pods, desired, applied, decision, draining: &[], surroundings, before, now })
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn condition(status: &LedgerClusterStatus, kind: ConditionType) -> String {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind.as_str());
    found.map(|found| format!("{} {}: {}", found.status, found.reason, found.message)).unwrap_or_default()
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
            "Degraded=False AsExpected",
            "Accepted=True Valid",
            "ScalingActive=True Measured",
            "ScalingLimited=False NotLimited",
            "DatabaseReachable=True Reachable",
        ]
    );

    // Later nothing asks for a change: the surge stays the last decision, and conditions that hold keep their time.
    let calm = |name: &str| pod(name, &page(10.0, 200), &page(10.12, 200));
    let pods = [calm("demo-0"), calm("demo-1"), calm("demo-2")];
    let second = status_of(&scaled(), 3, &pods, Some(&first), 90);
    assert_eq!(second.last_decision, first.last_decision);
    assert_eq!(second.conditions[1].reason, "Stable");
    let times: Vec<&Time> = second.conditions.iter().map(|c| &c.last_transition_time).collect();
    let (first_time, now) = (Time(at(60)), Time(at(90)));
    let mut expected = [&first_time; 7];
    expected[1] = &now;
    assert_eq!(times, expected);

    // An unchanged world gives an unchanged status, so that nothing is written.
    assert_eq!(status_of(&scaled(), 3, &pods, Some(&second), 120), second);
}

#[test]
fn status_tells_what_is_wrong() {
    let healthy = pod("demo-0", &page(10.0, 0), &page(10.1, 0));
    let silent = PodScrape { latest: Err(MissingReason::Unreachable), ..healthy.clone() };
    let status = status_of(&scaled(), 1, &[silent], None, 0);
    let scaling = condition(&status, ConditionType::ScalingActive);
    assert!(
        scaling.starts_with("False MeasurementFailed: ") && scaling.contains("demo-0: pod did not answer"),
        "{scaling}"
    );
    assert_eq!(
        condition(&status, ConditionType::DatabaseReachable),
        "Unknown DatabaseNeverReached: no pod has been able to commit yet"
    );
    assert_eq!((status.triggers[0].value, status.triggers[0].error.is_some()), (None, true));

    let unready = PodPhase::Running { ready: false, started_at: Duration::ZERO, ready_changed_at: START };
    let cut_off = pod("demo-0", &page(10.0, 0), &page(10.1, 0).replace("database_up 1", "database_up 0"));
    let before = status_of(&scaled(), 1, &[calm("demo-0")], None, 0);
    let status = status_of(&scaled(), 1, &[PodScrape { phase: unready, ..cut_off }], Some(&before), 9);
    assert_eq!(conditions(&status)[0], "Ready=False PodsNotReady");
    assert_eq!(conditions(&status)[2], "Degraded=True DatabaseUnavailable");
    assert_eq!(
        condition(&status, ConditionType::DatabaseReachable),
        "False Unreachable: 1 of 1 pods cannot commit"
    );

    let without_anchor = pod("demo-0", &page(10.0, 0), &(page(10.1, 0) + "certeus_ledger_log_checked 0\n"));
    let without_anchor = [without_anchor];
    let first = status_of(&scaled(), 1, &without_anchor, None, 0);
    assert_eq!(conditions(&first)[0], "Ready=False DatabaseNeverReached");
    let database = condition(&first, ConditionType::DatabaseReachable);
    assert!(database.starts_with("False DatabaseNeverReached: 1 of 1 pods reach the database"), "{database}");
    let status = status_of(&scaled(), 1, &without_anchor, Some(&before), 0);
    assert_eq!(conditions(&status)[2], "Degraded=True LogUnchecked");
    let database = condition(&status, ConditionType::DatabaseReachable);
    assert!(database.starts_with("False LogUnchecked: 1 of 1 pods reach the database"), "{database}");

    let at_max: Vec<_> = (0..4).map(|n| pod(&format!("demo-{n}"), &page(10.0, 0), &page(10.4, 0))).collect();
    let status = status_of(&scaled(), 4, &at_max, None, 0);
    assert_eq!(
        condition(&status, ConditionType::ScalingLimited),
        "True Max: the triggers ask for more than 4 pods"
    );
}

#[test]
fn a_cluster_is_ready_once_its_database_was_reached_and_stays_so_while_pods_take_events() {
    let cut_off = [pod("demo-0", &page(10.0, 0), &page(10.1, 0).replace("database_up 1", "database_up 0"))];
    let silent = [PodScrape { latest: Err(MissingReason::Unreachable), ..calm("demo-0") }];
    let ready_and_reachable = |pods: &[PodScrape], before: Option<&LedgerClusterStatus>| {
        let status = status_of(&scaled(), 1, pods, before, 0);
        let reason = |kind| condition(&status, kind).split(':').next().unwrap_or_default().to_owned();
        (status.clone(), reason(ConditionType::Ready), reason(ConditionType::DatabaseReachable))
    };
    let mut before = None;
    for (pods, ready, reachable) in [
        (&[][..], "False PodsNotReady", "Unknown DatabaseNeverReached"),
        (&silent, "False DatabaseNeverReached", "Unknown DatabaseNeverReached"),
        (&cut_off, "False DatabaseNeverReached", "False DatabaseNeverReached"),
        (&[calm("demo-0")], "True PodsReady", "True Reachable"),
        (&cut_off, "True PodsReady", "False Unreachable"),
        (&silent, "True PodsReady", "Unknown NotReported"),
        (&[], "False PodsNotReady", "Unknown NotReported"),
        (&cut_off, "True PodsReady", "False Unreachable"),
    ] {
        let (status, is_ready, is_reachable) = ready_and_reachable(pods, before.as_ref());
        assert_eq!((&*is_ready, &*is_reachable), (ready, reachable));
        before = Some(status);
    }
    // One pod is enough.
    let (_, ready, reachable) = ready_and_reachable(&[calm("demo-0"), cut_off[0].clone()], None);
    assert_eq!((&*ready, &*reachable), ("True PodsReady", "False Unreachable"));
}

#[test]
fn what_is_not_applied_is_not_missing() {
    let pods: Vec<PodScrape> = (0..4).map(|n| calm(&format!("demo-{n}"))).collect();
    let fixed = |spec: &str| cluster(&format!("replicas: 5, autoscaling: {{ enabled: false }}, {spec}"));
    let ready =
        |spec: &str, pods| condition(&status_of(&fixed(spec), 4, pods, None, 0), ConditionType::Ready);
    for spec in ["dryRun: true", "paused: true"] {
        assert_eq!(ready(spec, &pods), "True PodsReady: 4 of at least 4 pods take events");
        assert_eq!(ready(spec, &pods[1..]), "False PodsNotReady: 3 of at least 4 pods take events");
    }
    assert_eq!(ready("paused: false", &pods), "False PodsNotReady: 4 of at least 5 pods take events");
}

/// What is seen of a healthy pod in Kubernetes.
const AROUND: Surroundings<'_> = Surroundings {
    spooled: &[],
    image: Some("a/b:1"),
    outdated_pods: 0,
    problems: &[],
    crashing: &[],
    waiting: &[],
    autoscalers: &[],
    pending: &[],
    verifier_keys: Some(&[]),
    service_monitors: false,
};

fn calm(name: &str) -> PodScrape {
    pod(name, &page(10.0, 200), &page(10.12, 200))
}

fn around(cluster: &Cluster, surroundings: Surroundings<'_>) -> LedgerClusterStatus {
    status_in(cluster, 1, &[calm("demo-0")], Some(surroundings), None, 0)
}

#[test]
fn what_the_user_set_shows_as_a_condition_while_it_is_set() {
    let none = status_of(&scaled(), 1, &[calm("demo-0")], None, 0);
    for kind in [ConditionType::Paused, ConditionType::Stopped, ConditionType::DryRun] {
        assert_eq!(condition(&none, kind), "");
    }
    let paused = status_of(&cluster("paused: true"), 1, &[calm("demo-0")], None, 0);
    assert!(condition(&paused, ConditionType::Paused).starts_with("True Paused: "));
    assert_eq!(condition(&paused, ConditionType::Progressing), "False Paused: spec.paused is true");
    assert_eq!(condition(&paused, ConditionType::ScalingActive), "False Paused: spec.paused is true");

    let stopping = status_of(&cluster("stopped: true"), 1, &[calm("demo-0")], None, 0);
    assert!(condition(&stopping, ConditionType::Stopped).starts_with("True Stopped: "));
    assert!(condition(&stopping, ConditionType::Ready).starts_with("False Stopped: "));
    assert_eq!(condition(&stopping, ConditionType::Progressing), "True RemovingPods: 1 pod draining");
    assert_eq!(stopping.desired_replicas, 0);
    let stopped = status_of(&cluster("stopped: true"), 0, &[], Some(&stopping), 9);
    assert_eq!(condition(&stopped, ConditionType::Progressing), "False Stopped: no pod runs");
    let spooled = [SpooledVolume { name: "spool-demo-1".to_owned(), records: Some(7) }];
    let spooled = Surroundings { spooled: &spooled, ..AROUND };
    let stopped = status_in(&cluster("stopped: true"), 0, &[], Some(spooled), None, 9);
    assert_eq!(stopped.spooled_volumes[0].records, Some(7));
    let told = condition(&stopped, ConditionType::Stopped);
    assert!(told.contains("requests wait on 1 volume (status.spooledVolumes)"), "{told}");
    let both = status_of(&cluster("stopped: true, paused: true"), 1, &[calm("demo-0")], None, 0);
    assert_eq!(both.desired_replicas, 1, "paused goes first");
}

#[test]
fn a_dry_run_tells_what_it_would_do() {
    let dry = cluster("dryRun: true, autoscaling: { min: 1, max: 4, cooldown: 0s }");
    let busy = [pod("demo-0", &page(10.0, 0), &page(10.4, 0))];
    let pending = ["create Service demo".to_owned(), "update ConfigMap demo-config".to_owned()];
    let surroundings = Surroundings { pending: &pending, ..AROUND };
    let status = status_in(&dry, 1, &busy, Some(surroundings), None, 0);
    assert_eq!(
        condition(&status, ConditionType::DryRun),
        "True WouldChange: spec.dryRun is true; it would: scale from 1 to 3 pods; create Service demo; \
         update ConfigMap demo-config"
    );
    assert_eq!((status.desired_replicas, status.replicas), (3, 1));
    assert!(status.last_decision.unwrap().message.contains("cpu 2.00"));
    let status = status_in(&dry, 1, &[calm("demo-0")], Some(AROUND), None, 0);
    assert!(condition(&status, ConditionType::DryRun).starts_with("True NothingToDo: "));
}

#[test]
fn what_is_around_a_cluster_shows() {
    let keys = ["certeus.io/default/demo+00000000+AQ==".to_owned()];
    let status = around(&scaled(), Surroundings { verifier_keys: Some(&keys), ..AROUND });
    assert_eq!((status.image.as_deref(), &status.verifier_keys[..]), (Some("a/b:1"), &keys[..]));
    assert_eq!(status.database.as_deref(), Some("embedded, not for production"));
    assert!(condition(&status, ConditionType::EmbeddedDatabase).starts_with("True NotForProduction: "));
    let with_key = crate::build::with_api_key(scaled());
    assert!(condition(&around(&with_key, AROUND), ConditionType::ApiKey).ends_with("in Secret demo-api-key"));
    assert!(condition(&status, ConditionType::SigningKey).starts_with("True Generated: "));
    assert_eq!(condition(&status, ConditionType::Monitored), "", "nobody asked for it");

    let status = around(&cluster("monitoring: { serviceMonitor: true }"), AROUND);
    assert!(condition(&status, ConditionType::Monitored).starts_with("False DefinitionMissing: "));
    assert!(condition(&status, ConditionType::SigningKey).starts_with("False Unusable: "));
    let named =
        "security: { apiKeySecretRef: { name: k, key: a }, signingKeySecretRef: { name: k, key: s } }";
    let status = around(&cluster(named), Surroundings { verifier_keys: Some(&keys), ..AROUND });
    assert!(condition(&status, ConditionType::SigningKey).starts_with("True Referenced: "));
    assert!(condition(&status, ConditionType::ApiKey).starts_with("True Referenced: "));

    let autoscalers = ["HorizontalPodAutoscaler demo".to_owned()];
    let status = around(&scaled(), Surroundings { autoscalers: &autoscalers, ..AROUND });
    let ambiguous = condition(&status, ConditionType::AmbiguousOwner);
    assert!(
        ambiguous.starts_with("True OtherAutoscaler: HorizontalPodAutoscaler demo scales"),
        "{ambiguous}"
    );
    assert!(condition(&status, ConditionType::ScalingActive).starts_with("False AmbiguousOwner: "));
}

#[test]
fn a_problem_degrades_and_blocks_until_it_is_gone() {
    let problem = |n: usize| Problem {
        reason: ProblemReason::SecretMissing,
        message: format!("Secret s{n} is not there"),
    };
    let problems: Vec<Problem> = (0..10).map(problem).collect();
    let status = around(&scaled(), Surroundings { problems: &problems, outdated_pods: 1, ..AROUND });
    let degraded = condition(&status, ConditionType::Degraded);
    assert!(degraded.starts_with("True SecretMissing: Secret s0 is not there; Secret s1"), "{degraded}");
    assert!(degraded.ends_with("Secret s7 is not there; and 2 more"), "{degraded}");
    assert_eq!(condition(&status, ConditionType::Progressing), "False Blocked: see Degraded");
    assert!(condition(&status, ConditionType::Ready).starts_with("True PodsReady: "), "pods that run go on");
    let surroundings = Some(Surroundings { problems: &problems[..1], ..AROUND });
    let nothing_runs = status_in(&scaled(), 0, &[], surroundings, None, 0);
    assert_eq!(condition(&nothing_runs, ConditionType::Ready), "False SecretMissing: Secret s0 is not there");
    let long = [Problem { reason: ProblemReason::ApplyRefused, message: "é".repeat(3000) }];
    let status = around(&scaled(), Surroundings { problems: &long, ..AROUND });
    assert_eq!(
        condition(&status, ConditionType::Degraded),
        format!("True ApplyRefused: {}", "é".repeat(1024))
    );
    let status = around(&scaled(), Surroundings { outdated_pods: 1, ..AROUND });
    assert_eq!(
        condition(&status, ConditionType::Progressing),
        "True RollingOut: 1 of 1 pods are yet to be replaced"
    );
}

#[test]
fn pods_that_crash_degrade_and_hide_nothing_that_is_worse() {
    let crashing = ["pod demo-0 is restarted again and again, ended last with exit code 2".to_owned()];
    let surroundings = Surroundings { crashing: &crashing, ..AROUND };
    let status = around(&scaled(), surroundings);
    assert_eq!(condition(&status, ConditionType::Degraded), format!("True PodsCrashing: {}", crashing[0]));
    let problems = [Problem { reason: ProblemReason::SecretInvalid, message: "no".to_owned() }];
    let status = around(&scaled(), Surroundings { problems: &problems, ..surroundings });
    assert_eq!(condition(&status, ConditionType::Degraded), "True SecretInvalid: no");
}

#[test]
fn pods_that_do_not_start_degrade_and_are_why_a_cluster_without_others_is_not_ready() {
    let waiting = [
        (ConditionReason::ImagePullFailed, "pod demo-1 has no image"),
        (ConditionReason::PodsUnschedulable, "pod demo-2 has no node"),
    ];
    let waiting = waiting.map(|(reason, message)| PodsWaiting { reason, message: message.to_owned() });
    let surroundings = Surroundings { waiting: &waiting, ..AROUND };
    let told = |pods: &[PodScrape], surroundings| {
        let status = status_in(&scaled(), 2, pods, Some(surroundings), None, 0);
        (condition(&status, ConditionType::Ready), condition(&status, ConditionType::Degraded))
    };
    let pending = PodScrape { phase: PodPhase::Pending, ..calm("demo-1") };
    let (ready, degraded) = told(&[calm("demo-0"), pending.clone()], surroundings);
    assert_eq!(
        (&*ready, &*degraded),
        (
            "True PodsReady: 1 of at least 1 pods take events",
            "True ImagePullFailed: pod demo-1 has no image; pod demo-2 has no node"
        )
    );
    let (ready, _) = told(std::slice::from_ref(&pending), surroundings);
    assert_eq!(ready, "False ImagePullFailed: pod demo-1 has no image");
    let crashing = ["pod demo-0 is restarted again and again".to_owned()];
    let (ready, degraded) = told(&[pending], Surroundings { crashing: &crashing, ..surroundings });
    assert_eq!(ready, "False PodsNotReady: 0 of at least 1 pods take events");
    assert!(degraded.starts_with("True PodsCrashing: "), "{degraded}");
    let cut_off = pod("demo-0", &page(10.0, 0), &page(10.1, 0).replace("database_up 1", "database_up 0"));
    assert!(told(&[cut_off], surroundings).1.starts_with("True DatabaseUnavailable: "));
}

#[test]
fn a_signing_key_that_could_not_be_read_is_unknown_and_its_public_half_stays() {
    let keys = ["certeus.io/default/demo+00000000+AQ==".to_owned()];
    let known = around(&scaled(), Surroundings { verifier_keys: Some(&keys), ..AROUND });
    for (keys_now, expected) in [(None, "Unknown NotRead: "), (Some(&[][..]), "False Unusable: ")] {
        let surroundings = Surroundings { verifier_keys: keys_now, ..AROUND };
        let status = status_in(&scaled(), 1, &[calm("demo-0")], Some(surroundings), Some(&known), 9);
        assert!(condition(&status, ConditionType::SigningKey).starts_with(expected), "{status:?}");
        assert_eq!(status.verifier_keys, keys);
    }
}

#[test]
fn an_invalid_spec_is_told_and_what_runs_is_still_described() {
    let errors = [FieldError::new("spec.a", "is wrong"), FieldError::new("spec.b", "is, too")];
    let never_valid = invalid(Some(7), None, &errors, at(1));
    assert_eq!(conditions(&never_valid), ["Ready=False Invalid", "Accepted=False Invalid"]);
    assert_eq!(never_valid.observed_generation, Some(7));

    let running = status_of(&scaled(), 1, &[calm("demo-0")], None, 60);
    let broken = invalid(Some(7), Some(&running), &errors, at(90));
    assert_eq!(
        condition(&broken, ConditionType::Accepted),
        "False Invalid: spec.a: is wrong; spec.b: is, too"
    );
    assert_eq!((broken.replicas, &broken.conditions[0]), (1, &running.conditions[0]));
    assert_eq!(invalid(Some(7), Some(&broken), &errors, at(120)), broken, "no write");
    let repaired = status_of(&scaled(), 1, &[calm("demo-0")], Some(&broken), 150);
    assert_eq!(condition(&repaired, ConditionType::Accepted), "True Valid: the spec can be carried out");
}

#[test]
fn noise_in_what_is_measured_changes_nothing_and_a_decision_shows_it_exactly() {
    let at_cpu = |cpu: f64| [pod("demo-0", &page(10.0, 200), &page(10.0 + cpu, 200))];
    let first = status_of(&scaled(), 1, &at_cpu(0.12), None, 0);
    assert_eq!(first.triggers[0].value, Some(0.6));
    assert_eq!(status_of(&scaled(), 1, &at_cpu(0.128), Some(&first), 1), first, "0.64");
    assert_eq!(status_of(&scaled(), 1, &at_cpu(0.13), Some(&first), 1).triggers[0].value, Some(0.65));
    let silent = [PodScrape { latest: Err(MissingReason::Unreachable), ..calm("demo-0") }];
    assert_eq!(status_of(&scaled(), 1, &silent, Some(&first), 1).triggers[0].value, None);
    let high = status_of(&scaled(), 1, &at_cpu(0.159), None, 0);
    let scaling = status_of(&scaled(), 1, &at_cpu(0.1602), Some(&high), 1);
    assert_eq!((high.desired_replicas, scaling.desired_replicas), (1, 2));
    assert_eq!((high.triggers[0].value, scaling.triggers[0].value), (Some(0.8), Some(0.8)));
    assert_eq!(scaling.triggers[0].proposed_replicas, Some(2));
}

#[test]
fn every_condition_and_reason_is_explained_to_users() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conditions.md");
    let text = std::fs::read_to_string(path).unwrap();
    let types = ConditionType::ALL.iter().map(|kind| kind.as_str());
    let reasons = ConditionReason::ALL.iter().map(|reason| reason.as_str());
    let problems = ProblemReason::ALL.iter().map(|reason| reason.as_str());
    for word in types.chain(reasons).chain(problems) {
        assert!(text.contains(&format!("`{word}`")), "{word} is not in docs/conditions.md");
    }
}

/// A pod in any state, with any page.
fn any_pod(ordinal: usize) -> impl Strategy<Value = PodScrape> {
    let phase = prop_oneof![
        3 => Just(RUNNING),
        1 => Just(PodPhase::Running { ready: false, started_at: Duration::ZERO, ready_changed_at: START }),
        1 => Just(PodPhase::Pending),
        1 => Just(PodPhase::Draining),
        1 => Just(PodPhase::Failed),
    ];
    let latest = prop_oneof![
        5 => (0.0..1.0, 0_u32..1000).prop_map(|(cpu, queue)| Some(page(10.0 + cpu, queue))),
        1 => Just(Some(page(10.1, 0).replace("database_up 1", "database_up 0"))),
        1 => Just(Some(page(10.1, 0) + "certeus_ledger_log_checked 0\n")),
        1 => Just(Some(page(10.1, 0).replace("draining 0", "draining 1"))),
        1 => Just(None),
    ];
    (phase, latest).prop_map(move |(phase, page_after)| {
        let name = format!("demo-{ordinal}");
        let healthy = pod(&name, &page(10.0, 0), page_after.as_deref().unwrap_or_default());
        let latest = if page_after.is_some() { healthy.latest } else { Err(MissingReason::Unreachable) };
        PodScrape { phase, latest, ..healthy }
    })
}

const SPECS: [&str; 6] = [
    "autoscaling: { min: 1, max: 4, cooldown: 0s }",
    "paused: true",
    "stopped: true",
    "dryRun: true",
    "replicas: 2, autoscaling: { enabled: false }",
    "dryRun: true, stopped: true, monitoring: { serviceMonitor: true }",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was seen, seeing it again writes nothing, and what is written fits the API.
    #[test]
    fn status_of_an_unchanged_world_is_unchanged(
        spec in proptest::sample::select(&SPECS[..]),
        pods in (0_usize..5).prop_flat_map(|count| (0..count).map(any_pod).collect::<Vec<_>>()),
        earlier in (0_usize..3).prop_flat_map(|count| (0..count).map(any_pod).collect::<Vec<_>>()),
        in_kubernetes: bool,
        has_problem: bool,
    ) {
        let cluster = cluster(spec);
        let problems = [Problem { reason: ProblemReason::Forbidden, message: "no".to_owned() }];
        let problems = if has_problem { &problems[..] } else { &[] };
        let surroundings = in_kubernetes.then_some(Surroundings { problems, ..AROUND });
        let replicas = u32::try_from(pods.len()).unwrap();
        let before = status_in(&cluster, 2, &earlier, surroundings, None, 0);
        let status = status_in(&cluster, replicas, &pods, surroundings, Some(&before), 60);
        let again = status_in(&cluster, replicas, &pods, surroundings, Some(&status), 120);
        prop_assert_eq!(&status, &again);
        let types: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
        let unique: BTreeSet<&str> = types.iter().copied().collect();
        prop_assert_eq!(types.len(), unique.len());
        for condition in &status.conditions {
            let old = before.conditions.iter().find(|old| old.type_ == condition.type_);
            let kept = old.is_some_and(|old| old.status == condition.status);
            prop_assert_eq!(condition.last_transition_time.0, if kept { at(0) } else { at(60) });
            let known = ConditionReason::ALL.iter().any(|reason| reason.as_str() == condition.reason)
                || ProblemReason::ALL.iter().any(|reason| reason.as_str() == condition.reason)
                || condition.type_ == "ScalingLimited";
            prop_assert!(known, "{}", condition.reason);
        }
        let mut object = LedgerCluster::new("demo", LedgerCluster::read(serde_json::json!({
            "apiVersion": "certeus.io/v1alpha1", "kind": "LedgerCluster", "metadata": { "name": "demo" },
            "spec": { "database": { "embedded": true } },
        })).unwrap().spec);
        object.status = Some(status);
        prop_assert_eq!(object.check(), []);
    }
}
