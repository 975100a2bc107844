//! The last scrapes of each pod: a rate needs two of them.

use std::collections::BTreeMap;

use certeus_autoscale::{MissingReason, PodPhase};

use super::{MetricsSample, PodScrape};

/// What is known of a cluster's pods, by ordinal. Bounded by [`Scrapes::retain`]. Boxed: a map holds places for eleven values
/// at least, and most clusters have few pods.
#[derive(Clone, Debug, Default)]
pub struct Scrapes(BTreeMap<u32, Box<Kept>>);

#[derive(Clone, Debug)]
struct Kept {
    latest: Result<MetricsSample, MissingReason>,
    previous: Option<MetricsSample>,
}

impl Scrapes {
    /// Notes the outcome of a scrape. A failed one hides the last sample at once, and counts no pod as idle.
    pub fn record(&mut self, ordinal: u32, scrape: Result<MetricsSample, MissingReason>) {
        match self.0.get_mut(&ordinal) {
            None => {
                self.0.insert(ordinal, Box::new(Kept { latest: scrape, previous: None }));
            }
            Some(kept) => {
                if let Ok(sample) = std::mem::replace(&mut kept.latest, scrape) {
                    kept.previous = Some(sample);
                }
            }
        }
    }

    /// Forgets the pods that are no more.
    pub fn retain(&mut self, exists: impl Fn(u32) -> bool) {
        self.0.retain(|ordinal, _| exists(*ordinal));
    }

    /// The latest scrape of a pod. One that was not asked yet is unknown; never idle.
    ///
    /// # Errors
    /// Why there is none.
    pub fn latest(&self, ordinal: u32) -> Result<&MetricsSample, MissingReason> {
        match self.0.get(&ordinal) {
            Some(kept) => kept.latest.as_ref().map_err(|reason| *reason),
            None => Err(MissingReason::Unreachable),
        }
    }

    /// A pod with its last two scrapes.
    #[must_use]
    pub fn scrape(&self, ordinal: u32, name: String, phase: PodPhase) -> PodScrape {
        let previous = self.0.get(&ordinal).and_then(|kept| kept.previous.clone());
        PodScrape { name, phase, latest: self.latest(ordinal).cloned(), previous }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::parse;
    use super::*;

    #[test]
    fn the_previous_sample_is_the_last_good_one() {
        let mut scrapes = Scrapes::default();
        let at = |seconds| parse(Duration::from_secs(seconds), "");
        let seen = |scrapes: &Scrapes| {
            let pod = scrapes.scrape(0, "a-0".to_owned(), PodPhase::Pending);
            (pod.latest.map(|sample| sample.at.as_secs()), pod.previous.map(|sample| sample.at.as_secs()))
        };
        assert_eq!(seen(&scrapes), (Err(MissingReason::Unreachable), None));
        scrapes.record(0, Ok(at(1)));
        assert_eq!(seen(&scrapes), (Ok(1), None));
        scrapes.record(0, Err(MissingReason::Stale));
        scrapes.record(0, Err(MissingReason::Unreachable));
        assert_eq!(seen(&scrapes), (Err(MissingReason::Unreachable), Some(1)));
        scrapes.record(0, Ok(at(4)));
        scrapes.record(0, Ok(at(5)));
        assert_eq!(seen(&scrapes), (Ok(5), Some(4)));
        scrapes.retain(|ordinal| ordinal != 0);
        assert_eq!(seen(&scrapes), (Err(MissingReason::Unreachable), None));
    }
}
