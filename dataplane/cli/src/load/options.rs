//! The options of `certeus load`: one definition for flags and configuration file, and the settings they resolve to.
//!
//! Pure but for reading the file it is told to. A flag wins over the file, the file over the default. Everything is
//! checked here, so that a run that has started cannot fail for a bad setting.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use hyper::Uri;
use serde::{Deserialize, Serialize};

use super::template;

const DEFAULT_URL: &str = "http://127.0.0.1:8000";
const DEFAULT_DURATION: Duration = Duration::from_secs(30);
const DEFAULT_WORKERS: usize = 16;
const DEFAULT_BATCH: usize = 100;
const DEFAULT_EVENT_SIZE: usize = 300;
pub(super) const WORKERS_MAX: usize = 10_000;
const BATCH_MAX: usize = 100_000;
const EVENT_SIZE_MAX: usize = 1 << 20;
/// Every worker holds one body of `batch` events.
const BODIES_BYTES_MAX: usize = 1 << 30;

/// Why the options cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read configuration file '{}': {source}", path.display())]
    ReadFile { path: PathBuf, source: std::io::Error },
    #[error("configuration file '{}': {source}", path.display())]
    ParseFile { path: PathBuf, source: Box<serde_saphyr::Error> },
    #[error("{key}: {problem}")]
    Value { key: &'static str, problem: String },
    #[error("{key} cannot be used with {other}: {reason}")]
    Conflict { key: &'static str, other: &'static str, reason: &'static str },
}

/// What flags and file may say. Absent means: not said there.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Where the ledger's API listens [default: http://127.0.0.1:8000]
    #[arg(long)]
    url: Option<Endpoint>,
    /// Events per second to offer; 0 or 'max': as many as are taken, each worker waiting for its reply [default: max]
    #[arg(long, value_name = "EVENTS/S")]
    target_throughput: Option<Throughput>,
    /// How long to send, ramp-up included, such as 90s or 5m [default: 30s, or no limit with --events or --file]
    #[arg(long, value_name = "TIME")]
    duration: Option<Span>,
    /// How long the rate rises from zero to the target; without a target, workers start one by one [default: 0s]
    #[arg(long, value_name = "TIME")]
    ramp_up: Option<Span>,
    /// Connections, each with one request in flight [default: 16, or 1 with --file]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Events per request [default: 100]
    #[arg(long, value_name = "EVENTS")]
    batch: Option<usize>,
    /// Size of a generated event in bytes [default: 300]
    #[arg(long, value_name = "BYTES")]
    event_size: Option<usize>,
    /// Stop after this many events
    #[arg(long, value_name = "N")]
    events: Option<u64>,
    /// Compression of the requests [default: none]
    #[arg(long)]
    encoding: Option<Encoding>,
    /// Whether each request carries an idempotency key, made of the run's name and the first sequence number. A request
    /// whose outcome is unknown is then sent again: the ledger stores it once [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    idempotency_keys: Option<bool>,
    /// Send the events of this NDJSON file once, in order, each line unchanged, instead of generated ones
    #[arg(long, value_name = "EVENTS.ndjson")]
    file: Option<PathBuf>,
    /// Write the settings and all figures to this file as JSON
    #[arg(long, value_name = "RESULT.json")]
    output: Option<PathBuf>,
    /// Write a line per acknowledged request: first sequence number, count, first index, first id; tab separated
    #[arg(long, value_name = "FILE")]
    acks: Option<PathBuf>,
    /// At the end append the result as an event, and publish it with its proof for anybody to read; its address is printed.
    /// The ledger must sign its log
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    publish: Option<bool>,
    /// Name of this run, part of every generated event [default: made from the time]
    #[arg(long, value_name = "NAME")]
    run_id: Option<RunId>,
}

/// A checked, complete set of options. As JSON it has the keys of a configuration file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Settings {
    pub(crate) url: Endpoint,
    pub(crate) target_throughput: Throughput,
    pub(crate) duration: Option<Span>,
    pub(crate) ramp_up: Span,
    pub(crate) workers: usize,
    pub(crate) batch: usize,
    pub(crate) event_size: usize,
    pub(crate) events: Option<u64>,
    pub(crate) encoding: Encoding,
    pub(crate) idempotency_keys: bool,
    pub(crate) file: Option<PathBuf>,
    pub(crate) output: Option<PathBuf>,
    pub(crate) acks: Option<PathBuf>,
    pub(crate) publish: bool,
    pub(crate) run_id: RunId,
}

impl Options {
    /// Reads a configuration file.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::ReadFile { path: path.to_owned(), source })?;
        serde_saphyr::from_str(&text)
            .map_err(|source| Error::ParseFile { path: path.to_owned(), source: Box::new(source) })
    }

    /// These options, and `other`'s where these say nothing.
    pub(crate) fn or(self, other: Self) -> Self {
        let Self {
            url,
            target_throughput,
            duration,
            ramp_up,
            workers,
            batch,
            event_size,
            events,
            encoding,
            idempotency_keys,
            file,
            output,
            acks,
            publish,
            run_id,
        } = self;
        Self {
            url: url.or(other.url),
            target_throughput: target_throughput.or(other.target_throughput),
            duration: duration.or(other.duration),
            ramp_up: ramp_up.or(other.ramp_up),
            workers: workers.or(other.workers),
            batch: batch.or(other.batch),
            event_size: event_size.or(other.event_size),
            events: events.or(other.events),
            encoding: encoding.or(other.encoding),
            idempotency_keys: idempotency_keys.or(other.idempotency_keys),
            file: file.or(other.file),
            output: output.or(other.output),
            acks: acks.or(other.acks),
            publish: publish.or(other.publish),
            run_id: run_id.or(other.run_id),
        }
    }

    /// Fills in the defaults and checks everything. `run_id` is used when none was given.
    pub(crate) fn resolve(self, run_id: RunId) -> Result<Settings, Error> {
        let Self {
            url,
            target_throughput,
            duration,
            ramp_up,
            workers,
            batch,
            event_size,
            events,
            encoding,
            idempotency_keys,
            file,
            output,
            acks,
            publish,
            run_id: given_run_id,
        } = self;
        if file.is_some() {
            if workers.is_some_and(|workers| workers != 1) {
                let reason = "a file is replayed in order, by one worker";
                return Err(Error::Conflict { key: "workers", other: "file", reason });
            }
            if event_size.is_some() {
                let reason = "its events are sent as they are";
                return Err(Error::Conflict { key: "event-size", other: "file", reason });
            }
        }
        let bounded = events.is_some() || file.is_some();
        let settings = Settings {
            url: match url {
                Some(url) => url,
                None => DEFAULT_URL.parse().map_err(|problem| Error::Value { key: "url", problem })?,
            },
            target_throughput: target_throughput.unwrap_or(Throughput::Max),
            duration: duration.or((!bounded).then_some(Span(DEFAULT_DURATION))),
            ramp_up: ramp_up.unwrap_or(Span(Duration::ZERO)),
            workers: workers.unwrap_or(if file.is_some() { 1 } else { DEFAULT_WORKERS }),
            batch: batch.unwrap_or(DEFAULT_BATCH),
            event_size: event_size.unwrap_or(DEFAULT_EVENT_SIZE),
            events,
            encoding: encoding.unwrap_or(Encoding::None),
            idempotency_keys: idempotency_keys.unwrap_or(true),
            file,
            output,
            acks,
            publish: publish.unwrap_or(false),
            run_id: given_run_id.unwrap_or(run_id),
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Settings {
    fn check(&self) -> Result<(), Error> {
        within("workers", self.workers, 1, WORKERS_MAX)?;
        within("batch", self.batch, 1, BATCH_MAX)?;
        if let Some(Span(duration)) = self.duration {
            if duration.is_zero() {
                return Err(Error::Value { key: "duration", problem: "must be above zero".into() });
            }
            if self.ramp_up.0 > duration {
                let problem = format!("{} is longer than the duration, {}", self.ramp_up, Span(duration));
                return Err(Error::Value { key: "ramp-up", problem });
            }
        }
        if self.events == Some(0) {
            return Err(Error::Value { key: "events", problem: "must be above zero".into() });
        }
        if self.events.is_some_and(|events| events > template::SEQ_END) {
            let problem = format!("must be at most {}", template::SEQ_END);
            return Err(Error::Value { key: "events", problem });
        }
        if self.file.is_none() {
            let least = template::event_size_min(self.run_id.as_str());
            within("event-size", self.event_size, least, EVENT_SIZE_MAX)?;
            let bytes = self.workers * self.batch * self.event_size;
            if bytes > BODIES_BYTES_MAX {
                let problem = format!(
                    "workers x batch x event-size is {bytes} bytes of request bodies; {BODIES_BYTES_MAX} is the limit"
                );
                return Err(Error::Value { key: "workers", problem });
            }
        }
        Ok(())
    }
}

fn within(key: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Value { key, problem: format!("{value} is not between {least} and {most}") })
}

/// How many events to offer.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Scalar", into = "String")]
pub(crate) enum Throughput {
    /// Closed loop: as many as are taken.
    Max,
    /// Open loop, in events per second, above zero.
    EventsPerSecond(f64),
}

impl FromStr for Throughput {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.replace('_', "").parse::<f64>() {
            Ok(0.0) => Ok(Self::Max),
            // The lower bound keeps the time between two requests expressible.
            Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(Self::EventsPerSecond(rate)),
            _ => Err(format!("'{text}' is neither 'max' nor a number of events per second, 0.001 to 1e9")),
        }
    }
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::EventsPerSecond(rate) => write!(f, "{rate}"),
        }
    }
}

/// A length of time, written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|duration| Duration::try_from(duration).ok())
            .map(Self)
            .ok_or_else(|| format!("'{text}' is not a time such as 500ms, 90s, 5m or 1h"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The name of a run: 1 to 64 of `A-Z a-z 0-9 . _ -`, which need no escaping in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Scalar", into = "String")]
pub(crate) struct RunId(String);

impl RunId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("'{text}' is not 1 to 64 letters, digits, '.', '_' or '-'"))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How request bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    None,
    Gzip,
    Zstd,
}

/// The ledger's address: `http://HOST[:PORT][/BASE]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Endpoint {
    text: String,
    /// Host name or address to connect to, without the brackets of IPv6.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Value of the `Host` header.
    pub(crate) authority: String,
    /// What stands before `/v1`, without a slash at its end.
    pub(crate) base_path: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |problem: &str| format!("'{text}' is not usable: {problem}");
        let uri: Uri = text.parse().map_err(|error| refuse(&format!("{error}")))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(refuse("TLS is not supported here, use http")),
            _ => return Err(refuse("it must look like http://HOST:PORT")),
        }
        let authority = uri.authority().ok_or_else(|| refuse("there is no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("put the API key into the environment, CERTEUS_API_KEY"));
        }
        if uri.query().is_some() {
            return Err(refuse("a query makes no sense here"));
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(refuse("there is no host"));
        }
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            base_path: uri.path().trim_end_matches('/').to_owned(),
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A YAML scalar that may be written as a number or as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Integer(u64),
    Number(f64),
    Text(String),
}

impl Scalar {
    fn parse<T: FromStr<Err = String>>(self) -> Result<T, String> {
        match self {
            Self::Integer(number) => number.to_string().parse(),
            Self::Number(number) => number.to_string().parse(),
            Self::Text(text) => text.parse(),
        }
    }
}

macro_rules! text_in_serde {
    ($($type:ty: $wire:ty => $parse:expr),* $(,)?) => {$(
        impl TryFrom<$wire> for $type {
            type Error = String;
            fn try_from(wire: $wire) -> Result<Self, String> {
                $parse(wire)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}
text_in_serde! {
    Throughput: Scalar => Scalar::parse,
    RunId: Scalar => Scalar::parse,
    Span: String => |text: String| text.parse(),
    Endpoint: String => |text: String| text.parse(),
}

#[cfg(test)]
mod tests;
