use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::spool::simulated::{Crash, Simulated};

const LIMITS: Limits = Limits { bytes_max: 1 << 20, segment_bytes: 1200, reserve_bytes: 0 };

/// To the log a record is any bytes that begin with a time.
fn record(key: u64, body_bytes: usize) -> NewRecord {
    let mut bytes = key.to_be_bytes().to_vec();
    bytes.resize(8 + 41 + body_bytes, b'x');
    NewRecord { admitted_ms: key, bytes }
}

fn open(disk: &Simulated) -> (Log<Simulated>, Vec<Finding>) {
    Log::recover(disk.clone(), LIMITS).unwrap()
}

fn key_of(entry: &Entry) -> u64 {
    admitted_ms(&entry.record)
}

/// Reads and completes everything.
fn drain(log: &mut Log<Simulated>) -> (Vec<u64>, Vec<Finding>) {
    let (mut keys, mut findings) = (Vec::new(), Vec::new());
    loop {
        let (entries, finding) = log.read(500).unwrap();
        findings.extend(finding);
        let Some(last) = entries.last() else {
            if log.contents().records == 0 && log.segments.is_empty() {
                return (keys, findings);
            }
            continue;
        };
        keys.extend(entries.iter().map(key_of));
        log.advance(last.position, entries.len() as u64).unwrap();
    }
}

#[test]
fn records_come_back_in_order_over_segments_and_restarts_and_leave_nothing_behind() {
    let disk = Simulated::new(1);
    let (mut log, _) = open(&disk);
    for keys in (0..60).collect::<Vec<_>>().chunks(3) {
        let group: Vec<NewRecord> = keys.iter().map(|key| record(*key, 50)).collect();
        log.append(&group).unwrap();
    }
    assert!(log.segments.len() > 4);
    assert_eq!((log.contents().records, log.contents().oldest_ms), (60, Some(0)));
    let (entries, _) = log.read(400).unwrap();
    log.advance(entries[1].position, 2).unwrap();
    drop(log);
    disk.0.borrow_mut().restart(Crash::Machine);
    let (mut log, findings) = open(&disk);
    assert_eq!(findings, []);
    log.append(&[record(60, 5000)]).unwrap();
    // What was replayed of a segment that is still there comes again: deduplication is the consumer's.
    assert_eq!(drain(&mut log).0, (0..61).collect::<Vec<_>>());
    assert_eq!(disk.0.borrow().file_names(), [""; 0]);
    assert_eq!(log.contents(), Contents::default());
    log.append(&[record(61, 1)]).unwrap();
    assert_eq!(drain(&mut log).0, [61]);
}

#[test]
fn the_room_is_what_the_bound_and_the_disk_leave() {
    let disk = Simulated::new(1);
    let limits = Limits { bytes_max: 1000, reserve_bytes: 100, ..LIMITS };
    let (mut log, _) = Log::recover(disk.clone(), limits).unwrap();
    assert_eq!(log.room().unwrap(), 1000 - 32);
    log.append(&[record(1, 100)]).unwrap();
    let bytes = log.contents().bytes;
    assert_eq!(log.room().unwrap(), 1000 - bytes - 32);
    disk.0.borrow_mut().capacity = bytes + 100 + 32 + 7;
    assert_eq!(log.room().unwrap(), 7);
    disk.0.borrow_mut().capacity = bytes;
    assert_eq!(log.room().unwrap(), 0);
    // Past the reserve the disk refuses: what was acknowledged stays, what was refused never comes back.
    assert!(matches!(log.append(&[record(2, 100)]), Err(AppendError::NotStored(_))));
    disk.0.borrow_mut().capacity = u64::MAX;
    log.append(&[record(3, 100)]).unwrap();
    assert_eq!(drain(&mut log).0, [1, 3]);
}

#[test]
fn damage_is_named_set_aside_and_does_not_stop_the_rest() {
    for (while_running, from_first) in [(true, true), (true, false), (false, true), (false, false)] {
        let disk = Simulated::new(1);
        let (mut log, _) = open(&disk);
        for key in 0..30 {
            log.append(&[record(key, 50)]).unwrap();
        }
        let files = disk.0.borrow().file_names();
        assert_eq!(files.len(), 3);
        let file = if from_first { &files[0] } else { &files[2] };
        // In the second record.
        disk.0.borrow_mut().damage(file, (32 + 115 + 40) * 8);
        let mut found = Vec::new();
        if !while_running {
            (log, found) = open(&disk);
            log.append(&[record(30, 50)]).unwrap();
        }
        let (keys, more) = drain(&mut log);
        found.extend(more);
        let aside = format!("{file}.corrupt");
        assert!(
            matches!(&found[..], [Finding::Damaged { file: named, set_aside_as, .. }]
                if named == file && *set_aside_as == aside),
            "{found:?}"
        );
        assert_eq!(disk.0.borrow().file_names(), [aside]);
        assert_eq!(log.contents().set_aside, 1);
        // The segment's first record is there, the others of it are not, and those of the other segments are.
        let expected_gap = if from_first { 1 } else { 23 };
        assert!(keys.contains(&(expected_gap - 1)) && !keys.contains(&expected_gap), "{keys:?}");
        assert!(keys.is_sorted() && keys.contains(&29) == from_first, "{keys:?}");
        assert_eq!(keys.contains(&30), !while_running);
    }
}

#[test]
fn a_lost_segment_is_noticed() {
    let disk = Simulated::new(1);
    let (mut log, _) = open(&disk);
    for key in 0..30 {
        log.append(&[record(key, 50)]).unwrap();
    }
    let files = disk.0.borrow().file_names();
    disk.clone().remove(&files[1]).unwrap();
    let (mut log, findings) = open(&disk);
    assert_eq!(findings, [Finding::Missing { file: files[1].clone(), count: 1 }]);
    assert!(drain(&mut log).0.is_sorted());
}

#[test]
fn a_rejected_record_can_be_read_from_its_file() {
    let disk = Simulated::new(1);
    let (mut log, _) = open(&disk);
    log.append(&[record(1, 10), record(2, 10)]).unwrap();
    let (entries, _) = log.read(1000).unwrap();
    let name = log.reject(&entries[1]).unwrap();
    // After a crash the same record is rejected again.
    assert_eq!(log.reject(&entries[1]).unwrap(), name);
    log.advance(entries[1].position, 2).unwrap();
    let bytes = disk.clone().read(&name, 0, 10_000).unwrap();
    let found = scan(&bytes, Sequence::of_any(&name).unwrap(), None);
    assert_eq!(bytes[found.records[0].clone()], entries[1].record);
    assert_eq!(disk.0.borrow().file_names(), [name]);
}

/// What an outsider knows of one simulated life.
#[derive(Default)]
struct World {
    next_key: u64,
    bodies: BTreeMap<u64, usize>,
    /// In the order in which they were acknowledged.
    acknowledged: Vec<u64>,
    /// The client was told that nothing was stored.
    refused: BTreeSet<u64>,
    /// Some client could not be told either.
    unknown: bool,
    /// The database: keys in the order in which they were committed, each once.
    committed: Vec<u64>,
}

impl World {
    fn append(&mut self, log: &mut Log<Simulated>, random: &mut StdRng) {
        let group: Vec<(u64, usize)> = (0..random.random_range(1..5_u64))
            .map(|offset| (self.next_key + offset, random.random_range(0..300)))
            .collect();
        self.next_key += group.len() as u64;
        self.bodies.extend(group.iter().copied());
        let records: Vec<NewRecord> = group.iter().map(|(key, bytes)| record(*key, *bytes)).collect();
        let keys = group.iter().map(|(key, _)| *key);
        match log.append(&records) {
            Ok(()) => self.acknowledged.extend(keys),
            Err(AppendError::NotStored(_)) => self.refused.extend(keys),
            Err(AppendError::Unknown(_)) => self.unknown = true,
        }
    }

    /// Replays some records, and sometimes stops before the log is told.
    fn replay(&mut self, log: &mut Log<Simulated>, random: &mut StdRng) {
        let Ok((mut entries, finding)) = log.read(random.random_range(1..2000)) else { return };
        assert!(finding.is_none() || self.unknown, "{finding:?}");
        entries.truncate(random.random_range(0..=entries.len()));
        for entry in &entries {
            let key = key_of(entry);
            let appended = self.bodies.get(&key).map(|bytes| record(key, *bytes).bytes);
            assert_eq!(appended.as_deref(), Some(&entry.record[..]), "a record that nobody appended");
            assert!(!self.refused.contains(&key), "{key} was not stored, and comes back");
            if !self.committed.contains(&key) {
                self.committed.push(key);
            }
            if key.is_multiple_of(11) && log.reject(entry).is_err() {
                return;
            }
        }
        if let Some(last) = entries.last()
            && random.random_bool(0.8)
        {
            // A failure shows again at the next read.
            drop(log.advance(last.position, entries.len() as u64));
        }
    }
}

/// Opens the spool as often as it takes.
fn restart(disk: &Simulated, crash: Crash, world: &World) -> Log<Simulated> {
    let mut crash = Some(crash);
    for attempt in 0.. {
        if let Some(crash) = crash.take() {
            disk.0.borrow_mut().restart(crash);
        }
        if attempt > 20 {
            disk.0.borrow_mut().fault_rate = 0.0;
        }
        if let Ok((log, findings)) = Log::recover(disk.clone(), LIMITS) {
            let harmless = |finding: &Finding| matches!(finding, Finding::TornTail { .. });
            assert!(world.unknown || findings.iter().all(harmless), "{findings:?}");
            return log;
        }
    }
    unreachable!("recovery without faults succeeds")
}

fn live(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = Simulated::new(random.random());
    let mut world = World::default();
    let mut log = restart(&disk, Crash::Process, &world);
    for _ in 0..random.random_range(20..120) {
        disk.0.borrow_mut().fault_rate = [0.0, 0.0, 0.02, 0.2][random.random_range(0..4)];
        disk.0.borrow_mut().capacity = if random.random_bool(0.1) { 6000 } else { u64::MAX };
        if random.random_bool(0.1) {
            disk.0.borrow_mut().crash_after = Some(random.random_range(0..12));
        }
        match random.random_range(0..100) {
            0..60 => world.append(&mut log, &mut random),
            60..85 => world.replay(&mut log, &mut random),
            85..92 => drop(log.reopen()),
            92..96 => log = restart(&disk, Crash::Process, &world),
            _ => log = restart(&disk, Crash::Machine, &world),
        }
        if disk.0.borrow().crash_after == Some(0) {
            let crash = if random.random_bool(0.5) { Crash::Machine } else { Crash::Process };
            log = restart(&disk, crash, &world);
        }
    }
    disk.0.borrow_mut().fault_rate = 0.0;
    disk.0.borrow_mut().capacity = u64::MAX;
    let mut log = restart(&disk, Crash::Machine, &world);
    while !log.segments.is_empty() {
        world.replay(&mut log, &mut random);
    }
    let acknowledged: BTreeSet<u64> = world.acknowledged.iter().copied().collect();
    let committed: Vec<u64> =
        world.committed.iter().copied().filter(|key| acknowledged.contains(key)).collect();
    assert_eq!(committed, world.acknowledged, "what was acknowledged is there, once, in order");
    // Rejected records are still there to be looked at.
    let names = disk.0.borrow().file_names();
    let rejected: BTreeSet<u64> = names
        .iter()
        .filter(|name| name.ends_with(".rejected"))
        // One that a crash left half written is written again, unless its record was never acknowledged and is gone.
        .filter_map(|name| {
            let bytes = disk.clone().read(name, 0, 10_000).unwrap();
            let found = scan(&bytes, Sequence::of_any(name).unwrap(), None);
            Some(admitted_ms(&bytes[found.records.first()?.clone()]))
        })
        .collect();
    let expected: BTreeSet<u64> = acknowledged.into_iter().filter(|key| key.is_multiple_of(11)).collect();
    assert!(rejected.is_superset(&expected), "{rejected:?} lacks some of {expected:?}");
}

/// `SPOOL_SEED` repeats one run, `SPOOL_RUNS` sets their number.
#[test]
fn nothing_acknowledged_is_lost_doubled_or_reordered_whatever_fails() {
    let variable = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    if let Some(seed) = variable("SPOOL_SEED") {
        return live(seed);
    }
    for seed in 0..variable("SPOOL_RUNS").unwrap_or(3000) {
        if let Err(panic) = std::panic::catch_unwind(|| live(seed)) {
            eprintln!("repeat with SPOOL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
