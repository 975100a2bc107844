//! What scaling shows of itself. All labels come from closed enums.

use std::time::Duration;

use certeus_autoscale::{Decision, Reason};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use super::core::Report;
use super::drain::DrainEnd;

/// A pod answers within milliseconds, or not within a second.
const SCRAPE_BUCKETS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0];
/// The goal is 3 s.
const REACTION_BUCKETS: [f64; 9] = [0.01, 0.05, 0.25, 0.5, 1.0, 2.0, 3.0, 10.0, 60.0];

/// How a scrape ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScrapeEnd {
    Answered,
    /// Answered, with another status than 200.
    Refused,
    TimedOut,
    Failed,
    /// Not begun, as too many were under way.
    Crowded,
}

impl ScrapeEnd {
    const ALL: [Self; 5] = [Self::Answered, Self::Refused, Self::TimedOut, Self::Failed, Self::Crowded];

    fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "ok",
            Self::Refused => "refused",
            Self::TimedOut => "timeout",
            Self::Failed => "failed",
            Self::Crowded => "crowded",
        }
    }
}

/// The metrics of scaling, for all clusters together.
#[derive(Clone)]
pub(crate) struct ScalingMetrics {
    /// In the order of [`ScrapeEnd::ALL`].
    scrapes: [IntCounter; 5],
    scrape_seconds: Histogram,
    decisions: IntCounterVec,
    /// In the order of [`DrainEnd::ALL`].
    drains: [IntCounter; 4],
    reaction_seconds: Histogram,
}

impl ScalingMetrics {
    /// Registers them, once.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let scrapes = counters("scrapes_total", "Scrapes of pods by result.", &["result"])?;
        let drains = counters("drains_total", "Drains of pods that were to go, by result.", &["result"])?;
        Ok(Self {
            scrapes: ScrapeEnd::ALL.map(|end| scrapes.with_label_values(&[end.as_str()])),
            scrape_seconds: histogram(
                "scrape_duration_seconds",
                "Duration of scrapes that were answered.",
                &SCRAPE_BUCKETS,
            )?,
            decisions: counters(
                "scaling_decisions_total",
                "Decisions by direction (up, down, stay) and by what they are owed to.",
                &["direction", "reason"],
            )?,
            drains: DrainEnd::ALL.map(|end| drains.with_label_values(&[end.as_str()])),
            reaction_seconds: histogram(
                "scaling_reaction_seconds",
                "Time from the first sample past a threshold to the decision to grow.",
                &REACTION_BUCKETS,
            )?,
        })
    }

    pub(super) fn scraped(&self, end: ScrapeEnd, took: Duration) {
        for (counter, _) in self.scrapes.iter().zip(ScrapeEnd::ALL).filter(|(_, each)| *each == end) {
            counter.inc();
        }
        if end == ScrapeEnd::Answered {
            self.scrape_seconds.observe(took.as_secs_f64());
        }
    }

    pub(super) fn report(&self, report: &Report) {
        if let Some(decision) = &report.decision {
            let (direction, reason) = labels(decision);
            self.decisions.with_label_values(&[direction, reason.as_str()]).inc();
        }
        if let Some(reaction) = report.reaction {
            self.reaction_seconds.observe(reaction.as_secs_f64());
        }
        for end in &report.drains {
            for (counter, _) in self.drains.iter().zip(DrainEnd::ALL).filter(|(_, each)| each == end) {
                counter.inc();
            }
        }
    }
}

fn labels(decision: &Decision) -> (&'static str, Reason) {
    let direction = match decision.desired.cmp(&decision.current) {
        std::cmp::Ordering::Greater => "up",
        std::cmp::Ordering::Less => "down",
        std::cmp::Ordering::Equal => "stay",
    };
    (direction, decision.reason())
}
