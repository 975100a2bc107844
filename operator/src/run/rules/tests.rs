//! Rounds over rules against an API server in memory and pods on addresses of 127.0.0.0/8.

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::round::Again;
use super::seen::{Change, WATCH};
use super::{Keeper, clock};
use crate::run::Scope;
use crate::run::lists::Listing;
use crate::run::pods::{ObjectKey, PodDirectory};
use world::{FakePod, World};

const VALID: &str = "up == 0";

fn accepted(object: &Value) -> (&str, &str) {
    condition(object, 0)
}

fn loaded(object: &Value) -> (&str, &str) {
    condition(object, 1)
}

fn condition(object: &Value, index: usize) -> (&str, &str) {
    let condition = &object["status"]["conditions"][index];
    (condition["status"].as_str().unwrap_or_default(), condition["reason"].as_str().unwrap_or_default())
}

fn counts(object: &Value) -> (u64, u64) {
    let status = &object["status"];
    (status["loadedPods"].as_u64().unwrap(), status["totalPods"].as_u64().unwrap())
}

#[tokio::test]
async fn rules_come_to_every_pod_and_a_second_round_writes_nothing() {
    let mut world = World::new();
    world.create("a", VALID);
    world.create("b", VALID);
    world.create("wrong", "up ==");
    let pods = [world.pod(0).await, world.pod(1).await];
    assert_eq!(world.round().await, Again::Recheck);
    for pod in &pods {
        assert_eq!(
            pod.has(),
            [("a", 1), ("b", 1)].map(|(name, generation)| (name.to_owned(), generation)).into()
        );
    }
    for name in ["a", "b"] {
        let object = world.object(name);
        assert_eq!((accepted(&object), loaded(&object)), (("True", "Valid"), ("True", "AllPods")));
        assert_eq!(counts(&object), (2, 2));
        assert_eq!(object["metadata"]["finalizers"], json!(["certeus.io/rules"]));
        assert_eq!(object["status"].get("lastError"), None);
        assert_eq!(object["status"].get("state"), None, "nothing evaluates rules, so nothing is said");
    }
    let wrong = world.object("wrong");
    assert_eq!((accepted(&wrong), loaded(&wrong)), (("False", "Invalid"), ("False", "NotAccepted")));
    let error = wrong["status"]["lastError"].as_str().unwrap();
    assert!(
        error.starts_with("spec.groups[0].rules[0].expr: group \"g\", alert \"Down\": is not PromQL"),
        "{error}"
    );
    assert_eq!(wrong["metadata"].get("finalizers"), None);
    assert_eq!(world.events(), ["Warning Invalid wrong"]);

    let before = (world.take_writes(), pods[0].requests(), pods[1].requests());
    assert_eq!(before.0.len(), 2 + 3 + 1, "{:?}", before.0);
    assert_eq!(world.round().await, Again::Recheck);
    assert_eq!(world.take_writes(), Vec::<String>::new());
    assert_eq!(
        (pods[0].requests(), pods[1].requests()),
        (before.1 + 1, before.2 + 1),
        "one question to each pod"
    );
}

#[tokio::test]
async fn what_a_pod_forgot_lacks_or_has_too_much_of_is_put_right() {
    let mut world = World::new();
    world.create("a", VALID);
    let first = world.pod(0).await;
    world.round().await;
    first.set(BTreeMap::new());
    world.round().await;
    assert_eq!(first.has().len(), 1, "after a restart");

    let second = world.pod(1).await;
    second.put("left", "u-left", 3);
    world.round().await;
    assert_eq!(second.has(), [("a".to_owned(), 1)].into(), "a new pod, and what nobody wants");
    assert_eq!(counts(&world.object("a")), (2, 2));

    world.edit("a", "up == 1");
    world.round().await;
    assert_eq!(second.has(), [("a".to_owned(), 2)].into());
    assert_eq!(world.object("a")["status"]["observedGeneration"], 2);

    // An edit with a mistake leaves the rules that work where they are.
    world.edit("a", "up ==");
    world.round().await;
    assert_eq!((first.has(), second.has()), ([("a".to_owned(), 2)].into(), [("a".to_owned(), 2)].into()));
    let object = world.object("a");
    assert_eq!((accepted(&object), counts(&object)), (("False", "Invalid"), (0, 2)));
    world.edit("a", VALID);
    world.round().await;
    assert_eq!(loaded(&world.object("a")), ("True", "AllPods"));
    assert_eq!(world.events(), ["Warning Invalid a", "Normal Valid a"]);

    // Another object of the same name.
    world.delete_at_once("a");
    world.create("a", VALID);
    world.round().await;
    assert_eq!((first.has(), first.uid("a")), ([("a".to_owned(), 1)].into(), world.uid("a")));
}

#[tokio::test]
async fn a_pod_that_does_not_answer_is_told_of_and_holds_up_no_other() {
    let mut world = World::new();
    world.create("a", VALID);
    let alive = world.pod(0).await;
    let dead = world.dead_pod(1);
    assert_eq!(world.round().await, Again::Recheck);
    assert_eq!(alive.has().len(), 1);
    let object = world.object("a");
    assert_eq!((loaded(&object), counts(&object)), (("False", "DeliveryFailed"), (1, 2)));
    let error = object["status"]["lastError"].as_str().unwrap().to_owned();
    assert!(error.starts_with("pod demo-1: cannot reach the pod"), "{error}");
    world.take_writes();
    world.round().await;
    assert_eq!(world.take_writes(), Vec::<String>::new(), "the same trouble is told once");

    world.remove_pod(&dead);
    world.round().await;
    let object = world.object("a");
    assert_eq!((loaded(&object), object["status"].get("lastError")), (("True", "AllPods"), None));
}

#[tokio::test]
async fn what_a_pod_refuses_hurts_only_itself() {
    let mut world = World::new();
    world.create("a", VALID);
    world.create("b", VALID);
    let pod = world.pod(0).await;
    pod.refuse("a", 429, "all rules together may have 64 bytes");
    world.round().await;
    assert_eq!(pod.has(), [("b".to_owned(), 1)].into());
    let object = world.object("a");
    assert_eq!(loaded(&object), ("False", "DeliveryFailed"));
    let error = object["status"]["lastError"].as_str().unwrap();
    assert_eq!(error, "pod demo-0: 429 Too Many Requests: all rules together may have 64 bytes");
    assert_eq!(loaded(&world.object("b")), ("True", "AllPods"));
}

#[tokio::test]
async fn what_the_api_server_refuses_hurts_only_itself() {
    let mut world = World::new();
    world.create("a", VALID);
    world.create("b", VALID);
    let pod = world.pod(0).await;
    world.fail_writes_of("a", Some(500));
    world.round().await;
    assert_eq!(pod.has(), [("b".to_owned(), 1)].into(), "without the finalizer nothing is sent");
    assert_eq!(loaded(&world.object("b")), ("True", "AllPods"));
    world.take_writes();
    world.round().await;
    assert_eq!(world.take_writes(), Vec::<String>::new(), "it pauses");
    world.fail_writes_of("a", None);
    world.edit("a", "up == 2");
    world.round().await;
    assert_eq!(pod.has().len(), 2, "an edit ends the pause");
}

#[tokio::test]
async fn a_deleted_object_goes_once_no_pod_has_its_rules() {
    let mut world = World::new();
    world.create("a", VALID);
    world.create("b", VALID);
    let pod = world.pod(0).await;
    world.round().await;
    world.add_finalizer("a", "example.com/other");
    world.delete("a", 0);
    world.round().await;
    assert_eq!(pod.has(), [("b".to_owned(), 1)].into());
    assert_eq!(world.object("a")["metadata"]["finalizers"], json!(["example.com/other"]));
    world.delete("b", 0);
    world.round().await;
    assert!(world.find("b").is_none() && pod.has().is_empty());
    assert_eq!(world.round().await, Again::Recheck);
}

#[tokio::test]
async fn a_deleted_object_does_not_wait_for_ever_for_the_dead() {
    let mut world = World::new();
    world.create("a", VALID);
    let pod: FakePod = world.pod(0).await;
    world.round().await;
    let dead = world.dead_pod(1);
    world.delete("a", 0);
    assert_eq!(world.round().await, Again::Soon);
    assert!(pod.has().is_empty());
    assert!(world.find("a").is_some(), "it may come back at once");
    world.delete("a", 31);
    world.round().await;
    assert!(world.find("a").is_none(), "but not for ever");

    // Without any pod, and without the cluster, there is nothing to wait for.
    for has_cluster in [true, false] {
        world.create("b", VALID);
        world.round().await;
        world.remove_pod(&dead);
        world.remove_pod("demo-0");
        if !has_cluster {
            world.remove_cluster();
        }
        world.add_finalizer("b", "certeus.io/rules");
        world.delete("b", 0);
        world.round().await;
        assert!(world.find("b").is_none(), "cluster: {has_cluster}");
    }
}

#[tokio::test]
async fn without_its_cluster_a_rule_waits_and_says_so() {
    let mut world = World::new();
    world.create("a", VALID);
    world.forget_pods();
    assert_eq!(world.round().await, Again::Recheck, "the cluster is there, its pods are not known yet");
    assert_eq!(world.take_writes(), Vec::<String>::new());
    world.remove_cluster();
    assert_eq!(world.round().await, Again::Rarely);
    let object = world.object("a");
    assert_eq!((accepted(&object), counts(&object)), (("False", "ClusterNotFound"), (0, 0)));
    assert_eq!(object["metadata"].get("finalizers"), None);
    assert_eq!(world.events(), ["Warning ClusterNotFound a"]);
}

#[tokio::test]
async fn a_thousand_rules_cost_one_question_a_pod() {
    let mut world = World::new();
    for n in 0..1000 {
        world.create(&format!("r{n}"), VALID);
    }
    let pods = [world.pod(0).await, world.pod(1).await, world.pod(2).await];
    while world.round().await == Again::Soon {}
    assert!(pods.iter().all(|pod| pod.has().len() == 1000));
    assert_eq!(loaded(&world.object("r999")), ("True", "AllPods"));
    let before: Vec<u64> = pods.iter().map(FakePod::requests).collect();
    world.take_writes();
    world.round().await;
    assert_eq!(world.take_writes(), Vec::<String>::new());
    assert_eq!(
        pods.iter().map(FakePod::requests).collect::<Vec<_>>(),
        before.iter().map(|n| n + 1).collect::<Vec<_>>()
    );
}

fn names<const N: usize>(expected: [(&str, i64); N]) -> BTreeMap<String, i64> {
    expected.map(|(name, generation)| (name.to_owned(), generation)).into()
}

#[tokio::test]
async fn a_prometheus_rule_comes_to_the_pods_and_is_never_written() {
    let mut world = World::new();
    let alert = |expr: &str| json!({ "alert": "Down", "expr": expr });
    world.create("a", VALID);
    world.import("a", &json!([alert(VALID)]));
    world.import("wrong", &json!([alert("up ==")]));
    let pod = world.pod(0).await;
    assert_eq!(world.round().await, Again::Recheck);
    assert_eq!(
        pod.has(),
        names([("a", 1), ("prometheusrule..a", 1)]),
        "of one name, and none hides the other"
    );
    let mut events = world.events();
    events.sort();
    assert_eq!(events, ["Normal Loaded a", "Warning Invalid wrong"]);
    let imported = world.object("prometheusrule..a");
    assert_eq!((imported["metadata"].get("finalizers"), imported.get("status")), (None, None));
    let writes = world.take_writes();
    assert!(writes.iter().all(|write| !write.contains("prometheusrule")), "{writes:?}");
    world.round().await;
    assert_eq!(world.take_writes(), Vec::<String>::new(), "nothing is told twice");

    // A new process finds it in the pods and has nothing to tell but what is wrong.
    world.restart();
    world.round().await;
    assert_eq!(world.events()[2..], ["Warning Invalid wrong"]);
    world.delete_at_once("prometheusrule..wrong");

    // A mistake leaves what works; what is left out is told.
    world.import("a", &json!([alert("up ==")]));
    world.round().await;
    assert_eq!(pod.has(), names([("a", 1), ("prometheusrule..a", 1)]));
    let record = json!({ "record": "a:b", "expr": "sum(up)" });
    world.import("a", &json!([record, alert(VALID)]));
    world.round().await;
    world.round().await;
    assert_eq!(pod.has(), names([("a", 1), ("prometheusrule..a", 3)]));
    let mut events = world.events().split_off(3);
    events.sort();
    assert_eq!(events, ["Normal Loaded a", "Warning Invalid a", "Warning Partial a"]);

    // Nothing that pods could use, or no label any more.
    world.import("a", &json!([record]));
    world.round().await;
    assert_eq!(pod.has(), names([("a", 1)]));
    world.import("a", &json!([alert(VALID)]));
    world.round().await;
    assert_eq!(pod.has(), names([("a", 1), ("prometheusrule..a", 5)]));
    world.delete_at_once("prometheusrule..a");
    world.round().await;
    assert_eq!(pod.has(), names([("a", 1)]));
}

#[tokio::test]
async fn what_keeps_a_prometheus_rule_from_its_pods_is_told_once() {
    let mut world = World::new();
    world.import("a", &json!([{ "alert": "Down", "expr": VALID }]));
    let pod = world.pod(0).await;
    pod.refuse("prometheusrule..a", 429, "all rules together may have 64 bytes");
    for _ in 0..3 {
        world.round().await;
    }
    assert_eq!(world.events(), ["Warning DeliveryFailed a"]);
    world.remove_cluster();
    world.round().await;
    world.round().await;
    assert_eq!(world.events()[1..], ["Warning ClusterNotFound a"]);
}

#[tokio::test]
async fn pods_keep_their_prometheus_rules_until_it_is_known_which_there_are() {
    for comes_later in [false, true] {
        let mut world = World::new();
        let pod = world.pod(0).await;
        pod.put("left", "u-1", 1);
        pod.put("prometheusrule..left", "u-2", 1);
        let directory = PodDirectory::new();
        let pods = world.pods.take();
        directory.set(&ObjectKey::new("ns", "demo"), pods);
        let scope = Scope::Namespaces(vec!["other".parse().unwrap(), "ns".parse().unwrap()]);
        let mut keeper = Keeper::new(world.tools.clone(), directory, scope);
        let mut later = Duration::ZERO;
        let mut settle = async |changes| settle(&mut keeper, &mut later, changes).await;
        let complete = |watch, place| Listing { watch, place, complete: true };
        settle(vec![Change::List(complete(WATCH, 0))]).await;
        assert_eq!(pod.has().len(), 2, "AlertRules of one namespace are not known yet");
        settle(vec![Change::List(complete(WATCH, 1))]).await;
        assert_eq!(pod.has(), names([("prometheusrule..left", 1)]), "AlertRules wait for nothing else");
        if comes_later {
            let imports = |place| complete("prometheusrules", place);
            settle(vec![Change::Imports(true), Change::List(imports(0)), Change::Imports(true)]).await;
            assert_eq!(
                pod.has(),
                names([("prometheusrule..left", 1)]),
                "those of another namespace are known"
            );
            settle(vec![Change::List(imports(1))]).await;
        } else {
            settle(vec![Change::Imports(false)]).await;
        }
        assert!(pod.has().is_empty(), "comes later: {comes_later}");
    }
}

/// Ten minutes later, so that nothing waits for its pause: takes what changed, and lets all rounds end that are due.
async fn settle(keeper: &mut Keeper, later: &mut Duration, changes: Vec<Change>) {
    *later += Duration::from_secs(600);
    changes.into_iter().for_each(|change| keeper.take(change, clock::now()));
    keeper.start(clock::now() + *later);
    while let Some(ended) = keeper.rounds.join_next_with_id().await {
        keeper.finished(ended, clock::now());
    }
}

#[tokio::test]
async fn prometheus_rules_go_with_their_definition_and_come_back_with_it() {
    let mut world = World::new();
    let pod = world.pod(0).await;
    let directory = PodDirectory::new();
    directory.set(&ObjectKey::new("ns", "demo"), world.pods.take());
    let mut keeper = Keeper::new(world.tools.clone(), directory, Scope::All);
    let mut later = Duration::ZERO;
    let mut settle = async |changes| settle(&mut keeper, &mut later, changes).await;
    let complete = |watch| Change::List(Listing { watch, place: 0, complete: true });
    let rule = || {
        let object = json!({
            "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
            "metadata": { "name": "a", "namespace": "ns", "uid": "u-1", "generation": 1,
                "labels": { "certeus.io/cluster": "demo" } },
            "spec": { "groups": [{ "name": "g", "rules": [{ "alert": "Down", "expr": VALID }] }] }
        });
        let key = ObjectKey::new("ns", "prometheusrule..a");
        Change::Rule(key, Box::new(serde_json::from_value(object).unwrap()))
    };
    settle(vec![complete(WATCH), Change::Imports(true), rule(), complete("prometheusrules")]).await;
    assert_eq!(pod.has(), names([("prometheusrule..a", 1)]));
    // The watch did not see them go: it had ended.
    settle(vec![Change::Imports(false)]).await;
    assert!(pod.has().is_empty());
    settle(vec![Change::Imports(true)]).await;
    settle(vec![rule(), complete("prometheusrules")]).await;
    assert_eq!(pod.has(), names([("prometheusrule..a", 1)]));
}

#[tokio::test]
async fn rules_that_find_no_room_say_so_and_are_taken_when_there_is_some() {
    let mut keeper = Keeper::new(World::new().tools.clone(), PodDirectory::new(), Scope::All);
    let now = Duration::from_secs(1);
    let rule = |number: usize, bytes: usize| {
        // As many writes as there are bytes: each size is another version.
        let version = (number * 10_000_000 + bytes).to_string();
        let rule =
            json!({ "alert": "Down", "expr": "up == 0", "annotations": { "summary": "x".repeat(bytes) } });
        let name = format!("a{number}");
        let object = json!({
            "apiVersion": "certeus.io/v1alpha1", "kind": "AlertRule",
            "metadata": { "name": name, "namespace": "ns", "uid": format!("u-{number}"), "generation": 1, "resourceVersion": version },
            "spec": { "clusterRef": { "name": "demo" },
                "groups": [{ "name": "g", "interval": "15s", "rules": [rule] }] }
        });
        (ObjectKey::new("ns", &name), Box::new(serde_json::from_value(object).unwrap()))
    };
    let put = |keeper: &mut Keeper, number, bytes| {
        let (key, object) = rule(number, bytes);
        keeper.take(Change::Rule(key.clone(), object), now);
        keeper.rules[&key].lacks_room
    };
    // Eight of a megabyte fill the room of the cluster.
    for number in 0..8 {
        assert!(!put(&mut keeper, number, 1_000_000));
    }
    assert!(put(&mut keeper, 8, 1_000_000));
    assert!(!put(&mut keeper, 9, 1000), "a smaller one fits");
    let (key, object) = rule(8, 1_000_000);
    assert!(keeper.rules[&key].verdict.as_ref().as_ref().unwrap_err()[0].problem.contains("no room"));
    assert_eq!((keeper.rules[&key].body_bytes(), keeper.room_again), (0, None));
    keeper.take(Change::Again(key.clone(), object.clone()), now);
    assert!(keeper.rules[&key].lacks_room);
    // One goes, one gets smaller: then there is room.
    keeper.take(Change::Gone(rule(0, 0).0), now);
    assert!(keeper.room_again.is_some());
    assert_eq!(keeper.take_unkept(), vec![key.clone()]);
    keeper.take(Change::Again(key.clone(), rule(8, 10).1), now);
    assert!(keeper.rules[&key].lacks_room, "not what the watch has shown");
    keeper.take(Change::Again(key.clone(), object.clone()), now);
    assert!(!keeper.rules[&key].lacks_room && keeper.rules[&key].verdict.is_ok());
    assert_eq!((keeper.take_unkept(), keeper.room_again), (vec![], None));
    // What was deleted while it was read again stays deleted.
    keeper.take(Change::Gone(key.clone()), now);
    keeper.take(Change::Again(key.clone(), object), now);
    assert!(!keeper.rules.contains_key(&key));
}
