//! The scenarios: what is broken, and how often.
//!
//! All but the tampering ones have the same shape: start a world, send events all the while, break something in every
//! round, and conclude.

mod database;
mod network;
mod pods;
mod sealing;
mod spool;
mod tampering;

use anyhow::Result;

use crate::interrupt;
use crate::recorder::Habits;
use crate::run::{Run, Verdict};
use crate::world::{self, Setup, Tally, World};

/// One way of breaking things.
#[derive(Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Rounds of the short form, some seconds; 0 when it takes too long for one.
    pub short_rounds: u32,
    /// Rounds of the long form: minutes.
    pub long_rounds: u32,
    /// Does it.
    pub run: fn(&mut Run) -> Result<Verdict>,
}

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "pod-kill",
        about: "kill -9 of pods at random instants, also while they start",
        short_rounds: 8,
        long_rounds: 1000,
        run: pods::kill,
    },
    Scenario {
        name: "pod-restart",
        about: "SIGTERM of pods under load: they drain, and what is stored is answered",
        short_rounds: 2,
        long_rounds: 100,
        run: pods::restart,
    },
    Scenario {
        name: "pod-freeze",
        about: "SIGSTOP of pods for a while, wherever they are in a commit",
        short_rounds: 3,
        long_rounds: 100,
        run: pods::freeze,
    },
    Scenario {
        name: "clock-jump",
        about: "wall clocks of pods jump by up to twelve hours, in both directions",
        short_rounds: 6,
        long_rounds: 200,
        run: pods::clock_jump,
    },
    Scenario {
        name: "clock-leap",
        about: "the same by days to decades; only for requests without a name, which is remembered by the day",
        short_rounds: 6,
        long_rounds: 200,
        run: pods::clock_leap,
    },
    Scenario {
        name: "backend-kill",
        about: "kill -9 of a PostgreSQL backend in COPY, in COMMIT and in INSERT",
        short_rounds: 4,
        long_rounds: 300,
        run: database::backend_kill,
    },
    Scenario {
        name: "postgres-crash",
        about: "kill -9 of the postmaster, of all of PostgreSQL, and immediate shutdowns, with restarts",
        short_rounds: 3,
        long_rounds: 200,
        run: database::crash,
    },
    Scenario {
        name: "disk-full",
        about: "the database's disk is full for a while",
        short_rounds: 2,
        long_rounds: 40,
        run: database::disk_full,
    },
    Scenario {
        name: "database-io-error",
        about: "writes and syncs of the database's files fail for a while",
        short_rounds: 3,
        long_rounds: 100,
        run: database::io_error,
    },
    Scenario {
        name: "spool-outage",
        about: "PostgreSQL is away while pods with spools are killed, and while they replay",
        short_rounds: 2,
        long_rounds: 120,
        run: spool::outage,
    },
    Scenario {
        name: "spool-disk-full",
        about: "the spools' volume is full while PostgreSQL is away",
        short_rounds: 2,
        long_rounds: 60,
        run: spool::disk_full,
    },
    Scenario {
        name: "spool-io-error",
        about: "writes and syncs of the spools fail while PostgreSQL is away",
        short_rounds: 3,
        long_rounds: 100,
        run: spool::io_error,
    },
    Scenario {
        name: "network-database",
        about: "delay, partition, half-open connections and lost replies between pods and database",
        short_rounds: 5,
        long_rounds: 400,
        run: network::database,
    },
    Scenario {
        name: "network-clients",
        about: "the same between clients and pods",
        short_rounds: 8,
        long_rounds: 400,
        run: network::clients,
    },
    Scenario {
        name: "tamper-read",
        about: "changed payloads, types, times and entries: a read of the event says so",
        short_rounds: 1,
        long_rounds: 5,
        run: tampering::read,
    },
    Scenario {
        name: "sealer-kill",
        about: "kill -9 of the pod that seals the log, again and again",
        short_rounds: 3,
        long_rounds: 300,
        run: sealing::kill,
    },
    Scenario {
        name: "sealer-freeze",
        about: "SIGSTOP of the sealer until another has taken over, so that there are two; long form only",
        short_rounds: 0,
        long_rounds: 40,
        run: sealing::freeze,
    },
    Scenario {
        name: "old-backup",
        about: "the database is replaced by a backup that is older than the log: nothing is signed or taken",
        short_rounds: 1,
        long_rounds: 30,
        run: sealing::old_backup,
    },
    Scenario {
        name: "old-anchor",
        about: "the same, and the pod that is there first knows only what the backup knows",
        short_rounds: 1,
        long_rounds: 30,
        run: sealing::old_anchor,
    },
    Scenario {
        name: "rewrite",
        about: "the database is rewritten to match itself, its log entries or checkpoints included: the log shows it",
        short_rounds: 1,
        long_rounds: 10,
        run: sealing::rewrite,
    },
    Scenario {
        name: "removed-event",
        about: "the row of one event disappears: a read of the event says so",
        short_rounds: 1,
        long_rounds: 1,
        run: sealing::remove_event,
    },
];

/// Starts a world for every stretch of rounds, sends events, does `round` again and again, and checks everything.
fn torment(
    run: &mut Run,
    setup: &Setup,
    habits: &Habits,
    mut round: impl FnMut(&mut World) -> Result<()>,
) -> Result<Tally> {
    let mut total = Tally::default();
    for (number, segment) in run.segments().into_iter().enumerate() {
        let part = format!("part-{number}");
        let mut world = World::start(run, &part, setup)?;
        let recorder = world.load(habits);
        for at in segment {
            run.progress(at);
            interrupt::check()?;
            round(&mut world)?;
        }
        total = total.plus(world.conclude(recorder)?);
        // What held need not be kept, and the long form would fill the disk. Logs and journal stay until the end.
        std::fs::remove_dir_all(world::postgres_dir(setup, &run.folder(&part)?))?;
    }
    Ok(total)
}
