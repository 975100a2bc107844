//! The number of pods under real load: out when there is more, in when there is less, and never an event lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use certeus_e2e::checker;
use certeus_e2e::cluster::front::{Fault, Rule};
use certeus_e2e::dice::Dice;
use certeus_e2e::journal::Journal;
use certeus_e2e::recorder::{Recorder, Targets};
use certeus_e2e::snapshot::Snapshot;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::installed::{IN_TIME, Installed, fixed, is_ready, pods_of};

const LEDGER: &str = "default";
/// The goal is 3 s; this machine does much else.
const REACTION_MAX: Duration = Duration::from_secs(15);
/// Long enough for several decisions.
const WATCHED: Duration = Duration::from_secs(12);

fn replicas(world: &Installed) -> i32 {
    world.space.get::<StatefulSet>("trades").unwrap().and_then(|set| set.spec?.replicas).unwrap_or(0)
}

/// Where the pods are that a Service would send requests to.
fn serving(world: &Installed) -> Vec<std::net::SocketAddr> {
    let pods = world.space.list::<Pod>(&pods_of("trades")).unwrap_or_default();
    let serving = pods.iter().filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
    serving.filter_map(|pod| world.kubelet.api_of(&pod.name_any())).collect()
}

#[test]
fn load_brings_pods_and_takes_them_away_without_losing_an_event() {
    const ONE: &str = "  autoscaling: {min: 1, max: 1, cooldown: 5s}\n  resources: {requests: {cpu: 100m}}\n";
    const THREE: &str =
        "  autoscaling: {min: 1, max: 3, cooldown: 5s}\n  resources: {requests: {cpu: 100m}}\n";
    let _alone = crate::alone();
    let world = Installed::new("load", false);
    let operator = world.operator();
    world.create("trades", THREE);
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 1);
    world.wait_for_condition("trades", "ScalingActive", "True");

    let journal = Arc::new(Journal::create(&world.space.dir().join("journal.jsonl")).unwrap());
    let targets = Targets::default();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let following = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                targets.set(serving(&world));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        // Ends the thread also when an assertion fails.
        let _end = End(&ended);
        world.wait("a pod to send to", IN_TIME, || !targets.all().is_empty());
        let recorder =
            Recorder::start(&world.habits("trades"), &targets, &journal, &mut Dice::new(20_260_131));
        let begun = Instant::now();
        world.wait("the scale-out", REACTION_MAX, || replicas(&world) > 1);
        eprintln!("from the load to the scale write: {:.1} s", begun.elapsed().as_secs_f32());
        world.wait_for_pods("trades", 3);
        let before = journal.acknowledged_count();
        world.wait("load on all pods", IN_TIME, || journal.acknowledged_count() > before + 200);

        // In again, with the load still on: both pods that go have something to do.
        world.apply("trades", ONE);
        world.wait_for_pods("trades", 1);
        let before = journal.acknowledged_count();
        world.wait("load on the last pod", IN_TIME, || journal.acknowledged_count() > before + 100);
        recorder.finish().unwrap();
        drop(_end);
        following.join().unwrap();
    });
    let entries = journal.entries();
    let snapshot = Snapshot::read(&world.sql("trades"), LEDGER).unwrap();
    let violations = checker::check(&snapshot, &entries);
    assert!(violations.is_empty(), "{violations}");
    assert_eq!(journal.surprises(), [""; 0]);
    eprintln!("{} requests, {} events, none lost", entries.len(), snapshot.rows.len());
    operator.stop().unwrap();
}

/// Says when it goes.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_pod_that_does_not_drain_is_kept_and_hinders_nothing_else() {
    const THREE: &str = "  autoscaling: {min: 3, max: 3, cooldown: 1s}\n";
    // The same largest number, so that no pod gets another configuration.
    const FEWER: &str = "  autoscaling: {min: 1, max: 3, cooldown: 1s}\n";
    let _turn = crate::beside();
    let world = Installed::new("drain", true);
    let operator = world.operator();
    world.create("trades", THREE);
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 3);

    // The last pod goes, the one before it refuses to.
    let front = world.kubelet.front("trades-1").unwrap();
    front.inject(Rule::new("POST", "/admin/drain", Fault::Refuse(503)));
    world.apply("trades", FEWER);
    world.wait("the last pod to drain", IN_TIME, || replicas(&world) == 2);
    world.wait("the other one to be asked", IN_TIME, || {
        front.seen().iter().any(|seen| seen.method == "POST" && seen.path == "/admin/drain" && seen.broken)
    });
    // Everything else goes on.
    world.apply("trades", &format!("{FEWER}  monitoring: {{dashboard: true}}\n"));
    world.wait("another change", IN_TIME, || world.owned().iter().any(|object| object.contains("dashboard")));
    std::thread::sleep(WATCHED);
    assert_eq!(replicas(&world), 2, "a pod was removed that had not drained");
    front.heal();
    world.wait("the scale-in to end", IN_TIME * 2, || replicas(&world) == 1);
    world.wait_for_pods("trades", 1);
    operator.stop().unwrap();
}

#[test]
fn pods_that_cannot_be_measured_are_not_removed() {
    const THREE: &str = "  autoscaling: {min: 3, max: 3, cooldown: 1s}\n";
    const FEWER: &str = "  autoscaling: {min: 1, max: 3, cooldown: 1s}\n";
    let _turn = crate::beside();
    let world = Installed::new("blind", true);
    let operator = world.operator();
    world.create("trades", THREE);
    world.wait_until_ready("trades");
    world.wait_for_pods("trades", 3);
    world.wait_for_condition("trades", "ScalingActive", "True");
    let fronts: Vec<_> = world.kubelet.pods().iter().map(|pod| world.kubelet.front(pod).unwrap()).collect();
    for front in &fronts {
        front.inject(Rule::new("GET", "/metrics", Fault::Hang));
    }
    let (reason, message) = world.wait_for_condition("trades", "ScalingActive", "False");
    assert_eq!(reason, "MeasurementFailed", "{message}");
    world.apply("trades", FEWER);
    std::thread::sleep(WATCHED);
    assert_eq!(replicas(&world), 3, "pods were removed that nobody could measure");
    for front in &fronts {
        front.heal();
    }
    world.wait_for_condition("trades", "ScalingActive", "True");
    world.wait("the scale-in", IN_TIME, || replicas(&world) == 1);
    world.wait_for_pods("trades", 1);
    operator.stop().unwrap();
}

#[test]
fn twenty_pods_take_events() {
    let _alone = crate::alone();
    let world = Installed::new("twenty", false);
    let operator = world.operator();
    world.create("trades", &format!("{}  ledger: {{writers: 1}}\n", fixed(20)));
    world.wait_for_pods("trades", 20);
    world.wait_until_ready("trades");
    let journal = Arc::new(Journal::create(&world.space.dir().join("journal.jsonl")).unwrap());
    let targets = Targets::default();
    targets.set(serving(&world));
    assert_eq!(targets.all().len(), 20);
    let recorder = Recorder::start(&world.habits("trades"), &targets, &journal, &mut Dice::new(7));
    world.wait("load on all pods", IN_TIME, || journal.acknowledged_count() > 1000);
    recorder.finish().unwrap();
    // Under that load each pod stayed well.
    world.wait_for_pods("trades", 20);
    let snapshot = Snapshot::read(&world.sql("trades"), LEDGER).unwrap();
    let violations = checker::check(&snapshot, &journal.entries());
    assert!(violations.is_empty(), "{violations}");
    operator.stop().unwrap();
}
