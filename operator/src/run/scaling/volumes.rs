//! What is known of the volumes of a cluster's pods, by ordinal. A volume outlives the pods that use it, and what waits in the
//! spool on it gets to the database only when a pod serves there again. Pure.
//!
//! Promises: a volume counts as empty only if the pod that ran on it last said so shortly before its end, if the StatefulSet grew
//! by it before these eyes, or if its pod has never run and nothing is known of one before it.
//! Bounded by the largest number of pods that was seen. Read next: `drain.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use certeus_autoscale::PodPhase;
use certeus_operator::decide::Scrapes;

use crate::run::pods::PodSeen;

/// A running pod that gave no sign for this long may have spooled what nobody saw. More than a few misses of a scrape, less than
/// an outage of the database that a spool is made for.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// It was empty when its pod was asked last.
    Empty(Duration),
    Spooled,
    Unknown,
}

#[derive(Clone, Debug)]
struct Volume {
    /// The pod that ran on it last; empty if none did, as far as is known.
    uid: String,
    content: Content,
}

/// The volumes of one cluster.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    known: BTreeMap<u32, Volume>,
    /// Of the StatefulSet, as seen last.
    replicas: Option<u32>,
}

impl Volumes {
    /// Takes note of what pods say, and of those that say nothing.
    pub(super) fn observe(&mut self, now: Duration, pods: &[PodSeen], scrapes: &Scrapes, replicas: u32) {
        let fresh = |content| Volume { uid: String::new(), content };
        // What somebody removed undrained is not empty when it comes back.
        self.known.retain(|ordinal, volume| {
            *ordinal < replicas || matches!(volume.content, Content::Spooled | Content::Unknown)
        });
        for ordinal in self.replicas.unwrap_or(replicas)..replicas {
            self.known.entry(ordinal).or_insert_with(|| fresh(Content::Empty(now)));
        }
        self.replicas = Some(replicas);
        for pod in pods {
            let unseen = if pod.has_run { Content::Unknown } else { Content::Empty(now) };
            let volume = self.known.entry(pod.ordinal).or_insert_with(|| fresh(unseen));
            let silent = match volume.content {
                _ if pod.has_run && volume.uid != pod.uid => true,
                Content::Empty(at) => {
                    matches!(pod.phase, PodPhase::Running { .. }) && now.saturating_sub(at) > SILENCE_MAX
                }
                Content::Spooled | Content::Unknown => false,
            };
            if pod.has_run {
                volume.uid.clone_from(&pod.uid);
            }
            volume.content = match scrapes.latest(pod.ordinal).map(|sample| (sample.at, sample.spool_records))
            {
                Ok((_, Ok(records))) if records > 0.0 => Content::Spooled,
                Ok((at, Ok(_none))) => Content::Empty(at),
                Ok((_, Err(_))) | Err(_) if silent && volume.content != Content::Spooled => Content::Unknown,
                Ok((_, Err(_))) | Err(_) => volume.content,
            };
        }
    }

    /// Nothing is on it that a pod would have to bring to the database.
    pub(super) fn is_empty(&self, ordinal: u32) -> bool {
        self.known.get(&ordinal).is_some_and(|volume| matches!(volume.content, Content::Empty(_)))
    }

    /// Requests wait on it.
    pub(super) fn is_spooled(&self, ordinal: u32) -> bool {
        self.known.get(&ordinal).is_some_and(|volume| volume.content == Content::Spooled)
    }
}
