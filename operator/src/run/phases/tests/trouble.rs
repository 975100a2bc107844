use certeus_autoscale::PodPhase;

use super::*;
use crate::run::trouble::{Kind, Trouble};

fn pending(ordinal: u32, trouble: Option<Trouble>) -> PodSeen {
    PodSeen {
        name: format!("demo-{ordinal}"),
        uid: format!("p{ordinal}"),
        ordinal,
        ip: None,
        phase: PodPhase::Pending,
        gone_by: None,
        has_run: true,
        trouble: trouble.map(Box::new),
        revision: None,
        key: None,
    }
}

fn trouble(kind: Kind, text: &str) -> Option<Trouble> {
    Some(Trouble::new(kind, text, Duration::ZERO, Duration::ZERO))
}

#[tokio::test]
async fn pods_that_crash_are_told_of_once() {
    let mut world = settled().await;
    world.pods = vec![pending(0, trouble(Kind::Crash { exit_code: Some(2) }, "bad value"))];
    world.reconcile().await.unwrap();
    let (status, reason, message) = world.condition("Degraded");
    assert_eq!((&*status, &*reason), ("True", "PodsCrashing"));
    assert_eq!(message, "pod demo-0 is restarted again and again, ended last with exit code 2: bad value");
    assert_eq!(world.api.writes(), ["POST ns/events", "PATCH demo/status"]);
    // Nor by the next operator.
    world.record = Record::default();
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), Vec::<String>::new());
    world.pods = vec![pending(0, None)];
    world.reconcile().await.unwrap();
    assert_eq!(world.condition("Degraded").0, "False");
    assert_eq!(world.api.writes(), ["POST ns/events", "PATCH demo/status"]);
    // Of the same reason soon after: it has its own text, and is no repetition of the first.
    world.pods = vec![pending(0, trouble(Kind::Crash { exit_code: Some(137) }, "OOMKilled"))];
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["POST ns/events", "PATCH demo/status"]);
}

#[tokio::test]
async fn pods_that_do_not_start_are_told_of_once_and_together() {
    let mut world = settled().await;
    let image = || trouble(Kind::Image, "ErrImagePull: not found");
    world.pods = (0..3).map(|ordinal| pending(ordinal, image())).collect();
    world.reconcile().await.unwrap();
    let expected = "an image cannot be had for pod demo-0 and 2 others: ErrImagePull: not found; check spec.image and \
                    spec.version, and that nodes may pull from that registry";
    for (kind, status) in [("Degraded", "True"), ("Ready", "False")] {
        let expected = (status.to_owned(), "ImagePullFailed".to_owned(), expected.to_owned());
        assert_eq!(world.condition(kind), expected);
    }
    assert_eq!(world.api.writes(), ["POST ns/events", "PATCH demo/status"]);
    world.record = Record::default();
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), Vec::<String>::new());
    world.pods[2].trouble =
        trouble(Kind::Start, "CreateContainerConfigError: secret \"s\" not found").map(Box::new);
    world.reconcile().await.unwrap();
    let (_, reason, message) = world.condition("Degraded");
    assert_eq!(reason, "ImagePullFailed");
    assert!(
        message.contains("demo-0 and 1 other: ")
            && message.contains("; a container cannot be started for pod demo-2: C")
    );
    assert_eq!(world.api.writes(), ["PATCH demo/status"]);
    world.pods = (0..3).map(|ordinal| pending(ordinal, None)).collect();
    world.reconcile().await.unwrap();
    assert_eq!(
        (world.condition("Degraded").0, world.condition("Ready").1),
        ("False".to_owned(), "PodsNotReady".to_owned())
    );
    assert_eq!(world.api.writes(), ["POST ns/events", "PATCH demo/status"]);
}

#[tokio::test]
async fn what_hides_trouble_of_pods_does_not_keep_its_end_from_being_told() {
    let mut world = settled().await;
    world.pods = vec![pending(0, trouble(Kind::Image, "ErrImagePull: not found"))];
    world.reconcile().await.unwrap();
    world.api.writes();
    world.api.remove("/api/v1/namespaces/ns/secrets/db");
    world.record.forget_secrets();
    world.pods = vec![pending(0, None)];
    world.reconcile().await.unwrap_err();
    assert_eq!(world.api.writes(), ["POST ns/events", "PATCH demo/status"]);
    world.secret("postgres://one");
    world.record.forget_secrets();
    world.reconcile().await.unwrap();
    assert_eq!(world.api.writes(), ["POST ns/events", "POST ns/events", "PATCH demo/status"], "of both");
}

#[tokio::test]
async fn what_may_pass_by_itself_is_told_when_it_has_lasted() {
    let mut world = settled().await;
    let from = |from| Some(Trouble::new(Kind::Schedule, "Unschedulable: no room", from, clock::now()));
    let later = clock::now() + Duration::from_secs(60);
    world.pods = vec![pending(0, None), pending(1, from(later))];
    world.reconcile().await.unwrap();
    assert_eq!((world.condition("Degraded").0, world.record.due()), ("False".to_owned(), Some(later)));
    world.pods = vec![pending(0, None), pending(1, from(clock::now()))];
    world.reconcile().await.unwrap();
    let (_, reason, message) = world.condition("Degraded");
    assert_eq!((&*reason, world.record.due()), ("PodsUnschedulable", None));
    assert!(
        message.starts_with("there is no node for pod demo-1: Unschedulable: no room; make room"),
        "{message}"
    );
}
