//! What a run says: progress lines while it goes on, a summary at its end, and the result file. Pure text making.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::options::Settings;
use super::tally::{Count, Interval, Tally};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// Everything offered was sent.
    Completed,
    /// By a signal.
    Interrupted,
    /// It could not go on, for this reason.
    Failed(String),
}

/// The exit status, as documented in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    AllAcknowledged,
    SomeNot,
    Failed,
    Interrupted,
}

impl Status {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::AllAcknowledged => 0,
            Self::SomeNot => 1,
            Self::Failed => 3,
            Self::Interrupted => 130,
        }
    }
}

/// Latency percentiles in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Percentiles {
    /// `None` for an empty histogram, which has none.
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| milliseconds(histogram.value_at_quantile(quantile));
        (!histogram.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: milliseconds(histogram.max()),
        })
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    // Whole microseconds: the histogram tells no less apart.
    (nanoseconds as f64 / 1e3).round() / 1e3
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ending: Ending,
    settings: Settings,
    started_at: String,
    /// From the start until the last outcome was known.
    elapsed_s: f64,
    acknowledged: Count,
    unknown: Count,
    abandoned: Count,
    events_per_s: f64,
    requests_per_s: f64,
    /// Bytes of the acknowledged bodies, as sent.
    body_bytes: u64,
    faults: BTreeMap<&'static str, u64>,
    /// From due (open loop) or first sent (closed loop) until acknowledged.
    latency_ms: Option<Percentiles>,
    /// From due until first sent; only in an open loop.
    schedule_lag_ms: Option<Percentiles>,
    /// Processor time of this process, user and system.
    cpu_s: f64,
}

impl Report {
    pub(crate) fn new(
        ending: Ending,
        settings: Settings,
        started_at: jiff::Timestamp,
        elapsed: Duration,
        cpu: Duration,
        tally: &Tally,
    ) -> Self {
        let elapsed_s = elapsed.as_secs_f64();
        let Count { requests, events } = tally.acknowledged;
        Self {
            ending,
            settings,
            started_at: format!("{started_at:.3}"),
            elapsed_s,
            acknowledged: tally.acknowledged,
            unknown: tally.unknown,
            abandoned: tally.abandoned,
            events_per_s: events as f64 / elapsed_s,
            requests_per_s: requests as f64 / elapsed_s,
            body_bytes: tally.bytes,
            faults: tally.faults().collect(),
            latency_ms: Percentiles::of(&tally.latency),
            schedule_lag_ms: Percentiles::of(&tally.lag),
            cpu_s: cpu.as_secs_f64(),
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self.ending {
            Ending::Failed(_) => Status::Failed,
            Ending::Interrupted => Status::Interrupted,
            Ending::Completed if self.unknown.requests + self.abandoned.requests > 0 => Status::SomeNot,
            Ending::Completed => Status::AllAcknowledged,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, text: String| writeln!(f, "{name:<14}{text}");
        let count = |count: Count| format!("{} events in {} requests", count.events, count.requests);
        line("run", self.settings.run_id.to_string())?;
        line(
            "ending",
            match &self.ending {
                Ending::Completed => "completed".into(),
                Ending::Interrupted => "interrupted".into(),
                Ending::Failed(reason) => format!("failed: {reason}"),
            },
        )?;
        line("acknowledged", count(self.acknowledged))?;
        line("unknown", count(self.unknown))?;
        line("abandoned", count(self.abandoned))?;
        line("elapsed", format!("{:.2} s", self.elapsed_s))?;
        line(
            "throughput",
            format!(
                "{:.0} events/s, {:.0} requests/s, {:.1} MB/s",
                self.events_per_s,
                self.requests_per_s,
                self.body_bytes as f64 / self.elapsed_s / 1e6
            ),
        )?;
        for (name, percentiles) in [("latency", &self.latency_ms), ("schedule lag", &self.schedule_lag_ms)] {
            if let Some(Percentiles { p50, p90, p95, p99, p99_9, max }) = percentiles {
                let text = format!(
                    "p50 {p50:.2}  p90 {p90:.2}  p95 {p95:.2}  p99 {p99:.2}  p99.9 {p99_9:.2}  max {max:.2} ms"
                );
                line(name, text)?;
            }
        }
        if !self.faults.is_empty() {
            line(
                "faults",
                self.faults.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", "),
            )?;
        }
        line("processor", format!("{:.2} s used by this load generator", self.cpu_s))
    }
}

/// The state of a run at one moment, on one line.
pub(crate) fn progress(
    elapsed: Duration,
    target_events_per_s: Option<f64>,
    since_last: Duration,
    interval: Interval,
    tally: &Tally,
) -> String {
    let target = target_events_per_s.map_or("max".to_owned(), |rate| format!("{rate:.0}/s"));
    let achieved = interval.events as f64 / since_last.as_secs_f64();
    let faults: Vec<String> = tally.faults().map(|(name, n)| format!("{name} {n}")).collect();
    let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(", ") };
    let p99 = interval.p99.map_or("-".to_owned(), |p99| format!("{:.2} ms", p99.as_secs_f64() * 1e3));
    format!(
        "{:6.1} s  target {target}  achieved {achieved:.0}/s  acknowledged {}  p99 {p99}  faults: {faults}",
        elapsed.as_secs_f64(),
        tally.acknowledged.events,
    )
}

#[cfg(test)]
mod tests {
    use super::super::reply::Receipt;
    use super::super::tally::Fault;
    use super::*;

    fn report(ending: Ending, tally: &Tally) -> Report {
        let options = super::super::options::Options::default();
        let settings = options.resolve("r1".parse().unwrap()).unwrap();
        let elapsed = Duration::from_secs(2);
        Report::new(ending, settings, jiff::Timestamp::UNIX_EPOCH, elapsed, Duration::from_millis(30), tally)
    }

    fn tally() -> Tally {
        let mut tally = Tally::new(None);
        let receipt = Receipt { first_index: 0, count: 100, first_id: "id".into() };
        for ms in 1..=100 {
            tally.acknowledge(0, &receipt, 30_000, Duration::from_millis(ms)).unwrap();
        }
        tally
    }

    #[test]
    fn the_result_has_the_figures_of_the_tally() {
        let mut tally = tally();
        tally.fault(Fault::Overloaded);
        let result = serde_json::to_value(report(Ending::Completed, &tally)).unwrap();
        assert_eq!(result["acknowledged"], serde_json::json!({"requests": 100, "events": 10_000}));
        assert_eq!(result["events_per_s"], 5000.0);
        assert_eq!(result["body_bytes"], 3_000_000);
        assert_eq!(result["faults"], serde_json::json!({"refused_429": 1}));
        assert_eq!(result["settings"]["run-id"], "r1");
        assert_eq!(result["schedule_lag_ms"], serde_json::Value::Null);
        for (name, expected) in [("p50", 50.0), ("p99", 99.0), ("max", 100.0)] {
            let found = result["latency_ms"][name].as_f64().unwrap();
            assert!((found - expected).abs() / expected < 1e-3, "{name} {found}");
        }
    }

    #[test]
    fn the_status_tells_the_worst_that_happened() {
        let mut tally = tally();
        assert_eq!(report(Ending::Completed, &tally).status(), Status::AllAcknowledged);
        tally.lose_track(1);
        assert_eq!(report(Ending::Completed, &tally).status(), Status::SomeNot);
        assert_eq!(report(Ending::Interrupted, &tally).status(), Status::Interrupted);
        assert_eq!(report(Ending::Failed("x".into()), &tally).status(), Status::Failed);
    }

    #[test]
    fn a_progress_line_speaks_of_its_interval() {
        let mut tally = tally();
        tally.take_interval();
        let interval = Interval { events: 500, p99: Some(Duration::from_micros(2310)) };
        let line =
            progress(Duration::from_millis(12_340), Some(250.0), Duration::from_secs(2), interval, &tally);
        let expected =
            "  12.3 s  target 250/s  achieved 250/s  acknowledged 10000  p99 2.31 ms  faults: none";
        assert_eq!(line, expected);
    }
}
