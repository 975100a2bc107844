//! Faults of pods.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::torment;
use crate::clock::Clock;
use crate::recorder::Habits;
use crate::run::{Run, Verdict};
use crate::world::{Setup, World};

/// A pod whose number the seed chooses.
pub(super) fn any_pod(world: &mut World) -> usize {
    let count = world.pod_count();
    world.dice.index(count)
}

pub(super) fn kill(run: &mut Run) -> Result<Verdict> {
    // With anchors of their own a new sealer would wait longer than most of them live, and nothing would be signed.
    let setup = Setup { anchor_shared: true, ..Setup::default() };
    let tally = torment(run, &setup, &Habits::default(), |world| {
        let pod = any_pod(world);
        // From before it is ready to well in the middle of its work.
        sleep(world.dice.millis(0, 600));
        world.kill_pod(pod)?;
        sleep(world.dice.millis(0, 50));
        world.start_pod(pod)
    })?;
    Ok(Verdict::Held(tally.to_string()))
}

pub(super) fn restart(run: &mut Run) -> Result<Verdict> {
    let setup = Setup { anchor_shared: true, ..Setup::default() };
    let tally = torment(run, &setup, &Habits::default(), |world| {
        let pod = any_pod(world);
        sleep(world.dice.millis(0, 500));
        world.stop_pod(pod)?;
        world.start_pod(pod)
    })?;
    ensure!(tally.unknown == 0, "pods that ended in order left requests without an answer: {tally}");
    Ok(Verdict::Held(tally.to_string()))
}

pub(super) fn freeze(run: &mut Run) -> Result<Verdict> {
    let habits = Habits { reply_timeout: Duration::from_secs(3), ..Habits::default() };
    let tally = torment(run, &Setup::default(), &habits, |world| {
        let pod = any_pod(world);
        sleep(world.dice.millis(0, 300));
        world.pod(pod)?.freeze()?;
        // Longer than clients wait, now and then.
        let longest = if world.dice.one_in(3) { 5000 } else { 1000 };
        sleep(world.dice.millis(10, longest));
        world.pod(pod)?.thaw()
    })?;
    Ok(Verdict::Held(tally.to_string()))
}

/// Seconds: what names of requests are promised to bear, pods that differ by up to a day.
const JUMPS: &[i64] = &[0, 60, -60, 3600, -3600, 43_000, -43_000];

/// Seconds: days, a year, to 1970, and far ahead.
const LEAPS: &[i64] =
    &[0, 86_400, -86_400, 3 * 86_400, -40 * 86_400, 365 * 86_400, -56 * 365 * 86_400, 40 * 365 * 86_400];

pub(super) fn clock_jump(run: &mut Run) -> Result<Verdict> {
    clocks(run, JUMPS, &Habits::default())
}

pub(super) fn clock_leap(run: &mut Run) -> Result<Verdict> {
    clocks(run, LEAPS, &Habits { named: false, ..Habits::default() })
}

fn clocks(run: &mut Run, jumps: &[i64], habits: &Habits) -> Result<Verdict> {
    let mut setup = Setup::default();
    let mut clocks = Vec::new();
    for pod in 0..setup.pods {
        let Some(clock) = Clock::new(&run.dir().join(format!("clock-{pod}")))? else {
            return Ok(Verdict::Skipped(
                "libfaketime is not installed: scripts/setup.sh faketime installs it".to_owned(),
            ));
        };
        setup.pod_env.push(clock.env());
        clocks.push(clock);
    }
    let tally = torment(run, &setup, habits, |world| {
        let pod = any_pod(world);
        let jump = *world.dice.pick(jumps);
        clocks[pod].set(jump)?;
        if world.dice.one_in(4) {
            world.kill_pod(pod)?;
            world.start_pod(pod)?;
        }
        sleep(world.dice.millis(100, 900));
        Ok(())
    })?;
    Ok(Verdict::Held(tally.to_string()))
}
