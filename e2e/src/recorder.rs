//! Clients that send events through every fault and write down what they are promised.
//!
//! A request that was refused, or cannot have arrived, is sent again as it is: if a refusal had stored it after all, the
//! checker would find it twice. One whose outcome is unknown is sent again only by the clients that name their requests:
//! some by keys, some by a producer's sequence. These repeat now and then what was acknowledged, and expect the same reply.
//! (A repeat would store what a spool lost. As few are repeated, and `spools.rs` asks for all at the end, that does not hide a loss.)

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::dice::{Dice, mix};
use crate::event::Event;
use crate::http::{Client, Exchange, Reply, Request};
use crate::journal::{Entry, Journal, Name, Receipt, Sequence};

/// A client that names its requests gives one in doubt up after so many attempts, on average.
const GIVE_UP_ONE_IN: u64 = 20;
/// A producer begins a new life after so many requests, on average.
const NEW_LIFE_ONE_IN: u64 = 40;
/// One in so many acknowledged requests with a name is sent again.
const REPEAT_ONE_IN: u64 = 10;
/// One in so many requests without a name waits for its checkpoint.
const SEALED_ONE_IN: u64 = 10;
/// What a client still gets to end its last request once it is to stop.
const LAST_REQUEST: Duration = Duration::from_secs(30);

/// Clients at a time, each with a connection of its own.
const CLIENTS: usize = 8;
/// A client pauses for less than this between two requests.
const PAUSE_MS: u64 = 20;

/// How the clients behave.
#[derive(Debug, Clone)]
pub struct Habits {
    /// How long they wait for a reply.
    pub reply_timeout: Duration,
    /// One in so many requests is large enough for a COPY.
    pub large_one_in: u64,
    /// Whether some clients name their requests.
    pub named: bool,
    /// Whether the pods have spools, and may answer so.
    pub spool: bool,
    /// The key that the pods ask for.
    pub api_key: Option<String>,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            reply_timeout: Duration::from_secs(25),
            large_one_in: 40,
            named: true,
            spool: false,
            api_key: None,
        }
    }
}

/// The pods that clients may use; they change while clients run.
#[derive(Debug, Clone, Default)]
pub struct Targets(Arc<Mutex<Vec<SocketAddr>>>);

impl Targets {
    /// From now on these.
    pub fn set(&self, addresses: Vec<SocketAddr>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<SocketAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pick(&self, dice: &mut Dice) -> Option<SocketAddr> {
        let addresses = self.all();
        (!addresses.is_empty()).then(|| *dice.pick(&addresses))
    }
}

/// Running clients.
#[derive(Debug)]
pub struct Recorder {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Recorder {
    /// Starts the clients.
    #[must_use]
    pub fn start(habits: &Habits, targets: &Targets, journal: &Arc<Journal>, dice: &mut Dice) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..CLIENTS)
            .map(|number| {
                let mut worker = Worker {
                    naming: if habits.named { Naming::of(number, dice) } else { Naming::None },
                    habits: habits.clone(),
                    targets: targets.clone(),
                    journal: Arc::clone(journal),
                    dice: dice.fork(),
                    stop: Arc::clone(&stop),
                    client: Client::new(habits.reply_timeout),
                    target: None,
                    promised: false,
                };
                std::thread::spawn(move || worker.run())
            })
            .collect();
        Self { stop, clients }
    }

    /// Ends the clients after the request that each has under way.
    ///
    /// # Errors
    /// When a client panicked.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            if client.join().is_err() {
                bail!("a client panicked");
            }
        }
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Without waiting: what failed is being reported already.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How a client names its requests.
enum Naming {
    None,
    Keys,
    /// Where the next request begins.
    Producer(Sequence),
}

impl Naming {
    /// Half of the clients name nothing.
    fn of(client: usize, dice: &mut Dice) -> Self {
        match client % 4 {
            0 | 1 => Self::None,
            2 => Self::Keys,
            _ => Self::Producer(Sequence { producer: format!("p-{:x}", dice.draw()), epoch: 0, number: 0 }),
        }
    }

    fn name(&self, first_number: u64) -> Name {
        match self {
            Self::None => Name::None,
            Self::Keys => Name::Key(format!("k-{first_number}")),
            Self::Producer(next) => Name::Sequence(next.clone()),
        }
    }

    /// After a request, or after giving one up: then, and now and then anyway, a producer begins a new life.
    fn advance(&mut self, count: u64, new_life: bool) {
        if let Self::Producer(next) = self {
            if new_life {
                *next = Sequence { epoch: next.epoch + 1, number: 0, producer: next.producer.clone() };
            } else {
                next.number += count;
            }
        }
    }
}

struct Worker {
    naming: Naming,
    habits: Habits,
    targets: Targets,
    journal: Arc<Journal>,
    dice: Dice,
    stop: Arc<AtomicBool>,
    client: Client,
    target: Option<SocketAddr>,
    /// Whether requests of this producer may still be in a spool. A new life would fence them.
    promised: bool,
}

/// What a reply means for the events that were sent.
enum Verdict {
    /// With the reply's bytes.
    Acknowledged(Receipt, Vec<u8>),
    /// Promised by a spool, under this key if the client gave none.
    Spooled(Option<String>),
    /// The promise that nothing was stored.
    Refused,
    /// The same, as there is no room.
    Full,
    Unknown,
    /// An answer that must never be given.
    Surprise(String),
}

impl Worker {
    fn run(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let count = match self.dice.below(self.habits.large_one_in) {
                0 => 501 + self.dice.below(200),
                1..8 => 2 + self.dice.below(40),
                _ => 1,
            };
            self.send(count);
            std::thread::sleep(self.dice.millis(0, PAUSE_MS));
        }
    }

    /// One request until its outcome is known, or known to be unknown.
    fn send(&mut self, count: u64) {
        let (ticket, entry) = self.journal.sent(count, |first| self.naming.name(first));
        let (body, headers) = (body(&entry), headers(&entry));
        let headers = headers.iter().map(|(name, value)| (*name, &value[..]));
        let api_key = self.habits.api_key.clone();
        let headers: Vec<(&str, &str)> =
            headers.chain(api_key.iter().map(|key| ("x-api-key", &key[..]))).collect();
        // A reply that waits for a checkpoint may say how far it got, and so differ from the first.
        let sealed = entry.name == Name::None && self.dice.one_in(SEALED_ONE_IN);
        let path = if sealed { "/v1/ledger/events?ack=sealed" } else { "/v1/ledger/events" };
        let request = Request { method: "POST", path, headers: &headers, body: body.as_bytes() };
        let mut stopped_at = None;
        // Whether an attempt may have been stored.
        let mut doubt = false;
        let answered = loop {
            match self.attempt(&request) {
                Verdict::Acknowledged(receipt, reply) => {
                    self.journal.acknowledged(ticket, receipt);
                    // A producer's requests are stored in order, so nothing of this one is left in a spool.
                    self.promised = false;
                    break Some(Some(reply));
                }
                Verdict::Spooled(key) => {
                    self.journal.spooled(ticket, key);
                    self.promised = true;
                    break Some(None);
                }
                Verdict::Unknown => doubt = true,
                Verdict::Refused => {}
                Verdict::Full => self.journal.full(),
                Verdict::Surprise(text) => {
                    self.journal.surprise(format!("{entry:?}: {text}"));
                    return self.naming.advance(count, true);
                }
            }
            if doubt
                && (entry.name == Name::None || self.may_begin_anew() && self.dice.one_in(GIVE_UP_ONE_IN))
            {
                break None;
            }
            if self.stop.load(Ordering::Relaxed)
                && stopped_at.get_or_insert_with(Instant::now).elapsed() > LAST_REQUEST
            {
                if !doubt {
                    self.journal.not_stored(ticket);
                }
                break None;
            }
            self.target = None;
            std::thread::sleep(self.dice.millis(5, 60));
        };
        let new_life = answered.is_none() || self.may_begin_anew() && self.dice.one_in(NEW_LIFE_ONE_IN);
        self.naming.advance(count, new_life);
        if let Some(first) = answered
            && entry.name != Name::None
            && !new_life
            && self.dice.one_in(REPEAT_ONE_IN)
        {
            self.repeat(&entry, &request, first.as_deref());
        }
    }

    /// Whether a producer may give up what it has begun without fencing what it was promised.
    fn may_begin_anew(&self) -> bool {
        !(self.promised && matches!(self.naming, Naming::Producer(_)))
    }

    /// Sends again what was acknowledged: the reply must be the same, byte for byte, unless the first one was a spool's.
    fn repeat(&mut self, entry: &Entry, request: &Request<'_>, first: Option<&[u8]>) {
        match (self.attempt(request), first) {
            (Verdict::Acknowledged(_, reply), Some(first)) if reply != first => {
                let text = [first, &reply].map(String::from_utf8_lossy).join(", then ");
                self.journal.surprise(format!("{entry:?}: answered with {text}"));
            }
            (Verdict::Surprise(text), _) => self.journal.surprise(format!("{entry:?}, repeated: {text}")),
            (_, _) => {}
        }
    }

    fn attempt(&mut self, request: &Request<'_>) -> Verdict {
        // A client keeps to its pod while that keeps the connection.
        if !self.client.is_connected() || self.target.is_none() || self.dice.one_in(50) {
            self.target = self.targets.pick(&mut self.dice);
        }
        let Some(target) = self.target else { return Verdict::Refused };
        match self.client.send(target, request) {
            Exchange::Reply(reply) => interpret(&reply, self.habits.spool),
            Exchange::NotSent => Verdict::Refused,
            Exchange::Lost => Verdict::Unknown,
        }
    }
}

/// The headers with which a request is sent, each time the same.
pub(crate) fn headers(entry: &Entry) -> Vec<(&'static str, String)> {
    let content_type = if in_lines(entry) { "application/x-ndjson" } else { "application/json" };
    let mut headers = vec![("content-type", content_type.to_owned())];
    match &entry.name {
        Name::None => {}
        Name::Key(key) => headers.push(key_header(key)),
        Name::Sequence(Sequence { producer, epoch, number }) => headers.extend([
            ("producer-id", producer.clone()),
            ("producer-epoch", epoch.to_string()),
            ("producer-sequence", number.to_string()),
        ]),
    }
    headers
}

/// The header that names a request.
pub(crate) fn key_header(key: &str) -> (&'static str, String) {
    ("idempotency-key", format!("\"{key}\""))
}

/// The body with which a request is sent, each time the same.
pub(crate) fn body(entry: &Entry) -> String {
    let numbers = entry.first_number..entry.first_number + entry.count;
    let events: Vec<String> = numbers.map(|number| Event(number).json()).collect();
    match (in_lines(entry), &events[..]) {
        (true, _) => events.join("\n"),
        (false, [one]) => one.clone(),
        (false, _) => format!("[ {} ]", events.join(" ,\n")),
    }
}

/// Half of the requests are NDJSON.
fn in_lines(entry: &Entry) -> bool {
    mix(entry.first_number).is_multiple_of(2)
}

/// The status and what it promises: the README, "What is promised".
fn interpret(reply: &Reply, spool: bool) -> Verdict {
    let surprise = || {
        let body = String::from_utf8_lossy(&reply.body[..reply.body.len().min(500)]).into_owned();
        Verdict::Surprise(format!("status {}: {body}", reply.status))
    };
    match (reply.status, reply.problem().as_str()) {
        (201, _) => match serde_json::from_slice(&reply.body) {
            Ok(receipt) => Verdict::Acknowledged(receipt, reply.body.clone()),
            Err(_) => surprise(),
        },
        (202, _) if spool => match reply.json() {
            reply if reply["ack"] == "spooled" => {
                Verdict::Spooled(reply["idempotency_key"].as_str().map(str::to_owned))
            }
            _ => surprise(),
        },
        (503, "outcome-unknown") => Verdict::Unknown,
        (429, _) => Verdict::Full,
        // The request before it is in another pod's spool, which was killed.
        (409, "sequence-gap") if spool => Verdict::Refused,
        (408, _) | (503, "unavailable" | "draining" | "log-unchecked" | "log-refused") => Verdict::Refused,
        _ => surprise(),
    }
}
