//! Faults of PostgreSQL and its disk.

use std::cell::Cell;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::torment;
use crate::disk::SmallDisk;
use crate::recorder::Habits;
use crate::run::{Run, Verdict};
use crate::volume::{FAULTS, FaultyVolume};
use crate::world::{Setup, World};

/// What a backend is doing when it is killed; patterns of `LIKE`.
const STATEMENTS: &[&str] = &["COPY %", "COMMIT%", "WITH stored AS %", "WITH head AS %", "%"];

pub(super) fn backend_kill(run: &mut Run) -> Result<Verdict> {
    // A commit that waits before its flush, so that kills fall before and after it.
    let setup = Setup {
        postgres_settings: vec![("commit_delay", "5000"), ("commit_siblings", "0")],
        ..Setup::default()
    };
    let habits = Habits { large_one_in: 8, ..Habits::default() };
    let hits = Cell::new(0);
    let tally = torment(run, &setup, &habits, |world| {
        let statement = *world.dice.pick(STATEMENTS);
        if world.kill_backend_in(statement, Duration::from_secs(3)) {
            hits.set(hits.get() + 1);
        }
        world.postgres.wait_until_recovered()?;
        sleep(world.dice.millis(0, 1500));
        Ok(())
    })?;
    ensure!(hits.get() > 0, "no backend was ever busy with what was to be killed");
    Ok(Verdict::Held(format!("{tally}; {} backends killed", hits.get())))
}

/// Ends PostgreSQL in one of the ways in which it may end.
pub(super) fn end_postgres(world: &mut World) -> Result<()> {
    match world.dice.below(4) {
        0 => world.postgres.kill_postmaster(),
        1 => world.postgres.kill_all(),
        2 => world.postgres.stop_immediately(),
        _ => world.postgres.stop(),
    }
}

pub(super) fn crash(run: &mut Run) -> Result<Verdict> {
    let tally = torment(run, &Setup::default(), &Habits::default(), |world| {
        sleep(world.dice.millis(100, 1500));
        end_postgres(world)?;
        // At once, or after a while, or so late that pods give up what they admitted.
        let longest = *world.dice.pick(&[1, 1000, 12_000]);
        sleep(world.dice.millis(0, longest));
        world.restart_postgres()
    })?;
    Ok(Verdict::Held(tally.to_string()))
}

pub(super) fn disk_full(run: &mut Run) -> Result<Verdict> {
    let Some(disk) = SmallDisk::mount(&run.folder("disk")?, 600)? else {
        return Ok(Verdict::Skipped("this process may not mount a small disk: it has to be root".to_owned()));
    };
    let setup = Setup {
        postgres_dir: Some(disk.path().join("postgres")),
        postgres_settings: vec![("max_wal_size", "64MB")],
        ..Setup::default()
    };
    let habits = Habits { large_one_in: 15, ..Habits::default() };
    let crashes = Cell::new(0_u32);
    let tally = torment(run, &setup, &habits, |world| {
        sleep(world.dice.millis(0, 500));
        let free = world.dice.below(4096);
        disk.fill(free)?;
        sleep(world.dice.millis(500, 4000));
        disk.free()?;
        // Without space for its log PostgreSQL stops; what it had not flushed it had not confirmed.
        crashes.set(crashes.get() + u32::from(world.recover_postgres()?));
        sleep(world.dice.millis(500, 2500));
        Ok(())
    })?;
    Ok(Verdict::Held(format!("{tally}; PostgreSQL ended {} times", crashes.get())))
}

pub(super) fn io_error(run: &mut Run) -> Result<Verdict> {
    let Some(volume) = FaultyVolume::new(&run.folder("faulty")?)? else {
        return Ok(Verdict::Skipped("there is no C compiler (cc) to build a faulty volume with".to_owned()));
    };
    let setup = Setup {
        postgres_dir: Some(volume.path().join("postgres")),
        // Checkpoints, too, fall into the faults.
        postgres_settings: vec![("max_wal_size", "64MB")],
        postgres_env: volume.env(),
        ..Setup::default()
    };
    let habits = Habits { large_one_in: 15, ..Habits::default() };
    let (crashes, round) = (Cell::new(0_u32), Cell::new(0_usize));
    let tally = torment(run, &setup, &habits, |world| {
        sleep(world.dice.millis(0, 500));
        let fault = FAULTS[round.replace(round.get() + 1) % FAULTS.len()];
        let panics = world.postgres.panics();
        volume.fail(fault)?;
        sleep(world.dice.millis(20, 1500));
        volume.heal()?;
        // All backends end at the first write of the log that fails; the server goes on by itself unless its recovery fails, too.
        let ended = world.recover_postgres()?;
        crashes.set(crashes.get() + u32::from(ended || world.postgres.panics() > panics));
        sleep(world.dice.millis(500, 2500));
        Ok(())
    })?;
    ensure!(crashes.get() > 0, "no fault ever met a write of the database's log");
    Ok(Verdict::Held(format!("{tally}; {} faults, PostgreSQL crashed {} times", round.get(), crashes.get())))
}
