//! One worker: takes requests from the pacer and sees each through to its end, over one connection.
//!
//! The rule that keeps the counts true: events are sent again only when it is certain that they were not committed.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use super::client::{Client, Exchange};
use super::options::Encoding;
use super::pacer::{Pacer, Ticket};
use super::replay::{self, Replay};
use super::reply::Reply;
use super::tally::{Fault, Tally};
use super::template::Template;

const CONNECT_BACKOFF_MIN: Duration = Duration::from_millis(20);
const CONNECT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long a server may be away in a run without a fixed duration.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// What ends the whole run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Rejected(String),
    #[error("no connection to {url}: {source}")]
    Unreachable { url: String, source: io::Error },
    #[error("cannot write the acknowledgements: {0}")]
    Acks(#[source] io::Error),
    #[error("cannot compress a request: {0}")]
    Compress(#[source] io::Error),
    #[error(transparent)]
    Replay(#[from] replay::Error),
}

/// Where the events come from.
#[derive(Debug)]
pub(crate) enum Source {
    Generated(Template),
    File(Replay),
}

/// What all workers of a run share.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) pacer: Pacer,
    /// Held for a few instructions per request, never across an await.
    pub(crate) tally: Mutex<Tally>,
    pub(crate) url: String,
    pub(crate) batch: usize,
    pub(crate) events: u64,
    pub(crate) encoding: Encoding,
    /// The end of the duration.
    pub(crate) deadline: Option<Instant>,
}

impl Run {
    /// How many events the request that begins with `first_seq` has: a full batch, or what is left.
    pub(crate) fn events_from(&self, first_seq: u64) -> usize {
        let left = self.events.saturating_sub(first_seq);
        usize::try_from(left).unwrap_or(self.batch).min(self.batch)
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        // The totals are whole between any two statements, so a panic elsewhere does not spoil them.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's own things.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) run: Arc<Run>,
    pub(crate) source: Source,
    pub(crate) client: Client,
    /// True once the run is to end: nothing is sent any more, replies in flight are awaited.
    pub(crate) stop: watch::Receiver<bool>,
    /// Events of the file that have been read.
    pub(crate) replayed: u64,
}

/// A request's events.
#[derive(Debug)]
struct Batch {
    first_seq: u64,
    count: usize,
    body: Bytes,
}

impl Worker {
    /// Sends until there is nothing more to send or the run is stopped.
    pub(crate) async fn work(mut self, start_after: Duration) -> Result<(), Error> {
        if self.pause(start_after).await {
            return Ok(());
        }
        loop {
            let ticket = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => None,
                ticket = self.run.pacer.next() => ticket,
            };
            let Some(ticket) = ticket else { return Ok(()) };
            let Some(batch) = self.batch(ticket.number)? else { return Ok(()) };
            self.settle(&batch, ticket).await?;
        }
    }

    fn batch(&mut self, number: u64) -> Result<Option<Batch>, Error> {
        let Run { batch, encoding, .. } = *self.run;
        let next = match &mut self.source {
            Source::Generated(template) => {
                let first_seq = number * batch as u64;
                let count = self.run.events_from(first_seq);
                (count > 0).then(|| (first_seq, count, template.body(first_seq, count, Timestamp::now())))
            }
            Source::File(replay) => {
                let first_seq = self.replayed;
                let next = replay.body(self.run.events_from(first_seq))?;
                next.map(|(body, count)| {
                    self.replayed += count as u64;
                    (first_seq, count, body)
                })
            }
        };
        let Some((first_seq, count, body)) = next else { return Ok(None) };
        let body = compress(body, encoding).map_err(Error::Compress)?;
        Ok(Some(Batch { first_seq, count, body }))
    }

    /// Sends a request, again where it is sure not to have been committed, until its outcome is settled and counted.
    async fn settle(&mut self, batch: &Batch, ticket: Ticket) -> Result<(), Error> {
        let mut measured_from = ticket.due;
        let mut first = true;
        loop {
            if let Err(error) = self.connect().await {
                self.run.tally().abandon(batch.count);
                return error.map_or(Ok(()), Err);
            }
            let now = Instant::now();
            if std::mem::take(&mut first)
                && let Some(due) = ticket.due
            {
                self.run.tally().sent(now.saturating_duration_since(due));
            }
            let measured_from = *measured_from.get_or_insert(now);
            let exchange = self.client.send(batch.body.clone(), batch.count).await;
            let Some(wait) = self.count(batch, exchange, measured_from.elapsed())? else { return Ok(()) };
            if self.pause(wait).await {
                self.run.tally().abandon(batch.count);
                return Ok(());
            }
        }
    }

    /// Counts what became of a request. The wait after which it is to be sent again, or `None` when it is settled.
    fn count(&self, batch: &Batch, exchange: Exchange, latency: Duration) -> Result<Option<Duration>, Error> {
        let mut tally = self.run.tally();
        tally.replies += u64::from(matches!(exchange, Exchange::Reply(_)));
        let fault = match exchange {
            Exchange::Reply(Reply::Acknowledged(receipt)) => {
                let written = tally.acknowledge(batch.first_seq, &receipt, batch.body.len(), latency);
                return written.map(|()| None).map_err(Error::Acks);
            }
            Exchange::Reply(Reply::Refused { status, retry_after }) => {
                tally.fault(if status == 429 { Fault::Overloaded } else { Fault::Unavailable });
                // The jitter keeps the refused from coming back all at once.
                return Ok(Some(retry_after.mul_f64(rand::random_range(1.0..1.25))));
            }
            Exchange::NotSent => {
                tally.fault(Fault::Connect);
                return Ok(Some(CONNECT_BACKOFF_MIN));
            }
            Exchange::Reply(Reply::Rejected(reason)) => {
                tally.abandon(batch.count);
                return Err(Error::Rejected(reason));
            }
            Exchange::Reply(Reply::Unknown { .. }) => Fault::OutcomeUnknown,
            Exchange::Lost => Fault::ConnectionLost,
            Exchange::TimedOut => Fault::ReplyTimeout,
        };
        tally.fault(fault);
        tally.lose_track(batch.count);
        Ok(None)
    }

    /// Connects, trying again until the duration ends. The error is `None` when the run is over, and only this
    /// request with it.
    async fn connect(&mut self) -> Result<(), Option<Error>> {
        let give_up = self.run.deadline.unwrap_or_else(|| Instant::now() + CONNECT_PATIENCE);
        let mut backoff = CONNECT_BACKOFF_MIN;
        loop {
            if *self.stop.borrow() {
                return Err(None);
            }
            let Err(source) = self.client.connect().await else { return Ok(()) };
            let answered = {
                let mut tally = self.run.tally();
                tally.fault(Fault::Connect);
                tally.replies > 0
            };
            if Instant::now() + backoff >= give_up {
                let unreachable = Error::Unreachable { url: self.run.url.clone(), source };
                // At the end of its time, a run that got answers has a result worth more than this error.
                return Err(if answered && self.run.deadline.is_some() { None } else { Some(unreachable) });
            }
            if self.pause(backoff.mul_f64(rand::random_range(0.75..1.25))).await {
                return Err(None);
            }
            backoff = (backoff * 2).min(CONNECT_BACKOFF_MAX);
        }
    }

    /// Waits. True when the run was stopped meanwhile.
    async fn pause(&mut self, time: Duration) -> bool {
        if time.is_zero() {
            return *self.stop.borrow();
        }
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stop| *stop) => true,
            () = sleep(time) => false,
        }
    }
}

fn compress(body: Bytes, encoding: Encoding) -> io::Result<Bytes> {
    /// The fast end: a load generator is not judged by its ratio.
    const ZSTD_LEVEL: i32 = 1;
    match encoding {
        Encoding::None => Ok(body),
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
            io::Write::write_all(&mut encoder, &body)?;
            encoder.finish().map(Bytes::from)
        }
        Encoding::Zstd => zstd::bulk::compress(&body, ZSTD_LEVEL).map(Bytes::from),
    }
}
