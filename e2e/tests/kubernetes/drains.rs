//! Pods that are to go and cannot: what is said of each, that nothing waits for them which need not, and that they go when they can.

use std::collections::BTreeMap;
use std::fs;

use certeus_crds::LedgerCluster;
use certeus_e2e::proxy::{Cut, Proxy};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::conditions::{NOWHERE, append, stored, volume};
use crate::installed::{IN_TIME, Installed, SOON, fixed, is_ready};

const SPOOLED: &str = "holds spooled requests, and serves until the database has them";
/// Of a pod that fell silent before it was asked to drain, and of one that did after.
const SILENT: [&str; 2] = [
    "does not say what it holds, and stays until it does",
    "does not answer when asked to drain, and is asked again",
];
const DOWN: &str = "does not run, and its spool holds requests or may hold some: ";
const HANGING: &str = "is being deleted and does not end: ";

/// What the status says of each pod that drains.
fn draining(world: &Installed) -> BTreeMap<String, String> {
    let cluster = world.space.get::<LedgerCluster>("trades").unwrap();
    let draining = cluster.and_then(|cluster| cluster.status).map(|status| status.draining);
    let said = draining.into_iter().flatten().map(|pod| (pod.name, pod.message.unwrap_or_default()));
    said.collect()
}

/// Waits until one of these, at least the beginning of it, is said of a pod.
fn wait_until_said(world: &Installed, pod: &str, messages: &[&str]) {
    let is_one = |said: &String| messages.iter().any(|message| said.starts_with(message));
    world.wait(&format!("{messages:?} said of {pod}"), IN_TIME, || {
        draining(world).get(pod).is_some_and(is_one)
    });
}

fn replicas(world: &Installed) -> i32 {
    world.space.get::<StatefulSet>("trades").unwrap().and_then(|set| set.spec?.replicas).unwrap()
}

/// Of the four pods, one stays; one falls silent for a while, one is lost with its node, one has events and loses its volume.
#[test]
fn pods_that_cannot_drain_are_told_hinder_no_other_and_go_when_they_can() {
    let _turn = crate::beside();
    let world = Installed::new("stuck", false);
    let operator = world.operator();
    let way = Proxy::start(world.postgres.address()).unwrap();
    world.prepare_through("trades", way.address());
    world.apply("trades", &fixed(4));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 4);
    world.wait_for_reason("trades", "Degraded", "False", "AsExpected");

    world.kubelet.lose("trades-2").unwrap();
    world.space.kubectl(&["delete", "pod", "trades-2", "--grace-period=1", "--wait=false"]).unwrap();
    let lost = world.space.get::<Pod>("trades-2").unwrap().unwrap().uid();
    way.set_upstream(NOWHERE);
    way.cut_all(Cut::Both);
    world.wait("a spooled event", IN_TIME, || append(&world, "trades-1") == Some(202));
    world.kubelet.freeze("trades-3").unwrap();
    world.apply("trades", &fixed(1));
    wait_until_said(&world, "trades-1", &[SPOOLED]);
    wait_until_said(&world, "trades-3", &SILENT);
    assert!(draining(&world).contains_key("trades-2"));

    // A volume that cannot be mounted: its pod does not run, and nobody but it could bring the event to the database.
    let (folder, aside) = (volume(&world, "trades-1"), world.space.dir().join("aside"));
    fs::rename(&folder, &aside).unwrap();
    fs::write(&folder, "").unwrap();
    // One that is between two processes has none, and gets none.
    let _between_two = world.kubelet.kill("trades-1");
    wait_until_said(&world, "trades-1", &[DOWN]);
    let message = world.wait_for_reason("trades", "Degraded", "True", "DrainStuck");
    assert!(message.contains(&format!("pod trades-1 cannot drain: {DOWN}")), "{message}");
    world.wait_for_reason("trades", "Progressing", "False", "Blocked");
    let told = |text: &str| {
        let events = world.events("trades").into_iter();
        events.filter(|(_, reason, note)| reason == text || note == text).count()
    };
    world.wait("the Event of the beginning", SOON, || told("DrainStuck") == 1);

    // Everything else goes on, and whoever can go, goes.
    world.apply("trades", &format!("{}  monitoring: {{dashboard: true}}\n", fixed(1)));
    world.wait("another change", SOON, || world.owned().iter().any(|object| object.contains("dashboard")));
    assert_eq!(replicas(&world), 4, "a pod was removed of which nobody knew what it held");
    world.kubelet.thaw("trades-3").unwrap();
    world.wait("the pod that answers again to go", IN_TIME, || replicas(&world) == 3);

    wait_until_said(&world, "trades-2", &[HANGING]);
    let both = |message: String| message.contains(DOWN) && message.contains(HANGING);
    world.wait("both to be told", SOON, || {
        both(world.wait_for_reason("trades", "Degraded", "True", "DrainStuck"))
    });
    assert_eq!(replicas(&world), 3);
    world.space.kubectl(&["delete", "pod", "trades-2", "--force"]).unwrap();
    let other = |pod: Option<&Pod>| pod.is_none_or(|pod| pod.uid() != lost);
    world.space.wait("the lost pod to be gone", "trades-2", SOON, other).unwrap();
    world.wait("the one in its place to go", IN_TIME, || replicas(&world) == 2);

    fs::remove_file(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    wait_until_said(&world, "trades-1", &[SPOOLED]);
    world
        .space
        .wait("the pod to serve", "trades-1", SOON, |pod: Option<&Pod>| pod.is_some_and(is_ready))
        .unwrap();
    assert_eq!(replicas(&world), 2);
    way.set_upstream(world.postgres.address());
    world.wait_for_pods("trades", 1);
    world.wait_for_reason("trades", "Degraded", "False", "AsExpected");
    assert_eq!(draining(&world), BTreeMap::new());
    world.wait("the Event of the end", SOON, || told("DrainStuck is over") == 1);
    assert_eq!(told("DrainStuck"), 1, "it was one trouble from the first pod to the last");
    assert_eq!(stored(&world, "trades"), 1, "an acknowledged event was lost or doubled");
    operator.stop().unwrap();
}
