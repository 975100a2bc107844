//! Faults of the network.

use std::cell::Cell;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::torment;
use crate::dice::Dice;
use crate::proxy::{Cut, Direction, Proxy};
use crate::recorder::Habits;
use crate::run::{Run, Verdict};
use crate::wait_for;
use crate::world::Setup;

const DIRECTIONS: &[Direction] = &[Direction::ToServer, Direction::ToClient];
const CUTS: &[Cut] = &[Cut::Both, Cut::ClientOnly, Cut::ServerOnly];

/// One in so many rounds leaves a commit in doubt for longer than a request waits.
const LONG_DOUBT_EVERY: u32 = 10;

/// PostgreSQL's words that a transaction, and that a statement, is done; the latter is a whole commit for small batches.
const CONFIRMATIONS: &[&[u8]] = &[b"COMMIT\0", b"INSERT 0 1\0"];

/// What passes between a pod and PostgreSQL in a commit.
const COMMITS: &[(Direction, &[u8])] = &[
    (Direction::ToServer, b"\"n\":"),
    (Direction::ToServer, b"COMMIT\0"),
    (Direction::ToServer, b"BEGIN\0"),
    (Direction::ToClient, b"COMMIT\0"),
    (Direction::ToClient, b"COPY "),
    (Direction::ToClient, b"INSERT 0 1\0"),
];

/// What passes between a client and a pod.
const APPENDS: &[(Direction, &[u8])] = &[
    (Direction::ToServer, b"POST /v1/"),
    (Direction::ToServer, b"content-length"),
    (Direction::ToServer, b"\"n\":"),
    (Direction::ToClient, b" 201 "),
    (Direction::ToClient, b"first_id"),
];

pub(super) fn database(run: &mut Run) -> Result<Verdict> {
    let sprung = Cell::new(0);
    let habits = Habits { large_one_in: 20, ..Habits::default() };
    let round = Cell::new(0_u32);
    let tally = torment(run, &Setup::default(), &habits, |world| {
        let before = world.network.sprung();
        if round.replace(round.get() + 1).is_multiple_of(LONG_DOUBT_EVERY) {
            lose_a_confirmation(&world.network, &mut world.dice)?;
        } else {
            break_network(&world.network, &mut world.dice, COMMITS);
            // Longer than an attempt at a commit may take, now and then.
            let longest = if world.dice.one_in(6) { 8000 } else { 1500 };
            sleep(world.dice.millis(50, longest));
        }
        sprung.set(sprung.get() + world.network.sprung() - before);
        world.network.heal();
        sleep(world.dice.millis(0, 1500));
        Ok(())
    })?;
    Ok(Verdict::Held(format!("{tally}; {} connections cut at a chosen byte", sprung.get())))
}

/// A commit whose confirmation is lost, and no way to ask for longer than a request waits: its outcome is unknown.
fn lose_a_confirmation(network: &Proxy, dice: &mut Dice) -> Result<()> {
    let sprung = network.sprung();
    let confirmation: &&[u8] = dice.pick(CONFIRMATIONS);
    network.cut_at(Direction::ToClient, confirmation, false, Cut::Both);
    wait_for("a commit", Duration::from_secs(30), || Ok(network.sprung() > sprung))?;
    network.partition();
    sleep(dice.millis(10_500, 13_000));
    Ok(())
}

pub(super) fn clients(run: &mut Run) -> Result<Verdict> {
    let habits = Habits { reply_timeout: Duration::from_millis(1500), ..Habits::default() };
    let sprung = Cell::new(0);
    let tally = torment(run, &Setup::default(), &habits, |world| {
        let pod = world.dice.index(world.pod_count());
        let mut dice = world.dice.fork();
        let front = world.front(pod);
        let before = front.sprung();
        break_network(front, &mut dice, APPENDS);
        let longest = if dice.one_in(4) { 3000 } else { 500 };
        sleep(dice.millis(20, longest));
        sprung.set(sprung.get() + front.sprung() - before);
        front.heal();
        sleep(dice.millis(0, 200));
        Ok(())
    })?;
    Ok(Verdict::Held(format!("{tally}; {} connections cut at a chosen byte", sprung.get())))
}

fn break_network(network: &Proxy, dice: &mut Dice, passing: &[(Direction, &[u8])]) {
    match dice.below(8) {
        0 => network.set_delay(dice.millis(1, 100)),
        1 => network.partition(),
        2 => network.silence(*dice.pick(DIRECTIONS)),
        3 => network.cut_all(*dice.pick(CUTS)),
        _ => {
            let (direction, bytes) = *dice.pick(passing);
            network.cut_at(direction, bytes, dice.one_in(2), *dice.pick(CUTS));
        }
    }
}
