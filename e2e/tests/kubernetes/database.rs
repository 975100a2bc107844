//! The embedded database as a pod, beside the pods that need it.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;

use crate::installed::{IN_TIME, Installed, is_ready};

const CLUSTER: &str = "
apiVersion: certeus.io/v1alpha1
kind: LedgerCluster
metadata: {name: trades}
spec:
  database: {embedded: true}
  autoscaling: {enabled: false}
  replicas: 1
";
const DATABASE: &str = "trades-database-0";

/// Appends an event that must be committed; gives its id.
fn append(world: &Installed, n: u32) -> String {
    let body = format!("{{\"type\":\"database.test\",\"timestamp\":{},\"n\":{n}}}", 1_769_860_800 + n);
    let mut committed = None;
    world.wait("an append", IN_TIME, || {
        committed =
            world.send("trades-0", "POST", "/v1/ledger/events", &body).filter(|reply| reply.status == 201);
        committed.is_some()
    });
    let receipt = committed.unwrap().json();
    receipt["first_id"].as_str().unwrap_or_else(|| panic!("no id in {receipt}")).to_owned()
}

#[test]
fn an_embedded_database_serves_its_pods_and_keeps_what_they_committed() {
    let _turn = crate::beside();
    let world = Installed::new("embedded", false);
    let operator = world.operator();
    world.space.apply(CLUSTER).unwrap();
    world.wait_until_ready("trades");
    let (reason, message) = world.wait_for_condition("trades", "EmbeddedDatabase", "True");
    assert_eq!(reason, "NotForProduction", "{message}");
    let has = |id: &str| {
        world
            .send("trades-0", "GET", &format!("/v1/ledger/events/{id}"), "")
            .is_some_and(|reply| reply.status == 200)
    };
    let first = append(&world, 1);
    assert!(has(&first));

    // What the pods need of it is put right, and its own pod lives on.
    let pod = || world.space.get::<Pod>(DATABASE).unwrap();
    let before = pod().unwrap().uid();
    let objects: Vec<String> =
        world.owned().into_iter().filter(|object| object.contains("/trades-database")).collect();
    for object in objects.iter().filter(|object| !object.starts_with("secret")) {
        world.drift(object);
        world.lose(object);
    }
    assert!(objects.iter().any(|object| object.starts_with("statefulset")), "{objects:?}");
    let kept = ["spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted"];
    world.drift_field("statefulset/trades-database", &kept, &serde_json::json!("Delete"));
    assert_eq!(pod().unwrap().uid(), before);

    // Its pod is another one, at another address; its volume is the same.
    world.space.delete::<Pod>(DATABASE).unwrap();
    world.wait("another pod of the database", IN_TIME, || {
        pod().is_some_and(|pod| pod.uid() != before && is_ready(&pod))
    });
    world.wait("the first event", IN_TIME, || has(&first));
    let second = append(&world, 2);

    // Deleted with the cluster, it leaves its volume and its password.
    world.space.kubectl(&["delete", "lc/trades", "--timeout=60s"]).unwrap();
    let kept = ["secret/trades-api-key", "secret/trades-database", "secret/trades-signing-key"];
    world.wait("its objects to go", IN_TIME, || world.owned() == kept);
    world.wait("its pods to go", IN_TIME, || world.space.list::<Pod>("").unwrap().is_empty());
    assert!(world.space.get::<PersistentVolumeClaim>("data-trades-database-0").unwrap().is_some());
    // The same cluster again: the same events.
    world.space.apply(CLUSTER).unwrap();
    for id in [&first, &second] {
        world.wait("what was committed before", IN_TIME, || has(id));
    }
    operator.stop().unwrap();
}
