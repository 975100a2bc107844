//! The operator and the objects it owns: it makes them, leaves them alone, puts them right, and removes them.

use std::time::Duration;

use certeus_crds::LedgerCluster;
use certeus_e2e::cluster::front::{Fault, Rule};
use certeus_e2e::cluster::space::Space;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::json;

use crate::installed::{IN_TIME, Installed, SOON, fixed, manifest, writes};

/// Longer than any period of the operator but its slow resync.
const REST: Duration = Duration::from_secs(8);

#[test]
fn a_cluster_becomes_ready_then_nothing_is_written_and_drift_is_put_right() {
    let _definitions = crate::definitions();
    let _turn = crate::beside();
    let world = Installed::new("drift", false);
    let operator = world.operator();
    world.space.define_foreign("monitoring.coreos.com", "ServiceMonitor").unwrap();
    world.create("trades", &format!("{}  monitoring: {{serviceMonitor: true, dashboard: true}}\n", fixed(2)));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 2);
    world.wait_for_condition("trades", "Progressing", "False");
    world.wait_for_condition("trades", "Monitored", "True");
    // A pod that was measured before it had reached its database is told about up to ten seconds later.
    world.wait_for_condition("trades", "DatabaseReachable", "True");
    let owned = world.owned();
    assert!(owned.contains(&"configmap/trades-dashboard".to_owned()), "{owned:?}");
    for kind in [
        "statefulset",
        "configmap",
        "service",
        "poddisruptionbudget",
        "networkpolicy",
        "serviceaccount",
        "secret",
    ] {
        assert!(owned.iter().any(|object| object.starts_with(kind)), "no {kind} among {owned:?}");
    }
    let line = world.space.kubectl(&["get", "lc/trades", "--no-headers"]).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[1..5], ["True", "PodsReady", "2", "2"], "{line}");

    // At rest, and again when it has to look at everything anew.
    let reconciles =
        || operator.metric("certeus_operator_reconciles_total", &["\"ok\""]).unwrap().unwrap_or(0.0);
    operator.front().forget();
    std::thread::sleep(REST);
    assert_eq!(writes(&operator), [""; 0], "written at rest");
    let before = reconciles();
    // What others note on an object of ours is theirs, and has to be looked at.
    world.space.kubectl(&["annotate", "service/trades", "looked=at"]).unwrap();
    world.wait("another reconcile", SOON, || reconciles() > before);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(writes(&operator), [""; 0], "written by a second reconcile");

    // Somebody changes each object, and deletes each but the key.
    let pods = world.pods("trades");
    let monitor = "servicemonitors.monitoring.coreos.com/trades".to_owned();
    let objects: Vec<&String> =
        owned.iter().filter(|object| !object.starts_with("secret")).chain([&monitor]).collect();
    for object in &objects {
        world.drift(object);
    }
    // Volumes that go with the pods, and pods that get no time to drain.
    world.drift_field(
        "statefulset/trades",
        &["spec", "persistentVolumeClaimRetentionPolicy", "whenScaled"],
        &json!("Delete"),
    );
    world.drift_field(&monitor, &["spec", "endpoints"], &json!([]));
    let dashboard = format!("certeus-{}-trades.json", world.space.name());
    let empty = json!({ dashboard: "{}" });
    world.drift_field("configmap/trades-dashboard", &["data"], &empty);
    world
        .space
        .patch::<ConfigMap>("trades-config", &json!({ "data": { "config.yaml": "broken: true\n" } }))
        .unwrap();
    let is_right = |map: Option<&ConfigMap>| {
        let text = map.and_then(|map| map.data.as_ref()?.get("config.yaml"));
        text.is_some_and(|text| text.contains("database:"))
    };
    world.space.wait("the configuration to be put right", "trades-config", SOON, is_right).unwrap();
    for (object, path) in [
        ("service/trades", "selector"),
        ("service/trades-pods", "selector"),
        ("networkpolicy/trades", "podSelector.matchLabels"),
        ("poddisruptionbudget/trades", "selector.matchLabels"),
    ] {
        let entry = path.rsplit('.').fold(json!({ "their": "entry" }), |entry, name| json!({ name: entry }));
        let patch = json!({ "spec": entry }).to_string();
        world.space.kubectl(&["patch", object, "--type=merge", "-p", &patch]).unwrap();
        let shown = format!("jsonpath={{.spec.{path}.their}}");
        let is_right =
            || world.space.kubectl(&["get", object, "-o", &shown]).is_ok_and(|entry| entry.is_empty());
        world.wait(&format!("the selector of {object} to be put right"), SOON, is_right);
    }
    for object in objects {
        world.lose(object);
    }
    let repairs = operator.metric("certeus_operator_drift_repairs_total", &[]).unwrap().unwrap_or(0.0);
    assert!(repairs >= 10.0, "only {repairs} repairs were counted");
    // Nothing of this was the pods' business.
    world.wait_for_pods("trades", 2);
    assert_eq!(world.pods("trades"), pods);
    // But this is: they would be killed before they have drained.
    let grace = ["spec", "template", "spec", "terminationGracePeriodSeconds"];
    world.drift_field("statefulset/trades", &grace, &json!(10));
    world.wait_for_pods("trades", 2);
    assert_eq!(world.owned(), owned);
    let log = operator.log();
    assert!(!log.to_lowercase().contains("forbidden"), "the operator lacks a right:\n{log}");
    operator.stop().unwrap();
}

#[test]
fn an_api_server_that_fails_delays_changes_and_loses_none() {
    let _turn = crate::beside();
    let world = Installed::new("faults", false);
    let mut operator = world.operator();
    world.create("trades", &format!("{}  stopped: true\n", fixed(1)));
    let exists = |map: Option<&ConfigMap>| map.is_some();
    world.space.wait("the first objects", "trades-config", IN_TIME, exists).unwrap();
    let front = operator.front();
    let anything = |fault: Fault| Rule::new("", "", fault);
    type Break<'a> = Box<dyn Fn() + 'a>;
    let breaks: [(&str, Break<'_>); 9] = [
        (
            "conflicts",
            Box::new(|| front.inject(Rule::new("PATCH", "/configmaps/", Fault::Refuse(409)).times(2))),
        ),
        ("429", Box::new(|| front.inject(anything(Fault::Refuse(429)).times(3)))),
        ("500", Box::new(|| front.inject(Rule::new("PATCH", "/configmaps/", Fault::Refuse(500)).times(3)))),
        ("503", Box::new(|| front.inject(anything(Fault::Refuse(503)).times(3)))),
        (
            "a lost reply",
            Box::new(|| front.inject(Rule::new("PATCH", "/configmaps/", Fault::LoseReply(504)).times(1))),
        ),
        (
            "a slow server",
            Box::new(|| front.inject(anything(Fault::Delay(Duration::from_millis(1500))).times(8))),
        ),
        ("dropped watches", Box::new(|| front.drop_watches())),
        // The API server no longer has what came since: each of the dozen watches has to list anew.
        (
            "watches from too long ago",
            Box::new(|| {
                front.inject(Rule::watches(Fault::Refuse(410)).times(12));
                front.drop_watches();
            }),
        ),
        (
            "watches that expire",
            Box::new(|| {
                front.inject(Rule::watches(Fault::Expire).times(12));
                front.drop_watches();
            }),
        ),
    ];
    for (number, (what, break_it)) in breaks.iter().enumerate() {
        let size = 1000 + number;
        break_it();
        world.apply("trades", &format!("{}  stopped: true\n  ledger: {{batchSize: {size}}}\n", fixed(1)));
        let has_it = |map: Option<&ConfigMap>| {
            let text = map.and_then(|map| map.data.as_ref()?.get("config.yaml"));
            text.is_some_and(|text| text.contains(&format!("batchSize: {size}")))
        };
        let arrived = world.space.wait(&format!("a change despite {what}"), "trades-config", IN_TIME, has_it);
        arrived.unwrap();
        front.heal();
    }
    drop(breaks);
    assert!(operator.runs().unwrap(), "the operator ended");
    assert!(operator.leads(&world.space).unwrap(), "the operator lost the lease");
    world.wait("health", SOON, || operator.health("/healthz").is_ok_and(|status| status == 200));
    operator.stop().unwrap();
}

#[test]
fn an_invalid_cluster_hurts_itself_alone_and_is_told_why() {
    let _turn = crate::beside();
    let world = Installed::new("invalid", false);
    // A namespace without rights in it, and one that does not exist.
    let other = Space::with_definitions("refused").unwrap();
    other.apply(&manifest("left", &fixed(1))).unwrap();
    let operator = world.operator_beside(&[other.name(), "not-there"]);
    // Each pod would get less than the connections that it needs.
    let wrong = "  autoscaling: {min: 1, max: 1000}\n";
    world.create("broken", wrong);
    world.apply("lost", &fixed(1));
    world.create("healthy", &fixed(1));
    world.wait_until_ready("healthy");
    let (reason, message) = world.wait_for_condition("broken", "Accepted", "False");
    assert!(message.contains("connectionBudget"), "{reason}: {message}");
    let (reason, message) = world.wait_for_condition("lost", "Ready", "False");
    assert!(message.contains("postgres-lost"), "{reason}: {message}");
    assert!(world.space.get::<StatefulSet>("broken").unwrap().is_none());
    // Each becomes well when its own trouble is over.
    world.apply("broken", "  autoscaling: {min: 1, max: 2}\n");
    world.wait_for_condition("broken", "Accepted", "True");
    world.wait_until_ready("broken");
    world.prepare("lost");
    world.wait_until_ready("lost");

    // All that with two namespaces that nothing is known of, in which nothing was done.
    let refused = || operator.metric("certeus_operator_watch_refused_namespaces", &["\"pods\""]).unwrap();
    assert_eq!(refused(), Some(2.0));
    assert_eq!((operator.health("/healthz").unwrap(), operator.health("/readyz").unwrap()), (200, 200));
    assert!(other.get::<LedgerCluster>("left").unwrap().unwrap().status.is_none());
    let rights = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "rights" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": "certeus", "namespace": world.space.name() }],
    });
    other.apply(&rights.to_string()).unwrap();
    let is_known = |cluster: Option<&LedgerCluster>| cluster.is_some_and(|cluster| cluster.status.is_some());
    other.wait("the cluster to be known", "left", IN_TIME, is_known).unwrap();
    assert_eq!(refused(), Some(1.0));
    operator.stop().unwrap();
}

#[test]
fn a_deleted_cluster_goes_with_all_it_owns_although_its_pods_hang() {
    let _turn = crate::beside();
    let world = Installed::new("delete", false);
    let operator = world.operator();
    world.create("trades", &fixed(1));
    world.wait_until_ready("trades");
    // The data plane does not answer.
    world.kubelet.freeze("trades-0").unwrap();
    world
        .space
        .kubectl(&["delete", "lc/trades", "--wait=true", "--timeout=60s", "--cascade=background"])
        .unwrap();
    world.wait("its objects to go", IN_TIME, || {
        let owned = world.owned();
        owned.iter().all(|object| object.starts_with("secret"))
    });
    // What is frozen is killed when its grace period is over; that need not be waited for.
    world.space.kubectl(&["delete", "pod", "trades-0", "--grace-period=0", "--force"]).unwrap();
    let gone = |pod: Option<&Pod>| pod.is_none();
    world.space.wait("the pod to go", "trades-0", IN_TIME, gone).unwrap();
    operator.stop().unwrap();
}
