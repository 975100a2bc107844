//! Faults of the signed log: sealers that die or stall, a database from an old backup, and a database that was rewritten.

use std::cell::Cell;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::torment;
use crate::checker::Rule;
use crate::envelope::Envelope;
use crate::event::Event;
use crate::http::{self, Exchange, Reply, Request};
use crate::journal::Name;
use crate::log::LogKey;
use crate::recorder::Habits;
use crate::run::{Run, Verdict};
use crate::snapshot::{Batch, Snapshot};
use crate::wait_for;
use crate::world::{Setup, World};

/// Longer than PostgreSQL waits for a sealer that says nothing, before it lets another one have the lock.
const BEYOND_LEASE_MS: (u64, u64) = (11_000, 16_000);
const DETECTION: Duration = Duration::from_secs(30);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// So that the pods that are started then are there before a new sealer signs.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

pub(super) fn kill(run: &mut Run) -> Result<Verdict> {
    let setup = Setup { pods: 3, anchor_shared: true, ..Setup::default() };
    let tally = torment(run, &setup, &Habits::default(), |world| {
        let sealer = sealer(world, None)?;
        sleep(world.dice.millis(0, 1200));
        world.kill_pod(sealer)?;
        sleep(world.dice.millis(0, 300));
        world.start_pod(sealer)
    })?;
    Ok(Verdict::Held(tally.to_string()))
}

pub(super) fn freeze(run: &mut Run) -> Result<Verdict> {
    let setup = Setup { pods: 3, anchor_shared: true, ..Setup::default() };
    let habits = Habits { reply_timeout: Duration::from_secs(3), ..Habits::default() };
    let tally = torment(run, &setup, &habits, |world| {
        let old = sealer(world, None)?;
        world.pod(old)?.freeze()?;
        sleep(world.dice.millis(BEYOND_LEASE_MS.0, BEYOND_LEASE_MS.1));
        let new = sealer(world, Some(old)).context("while the sealer is frozen")?;
        // Now there are two that believe it, for a moment.
        world.pod(old)?.thaw()?;
        wait_for("the old sealer to step down", DETECTION, || Ok(!seals(world, old)))?;
        ensure!(new != old, "a frozen pod seals");
        sleep(world.dice.millis(0, 2000));
        Ok(())
    })?;
    Ok(Verdict::Held(tally.to_string()))
}

/// The pod that seals, other than this one.
fn sealer(world: &World, except: Option<usize>) -> Result<usize> {
    let found = Cell::new(None);
    wait_for("a sealer", Duration::from_secs(60), || {
        found.set((0..world.pod_count()).find(|pod| Some(*pod) != except && seals(world, *pod)));
        Ok(found.get().is_some())
    })?;
    found.get().context("there is no sealer")
}

/// Whether a pod says that it seals; one that does not answer does not.
fn seals(world: &World, pod: usize) -> bool {
    let Ok(pod) = world.pod(pod) else { return false };
    let request = Request { method: "GET", path: "/metrics", headers: &[], body: b"" };
    match http::Client::new(PROBE_TIMEOUT).send(pod.admin(), &request) {
        Exchange::Reply(reply) => {
            String::from_utf8_lossy(&reply.body).lines().any(|line| line == "certeus_ledger_log_leader 1")
        }
        Exchange::NotSent | Exchange::Lost => false,
    }
}

pub(super) fn old_backup(run: &mut Run) -> Result<Verdict> {
    restore_old(run, |world, _| {
        if world.dice.one_in(2) {
            // A pod without memory has only its anchor.
            world.kill_pod(0)?;
            world.start_pod(0)?;
        }
        world.restart_postgres()
    })
}

/// Only a pod that knows more keeps the first one from signing a second history.
pub(super) fn old_anchor(run: &mut Run) -> Result<Verdict> {
    restore_old(run, |world, anchor| {
        // What clients would be told in the meantime would be true for this database, and for no other.
        world.front(0).partition();
        for pod in 0..world.pod_count() {
            world.kill_pod(pod)?;
        }
        std::fs::write(world.anchor(0), anchor).context("cannot replace the anchor")?;
        world.restart_postgres()?;
        world.start_pod(0)?;
        wait_for("the pod to lead", DETECTION, || Ok(seals(world, 0)))?;
        // With this event its log would be another one than the others know.
        let taken = Instant::now() + TAKEN_WITHIN;
        while !takes(world, 0) && Instant::now() < taken {
            sleep(Duration::from_millis(50));
        }
        // A checkpoint is due by now; a new sealer waits longer than this for those who know better.
        sleep(world.dice.millis(1200, 2000));
        (1..world.pod_count()).try_for_each(|pod| world.start_pod(pod))
    })
}

/// Restores a backup that is older than the log, lets `begin` start everything again, and waits for all pods to refuse. `begin` is
/// given pod 0's anchor from before the backup.
fn restore_old(run: &mut Run, begin: impl Fn(&mut World, &[u8]) -> Result<()>) -> Result<Verdict> {
    let backups = run.folder("backups")?;
    let number = Cell::new(0);
    // Until a pod has compared the database with the log, it answers from it that a producer's events are missing.
    let habits = Habits { named: false, ..Habits::default() };
    let tally = torment(run, &Setup::default(), &habits, |world| {
        number.set(number.get() + 1);
        let (old, new) =
            (backups.join(format!("old-{}", number.get())), backups.join(format!("new-{}", number.get())));
        grow(world)?;
        let anchor = std::fs::read(world.anchor(0)).context("cannot read the anchor")?;
        world.postgres.stop()?;
        world.postgres.back_up(&old)?;
        world.restart_postgres()?;
        grow(world)?;
        world.postgres.stop()?;
        world.postgres.back_up(&new)?;
        // What PostgreSQL confirmed last may still be on its way.
        sleep(Duration::from_secs(1));
        let acknowledged = world.journal().acknowledged_count();
        world.postgres.restore(&old)?;
        begin(world, &anchor)?;
        for pod in 0..world.pod_count() {
            wait_for("a pod to refuse events", DETECTION, || Ok(refuses(world, pod)))?;
        }
        sleep(world.dice.millis(500, 4000));
        let more = world.journal().acknowledged_count() - acknowledged;
        ensure!(more == 0, "{more} requests were acknowledged by a database that is older than the log");
        world.postgres.stop()?;
        world.postgres.restore(&new)?;
        world.restart_postgres()?;
        std::fs::remove_dir_all(&old)?;
        std::fs::remove_dir_all(&new)?;
        world.recover()
    })?;
    Ok(Verdict::Held(tally.to_string()))
}

/// Waits until some more is acknowledged and signed.
fn grow(world: &World) -> Result<()> {
    let (acknowledged, shown) = (world.journal().acknowledged_count(), world.checkpoints_shown());
    wait_for("some acknowledgements and checkpoints", Duration::from_secs(60), || {
        Ok(world.journal().acknowledged_count() > acknowledged + 50 && world.checkpoints_shown() >= shown + 2)
    })
}

/// Whether a pod refuses an event because the database is not what was signed.
fn refuses(world: &World, pod: usize) -> bool {
    probe(world, pod).is_some_and(|reply| (reply.status, &reply.problem()[..]) == (503, "log-refused"))
}

/// Whether a pod takes an event.
fn takes(world: &World, pod: usize) -> bool {
    probe(world, pod).is_some_and(|reply| reply.status == 201)
}

/// Sends a pod an event that nobody waits for: it may be stored, even later.
fn probe(world: &World, pod: usize) -> Option<Reply> {
    let pod = world.pod(pod).ok()?;
    let (_, entry) = world.journal().sent(1, |_| Name::None);
    let body = Event(entry.first_number).json();
    let request = Request {
        method: "POST",
        path: "/v1/ledger/events",
        headers: &[("content-type", "application/json")],
        body: body.as_bytes(),
    };
    match http::Client::new(PROBE_TIMEOUT).send(pod.api(), &request) {
        Exchange::Reply(reply) => Some(reply),
        Exchange::NotSent | Exchange::Lost => None,
    }
}

/// What somebody who may write to the database does to it.
#[derive(Debug, Clone, Copy)]
enum Rewrite {
    /// Other bytes, with a log entry that matches them.
    EventAndEntry,
    /// Two batches change places.
    SwappedBatches,
    /// The newest batch disappears, and the head with it.
    RemovedBatch,
    /// One event disappears.
    RemovedEvent,
    /// A bit of a stored tile.
    Tile,
    /// A checkpoint signed by a key of somebody else.
    OtherKey,
    /// A checkpoint over other events, signed by the key that was stolen.
    StolenKey,
}

const REWRITES: &[Rewrite] = &[
    Rewrite::EventAndEntry,
    Rewrite::SwappedBatches,
    Rewrite::RemovedBatch,
    Rewrite::Tile,
    Rewrite::OtherKey,
    Rewrite::StolenKey,
];

pub(super) fn rewrite(run: &mut Run) -> Result<Verdict> {
    rewrite_as(run, REWRITES)
}

pub(super) fn remove_event(run: &mut Run) -> Result<Verdict> {
    rewrite_as(run, &[Rewrite::RemovedEvent])
}

fn rewrite_as(run: &mut Run, kinds: &[Rewrite]) -> Result<Verdict> {
    let mut found = 0;
    for (number, segment) in run.segments().into_iter().enumerate() {
        let part = format!("part-{number}");
        let mut world = World::start(run, &part, &Setup::default())?;
        let recorder = world.load(&Habits::default());
        wait_for("some events", Duration::from_secs(60), || Ok(world.journal().acknowledged_count() >= 300))?;
        recorder.finish()?;
        world.wait_until_sealed()?;
        let truth = run.folder(&part)?.join("truth");
        world.postgres.stop()?;
        world.postgres.back_up(&truth)?;
        for at in segment {
            run.progress(at);
            for kind in kinds {
                for pod in 0..world.pod_count() {
                    world.kill_pod(pod)?;
                }
                world.restart_postgres()?;
                let affected = apply(&mut world, *kind).with_context(|| format!("{kind:?}"))?;
                for pod in 0..world.pod_count() {
                    world.start_pod(pod)?;
                }
                wait_for(&format!("somebody to notice: {kind:?}"), DETECTION, || {
                    Ok((0..world.pod_count()).any(|pod| notices(&world, pod, &affected)))
                })?;
                found += 1;
                world.postgres.stop()?;
                world.postgres.restore(&truth)?;
            }
        }
        // With the true data all goes on, and nobody ever showed a checkpoint of the false.
        world.restart_postgres()?;
        let recorder = world.load(&Habits::default());
        world.conclude(recorder)?;
    }
    Ok(Verdict::Held(format!("{found} rewrites, all found")))
}

/// Whether a pod refuses events, or cannot read or prove one of these.
fn notices(world: &World, pod: usize, affected: &[u128]) -> bool {
    if refuses(world, pod) {
        return true;
    }
    let Ok(running) = world.pod(pod) else { return false };
    affected.iter().any(|id| {
        ["", "/proof"].iter().any(|what| {
            let path = format!("/v1/ledger/events/{id:032x}{what}");
            let request = Request { method: "GET", path: &path, headers: &[], body: b"" };
            let exchange = http::Client::new(PROBE_TIMEOUT).send(running.api(), &request);
            matches!(exchange, Exchange::Reply(reply) if reply.status == 500 && reply.problem() == "corrupt")
        })
    })
}

/// Does it; gives the ids of events that are not what they were.
fn apply(world: &mut World, kind: Rewrite) -> Result<Vec<u128>> {
    let sql = world.sql()?;
    let snapshot = Snapshot::read(&sql, "default")?;
    let batch = world.dice.pick(&snapshot.batches).clone();
    let hex = |id: u128| format!("{id:032x}");
    match kind {
        Rewrite::EventAndEntry => {
            let row = snapshot.rows.iter().find(|row| row.id == batch.id).context("no such event")?;
            let payload = br#"{"type":"payment.made","timestamp":1,"amount":1000000}"#;
            let sequences = batch.sequences().context("unreadable producers")?;
            let sequence = sequences.get(&0).map(|s| (&s.producer[..], s.epoch, s.number));
            let envelope = Envelope {
                ledger: "default",
                id: row.id,
                kind: &row.kind,
                time: row.time,
                sequence,
                payload,
            };
            let entry = envelope.entry(&batch.salt(0).context("no salt")?);
            let entries = [&entry[..], &batch.entries[32..]].concat();
            sql.execute(
                "UPDATE certeus.events SET payload = $1 WHERE id = $2::text::uuid",
                &[&&payload[..], &hex(row.id)],
            )?;
            let update = "UPDATE certeus.batches SET entries = $1 WHERE batch_id = $2::text::uuid";
            sql.execute(update, &[&entries, &hex(batch.id)])?;
            let rewritten = Snapshot::read(&sql, "default")?;
            let (_, violations) = world.check()?;
            ensure!(
                !violations.rules().contains(&Rule::Entry) && rewritten.rows.len() == snapshot.rows.len(),
                "the forged entry does not match"
            );
            Ok(vec![row.id])
        }
        Rewrite::SwappedBatches => {
            let batches = &snapshot.batches;
            let twin = |batch: &Batch| {
                let same = |other: &&Batch| other.event_count == batch.event_count && other.id != batch.id;
                Some((batch.clone(), batches.iter().find(same)?))
            };
            let (batch, other) = batches.iter().find_map(twin).context("no two batches of one size")?;
            let place = "UPDATE certeus.batches SET first_index = $1 WHERE batch_id = $2::text::uuid";
            sql.execute(place, &[&-1_i64, &hex(batch.id)])?;
            sql.execute(place, &[&batch.first_index, &hex(other.id)])?;
            sql.execute(place, &[&other.first_index, &hex(batch.id)])?;
            Ok(vec![batch.id, other.id])
        }
        Rewrite::RemovedBatch => {
            let last = snapshot.batches.last().context("no batch")?;
            let delete = "DELETE FROM certeus.events WHERE certeus.batch_of(id) = $1::text::uuid";
            sql.execute(delete, &[&hex(last.id)])?;
            sql.execute("DELETE FROM certeus.batches WHERE batch_id = $1::text::uuid", &[&hex(last.id)])?;
            sql.execute("UPDATE certeus.heads SET next_index = $1", &[&last.first_index])?;
            Ok(vec![last.id])
        }
        Rewrite::RemovedEvent => {
            sql.execute("DELETE FROM certeus.events WHERE id = $1::text::uuid", &[&hex(batch.id)])?;
            Ok(vec![batch.id])
        }
        Rewrite::Tile => {
            let flip = "UPDATE certeus.log_tiles SET hashes = set_byte(hashes, 3, get_byte(hashes, 3) # 16) \
                 WHERE level = 1 AND tile_index = 0";
            ensure!(sql.execute(flip, &[])? == 1, "there is no tile above level 0");
            Ok(snapshot.batches.iter().map(|batch| batch.id).collect())
        }
        Rewrite::OtherKey => {
            let other = LogKey::new(world.dice.draw())?;
            forge(world, &other).map(|()| Vec::new())
        }
        Rewrite::StolenKey => forge(world, &world.key).map(|()| Vec::new()),
    }
}

/// Puts a checkpoint over other events into the database.
fn forge(world: &World, key: &LogKey) -> Result<()> {
    let sql = world.sql()?;
    let head = sql.query("SELECT tree_size FROM certeus.log_heads", &[])?;
    let Some(row) = head.first() else { bail!("nothing was signed") };
    let size: i64 = row.get(0);
    let root = [0x5a; 32];
    let note = key.forge(u64::try_from(size)?, root)?;
    let update = "UPDATE certeus.log_heads SET root = $1, checkpoint = $2";
    ensure!(sql.execute(update, &[&&root[..], &note])? == 1, "there is no head to forge");
    Ok(())
}
