//! What becomes of a cluster that is stopped while its database is away, and of what its pods have spooled.

use super::*;

const FOUR: &str = "autoscaling: { enabled: false }\n  replicas: 4";
const ONE: &str = "autoscaling: { enabled: false }\n  replicas: 1";
const STOPPED: &str = "stopped: true\n  autoscaling: { enabled: false }\n  replicas: 4";

/// Four pods whose database has gone; seven requests wait in the last one's spool.
fn cut_off() -> Sim {
    let mut sim = Sim::new(FOUR, 4, 0.1);
    sim.run(5);
    sim.database = false;
    sim.pods.get_mut(&3).unwrap().spool = 7;
    sim.run(5);
    sim
}

fn is_empty(sim: &Sim) -> bool {
    sim.volumes.is_empty() && sim.noted.is_empty() && sim.pods.values().all(|pod| pod.spool == 0)
}

#[test]
fn pods_go_with_their_spools_and_as_many_come_back_as_have_something_in_them() {
    for another_operator in [false, true] {
        let mut sim = cut_off();
        sim.configure(STOPPED);
        sim.run(10);
        assert_eq!((sim.count(), sim.drained.as_slice()), (0, &[3, 2, 1, 0][..]));
        assert_eq!(sim.noted, [(0, Some(1)), (1, Some(1)), (2, Some(1)), (3, Some(8))].into());
        assert_eq!(sim.volumes[&3], 8);
        if another_operator {
            sim.restart();
        }
        sim.run(300);
        assert_eq!((sim.count(), sim.noted.len()), (0, 4), "it stays stopped");
        sim.configure(ONE);
        assert_eq!(sim.count(), 4);
        sim.run(90);
        assert_eq!((sim.count(), sim.drains()), (4, vec![]), "the database is still away");
        sim.database = true;
        sim.run(20);
        assert_eq!(sim.count(), 1);
        assert!(is_empty(&sim), "{:?} {:?}", sim.volumes, sim.noted);
    }
}

#[test]
fn pods_that_do_not_drain_go_within_a_minute() {
    let mut sim = cut_off();
    sim.database = true;
    sim.pods.get_mut(&0).unwrap().manner = Manner::Refusing;
    sim.pods.get_mut(&1).unwrap().manner = Manner::Stuck;
    sim.pods.get_mut(&2).unwrap().manner = Manner::Silent;
    sim.pods.get_mut(&3).unwrap().ready = false;
    sim.configure(STOPPED);
    sim.run(50);
    assert_eq!(sim.count(), 3, "the one without a process goes at once, and with it what it holds");
    sim.run(15);
    assert_eq!((sim.count(), &sim.noted), (0, &[(0, None), (1, None), (2, None), (3, None)].into()));
    sim.configure(ONE);
    assert_eq!(sim.count(), 4);
    sim.run(20);
    assert!(sim.count() == 1 && is_empty(&sim));
}

#[test]
fn no_pod_goes_before_the_status_says_what_it_leaves() {
    let mut sim = cut_off();
    sim.status_fails = true;
    sim.configure(STOPPED);
    sim.run(120);
    assert_eq!(sim.count(), 4);
    sim.status_fails = false;
    sim.reconcile();
    assert_eq!(sim.count(), 0);
}

#[test]
fn a_stop_that_is_taken_back_lets_nobody_go_with_a_spool() {
    let mut sim = cut_off();
    sim.pods.get_mut(&3).unwrap().manner = Manner::Stuck;
    sim.configure(STOPPED);
    sim.run(20);
    assert_eq!(sim.drains()[2], ("demo-2".into(), DrainState::Parked));
    sim.configure(ONE);
    sim.pods.get_mut(&3).unwrap().manner = Manner::Healthy;
    sim.run(30);
    assert_eq!(sim.count(), 4);
    sim.database = true;
    sim.run(60);
    assert_eq!((sim.count(), sim.removed_with_spool), (1, 0));
    assert!(is_empty(&sim), "{:?} {:?}", sim.volumes, sim.noted);
}

#[test]
fn a_pod_that_cannot_come_back_can_be_given_up_by_hand() {
    let mut sim = cut_off();
    sim.configure(STOPPED);
    sim.run(10);
    sim.database = true;
    sim.configure(ONE);
    sim.pods.get_mut(&3).unwrap().ready = false;
    sim.run(90);
    assert_eq!((sim.count(), &sim.noted), (4, &[(3, Some(8))].into()));
    sim.follow(3);
    sim.run(10);
    sim.reconcile();
    sim.run(10);
    assert_eq!((sim.count(), sim.noted.len()), (1, 0));
}

/// What may happen to a cluster that is stopped and started.
#[derive(Clone, Debug)]
enum Event {
    Stop,
    Start(u32),
    Manner(u32, Manner),
    Database(bool),
    Spool(u32),
    Status(bool),
    Restart,
    Wait(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let manner = prop_oneof![
        2 => Just(Manner::Healthy), 1 => Just(Manner::Silent), 1 => Just(Manner::Unread),
        1 => Just(Manner::Stuck), 1 => Just(Manner::Refusing),
    ];
    prop_oneof![
        2 => Just(Event::Stop),
        2 => (1..6_u32).prop_map(Event::Start),
        1 => (0..6_u32, manner).prop_map(|(ordinal, manner)| Event::Manner(ordinal, manner)),
        1 => any::<bool>().prop_map(Event::Database),
        1 => (0..6_u32).prop_map(Event::Spool),
        1 => any::<bool>().prop_map(Event::Status),
        1 => Just(Event::Restart),
        4 => (1..80_u32).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_stopped_and_started_nothing_is_forgotten_on_a_volume(events in prop::collection::vec(event(), 1..40)) {
        let mut sim = Sim::new(FOUR, 4, 0.1);
        for event in events {
            match event {
                Event::Stop => sim.configure(STOPPED),
                Event::Start(count) => sim.configure(&format!("autoscaling: {{ enabled: false }}\n  replicas: {count}")),
                Event::Manner(ordinal, manner) => sim.behave(ordinal, manner),
                Event::Database(up) => sim.database = up,
                Event::Spool(ordinal) => sim.spool(ordinal),
                Event::Status(fails) => sim.status_fails = fails,
                Event::Restart => sim.restart(),
                Event::Wait(seconds) => sim.run(seconds),
            }
            for ordinal in sim.volumes.keys() {
                prop_assert!(sim.noted.contains_key(ordinal), "{:?} {:?}", sim.volumes, sim.noted);
            }
        }
        sim.mend();
        sim.status_fails = false;
        sim.configure(ONE);
        sim.run(200);
        prop_assert_eq!(sim.count(), 1);
        prop_assert!(is_empty(&sim), "{:?} {:?} {:?}", sim.volumes, sim.noted, sim.pods);
    }
}
