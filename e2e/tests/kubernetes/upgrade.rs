//! An operator of another version takes over: nothing restarts and nothing is written until the user names a version.

use std::process::Command;
use std::time::Duration;

use certeus_e2e::cluster::operator::Operator;
use certeus_e2e::programs;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::installed::{IN_TIME, Installed, fixed, pods_of, writes};

const NEW: &str = env!("CARGO_PKG_VERSION");
/// Longer than any period of the operator but its slow resync.
const REST: Duration = Duration::from_secs(5);
/// Longer than the operator gathers edits for, and a scaler's turn: a second rollout would have begun.
const AGAIN: Duration = Duration::from_secs(3);

/// The first version there can have been, as long as the present one.
fn old_version() -> String {
    NEW.chars().map(|character| if character.is_ascii_digit() { '0' } else { character }).collect()
}

/// Of each pod: name, identity, restarts, image.
fn pods(world: &Installed) -> Vec<(String, String, i32, String)> {
    let pods = world.space.list::<Pod>(&pods_of("trades")).unwrap();
    let seen = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
        (pod.name_any(), pod.uid().unwrap(), statuses.map(|status| status.restart_count).sum(), image)
    };
    pods.iter().map(seen).collect()
}

/// What changes with each write of the workload but not with its status.
fn workload(world: &Installed) -> (Option<i64>, String) {
    let set = world.space.get::<StatefulSet>("trades").unwrap().unwrap();
    (set.metadata.generation, set.status.unwrap().update_revision.unwrap())
}

#[test]
fn an_operator_of_another_version_restarts_no_pod_until_a_version_is_named() {
    let _turn = crate::beside();
    let world = Installed::new("upgrade", false);
    let old_version = old_version();
    let program =
        programs::operator_of_version(&old_version, &world.space.dir().join("old-operator")).unwrap();
    let told = Command::new(&program).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(told.stdout).unwrap(), format!("certeus-operator {old_version}\n"));
    let old = Operator::start(&world.space, &program, world.token()).unwrap();
    world.create("trades", &fixed(1));
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 1);
    world.wait_for_condition("trades", "Progressing", "False");
    let (before, as_written) = (pods(&world), workload(&world));
    assert!(before.iter().all(|pod| pod.3 == format!("certeus/dataplane:{old_version}")), "{before:?}");

    // As a Deployment replaces its pod: the new one is there before the old one goes.
    let new = world.operator();
    world.wait("the new one to stand by", IN_TIME, || new.health("/readyz").is_ok());
    old.stop().unwrap();
    world.wait("the lease to be handed over", IN_TIME, || new.leads(&world.space).unwrap());
    let reconciled = || {
        new.metric("certeus_operator_reconciles_total", &["\"ok\""]).unwrap().is_some_and(|count| count > 0.0)
    };
    world.wait("a first look", IN_TIME, reconciled);
    world.wait_for_condition("trades", "DatabaseReachable", "True");
    let of_objects: Vec<String> =
        writes(&new).into_iter().filter(|write| !write.ends_with("/status")).collect();
    assert_eq!(of_objects, [""; 0], "an upgrade wrote objects");
    new.front().forget();
    std::thread::sleep(REST);
    assert_eq!(writes(&new), [""; 0], "written at rest");
    assert_eq!((pods(&world), workload(&world)), (before, as_written.clone()));

    // A cluster that is made now is of the new version.
    world.create("later", &format!("{}  stopped: true\n", fixed(1)));
    let later =
        world.space.wait("another cluster", "later", IN_TIME, |set: Option<&StatefulSet>| set.is_some());
    let image = later.unwrap().unwrap().spec.unwrap().template.spec.unwrap().containers[0].image.clone();
    assert_eq!(image.unwrap(), format!("certeus/dataplane:{NEW}"));

    // Named, it is rolled out: its pod once.
    world.apply("trades", &format!("{}  version: {NEW}\n", fixed(1)));
    let is_new = |pod: &(String, String, i32, String)| pod.3 == format!("certeus/dataplane:{NEW}");
    world.wait("the pod to be replaced", IN_TIME, || {
        let now = pods(&world);
        now.len() == 1 && now.iter().all(is_new)
    });
    world.wait_for_pods("trades", 1);
    world.wait_for_condition("trades", "Progressing", "False");
    let (after, as_written_now) = (pods(&world), workload(&world));
    assert_ne!(as_written_now.1, as_written.1);
    std::thread::sleep(AGAIN);
    assert_eq!((pods(&world), workload(&world)), (after, as_written_now), "once");
    new.stop().unwrap();
}
