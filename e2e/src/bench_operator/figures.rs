//! Where figures come from: the operator's own metrics, and what the kernel says of its process.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use certeus_e2e::http::request;

/// What the columns are.
pub(crate) const HEADINGS: [&str; 10] = [
    "cold start to all reconciled",
    "reconcile P50",
    "P99",
    "writes/min at rest",
    "resident at rest",
    "peak",
    "scrapes/s",
    "cores at rest",
    "load step to scale write, median",
    "longest",
];

/// The operator's metrics at one moment.
pub(crate) struct Page(String);

impl Page {
    pub(crate) fn fetch(from: SocketAddr) -> Result<Self> {
        let reply = request(from, "GET", "/metrics").context("the operator does not answer")?;
        Ok(Self(String::from_utf8_lossy(&reply.body).into_owned()))
    }

    /// All series of a metric together; zero when there is none yet.
    pub(crate) fn sum(&self, metric: &str) -> f64 {
        self.series(metric).map(|(_, value)| value).sum()
    }

    fn series<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(metric)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, value.parse().ok()?))
        })
    }

    /// A quantile of a histogram, interpolated within its bucket as PromQL does; `None` without observations.
    pub(crate) fn quantile(&self, metric: &str, part: f64) -> Option<f64> {
        let bucket = format!("{metric}_bucket");
        let mut buckets: Vec<(f64, f64)> = self
            .series(&bucket)
            .filter_map(|(labels, count)| {
                let bound = labels.split("le=\"").nth(1)?.split('"').next()?;
                Some((bound.parse().ok()?, count))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let rank = buckets.last()?.1 * part;
        let index = buckets.iter().position(|(_, count)| *count >= rank && *count > 0.0)?;
        let (bound, count) = *buckets.get(index)?;
        let (lower, below) =
            index.checked_sub(1).and_then(|index| buckets.get(index)).copied().unwrap_or_default();
        if bound.is_infinite() {
            return Some(lower);
        }
        Some(lower + (bound - lower) * (rank - below) / (count - below).max(1.0))
    }
}

/// What a process has used.
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_kib: u64,
    pub(crate) peak_kib: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{name}")).context("the operator has ended")
        };
        let status = read("status")?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        // The second field, the name, may hold spaces; utime and stime are the 14th and 15th (proc(5)).
        let stat = read("stat")?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks: f64 =
            fields.get(11..13).into_iter().flatten().filter_map(|field| field.parse::<f64>().ok()).sum();
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        Ok(Self { cpu_seconds: ticks / per_second, resident_kib: kib("VmRSS:"), peak_kib: kib("VmHWM:") })
    }
}

/// A time in seconds as a cell.
pub(crate) fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.1} ms", seconds * 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_their_bucket() {
        let page = Page(
            "a_bucket{le=\"0.1\"} 5\na_bucket{le=\"1\"} 9\na_bucket{le=\"+Inf\"} 10\na_sum 4\na_count 10\nab 7\n".to_owned(),
        );
        assert_eq!(page.quantile("a", 0.5), Some(0.1));
        assert_eq!(page.quantile("a", 0.7), Some(0.1 + 0.9 * 0.5));
        assert_eq!(page.quantile("a", 0.99), Some(1.0));
        assert_eq!((page.quantile("b", 0.5), page.sum("a_count"), page.sum("a")), (None, 10.0, 0.0));
    }
}
