//! What becomes of pods that are to go.

use super::*;

#[test]
fn pods_are_drained_before_they_go_and_the_highest_first() {
    let mut sim = Sim::new(QUICK, 5, 1.0);
    let mut counts = vec![5];
    for _ in 0..60 {
        sim.tick();
        let drained = |ordinal: u32| sim.drained.contains(&ordinal);
        assert!((sim.count()..5).all(drained), "{} pods, drained {:?}", sim.count(), sim.drained);
        counts.push(sim.count());
    }
    counts.dedup();
    assert_eq!(sim.count(), 2);
    assert!(counts.is_sorted_by(|a, b| a > b));
    assert_eq!(sim.drained, [4, 3, 2]);
    assert!(sim.core.advice().draining.is_empty());
}

#[test]
fn a_stuck_drain_is_told_and_hinders_no_growth() {
    let mut sim = Sim::new(QUICK, 4, 0.5);
    sim.pods.get_mut(&3).unwrap().manner = Manner::Stuck;
    sim.run(30);
    // Pod 2 has drained, but a StatefulSet removes the highest ordinal first.
    assert_eq!(sim.count(), 4);
    assert_eq!(
        sim.drains(),
        [("demo-2".into(), DrainState::Drained), ("demo-3".into(), DrainState::Draining)]
    );
    sim.run(60);
    assert_eq!(sim.drains()[1].1, DrainState::Stuck);
    sim.load = 6.0;
    sim.run(10);
    assert!(sim.count() > 4, "{}", sim.count());
    assert!(sim.drains().iter().all(|(_, state)| *state == DrainState::Cancelling), "{:?}", sim.drains());
    sim.pods.get_mut(&3).unwrap().manner = Manner::Healthy;
    sim.run(30);
    assert_eq!(sim.drains(), []);
    assert!(sim.pods.values().all(|pod| pod.state == PodState::Serving));
}

#[test]
fn a_pod_that_refuses_is_kept_and_asked_again() {
    let mut sim = Sim::new(QUICK, 3, 0.5);
    sim.pods.get_mut(&2).unwrap().manner = Manner::Refusing;
    sim.run(60);
    assert_eq!((sim.count(), sim.drains()), (3, vec![("demo-2".into(), DrainState::Refused(Some(503)))]));
    sim.pods.get_mut(&2).unwrap().manner = Manner::Healthy;
    sim.run(90);
    assert_eq!((sim.count(), sim.drains()), (2, vec![]));
}

#[test]
fn a_pod_with_a_spool_stays_until_it_is_replayed() {
    let mut sim = Sim::new(QUICK, 3, 0.5);
    sim.database = false;
    sim.pods.get_mut(&2).unwrap().spool = 7;
    sim.run(60);
    assert_eq!((sim.count(), sim.drains()), (3, vec![("demo-2".into(), DrainState::Spooled)]));
    assert!(sim.drained.is_empty(), "only a pod that serves replays its spool");
    sim.database = true;
    sim.run(10);
    assert_eq!((sim.count(), sim.removed_with_spool), (2, 0));
}

#[test]
fn a_pod_that_drained_into_its_spool_serves_again_first() {
    let mut sim = Sim::new(QUICK, 3, 0.5);
    sim.database = false;
    sim.run(40);
    assert_eq!((sim.count(), sim.drains()), (3, vec![("demo-2".into(), DrainState::Spooled)]));
    sim.database = true;
    sim.run(40);
    assert_eq!((sim.count(), sim.removed_with_spool), (2, 0));
}

#[test]
fn a_victim_that_is_silent_is_not_removed_either() {
    let mut sim = Sim::new("autoscaling: { enabled: false }\n  replicas: 3", 3, 0.1);
    sim.pods.get_mut(&2).unwrap().manner = Manner::Silent;
    sim.configure("autoscaling: { enabled: false }\n  replicas: 1");
    sim.run(600);
    assert_eq!(sim.count(), 3);
    assert_eq!(sim.drains()[1], ("demo-2".into(), DrainState::Unknown));
    // Nor is one whose process ends unheard.
    sim.pods.get_mut(&2).unwrap().ready = false;
    sim.reconcile();
    sim.run(600);
    assert_eq!((sim.count(), &sim.drains()[1].1), (3, &DrainState::Down));
}

const ONE: &str = "autoscaling: { enabled: false }\n  replicas: 1";

/// A cluster that is to shrink from three pods to one, under a new operator, while pod 2 has no process.
fn new_operator(change: impl FnOnce(&mut SimPod)) -> Sim {
    let mut sim = Sim::new("autoscaling: { enabled: false }\n  replicas: 3", 3, 0.1);
    sim.run(5);
    let pod = sim.pods.get_mut(&2).unwrap();
    pod.ready = false;
    change(pod);
    sim.cluster = shared_cluster(ONE);
    sim.restart();
    sim
}

#[test]
fn a_victim_whose_spool_a_new_operator_never_saw_stays_until_it_ran() {
    let mut sim = new_operator(|pod| pod.spool = 7);
    sim.run(600);
    assert_eq!((sim.count(), sim.removed_with_spool), (3, 0));
    let told = sim.core.advice().draining;
    // The one below it has drained meanwhile.
    assert_eq!(sim.drains(), [("demo-1".into(), DrainState::Drained), ("demo-2".into(), DrainState::Down)]);
    assert!(told[1].state.needs_help() && told[1].message.as_ref().unwrap().contains("does not run"));
    // A pod that takes its place and does not run either tells nothing.
    let pod = sim.pods.get_mut(&2).unwrap();
    (pod.uid, pod.has_run) = ("another".to_owned(), false);
    sim.reconcile();
    sim.run(60);
    assert_eq!(sim.count(), 3);
    // Growth does not wait for it.
    sim.configure("autoscaling: { enabled: false }\n  replicas: 5");
    assert_eq!(sim.count(), 5);
    sim.configure(ONE);
    let pod = sim.pods.get_mut(&2).unwrap();
    (pod.ready, pod.has_run) = (true, true);
    sim.reconcile();
    sim.run(60);
    assert_eq!((sim.count(), sim.removed_with_spool), (1, 0));
}

/// It was needed after all, and then was not.
#[test]
fn a_pod_that_is_to_go_while_it_returns_to_service_goes() {
    let (two, four) = (ONE.replace('1', "2"), ONE.replace('1', "4"));
    let mut sim = Sim::new(&four, 4, 0.1);
    sim.pods.get_mut(&3).unwrap().manner = Manner::Stuck;
    sim.run(5);
    sim.configure(&two);
    sim.run(10);
    sim.configure(&four);
    sim.run(1);
    // Drained as it was, it has to restart for that.
    assert_eq!(sim.drains()[0], ("demo-2".into(), DrainState::Cancelling));
    sim.pods.get_mut(&3).unwrap().manner = Manner::Healthy;
    sim.configure(&two);
    sim.run(90);
    assert_eq!((sim.count(), sim.drains()), (2, vec![]));
}

#[test]
fn a_victim_that_cannot_read_its_spool_is_not_asked_to_drain() {
    let mut sim = new_operator(|pod| (pod.ready, pod.manner) = (true, Manner::Unread));
    sim.run(60);
    assert_eq!(
        (sim.count(), &sim.drains()[1].1, sim.drained.as_slice()),
        (3, &DrainState::Unknown, &[1][..])
    );
    sim.pods.get_mut(&2).unwrap().manner = Manner::Healthy;
    sim.run(10);
    assert_eq!(sim.count(), 1);
}

#[test]
fn a_victim_that_never_ran_goes_at_once() {
    let mut sim = new_operator(|pod| pod.has_run = false);
    sim.run(10);
    assert_eq!(sim.count(), 1);
}

#[test]
fn a_victim_that_is_not_there_goes_only_if_this_operator_knows_of_it() {
    let mut sim = new_operator(|_| {});
    sim.pods.remove(&2);
    sim.reconcile();
    sim.run(60);
    assert_eq!((sim.count(), &sim.drains()[1].1), (3, &DrainState::Down));
    // The way out by hand.
    sim.follow(1);
    sim.reconcile();
    sim.run(10);
    assert_eq!((sim.count(), sim.drains()), (1, vec![]));
    // A quota keeps new pods from being made.
    sim.configure("autoscaling: { enabled: false }\n  replicas: 4");
    sim.pods.retain(|ordinal, _| *ordinal < 1);
    sim.reconcile();
    sim.run(10);
    sim.configure(ONE);
    sim.run(10);
    assert_eq!(sim.count(), 1);
}

#[test]
fn a_victim_that_was_empty_when_it_was_heard_last_goes_without_a_process() {
    let mut sim = Sim::new("autoscaling: { enabled: false }\n  replicas: 3", 3, 0.1);
    for (silence, kept) in [(5, 2), (60, 3)] {
        sim.follow(3);
        sim.configure("autoscaling: { enabled: false }\n  replicas: 3");
        sim.run(10);
        sim.pods.get_mut(&2).unwrap().manner = Manner::Silent;
        sim.run(silence);
        sim.pods.get_mut(&2).unwrap().ready = false;
        sim.configure("autoscaling: { enabled: false }\n  replicas: 2");
        sim.run(60);
        assert_eq!(sim.count(), kept, "{silence} s of silence");
    }
}

#[test]
fn a_victim_that_crashes_is_down_also_while_it_runs_for_a_moment() {
    let mut sim = new_operator(|pod| (pod.spool, pod.crashes, pod.manner) = (7, true, Manner::Silent));
    sim.run(10);
    let mut down = |ready, crashes| {
        let pod = sim.pods.get_mut(&2).unwrap();
        (pod.ready, pod.crashes) = (ready, crashes);
        sim.reconcile();
        sim.run(2);
        sim.drains()[1].1 == DrainState::Down
    };
    assert!(down(false, true) && down(true, true) && down(false, true));
    assert!(!down(true, false));
}

#[test]
fn a_victim_that_does_not_end_when_its_grace_period_is_over_is_told() {
    let mut sim = new_operator(|_| {});
    // Somebody gave it more time than is usual.
    sim.leaving = Some((2, sim.now + SECOND * 600));
    sim.reconcile();
    sim.run(600);
    assert_eq!(sim.drains()[1].1, DrainState::Leaving);
    sim.run(60);
    assert_eq!((sim.count(), &sim.drains()[1].1), (3, &DrainState::Hanging));
    assert!(sim.core.advice().draining[1].state.needs_help());
    // The next operator need not wait.
    sim.restart();
    sim.run(1);
    assert_eq!(sim.drains()[1].1, DrainState::Hanging);
}
