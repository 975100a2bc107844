//! What the pods of a stopped cluster left in their spools: on which volumes, and how much. Pure.
//!
//! A stop lets pods go although their database is away: what they have acknowledged is on their volumes, which stay. It must not be
//! forgotten there, as it reaches the database only when a pod serves on that volume again. So the pods of these volumes come
//! back with the cluster, however few are wanted, and stay until they have said that nothing waits any more. The list stands in
//! the cluster's status, which keeps it for the next operator; no pod is let go before it stands there.
//! Bounded by the largest number of pods there was. Read next: `drain.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use certeus_operator::decide::Scrapes;

/// Volumes by ordinal, and how many requests wait on each, if that is known.
pub(crate) type Volumes = BTreeMap<u32, Option<u64>>;

/// What a watch shows after this long is not the tail of a stop any more.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// The volumes of one cluster on which requests wait since a stop.
#[derive(Debug, Default)]
pub(super) struct Parked {
    volumes: Volumes,
    /// What the status says.
    noted: Volumes,
    /// The status was read once.
    is_known: bool,
    /// Of the StatefulSet, as seen last.
    replicas: u32,
    /// Since when the cluster is to run; `None` while it is not.
    runs_since: Option<Duration>,
}

impl Parked {
    /// Takes note of what the status says, and of the number of pods there is.
    pub(super) fn observe(&mut self, now: Duration, noted: Volumes, replicas: Option<u32>, runs: bool) {
        if !self.is_known {
            self.volumes.clone_from(&noted);
            self.is_known = true;
        }
        self.noted = noted;
        self.runs_since = runs.then(|| self.runs_since.unwrap_or(now));
        let settled = self.runs_since.is_some_and(|since| now.saturating_sub(since) >= SETTLED_AFTER);
        // One that is lost is made again as large as it was.
        let Some(replicas) = replicas else { return };
        if settled {
            // Somebody who knows better removed their pods, and does not want them back.
            self.volumes.retain(|ordinal, _| !(replicas..self.replicas).contains(ordinal));
        }
        self.replicas = replicas;
    }

    /// A pod goes, and this many requests wait on its volume.
    pub(super) fn park(&mut self, ordinal: u32, records: Option<u64>) {
        let known = self.volumes.entry(ordinal).or_insert(records);
        *known = records.or(*known);
    }

    /// Its pod says that nothing waits there.
    pub(super) fn forget(&mut self, ordinal: u32) {
        self.volumes.remove(&ordinal);
    }

    /// Takes note of pods that run again and have emptied their spools.
    pub(super) fn forget_emptied(&mut self, scrapes: &Scrapes) {
        self.volumes.retain(|ordinal, _| {
            !scrapes.latest(*ordinal).is_ok_and(|sample| sample.spool_records == Ok(0.0))
        });
    }

    /// It stands in the status, so its pod may go.
    pub(super) fn is_noted(&self, ordinal: u32) -> bool {
        self.volumes.contains_key(&ordinal) && self.noted.contains_key(&ordinal)
    }

    /// So many pods are needed to have one on each of the volumes.
    pub(super) fn pods(&self) -> u32 {
        self.volumes.last_key_value().map_or(0, |(ordinal, _)| ordinal + 1)
    }

    pub(super) fn volumes(&self) -> &Volumes {
        &self.volumes
    }
}
