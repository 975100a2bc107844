use std::time::{Duration, Instant};

use super::*;

const DRAIN: Duration = Duration::from_secs(30);

/// A fleet with a clock of its own.
struct World {
    fleet: Fleet,
    desired: Desired,
    now: Instant,
}

impl World {
    /// `replicas` pods of revision 1, all ready.
    fn ready(replicas: u32) -> Self {
        let desired = Desired { replicas, revision: 1, drain_timeout: DRAIN };
        let mut world = Self { fleet: Fleet::default(), desired, now: Instant::now() };
        let starts: Vec<Action> = (0..replicas).map(|ordinal| Action::Start { ordinal }).collect();
        assert_eq!(world.step(), starts);
        for ordinal in 0..replicas {
            assert_eq!(world.event(ordinal, Event::Ready(true)), Outcome::BecameReady);
        }
        world
    }

    fn step(&mut self) -> Vec<Action> {
        let actions = self.fleet.reconcile(self.desired, self.now);
        assert_eq!(
            self.fleet.reconcile(self.desired, self.now),
            [],
            "a second step at the same time acts again"
        );
        actions
    }

    fn event(&mut self, ordinal: u32, event: Event) -> Outcome {
        self.fleet.observe(ordinal, event, self.now)
    }

    fn after(&mut self, wait: Duration) -> Vec<Action> {
        self.now += wait;
        self.step()
    }

    /// Takes a draining pod to its end.
    fn finish(&mut self, ordinal: u32) {
        self.event(ordinal, Event::Drained);
        assert_eq!(self.step(), [Action::Terminate { ordinal, drained: true }]);
        assert_eq!(self.event(ordinal, Event::Exited), Outcome::Stopped);
    }
}

fn surplus(ordinal: u32) -> Action {
    Action::Drain { ordinal, reason: DrainReason::Surplus }
}

fn outdated(ordinal: u32) -> Action {
    Action::Drain { ordinal, reason: DrainReason::Outdated }
}

#[test]
fn scale_out_starts_all_missing_pods_at_once() {
    let mut world = World::ready(1);
    world.desired.replicas = 3;
    assert_eq!(world.step(), [Action::Start { ordinal: 1 }, Action::Start { ordinal: 2 }]);
}

#[test]
fn scale_in_drains_the_highest_ordinals_then_terminates_them() {
    let mut world = World::ready(3);
    world.desired.replicas = 1;
    assert_eq!(world.step(), [surplus(1), surplus(2)]);
    assert_eq!(world.after(DRAIN / 2), []);
    world.finish(2);
    assert_eq!(world.fleet.pods().map(|(ordinal, _)| ordinal).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_pod_that_does_not_drain_is_terminated_and_then_killed() {
    let mut world = World::ready(2);
    world.desired.replicas = 1;
    world.step();
    assert_eq!(world.fleet.next_deadline(), Some(world.now + DRAIN));
    assert_eq!(world.after(DRAIN), [Action::Terminate { ordinal: 1, drained: false }]);
    assert_eq!(world.after(TERMINATE_TIMEOUT), [Action::Kill { ordinal: 1 }]);
    assert_eq!(world.after(TERMINATE_TIMEOUT), []);
    assert_eq!(world.event(1, Event::Exited), Outcome::Stopped);
}

#[test]
fn a_pod_wanted_again_while_it_drains_is_started_afresh_after_it_ended() {
    let mut world = World::ready(2);
    world.desired.replicas = 1;
    world.step();
    world.desired.replicas = 2;
    assert_eq!(world.step(), []);
    world.finish(1);
    assert_eq!(world.step(), [Action::Start { ordinal: 1 }]);
}

#[test]
fn crashes_back_off_exponentially_and_a_stable_run_forgets_them() {
    let mut world = World::ready(1);
    for (restarts, delay_ms) in [(1, 500), (2, 1000), (3, 2000)] {
        let delay = Duration::from_millis(delay_ms);
        assert_eq!(world.event(0, Event::Exited), Outcome::Crashed { restarts, delay });
        assert_eq!(world.after(delay - Duration::from_millis(1)), []);
        assert_eq!(world.after(Duration::from_millis(1)), [Action::Start { ordinal: 0 }]);
    }
    world.event(0, Event::Ready(true));
    world.now += STABLE_AFTER;
    assert_eq!(world.event(0, Event::Exited), Outcome::Crashed { restarts: 4, delay: BACK_OFF_MIN });
}

#[test]
fn the_back_off_is_bounded() {
    let mut world = World::ready(1);
    for _ in 0..100 {
        world.event(0, Event::Exited);
        world.after(BACK_OFF_MAX);
    }
    let crashed = world.event(0, Event::Exited);
    assert_eq!(crashed, Outcome::Crashed { restarts: 101, delay: BACK_OFF_MAX });
}

#[test]
fn a_crashed_pod_that_is_no_longer_wanted_is_forgotten() {
    let mut world = World::ready(2);
    world.event(1, Event::Exited);
    world.desired.replicas = 1;
    assert_eq!(world.after(BACK_OFF_MAX), []);
    assert_eq!(world.fleet.get(1), None);
}

#[test]
fn a_new_revision_replaces_one_pod_at_a_time_and_waits_until_it_is_ready() {
    let mut world = World::ready(3);
    world.desired.revision = 2;
    for ordinal in [2, 1, 0] {
        assert_eq!(world.step(), [outdated(ordinal)]);
        world.finish(ordinal);
        assert_eq!(world.step(), [Action::Start { ordinal }]);
        assert_eq!(world.after(DRAIN), []);
        world.event(ordinal, Event::Ready(true));
    }
    assert_eq!(world.step(), []);
}

#[test]
fn a_revision_that_crashes_stops_the_roll_and_the_repair_is_tried_at_once() {
    let mut world = World::ready(2);
    world.desired.revision = 2;
    world.step();
    world.finish(1);
    world.step();
    for _ in 0..4 {
        world.event(1, Event::Exited);
        world.after(BACK_OFF_MAX);
    }
    assert_eq!(world.fleet.get(0).map(|pod| (pod.revision, pod.is_ready())), Some((1, true)));
    world.event(1, Event::Exited);
    world.desired.revision = 3;
    assert_eq!(world.step(), [Action::Start { ordinal: 1 }]);
    assert!(matches!(world.event(1, Event::Exited), Outcome::Crashed { delay: BACK_OFF_MIN, .. }));
}

#[test]
fn an_outdated_pod_that_serves_nobody_is_replaced_before_healthy_ones() {
    let mut world = World::ready(3);
    world.event(0, Event::Ready(false));
    world.desired.revision = 2;
    assert_eq!(world.step(), [outdated(0)]);
}

#[test]
fn stopping_everything_while_pods_are_in_all_phases_leaves_nothing() {
    let mut world = World::ready(3);
    world.desired.replicas = 2;
    world.step();
    world.event(2, Event::Drained);
    assert_eq!(world.step(), [Action::Terminate { ordinal: 2, drained: true }]);
    world.event(1, Event::Exited);
    world.desired.replicas = 0;
    assert_eq!(world.step(), [surplus(0)]);
    world.event(0, Event::Exited);
    world.event(2, Event::Exited);
    assert!(world.fleet.is_empty());
    assert_eq!(world.after(BACK_OFF_MAX), []);
    assert_eq!(world.fleet.next_deadline(), None);
}
