//! What a run has seen so far: every event offered ends as acknowledged, unknown or abandoned, and is counted once.
//!
//! Owns the latency histograms and the file of acknowledgements. Reads no clock. Latencies are in nanoseconds.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::reply::Receipt;

/// The longest latency that is told apart; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);

/// Something that went wrong and how often, whether or not it cost an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No connection could be made.
    Connect,
    /// 429: full. The events are sent again.
    Overloaded,
    /// 503: not available. The events are sent again.
    Unavailable,
    /// 503 `outcome-unknown`, or another 5xx that does not say.
    OutcomeUnknown,
    /// The connection broke after the request was written.
    ConnectionLost,
    /// No reply in time.
    ReplyTimeout,
    /// 202: taken, and not in the ledger yet.
    Spooled,
}

impl Fault {
    pub(crate) const ALL: [Self; 7] = [
        Self::Connect,
        Self::Overloaded,
        Self::Unavailable,
        Self::OutcomeUnknown,
        Self::ConnectionLost,
        Self::ReplyTimeout,
        Self::Spooled,
    ];

    /// The name in progress lines and result files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect_failed",
            Self::Overloaded => "refused_429",
            Self::Unavailable => "refused_503",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::ConnectionLost => "connection_lost",
            Self::ReplyTimeout => "reply_timeout",
            Self::Spooled => "spooled_202",
        }
    }
}

/// Requests, and the events in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Count {
    pub(crate) requests: u64,
    pub(crate) events: u64,
}

impl Count {
    fn add(&mut self, events: usize) {
        self.requests += 1;
        self.events += events as u64;
    }
}

/// The running totals.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Committed, by the server's word.
    pub(crate) acknowledged: Count,
    /// Perhaps committed, and not found out until the run ended.
    pub(crate) unknown: Count,
    /// Certainly not committed, and given up.
    pub(crate) abandoned: Count,
    /// Replies of any kind.
    pub(crate) replies: u64,
    /// Bytes of the acknowledged bodies, as sent.
    pub(crate) bytes: u64,
    faults: [u64; Fault::ALL.len()],
    /// From due (open loop) or first sent (closed loop) until acknowledged.
    pub(crate) latency: Histogram<u64>,
    /// From due until first sent; empty in a closed loop.
    pub(crate) lag: Histogram<u64>,
    interval_latency: Histogram<u64>,
    interval_events: u64,
    acks: Option<BufWriter<File>>,
}

/// What happened since the last look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub(crate) events: u64,
    /// `None` when nothing was acknowledged.
    pub(crate) p99: Option<Duration>,
}

impl Tally {
    pub(crate) fn new(acks: Option<File>) -> Self {
        Self {
            acknowledged: Count::default(),
            unknown: Count::default(),
            abandoned: Count::default(),
            replies: 0,
            bytes: 0,
            faults: [0; Fault::ALL.len()],
            latency: histogram(),
            lag: histogram(),
            interval_latency: histogram(),
            interval_events: 0,
            acks: acks.map(|file| BufWriter::with_capacity(1 << 16, file)),
        }
    }

    /// Events are committed. Fails when the acknowledgement cannot be written down.
    pub(crate) fn acknowledge(
        &mut self,
        first_seq: u64,
        receipt: &Receipt,
        bytes: usize,
        latency: Duration,
    ) -> io::Result<()> {
        self.acknowledged.requests += 1;
        self.acknowledged.events += receipt.count;
        self.bytes += bytes as u64;
        self.interval_events += receipt.count;
        self.latency.saturating_record(nanoseconds(latency));
        self.interval_latency.saturating_record(nanoseconds(latency));
        let Some(acks) = &mut self.acks else { return Ok(()) };
        let Receipt { first_index, count, first_id } = receipt;
        writeln!(acks, "{first_seq}\t{count}\t{first_index}\t{first_id}")
    }

    /// Events may be committed or not.
    pub(crate) fn lose_track(&mut self, events: usize) {
        self.unknown.add(events);
    }

    /// Events are not committed and will not be sent any more.
    pub(crate) fn abandon(&mut self, events: usize) {
        self.abandoned.add(events);
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        self.faults[fault as usize] += 1;
    }

    pub(crate) fn sent(&mut self, lag: Duration) {
        self.lag.saturating_record(nanoseconds(lag));
    }

    /// The faults that happened, with their numbers.
    pub(crate) fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Fault::ALL.iter().map(|fault| (fault.name(), self.faults[*fault as usize])).filter(|(_, n)| *n > 0)
    }

    /// Ends an interval and begins the next.
    pub(crate) fn take_interval(&mut self) -> Interval {
        let p99 = (!self.interval_latency.is_empty())
            .then(|| Duration::from_nanos(self.interval_latency.value_at_quantile(0.99)));
        self.interval_latency.reset();
        Interval { events: std::mem::take(&mut self.interval_events), p99 }
    }

    /// Writes out what is still held in memory.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.acks.as_mut().map_or(Ok(()), Write::flush)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Three significant digits from a microsecond to [`LATENCY_MAX`].
fn histogram() -> Histogram<u64> {
    let Ok(histogram) = Histogram::new_with_bounds(1_000, nanoseconds(LATENCY_MAX), 3) else {
        unreachable!("the bounds are constants that hdrhistogram takes")
    };
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(first_index: u64, count: u64) -> Receipt {
        Receipt { first_index, count, first_id: format!("id-{first_index}") }
    }

    #[test]
    fn acknowledgements_are_counted_and_written_down() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tally = Tally::new(Some(file.reopen().unwrap()));
        tally.acknowledge(0, &receipt(100, 3), 900, Duration::from_millis(2)).unwrap();
        tally.acknowledge(3, &receipt(7, 1), 300, Duration::from_millis(4)).unwrap();
        tally.lose_track(5);
        tally.abandon(6);
        tally.flush().unwrap();

        assert_eq!(tally.acknowledged, Count { requests: 2, events: 4 });
        assert_eq!(tally.unknown, Count { requests: 1, events: 5 });
        assert_eq!(tally.abandoned, Count { requests: 1, events: 6 });
        assert_eq!(tally.bytes, 1200);
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "0\t3\t100\tid-100\n3\t1\t7\tid-7\n");
    }

    #[test]
    fn an_interval_forgets_the_one_before() {
        let mut tally = Tally::new(None);
        tally.acknowledge(0, &receipt(0, 8), 0, Duration::from_millis(50)).unwrap();
        let first = tally.take_interval();
        assert_eq!(first.events, 8);
        let p99 = first.p99.unwrap().as_secs_f64();
        assert!((p99 - 0.05).abs() < 0.05 / 1000.0, "{p99}");
        assert_eq!(tally.take_interval(), Interval { events: 0, p99: None });
        assert_eq!(tally.latency.len(), 1);
    }

    #[test]
    fn faults_keep_their_names() {
        let mut tally = Tally::new(None);
        for (times, fault) in Fault::ALL.into_iter().enumerate() {
            for _ in 0..times {
                tally.fault(fault);
            }
        }
        let expected = [
            ("refused_429", 1),
            ("refused_503", 2),
            ("outcome_unknown", 3),
            ("connection_lost", 4),
            ("reply_timeout", 5),
            ("spooled_202", 6),
        ];
        assert_eq!(tally.faults().collect::<Vec<_>>(), expected);
    }
}
