//! One worker: takes requests from the pacer and sees each through to its end, over one connection.
//!
//! The rule that keeps the counts true: events are sent again only when it is certain that they were not committed, or
//! under the same idempotency key, by which the ledger knows what it has already.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::header::{HeaderValue, InvalidHeaderValue};
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

/// Before asking again what became of a request whose outcome is unknown.
const DOUBT_WAIT: Duration = Duration::from_millis(500);

/// What ends the whole run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Rejected(String),
    #[error("no connection to {url}: {source}")]
    Unreachable { url: String, source: io::Error },
    #[error("cannot write the acknowledgements: {0}")]
    Acks(#[source] io::Error),
    #[error("the run id cannot be sent in a header: {0}")]
    Key(#[source] InvalidHeaderValue),
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
    /// What the requests' idempotency keys begin with; `None` when they carry none.
    pub(crate) key_prefix: Option<String>,
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
    /// Value of the header `Idempotency-Key`.
    key: Option<HeaderValue>,
    /// An attempt may have been committed.
    in_doubt: bool,
}

impl Batch {
    /// Counts the events of a request that is given up.
    fn give_up(&self, tally: &mut Tally) {
        if self.in_doubt { tally.lose_track(self.count) } else { tally.abandon(self.count) }
    }
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
            let Some(mut batch) = self.batch(ticket.number)? else { return Ok(()) };
            self.settle(&mut batch, ticket).await?;
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
        let key = self.run.key_prefix.as_ref().map(|prefix| format!("\"{prefix}-{first_seq}\""));
        let key = key.map(HeaderValue::try_from).transpose().map_err(Error::Key)?;
        Ok(Some(Batch { first_seq, count, body, key, in_doubt: false }))
    }

    /// Sends a request, again where that cannot store it twice, until its outcome is settled and counted.
    async fn settle(&mut self, batch: &mut Batch, ticket: Ticket) -> Result<(), Error> {
        let mut measured_from = ticket.due;
        let mut first = true;
        loop {
            if let Err(error) = self.connect().await {
                batch.give_up(&mut self.run.tally());
                return error.map_or(Ok(()), Err);
            }
            let now = Instant::now();
            if std::mem::take(&mut first)
                && let Some(due) = ticket.due
            {
                self.run.tally().sent(now.saturating_duration_since(due));
            }
            let measured_from = *measured_from.get_or_insert(now);
            let exchange = self.client.send(batch.body.clone(), batch.count, batch.key.as_ref()).await;
            let Some(wait) = self.count(batch, exchange, measured_from.elapsed())? else { return Ok(()) };
            if self.pause(wait).await {
                batch.give_up(&mut self.run.tally());
                return Ok(());
            }
        }
    }

    /// Counts what became of a request. The wait after which it is to be sent again, or `None` when it is settled.
    fn count(
        &self,
        batch: &mut Batch,
        exchange: Exchange,
        latency: Duration,
    ) -> Result<Option<Duration>, Error> {
        let mut tally = self.run.tally();
        tally.replies += u64::from(matches!(exchange, Exchange::Reply(_)));
        let fault = match exchange {
            Exchange::Reply(Reply::Acknowledged(receipt)) => {
                let written = tally.acknowledge(batch.first_seq, &receipt, batch.body.len(), latency);
                return written.map(|()| None).map_err(Error::Acks);
            }
            Exchange::Reply(Reply::Refused { status, retry_after }) => {
                tally.fault(if status == 429 { Fault::Overloaded } else { Fault::Unavailable });
                return Ok(Some(jittered(retry_after)));
            }
            Exchange::NotSent => {
                tally.fault(Fault::Connect);
                return Ok(Some(CONNECT_BACKOFF_MIN));
            }
            Exchange::Reply(Reply::Rejected(reason)) => {
                batch.give_up(&mut tally);
                return Err(Error::Rejected(reason));
            }
            Exchange::Reply(Reply::Spooled) => Fault::Spooled,
            Exchange::Reply(Reply::Unknown { .. }) => Fault::OutcomeUnknown,
            Exchange::Lost => Fault::ConnectionLost,
            Exchange::TimedOut => Fault::ReplyTimeout,
        };
        tally.fault(fault);
        batch.in_doubt = true;
        if batch.key.is_some() {
            return Ok(Some(jittered(DOUBT_WAIT)));
        }
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

/// A wait, stretched at random so that those who were turned away do not come back all at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(1.0..1.25))
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
