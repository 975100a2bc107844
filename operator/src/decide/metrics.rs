//! Reads the few metrics that scaling needs from a pod's `/metrics` page (Prometheus text format 0.0.4).
//! Strict: a metric that is absent, given twice, or no finite number of at least zero is an error of that metric alone.
//! Never a zero that was not written there.

use std::collections::HashMap;
use std::time::Duration;

use certeus_autoscale::MissingReason;

/// One metric of one scrape, or why it has no value.
pub type Reading = Result<f64, MissingReason>;

/// What was read from one pod at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsSample {
    /// When the page was fetched, on the caller's clock; see [`Observation::now`](certeus_autoscale::Observation::now).
    pub at: Duration,
    /// `certeus_process_start_time_seconds`: tells one process from the next.
    pub process_start: Reading,
    /// `certeus_process_uptime_seconds`: when the process read its use of CPU.
    pub uptime_seconds: Reading,
    /// `certeus_process_cpu_seconds_total`.
    pub cpu_seconds: Reading,
    /// `certeus_ledger_queue_events`.
    pub queue_events: Reading,
    /// `certeus_ledger_queue_events_max`.
    pub queue_events_max: Reading,
    /// `certeus_ledger_queue_bytes`.
    pub queue_bytes: Reading,
    /// `certeus_ledger_queue_bytes_max`.
    pub queue_bytes_max: Reading,
    /// `certeus_ledger_queue_oldest_age_seconds`.
    pub queue_oldest_age_seconds: Reading,
    /// `certeus_ledger_commit_duration_seconds_sum`.
    pub commit_seconds: Reading,
    /// `certeus_ledger_commit_duration_seconds_count`.
    pub commits: Reading,
    /// `certeus_ledger_database_up`.
    pub database_up: Reading,
    /// `certeus_ledger_log_checked`.
    pub log_checked: Reading,
    /// `certeus_draining`.
    pub draining: Reading,
    /// `certeus_ledger_spool_records`.
    pub spool_records: Reading,
}

/// Reads a page that was fetched at `at`.
#[must_use]
pub fn parse(at: Duration, page: &str) -> MetricsSample {
    let mut readings: HashMap<&str, Reading> = HashMap::new();
    for line in page.lines() {
        // Metrics with labels end in `}` here and match no name below.
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        if name.starts_with('#') {
            continue;
        }
        readings
            .entry(name)
            .and_modify(|reading| *reading = Err(MissingReason::NotReported))
            .or_insert_with(|| read(value));
    }
    let get = |name: &str| readings.get(name).copied().unwrap_or(Err(MissingReason::NotReported));
    MetricsSample {
        at,
        process_start: get("certeus_process_start_time_seconds"),
        uptime_seconds: get("certeus_process_uptime_seconds"),
        cpu_seconds: get("certeus_process_cpu_seconds_total"),
        queue_events: get("certeus_ledger_queue_events"),
        queue_events_max: get("certeus_ledger_queue_events_max"),
        queue_bytes: get("certeus_ledger_queue_bytes"),
        queue_bytes_max: get("certeus_ledger_queue_bytes_max"),
        queue_oldest_age_seconds: get("certeus_ledger_queue_oldest_age_seconds"),
        commit_seconds: get("certeus_ledger_commit_duration_seconds_sum"),
        commits: get("certeus_ledger_commit_duration_seconds_count"),
        database_up: get("certeus_ledger_database_up"),
        log_checked: get("certeus_ledger_log_checked"),
        draining: get("certeus_draining"),
        spool_records: get("certeus_ledger_spool_records"),
    }
}

fn read(value: &str) -> Reading {
    match value.parse::<f64>() {
        // The parser's own words would say no more than that it is no number.
        Err(_) => Err(MissingReason::NotReported),
        Ok(value) if value.is_nan() => Err(MissingReason::NotANumber),
        Ok(value) if value.is_infinite() => Err(MissingReason::Infinite),
        Ok(value) if value < 0.0 => Err(MissingReason::Negative),
        Ok(value) => Ok(value),
    }
}

/// How much a counter grew between two readings of one process.
///
/// # Errors
/// The error of either reading; too few scrapes when the counter went back, as that is another process.
pub(super) fn increase(previous: Reading, latest: Reading) -> Reading {
    let (previous, latest) = (previous?, latest?);
    if latest < previous { Err(MissingReason::TooFewScrapes) } else { Ok(latest - previous) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(page: &str, expected: Reading) {
        assert_eq!(parse(Duration::ZERO, page).queue_events, expected, "{page:?}");
    }

    #[test]
    fn reads_a_page_as_a_pod_writes_it() {
        let page = "# HELP certeus_ledger_queue_events Events waiting.\n# TYPE certeus_ledger_queue_events gauge\n\
                    certeus_ledger_queue_events 12\n\
                    certeus_ledger_commit_duration_seconds_bucket{le=\"0.005\"} 3\n\
                    certeus_ledger_commit_duration_seconds_sum 0.25\n\
                    certeus_ledger_commit_duration_seconds_count 4\n\
                    certeus_process_cpu_seconds_total 1.5e1 1700000000000\n";
        let sample = parse(Duration::from_secs(7), page);
        assert_eq!((sample.at, sample.queue_events), (Duration::from_secs(7), Ok(12.0)));
        assert_eq!(
            (sample.commit_seconds, sample.commits, sample.cpu_seconds),
            (Ok(0.25), Ok(4.0), Ok(15.0))
        );
        assert_eq!(sample.queue_bytes, Err(MissingReason::NotReported));
    }

    #[test]
    fn what_is_not_a_number_is_never_zero() {
        check("certeus_ledger_queue_events 0", Ok(0.0));
        check("", Err(MissingReason::NotReported));
        check("certeus_ledger_queue_events", Err(MissingReason::NotReported));
        check("certeus_ledger_queue_events many", Err(MissingReason::NotReported));
        check("certeus_ledger_queue_events NaN", Err(MissingReason::NotANumber));
        check("certeus_ledger_queue_events +Inf", Err(MissingReason::Infinite));
        check("certeus_ledger_queue_events -1", Err(MissingReason::Negative));
        check("certeus_ledger_queue_events{ledger=\"a\"} 5", Err(MissingReason::NotReported));
        check(
            "certeus_ledger_queue_events 1\ncerteus_ledger_queue_events 2",
            Err(MissingReason::NotReported),
        );
    }
}
