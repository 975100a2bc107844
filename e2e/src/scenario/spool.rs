//! Faults while pods spool: kills, a full volume, and one that fails.
//!
//! `kill -9` leaves what the kernel has of a file, so these cannot see a sync that is missing; a volume whose syncs fail
//! can: nothing may be promised while they do. What a power failure leaves is simulated in the ledger's own tests.

use std::cell::Cell;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::database::end_postgres;
use super::pods::any_pod;
use super::torment;
use crate::disk::SmallDisk;
use crate::journal::Journal;
use crate::recorder::Habits;
use crate::run::{Run, Verdict};
use crate::spools::SpoolSetup;
use crate::volume::{FAULTS, FaultyVolume};
use crate::wait_for;
use crate::world::{Setup, World};

/// Requests that spools must take before an outage counts as one.
const SPOOLED_MIN: usize = 20;
const SPOOLING_TIMEOUT: Duration = Duration::from_secs(60);

fn habits() -> Habits {
    Habits { spool: true, ..Habits::default() }
}

/// Kills pods and starts them again on their spools, fewer than `most` times.
fn kill_pods(world: &mut World, most: u64, kills: &Cell<u32>) -> Result<()> {
    for _ in 0..world.dice.below(most) {
        sleep(world.dice.millis(0, 400));
        let pod = any_pod(world);
        world.kill_pod(pod)?;
        kills.set(kills.get() + 1);
        sleep(world.dice.millis(0, 100));
        world.start_pod(pod)?;
    }
    Ok(())
}

/// Waits until spools have taken some requests more.
fn wait_until_spooling(journal: &Journal) -> Result<()> {
    let before = journal.spooled_count();
    wait_for("spooling", SPOOLING_TIMEOUT, || Ok(journal.spooled_count() >= before + SPOOLED_MIN))
}

pub(super) fn outage(run: &mut Run) -> Result<Verdict> {
    let spool = SpoolSetup { parent: run.folder("spools")?, bytes_max: "256Mi" };
    let setup = Setup { spool: Some(spool), ..Setup::default() };
    let kills = Cell::new(0);
    let tally = torment(run, &setup, &habits(), |world| {
        sleep(world.dice.millis(0, 500));
        end_postgres(world)?;
        // Some while they still find out.
        kill_pods(world, 2, &kills)?;
        wait_until_spooling(world.journal())?;
        kill_pods(world, 4, &kills)?;
        world.restart_postgres()?;
        // In the middle of the replay.
        kill_pods(world, 4, &kills)?;
        sleep(world.dice.millis(0, 1500));
        Ok(())
    })?;
    Ok(Verdict::Held(format!("{tally}; {} pods killed", kills.get())))
}

pub(super) fn disk_full(run: &mut Run) -> Result<Verdict> {
    let Some(disk) = SmallDisk::mount(&run.folder("disk")?, 4)? else {
        return Ok(Verdict::Skipped("this process may not mount a small disk: it has to be root".to_owned()));
    };
    // A spool may reach its own bound or the volume's.
    let spool = SpoolSetup { parent: disk.path().to_owned(), bytes_max: "3Mi" };
    let setup = Setup { spool: Some(spool), ..Setup::default() };
    let (kills, refused) = (Cell::new(0), Cell::new(0));
    let tally = torment(run, &setup, &habits(), |world| {
        sleep(world.dice.millis(0, 500));
        end_postgres(world)?;
        wait_until_spooling(world.journal())?;
        let before = world.journal().full_count();
        let full = world.dice.one_in(2);
        if full {
            // Now and then not all of it, so that a write may fail half-way.
            sleep(world.dice.millis(0, 1000));
            let free = world.dice.below(64);
            disk.fill(free)?;
        }
        let journal = world.journal();
        wait_for("an answer that there is no room", SPOOLING_TIMEOUT, || Ok(journal.full_count() > before))?;
        kill_pods(world, 3, &kills)?;
        let early = world.dice.one_in(2);
        if full && early {
            disk.free()?;
        }
        world.restart_postgres()?;
        kill_pods(world, 2, &kills)?;
        sleep(world.dice.millis(500, 2500));
        if full && !early {
            disk.free()?;
        }
        refused.set(refused.get() + world.journal().full_count() - before);
        Ok(())
    })?;
    Ok(Verdict::Held(format!(
        "{tally}; {} answers that there is no room, {} pods killed",
        refused.get(),
        kills.get()
    )))
}

pub(super) fn io_error(run: &mut Run) -> Result<Verdict> {
    let Some(volume) = FaultyVolume::new(&run.folder("faulty")?)? else {
        return Ok(Verdict::Skipped("there is no C compiler (cc) to build a faulty volume with".to_owned()));
    };
    let setup = Setup {
        spool: Some(SpoolSetup { parent: volume.path().to_owned(), bytes_max: "256Mi" }),
        pod_env: vec![volume.env()],
        ..Setup::default()
    };
    let (kills, round) = (Cell::new(0), Cell::new(0_usize));
    let tally = torment(run, &setup, &habits(), |world| {
        end_postgres(world)?;
        wait_until_spooling(world.journal())?;
        let fault = FAULTS[round.replace(round.get() + 1) % FAULTS.len()];
        volume.fail(fault)?;
        let from = world.journal().now();
        sleep(world.dice.millis(50, 1500));
        // Also onto a volume that fails while the spool is read.
        kill_pods(world, 3, &kills)?;
        let to = world.journal().now();
        let promised = world.journal().spooled_within(from, to);
        ensure!(promised == 0, "{promised} requests were promised while the volume had the fault {fault:?}");
        volume.heal()?;
        // They go on by themselves.
        wait_until_spooling(world.journal())?;
        world.restart_postgres()?;
        sleep(world.dice.millis(0, 1500));
        Ok(())
    })?;
    Ok(Verdict::Held(format!("{tally}; {} faults, {} pods killed", round.get(), kills.get())))
}
