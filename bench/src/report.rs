//! The settings of a run, its figures, and how they stand against what is asked of them. Pure.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::{LoadResult, Percentiles};
use crate::machine::Machine;

/// How much is measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) quick: bool,
    /// Ceiling and sustained runs, taking turns; the medians count.
    pub(crate) rounds: u32,
    /// Rows of a ceiling run, and events of a sustained one: the same rows, each time into an empty table.
    pub(crate) round_events: u64,
    /// Arguments of `certeus load`.
    pub(crate) as_fast_as_taken: &'static [&'static str],
    pub(crate) single: &'static [&'static str],
    pub(crate) paced: &'static [&'static str],
    pub(crate) flood_events: u64,
    /// Proofs asked of a ledger of `flood_events`.
    pub(crate) proofs: u64,
}

macro_rules! paced_load {
    ($duration:literal, $batch:literal, $rate:literal) => {
        &["--duration", $duration, "--batch", $batch, "--workers", "32", "--target-throughput", $rate]
    };
}

impl Settings {
    pub(crate) fn new(quick: bool) -> Self {
        let (single, paced): (&[_], &[_]) = if quick {
            (paced_load!("5s", "1", "1000"), paced_load!("5s", "100", "50000"))
        } else {
            (paced_load!("30s", "1", "1000"), paced_load!("30s", "100", "50000"))
        };
        Self {
            quick,
            rounds: if quick { 1 } else { 5 },
            round_events: if quick { 500_000 } else { 3_000_000 },
            as_fast_as_taken: &["--batch", "1000", "--workers", "32"],
            single,
            paced,
            flood_events: if quick { 1_000_000 } else { 10_000_000 },
            proofs: if quick { 1_000 } else { 20_000 },
        }
    }
}

/// What was measured. The names are fixed: others read them.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    #[serde(flatten)]
    pub(crate) ingest: Ingest,
    pub(crate) sealing: SealingFigures,
}

/// Of a pod that nobody configured.
#[derive(Debug, Serialize)]
pub(crate) struct Ingest {
    /// Median of the rounds.
    pub(crate) copy_ceiling_rows_per_s: f64,
    /// Median of the rounds.
    pub(crate) sustained_events_per_s: f64,
    pub(crate) rounds: Measured,
    pub(crate) latency_1000rps_ms: Latency,
    pub(crate) latency_50000eps_ms: Latency,
    /// Most resident memory of the pod during the flood, in 10^6 bytes.
    pub(crate) rss_mb: f64,
    pub(crate) flood_events_per_s: f64,
    /// During the flood.
    pub(crate) cpu_s_per_million: CpuPerMillion,
}

/// What it costs to prove everything.
#[derive(Debug, Serialize)]
pub(crate) struct SealingFigures {
    /// Rounds without a signing key and without idempotency keys.
    pub(crate) without_events_per_s: Vec<f64>,
    /// Rounds with both.
    pub(crate) with_events_per_s: Vec<f64>,
    /// Median with by median without.
    pub(crate) ratio: f64,
    /// How long after the last acknowledgement of the flood a checkpoint covered it.
    pub(crate) seal_lag_s: f64,
    pub(crate) proofs: Proofs,
    /// By the auditor's processor time.
    pub(crate) audit_events_per_s_per_core: f64,
}

/// Latency of proofs.
#[derive(Debug, Serialize)]
pub(crate) struct Proofs {
    /// Events in the ledger.
    ledger_events: u64,
    asked: usize,
    latency_ms: Latency,
}

impl Proofs {
    pub(crate) fn of(mut latencies: Vec<Duration>, ledger_events: u64) -> Result<Self> {
        latencies.sort_unstable();
        let quantile = |percent: usize| {
            let rank = (latencies.len() * percent).div_ceil(100);
            let latency = latencies.get(rank.saturating_sub(1)).context("no proof was asked")?;
            anyhow::Ok(latency.as_secs_f64() * 1e3)
        };
        let latency_ms = Latency { p50: quantile(50)?, p95: quantile(95)?, p99: quantile(99)? };
        Ok(Self { ledger_events, asked: latencies.len(), latency_ms })
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) ceilings: Vec<f64>,
    pub(crate) sustained: Vec<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Latency {
    pub(crate) fn of(result: &LoadResult) -> Result<Self> {
        let Percentiles { p50, p95, p99 } = result.latency_ms.context("nothing was acknowledged")?;
        Ok(Self { p50, p95, p99 })
    }
}

/// Processor seconds per million events.
#[derive(Debug, Serialize)]
pub(crate) struct CpuPerMillion {
    pub(crate) server: f64,
    pub(crate) postgresql: f64,
    pub(crate) load: f64,
}

/// The file `ingest.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    date: String,
    machine: Machine,
    settings: Settings,
    #[serde(flatten)]
    figures: Figures,
    /// Sustained rate by ceiling.
    ceiling_ratio: f64,
    checks: Vec<Check>,
}

/// A figure beside what is asked of it.
#[derive(Debug, PartialEq, Serialize)]
struct Check {
    name: &'static str,
    value: f64,
    floor: Bound,
    floor_met: bool,
    goal: Option<Bound>,
    goal_met: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast(f64),
    Below(f64),
}

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::Below(bound) => value < bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::Below(bound) => write!(f, "< {bound}"),
        }
    }
}

impl Check {
    fn new(name: &'static str, value: f64, floor: Bound, goal: Option<Bound>) -> Self {
        let goal_met = goal.map(|goal| goal.is_met(value));
        Self { name, value, floor, floor_met: floor.is_met(value), goal, goal_met }
    }
}

impl Report {
    pub(crate) fn new(date: jiff::Timestamp, machine: Machine, settings: Settings, figures: Figures) -> Self {
        let Figures { ingest, sealing } = &figures;
        let ceiling_ratio = ingest.sustained_events_per_s / ingest.copy_ceiling_rows_per_s;
        let single = &ingest.latency_1000rps_ms;
        let audit = sealing.audit_events_per_s_per_core;
        let checks = vec![
            Check::new("sustained by ceiling", ceiling_ratio, Bound::AtLeast(0.6), Some(Bound::AtLeast(0.9))),
            Check::new("1,000 requests/s: p50 ms", single.p50, Bound::Below(1.0), None),
            Check::new("1,000 requests/s: p95 ms", single.p95, Bound::Below(2.0), None),
            Check::new("1,000 requests/s: p99 ms", single.p99, Bound::Below(5.0), None),
            Check::new("50,000 events/s: p99 ms", ingest.latency_50000eps_ms.p99, Bound::Below(10.0), None),
            Check::new("resident memory MB", ingest.rss_mb, Bound::Below(300.0), None),
            Check::new("sealed by not sealed", sealing.ratio, Bound::AtLeast(0.85), None),
            Check::new("proof p99 ms", sealing.proofs.latency_ms.p99, Bound::Below(5.0), None),
            Check::new("audit, M events/s per core", audit / 1e6, Bound::AtLeast(0.5), None),
        ];
        Self { date: format!("{date:.0}"), machine, settings, figures, ceiling_ratio, checks }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, figures: Figures { ingest, sealing }, .. } = self;
        let Machine { cpu, cores, memory_mb, kernel, postgresql } = machine;
        writeln!(f, "{cpu}, {cores} cores, {memory_mb} MB; Linux {kernel}; PostgreSQL {postgresql}")?;
        if self.settings.quick {
            writeln!(f, "A QUICK RUN: too short for figures worth quoting")?;
        }
        writeln!(f, "COPY ceiling        {:>10.0} rows/s", ingest.copy_ceiling_rows_per_s)?;
        writeln!(f, "sustained           {:>10.0} events/s", ingest.sustained_events_per_s)?;
        writeln!(f, "flood               {:>10.0} events/s", ingest.flood_events_per_s)?;
        let CpuPerMillion { server, postgresql, load } = ingest.cpu_s_per_million;
        writeln!(
            f,
            "processor seconds per million events: server {server:.2}, PostgreSQL {postgresql:.2}, load {load:.2}"
        )?;
        let SealingFigures { without_events_per_s, with_events_per_s, seal_lag_s, proofs, .. } = sealing;
        writeln!(f, "not sealed          {:>10.0} events/s", median(without_events_per_s))?;
        writeln!(f, "sealed, with keys   {:>10.0} events/s", median(with_events_per_s))?;
        let Proofs { ledger_events, asked, latency_ms } = proofs;
        writeln!(
            f,
            "{asked} proofs from {ledger_events} events, which were sealed {seal_lag_s:.1} s after the last: p50 {:.2} ms, \
             p95 {:.2} ms, p99 {:.2} ms",
            latency_ms.p50, latency_ms.p95, latency_ms.p99
        )?;
        writeln!(f, "\n{:<28}{:>10}  {:<10}{:<8}{:<10}", "", "value", "floor", "", "goal")?;
        for Check { name, value, floor, floor_met, goal, goal_met } in &self.checks {
            let word = |met: bool| if met { "met" } else { "SHORT" };
            let goal = goal.map_or(String::new(), |goal| goal.to_string());
            let goal_met = goal_met.map_or("", word);
            let floor = floor.to_string();
            writeln!(f, "{name:<28}{value:>10.3}  {floor:<10}{:<8}{goal:<10}{goal_met}", word(*floor_met))?;
        }
        Ok(())
    }
}

/// The middle value, or the mean of the two; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(p50: f64, p95: f64, p99: f64) -> Latency {
        Latency { p50, p95, p99 }
    }

    fn report() -> Report {
        let machine = Machine {
            cpu: "a processor".into(),
            cores: 2,
            memory_mb: 8000,
            kernel: "6.1".into(),
            postgresql: "15.1".into(),
        };
        let ingest = Ingest {
            copy_ceiling_rows_per_s: 400_000.0,
            sustained_events_per_s: 300_000.0,
            rounds: Measured { ceilings: vec![400_000.0], sustained: vec![300_000.0] },
            latency_1000rps_ms: latency(0.9, 2.0, 4.0),
            latency_50000eps_ms: latency(1.0, 2.0, 11.0),
            rss_mb: 120.0,
            flood_events_per_s: 310_000.0,
            cpu_s_per_million: CpuPerMillion { server: 0.8, postgresql: 2.5, load: 0.4 },
        };
        let figures = Figures {
            ingest,
            sealing: SealingFigures {
                without_events_per_s: vec![300_000.0],
                with_events_per_s: vec![270_000.0],
                ratio: 0.9,
                seal_lag_s: 1.0,
                proofs: Proofs::of((1..=100).map(Duration::from_millis).collect(), 10).unwrap(),
                audit_events_per_s_per_core: 600_000.0,
            },
        };
        Report::new(jiff::Timestamp::UNIX_EPOCH, machine, Settings::new(true), figures)
    }

    #[test]
    fn figures_are_held_against_their_bounds() {
        let report = report();
        let met: Vec<bool> = report.checks.iter().map(|check| check.floor_met).collect();
        // A p95 of exactly 2 ms is not below 2 ms.
        assert_eq!(met, [true, true, false, true, false, true, true, false, true]);
        assert_eq!(report.checks[0].goal_met, Some(false));
        let text = report.to_string();
        assert!(
            text.contains("sustained by ceiling             0.750  >= 0.6    met     >= 0.9    SHORT"),
            "{text}"
        );
    }

    #[test]
    fn the_file_has_the_names_that_others_read() {
        let json = serde_json::to_value(report()).unwrap();
        for path in [
            "/copy_ceiling_rows_per_s",
            "/sustained_events_per_s",
            "/latency_1000rps_ms/p50",
            "/latency_1000rps_ms/p95",
            "/latency_1000rps_ms/p99",
            "/latency_50000eps_ms/p50",
            "/latency_50000eps_ms/p99",
            "/rss_mb",
            "/cpu_s_per_million/server",
            "/cpu_s_per_million/postgresql",
            "/cpu_s_per_million/load",
            "/machine/cores",
            "/settings/round_events",
            "/sealing/ratio",
            "/sealing/audit_events_per_s_per_core",
        ] {
            assert!(json.pointer(path).is_some_and(|value| value.is_number()), "{path} in {json}");
        }
    }

    #[test]
    fn quantiles_are_measured_values() {
        let latency = Proofs::of((1..=100).map(Duration::from_millis).collect(), 10).unwrap().latency_ms;
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(latency.p50, 50.0) && near(latency.p95, 95.0) && near(latency.p99, 99.0), "{latency:?}");
        assert!(Proofs::of(Vec::new(), 10).is_err());
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
