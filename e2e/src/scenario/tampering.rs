//! Changes of stored data behind the ledger's back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::checker::Rule;
use crate::http;
use crate::recorder::Habits;
use crate::run::{Run, Verdict};
use crate::wait_for;
use crate::world::{Setup, World, receipt};

/// A change of event `$1` of batch `$2` at position `$3` that a read of it must show.
const CHANGES: &[(&str, &str)] = &[
    (
        "payload",
        "UPDATE certeus.events SET payload = set_byte(payload, 7, get_byte(payload, 7) # 1) WHERE id = $1::text::uuid",
    ),
    (
        "payload cut",
        "UPDATE certeus.events SET payload = substring(payload FROM 1 FOR length(payload) - 1) WHERE id = $1::text::uuid",
    ),
    ("type", "UPDATE certeus.events SET type = type || 'x' WHERE id = $1::text::uuid"),
    (
        "time",
        "UPDATE certeus.events SET event_time = event_time + interval '1 microsecond' WHERE id = $1::text::uuid",
    ),
    (
        "entry",
        "UPDATE certeus.batches SET entries = set_byte(entries, 0, get_byte(entries, 0) # 1) WHERE batch_id = certeus.batch_of($1::text::uuid)",
    ),
    (
        "secret",
        "UPDATE certeus.batches SET secret = set_byte(secret, 31, get_byte(secret, 31) # 128) WHERE batch_id = certeus.batch_of($1::text::uuid)",
    ),
];

pub(super) fn read(run: &mut Run) -> Result<Verdict> {
    let mut found = 0;
    for (number, segment) in run.segments().into_iter().enumerate() {
        let mut world = World::start(run, &format!("part-{number}"), &Setup { pods: 1, ..Setup::default() })?;
        let recorder = world.load(&Habits::default());
        wait_for("some events", Duration::from_secs(60), || Ok(world.journal().acknowledged_count() >= 200))?;
        recorder.finish()?;
        let (_, violations) = world.check()?;
        ensure!(violations.is_empty(), "before anything was changed:\n{violations}");
        for at in segment {
            run.progress(at);
            found += change_each(&mut world)?;
        }
    }
    Ok(Verdict::Held(format!("{found} changes, all found")))
}

/// Makes each change to some first event of a batch and takes it back.
fn change_each(world: &mut World) -> Result<usize> {
    let sql = world.sql()?;
    let entries = world.journal().entries();
    let first_ids: Vec<String> = entries
        .iter()
        .filter_map(receipt)
        .map(|receipt| receipt.first_id.clone())
        .filter(|id| id.ends_with("00000"))
        .collect();
    sql.batch(
        "DROP TABLE IF EXISTS true_events, true_batches; \
         CREATE TABLE true_events AS TABLE certeus.events; CREATE TABLE true_batches AS TABLE certeus.batches",
    )?;
    for (what, change) in CHANGES {
        let id = world.dice.pick(&first_ids).clone();
        ensure!(sql.execute(change, &[&id])? == 1, "the change of {what} changed nothing");
        let api = world.pod(0)?.api();
        let reply = http::request(api, "GET", &format!("/v1/ledger/events/{id}")).context("cannot read")?;
        ensure!(
            (reply.status, reply.problem().as_str()) == (500, "corrupt"),
            "after a change of {what} the event {id} reads as {} {}",
            reply.status,
            String::from_utf8_lossy(&reply.body)
        );
        let (_, violations) = world.check()?;
        ensure!(violations.rules().contains(&Rule::Entry), "the checker misses a change of {what}");
        sql.batch(
            "TRUNCATE certeus.events, certeus.batches; \
             INSERT INTO certeus.events SELECT * FROM true_events; \
             INSERT INTO certeus.batches SELECT * FROM true_batches",
        )?;
        let reply = http::request(api, "GET", &format!("/v1/ledger/events/{id}")).context("cannot read")?;
        ensure!(reply.status == 200, "the event {id} does not read as before: {}", reply.status);
    }
    Ok(CHANGES.len())
}
