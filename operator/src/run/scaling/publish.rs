//! What of the advice is news. Measured values move all the time; were each of them told, a cluster at rest would be written
//! to the API server every second. Pure.

use std::time::Duration;

use certeus_autoscale::{Reason, TriggerKind};
use certeus_operator::decide::PodScrape;

use super::drain::DrainState;
use super::{Advice, LastChange, ParkedVolumes};

/// Reasons and failures may alternate with the noise of a load: they are told at most this often.
const REASON_INTERVAL: Duration = Duration::from_secs(10);
/// Values that moved by [`VALUE_MOVE_MIN`] are told this late at most, and no more often.
const VALUE_INTERVAL: Duration = Duration::from_secs(30);
/// Of a pod's capacity. An idle pod's own work moves its CPU by less.
const VALUE_MOVE_MIN: f64 = 0.05;

/// The advice that was told last.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    told: Advice,
    at: Duration,
}

impl Publisher {
    pub(super) fn advice(&self) -> Advice {
        self.told.clone()
    }

    /// Before a reconcile asks for the advice. It has seen the pods as they are now; values change only if they are news.
    pub(super) fn observe(&mut self, now: Duration, candidate: Advice) {
        let phases = candidate.scrapes.iter().map(|pod| (&pod.name, pod.phase));
        let same = phases.eq(self.told.scrapes.iter().map(|pod| (&pod.name, pod.phase)));
        if self.is_news(now, &candidate) {
            self.tell(now, candidate);
        } else if !same {
            self.told.scrapes = candidate.scrapes;
        }
    }

    /// After a round. Says whether the cluster has to be reconciled.
    pub(super) fn round(&mut self, now: Duration, candidate: Advice) -> bool {
        let news = self.is_news(now, &candidate);
        if news {
            self.tell(now, candidate);
        }
        news
    }

    fn tell(&mut self, now: Duration, advice: Advice) {
        self.told = advice;
        self.at = now;
    }

    fn is_news(&self, now: Duration, candidate: &Advice) -> bool {
        let age = now.saturating_sub(self.at);
        Action::of(&self.told) != Action::of(candidate)
            || database(&self.told) < database(candidate)
            || age >= REASON_INTERVAL && Explanation::of(&self.told) != Explanation::of(candidate)
            || age >= VALUE_INTERVAL && has_moved(&self.told, candidate)
    }
}

/// What is acted upon, and told at once.
#[derive(PartialEq)]
struct Action<'a> {
    replicas: u32,
    last_change: Option<&'a LastChange>,
    drains: Vec<(&'a str, DrainState)>,
    parked: &'a ParkedVolumes,
    is_decided: bool,
}

impl<'a> Action<'a> {
    fn of(advice: &'a Advice) -> Self {
        let Advice { replicas, desired: _, outcome, draining, parked, scrapes: _, last_change } = advice;
        Self {
            replicas: *replicas,
            last_change: last_change.as_ref(),
            drains: draining.iter().map(|drain| (drain.pod.as_str(), drain.state)).collect(),
            parked,
            is_decided: outcome.as_ref().is_some_and(|outcome| outcome.decision.is_some()),
        }
    }
}

/// Why it is so. What a dry run would like to have is part of it, as nothing comes of that.
#[derive(PartialEq, Eq)]
struct Explanation {
    desired: u32,
    reason: Option<Reason>,
    limit: Option<Reason>,
    unmeasured: Vec<TriggerKind>,
    database: (bool, bool),
    without_database: usize,
    unchecked: usize,
}

impl Explanation {
    fn of(advice: &Advice) -> Self {
        let decision = advice.outcome.as_ref().and_then(|outcome| outcome.decision.as_ref());
        let triggers = decision.iter().flat_map(|decision| &decision.triggers);
        let cut_off = advice
            .scrapes
            .iter()
            .filter(|pod| pod.latest.as_ref().is_ok_and(|sample| sample.database_up == Ok(0.0)));
        Self {
            desired: advice.desired,
            reason: decision.map(certeus_autoscale::Decision::reason),
            limit: decision.and_then(|decision| Some(decision.adjustments.last()?.reason)),
            unmeasured: triggers.filter(|report| report.outcome.is_err()).map(|report| report.kind).collect(),
            database: database(advice),
            without_database: cut_off.count(),
            unchecked: advice.scrapes.iter().filter(|pod| pod.waits_for_log()).count(),
        }
    }
}

/// Whether any pod says if it can commit, and whether one can. Of a fixed count of pods nothing else becomes known by their
/// first samples, and with the first commit a new cluster is ready. A database that comes and goes is not told of at once: that
/// it went is told late, and only then is its coming news.
fn database(advice: &Advice) -> (bool, bool) {
    let up = |pod: &PodScrape| pod.latest.as_ref().ok().and_then(|sample| sample.database_up.ok());
    let commits = |pod: &PodScrape| up(pod).is_some_and(|up| up != 0.0) && !pod.waits_for_log();
    let pods = &advice.scrapes;
    (pods.iter().any(|pod| up(pod).is_some()), pods.iter().any(commits))
}

fn values(advice: &Advice) -> impl Iterator<Item = (TriggerKind, f64)> {
    let decision = advice.outcome.as_ref().and_then(|outcome| outcome.decision.as_ref());
    let triggers = decision.into_iter().flat_map(|decision| &decision.triggers);
    triggers.filter_map(|report| Some((report.kind, report.outcome.as_ref().ok()?.value)))
}

fn has_moved(told: &Advice, candidate: &Advice) -> bool {
    values(candidate).any(|(kind, value)| {
        let before = values(told).find(|(told, _)| *told == kind);
        before.is_none_or(|(_, before)| (value - before).abs() >= VALUE_MOVE_MIN)
    })
}

#[cfg(test)]
mod tests {
    use certeus_operator::decide::Outcome;

    use super::super::fixtures::{cluster, decision};
    use super::*;

    fn advice(cpu: f64) -> Advice {
        let decision = decision(&cluster("autoscaling: { min: 1, queueDepth: { enabled: false } }"), 3, cpu);
        let outcome = Some(Outcome { desired: decision.desired, decision: Some(decision) });
        Advice { replicas: 3, desired: 3, outcome, ..Advice::default() }
    }

    #[test]
    fn what_is_acted_upon_is_told_at_once_and_values_seldom() {
        let mut publisher = Publisher::default();
        let at = Duration::from_secs;
        assert!(publisher.round(at(1000), advice(0.5)));
        assert!(!publisher.round(at(1001), advice(0.7)));
        assert!(!publisher.round(at(1060), advice(0.54)), "noise");
        assert!(publisher.round(at(1060), advice(0.56)));
        assert!(!publisher.round(at(1089), advice(0.7)));
        assert!(publisher.round(at(1090), advice(0.7)));
        assert!(publisher.round(at(1091), Advice { replicas: 4, ..advice(0.7) }));
    }

    #[test]
    fn a_reason_that_alternates_is_told_at_most_every_ten_seconds() {
        let mut publisher = Publisher::default();
        // Below the band shrinking waits for its window; within it there is nothing to wait for.
        let told = (1000..1060).filter(|second| {
            let cpu = if second % 2 == 0 { 0.39 } else { 0.41 };
            publisher.round(Duration::from_secs(*second), advice(cpu))
        });
        assert!((2..=6).contains(&told.count()));
    }

    #[test]
    fn a_reconcile_between_two_rounds_changes_no_value() {
        let mut publisher = Publisher::default();
        publisher.round(Duration::from_secs(1000), advice(0.5));
        let before = publisher.advice();
        publisher.observe(Duration::from_secs(1001), advice(0.7));
        assert_eq!(publisher.advice(), before);
    }
}
