//! Pods that do not start: what the conditions of their cluster say, and how often.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::installed::{IN_TIME, Installed, SOON, fixed, writes};

/// What Kubernetes says of a pod's container that waits.
fn waits(world: &Installed, pod: &str) -> Option<String> {
    let status = world.space.get::<Pod>(pod).unwrap()?.status?;
    let waiting = status.container_statuses?.first()?.state.clone()?.waiting?;
    Some(format!("{}: {}", waiting.reason?, waiting.message?))
}

/// Waits until Kubernetes has said so many different things of a pod.
fn wait_for_attempts(world: &Installed, pod: &str, count: usize) {
    let mut told = BTreeSet::new();
    world.wait("attempts", IN_TIME, || {
        told.extend(waits(world, pod));
        told.len() >= count
    });
    for reason in ["ErrImagePull", "ImagePullBackOff"] {
        assert!(told.iter().any(|told| told.starts_with(reason)), "{told:?}");
    }
}

/// How often Events of a reason were told of a cluster.
fn told(world: &Installed, reason: &str) -> usize {
    let selector = format!("--field-selector=involvedObject.kind=LedgerCluster,reason={reason}");
    world.space.kubectl(&["get", "events", &selector, "-o", "name"]).unwrap().lines().count()
}

#[test]
fn an_image_that_cannot_be_pulled_is_told_once_and_pods_with_the_right_one_end_it() {
    let _turn = crate::beside();
    let world = Installed::new("unpulled", false);
    let operator = world.operator();
    world.create("trades", &(fixed(2) + "  image: nowhere.invalid/certeus/dataplane\n"));
    let expected = "an image cannot be had for pod trades-0 and 1 other: ErrImagePull: failed to pull";
    for (kind, status) in [("Degraded", "True"), ("Ready", "False")] {
        world.wait(kind, IN_TIME, || {
            let (reason, message) = world.wait_for_condition("trades", kind, status);
            reason == "ImagePullFailed" && message.starts_with(expected)
        });
    }
    wait_for_attempts(&world, "trades-0", 4);
    let before = writes(&operator);
    wait_for_attempts(&world, "trades-1", 10);
    assert_eq!(writes(&operator), before, "each attempt is written");
    assert_eq!(told(&world, "ImagePullFailed"), 1);

    world.apply("trades", &fixed(2));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 2);
    assert_eq!(world.wait_for_condition("trades", "Degraded", "False").0, "AsExpected");
    world.wait("the word of it", SOON, || told(&world, "Recovered") == 1);
    operator.stop().unwrap();
}

#[test]
fn a_pod_that_no_node_takes_is_told_once_that_has_lasted() {
    let _turn = crate::beside();
    let world = Installed::new("homeless", false);
    let operator = world.operator();
    world.create("trades", &fixed(1));
    world.wait_until_ready("trades");
    let nowhere = "  scheduling: {affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                   {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: Exists}]}]}}}}\n";
    world.apply("trades", &(fixed(1) + nowhere));
    let is_homeless = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none());
    world.space.wait("a pod without node", "trades-0", IN_TIME, |pod| pod.is_some_and(is_homeless)).unwrap();
    // There is no scheduler to say so.
    let say = |since: jiff::Timestamp| {
        let condition = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 node(s) didn't match.", "lastTransitionTime": format!("{since:.0}") });
        let status = json!({ "status": { "conditions": [condition] } });
        let pods = world.space.api::<Pod>();
        world
            .space
            .block(pods.patch_status("trades-0", &PatchParams::default(), &Patch::Strategic(&status)))
            .unwrap();
    };
    let now = jiff::Timestamp::now();
    say(now);
    world.wait_for_condition("trades", "Ready", "False");
    assert_eq!(world.wait_for_condition("trades", "Degraded", "False").0, "AsExpected", "it may pass");
    say(now - jiff::SignedDuration::from_secs(600));
    let (reason, message) = world.wait_for_condition("trades", "Degraded", "True");
    assert_eq!(reason, "PodsUnschedulable");
    let expected = "there is no node for pod trades-0: Unschedulable: 0/1 nodes are available";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(world.wait_for_condition("trades", "Ready", "False").0, "PodsUnschedulable");
    world.apply("trades", &fixed(1));
    world.wait_until_ready("trades");
    world.wait_for_condition("trades", "Degraded", "False");
    operator.stop().unwrap();
}
